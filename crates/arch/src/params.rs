//! Settings of a context as llama.cpp settles on them (`llama_cparams`).

use crate::adapter::Adapters;
use crate::role::Role;
use vramfit_ggml::Type;

/// How token embeddings become one of a sequence (`llama_pooling_type`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Pooling {
    /// Every token has its own.
    #[default]
    None = 0,
    /// Their mean.
    Mean = 1,
    /// That of the first token.
    Cls = 2,
    /// That of the last token.
    Last = 3,
    /// A score.
    Rank = 4,
}

impl Pooling {
    /// From `llama_pooling_type`.
    pub fn from_id(id: i64) -> Option<Pooling> {
        Some(match id {
            0 => Pooling::None,
            1 => Pooling::Mean,
            2 => Pooling::Cls,
            3 => Pooling::Last,
            4 => Pooling::Rank,
            _ => return None,
        })
    }

    /// As `--pooling` has it.
    pub const fn name(self) -> &'static str {
        match self {
            Pooling::None => "none",
            Pooling::Mean => "mean",
            Pooling::Cls => "cls",
            Pooling::Last => "last",
            Pooling::Rank => "rank",
        }
    }
}

/// What llama.cpp computes in one operation, where that runs on the device of its layer
/// (`llm_fused_op`), in the order of its probes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FusedOp {
    /// Attention without the full matrix of scores.
    FlashAttention,
    /// Streams of hyper connections summed into what a block reads.
    HcPre,
    /// How the streams are mixed with each other.
    HcComb,
    /// What a block adds, spread over the streams.
    HcPost,
}

impl FusedOp {
    /// All of them.
    pub const ALL: [FusedOp; 4] = [
        FusedOp::FlashAttention,
        FusedOp::HcPre,
        FusedOp::HcComb,
        FusedOp::HcPost,
    ];
}

/// A set of operations that are not fused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Unfused(u8);

impl Unfused {
    /// Whether `op` is among them.
    pub fn contains(self, op: FusedOp) -> bool {
        self.0 & (1 << op as u8) != 0
    }

    /// Adds `op`.
    pub fn insert(&mut self, op: FusedOp) {
        self.0 |= 1 << op as u8;
    }
}

/// Settings after llama.cpp has rounded and limited them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContextParams {
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
    /// Most tokens of a batch whose logits are wanted.
    pub n_outputs_max: i64,
    /// All sequences share one KV cache.
    pub kv_unified: bool,
    /// Attention without the full matrix of scores.
    pub flash_attn: bool,
    /// Of the other operations that can be fused, those that are not.
    pub unfused: Unfused,
    /// V is stored transposed. Decided before flash attention `auto` is, so not always its opposite.
    pub v_trans: bool,
    /// KV cache and attention on the devices.
    pub offload_kqv: bool,
    /// A full-size cache for layers with a sliding window.
    pub swa_full: bool,
    /// Operations on host weights may run on a device.
    pub op_offload: bool,
    /// Embeddings are wanted.
    pub embeddings: bool,
    /// How they are pooled.
    pub pooling: Pooling,
    /// Element type of the K cache.
    pub type_k: Type,
    /// Element type of the V cache.
    pub type_v: Type,
    /// LoRA adapters and a control vector.
    pub adapters: Adapters,
    /// Its part in speculative decoding.
    pub role: Role,
}

impl ContextParams {
    /// Separate KV caches.
    pub fn n_stream(&self) -> i64 {
        if self.kv_unified { 1 } else { self.n_seq_max }
    }

    /// Cells of the cache of layers with a sliding window of `n_swa` tokens.
    pub fn n_ctx_swa(&self, n_swa: i64) -> i64 {
        self.n_ctx_swa_of(n_swa, if self.kv_unified { self.n_seq_max } else { 1 })
    }

    /// [`n_ctx_swa`](Self::n_ctx_swa) of a cache that `n_seqs` sequences share.
    pub fn n_ctx_swa_of(&self, n_swa: i64, n_seqs: i64) -> i64 {
        if self.swa_full {
            return self.n_ctx_seq;
        }
        pad_256(
            self.n_ctx_seq
                .min(n_swa.saturating_mul(n_seqs).saturating_add(self.n_ubatch)),
        )
    }
}

/// Rounded up to a multiple of 256, as llama.cpp rounds cache sizes.
pub fn pad_256(n: i64) -> i64 {
    n.saturating_add(255) / 256 * 256
}
