//! What llama.cpp itself refuses.

use vramfit_ggml::Type;

/// llama.cpp v0.5.0 does not start with these settings. The text names its reason and the way out.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// `quantized V cache requires flash_attn to be enabled`.
    #[error("a V cache of {type_v} needs flash attention: use -fa on, or -ctv f16")]
    QuantizedVWithoutFlashAttention {
        /// Type of the V cache.
        type_v: Type,
    },
    /// `model does not support different K and V cache types`.
    #[error(
        "this model keeps K and V in one cache, but their types are {type_k} and {type_v}: use the same for -ctk and -ctv"
    )]
    MixedMlaTypes {
        /// Type of the K cache.
        type_k: Type,
        /// Type of the V cache.
        type_v: Type,
    },
    /// `cache type with block size does not divide n_embd_head`.
    #[error(
        "a {which} cache of {ty} comes in blocks of {block}, which do not divide {width}: use f16"
    )]
    CacheBlockSize {
        /// K or V.
        which: &'static str,
        /// Type of that cache.
        ty: Type,
        /// Elements a block.
        block: i64,
        /// Elements of a head or row.
        width: i64,
    },
    /// `n_seq_max must be <= 256`.
    #[error("{n_seq_max} sequences are more than llama.cpp's 256: use a smaller -np")]
    TooManySequences {
        /// Sequences asked for.
        n_seq_max: u32,
    },
    /// A context or batch of nothing.
    #[error(
        "nothing can be computed with n_ctx {n_ctx} and n_ubatch {n_ubatch}: give -c, -b and -ub above 0"
    )]
    EmptyContext {
        /// Context size.
        n_ctx: u64,
        /// Physical batch.
        n_ubatch: u64,
    },
    /// `GGML_ASSERT(n_outputs_max <= cparams.n_outputs_max)`: an abort.
    #[error(
        "llama.cpp would abort: it needs an output for each of {n_seq_max} sequences and may have {n_outputs_max}: use a -b of at least -np"
    )]
    FewOutputs {
        /// Sequences.
        n_seq_max: i64,
        /// Outputs of a batch.
        n_outputs_max: i64,
    },
    /// `GGML_ASSERT(graph->n_nodes + graph->n_leafs <= hash_set.size)`: an abort.
    #[error(
        "llama.cpp would abort: the graph has {n_tensors} tensors where it has room for {room}: use a larger -ub or fewer -np"
    )]
    GraphTooLarge {
        /// Nodes and leafs of the graph.
        n_tensors: u64,
        /// Room that llama.cpp reserves.
        room: u64,
    },
    /// `failed to allocate buffer for kv cache`: a buffer of no bytes counts as a failure.
    #[error(
        "none of the layers on {device} has attention, and llama.cpp cannot make a KV cache of nothing: put other layers there (-ts)"
    )]
    EmptyCache {
        /// The device, or the host.
        device: String,
    },
    /// The draft reads tensors of the target that none of its devices holds: an abort.
    #[error(
        "llama.cpp would abort: the draft reads tensors of its target on {device}, which is not among the draft's devices: leave out -devd"
    )]
    LentElsewhere {
        /// The device, by the target's order.
        device: String,
    },
    /// The same where the target's tensors are shared out: an abort.
    #[error(
        "llama.cpp would abort: the draft reads tensors of its target, which -sm tensor shares out over other devices than the draft's: leave out -devd"
    )]
    LentShared,
    /// A draft for Gemma 4 without its target.
    #[error(
        "this draft attends to the caches of Gemma 4's last two layers: give a Gemma 4 as the model and this file with -md"
    )]
    NeedsGemma4,
    /// No layers for multi-token prediction.
    #[error("this model has no layers for multi-token prediction: choose another --spec-type")]
    NoMtp,
    /// `build_input_k_rot` divides by 0 where no layer has no window: a crash.
    #[error(
        "llama.cpp would crash: a context for the layers for multi-token prediction is not made where heads are as wide as the indexer's, {width}: choose another --spec-type"
    )]
    IndexerWideMtp {
        /// Of a head.
        width: i64,
    },
    /// `DEEPSEEK4 MTP currently only supports a single MTP block`: an abort.
    #[error(
        "llama.cpp would abort: of DeepSeek-V4 it runs one layer for multi-token prediction, and this model has {n}: choose another --spec-type"
    )]
    OneMtpLayer {
        /// Of the model.
        n: usize,
    },
    /// `GGML_ASSERT(inp_dsv4 || ratio == 0)`: an abort.
    #[error(
        "llama.cpp would abort: the layer for multi-token prediction compresses {ratio} tokens to one, which it cannot in a context of its own: choose another --spec-type"
    )]
    CompressedMtp {
        /// Tokens of a cell.
        ratio: i64,
    },
    /// `SPLIT_MODE_TENSOR not implemented for architecture`.
    #[error(
        "llama.cpp does not share out the tensors of '{architecture}' over devices: use -sm layer"
    )]
    TensorSplitArchitecture {
        /// `general.architecture`.
        architecture: String,
    },
    /// Memory of one device among those that are one to the scheduler: an abort.
    #[error(
        "llama.cpp would abort: with -sm tensor an override can name the CPU, but no GPU: use -ot ..=CPU, or -sm layer"
    )]
    TensorSplitOverride,
    /// `SPLIT_MODE_TENSOR needs >= 1 devices`.
    #[error("-sm tensor needs a GPU: use -sm layer")]
    TensorSplitWithoutDevice,
    /// `SPLIT_MODE_TENSOR requires flash_attn to be enabled`.
    #[error("-sm tensor needs flash attention: use -fa on, or -sm layer")]
    TensorSplitWithoutFlashAttention,
    /// A tensor override to a device that is not used.
    #[error(
        "a tensor override names {device}, which is not among the devices in use: add it to -dev, or override to another"
    )]
    OverrideDevice {
        /// The device, as named.
        device: String,
    },
}
