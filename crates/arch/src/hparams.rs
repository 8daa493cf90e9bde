//! Hyperparameters: what the header says of the model's shape (`llama_hparams`).

use crate::graph::Norm;
use crate::keys::Keys;
use crate::models::Selector;
use crate::{Error, Result};

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

use limits::{CONTEXT, EXPERTS, HEADS, LAYERS, VOCAB, WIDTH};

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

    /// What every architecture reads (`llama_model::load_hparams`).
    pub(crate) fn load(keys: &Keys<'_>) -> Result<Hparams> {
        let n_nextn = keys.int("nextn_predict_layers", LAYERS)?.unwrap_or(0);
        Self::load_with_mtp(keys, n_nextn)
    }

    /// [`load`](Self::load), the last `n_nextn` layers being those of multi-token prediction.
    pub(crate) fn load_with_mtp(keys: &Keys<'_>, n_nextn: i64) -> Result<Hparams> {
        let n_layer_all = keys.require("block_count", LAYERS)?;
        let n_layer = (n_layer_all - n_nextn).max(0) as usize;
        let n_embd = keys.require("embedding_length", WIDTH)?;
        let n_ctx_train = keys.require("context_length", CONTEXT)?;
        let n_vocab = match keys.n_tokens() {
            Some(n) => i64::try_from(n).unwrap_or(i64::MAX).min(VOCAB),
            None => keys.require("vocab_size", VOCAB)?,
        };
        let n_ctx_orig = keys.positive("rope.scaling.original_context_length", CONTEXT)?;
        let mut layers = load_layers(keys, n_layer_all as usize, n_embd)?;
        // A model of multi-token-prediction layers alone keeps caches for those.
        let n_cached = if n_layer > 0 { n_layer } else { layers.len() };
        layers
            .iter_mut()
            .take(n_cached)
            .for_each(|l| l.is_cached = true);
        Ok(Hparams {
            n_layer_main: n_layer,
            n_layer_all: n_layer_all as usize,
            n_embd,
            n_deepstack: 0,
            n_vocab,
            n_ctx_train,
            n_ctx_orig_yarn: n_ctx_orig.unwrap_or(n_ctx_train),
            n_rot: keys.positive("rope.dimension_count", WIDTH)?,
            n_swa: 0,
            n_layer_kv: n_layer_all as usize,
            moe: load_moe(keys, &layers)?,
            mla: load_mla(keys)?,
            mla_swa: None,
            kv_lora_rank: keys.positive("attention.kv_lora_rank", WIDTH)?,
            indexer: None,
            n_streams: keys.int("hyper_connection.count", 16)?.unwrap_or(0),
            ngrams: None,
            compressor: None,
            fuses_hyper_connections: false,
            ssm: load_ssm(keys)?,
            kda: Kda::default(),
            altup: None,
            attn_softcap: false,
            attn_temperature: false,
            alibi: false,
            clamps_qkv: false,
            final_softcap: keys.is_set("final_logit_softcapping")?,
            scales_embeddings: keys.is_set("embedding_scale")?,
            scales_residual: keys.is_set("residual_scale")?,
            scales_logits: keys.is_set("logit_scale")?,
            norms_behind: false,
            norms_loops: false,
            hrm: None,
            is_causal: keys.flag("attention.causal")?.unwrap_or(true),
            has_memory: true,
            ignores_memory: false,
            lacks_n_ff_exp: false,
            n_pos_per_embd: 1,
            parallel_residual: false,
            no_rope: keys.flag("rope.scaling.finetuned")? == Some(false),
            rescale_every_n_layers: keys.int("rescale_every_n_layers", LAYERS)?.unwrap_or(0),
            pooling_type: keys.int("pooling_type", 16)?,
            recurrent_attends: false,
            n_posnet: 0,
            n_convnext: 0,
            norm_before_residual: false,
            block_size: 0,
            sample_from_anchor: true,
            selector: None,
            n_embd_target: 0,
            target_layers: Vec::new(),
            hidden_act: keys.text("hidden_activation")?.map(str::to_string),
            has_swa_layers: false,
            layers,
            n_layer_dec: 0,
            unknown: None,
            norm: None,
            scales_attention: false,
            n_layer_dense_lead: keys.int("leading_dense_block_count", LAYERS)?.unwrap_or(0)
                as usize,
        })
    }

    /// `load_swa_pattern`: a window on every layer but the last of each `period`, unless the file
    /// has its own pattern. Nothing when there is no window.
    pub(crate) fn set_swa(
        &mut self,
        keys: &Keys<'_>,
        window: Option<i64>,
        period: i64,
    ) -> Result<()> {
        self.set_swa_pattern(keys, window, |i, n| i % n < n - 1, period)
    }

    /// [`set_swa`](Self::set_swa) with the layers that see everything in front (`dense_first`).
    pub(crate) fn set_swa_dense_first(
        &mut self,
        keys: &Keys<'_>,
        window: Option<i64>,
        period: i64,
    ) -> Result<()> {
        self.set_swa_pattern(keys, window, |i, n| i % n != 0, period)
    }

    fn set_swa_pattern(
        &mut self,
        keys: &Keys<'_>,
        window: Option<i64>,
        is_swa: impl Fn(i64, i64) -> bool,
        period: i64,
    ) -> Result<()> {
        const PATTERN: &str = "attention.sliding_window_pattern";
        let Some(window) = window.filter(|&w| w > 0) else {
            return Ok(());
        };
        let n_layer = self.n_layer();
        let pattern = if let Some(pattern) = keys.flags(PATTERN, self.n_layer_all)? {
            pattern
        } else {
            let period = keys.int(PATTERN, LAYERS)?.unwrap_or(period);
            (0..n_layer as i64)
                .map(|i| period == 0 || is_swa(i, period))
                .collect()
        };
        self.n_swa = window;
        self.has_swa_layers = true;
        for (layer, is_swa) in self.layers.iter_mut().zip(pattern) {
            layer.is_swa = is_swa;
        }
        self.set_swa_heads(keys)
    }

    /// The window of the file, 0 as good as none.
    pub(crate) fn window(keys: &Keys<'_>) -> Result<Option<i64>> {
        keys.positive("attention.sliding_window", CONTEXT)
    }

    /// `attention.max_alibi_bias`.
    pub(crate) fn set_alibi(&mut self, keys: &Keys<'_>) -> Result<()> {
        self.alibi = keys
            .float("attention.max_alibi_bias")?
            .is_some_and(|x| x > 0.0);
        Ok(())
    }

    /// `attention.clamp_kqv`.
    pub(crate) fn set_clamp(&mut self, keys: &Keys<'_>) -> Result<()> {
        self.clamps_qkv = keys.float("attention.clamp_kqv")?.is_some_and(|x| x > 0.0);
        Ok(())
    }

    /// Other head widths on the layers with a window.
    fn set_swa_heads(&mut self, keys: &Keys<'_>) -> Result<()> {
        let k = keys.positive("attention.key_length_swa", WIDTH)?;
        let v = keys.positive("attention.value_length_swa", WIDTH)?;
        for layer in self.layers.iter_mut().filter(|l| l.is_swa) {
            layer.n_embd_head_k = k.unwrap_or(layer.n_embd_head_k);
            layer.n_embd_head_v = v.unwrap_or(layer.n_embd_head_v);
        }
        Ok(())
    }

    /// M-RoPE where the file has sections for it (`use_mrope`).
    pub(crate) fn set_mrope(&mut self, keys: &Keys<'_>) -> Result<()> {
        let sections = keys.per_layer("rope.dimension_sections", 2, i64::MAX)?;
        if sections.is_some_and(|s| s.iter().all(|&n| n > 0)) {
            self.n_pos_per_embd = 4;
        }
        Ok(())
    }

    /// The indexer of the file, on the layers for which `has_indexer` holds.
    pub(crate) fn set_indexer(
        &mut self,
        keys: &Keys<'_>,
        has_indexer: impl Fn(usize) -> bool,
    ) -> Result<()> {
        self.indexer = Some(Indexer {
            n_head: keys.require("attention.indexer.head_count", HEADS)?,
            head: keys.require("attention.indexer.key_length", WIDTH)?,
            top_k: keys.require("attention.indexer.top_k", CONTEXT)?,
            block: keys.positive("attention.indexer.block_size", CONTEXT)?,
            caches_values: false,
        });
        let main = self.layers.iter_mut().take(self.n_layer_main);
        for (il, layer) in main.enumerate() {
            layer.has_indexer = has_indexer(il);
        }
        Ok(())
    }

    /// Routers are sigmoids where the file does not say.
    pub(crate) fn sigmoid_by_default(&mut self, keys: &Keys<'_>) -> Result<()> {
        let known = keys.positive("expert_gating_func", 16)?.is_some();
        if let Some(moe) = self.moe.as_mut().filter(|_| !known) {
            moe.gating = Gating::Sigmoid;
        }
        Ok(())
    }

    /// Limits of SwiGLU, one a layer; those next to 0 are none.
    pub(crate) fn set_swiglu_clamps(&mut self, keys: &Keys<'_>) -> Result<()> {
        let experts = keys.floats("swiglu_clamp_exp", self.n_layer())?;
        let ffn = keys.floats("swiglu_clamp_shexp", self.n_layer())?;
        for (layer, (experts, ffn)) in self.layers.iter_mut().zip(experts.into_iter().zip(ffn)) {
            (layer.clamps_experts, layer.clamps_ffn) = (experts > 1e-6, ffn > 1e-6);
        }
        Ok(())
    }

    /// Recurrent layers as the file lists them, else all but each `interval`-th.
    pub(crate) fn set_recurrent_layers(&mut self, keys: &Keys<'_>, interval: i64) -> Result<()> {
        let listed = keys.per_layer("attention.recurrent_layers", self.n_layer_all, i64::MAX)?;
        let interval = keys
            .positive("full_attention_interval", LAYERS)?
            .unwrap_or(interval);
        self.set_recurrent(|il, _| match &listed {
            Some(listed) => listed[il] != 0,
            None => (il as i64 + 1) % interval != 0,
        });
        Ok(())
    }

    /// Layers for which `is_recurrent` holds keep a state instead of a KV cache.
    pub(crate) fn set_recurrent(&mut self, is_recurrent: impl Fn(usize, &LayerHparams) -> bool) {
        let main = self.layers.iter_mut().take(self.n_layer_main);
        for (il, layer) in main.enumerate() {
            layer.is_recurrent = is_recurrent(il, layer);
            layer.is_cached = !layer.is_recurrent;
        }
    }
}

fn load_layers(keys: &Keys<'_>, n_layer: usize, n_embd: i64) -> Result<Vec<LayerHparams>> {
    let n_head = keys.per_layer("attention.head_count", n_layer, HEADS)?;
    let n_head = n_head.unwrap_or_else(|| vec![0; n_layer]);
    let n_head_kv = keys.per_layer("attention.head_count_kv", n_layer, HEADS)?;
    let n_head_kv = n_head_kv.unwrap_or_else(|| n_head.clone());
    let width = n_embd / n_head.first().copied().unwrap_or(0).max(1);
    let head_k = keys
        .positive("attention.key_length", WIDTH)?
        .unwrap_or(width);
    let head_v = keys
        .positive("attention.value_length", WIDTH)?
        .unwrap_or(width);
    let n_used = keys.per_layer("expert_used_count", n_layer, EXPERTS)?;
    let n_used = n_used.unwrap_or_else(|| vec![0; n_layer]);
    let n_ff = keys.per_layer("feed_forward_length", n_layer, i64::MAX)?;
    let layer = |(block, ((n_head, n_head_kv), n_expert_used))| LayerHparams {
        block,
        n_head,
        n_head_kv,
        n_embd_head_k: head_k,
        n_embd_head_v: head_v,
        n_ff: n_ff.as_ref().map_or(0, |n_ff| n_ff[block]),
        n_expert_used,
        is_swa: false,
        is_recurrent: false,
        has_rope: true,
        clamps_experts: false,
        clamps_shared_expert: false,
        clamps_ffn: false,
        adds_input: false,
        has_indexer: false,
        is_cached: false,
        compress_ratio: 0,
    };
    let heads = n_head.into_iter().zip(n_head_kv);
    Ok(heads.zip(n_used).enumerate().map(layer).collect())
}

fn load_moe(keys: &Keys<'_>, layers: &[LayerHparams]) -> Result<Option<Moe>> {
    let Some(n_expert) = keys.positive("expert_count", EXPERTS)? else {
        return Ok(None);
    };
    let used = layers.iter().map(|l| l.n_expert_used).max().unwrap_or(0);
    if !(1..=n_expert).contains(&used) {
        return Err(Error::KeyRange {
            key: "expert_used_count".to_string(),
            value: used,
            min: 1,
            max: n_expert,
        });
    }
    let scale = keys.float("expert_weights_scale")?.unwrap_or(0.0);
    Ok(Some(Moe {
        n_expert,
        n_expert_groups: keys.int("expert_group_count", n_expert)?.unwrap_or(0),
        n_group_used: keys.int("expert_group_used_count", n_expert)?.unwrap_or(0),
        scales_weights: scale != 0.0 && scale != 1.0,
        norms_weights: keys.flag("expert_weights_norm")?.unwrap_or(false),
        gating: match keys.int("expert_gating_func", 16)? {
            Some(2) => Gating::Sigmoid,
            Some(3) => Gating::SoftmaxWeight,
            Some(4) => Gating::SqrtSoftplus,
            _ => Gating::Softmax,
        },
    }))
}

fn load_mla(keys: &Keys<'_>) -> Result<Option<Mla>> {
    let Some(key_length) = keys.positive("attention.key_length_mla", WIDTH)? else {
        return Ok(None);
    };
    let n_rot = keys.require("rope.dimension_count", WIDTH)?;
    if n_rot > key_length {
        let key = "rope.dimension_count".to_string();
        return Err(Error::KeyRange {
            key,
            value: n_rot,
            min: 1,
            max: key_length,
        });
    }
    Ok(Some(Mla {
        key_length,
        value_length: keys.require("attention.value_length_mla", WIDTH)?,
        n_rot,
        kv_lora_rank: keys.require("attention.kv_lora_rank", WIDTH)?,
    }))
}

fn load_ssm(keys: &Keys<'_>) -> Result<Option<Ssm>> {
    let Some(d_conv) = keys.positive("ssm.conv_kernel", 1024)? else {
        return Ok(None);
    };
    if keys.positive("kda.head_dim", WIDTH)?.is_some() {
        return Ok(None); // the architecture makes its own
    }
    Ok(Some(Ssm {
        d_conv,
        d_inner: keys.require("ssm.inner_size", WIDTH)?,
        d_state: keys.require("ssm.state_size", WIDTH)?,
        dt_rank: keys.require("ssm.time_step_rank", WIDTH)?,
        n_group: keys.int("ssm.group_count", WIDTH)?.unwrap_or(0),
    }))
}
