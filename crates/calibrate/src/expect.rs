//! What is predicted of a run, term by term.

use serde::{Deserialize, Serialize};
use vramfit::{Device, ENGINE, Model, Placement};

/// A planned run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// The model's file.
    pub model: String,
    /// The engine build that the figures are for.
    pub build: String,
    /// llama-server's flags, behind `-m MODEL`.
    pub flags: Vec<String>,
    /// Tokens that fill the context of one sequence.
    pub n_ctx_seq: u64,
    /// Tokens computed at once.
    pub n_ubatch: u64,
    /// Sequences at once.
    pub n_seq: u64,
    /// Tokens of the vocabulary.
    pub n_vocab: u64,
    /// Embeddings are asked for, not tokens.
    pub embeddings: bool,
    /// Every GPU given, in CUDA's order.
    pub devices: Vec<ExpectedDevice>,
}

/// A GPU's share, bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpectedDevice {
    /// As people call it.
    pub name: String,
    /// llama.cpp is told to use it.
    pub is_used: bool,
    /// Weights.
    pub model_bytes: u64,
    /// Caches and recurrent state.
    pub context_bytes: u64,
    /// Compute buffer.
    pub compute_bytes: u64,
    /// ggml-cuda's pool of temporary buffers.
    pub pool_bytes: u64,
    /// cuBLAS's workspace.
    pub workspace_bytes: u64,
    /// Pool and workspace are only a bound.
    pub pool_is_bound: bool,
    /// The device cannot map memory by itself, so that ggml-cuda has its older kind of pool, which takes more than is
    /// predicted here.
    pub pool_is_legacy: bool,
    /// llama.cpp's own buffers are only a bound: the architecture is not known.
    pub buffers_are_bound: bool,
    /// CUDA's own, at least.
    pub overhead_low_bytes: u64,
    /// CUDA's own, at most.
    pub overhead_bytes: u64,
}

impl ExpectedDevice {
    /// llama.cpp's buffers.
    pub fn buffers(&self) -> u64 {
        [self.model_bytes, self.context_bytes, self.compute_bytes]
            .into_iter()
            .fold(0, u64::saturating_add)
    }

    /// All but CUDA's own.
    pub fn engine_bytes(&self) -> u64 {
        self.buffers()
            .saturating_add(self.pool_bytes)
            .saturating_add(self.workspace_bytes)
    }

    /// What the plan reckons with.
    pub fn total(&self) -> u64 {
        self.engine_bytes().saturating_add(self.overhead_bytes)
    }
}

impl Expected {
    /// What `placement` of `model`, read from `path`, says of each of `devices`.
    pub fn new(path: &str, model: &Model, placement: &Placement, devices: &[Device]) -> Expected {
        let breakdown = &placement.breakdown;
        let device = |(index, device): (usize, &Device)| {
            let mut expected = ExpectedDevice {
                name: device.name.clone(),
                ..ExpectedDevice::default()
            };
            let at = placement.layout_devices.iter().position(|&d| d == index);
            let Some(at) = at else {
                return expected;
            };
            let memory = breakdown.devices.get(at).copied().unwrap_or_default();
            let runtime = breakdown.runtime.get(at).copied().unwrap_or_default();
            // What the driver keeps of the card is not the process's.
            let kept = device.overhead.kept_bytes;
            expected.is_used = true;
            expected.model_bytes = memory.model.saturating_add(memory.adapters);
            expected.context_bytes = memory.context;
            expected.compute_bytes = memory.compute;
            expected.pool_bytes = runtime.pool_bytes;
            expected.workspace_bytes = runtime.workspace_bytes;
            expected.pool_is_bound = runtime.is_bound;
            expected.buffers_are_bound = breakdown.bounded.is_bound();
            expected.overhead_low_bytes = device.overhead.low_bytes;
            expected.overhead_bytes = device.overhead.bytes.saturating_sub(kept);
            expected
        };
        let params = &breakdown.params;
        Expected {
            model: path.to_string(),
            build: ENGINE.name.to_string(),
            flags: placement.flags.clone(),
            n_ctx_seq: count(params.n_ctx_seq),
            n_ubatch: count(params.n_ubatch),
            n_seq: count(params.n_seq_max).max(1),
            n_vocab: count(model.hparams.n_vocab),
            embeddings: placement.run.embeddings,
            devices: devices.iter().enumerate().map(device).collect(),
        }
    }
}

fn count(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}
