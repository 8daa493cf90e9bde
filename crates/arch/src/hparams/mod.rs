//! Hyperparameters: what the header says of the model's shape (`llama_hparams`).

mod load;
mod set;

use crate::Result;
use crate::graph::Norm;
use crate::keys::Keys;
use crate::models::Selector;

/// Largest values that are believed. They keep every product below 2^63 and are far beyond any model.
pub mod limits {
    /// Layers.
    pub const LAYERS: i64 = 2_048;
    /// Width of an embedding, a head or a state.
    pub const WIDTH: i64 = 1 << 22;
    /// Heads.
    pub const HEADS: i64 = 1 << 14;
    /// Experts.
    pub const EXPERTS: i64 = 1 << 14;
    /// Tokens of a vocabulary.
    pub const VOCAB: i64 = 1 << 28;
    /// Tokens of a context.
    pub const CONTEXT: i64 = i32::MAX as i64;
}

use limits::LAYERS;

/// One layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LayerHparams {
    /// The block of the file whose tensors it reads; loops read the same ones again.
    pub block: usize,
    /// Attention heads.
    pub n_head: i64,
    /// Heads of K and V; 0 for a layer without attention.
    pub n_head_kv: i64,
    /// Width of a K (and Q) head.
    pub n_embd_head_k: i64,
    /// Width of a V head.
    pub n_embd_head_v: i64,
    /// Width of a dense feed-forward block; 0 where the file does not say.
    pub n_ff: i64,
    /// Experts a token, where the layer has any.
    pub n_expert_used: i64,
    /// Attends to a sliding window only.
    pub is_swa: bool,
    /// Keeps a recurrent state.
    pub is_recurrent: bool,
    /// Rotates Q and K by position, where the architecture has a pattern of its own for that.
    pub has_rope: bool,
    /// Activations of the experts are limited (`swiglu_clamp_exp`).
    pub clamps_experts: bool,
    /// Activations of the shared expert are limited (`swiglu_clamp_shexp`).
    pub clamps_shared_expert: bool,
    /// Those of its dense block or shared expert are (`swiglu_clamp_shexp`).
    pub clamps_ffn: bool,
    /// A slice of the input embedding is added behind the layer (deepstack).
    pub adds_input: bool,
    /// Has a lightning indexer of its own.
    pub has_indexer: bool,
    /// Keeps a KV cache, if it has KV heads.
    pub is_cached: bool,
    /// Tokens that a compressor makes one cell of; 0 without one.
    pub compress_ratio: i64,
}

impl LayerHparams {
    /// `n_embd_k_gqa`: width of a row of the K cache.
    pub fn n_embd_k_gqa(&self) -> i64 {
        self.n_embd_head_k * self.n_head_kv
    }

    /// `n_embd_v_gqa`: width of a row of the V cache.
    pub fn n_embd_v_gqa(&self) -> i64 {
        self.n_embd_head_v * self.n_head_kv
    }
}

/// How a router turns logits into weights (`expert_gating_func`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gating {
    /// Softmax over all experts, then choose.
    Softmax,
    /// Sigmoid of each, then choose.
    Sigmoid,
    /// Choose by logit, then softmax over the chosen.
    SoftmaxWeight,
    /// Square root of the softplus of each, then choose.
    SqrtSoftplus,
}

/// Mixture of experts.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Moe {
    /// Experts a layer.
    pub n_expert: i64,
    /// Groups of experts; more than one: groups are chosen first.
    pub n_expert_groups: i64,
    /// Groups a token.
    pub n_group_used: i64,
    /// Weights of the chosen experts are multiplied by a constant other than 1.
    pub scales_weights: bool,
    /// Weights of the chosen experts are made to add up to one.
    pub norms_weights: bool,
    /// The router.
    pub gating: Gating,
}

/// Multi-head latent attention (DeepSeek-V2): heads share one compressed K.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mla {
    /// Width of a Q head before compression.
    pub key_length: i64,
    /// Width of a V head after decompression.
    pub value_length: i64,
    /// Of it, what is rotated.
    pub n_rot: i64,
    /// Width of the compressed K and V.
    pub kv_lora_rank: i64,
}

/// A lightning indexer: chooses the cells that a token attends to (DeepSeek sparse attention).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Indexer {
    /// Heads of its Q; K has one.
    pub n_head: i64,
    /// Width of a head.
    pub head: i64,
    /// Cells that it chooses, or blocks of them.
    pub top_k: i64,
    /// Cells of a block, where it chooses blocks.
    pub block: Option<i64>,
    /// Its cache has values, too.
    pub caches_values: bool,
}

/// Embeddings of n-grams, looked up by hashes of the last tokens (Qwen4's experiment).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NgramEmbd {
    /// The layer that reads them.
    pub layer: usize,
    /// Rows a token.
    pub n_rows: i64,
    /// Width of a row.
    pub width: i64,
    /// Taps of its convolution.
    pub taps: i64,
    /// Tokens between two taps.
    pub dilation: i64,
}

/// Layers of DeepSeek-V4, which may compress older tokens for attention. K serves as V.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Compressor {
    /// Older tokens are compressed; a draft's layers of this kind have the window alone (DSpark).
    pub has_cells: bool,
    /// Groups of heads that attention's output matrix takes apart.
    pub n_out_group: i64,
    /// Rounds in which the mixing of streams is normalised.
    pub n_iterations: i64,
}

/// State space layers (Mamba 1 and 2, gated delta nets, short convolutions, RWKV).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ssm {
    /// Taps of the convolution over time.
    pub d_conv: i64,
    /// Width of the inner stream.
    pub d_inner: i64,
    /// Width of a state.
    pub d_state: i64,
    /// Rank of the time step, or heads.
    pub dt_rank: i64,
    /// Groups that share B and C.
    pub n_group: i64,
}

impl Ssm {
    /// `n_embd_r`: elements of the convolution's state, one sequence and layer.
    pub fn n_embd_r(&self) -> i64 {
        (self.d_conv - 1).max(0) * (self.d_inner + 2 * self.n_group * self.d_state)
    }

    /// `n_embd_s`: elements of the scan's state, one sequence and layer.
    pub fn n_embd_s(&self) -> i64 {
        self.d_state * self.d_inner
    }
}

/// The hierarchy of HRM-Text: the low stack runs `l_cycles` times, the high stack once, and all that
/// `h_cycles` times.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hrm {
    /// Layers of each stack.
    pub n_stack: usize,
    /// Rounds of the high stack.
    pub h_cycles: usize,
    /// Rounds of the low stack before each of them.
    pub l_cycles: usize,
}

/// How Kimi Delta Attention makes its decay.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Decay {
    /// A softplus times a rate a head.
    #[default]
    Softplus,
    /// A bounded sigmoid.
    Sigmoid,
    /// The same of the negative (Kimi K3 keeps the rate with the other sign).
    NegatedSigmoid,
}

/// Kimi Delta Attention, and what Kimi K3 adds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Kda {
    /// How fast the state fades.
    pub decay: Decay,
    /// Layers between two checkpoints of the residual stream; 0 for none.
    pub res_block: usize,
    /// SiTU limits what is gated, too.
    pub situ_limits_up: bool,
}

/// Per-layer inputs of Gemma 3n.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Altup {
    /// Streams.
    pub n_altup: i64,
    /// Width of a per-layer input.
    pub n_embd_altup: i64,
}

/// What the keys of an architecture that is not known say, as far as known ones use them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Unknown {
    /// Elements of a recurrent state, one sequence and layer, at most.
    pub n_state: i64,
    /// Residual streams.
    pub n_streams: i64,
    /// Layers attend to the caches of others, which may be on other devices.
    pub shares_caches: bool,
    /// Heads that only choose what to attend to.
    pub n_indexer_head: i64,
    /// A bias on attention scores, for each pair of positions.
    pub has_score_bias: bool,
}

/// The model's shape.
#[derive(Clone, PartialEq, Debug)]
pub struct Hparams {
    /// One entry a layer: those that the main graph runs, then those behind them.
    pub layers: Vec<LayerHparams>,
    /// Layers of the decoder beside the encoder (T5).
    pub n_layer_dec: usize,
    /// Layers that the main graph runs.
    pub n_layer_main: usize,
    /// `n_layer_all`: those and the multi-token-prediction layers behind them.
    pub n_layer_all: usize,
    /// Width of the residual stream.
    pub n_embd: i64,
    /// Further slices of that width that an input embedding has (`n_deepstack_layers`).
    pub n_deepstack: i64,
    /// Tokens of the vocabulary.
    pub n_vocab: i64,
    /// Context the model was trained for.
    pub n_ctx_train: i64,
    /// Context before YaRN stretched it.
    pub n_ctx_orig_yarn: i64,
    /// Width that is rotated, where the file says so.
    pub n_rot: Option<i64>,
    /// Sliding window, tokens; 0 for none.
    pub n_swa: i64,
    /// The layers that keep a KV cache of their own are the first so many.
    pub n_layer_kv: usize,
    /// Experts.
    pub moe: Option<Moe>,
    /// Latent attention.
    pub mla: Option<Mla>,
    /// Latent attention of the layers with a sliding window, where it is another.
    pub mla_swa: Option<Mla>,
    /// Width of the compressed K and V, also without [`Mla`].
    pub kv_lora_rank: Option<i64>,
    /// The indexer of sparse attention.
    pub indexer: Option<Indexer>,
    /// Embeddings of n-grams.
    pub ngrams: Option<NgramEmbd>,
    /// Older tokens are compressed.
    pub compressor: Option<Compressor>,
    /// Streams of the residual that hyper connections keep; 0 for none.
    pub n_streams: i64,
    /// Hyper connections have operations of their own ([`FusedOp`](crate::FusedOp)).
    pub fuses_hyper_connections: bool,
    /// Recurrent layers.
    pub ssm: Option<Ssm>,
    /// Kimi Delta Attention.
    pub kda: Kda,
    /// Per-layer inputs.
    pub altup: Option<Altup>,
    /// Attention logits are soft-capped.
    pub attn_softcap: bool,
    /// Queries are multiplied by a temperature that grows with the position.
    pub attn_temperature: bool,
    /// Attention logits get linear biases instead of positions (`use_alibi`).
    pub alibi: bool,
    /// Q, K and V are clamped (`f_clamp_kqv`).
    pub clamps_qkv: bool,
    /// Final logits are soft-capped.
    pub final_softcap: bool,
    /// Embeddings are multiplied by a constant (`embedding_scale`).
    pub scales_embeddings: bool,
    /// What layers add is multiplied by a constant (`residual_scale`).
    pub scales_residual: bool,
    /// Logits are multiplied by a constant (`logit_scale`).
    pub scales_logits: bool,
    /// Norms come behind their blocks, not before them (`swin_norm`).
    pub norms_behind: bool,
    /// Between two loops over the same blocks the stream is normalised.
    pub norms_loops: bool,
    /// Two stacks in turns.
    pub hrm: Option<Hrm>,
    /// Attends to earlier tokens only.
    pub is_causal: bool,
    /// Keeps a memory of earlier tokens; encoders do not.
    pub has_memory: bool,
    /// Attends to the batch alone even so.
    pub ignores_memory: bool,
    /// llama.cpp does not read how wide its experts are, and aborts where that matters (`-sm tensor`).
    pub lacks_n_ff_exp: bool,
    /// Positions a token (4 for M-RoPE).
    pub n_pos_per_embd: i64,
    /// Attention and feed-forward block read the same stream (`use_parallel_residual`).
    pub parallel_residual: bool,
    /// Attention without rotation (`rope.scaling.finetuned` = false).
    pub no_rope: bool,
    /// RWKV halves activations every so many layers; 0 for never.
    pub rescale_every_n_layers: i64,
    /// `pooling_type` of the file.
    pub pooling_type: Option<i64>,
    /// Recurrent layers have a KV cache too (Falcon-H1).
    pub recurrent_attends: bool,
    /// Residual and attention blocks in front (WavTokenizer).
    pub n_posnet: usize,
    /// ConvNeXt blocks behind them.
    pub n_convnext: usize,
    /// The residual stream begins behind the norm (EAGLE-3).
    pub norm_before_residual: bool,
    /// Tokens that are drafted at once (DFlash).
    pub block_size: i64,
    /// The first token of a block is drafted, too (DSpark).
    pub sample_from_anchor: bool,
    /// Convolutions and a selector (DFlash 2).
    pub selector: Option<Selector>,
    /// Width of the target's states that a draft reads and gives back (`embedding_length_out`); 0 for none.
    pub n_embd_target: i64,
    /// Layers of the target whose inputs a draft reads (`target_layers`).
    pub target_layers: Vec<usize>,
    /// `hidden_activation` of the file.
    pub hidden_act: Option<String>,
    /// Layers come in two kinds, with and without a window, and so do the caches.
    pub has_swa_layers: bool,
    /// Only of an architecture that is not known.
    pub unknown: Option<Unknown>,
    /// Normalisation, where the file says which.
    pub norm: Option<Norm>,
    /// What attention returns is multiplied by a constant (`attention.value_scale`).
    pub scales_attention: bool,
    /// Layers in front that have no experts.
    pub n_layer_dense_lead: usize,
}

impl Hparams {
    /// Layers that the main graph runs.
    pub fn n_layer(&self) -> usize {
        self.n_layer_main
    }

    /// The blocks run `n` times, each time with a cache of its own.
    pub(crate) fn repeat_layers(&mut self, keys: &Keys<'_>, key: &str) -> Result<()> {
        let most = LAYERS / (self.layers.len() as i64).max(1);
        let n = keys.int(key, most)?.unwrap_or(1).max(1) as usize;
        if n > 1 {
            self.layers = self.layers.repeat(n);
            self.n_layer_main = self.layers.len();
            self.n_layer_all = self.layers.len();
            self.n_layer_kv = self.layers.len();
        }
        Ok(())
    }

    /// At least `n` layers, the last standing for those that are added; as many as are believed.
    pub(crate) fn extend_layers(&mut self, n: usize) {
        let n = n.min(LAYERS as usize);
        if let Some(&last) = self.layers.last()
            && self.layers.len() < n
        {
            self.layers.resize(n, last);
        }
        self.n_layer_all = self.n_layer_all.max(n);
    }

    /// `n_embd_v_gqa_max`: the widest row of the V cache.
    pub fn n_embd_v_gqa_max(&self) -> i64 {
        self.layers
            .iter()
            .map(LayerHparams::n_embd_v_gqa)
            .max()
            .unwrap_or(0)
    }

    /// Latent attention of layer `il`.
    pub fn mla_of(&self, il: usize) -> Option<Mla> {
        let swa = self.mla_swa.filter(|_| self.layers[il].is_swa);
        swa.or(self.mla)
    }

    /// `has_kv`: layer `il` has a KV cache of its own, be it empty. Only hybrid models leave out
    /// layers without attention.
    pub fn has_kv(&self, il: usize) -> bool {
        let layer = &self.layers[il];
        self.has_memory && layer.is_cached && il < self.n_layer_kv
    }

    /// Layers that are loaded whatever for: the main ones, or all of a model of layers for multi-token prediction alone.
    pub fn n_layer_loaded(&self) -> usize {
        match self.n_layer_main {
            0 => self.n_layer_all,
            n => n,
        }
    }

    /// DeepSeek-V4's heads, where they are as wide as its indexer's: K is rotated whatever its type is.
    pub fn rotated_by_indexer(&self) -> Option<i64> {
        self.compressor.filter(|c| c.has_cells)?;
        let width = self.layers.first()?.n_embd_head_k;
        let indexer = self.indexer?;
        (indexer.head == width).then_some(width)
    }

    /// [`has_kv`](Self::has_kv) in a context for multi-token prediction, which has caches for those layers alone.
    pub fn has_mtp_kv(&self, il: usize) -> bool {
        self.has_memory && (il >= self.n_layer_main || self.n_layer_main == 0)
    }
}
