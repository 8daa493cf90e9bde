//! The header-only models of `fixtures/gguf`, made loadable: a true header and a hole for the tensor data.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

use vramfit_gguf::Header;

use crate::error::{Context, Error, Result};
use crate::kit::{Answer, Engine, Jobs};
use crate::row::Row;

/// A model of `fixtures/gguf`, by its header.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Path of the header below `fixtures/gguf`.
    pub file: String,
    /// `general.architecture`.
    pub arch: String,
    /// Repeating layers.
    pub n_layer: u32,
    /// Size of the whole file.
    pub file_bytes: u64,
}

impl Entry {
    /// Of the set [`Set::Made`].
    pub fn is_made(&self) -> bool {
        self.file.starts_with("made/")
    }

    /// Made to embed texts, not to write them.
    pub fn is_embedding_model(&self) -> bool {
        self.arch.contains("bert")
            || self.arch == "t5encoder"
            || ["-embed", "-embedding"]
                .iter()
                .any(|end| self.arch.ends_with(end))
    }
}

/// A model and what the engine says about it without loading it.
#[derive(Clone, Debug)]
pub struct Model {
    /// The index entry.
    pub entry: Entry,
    /// Context length it was trained for.
    pub n_ctx_train: u64,
    /// Heads of the widest layer.
    pub n_head: u64,
    /// Experts a layer, 0 for dense models.
    pub n_expert: u64,
    /// Bytes of f16 cache a token takes in all layers, sliding windows not counted: an upper bound.
    pub cache_bytes_per_token: u64,
}

/// `fixtures/` of this repository.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

/// The repository's root.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Where headers come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Set {
    /// Files of real models.
    Real,
    /// What `synth` made.
    Made,
}

impl Set {
    /// `real` or `made`.
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "real" => Ok(Self::Real),
            "made" => Ok(Self::Made),
            _ => Err(Error::new(format!("--models {name}: real or made"))),
        }
    }
}

/// The headers of a set, sorted by file name.
pub fn index(set: Set) -> Result<Vec<Entry>> {
    match set {
        Set::Real => headers_in(""),
        Set::Made => headers_in("made/"),
    }
}

fn headers_in(folder: &str) -> Result<Vec<Entry>> {
    let path = fixtures().join("gguf").join(folder);
    let mut names = Vec::new();
    for entry in fs::read_dir(&path).context(path.display())? {
        let name = entry.context(path.display())?.file_name();
        names.extend(name.to_str().map(|name| format!("{folder}{name}")));
    }
    names.retain(|name| name.ends_with(".gguf"));
    names.sort();
    names.into_iter().map(entry).collect()
}

fn entry(file: String) -> Result<Entry> {
    let header = Header::open(fixtures().join("gguf").join(&file)).context(&file)?;
    let arch = header.architecture().context(&file)?.to_owned();
    let n_layer = header
        .get(&format!("{arch}.block_count"))
        .and_then(|value| value.as_u64())
        .and_then(|n| u32::try_from(n).ok())
        .context(format!("{file}: block_count"))?;
    Ok(Entry {
        arch,
        n_layer,
        file_bytes: header.file_bytes(),
        file,
    })
}

/// Writes the sparse files into `folder`.
pub fn make_sparse(entries: &[Entry], folder: &Path) -> Result<()> {
    for entry in entries {
        let (from, to) = (
            fixtures().join("gguf").join(&entry.file),
            folder.join(&entry.file),
        );
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).context(parent.display())?;
        }
        make_one_sparse(&from, &to, entry.file_bytes)?;
    }
    Ok(())
}

/// Copies a header, with a hole behind it for the tensor data.
pub fn make_one_sparse(from: &Path, to: &Path, file_bytes: u64) -> Result<()> {
    let header = fs::read(from).context(from.display())?;
    make_sized(&header, to, file_bytes)
}

/// Writes a header and a hole behind it.
pub fn make_sized(header: &[u8], to: &Path, file_bytes: u64) -> Result<()> {
    fs::write(to, header).context(to.display())?;
    let file = OpenOptions::new()
        .write(true)
        .open(to)
        .context(to.display())?;
    file.set_len(file_bytes).context(to.display())
}

/// Asks the engine about each model (a prediction, nothing is allocated).
pub fn probe(engine: &Engine, entries: &[Entry], folder: &Path) -> Result<Vec<Model>> {
    let mut jobs = engine.start_jobs()?;
    let one = |entry| probe_one(&mut jobs, entry, folder);
    entries.iter().map(one).collect()
}

/// Asks the engine about one model.
pub fn probe_one(jobs: &mut Jobs, entry: &Entry, folder: &Path) -> Result<Model> {
    const TOKENS: u64 = 4096;
    let model = folder.join(&entry.file);
    let mut ask = |fa: &str| {
        let line = format!(
            "VGPU=G:80GiB:8.6 '{}' -ngl 99 -c {TOKENS} --swa-full 1 -fa {fa}",
            model.display()
        );
        let json = match jobs.ask(&line, Duration::from_secs(60)) {
            Answer::Json(json) => json,
            Answer::Lost(reason) => return Err(Error::new(reason)),
        };
        if json["error"].is_string() {
            return Err(Error::new(Row::of(&json).tail)).context(&entry.file);
        }
        Ok(json)
    };
    // With flash attention the engine aborts on a model or two.
    let json = ask("on").or_else(|error| ask("off").map_err(|_| error))?;
    let facts = &json["result"]["model"];
    let number = |key: &str| {
        facts[key]
            .as_u64()
            .context(format!("{}: {key}", entry.file))
    };
    let devices = json["result"]["devices"].as_array().context("devices")?;
    let contexts = devices
        .iter()
        .filter_map(|device| device["context"].as_u64());
    Ok(Model {
        entry: entry.clone(),
        n_ctx_train: number("n_ctx_train")?,
        n_head: number("n_head")?,
        n_expert: number("n_expert")?,
        cache_bytes_per_token: contexts.sum::<u64>() / TOKENS,
    })
}
