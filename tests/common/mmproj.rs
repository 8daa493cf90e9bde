//! Rows of the truth table of multimodal projectors, and what vramfit says to each.

use vramfit_arch::clip::{ImageTokens, Modality, Projector};
use vramfit_estimate::{
    EngineProfile, FlashAttention, LayoutDevice, ProjectorConfig, TowerUse, projector_use,
};
use vramfit_ggml::ComputeCapability;
use vramfit_gguf::Header;

pub const COLUMNS: &str =
    "# file\tgpu\tflags\ttower\tflash_attn\tweights\tallocated\tcompute\tcompute_host";

/// What the engine took for one tower.
#[derive(Clone, PartialEq, Debug)]
pub struct Row {
    pub file: String,
    /// Compute capability.
    pub gpu: String,
    /// The kit's flags.
    pub flags: String,
    /// `vision`, `audio` or `gen_audio`.
    pub tower: String,
    pub took: Took,
}

/// Bytes, and whether flash attention was used. Without a GPU the weights lie on the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Took {
    pub flash_attn: bool,
    /// As llama.cpp counts them.
    pub weights: u64,
    /// What they take with the padding behind each tensor.
    pub allocated: u64,
    pub compute: u64,
    pub compute_host: u64,
}

impl Row {
    pub fn parse(line: &str) -> Option<Row> {
        let f: Vec<&str> = line.split('\t').collect();
        let [
            file,
            gpu,
            flags,
            tower,
            flash_attn,
            weights,
            allocated,
            compute,
            host,
        ] = f[..]
        else {
            return None;
        };
        Some(Row {
            file: file.to_string(),
            gpu: gpu.to_string(),
            flags: flags.to_string(),
            tower: tower.to_string(),
            took: Took {
                flash_attn: flash_attn == "1",
                weights: weights.parse().ok()?,
                allocated: allocated.parse().ok()?,
                compute: compute.parse().ok()?,
                compute_host: host.parse().ok()?,
            },
        })
    }

    pub fn line(&self) -> String {
        let t = &self.took;
        format!(
            "{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}",
            self.file,
            self.gpu,
            self.flags,
            self.tower,
            u8::from(t.flash_attn),
            t.weights,
            t.allocated,
            t.compute,
            t.compute_host
        )
    }

    fn flag(&self, name: &str) -> Option<&str> {
        let words: Vec<&str> = self.flags.split(' ').collect();
        let at = words.iter().position(|w| *w == name)?;
        words.get(at + 1).copied()
    }

    pub fn config(&self) -> ProjectorConfig {
        let cc: ComputeCapability = self.gpu.parse().unwrap();
        let on_gpu = !self.flags.contains("--no-offload");
        ProjectorConfig {
            device: on_gpu.then(|| LayoutDevice::new(cc)),
            flash_attention: match self.flag("-fa") {
                Some("on") => FlashAttention::On,
                Some("off") => FlashAttention::Off,
                _ => FlashAttention::Auto,
            },
        }
    }

    pub fn projector(&self, header: &Header) -> Result<Projector, String> {
        let tokens = |name: &str| self.flag(name).map_or(0, |n| n.parse().unwrap());
        let tokens = ImageTokens {
            min: tokens("--image-min-tokens"),
            max: tokens("--image-max-tokens"),
        };
        Projector::load(header, tokens).map_err(|e| e.to_string())
    }

    pub fn modality(&self) -> Modality {
        match self.tower.as_str() {
            "audio" => Modality::Audio,
            "gen_audio" => Modality::Speech,
            _ => Modality::Vision,
        }
    }

    /// What vramfit says of the same.
    pub fn ours(&self, header: &Header) -> Result<Took, String> {
        let projector = self.projector(header)?;
        let config = self.config();
        let profile = EngineProfile::LLAMA_CPP_V0_5_0;
        let uses = projector_use(&projector, &config, &profile).map_err(|e| e.to_string())?;
        let one = uses.iter().find(|u| u.modality == self.modality());
        let one = one.ok_or("there is no such tower")?;
        let weights = projector.towers.iter();
        let weights = weights
            .filter(|t| t.modality == self.modality())
            .flat_map(|t| &t.tensors)
            .map(|t| t.n_bytes)
            .sum();
        Ok(took(one, weights, config.device.is_some()))
    }
}

fn took(one: &TowerUse, weights: u64, on_gpu: bool) -> Took {
    Took {
        flash_attn: one.flash_attn,
        weights,
        allocated: if on_gpu {
            one.device.model
        } else {
            one.host.model
        },
        compute: one.device.compute,
        compute_host: one.host.compute,
    }
}
