//! `(Model, RunConfig, Layout) -> Breakdown`: bytes of weights, cache and compute buffers on each
//! device and the host, as llama.cpp would allocate them. How much memory is free is not asked.

mod batches;
mod bound;
mod breakdown;
mod buffers;
mod builder;
mod config;
mod explain;
mod layout;
mod legacy;
mod memory;
mod node_list;
mod not_modelled;
mod parallel;
mod profile;
mod projector;
mod refusal;
mod simulate;
mod speculative;

pub use breakdown::{Bounded, Breakdown, MemoryBytes, Pass, PassStats, Runtime};
pub use buffers::{BufferGroup, BufferUse, most_buffers};
pub use builder::RunConfigBuilder;
pub use config::{CACHE_TYPES, FlashAttention, MAX_SEQ, Outputs, RunConfig};
pub use explain::{AliveTensor, Peak, PoolOp, PoolPeak};
pub use layout::{Layout, LayoutDevice};
pub use node_list::{NodeRow, RowKind, node_list};
pub use not_modelled::NotModelled;
pub use profile::EngineProfile;
pub use projector::{ProjectorConfig, TowerUse, projector_node_list, projector_use};
pub use refusal::Refusal;
pub use speculative::{DraftKind, SpeculativeConfig, SpeculativeSettings, SpeculativeUse};

/// Why there is no breakdown.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model's graph cannot be built.
    #[error(transparent)]
    Model(#[from] vramfit_arch::Error),
    /// llama.cpp refuses these settings.
    #[error("llama.cpp refuses this: {0}")]
    Refused(#[from] Refusal),
    /// llama.cpp refuses these settings without flash attention, which is off as some GPU's builds have none.
    #[error(
        "no published build has flash attention for {gpu}, so it is taken as off, and then llama.cpp refuses this: {refusal}; \
         -fa auto asks what llama.cpp v0.5.0's own code would do"
    )]
    RefusedWithoutFlashAttention {
        /// The GPU's name.
        gpu: String,
        /// Why.
        refusal: Refusal,
    },
    /// vramfit has no rule for these settings.
    #[error("vramfit cannot size this, though llama.cpp may start with it: {0}")]
    NotModelled(#[from] NotModelled),
    /// A library's caller has not loaded the layers that are to draft.
    #[error(
        "the layers for multi-token prediction that are to draft are not loaded: take target and draft as DraftKind::loaded gives them"
    )]
    WithoutMtp,
}
