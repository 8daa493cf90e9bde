//! Engine builds: what differs from one build of llama.cpp to the next, as data.

use vramfit_ggml::ComputeCapability;

/// A build of llama.cpp.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EngineProfile {
    /// As the truth tables name it.
    pub name: &'static str,
    /// Architectures its CUDA kernels were compiled for.
    pub compiled: &'static [ComputeCapability],
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
    };

    /// `ggml_cuda_highest_compiled_arch`: what runs on a device.
    pub fn compiled_for(&self, device: ComputeCapability) -> Option<ComputeCapability> {
        self.compiled.iter().copied().filter(|&c| c <= device).max()
    }
}
