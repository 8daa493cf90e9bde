//! `oracle synth`: header-only models of architectures that no real header is at hand for. A spec
//! (`fixtures/specs/NAME.toml`) states the keys; the real engine says which tensors such a model has
//! (`kit/tensors.cpp`) and whether it loads the result, `fixtures/gguf/made/NAME.gguf`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Value as Toml;
use vramfit_ggml::Type;
use vramfit_gguf::{ArrayBuf, Header, ValueBuf, ValueType, Writer};

use crate::error::{Context, Error, Result};
use crate::kit::Engine;
use crate::models::{fixtures, make_one_sparse};

/// A spec file; CONTRIBUTING.md describes it.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    pub architecture: String,
    pub model: Option<String>,
    pub source: String,
    pub matrices: String,
    #[serde(default)]
    pub with: Vec<String>,
    #[serde(default)]
    pub without: Vec<String>,
    #[serde(default)]
    pub types: BTreeMap<String, String>,
    #[serde(default)]
    pub extra: BTreeMap<String, Vec<i64>>,
    pub keys: toml::Table,
}

/// Makes the models with these names (those of `drafts/` in a folder of their own), all others where there are none; a path to a spec makes the header beside
/// it. Returns the exit code: 1 if the engine refuses one.
pub fn run(names: &[String]) -> Result<i32> {
    let specs = fixtures().join("specs");
    let names = if names.is_empty() {
        all_names(&specs)?
    } else {
        names.to_vec()
    };
    let mut n_refused = 0;
    for name in &names {
        match make(name, &specs) {
            Ok(words) => println!("{name}: {words}"),
            Err(error) => {
                println!("{name}: {error}");
                n_refused += 1;
            }
        }
    }
    println!("{} models, {n_refused} refused", names.len());
    Ok(i32::from(n_refused > 0))
}

fn all_names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).context(folder.display())? {
        let path = entry.context(folder.display())?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            names.extend(path.file_stem().map(|s| s.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

fn make(name: &str, specs: &Path) -> Result<String> {
    // Of `oracle drafts`; they may need a target, so that they are not loaded by themselves.
    let is_draft = name.starts_with("drafts/");
    let (spec, out) = match name.strip_suffix(".toml") {
        Some(beside) => (PathBuf::from(name), PathBuf::from(format!("{beside}.gguf"))),
        None => {
            let folder = if is_draft { "gguf" } else { "gguf/made" };
            let out = fixtures().join(folder).join(format!("{name}.gguf"));
            (specs.join(format!("{name}.toml")), out)
        }
    };
    let spec = Spec::read(&spec)?;
    let folder = tempfile::tempdir().context("a temporary folder")?;
    let bytes = spec.bytes(folder.path())?;

    let made = folder.path().join("made.gguf");
    write(&made, &bytes)?;
    let header = Header::open(&made).context("the header")?;
    make_one_sparse(&made, &made, header.file_bytes())?;
    if !is_draft {
        accepted(&made)?;
    }

    let is_same = fs::read(&out).is_ok_and(|old| old == bytes);
    if !is_same {
        fs::create_dir_all(out.parent().context("made")?).context(out.display())?;
        write(&out, &bytes)?;
    }
    Ok(format!(
        "accepted, {} tensors, {} MB in {} bytes of header{}",
        header.tensors().len(),
        header.file_bytes() / 1_000_000,
        bytes.len(),
        if is_same { ", unchanged" } else { "" }
    ))
}

fn write(path: &PathBuf, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).context(path.display())
}

/// A real load, all layers on one GPU that is large enough for anything; without flash attention if
/// the engine's graph aborts with it.
fn accepted(model: &Path) -> Result<()> {
    let environment = [("VGPU", "G:4TiB:8.6"), ("VGPU_NO_OOM", "1")];
    let loads = |fa: &str| {
        let flags = ["-ngl", "99", "-c", "512", "--real", "-fa", fa].map(str::to_owned);
        Engine.ask(&environment, model, &flags).map(drop)
    };
    loads("auto").or_else(|error| loads("off").map_err(|_| error))
}

impl Spec {
    /// The spec in a file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).context(path.display())?;
        toml::from_str(&text).context(path.display())
    }

    /// The header-only file, with the tensors that the engine asks for.
    pub fn bytes(&self, folder: &Path) -> Result<Vec<u8>> {
        let asked = self.asked(folder)?;
        self.header(&self.tensors(asked))
    }

    /// The tensors that the engine asks for.
    pub fn asked(&self, folder: &Path) -> Result<Vec<(String, Vec<i64>)>> {
        let keys_only = tempfile::NamedTempFile::new_in(folder).context("a temporary file")?;
        let listed: Vec<_> = self
            .extra
            .iter()
            .map(|(name, ne)| (name.clone(), ne.clone()))
            .collect();
        write(&keys_only.path().into(), &self.header(&listed)?)?;
        Engine.tensors(keys_only.path(), &self.with, &self.without)
    }

    /// The header's bytes, padded up to where the data starts.
    fn header(&self, tensors: &[(String, Vec<i64>)]) -> Result<Vec<u8>> {
        let arch = &self.architecture;
        let mut writer = Writer::new();
        let mut key = |name: &str, value: ValueBuf| {
            writer
                .key(name, value)
                .map(drop)
                .context(format!("key {name}"))
        };
        key("general.architecture", arch.as_str().into())?;
        if let Some(model) = &self.model {
            key("general.name", model.as_str().into())?;
        }
        let keys = flat(&self.keys);
        if !keys.contains_key("tokenizer.ggml.model") {
            key("tokenizer.ggml.model", "no_vocab".into())?;
        }
        for (name, toml) in &keys {
            let is_whole = ["general.", "tokenizer.", "xielu."]
                .iter()
                .any(|prefix| name.starts_with(prefix));
            let name = if is_whole {
                name.clone()
            } else {
                format!("{arch}.{name}")
            };
            key(&name, value(toml).context(format!("key {name}"))?)?;
        }
        let is_tied = !tensors.iter().any(|(name, _)| name == "output.weight");
        for (name, ne) in tensors {
            writer.tensor(name, self.type_of(name, ne, is_tied)?, ne);
        }
        writer.finish().context("the header")
    }

    /// What the engine asked for and the spec adds by hand, in this order; the spec's shapes win.
    fn tensors(&self, mut asked: Vec<(String, Vec<i64>)>) -> Vec<(String, Vec<i64>)> {
        for (name, ne) in &self.extra {
            match asked.iter_mut().find(|tensor| tensor.0 == *name) {
                Some(tensor) => tensor.1.clone_from(ne),
                None => asked.push((name.clone(), ne.clone())),
            }
        }
        asked
    }

    /// The type that llama.cpp's converter and quantizer would choose, roughly.
    fn type_of(&self, name: &str, ne: &[i64], is_tied: bool) -> Result<Type> {
        let parse = |text: &str| Type::from_name(text).context(format!("type {text}"));
        let short = short_name(name);
        let given = self.types.iter().find(|(p, _)| *p == name || **p == short);
        let fits = |ty: &Type| {
            ne.first()
                .is_some_and(|n| n.unsigned_abs().is_multiple_of(ty.block_size()))
        };
        if let Some((_, text)) = given {
            return Ok([parse(text)?, Type::Q8_0]
                .into_iter()
                .find(fits)
                .unwrap_or(Type::F16));
        }
        if ne.len() < 2 || is_small(&short) {
            return Ok(Type::F32);
        }
        let mut ty = parse(&self.matrices)?;
        if STAYS_F16.iter().any(|part| short.contains(part)) && ty.is_quantized() {
            return Ok(Type::F16);
        }
        if ty == Type::Q4_K && (short == "output.weight" || is_tied && short == "token_embd.weight")
        {
            ty = Type::Q6_K;
        }
        let mut types = [ty, Type::Q8_0].into_iter();
        Ok(types.find(fits).unwrap_or(Type::F16))
    }
}

/// Matrices that are never stored in fewer than 32 bits.
fn is_small(name: &str) -> bool {
    const PARTS: [&str; 15] = [
        "ffn_gate_inp",
        "altup_correct_coef",
        "altup_predict_coef",
        "ssm_conv1d",
        "shortconv.conv",
        "indexer.proj",
        "indexer.k_proj",
        "indexer.q_proj",
        "time_mix_first",
        "time_mix_lerp_fused",
        "time_mix_decay_w",
        "attn_rel_b",
        "_norm",
        ".norm",
        "hc_",
    ];
    let is_weight = [".weight", ".lora_a", ".lora_b"]
        .iter()
        .any(|suffix| name.ends_with(suffix));
    // time_mix_w1, time_mix_a0, ..: RWKV's low-rank pairs
    let is_low_rank = name
        .strip_prefix("time_mix_")
        .and_then(|rest| rest.strip_suffix(".weight"))
        .is_some_and(|rest| rest.len() == 2 && rest.ends_with(|c: char| c.is_ascii_digit()));
    !is_weight
        || is_low_rank
        || ["position_embd.weight", "token_types.weight"].contains(&name)
        || PARTS.iter().any(|part| name.contains(part))
}

/// Matrices that are not quantised: small, or kernels of convolutions.
const STAYS_F16: [&str; 9] = [
    "altup",
    "laurel",
    "per_layer_model_proj",
    "conv1d",
    "posnet.",
    ".dw.",
    "token_shift",
    "conv1.",
    "conv2.",
];

/// `blk.7.attn_q.weight`: `attn_q.weight`; `dec.blk.7.attn_q.weight`: `dec.attn_q.weight`.
pub fn short_name(name: &str) -> String {
    match name.split_once("blk.") {
        Some((before, rest)) => {
            let after = rest.split_once('.').map_or("", |(_, after)| after);
            format!("{before}{after}")
        }
        None => name.to_owned(),
    }
}

/// Keys with their dots: what TOML reads as tables in tables, but for `{ TYPE = VALUE }`.
pub fn flat(table: &toml::Table) -> BTreeMap<String, &Toml> {
    let mut keys = BTreeMap::new();
    for (name, value) in table {
        match value.as_table() {
            Some(inner) if !is_typed(inner) => {
                let inner = flat(inner).into_iter();
                keys.extend(inner.map(|(rest, value)| (format!("{name}.{rest}"), value)));
            }
            _ => drop(keys.insert(name.clone(), value)),
        }
    }
    keys
}

fn is_typed(table: &toml::Table) -> bool {
    table.len() == 1 && TYPES.iter().any(|ty| table.contains_key(*ty))
}

const TYPES: [&str; 3] = ["u32", "i32", "u64"];

/// Integers as u32 (u64 or i32 where they must be), numbers with a point as f32. `{ i32 = .. }` and
/// `{ u64 = .. }` state the type.
pub fn value(toml: &Toml) -> Result<ValueBuf> {
    Ok(match toml {
        Toml::String(text) => text.as_str().into(),
        Toml::Boolean(bool) => (*bool).into(),
        #[allow(clippy::cast_possible_truncation)]
        Toml::Float(number) => (*number as f32).into(),
        Toml::Integer(number) => match (u32::try_from(*number), i32::try_from(*number)) {
            (Ok(number), _) => number.into(),
            (_, Ok(number)) => number.into(),
            _ => number.unsigned_abs().into(),
        },
        Toml::Array(items) => array(items)?,
        Toml::Table(typed) => match typed.iter().next() {
            Some((ty, inner)) if is_typed(typed) => cast(value(inner)?, ty)?,
            _ => return Err(Error::new("a table that is not { TYPE = VALUE }")),
        },
        Toml::Datetime(_) => return Err(Error::new("a date")),
    })
}

fn array(items: &[Toml]) -> Result<ValueBuf> {
    let elements: Vec<ValueBuf> = items.iter().map(value).collect::<Result<_>>()?;
    let mut types: Vec<ValueType> = elements.iter().map(ValueBuf::value_type).collect();
    types.sort_unstable();
    types.dedup();
    // A negative number among others makes all of them i32.
    if types == [ValueType::U32, ValueType::I32] {
        let all = ValueBuf::Array(ArrayBuf {
            element_type: ValueType::U32,
            elements,
        });
        return cast(all, "i32");
    }
    let element_type = *types.first().context("an empty array's type")?;
    Ok(ValueBuf::Array(ArrayBuf {
        element_type,
        elements,
    }))
}

fn cast(value: ValueBuf, ty: &str) -> Result<ValueBuf> {
    let integer = |number: i64| match ty {
        "u64" => u64::try_from(number).context(ty).map(ValueBuf::U64),
        "u32" => u32::try_from(number).context(ty).map(ValueBuf::U32),
        "i32" => i32::try_from(number).context(ty).map(ValueBuf::I32),
        _ => Err(Error::new(format!("unknown type {ty}"))),
    };
    match value {
        ValueBuf::U32(number) => integer(number.into()),
        ValueBuf::I32(number) => integer(number.into()),
        ValueBuf::U64(number) if ty == "u64" => Ok(ValueBuf::U64(number)),
        ValueBuf::Array(array) => {
            let elements = array.elements.into_iter().map(|e| cast(e, ty));
            let elements: Vec<ValueBuf> = elements.collect::<Result<_>>()?;
            Ok(ValueBuf::Array(ArrayBuf {
                element_type: elements.first().context("an empty array")?.value_type(),
                elements,
            }))
        }
        other => Err(Error::new(format!("{} as {ty}", other.value_type()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layer_is_left_out_of_names() {
        assert_eq!(short_name("blk.12.attn_q.weight"), "attn_q.weight");
        assert_eq!(short_name("dec.blk.0.attn_q.weight"), "dec.attn_q.weight");
        assert_eq!(short_name("token_embd.weight"), "token_embd.weight");
    }

    #[test]
    fn types_of_values_follow_the_spec() {
        let of = |text: &str| {
            let table: BTreeMap<String, Toml> = toml::from_str(text).unwrap();
            value(&table["x"]).unwrap()
        };
        assert_eq!(of("x = 3"), ValueBuf::U32(3));
        assert_eq!(of("x = -3"), ValueBuf::I32(-3));
        assert_eq!(of("x = 1e-5"), ValueBuf::F32(1e-5));
        assert_eq!(of("x = [1, 2]"), vec![1u32, 2].into());
        assert_eq!(of("x = [1, -2]"), vec![1i32, -2].into());
        assert_eq!(of("x = { u64 = [1, 2] }"), vec![1u64, 2].into());
        assert_eq!(of("x = [true]"), vec![true].into());
    }

    #[test]
    fn dotted_keys_stay_dotted() {
        let table: toml::Table = toml::from_str("a.b.c = 1\na.b.d = { u64 = [2] }\ne = 3").unwrap();
        let keys: Vec<String> = flat(&table).into_keys().collect();
        assert_eq!(keys, ["a.b.c", "a.b.d", "e"]);
    }
}
