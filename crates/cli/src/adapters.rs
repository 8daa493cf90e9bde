//! LoRA adapters and control vectors: files that are read beside each model.

use std::path::PathBuf;

use vramfit::arch::Adapters;
use vramfit::{Error, Model};

use crate::low::{LowArgs, Said};

/// The files, and how they were asked for.
#[derive(Debug, Default)]
pub struct AdapterFiles {
    /// Adapters, and whether they are applied from the start.
    loras: Vec<(PathBuf, bool)>,
    control_vectors: Vec<PathBuf>,
    /// The first and the last layer they are for, 0 where llama.cpp decides.
    controlled: [usize; 2],
    /// llama-server's flags for them.
    pub flags: Vec<String>,
}

/// Entries of a list by comma.
fn entries(said: &Said) -> impl Iterator<Item = &str> {
    said.text.split(',').filter(|entry| !entry.is_empty())
}

/// `FILE:SCALE`.
fn scaled<'a>(said: &Said, entry: &'a str) -> Result<(&'a str, f32), String> {
    let parts = entry
        .rsplit_once(':')
        .and_then(|(file, scale)| Some((file, scale.parse().ok()?)));
    parts.ok_or_else(|| format!("{}: '{entry}' is not FILE:SCALE", said.by))
}

/// A layer's number; none below 1 counts (`common_params`).
fn layer(said: &Said) -> Result<usize, String> {
    let number = said.text.trim().parse::<i32>();
    let number = number.map_err(|_| format!("{}: '{}' is no layer", said.by, said.text))?;
    Ok(usize::try_from(number).unwrap_or(0))
}

impl AdapterFiles {
    /// From the flags. The error is one line.
    pub fn new(low: &LowArgs) -> Result<AdapterFiles, String> {
        let mut files = AdapterFiles::default();
        let apply = !low.is_on("lora-init-without-apply");
        // the order of several counts: llama.cpp takes their buffers in it
        for (id, said) in low.all_in_order(&["lora", "lora-scaled"]) {
            for entry in entries(said) {
                let (file, scale) = match id {
                    "lora" => (entry, 1.0),
                    _ => scaled(said, entry)?,
                };
                files.loras.push((file.into(), apply && scale != 0.0));
            }
        }
        for (id, said) in low.all_in_order(&["control-vector", "control-vector-scaled"]) {
            for entry in entries(said) {
                let file = match id {
                    "control-vector" => entry,
                    _ => scaled(said, entry)?.0,
                };
                files.control_vectors.push(file.into());
            }
        }
        let range = low.all("control-vector-layer-range");
        if let [.., first, last] = range {
            files.controlled = [layer(first)?, layer(last)?];
            let range = [first, last].map(|said| said.text.clone());
            files.flags.push("--control-vector-layer-range".to_string());
            files.flags.extend(range);
        }
        let all = [
            "lora",
            "lora-scaled",
            "control-vector",
            "control-vector-scaled",
        ];
        for (id, said) in low.all_in_order(&all) {
            files.flags.extend([format!("--{id}"), said.text.clone()]);
        }
        if !apply {
            files.flags.push("--lora-init-without-apply".to_string());
        }
        Ok(files)
    }

    /// Reads them for `model`.
    pub fn load(&self, model: &Model) -> Result<Adapters, Error> {
        let mut loras = Vec::new();
        for (path, is_applied) in &self.loras {
            let mut lora = vramfit::lora(path, model)?;
            lora.is_applied = *is_applied;
            loras.push(lora);
        }
        let mut adapters = Adapters {
            loras: loras.into(),
            control_vector: None,
        };
        for path in &self.control_vectors {
            let all = vramfit::control_vector(path, model)?;
            let given = |i: usize| match self.controlled[i] {
                0 => all[i],
                n => n,
            };
            adapters.control_vector = Some([given(0), given(1)]);
        }
        Ok(adapters)
    }
}
