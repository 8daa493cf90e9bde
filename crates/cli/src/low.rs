//! What was said, on the command line and in the environment, before anything is made of it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::ArgMatches;
use clap::parser::ValueSource;

use vramfit::devices::profiles_path;

use crate::elsewhere::error_of_environment;
use crate::flags::{FLAGS, Flag, Takes};

/// A value, and where it was said: a flag's name or an environment variable's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// As written.
    pub text: String,
    /// For messages.
    pub by: &'static str,
}

/// Values and switches by a flag's id, the command line before the environment.
#[derive(Debug, Default)]
pub struct LowArgs {
    values: BTreeMap<&'static str, Vec<Said>>,
    switches: BTreeMap<&'static str, bool>,
    /// Where on the command line each of `values` stands.
    places: BTreeMap<&'static str, Vec<usize>>,
    /// The models, in order.
    pub models: Vec<PathBuf>,
    /// Where profiles of what CUDA takes are kept, and whether somebody named the file.
    pub profiles: Option<(PathBuf, bool)>,
    /// Entries of `-ot` that stand before `-cmoe` and `-ncmoe`, where the order is known.
    pub overrides_before_experts: Option<usize>,
    /// `--mmproj-offload`, or its opposite, is said behind `--mmproj-device`: of the two the last counts.
    pub offload_behind_device: bool,
}

/// Whether the switch of a projector's offload stands behind its device. What the environment says comes first, and
/// there the switch before the device.
fn offload_behind_device(matches: &ArgMatches) -> bool {
    let last = |id: &str| match matches.value_source(id) {
        Some(ValueSource::CommandLine) => matches.indices_of(id).and_then(Iterator::last),
        _ => None,
    };
    let switches = ["mmproj-offload", "no-mmproj-offload"];
    switches.into_iter().filter_map(last).max() > last("mmproj-device")
}

/// How many entries of `-ot` stand before the first of `-cmoe` and `-ncmoe`.
fn before_experts(matches: &ArgMatches) -> Option<usize> {
    let given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let first = |id: &str| matches.indices_of(id).filter(|_| given(id))?.next();
    let experts = ["cpu-moe", "n-cpu-moe"]
        .into_iter()
        .filter_map(first)
        .min()?;
    let texts = matches.get_many::<String>("override-tensor")?;
    let places = matches.indices_of("override-tensor")?;
    let before = places.zip(texts).filter(|(at, _)| *at < experts);
    Some(before.map(|(_, text)| text.split(',').count()).sum())
}

impl LowArgs {
    /// Reads `matches`, and for what they do not say the environment. The error is one line.
    pub fn new(
        matches: &ArgMatches,
        env: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<LowArgs, String> {
        if let Some(error) = error_of_environment(env) {
            return Err(error);
        }
        let mut low = LowArgs {
            overrides_before_experts: before_experts(matches),
            offload_behind_device: offload_behind_device(matches),
            ..LowArgs::default()
        };
        for flag in FLAGS.iter().filter(|flag| flag.id() != "model") {
            if flag.takes_value() {
                low.add_value(flag, matches, env)?;
            } else {
                low.add_switch(flag, matches, env)?;
            }
        }
        let profile = low.value("profile").map(|said| PathBuf::from(&said.text));
        low.profiles = profiles_path(profile.as_deref(), env);
        for id in ["MODEL", "model"] {
            low.models.extend(
                matches
                    .get_many::<PathBuf>(id)
                    .into_iter()
                    .flatten()
                    .cloned(),
            );
        }
        if low.models.is_empty() {
            low.models.extend(env("LLAMA_ARG_MODEL").map(PathBuf::from));
        }
        Ok(low)
    }

    fn add_value(
        &mut self,
        flag: &'static Flag,
        matches: &ArgMatches,
        env: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<(), String> {
        let given = matches.get_many::<String>(flag.id()).into_iter().flatten();
        let by = shown_name(flag);
        let mut said: Vec<Said> = given
            .map(|text| Said {
                text: text.clone(),
                by,
            })
            .collect();
        if said.is_empty()
            && let Some(text) = variable(flag.env, env)?
        {
            said.push(Said { text, by: flag.env });
        }
        if !said.is_empty() {
            self.values.insert(flag.id(), said);
            let places = matches.indices_of(flag.id()).into_iter().flatten();
            self.places.insert(flag.id(), places.collect());
        }
        Ok(())
    }

    fn add_switch(
        &mut self,
        flag: &'static Flag,
        matches: &ArgMatches,
        env: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<(), String> {
        let given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
        let on = if given(flag.id()) {
            Some(true)
        } else if flag.negative_id().is_some_and(given) {
            Some(false)
        } else {
            self.switch_in_environment(flag, env)?
        };
        if let Some(on) = on {
            self.switches.insert(flag.id(), on);
        }
        Ok(())
    }

    /// As llama.cpp reads it: with an opposite, `LLAMA_ARG_NO_..` counts whatever it says.
    fn switch_in_environment(
        &self,
        flag: &Flag,
        env: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Option<bool>, String> {
        let has_opposite = !flag.negative.is_empty();
        let opposite = flag.env.replace("LLAMA_ARG_", "LLAMA_ARG_NO_");
        if has_opposite && !flag.env.is_empty() && env(&opposite).is_some() {
            return Ok(Some(false));
        }
        let Some(text) = variable(flag.env, env)? else {
            return Ok(None);
        };
        match truth(&text) {
            Some(on) => Ok((on || has_opposite).then_some(on)),
            None => Err(format!("{}: '{text}' is neither on nor off", flag.env)),
        }
    }

    /// Adds a value to those that were said.
    pub fn add(&mut self, id: &'static str, text: String, by: &'static str) {
        self.values.entry(id).or_default().push(Said { text, by });
    }

    /// Adds a value where none was said; whether it did.
    pub fn add_default(&mut self, id: &'static str, text: String, by: &'static str) -> bool {
        let is_new = !self.values.contains_key(id);
        if is_new {
            self.add(id, text, by);
        }
        is_new
    }

    /// The last value that was said.
    pub fn value(&self, id: &str) -> Option<&Said> {
        self.values.get(id)?.last()
    }

    /// All values that were said, in order.
    pub fn all(&self, id: &str) -> &[Said] {
        self.values.get(id).map_or(&[], Vec::as_slice)
    }

    /// All values of several flags, in the order of the command line; those that were added later come last.
    pub fn all_in_order(&self, ids: &[&'static str]) -> Vec<(&'static str, &Said)> {
        let mut all = Vec::new();
        for &id in ids {
            let places = self.places.get(id).map_or(&[][..], Vec::as_slice);
            for (i, said) in self.all(id).iter().enumerate() {
                all.push((places.get(i).copied().unwrap_or(usize::MAX), id, said));
            }
        }
        all.sort_by_key(|&(place, ..)| place);
        all.into_iter().map(|(_, id, said)| (id, said)).collect()
    }

    /// The names by which flags of `ids` were said.
    pub fn said(&self, ids: &[&str]) -> Vec<&'static str> {
        let is_meant = |flag: &&Flag| ids.contains(&flag.id());
        let said = |flag: &'static Flag| match self.switch(flag.id()) {
            Some(false) => flag.negative.first().copied(),
            Some(true) => Some(flag.long),
            None => self.value(flag.id()).map(|said| said.by),
        };
        FLAGS.iter().filter(is_meant).filter_map(said).collect()
    }

    /// A switch, or its opposite.
    pub fn switch(&self, id: &str) -> Option<bool> {
        self.switches.get(id).copied()
    }

    /// Whether a switch was turned on.
    pub fn is_on(&self, id: &str) -> bool {
        self.switch(id) == Some(true)
    }
}

/// llama.cpp's words for on and off.
pub fn truth(text: &str) -> Option<bool> {
    match text {
        "on" | "enabled" | "true" | "1" => Some(true),
        "off" | "disabled" | "false" | "0" => Some(false),
        _ => None,
    }
}

/// The name by which people call a flag: `-ngl`.
fn shown_name(flag: &'static Flag) -> &'static str {
    match flag.takes {
        Takes::Nothing => flag.long,
        _ => flag.aliases.first().copied().unwrap_or(flag.long),
    }
}

fn variable(name: &str, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Option<String>, String> {
    if name.is_empty() {
        return Ok(None);
    }
    let Some(text) = env(name).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let text = text.into_string();
    text.map(Some)
        .map_err(|_| format!("{name}: the value is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{argv, command};

    fn low(line: &str, env: &[(&str, &str)]) -> Result<LowArgs, String> {
        let words = line.split(' ').map(OsString::from);
        let words = argv::normalise(words).unwrap();
        let matches = command::command().try_get_matches_from(words).unwrap();
        let env = |name: &str| {
            let found = env.iter().find(|(n, _)| *n == name)?;
            Some(OsString::from(found.1))
        };
        LowArgs::new(&matches, &env)
    }

    #[test]
    fn the_command_line_goes_before_the_environment() {
        let env = [("LLAMA_ARG_CTX_SIZE", "512"), ("LLAMA_ARG_UBATCH", "64")];
        let low = low("estimate m.gguf -c 8 -c 16", &env).unwrap();
        let said = |id: &str| low.value(id).map(|s| (s.text.as_str(), s.by));
        assert_eq!(said("ctx-size"), Some(("16", "-c")));
        assert_eq!(said("ubatch-size"), Some(("64", "LLAMA_ARG_UBATCH")));
        assert_eq!(low.models, [PathBuf::from("m.gguf")]);
    }

    #[test]
    fn switches_have_opposites() {
        let check = |line: &str, env: &[(&str, &str)], expected: Option<bool>| {
            let low = low(&format!("estimate m{line}"), env).unwrap();
            assert_eq!(low.switch("kv-offload"), expected, "{line} {env:?}");
        };
        check("", &[], None);
        check(" -nkvo", &[], Some(false));
        check(" -nkvo -kvo", &[], Some(true));
        check(" -kvo --no-kv-offload", &[], Some(false));
        check("", &[("LLAMA_ARG_KV_OFFLOAD", "0")], Some(false));
        check("", &[("LLAMA_ARG_NO_KV_OFFLOAD", "0")], Some(false));
        check(" -kvo", &[("LLAMA_ARG_NO_KV_OFFLOAD", "1")], Some(true));
        let wrong = low("estimate m", &[("LLAMA_ARG_KV_OFFLOAD", "maybe")]).unwrap_err();
        assert!(wrong.contains("'maybe' is neither"), "{wrong}");
        let off = low("estimate m", &[("LLAMA_ARG_SWA_FULL", "0")]).unwrap();
        assert_eq!(off.switch("swa-full"), None);
    }

    #[test]
    fn the_way_to_load_is_said_last() {
        let check = |line: &str, mode: Option<&str>, mmap: Option<bool>| {
            let low = low(&format!("estimate m {line}"), &[]).unwrap();
            let said = low.value("load-mode").map(|s| s.text.as_str());
            assert_eq!((said, low.switch("mmap")), (mode, mmap), "{line}");
        };
        check("--no-mmap", None, Some(false));
        check("--no-mmap -lm mmap", Some("mmap"), None);
        check("-lm mmap --no-mmap", None, Some(false));
    }
}
