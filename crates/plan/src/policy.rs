//! What the user wants of a placement.

use vramfit_estimate::MemoryBytes;

/// Who decides where layers go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LayoutMode {
    /// vramfit searches.
    #[default]
    Best,
    /// llama.cpp by itself, as with `--fit off`: all layers on the GPUs, split by free memory.
    Engine,
}

/// Which GPU is taken when several would do alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Prefer {
    /// The one with the most free memory.
    #[default]
    MostFree,
    /// The first.
    First,
    /// The last.
    Last,
    /// The one that would be fullest.
    Tightest,
}

/// `-sm`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SplitMode {
    /// One GPU only.
    None,
    /// Layers over all GPUs.
    Layer,
    /// Every layer over all GPUs.
    Tensor,
}

/// Where an override sends tensors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OverrideTarget {
    /// Host memory (`CPU`).
    Host,
    /// The GPU with this index (`CUDA0` is 0).
    Device(usize),
}

/// One `PATTERN=BUFFER` of `-ot`.
#[derive(Clone, Debug)]
pub struct Override {
    /// Searched for in tensor names.
    pub pattern: regex::Regex,
    /// Where matching tensors go.
    pub target: OverrideTarget,
}

/// Flags that the user gave: they are obeyed, never searched over.
#[derive(Clone, Debug, Default)]
pub struct Pinned {
    /// `-ngl`; a value above the model's layers means all.
    pub n_gpu_layers: Option<u32>,
    /// `-ts`.
    pub tensor_split: Option<Vec<f32>>,
    /// `-sm`.
    pub split_mode: Option<SplitMode>,
    /// `-mg`.
    pub main_gpu: Option<usize>,
    /// `-dev`: indices into the list of GPUs, in order; empty for none.
    pub devices: Option<Vec<usize>>,
    /// `-ot`.
    pub overrides: Vec<Override>,
    /// `-cmoe`: all experts on the host.
    pub cpu_moe: bool,
    /// `-ncmoe`: experts of the first so many layers on the host.
    pub n_cpu_moe: Option<u32>,
    /// How many of `overrides` came before `-cmoe` and `-ncmoe`; `None` for all. Of several
    /// overrides that match a tensor the first counts.
    pub experts_behind: Option<usize>,
}

impl Pinned {
    /// The overrides before those of experts, and those behind.
    pub(crate) fn around_experts(&self) -> (&[Override], &[Override]) {
        let n = self.overrides.len();
        self.overrides
            .split_at(self.experts_behind.unwrap_or(n).min(n))
    }

    /// `-ts`, if it says anything: llama.cpp ignores shares that are all 0.
    pub fn shares(&self) -> Option<&[f32]> {
        let shares = self.tensor_split.as_deref()?;
        shares.iter().any(|&x| x != 0.0).then_some(shares)
    }
}

/// What a multimodal projector takes in one place.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct ProjectorShare {
    /// Its buffers on the GPU.
    pub gpu: MemoryBytes,
    /// Its buffers in host memory.
    pub host: MemoryBytes,
    /// While it computes.
    pub runtime_bytes: u64,
    /// `runtime_bytes` is a bound.
    pub runtime_is_bound: bool,
    /// Its type is not known: the compute buffer is a guess.
    pub is_guess: bool,
}

/// A multimodal projector that is loaded beside the model.
#[derive(Clone, Debug, Default)]
pub struct ProjectorPlan {
    /// `--mmproj-device`, a GPU by its index; without it llama.cpp takes the first one of `-dev`.
    pub device: Option<usize>,
    /// `--no-mmproj-offload`.
    pub on_host: bool,
    /// What it takes on each GPU given.
    pub gpus: Vec<ProjectorShare>,
    /// What it takes without a GPU.
    pub host: ProjectorShare,
}

impl ProjectorPlan {
    /// The GPU that it is on when the model may use those of `listed`.
    pub(crate) fn gpu(&self, listed: &[usize]) -> Option<usize> {
        let gpu = self.device.or_else(|| listed.first().copied());
        gpu.filter(|d| !self.on_host && *d < self.gpus.len())
    }

    /// What it takes on GPU `device` when the model may use those of `listed`.
    pub(crate) fn on(&self, listed: &[usize], device: usize) -> Option<&ProjectorShare> {
        let share = self.gpus.get(device);
        share.filter(|_| self.gpu(listed) == Some(device))
    }
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Who decides.
    pub mode: LayoutMode,
    /// Between equals.
    pub prefer: Prefer,
    /// What is not to be decided.
    pub pinned: Pinned,
    /// A multimodal projector.
    pub projector: Option<ProjectorPlan>,
    /// Speculative decoding with a draft.
    pub draft: Option<crate::DraftPlan>,
    /// Where flash attention is left to the placement: the GPUs whose builds have none.
    pub without_flash_attention: Option<WithoutFlashAttention>,
}

/// GPUs on which llama.cpp's own code would compute flash attention, and no published build does. With a layer on one of
/// them it is off, everywhere; without, [`FlashAttention::Auto`](vramfit_estimate::FlashAttention) is what llama.cpp makes of it.
#[derive(Clone, Debug, Default)]
pub struct WithoutFlashAttention {
    /// Indices into the list of GPUs.
    pub devices: Vec<usize>,
    /// The policy's projector, as it is then.
    pub projector: Option<ProjectorPlan>,
}
