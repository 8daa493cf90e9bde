//! A graph under construction and its way through the layers (`llm_graph_context` in `llama-graph.cpp`). What layers are
//! made of is in the modules below: weights, norms, linear maps, attention, feed-forward blocks, inputs and the head.

mod attention;
mod ffn;
mod head;
mod hyper;
mod indexer;
mod inputs;
mod linear;
mod msa;
mod mtp;
mod norm;
mod pooling;
mod qkv;
mod recurrent;
mod sampling;
mod scales;
mod weights;

use crate::cache::CacheKind;
use crate::hparams::Hparams;
use crate::model::Model;
use crate::models::Rows;
use crate::names::{Global, Part};
use crate::params::{ContextParams, FusedOp, pad_256};
use crate::placement::WeightMap;
use crate::{Error, Result};
use indexer::IndexInput;
use inputs::AttnInput;
use msa::MsaInput;
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use vramfit_ggml::{Graph, Label, TensorId, Type};

pub use ffn::{Bank, Ffn, MoeOptions};
pub use hyper::HcWeights;
pub use linear::ScaleAt;
pub use norm::Norm;
pub use pooling::RankHead;
pub use qkv::Qkv;
pub(crate) use recurrent::floats;
pub use scales::Scale;

/// The batch that a graph is built for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Batch {
    /// Tokens; a multiple of the sequences.
    pub n_tokens: i64,
    /// Tokens whose logits are wanted.
    pub n_outputs: i64,
    /// Sequences.
    pub n_seqs: i64,
    /// Cells of each cache that hold something once the batch is in: of the caches no more than that
    /// is read. [`Batch::FULL`] for all.
    pub n_filled: i64,
}

impl Batch {
    /// Full caches, as the engine reserves for them.
    pub const FULL: i64 = i64::MAX;

    /// A token of each of `n_seqs` sequences, with its output.
    pub const fn generation(n_seqs: i64) -> Batch {
        Batch {
            n_tokens: n_seqs,
            n_outputs: n_seqs,
            n_seqs,
            n_filled: Batch::FULL,
        }
    }
}

/// A built graph and what others need to know of it.
pub struct BuiltGraph {
    /// The graph.
    pub graph: Graph,
    /// Its fused operations and their layers.
    pub fused: Vec<(FusedOp, TensorId, usize)>,
}

/// Builds the graph of `model` for one batch.
pub fn build(
    model: &Model,
    cparams: &ContextParams,
    weights: &WeightMap,
    batch: Batch,
) -> Result<BuiltGraph> {
    let Some(graph) = model.architecture.graph else {
        return Err(Error::UnknownArchitecture {
            name: model.architecture_name.clone(),
        });
    };
    let mut g = LlmGraph::new(model, cparams, weights, batch);
    match model.architecture.mtp.filter(|_| cparams.role.is_mtp) {
        Some(mtp) => mtp(&mut g),
        None => graph(&mut g),
    }
    g.pool();
    g.sample();
    g.finish()
}

/// A graph under construction. ggml's constructors ([`Graph`]) are there by dereference.
pub struct LlmGraph<'a> {
    graph: Graph,
    /// The model.
    pub model: &'a Model,
    /// Its shape.
    pub hp: &'a Hparams,
    /// Settings of the context.
    pub cp: &'a ContextParams,
    weights: &'a WeightMap,
    /// Tokens of the batch.
    pub n_tokens: i64,
    /// Tokens whose logits are wanted.
    pub n_outputs: i64,
    /// Sequences of the batch; the memory may hold more.
    pub n_seqs: i64,
    n_filled: i64,
    /// Positions.
    pub pos: Option<TensorId>,
    tokens: Option<TensorId>,
    input_embd: Option<TensorId>,
    out_ids: Option<TensorId>,
    attn_inputs: [Option<AttnInput>; 2],
    index_input: Option<IndexInput>,
    no_cache_masks: [Option<TensorId>; 2],
    msa_input: Option<MsaInput>,
    state_ids: Option<[TensorId; 3]>,
    placed: Vec<Option<TensorId>>,
    copies: Vec<(usize, TensorId)>,
    caches: Vec<[Option<TensorId>; CacheKind::COUNT]>,
    /// Its fused operations and their layers.
    pub fused: Vec<(FusedOp, TensorId, usize)>,
    lora_pairs: BTreeMap<(usize, u32), [TensorId; 2]>,
    embd: Option<TensorId>,
    logits: Option<TensorId>,
    n_tapped: usize,
    error: Option<Error>,
}

impl Deref for LlmGraph<'_> {
    type Target = Graph;
    fn deref(&self) -> &Graph {
        &self.graph
    }
}

impl DerefMut for LlmGraph<'_> {
    fn deref_mut(&mut self) -> &mut Graph {
        &mut self.graph
    }
}

impl<'a> LlmGraph<'a> {
    fn new(
        model: &'a Model,
        cp: &'a ContextParams,
        weights: &'a WeightMap,
        batch: Batch,
    ) -> LlmGraph<'a> {
        let n_tensors = model.tensors.len();
        LlmGraph {
            graph: Graph::with_capacity(10 * n_tensors + 1024),
            model,
            hp: &model.hparams,
            cp,
            weights,
            n_tokens: batch.n_tokens,
            n_outputs: batch.n_outputs,
            n_seqs: batch.n_seqs,
            n_filled: batch.n_filled,
            pos: None,
            tokens: None,
            input_embd: None,
            out_ids: None,
            attn_inputs: [None, None],
            index_input: None,
            no_cache_masks: [None, None],
            msa_input: None,
            state_ids: None,
            placed: vec![None; n_tensors],
            copies: Vec::new(),
            caches: vec![[None; CacheKind::COUNT]; model.hparams.layers.len()],
            fused: Vec::new(),
            lora_pairs: BTreeMap::new(),
            embd: None,
            logits: None,
            n_tapped: 0,
            error: None,
        }
    }

    fn finish(self) -> Result<BuiltGraph> {
        if let Some(error) = self.error {
            return Err(error);
        }
        if self.n_tapped < self.cp.role.tapped.len() {
            return Err(Error::NotTapped {
                architecture: self.model.architecture_name.clone(),
            });
        }
        if let Some(error) = self.graph.error() {
            return Err(error.clone().into());
        }
        Ok(BuiltGraph {
            graph: self.graph,
            fused: self.fused,
        })
    }

    /// Tokens of one sequence.
    pub fn n_seq_tokens(&self) -> i64 {
        self.n_tokens / self.n_seqs.max(1)
    }

    /// Separate KV caches that the batch reads: one of each of its sequences.
    pub fn n_stream(&self) -> i64 {
        if self.cp.kv_unified { 1 } else { self.n_seqs }
    }

    /// Cells that are read of a cache of `n_cells` (`llama_kv_cache::get_n_kv`).
    pub fn n_read(&self, n_cells: i64) -> i64 {
        n_cells.min(pad_256(self.n_filled.max(1)))
    }

    /// `build_cvec`: the control vector behind layer `il`.
    pub fn control(&mut self, x: TensorId, il: usize) -> TensorId {
        if !self.cp.adapters.controls(il) {
            return x;
        }
        let (buffer, ne) = (self.weights.layer(il), [self.hp.n_embd, 1, 1, 1]);
        let direction = self
            .graph
            .placed(Label::Layer("cvec", il as u32), Type::F32, ne, buffer);
        self.add(x, direction)
    }

    /// Rotary position embedding.
    pub fn rotate(&mut self, x: TensorId, factors: Option<TensorId>) -> TensorId {
        match self.pos {
            Some(pos) => self.rope(x, pos, factors),
            None => x,
        }
    }

    /// Frequency factors of RoPE for layer `il`, if the model has any.
    pub fn rope_factors(&mut self, il: usize) -> Option<TensorId> {
        let stretched = self.cp.n_ctx_seq > self.hp.n_ctx_orig_yarn;
        let by_length = if stretched {
            Global::RopeFactorsLong
        } else {
            Global::RopeFactorsShort
        };
        self.global_of_layer(Global::RopeFreqs, Part::Weight, il)
            .or_else(|| self.global_of_layer(by_length, Part::Weight, il))
    }

    /// Behind the last layer only the tokens with wanted logits go on.
    pub fn last_rows(&mut self, il: usize, x: TensorId) -> TensorId {
        let crops = self.model.architecture.rows == Rows::InLastLayer;
        if crops && il + 1 == self.hp.n_layer() {
            self.output_rows(x)
        } else {
            x
        }
    }

    /// The rows of tokens with wanted logits.
    pub fn output_rows(&mut self, x: TensorId) -> TensorId {
        match self.out_ids {
            Some(ids) => self.get_rows(x, ids),
            None => x,
        }
    }

    /// Runs `layer` for each layer, from the embedding to the head.
    pub fn layers(&mut self, x: TensorId, layer: impl Fn(&mut Self, TensorId, usize) -> TensorId) {
        let embd = self.layers_and_norm(x, layer);
        self.lm_head(embd, embd);
    }

    /// [`layers`](Self::layers) without the head.
    pub fn layers_and_norm(
        &mut self,
        mut x: TensorId,
        layer: impl Fn(&mut Self, TensorId, usize) -> TensorId,
    ) -> TensorId {
        for il in 0..self.hp.n_layer() {
            self.tap(x, il);
            x = layer(self, x, il);
            if self.model.architecture.controls_layers {
                x = self.control(x, il);
            }
            if self.hp.layers[il].adds_input {
                x = self.add_input_slice(x);
            }
        }
        let rows = self.model.architecture.rows;
        if rows == Rows::BehindLayers {
            self.mark_output(x);
            x = self.output_rows(x);
        }
        let h = self.final_norm(x);
        if rows != Rows::BehindNorm {
            return h;
        }
        self.mark_output(h);
        self.output_rows(h)
    }

    /// What images have for one layer, behind their embedding proper.
    fn add_input_slice(&mut self, x: TensorId) -> TensorId {
        let Some(input) = self.input_embd else {
            return x;
        };
        let (ne, row) = (self[input].ne, self[input].nb[1]);
        let slice = self.view_2d(input, [ne[0], ne[1]], row);
        self.add(x, slice)
    }

    /// The input of layer `il`, a result where a draft reads it.
    pub fn tap(&mut self, x: TensorId, il: usize) {
        let n = self.cp.role.tapped.iter().filter(|&&t| t == il).count();
        if n > 0 && self.model.architecture.taps {
            self.mark_output(x);
            self.n_tapped += n;
        }
    }

    /// Whether a draft reads the input of layer `il`.
    pub fn is_tapped(&self, il: usize) -> bool {
        self.cp.role.tapped.contains(&il)
    }
}
