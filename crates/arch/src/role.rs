//! What a context is for, where it is not the only one: a target whose tokens are drafted, or a draft
//! beside it.

use vramfit_ggml::{BufferType, Type};

/// The part that a context plays in speculative decoding. The default is none.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Role {
    /// Tokens that are drafted at most; the target verifies them and one more at once, a sequence.
    pub n_draft: u32,
    /// Runs the model's layers for multi-token prediction (`LLAMA_CONTEXT_TYPE_MTP`) instead of the others.
    pub is_mtp: bool,
    /// Copies of a recurrent state that are kept to go back behind tokens that were not taken, a sequence
    /// (`n_rs_seq`).
    pub n_rollback: u32,
    /// The ten most likely tokens are chosen on the device, for this many positions of each sequence
    /// (`n_outputs_max_per_seq`); 0: on the host.
    pub n_sampled: u32,
    /// Layers whose inputs are results (`llama_set_embeddings_layer_inp`); the number of layers stands for the
    /// last one's output.
    pub tapped: Vec<usize>,
    /// The last layer's output is a result, too (`llama_set_embeddings_nextn` before graphs are reserved), where that
    /// is not one anyway.
    pub gives_states: bool,
    /// What a draft borrows of its target (`ctx_other`).
    pub target: Option<Lent>,
}

/// What a target lends to a draft.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lent {
    /// Its token embeddings.
    pub token_embd: Option<LentTensor>,
    /// Its output matrix.
    pub output: Option<LentTensor>,
    /// The scale of that.
    pub output_scale: Option<LentTensor>,
    /// K and V of its last layer with a sliding window and of its last one.
    pub caches: Option<LentCaches>,
}

/// A tensor in memory that another context has taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LentTensor {
    /// Element type.
    pub ty: Type,
    /// Elements.
    pub ne: [i64; 4],
    /// Where it lies, by the borrower's devices.
    pub buffer: BufferType,
}

/// The caches of two layers of the target: with a sliding window, and without.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LentCaches {
    /// K and V of the layer with a window.
    pub window: [LentTensor; 2],
    /// K and V of the layer without.
    pub full: [LentTensor; 2],
}
