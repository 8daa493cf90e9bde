//! A GPU as the planner sees it.

use vramfit_ggml::ComputeCapability;
use vramfit_ggml::cuda::PoolKind;

/// Memory that CUDA itself takes in a process before any buffer of llama.cpp's: context, modules,
/// library handles.
///
/// An interval: plans reckon with its upper end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Allowance {
    /// How much at most, bytes.
    pub bytes: u64,
    /// How much at least, bytes.
    pub low_bytes: u64,
    /// Of `bytes`, what the driver keeps of the card whatever runs: it does not show in a process's memory.
    pub kept_bytes: u64,
    /// What the driver's rounding of one allocation may add, which `bytes` has no room for: plans count it for each buffer.
    /// 0 where `bytes` is of a whole process's memory, rounding and all.
    pub per_buffer_bytes: u64,
    /// Where the figures come from, in a few words.
    pub source: String,
}

impl Allowance {
    /// In `source`, what stands before the words on what the driver keeps.
    pub const KEPT: &str = "; and what the driver keeps of the card, ";

    /// One figure, all of it the process's own.
    pub fn new(bytes: u64, source: impl Into<String>) -> Allowance {
        Allowance {
            bytes,
            low_bytes: bytes,
            kept_bytes: 0,
            per_buffer_bytes: 0,
            source: source.into(),
        }
    }
}

/// A GPU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    /// As people call it.
    pub name: String,
    /// All of its memory, bytes.
    pub total_bytes: u64,
    /// What is free, bytes.
    pub free_bytes: u64,
    /// Decides which kernels run.
    pub compute_capability: ComputeCapability,
    /// Streaming multiprocessors, where known.
    pub sm_count: Option<u32>,
    /// Shares the host's memory.
    pub integrated: bool,
    /// How ggml-cuda keeps temporary buffers on it.
    pub pool: PoolKind,
    /// What CUDA itself will take.
    pub overhead: Allowance,
}

impl Device {
    /// The same GPU for several processes at once. What the driver keeps of a card is there once, not in
    /// each process: it leaves what is free, and the allowance is that of a process alone.
    pub fn shared(mut self) -> Device {
        let kept = std::mem::take(&mut self.overhead.kept_bytes);
        self.free_bytes = self.free_bytes.saturating_sub(kept);
        self.overhead.bytes = self.overhead.bytes.saturating_sub(kept);
        if let Some((own, _)) = self.overhead.source.split_once(Allowance::KEPT) {
            self.overhead.source = own.to_string();
        }
        self
    }
}
