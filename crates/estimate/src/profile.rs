//! Engine builds: what differs from one build of llama.cpp to the next, as data.

use vramfit_ggml::ComputeCapability;

/// A build of llama.cpp.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EngineProfile {
    /// As the truth tables name it.
    pub name: &'static str,
    /// Architectures its CUDA kernels were compiled for.
    pub compiled: &'static [ComputeCapability],
    /// Steps that llama.cpp pins to their layer's device (`graph_get_cb`) are still there when compute
    /// buffers are sized. Where they are not, two tensors cross to each device but the first instead
    /// of one, each with its pipeline copies: what v0.5.0 itself does in its `no_alloc` pass.
    pub keeps_pins: bool,
}

impl EngineProfile {
    /// llama.cpp v0.5.0 with the CUDA backend, built with CUDA 13.
    pub const LLAMA_CPP_V0_5_0: EngineProfile = EngineProfile {
        name: "llama.cpp v0.5.0 (CUDA 13)",
        compiled: &[
            ComputeCapability::new(7, 5),
            ComputeCapability::new(8, 0),
            ComputeCapability::new(8, 6),
            ComputeCapability::new(8, 9),
            ComputeCapability::new(9, 0),
            ComputeCapability::new(12, 0),
            ComputeCapability::new(12, 1),
        ],
        keeps_pins: true,
    };

    /// llama.cpp as it was before pull request 17232 (13 November 2025), built with CUDA 11.4 for a Tesla K80: until then
    /// `ggml_backend_sched_reserve` reset the scheduler before it split the graph, so that compute buffers were sized
    /// without pins; buffers never shrink, so they stay as large. That is the build behind the measured rows
    /// (`fixtures/measured/k80.tsv`), whose second die holds just the copies more that lost pins make. All else is
    /// v0.5.0's: twelve rows of two models, none of another card, are what speaks for it.
    pub const MEASURED_ON_K80: EngineProfile = EngineProfile {
        name: "llama.cpp before 13 November 2025 (CUDA 11.4)",
        compiled: &[ComputeCapability::new(3, 7)],
        keeps_pins: false,
    };

    /// `ggml_cuda_highest_compiled_arch`: what runs on a device.
    pub fn compiled_for(&self, device: ComputeCapability) -> Option<ComputeCapability> {
        self.compiled.iter().copied().filter(|&c| c <= device).max()
    }
}
