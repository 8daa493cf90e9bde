//! What llama.cpp's CUDA backend does on a compute capability: flash attention, and which of the
//! published builds run there at all.
//!
//! Read from ggml-cuda at de3ff81 (llama.cpp 0.5.0): `fattn.cu` (`ggml_cuda_get_best_fattn_kernel`)
//! never refuses a device for its compute capability. Flash attention is compiled in unless the
//! build says `GGML_CUDA_NO_FA`, and only shapes and cache types are refused at run time. What
//! a device lacks only changes the kernel: no matrix cores below 7.0, and below 6.0
//! (`FP16_AVAILABLE` is not set) the tile and vector kernels compute in f32.
//!
//! The limit is therefore which devices a build has code for. `ggml-cuda/CMakeLists.txt` starts at
//! 5.0 under CUDA 12 and at 7.5 under CUDA 13, and the published builds are made with those two. Kepler (3.x)
//! is left to builds of one's own with CUDA 11 or older, and the K80 figures vramfit has been checked
//! against were taken on such a build with flash attention off.

use vramfit_ggml::ComputeCapability;

/// Which flash attention kernels a published llama.cpp build has for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlashAttention {
    /// Turing and later (7.5): matrix-core kernels, vector kernels for single tokens.
    MatrixCores,
    /// Volta (7.0, 7.2): matrix-core kernels for large batches, else tile and vector kernels.
    VoltaMatrixCores,
    /// Pascal (6.x): tile and vector kernels.
    Tile,
    /// Maxwell (5.x): tile and vector kernels, computed in f32.
    TileF32,
    /// Kepler (3.x) and older: no published build has code for the device; count on none.
    None,
}

impl FlashAttention {
    /// Whether a published build runs flash attention there.
    pub fn available(self) -> bool {
        self != Self::None
    }
}

/// The flash attention kernels for a compute capability, see the module's text.
pub fn flash_attention(capability: ComputeCapability) -> FlashAttention {
    match capability.0 {
        750.. => FlashAttention::MatrixCores,
        700..750 => FlashAttention::VoltaMatrixCores,
        600..700 => FlashAttention::Tile,
        500..600 => FlashAttention::TileF32,
        _ => FlashAttention::None,
    }
}

/// Which published llama.cpp builds run on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublicBuilds {
    /// Both the CUDA 12 and the CUDA 13 builds.
    Cuda12And13,
    /// Only the CUDA 12 builds: 5.0 to 7.2.
    Cuda12,
    /// None: a build of one's own with CUDA 11 or older.
    None,
}

/// The published builds for a compute capability, see the module's text.
pub fn public_builds(capability: ComputeCapability) -> PublicBuilds {
    match capability.0 {
        750.. => PublicBuilds::Cuda12And13,
        500..750 => PublicBuilds::Cuda12,
        _ => PublicBuilds::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn support_follows_the_compute_capability() {
        let check = |capability: u32, attention: FlashAttention, builds: PublicBuilds| {
            let capability = ComputeCapability(capability);
            assert_eq!(flash_attention(capability), attention, "{capability}");
            assert_eq!(public_builds(capability), builds, "{capability}");
            assert_eq!(attention.available(), builds != PublicBuilds::None);
        };
        check(300, FlashAttention::None, PublicBuilds::None);
        check(370, FlashAttention::None, PublicBuilds::None);
        check(500, FlashAttention::TileF32, PublicBuilds::Cuda12);
        check(520, FlashAttention::TileF32, PublicBuilds::Cuda12);
        check(600, FlashAttention::Tile, PublicBuilds::Cuda12);
        check(610, FlashAttention::Tile, PublicBuilds::Cuda12);
        check(700, FlashAttention::VoltaMatrixCores, PublicBuilds::Cuda12);
        check(720, FlashAttention::VoltaMatrixCores, PublicBuilds::Cuda12);
        check(750, FlashAttention::MatrixCores, PublicBuilds::Cuda12And13);
        check(1210, FlashAttention::MatrixCores, PublicBuilds::Cuda12And13);
    }
}
