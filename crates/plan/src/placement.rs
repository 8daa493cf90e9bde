//! The answer: where everything goes, what it takes, and why not otherwise.

use std::sync::Arc;
use vramfit_arch::Model;
use vramfit_estimate::{Breakdown, DraftKind, MemoryBytes, RunConfig};

/// In one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// All layers on GPUs (or, with no GPU asked for, on the host), within free memory.
    Fits,
    /// Some layers or experts stay on the host.
    Partial,
    /// Not as asked: a GPU falls short, or no layer fits on any.
    DoesNotFit,
}

/// How sure a number is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Certainty {
    /// llama.cpp's own bytes, proved against the real engine.
    Exact,
    /// A model of what CUDA takes.
    Modelled,
    /// Not above this.
    Bound,
}

/// One GPU's share.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub struct DevicePlacement {
    /// Index into the list of GPUs given; `CUDA<index>`.
    pub device: usize,
    /// Layers, ascending; the output layer is `n_layer_all`.
    pub layers: Vec<usize>,
    /// llama.cpp's buffers: exact.
    pub memory: MemoryBytes,
    /// Buffers of a multimodal projector.
    pub projector: MemoryBytes,
    /// The projector's type is not known: its compute buffer is a guess.
    pub projector_is_guess: bool,
    /// Buffers of a draft (speculative decoding): exact.
    pub draft: MemoryBytes,
    /// Runtime pool and cuBLAS workspace: modelled.
    pub runtime_bytes: u64,
    /// How sure `runtime_bytes` is.
    pub runtime_certainty: Certainty,
    /// CUDA's own; 0 on a GPU that llama.cpp is told not to use.
    pub overhead_bytes: u64,
    /// Their sum: what nvidia-smi would show for the process.
    pub required_bytes: u64,
    /// Free less required; below 0 what is missing.
    pub headroom_bytes: i64,
}

impl DevicePlacement {
    /// Nothing on GPU `device`, of which so much is free.
    pub fn unused(device: usize, free_bytes: u64) -> DevicePlacement {
        DevicePlacement {
            device,
            layers: Vec::new(),
            memory: MemoryBytes::default(),
            projector: MemoryBytes::default(),
            projector_is_guess: false,
            draft: MemoryBytes::default(),
            runtime_bytes: 0,
            runtime_certainty: Certainty::Modelled,
            overhead_bytes: 0,
            required_bytes: 0,
            headroom_bytes: i64::try_from(free_bytes).unwrap_or(i64::MAX),
        }
    }
}

/// A setting whose change would make a rejected option fit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fix {
    /// The flag, with the value that would fit: `["-c", "32768"]`. Empty where nothing would, and
    /// `text` says so.
    pub flags: Vec<String>,
    /// In words.
    pub text: String,
}

/// A GPU that falls short.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shortfall {
    /// Index of the GPU.
    pub device: usize,
    /// Needed there, bytes.
    pub required_bytes: u64,
    /// Free there, bytes.
    pub free_bytes: u64,
}

impl Shortfall {
    /// Bytes that are missing.
    pub fn missing_bytes(&self) -> u64 {
        self.required_bytes.saturating_sub(self.free_bytes)
    }
}

/// An option that was looked at and not taken.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Rejected {
    /// What it was: `all layers on CUDA0`.
    pub option: String,
    /// Each GPU that falls short.
    pub shortfalls: Vec<Shortfall>,
    /// Why, where no GPU falls short.
    pub reason: Option<String>,
    /// The nearest changes that would make it fit.
    pub fixes: Vec<Fix>,
}

impl Rejected {
    /// An option and why not: the GPUs that fall short, or `reason` where none does.
    pub fn new(option: String, shortfalls: Vec<Shortfall>, reason: Option<String>) -> Rejected {
        Rejected {
            option,
            shortfalls,
            reason,
            fixes: Vec::new(),
        }
    }
}

/// Where a draft goes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DraftPlacement {
    /// Its model as llama.cpp loads it; none of a second context on the model.
    pub model: Option<Arc<Model>>,
    /// What it takes, its devices in the order llama.cpp uses them. Of a second context on the model no weights.
    pub breakdown: Breakdown,
    /// Index (into the GPUs given) of each of its devices.
    pub devices: Vec<usize>,
    /// How it drafts.
    pub kind: DraftKind,
    /// Settings of its context.
    pub run: RunConfig,
    /// The layout, as scored.
    pub layout: vramfit_estimate::Layout,
}

/// Where everything goes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Placement {
    /// In one word.
    pub verdict: Verdict,
    /// One entry a GPU given, used or not.
    pub devices: Vec<DevicePlacement>,
    /// The host's share.
    pub host: MemoryBytes,
    /// What a multimodal projector takes of host memory.
    pub projector_host: MemoryBytes,
    /// A draft, with its own context.
    pub draft: Option<DraftPlacement>,
    /// Layers on the host, ascending.
    pub host_layers: Vec<usize>,
    /// The estimate behind it, its devices in the order llama.cpp uses them.
    pub breakdown: Breakdown,
    /// Settings it holds for.
    pub run: RunConfig,
    /// The layout, as scored.
    pub layout: vramfit_estimate::Layout,
    /// Index (into the GPUs given) of each device of the layout.
    pub layout_devices: Vec<usize>,
    /// Flags for llama-server that reproduce it, without the program's name and `-m MODEL`.
    pub flags: Vec<String>,
    /// Options that were looked at and not taken, the best first.
    pub rejected: Vec<Rejected>,
    /// What a reader should know.
    pub notes: Vec<String>,
    /// Layouts that were estimated to find it.
    pub n_estimates: usize,
}
