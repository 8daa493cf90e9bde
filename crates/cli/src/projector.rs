//! `--mmproj`: a multimodal projector beside each model.

use std::path::PathBuf;

use vramfit::{Device, Error, FlashAttention, ImageTokens, Projector, ProjectorPlan};

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
        let (on_host, device) = place(low, n_gpus)?;
        if on_host {
            flags.push("--no-mmproj-offload".to_string());
        } else if let Some(index) = device {
            flags.extend(["--mmproj-device".to_string(), format!("CUDA{index}")]);
        }
        Ok(Some(ProjectorFile {
            path: file.text.clone().into(),
            tokens,
            on_host,
            device,
            flags,
        }))
    }

    /// Its header.
    pub fn read(&self) -> Result<Projector, Error> {
        vramfit::projector(&self.path, self.tokens)
    }

    /// What `projector`, as it was read, takes where it was asked to be.
    pub fn plan(
        &self,
        projector: &Projector,
        flash_attention: FlashAttention,
        gpus: &[Device],
    ) -> Result<ProjectorPlan, Error> {
        Ok(ProjectorPlan {
            on_host: self.on_host,
            device: self.device,
            ..vramfit::projector_plan(projector, flash_attention, gpus)?
        })
    }
}

/// Whether a projector stays on the host, and otherwise on which GPU it was asked for: as llama.cpp does, what is
/// said last counts.
fn place(low: &LowArgs, n_gpus: usize) -> Result<(bool, Option<usize>), String> {
    let switch = low.switch("mmproj-offload");
    let Some(said) = low.value("mmproj-device") else {
        return Ok((switch == Some(false), None));
    };
    let text = said.text.trim();
    let index = text.strip_prefix("CUDA").and_then(|n| n.parse().ok());
    let device = index.filter(|&d| d < n_gpus);
    if device.is_none() && text != "none" {
        return Err(format!("{}: '{text}' is none of the GPUs given", said.by));
    }
    let on_host = match switch.filter(|_| low.offload_behind_device) {
        Some(offload) => !offload,
        None => device.is_none(),
    };
    Ok((on_host, device))
}
