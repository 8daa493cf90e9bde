//! The header-only models of `fixtures/gguf`, made loadable: a true header and a hole for the tensor data.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Context, Result};
use crate::kit::Engine;

/// One entry of `fixtures/gguf/index.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Entry {
    /// File name of the header.
    pub file: String,
    /// `general.architecture`.
    pub arch: String,
    /// Repeating layers.
    pub n_layer: u32,
    /// Size of the whole file the header was taken from.
    pub file_bytes: u64,
}

impl Entry {
    /// Made to embed texts, not to write them.
    pub fn is_embedding_model(&self) -> bool {
        self.arch.contains("bert")
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

/// The index, sorted by file name.
pub fn index() -> Result<Vec<Entry>> {
    let path = fixtures().join("gguf/index.json");
    let text = fs::read_to_string(&path).context(path.display())?;
    let mut entries: Vec<Entry> = serde_json::from_str(&text).context(path.display())?;
    entries.sort_by(|a, b| a.file.cmp(&b.file));
    Ok(entries)
}

/// Writes the sparse files into `folder`.
pub fn make_sparse(entries: &[Entry], folder: &Path) -> Result<()> {
    for entry in entries {
        let (from, to) = (
            fixtures().join("gguf").join(&entry.file),
            folder.join(&entry.file),
        );
        let header = fs::read(&from).context(from.display())?;
        fs::write(&to, header).context(to.display())?;
        let file = OpenOptions::new()
            .write(true)
            .open(&to)
            .context(to.display())?;
        file.set_len(entry.file_bytes).context(to.display())?;
    }
    Ok(())
}

/// Asks the engine about each model (a prediction, nothing is allocated).
pub fn probe(engine: &Engine, entries: &[Entry], folder: &Path) -> Result<Vec<Model>> {
    const TOKENS: u64 = 4096;
    entries
        .iter()
        .map(|entry| {
            let model = folder.join(&entry.file);
            let flags = [
                "-ngl",
                "99",
                "-c",
                &TOKENS.to_string(),
                "--swa-full",
                "1",
                "-fa",
                "on",
            ]
            .map(str::to_owned);
            let json = engine.ask(&[("VGPU", "G:80GiB:8.6")], &model, &flags)?;
            let facts = &json["result"]["model"];
            let number = |key: &str| {
                facts[key]
                    .as_u64()
                    .context(format!("{}: {key}", entry.file))
            };
            let devices = json["result"]["devices"].as_array().context("devices")?;
            let cache: u64 = devices
                .iter()
                .filter_map(|device| device["context"].as_u64())
                .sum();
            Ok(Model {
                entry: entry.clone(),
                n_ctx_train: number("n_ctx_train")?,
                n_head: number("n_head")?,
                n_expert: number("n_expert")?,
                cache_bytes_per_token: cache / TOKENS,
            })
        })
        .collect()
}
