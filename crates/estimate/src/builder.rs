//! Settings in one expression.

use crate::{FlashAttention, Outputs, RunConfig};
use vramfit_arch::{Adapters, CpuRepack, Pooling};
use vramfit_ggml::Type;

/// Makes a [`RunConfig`]; what is not set is llama.cpp's default.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[must_use]
pub struct RunConfigBuilder(RunConfig);

impl RunConfig {
    /// Begins with the defaults.
    ///
    /// ```
    /// use vramfit_estimate::{FlashAttention, RunConfig};
    ///
    /// let run = RunConfig::builder()
    ///     .n_ctx(32768)
    ///     .flash_attention(FlashAttention::On)
    ///     .build();
    /// assert_eq!((run.n_ctx, run.n_ubatch), (32768, 512));
    /// ```
    pub fn builder() -> RunConfigBuilder {
        RunConfigBuilder::default()
    }
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $ty:ty,)*) => {
        impl RunConfigBuilder {
            $($(#[$doc])*
            pub fn $name(mut self, $name: $ty) -> RunConfigBuilder {
                self.0.$name = $name;
                self
            })*
        }
    };
}

setters! {
    /// `-c`: context size, tokens; 0 for the model's own.
    n_ctx: u32,
    /// `-b`: logical batch, tokens.
    n_batch: u32,
    /// `-ub`: physical batch, tokens; 0 for the logical batch.
    n_ubatch: u32,
    /// `-np`: sequences at once.
    n_seq_max: u32,
    /// `-kvu`: one KV cache for all sequences.
    kv_unified: bool,
    /// `-fa`.
    flash_attention: FlashAttention,
    /// `-ctk`: element type of the K cache.
    type_k: Type,
    /// `-ctv`: element type of the V cache.
    type_v: Type,
    /// Off with `-nkvo`: KV cache and attention on the devices.
    offload_kqv: bool,
    /// Off with `--no-op-offload`: host weights are copied to a device for large batches.
    op_offload: bool,
    /// `--swa-full`: a full-size cache for layers with a sliding window.
    swa_full: bool,
    /// Off with `--no-mmap`: host weights stay in the mapped file.
    use_mmap: bool,
    /// Off with `--no-host`: the CPU's buffers are pinned for the first device.
    pinned_host: bool,
    /// What the host's CPU re-orders of weights that are not pinned.
    cpu_repack: CpuRepack,
    /// `--embeddings`.
    embeddings: bool,
    /// `--pooling`; `None` for the model's own.
    pooling: Option<Pooling>,
    /// Reserved logits.
    outputs: Outputs,
    /// LoRA adapters and a control vector.
    adapters: Adapters,
}

impl RunConfigBuilder {
    /// `-ctk` and `-ctv` alike.
    pub fn cache_types(self, ty: Type) -> RunConfigBuilder {
        self.type_k(ty).type_v(ty)
    }

    /// The settings. Whether llama.cpp takes them depends on the model too: see [`RunConfig::resolve`].
    pub fn build(self) -> RunConfig {
        self.0
    }
}
