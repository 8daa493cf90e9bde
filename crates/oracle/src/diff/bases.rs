//! What mutants are made of: the specs, and specs read back from headers of real models.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use toml::Value as Toml;
use vramfit_gguf::{Header, Value};

use crate::error::{Context, Result};
use crate::models::fixtures;
use crate::synth::{Spec, flat, short_name};

/// A spec, and the tensors of the model it makes, without their layers.
pub struct Base {
    pub spec: Spec,
    pub tensors: Vec<String>,
}

/// Names of all: of specs, and of header-only files for each architecture that has no spec.
pub fn names() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for (folder, suffix) in [("specs", ".toml"), ("gguf", ".gguf")] {
        let path = fixtures().join(folder);
        for item in fs::read_dir(&path).context(path.display())? {
            let file = item.context(path.display())?.file_name();
            let name = file.to_string_lossy();
            names.extend(name.strip_suffix(suffix).map(str::to_owned));
        }
    }
    names.sort();
    Ok(names)
}

/// The base of this name.
pub fn base(name: &str, folder: &Path) -> Result<Base> {
    let spec = fixtures().join(format!("specs/{name}.toml"));
    let (made, real) = (
        format!("gguf/made/{name}.gguf"),
        format!("gguf/{name}.gguf"),
    );
    let is_spec = spec.is_file();
    let path = fixtures().join(if is_spec { made } else { real });
    let header = Header::open(&path).context(name)?;
    let names = header
        .tensors()
        .iter()
        .map(|tensor| short_name(&tensor.name));
    let names: BTreeSet<String> = names.collect();
    Ok(Base {
        spec: if is_spec {
            Spec::read(&spec)?
        } else {
            read_back(&header, &names, folder)?
        },
        tensors: names.into_iter().collect(),
    })
}

/// The spec that would make this header, but for its vocabulary.
fn read_back(header: &Header, present: &BTreeSet<String>, folder: &Path) -> Result<Spec> {
    let architecture = header
        .architecture()
        .context("general.architecture")?
        .to_owned();
    let mut keys = toml::Table::new();
    for (name, value) in header.keys() {
        let own = name.strip_prefix(&format!("{architecture}."));
        let kept = own.or(Some(name).filter(|name| name.starts_with("xielu.")));
        let kept = kept.or(Some(name).filter(|n| *n == "tokenizer.ggml.token_type_count"));
        if let (Some(name), Some(value)) = (kept, toml_of(&value)) {
            keys.insert(name.to_owned(), value);
        }
    }
    if let Some(embedding) = header.tensor("token_embd.weight") {
        let n_vocab = embedding.ne[1];
        keys.insert("vocab_size".to_owned(), Toml::Integer(n_vocab));
    }
    let mut types: BTreeMap<String, BTreeMap<&str, usize>> = BTreeMap::new();
    for tensor in header.tensors() {
        let ty = tensor.ty.name();
        *types
            .entry(short_name(&tensor.name))
            .or_default()
            .entry(ty)
            .or_default() += 1;
    }
    let most = |counts: BTreeMap<&str, usize>| {
        let most = counts.into_iter().max_by_key(|count| count.1);
        most.map_or_else(String::new, |count| count.0.to_owned())
    };
    let mut spec = Spec {
        architecture,
        model: None,
        source: "a header of fixtures/gguf".to_owned(),
        matrices: "q4_K".to_owned(),
        with: Vec::new(),
        without: Vec::new(),
        types: types
            .into_iter()
            .map(|(name, counts)| (name, most(counts)))
            .collect(),
        extra: BTreeMap::new(),
        keys,
    };
    let asked = spec
        .asked(folder)?
        .into_iter()
        .map(|tensor| short_name(&tensor.0));
    let asked: BTreeSet<String> = asked.collect();
    spec.with = present.difference(&asked).cloned().collect();
    spec.without = asked.difference(present).cloned().collect();
    Ok(spec)
}

fn toml_of(value: &Value<'_>) -> Option<Toml> {
    Some(match value {
        Value::String(text) => Toml::String(text.to_str().ok()?.to_owned()),
        Value::Bool(bool) => Toml::Boolean(*bool),
        Value::F32(number) => Toml::Float(shortest(*number)),
        Value::F64(number) => Toml::Float(*number),
        Value::Array(array) if array.is_empty() => return None,
        Value::Array(array) => {
            let items: Option<Vec<Toml>> = array.iter().map(|item| toml_of(&item)).collect();
            Toml::Array(items?)
        }
        number => Toml::Integer(number.as_i64()?),
    })
}

/// 1e-6 as a person would write it, not the nearest f32 in f64.
fn shortest(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::from(number))
}

/// A spec as a file; its keys in one table.
pub fn text(spec: &Spec) -> String {
    let list = |names: &[String]| {
        let names: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
        format!("[{}]", names.join(", "))
    };
    let mut text = format!(
        "architecture = {:?}\nsource = {:?}\nmatrices = {:?}\nwith = {}\nwithout = {}\n",
        spec.architecture,
        spec.source,
        spec.matrices,
        list(&spec.with),
        list(&spec.without)
    );
    if !spec.extra.is_empty() {
        text += "\n[extra]\n";
        for (name, ne) in &spec.extra {
            text += &format!("{name:?} = {ne:?}\n");
        }
    }
    if !spec.types.is_empty() {
        text += "\n[types]\n";
        for (name, ty) in &spec.types {
            text += &format!("{name:?} = {ty:?}\n");
        }
    }
    text += "\n[keys]\n";
    for (name, value) in flat(&spec.keys) {
        text += &format!("{name} = {}\n", written(value));
    }
    text
}

/// A value as a file has it.
pub fn written(value: &Toml) -> String {
    match value {
        Toml::String(text) => format!("{text:?}"),
        Toml::Float(number) => format!("{number:?}"),
        Toml::Integer(number) => number.to_string(),
        Toml::Boolean(bool) => bool.to_string(),
        Toml::Datetime(date) => date.to_string(),
        Toml::Array(items) => {
            let items: Vec<String> = items.iter().map(written).collect();
            format!("[{}]", items.join(", "))
        }
        Toml::Table(table) => {
            let items: Vec<String> = table
                .iter()
                .map(|(k, v)| format!("{k} = {}", written(v)))
                .collect();
            format!("{{ {} }}", items.join(", "))
        }
    }
}

/// Reads what [`text`] wrote.
#[cfg(test)]
fn parse(text: &str) -> Result<Spec> {
    toml::from_str(text).context("spec")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_spec_reads_as_the_same() {
        let spec = parse(
            "architecture = 'x'\nsource = ''\nmatrices = 'f16'\nwithout = ['attn_q.bias']\n\
             [types]\n'output.weight' = 'q6_K'\n[keys]\na.b = 1\na.c = [true, false]\n\
             d = 1e-6\ne = { u64 = [1, 2] }\nf.g = 'yarn'",
        )
        .unwrap();
        let again = parse(&text(&spec)).unwrap();
        assert_eq!(flat(&again.keys), flat(&spec.keys));
        assert_eq!((&again.types, &again.without), (&spec.types, &spec.without));
        assert_eq!(text(&again), text(&spec));
    }

    #[test]
    fn numbers_are_written_short() {
        assert_eq!(written(&Toml::Float(shortest(1e-6))), "1e-6");
        assert_eq!(written(&Toml::Float(shortest(30.0))), "30.0");
    }
}
