//! `--mmproj`: a multimodal projector beside each model.

use std::path::PathBuf;

use vramfit::{Device, Error, FlashAttention, ImageTokens, ProjectorPlan};

use crate::low::LowArgs;
use crate::settings::number;

/// The file, and how it was asked for.
#[derive(Debug)]
pub struct ProjectorFile {
    path: PathBuf,
    tokens: ImageTokens,
    on_host: bool,
    device: Option<usize>,
    /// llama-server's flags for it.
    pub flags: Vec<String>,
}

impl ProjectorFile {
    /// From the flags. The error is one line.
    pub fn new(low: &LowArgs, n_gpus: usize) -> Result<Option<ProjectorFile>, String> {
        let Some(file) = low.value("mmproj") else {
            return Ok(None);
        };
        let mut flags = vec!["--mmproj".to_string(), file.text.clone()];
        let mut tokens = ImageTokens::default();
        for (id, slot) in [
            ("image-min-tokens", &mut tokens.min),
            ("image-max-tokens", &mut tokens.max),
        ] {
            if let Some(said) = low.value(id) {
                *slot = number(said, "a number of tokens")?;
                flags.extend([format!("--{id}"), said.text.clone()]);
            }
        }
        let mut on_host = low.switch("mmproj-offload") == Some(false);
        let mut device = None;
        if on_host {
            flags.push("--no-mmproj-offload".to_string());
        } else if let Some(said) = low.value("mmproj-device") {
            let text = said.text.trim();
            flags.extend(["--mmproj-device".to_string(), text.to_string()]);
            let index = text.strip_prefix("CUDA").and_then(|n| n.parse().ok());
            match index.filter(|&d| d < n_gpus) {
                Some(index) => device = Some(index),
                None if text == "none" => on_host = true,
                None => {
                    return Err(format!("{}: '{text}' is none of the GPUs given", said.by));
                }
            }
        }
        Ok(Some(ProjectorFile {
            path: file.text.clone().into(),
            tokens,
            on_host,
            device,
            flags,
        }))
    }

    /// What it takes, and what a reader should know of it.
    pub fn load(
        &self,
        flash_attention: FlashAttention,
        gpus: &[Device],
    ) -> Result<(ProjectorPlan, Vec<String>), Error> {
        let projector = vramfit::projector(&self.path, self.tokens)?;
        let plan = ProjectorPlan {
            on_host: self.on_host,
            device: self.device,
            ..vramfit::projector_plan(&projector, flash_attention, gpus)?
        };
        let mut notes = vec![
            "the projector's weights and compute buffer are among those of its device; the buffer is the one that \
             llama-server reserves at the start, and grows with an image that is larger than that"
                .to_string(),
        ];
        for tower in projector.towers.iter().filter(|t| !t.is_known()) {
            notes.push(format!(
                "projectors of type '{}' are not known: the weights are those of the whole file, the compute buffer \
                 is a guess",
                tower.type_name
            ));
        }
        Ok((plan, notes))
    }
}
