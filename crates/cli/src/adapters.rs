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
fn entries<'a>(low: &'a LowArgs, id: &str) -> impl Iterator<Item = (&'a Said, &'a str)> {
    let entries = |said: &'a Said| said.text.split(',').map(move |entry| (said, entry));
    low.all(id)
        .iter()
        .flat_map(entries)
        .filter(|(_, entry)| !entry.is_empty())
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
        for (_, entry) in entries(low, "lora") {
            files.loras.push((entry.into(), apply));
        }
        for (said, entry) in entries(low, "lora-scaled") {
            let (file, scale) = scaled(said, entry)?;
            files.loras.push((file.into(), apply && scale != 0.0));
        }
        for (_, entry) in entries(low, "control-vector") {
            files.control_vectors.push(entry.into());
        }
        for (said, entry) in entries(low, "control-vector-scaled") {
            files.control_vectors.push(scaled(said, entry)?.0.into());
        }
        let range = low.all("control-vector-layer-range");
        if let [.., first, last] = range {
            files.controlled = [layer(first)?, layer(last)?];
            let range = [first, last].map(|said| said.text.clone());
            files.flags.push("--control-vector-layer-range".to_string());
            files.flags.extend(range);
        }
        for id in [
            "lora",
            "lora-scaled",
            "control-vector",
            "control-vector-scaled",
        ] {
            for said in low.all(id) {
                files.flags.extend([format!("--{id}"), said.text.clone()]);
            }
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
