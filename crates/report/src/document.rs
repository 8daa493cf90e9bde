//! One estimate as a document: what `--json` prints, and what the text is made from.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An estimate. All sizes are in bytes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Estimate {
    /// Name and version of this document's layout: `vramfit.estimate/1`. Keys are only ever added.
    pub schema: String,
    /// The engine build that the numbers are of.
    pub engine: String,
    /// The model.
    pub model: ModelReport,
    /// How the list of GPUs was understood, a line each.
    pub gpus: Vec<String>,
    /// All settings, as llama.cpp resolves them.
    pub run: RunReport,
    /// In one word.
    pub verdict: VerdictWord,
    /// The GPUs in order, then the host.
    pub devices: Vec<DeviceReport>,
    /// The llama-server call that does it, program and arguments.
    pub command: Vec<String>,
    /// What was looked at and not taken, the best first.
    pub rejected: Vec<RejectedReport>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// The model.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct ModelReport {
    /// Its file; the first, if it is split.
    pub path: String,
    /// Its name in Ollama's store, if it was found there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_name: Option<String>,
    /// `general.architecture`.
    pub architecture: String,
    /// `general.name`.
    pub name: Option<String>,
    /// Blocks. The output layer is counted as one more layer behind them.
    pub n_layer: u64,
    /// Elements of all tensors.
    pub n_params: u64,
    /// Bytes of the complete file, or files.
    pub file_bytes: u64,
}

/// Settings as llama.cpp resolves them.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct RunReport {
    /// Cells of the KV cache over all sequences.
    pub n_ctx: i64,
    /// Cells that one sequence can fill.
    pub n_ctx_seq: i64,
    /// Tokens of a logical batch.
    pub n_batch: i64,
    /// Tokens computed at once.
    pub n_ubatch: i64,
    /// Sequences at once.
    pub n_seq_max: i64,
    /// Most tokens of a batch whose logits are reserved.
    pub n_outputs: i64,
    /// Flash attention, after `auto` is decided.
    pub flash_attention: bool,
    /// Element type of the K cache.
    pub type_k: String,
    /// Element type of the V cache.
    pub type_v: String,
    /// Layers on GPUs, the output layer included.
    pub n_gpu_layers: u64,
    /// Copies of every input: 4 when layers are pipelined over GPUs, else 1.
    pub pipeline_copies: u32,
    /// One KV cache for all sequences.
    pub kv_unified: bool,
    /// A full-size cache for layers with a sliding window.
    pub swa_full: bool,
    /// KV cache and attention on the GPUs.
    pub offload_kqv: bool,
    /// Operations on host weights may run on a GPU.
    pub op_offload: bool,
    /// Host weights stay in the mapped file.
    pub mmap: bool,
    /// Embeddings are wanted.
    pub embeddings: bool,
    /// How embeddings are pooled: none, mean, cls, last or rank.
    pub pooling: String,
    /// Shares of the GPUs in use; empty for llama.cpp's own.
    pub tensor_split: Vec<f32>,
    /// `-sm`.
    pub split_mode: SplitWord,
    /// `-mg`: index among the GPUs in use.
    pub main_gpu: u64,
    /// Tensors that go elsewhere than their layer, in order; the first match counts.
    pub overrides: Vec<OverrideReport>,
    /// Who decided where layers go.
    pub layout: LayoutWord,
    /// Which GPU is taken when several would do.
    pub prefer: PreferWord,
}

/// `-sm`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SplitWord {
    /// One GPU only.
    None,
    /// Layers over all GPUs.
    Layer,
    /// Every layer over all GPUs.
    Tensor,
}

/// `--layout`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LayoutWord {
    /// vramfit.
    Best,
    /// llama.cpp by itself.
    Engine,
}

/// `--prefer`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PreferWord {
    /// The one with the most free memory.
    MostFree,
    /// The first.
    First,
    /// The last.
    Last,
    /// The one that would be fullest.
    Tightest,
}

/// The answer in one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VerdictWord {
    /// Everything on the GPUs as asked, within free memory.
    Fits,
    /// Some layers or experts stay on the host.
    Partial,
    /// Not as asked.
    DoesNotFit,
}

/// How sure a number is.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Sure {
    /// The engine's own bytes.
    Exact,
    /// A model of what CUDA takes.
    Modelled,
    /// Not above this.
    Bound,
}

/// How sure the numbers of a device are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct CertaintyWords {
    /// Of `model_bytes`.
    pub model: Sure,
    /// Of `context_bytes`.
    pub context: Sure,
    /// Of `compute_bytes`.
    pub compute: Sure,
    /// Of `runtime_bytes` and `overhead_bytes`.
    pub runtime: Sure,
}

/// A GPU, or the host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct DeviceReport {
    /// `CUDA0`, `CUDA1` and so on, or `host`.
    pub id: String,
    /// As people call it.
    pub name: String,
    /// All of its memory, as CUDA reports it; null for the host.
    pub total_bytes: Option<u64>,
    /// What is free; null for the host.
    pub free_bytes: Option<u64>,
    /// Layers, ascending; the output layer is `n_layer`.
    pub layers: Vec<u64>,
    /// Weights. On the host, with mmap, the mapped part of the file.
    pub model_bytes: u64,
    /// LoRA adapters and control vectors.
    #[serde(default)]
    pub adapter_bytes: u64,
    /// KV cache and recurrent state.
    pub context_bytes: u64,
    /// Compute buffer.
    pub compute_bytes: u64,
    /// A multimodal projector (`--mmproj`): its weights and its own compute buffers.
    #[serde(default)]
    pub projector_bytes: u64,
    /// Of `projector_bytes`, its compute buffers.
    #[serde(default)]
    pub projector_compute_bytes: u64,
    /// A draft beside the model, or a second context on it (speculative decoding): weights, cache and compute buffers.
    #[serde(default)]
    pub draft_bytes: u64,
    /// Of `draft_bytes`, its cache.
    #[serde(default)]
    pub draft_context_bytes: u64,
    /// Of `draft_bytes`, its compute buffers.
    #[serde(default)]
    pub draft_compute_bytes: u64,
    /// CUDA's pool of temporary buffers and cuBLAS's workspace.
    pub runtime_bytes: u64,
    /// CUDA's context, modules and cuBLAS, and what the driver keeps where that is not known; at most this.
    pub overhead_bytes: u64,
    /// The least that it may be: `overhead_bytes` is the upper end of an interval.
    #[serde(default)]
    pub overhead_low_bytes: u64,
    /// Where `overhead_bytes` comes from; null for the host and for a GPU that is not used.
    pub overhead_source: Option<String>,
    /// Host weights that ggml-cpu copies into an order of its own, beside the mapped file. llama.cpp
    /// does not count them, nor does `required_bytes`; 0 for a GPU.
    pub repacked_bytes: u64,
    /// Sum of weights, caches, compute, projector, draft, runtime and overhead: what nvidia-smi would show for the process.
    pub required_bytes: u64,
    /// Free less required, below 0 what is missing; null for the host.
    pub headroom_bytes: Option<i64>,
    /// How sure these numbers are.
    pub certainty: CertaintyWords,
}

/// Tensors that go elsewhere than their layer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct OverrideReport {
    /// Regular expression, searched for in tensor names.
    pub pattern: String,
    /// `CPU`, or a GPU's id.
    pub buffer: String,
}

/// What was looked at and not taken.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct RejectedReport {
    /// What it was.
    pub option: String,
    /// Each GPU that falls short.
    pub shortfalls: Vec<ShortfallReport>,
    /// Why, where no GPU falls short.
    pub reason: Option<String>,
    /// The nearest changes that would make it fit.
    pub fixes: Vec<FixReport>,
}

/// A GPU that falls short.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct ShortfallReport {
    /// Its id.
    pub device: String,
    /// Needed there.
    pub required_bytes: u64,
    /// Free there.
    pub free_bytes: u64,
    /// What is missing.
    pub missing_bytes: u64,
}

/// A change that would make it fit.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct FixReport {
    /// The flags.
    pub flags: Vec<String>,
    /// In words.
    pub text: String,
}

impl Estimate {
    /// The GPUs, without the host.
    pub fn gpu_devices(&self) -> impl Iterator<Item = &DeviceReport> {
        self.devices.iter().filter(|d| d.free_bytes.is_some())
    }

    /// All layers: the blocks and the output layer.
    pub fn n_layers(&self) -> u64 {
        self.model.n_layer + 1
    }

    /// Caches and compute buffers are upper bounds: what fits is sure to, what does not may.
    pub fn is_bound(&self) -> bool {
        self.devices
            .iter()
            .any(|d| d.certainty.compute == Sure::Bound)
    }
}

impl DeviceReport {
    /// llama.cpp puts something on it, or CUDA does.
    pub fn is_used(&self) -> bool {
        self.required_bytes > 0
    }

    /// Weights, and what adapters, a projector and a draft add to them.
    pub fn weight_bytes(&self) -> u64 {
        let projector = self
            .projector_bytes
            .saturating_sub(self.projector_compute_bytes);
        let draft = self
            .draft_bytes
            .saturating_sub(self.draft_context_bytes)
            .saturating_sub(self.draft_compute_bytes);
        self.model_bytes
            .saturating_add(self.adapter_bytes)
            .saturating_add(projector)
            .saturating_add(draft)
    }

    /// Caches, that of a draft included.
    pub fn all_context_bytes(&self) -> u64 {
        self.context_bytes.saturating_add(self.draft_context_bytes)
    }

    /// Compute buffers, those of a projector and of a draft included.
    pub fn all_compute_bytes(&self) -> u64 {
        self.compute_bytes
            .saturating_add(self.projector_compute_bytes)
            .saturating_add(self.draft_compute_bytes)
    }

    /// What CUDA takes beside llama.cpp's buffers.
    pub fn cuda_bytes(&self) -> u64 {
        self.runtime_bytes.saturating_add(self.overhead_bytes)
    }
}
