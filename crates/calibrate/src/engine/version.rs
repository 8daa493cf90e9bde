//! Which build of llama.cpp an engine says it is.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use vramfit::ENGINE;

use super::{Run, read};

/// As the modelled build names itself: with `-dev` where it was not built as a release, as the truth tables' engine was not.
const MODELLED: [&str; 2] = ["0.5.0", "0.5.0-dev"];
/// For `--version`, and between two looks at whether it is done.
const TIME: Duration = Duration::from_secs(20);
const PERIOD: Duration = Duration::from_millis(20);
/// Of what an engine says of itself, characters.
const MOST: usize = 80;

/// What `--version` says, as `0.5.0 (build 9000, commit 1a2b3c4)`; none where it says nothing like it.
pub(super) fn of_server(run: &Run) -> Option<String> {
    let out = run.log.with_file_name("version");
    let log = run.log.with_file_name("version.log");
    let options = run.options;
    let words = [OsString::from("--version")];
    let visible = options.visible.as_deref();
    let start = crate::hold::Held::start(&options.program, &words, &log, Some(&out), visible);
    let mut held = start.ok()?;
    let started = Instant::now();
    while held.ended(PERIOD).is_none() {
        if started.elapsed() > TIME || run.left().is_err() {
            return None;
        }
    }
    [log, out]
        .iter()
        .find_map(|file| said(&read(file).unwrap_or_default()))
}

fn said(text: &str) -> Option<String> {
    let line = text.lines().find_map(|l| l.strip_prefix("version: "))?;
    let line = line.trim();
    let clean = line.chars().filter(|c| !c.is_control());
    (!line.is_empty()).then(|| clean.take(MOST).collect())
}

/// The name of the build that ran, for a profile: the modelled one where the engine says that it is it.
pub(crate) fn build_name(said: Option<&str>) -> String {
    match said {
        Some(said)
            if said
                .split_whitespace()
                .next()
                .is_some_and(|word| MODELLED.contains(&word)) =>
        {
            ENGINE.name.to_string()
        }
        Some(said) => format!("llama.cpp {said}"),
        None => "a llama.cpp that does not say its version".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_llama_server_prints_them() {
        let check = |text: &str, found: Option<&str>| assert_eq!(said(text).as_deref(), found);
        check(
            "ggml_cuda_init: found 1 CUDA devices\nversion: 0.5.0 (build 1, commit unknown)\nbuilt with GNU 14 for Linux\n",
            Some("0.5.0 (build 1, commit unknown)"),
        );
        check("version: 6500 (3d16b29c)\n", Some("6500 (3d16b29c)"));
        check("error: unknown argument\n", None);
        check("version: \n", None);
    }

    #[test]
    fn only_the_modelled_build_has_its_name() {
        let modelled = build_name(Some("0.5.0 (build 1, commit unknown)"));
        assert_eq!(modelled, ENGINE.name);
        // what the kit's engine says
        assert_eq!(build_name(Some("0.5.0-dev")), ENGINE.name);
        for other in [
            Some("6500 (3d16b29c)"),
            Some("0.6.0-dev (build 2, commit a)"),
            None,
        ] {
            assert_ne!(build_name(other), ENGINE.name, "{other:?}");
        }
    }
}
