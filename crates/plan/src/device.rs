//! A GPU as the planner sees it.

use vramfit_ggml::ComputeCapability;

/// Memory that CUDA itself takes in a process before any buffer of llama.cpp's: context, modules,
/// library handles.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Allowance {
    /// How much, bytes.
    pub bytes: u64,
    /// Where the figure comes from, in a few words.
    pub source: String,
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
    /// What CUDA itself will take.
    pub overhead: Allowance,
}
