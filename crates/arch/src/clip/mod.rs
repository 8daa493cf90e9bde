//! Multimodal projectors (`--mmproj`, llama.cpp's `tools/mtmd/clip.cpp`): towers for images and sounds that run
//! beside the model, each with a graph of its own.

mod audio;
mod blocks;
mod conformer;
mod convnext;
mod frames;
mod gemma;
mod gemma4a;
mod granite_speech;
mod graph;
mod hparams;
mod kinds;
mod llava;
mod minicpm;
mod mobilenet;
mod native;
mod qformer;
mod qwen;
mod sam;
mod speech;
mod tensors;
mod vision;

use crate::keys::Keys;
use crate::{Error, Result};
use std::collections::BTreeMap;
use vramfit_ggml::{BufferType, Graph, Type};
use vramfit_gguf::Header;

pub use hparams::{Activation, ImageTokens, QFormer, Stack, TowerHparams};
pub use kinds::ProjectorKind;
use kinds::WarmUp;

/// `general.architecture` of a projector's file.
pub const ARCHITECTURE: &str = "clip";

/// What a tower reads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Modality {
    /// Images.
    Vision,
    /// Sounds.
    Audio,
    /// Nothing: it speaks.
    Speech,
}

impl Modality {
    /// As keys name it.
    pub fn name(self) -> &'static str {
        match self {
            Modality::Vision => "vision",
            Modality::Audio => "audio",
            Modality::Speech => "gen.audio",
        }
    }

    /// What names of tensors begin with.
    fn tensor_prefix(self) -> &'static str {
        match self {
            Modality::Vision => "v",
            Modality::Audio => "a",
            Modality::Speech => "a.gen.code",
        }
    }
}

/// A tensor of a tower.
#[derive(Clone, Debug)]
pub struct TowerTensor {
    /// As the file names it.
    pub name: String,
    /// Element type.
    pub ty: Type,
    /// Elements.
    pub ne: [i64; 4],
    /// Bytes of its data.
    pub n_bytes: u64,
}

/// An encoder and its projector: what one `clip_ctx` holds.
#[derive(Clone, Debug)]
pub struct Tower {
    /// What it reads.
    pub modality: Modality,
    /// `clip.projector_type`.
    pub type_name: String,
    /// What is known of that type.
    pub kind: &'static ProjectorKind,
    /// Its shape.
    pub hparams: TowerHparams,
    /// The tensors that it loads. One that two towers ask for is loaded by both.
    pub tensors: Vec<TowerTensor>,
    by_name: BTreeMap<String, usize>,
}

/// A projector's file.
#[derive(Clone, Debug)]
pub struct Projector {
    /// `general.name`.
    pub name: Option<String>,
    /// Vision, then audio.
    pub towers: Vec<Tower>,
    /// Bytes of the file.
    pub file_bytes: u64,
}

impl Projector {
    /// Reads a projector's header.
    pub fn load(header: &Header, tokens: ImageTokens) -> Result<Projector> {
        let architecture = header.architecture().ok_or(Error::NoArchitecture)?;
        if architecture != ARCHITECTURE {
            return Err(Error::NoProjector {
                architecture: architecture.to_string(),
            });
        }
        let keys = Keys::new(header, ARCHITECTURE, &[]);
        let mut towers: Vec<Tower> = Vec::new();
        for (modality, key) in [
            (Modality::Vision, "has_vision_encoder"),
            (Modality::Audio, "has_audio_encoder"),
            (Modality::Speech, "has_gen_audio_encoder"),
        ] {
            // clip.cpp reads no sounds with Gemma 3n
            let is_skipped =
                modality == Modality::Audio && towers.iter().any(|t| t.type_name == "gemma3nv");
            if keys.flag(key)?.unwrap_or(false) && !is_skipped {
                towers.push(Tower::load(header, &keys, modality, tokens)?);
            }
        }
        if towers.is_empty() {
            return Err(Error::MissingKey {
                key: format!("{ARCHITECTURE}.has_vision_encoder"),
            });
        }
        Ok(Projector {
            name: header
                .get("general.name")
                .and_then(|v| v.as_str())
                .map(str::to_string),
            towers,
            file_bytes: header.file_bytes(),
        })
    }
}

impl Tower {
    fn load(
        header: &Header,
        keys: &Keys<'_>,
        modality: Modality,
        tokens: ImageTokens,
    ) -> Result<Tower> {
        let prefix = modality.name();
        let type_name = match keys.text("projector_type")?.filter(|t| !t.is_empty()) {
            Some(name) => name,
            None => keys
                .text(&format!("{prefix}.projector_type"))?
                .unwrap_or(""),
        };
        // Qwen 2.5 Omni names both of its towers by one word.
        let type_name = match (type_name, modality) {
            ("qwen2.5o", Modality::Vision) => "qwen2.5vl_merger",
            ("qwen2.5o", _) => "qwen2a",
            (name, _) => name,
        };
        let kind = ProjectorKind::find(type_name).unwrap_or(ProjectorKind::UNKNOWN);
        let mut hparams = TowerHparams::load(keys, modality, type_name, tokens)?;
        (kind.hparams)(keys, &mut hparams)?;
        let mut tower = Tower {
            modality,
            type_name: type_name.to_string(),
            kind,
            hparams,
            tensors: Vec::new(),
            by_name: BTreeMap::new(),
        };
        for info in header.tensors() {
            if tensors::is_loaded(&tower, &info.name) {
                tower.by_name.insert(info.name.clone(), tower.tensors.len());
                tower.tensors.push(TowerTensor {
                    name: info.name.clone(),
                    ty: info.ty,
                    ne: info.ne,
                    n_bytes: info.n_bytes,
                });
            }
        }
        if tower.type_name == "mlp" && tower.by_name.contains_key("mm.3.weight") {
            tower.kind = ProjectorKind::find("mlp_norm").unwrap_or(tower.kind); // Yi-VL
        }
        Ok(tower)
    }

    /// Index of a tensor that it loads.
    pub fn tensor(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// Its type is known.
    pub fn is_known(&self) -> bool {
        !matches!(self.kind.warmup, WarmUp::Unknown)
    }

    /// Something is computed when it is loaded; otherwise it has weights alone until it is used.
    pub fn is_warmed_up(&self) -> bool {
        !matches!(self.kind.warmup, WarmUp::Nothing)
    }

    /// The graph that is reserved when the tower is loaded, with its weights in `buffer`.
    pub fn graph(&self, buffer: BufferType, flash_attn: bool) -> Result<Graph> {
        let WarmUp::Graph(build) = self.kind.warmup else {
            return Err(Error::UnknownArchitecture {
                name: format!("projector {}", self.type_name),
            });
        };
        let mut graph = graph::TowerGraph::new(self, buffer, flash_attn);
        let result = build(&mut graph);
        graph.finish(result)
    }
}
