//! What every model's graph is made of (`llm_graph_context` in `llama-graph.cpp`): weights, norms,
//! linear maps, inputs and the head. The blocks are in the modules below.

mod attention;
mod ffn;
mod hyper;
mod indexer;
mod inputs;
mod msa;
mod mtp;
mod pooling;
mod recurrent;
mod sampling;
mod scales;

use crate::adapter::LoraTensor;
use crate::cache::{CacheKind, cache_tensor};
use crate::hparams::Hparams;
use crate::model::Model;
use crate::models::Rows;
use crate::names::{Global, Kind, Part};
use crate::params::{ContextParams, FusedOp};
use crate::placement::WeightMap;
use crate::role::LentTensor;
use crate::{Error, Result};
use indexer::IndexInput;
use inputs::AttnInput;
use msa::MsaInput;
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use vramfit_ggml::{BufferType, Flags, Graph, Label, Op, TensorId, Type};

pub use attention::Qkv;
pub use ffn::{Bank, Ffn, MoeOptions};
pub use hyper::HcWeights;
pub use pooling::RankHead;
pub(crate) use recurrent::floats;
pub use scales::Scale;

/// Which normalisation a model uses throughout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Norm {
    /// By the root mean square.
    Rms,
    /// By mean and variance, with a bias.
    Layer,
    /// By mean and variance of a group of channels, over all tokens.
    Group,
}

impl Norm {
    const fn op(self) -> Op {
        match self {
            Norm::Rms => Op::RmsNorm,
            Norm::Layer => Op::Norm,
            Norm::Group => Op::GroupNorm,
        }
    }
}

/// Where the scale of a matrix (`.scale`) is multiplied in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScaleAt {
    /// Right behind the product.
    Product,
    /// Behind what adapters add.
    Adapted,
    /// Behind the bias, too.
    Biased,
}

/// The batch that a graph is built for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Batch {
    /// Tokens; a multiple of the sequences.
    pub n_tokens: i64,
    /// Tokens whose logits are wanted.
    pub n_outputs: i64,
    /// Sequences.
    pub n_seqs: i64,
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

    // ---- weights ----

    /// The weight with index `index` where it would lie in `home` by itself.
    fn placed_weight(&mut self, index: usize, home: BufferType) -> TensorId {
        let buffer = self.weights.graph_buffer(self.model, index, home, false);
        self.placed_in(index, buffer)
    }

    fn placed_in(&mut self, index: usize, buffer: BufferType) -> TensorId {
        if let Some(t) = self.placed[index] {
            if self.graph[t].buffer == Some(buffer) {
                return t;
            }
            let same =
                |&&(i, t): &&(usize, TensorId)| i == index && self.graph[t].buffer == Some(buffer);
            if let Some(&(_, t)) = self.copies.iter().find(same) {
                return t;
            }
        }
        let t = self.new_weight(index, buffer);
        match &mut self.placed[index] {
            Some(_) => self.copies.push((index, t)),
            empty => *empty = Some(t),
        }
        t
    }

    fn new_weight(&mut self, index: usize, buffer: BufferType) -> TensorId {
        let tensor = &self.model.tensors[index];
        let t = self
            .graph
            .placed(Label::Weight(index as u32), tensor.ty, tensor.ne, buffer);
        self.graph[t].flags.insert(Flags::WEIGHT);
        t
    }

    fn missing(&mut self, name: String) -> TensorId {
        self.fail_with(Error::MissingTensor { name })
    }

    /// Keeps the first error; the graph goes on with a tensor of nothing.
    fn fail_with(&mut self, error: Error) -> TensorId {
        self.error.get_or_insert(error);
        self.graph.new_tensor(Op::None, Type::F32, [1; 4], &[])
    }

    /// A tensor of layer `il`, if the model has it.
    pub fn optional(&mut self, il: usize, kind: Kind, part: Part) -> Option<TensorId> {
        let block = self.hp.layers[il].block;
        let index = self.model.layer_tensor(block, kind, part)?;
        Some(self.placed_weight(index, self.weights.layer(block)))
    }

    /// The weight `kind` of layer `il`.
    pub fn weight(&mut self, il: usize, kind: Kind) -> TensorId {
        self.part(il, kind, Part::Weight)
    }

    /// A part of the weight `kind` of layer `il`.
    pub fn part(&mut self, il: usize, kind: Kind, part: Part) -> TensorId {
        match self.optional(il, kind, part) {
            Some(t) => t,
            None => self.missing(kind.file_name(il, part)),
        }
    }

    /// The bias `kind` of layer `il`.
    pub fn bias(&mut self, il: usize, kind: Kind) -> TensorId {
        self.part(il, kind, Part::Bias)
    }

    /// Whether layer `il` has the weight `kind`.
    pub fn has(&self, il: usize, kind: Kind) -> bool {
        self.model.has(self.hp.layers[il].block, kind)
    }

    fn global_in(&mut self, global: Global, part: Part, home: BufferType) -> Option<TensorId> {
        let index = self.model.global_tensor(global, part)?;
        Some(self.placed_weight(index, home))
    }

    /// A tensor of the input layer (host memory).
    pub fn input_weight(&mut self, global: Global) -> Option<TensorId> {
        self.global_in(global, Part::Weight, BufferType::HOST)
    }

    /// A tensor outside the layers that lies with layer `il`.
    pub fn global_of_layer(&mut self, global: Global, part: Part, il: usize) -> Option<TensorId> {
        self.global_in(global, part, self.weights.layer(self.hp.layers[il].block))
    }

    /// A tensor of the output layer.
    pub fn output_weight(&mut self, global: Global, part: Part) -> Option<TensorId> {
        self.global_in(global, part, self.weights.output())
    }

    /// A weight outside the layers that the model cannot do without.
    pub fn required(&mut self, global: Global, found: Option<TensorId>) -> TensorId {
        found.unwrap_or_else(|| self.missing(format!("{}.weight", global.name())))
    }

    /// The memory tensor of layer `il` that holds `kind`.
    pub fn cache(&mut self, il: usize, kind: CacheKind) -> TensorId {
        if let Some(t) = self.caches[il][kind as usize] {
            return t;
        }
        if let Some(lent) = self.lent_cache(il, kind) {
            let label = Label::Layer(kind.name(), il as u32);
            let t = self.graph.placed(label, lent.ty, lent.ne, lent.buffer);
            // One tensor for all layers of its sort.
            let is_swa = self.hp.layers[il].is_swa;
            for (cache, layer) in self.caches.iter_mut().zip(&self.hp.layers) {
                if layer.is_swa == is_swa {
                    cache[kind as usize] = Some(t);
                }
            }
            return t;
        }
        let Some(tensor) = cache_tensor(self.hp, self.cp, il, kind) else {
            return self.missing(format!("{} of layer {il}", kind.name()));
        };
        let buffer = if self.cp.offload_kqv {
            self.weights.layer(il)
        } else {
            BufferType::HOST
        };
        let label = Label::Layer(kind.name(), il as u32);
        let t = self.graph.placed(label, tensor.ty, tensor.ne, buffer);
        self.caches[il][kind as usize] = Some(t);
        t
    }

    /// K or V of the target, where layer `il` attends to that.
    fn lent_cache(&self, il: usize, kind: CacheKind) -> Option<LentTensor> {
        let caches = self.cp.role.target.as_ref()?.caches.as_ref()?;
        let [k, v] = match self.hp.layers.get(il)?.is_swa {
            true => caches.window,
            false => caches.full,
        };
        match kind {
            CacheKind::K => Some(k),
            CacheKind::V => Some(v),
            _ => None,
        }
    }

    // ---- steps ----

    /// Normalises `x` and multiplies by `w`, adds `b`, where there are any (`build_norm`). With
    /// a layer given, llama.cpp keeps the normalisation on that layer's device.
    pub fn norm_with(
        &mut self,
        x: TensorId,
        w: Option<TensorId>,
        b: Option<TensorId>,
        il: Option<usize>,
    ) -> TensorId {
        let norm = self.hp.norm.unwrap_or(self.model.architecture.norm);
        self.norm_by(norm, x, w, b, il)
    }

    /// [`norm_with`](Self::norm_with) by another norm than the model's usual one.
    pub fn norm_by(
        &mut self,
        norm: Norm,
        x: TensorId,
        w: Option<TensorId>,
        b: Option<TensorId>,
        il: Option<usize>,
    ) -> TensorId {
        let mut cur = match norm {
            Norm::Group => self.group_norm(x),
            _ => self.graph.map(norm.op(), x),
        };
        if let Some(il) = il
            && (w.is_some() || b.is_some())
        {
            self.pin_to_layer(cur, "norm", il);
        }
        if let Some(w) = w {
            cur = self.mul(cur, w);
        }
        if let Some(b) = b {
            cur = self.add(cur, b);
        }
        cur
    }

    /// Keeps a step that llama.cpp calls `name`, "norm" or "l_last", on its layer's device
    /// (`graph_get_cb`): for few tokens, or where all layers are on devices.
    pub fn pin_to_layer(&mut self, t: TensorId, name: &'static str, il: usize) {
        if self.n_tokens < 32 || self.weights.full_offload {
            self.graph[t].pin = Some(self.weights.backend(self.weights.layer(il)));
            self.graph.name_layer(t, name, il);
        }
    }

    /// Groups of the channels in the columns of `x`.
    fn group_norm(&mut self, x: TensorId) -> TensorId {
        let [n, channels, ..] = self.graph[x].ne;
        let cur = self.reshape(x, [n, 1, channels, 1]);
        let cur = self.graph.map(Norm::Group.op(), cur);
        self.reshape(cur, [n, channels, 1, 1])
    }

    /// The normalisation `kind` of layer `il`, with weight and bias as the model has them.
    pub fn norm(&mut self, x: TensorId, kind: Kind, il: usize) -> TensorId {
        let w = self.optional(il, kind, Part::Weight);
        let b = self.optional(il, kind, Part::Bias);
        let cur = self.norm_with(x, w, b, Some(il));
        self.graph.name_layer(cur, kind.name(), il);
        cur
    }

    /// [`norm`](Self::norm) by mean and variance, whatever the model's other norms are.
    pub fn layer_norm(&mut self, x: TensorId, kind: Kind, il: usize) -> TensorId {
        let w = self.optional(il, kind, Part::Weight);
        let b = self.optional(il, kind, Part::Bias);
        self.norm_by(Norm::Layer, x, w, b, Some(il))
    }

    /// [`norm`](Self::norm) that llama.cpp does not tie to its layer's device.
    pub fn norm_unpinned(&mut self, x: TensorId, kind: Kind, il: usize) -> TensorId {
        let w = self.optional(il, kind, Part::Weight);
        let cur = self.norm_with(x, w, None, None);
        self.graph.name_layer(cur, kind.name(), il);
        cur
    }

    /// Normalisation by the root mean square without a weight.
    pub fn rms(&mut self, x: TensorId) -> TensorId {
        self.graph.map(Op::RmsNorm, x)
    }

    /// `W x + b`, bias and scale as the model has them.
    pub fn linear(&mut self, x: TensorId, kind: Kind, il: usize) -> TensorId {
        let architecture = self.model.architecture;
        let mut unadapted = architecture.unadapted.iter();
        if unadapted.any(|kinds| kinds.contains(&kind)) {
            return self.linear_unadapted(x, kind, il);
        }
        let at = match kind {
            Kind::AttnOutput if architecture.sums_in_f32 => ScaleAt::Adapted,
            Kind::FfnUp | Kind::FfnGate | Kind::FfnDown => ScaleAt::Biased,
            Kind::FfnUpShexp | Kind::FfnGateShexp | Kind::FfnDownShexp => ScaleAt::Biased,
            _ => ScaleAt::Product,
        };
        self.linear_scaled(x, kind, il, at)
    }

    /// [`linear`](Self::linear) with the matrix's scale in a place of its own.
    pub fn linear_scaled(&mut self, x: TensorId, kind: Kind, il: usize, at: ScaleAt) -> TensorId {
        let w = self.weight(il, kind);
        let scale = self.scale_of(il, kind);
        let scale_at = |place| scale.filter(|_| at == place);
        let mut cur = self.adapted_scaled(w, x, None, scale_at(ScaleAt::Product));
        let sums = matches!(kind, Kind::AttnOutput | Kind::FfnDown | Kind::FfnDownShexp);
        if sums && self.model.architecture.sums_in_f32 {
            self.graph[cur].flags.insert(Flags::PREC_F32);
        }
        if let Some(scale) = scale_at(ScaleAt::Adapted) {
            cur = self.mul(cur, scale);
        }
        if let Some(bias) = self.bias_of(il, kind) {
            cur = self.add(cur, bias);
        }
        if let Some(scale) = scale_at(ScaleAt::Biased) {
            cur = self.mul(cur, scale);
        }
        self.graph.name_layer(cur, kind.name(), il);
        cur
    }

    /// `W x + b` of a matrix that adapters and scales leave alone.
    pub fn linear_unadapted(&mut self, x: TensorId, kind: Kind, il: usize) -> TensorId {
        let w = self.weight(il, kind);
        let mut cur = self.mul_mat(w, x);
        if let Some(bias) = self.bias_of(il, kind) {
            cur = self.add(cur, bias);
        }
        self.graph.name_layer(cur, kind.name(), il);
        cur
    }

    /// The bias of a matrix, where the graph adds it.
    fn bias_of(&mut self, il: usize, kind: Kind) -> Option<TensorId> {
        let of_block = matches!(
            kind,
            Kind::AttnOutput | Kind::FfnUp | Kind::FfnGate | Kind::FfnDown
        );
        let is_read = self.model.architecture.has_block_biases || !of_block;
        self.optional(il, kind, Part::Bias).filter(|_| is_read)
    }

    /// `build_lora_mm`, `build_lora_mm_id`: `W x`, of the experts `ids` if there are any, and what adapters add.
    pub(crate) fn adapted(&mut self, w: TensorId, x: TensorId, ids: Option<TensorId>) -> TensorId {
        self.adapted_scaled(w, x, ids, None)
    }

    /// [`adapted`](Self::adapted) with the scale of `W`.
    pub(crate) fn adapted_scaled(
        &mut self,
        w: TensorId,
        x: TensorId,
        ids: Option<TensorId>,
        scale: Option<TensorId>,
    ) -> TensorId {
        let product = |g: &mut Self, w, x| match ids {
            Some(ids) => g.mul_mat_id(w, x, ids),
            None => g.mul_mat(w, x),
        };
        let mut cur = product(self, w, x);
        if let Some(scale) = scale {
            cur = self.mul(cur, scale);
        }
        for lora in 0..self.cp.adapters.loras.len() {
            let Some([a, b]) = self.lora_pair(lora, w) else {
                continue;
            };
            let low = product(self, a, x);
            let added = product(self, b, low);
            let added = self.scale(added);
            cur = self.add(cur, added);
        }
        cur
    }

    /// A and B of adapter `lora` for the weight `w`, in the memory of the weight.
    pub(crate) fn lora_pair(&mut self, lora: usize, w: TensorId) -> Option<[TensorId; 2]> {
        let Label::Weight(index) = self.graph.label(w) else {
            return None;
        };
        if let Some(&pair) = self.lora_pairs.get(&(lora, index)) {
            return Some(pair); // a block that runs several times
        }
        let adapter = self.cp.adapters.loras.get(lora);
        let pair = adapter
            .filter(|l| l.is_applied)?
            .pairs
            .get(&(index as usize))?;
        let buffer = match self.graph[w].buffer? {
            BufferType::HOST_REPACKED => BufferType::HOST,
            buffer => buffer,
        };
        let place = |t: LoraTensor| self.graph.placed(Label::Step("lora"), t.ty, t.ne, buffer);
        let pair = pair.map(place);
        self.lora_pairs.insert((lora, index), pair);
        Some(pair)
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

    // ---- output ----

    /// The normalisation before the output matrix.
    pub fn final_norm(&mut self, x: TensorId) -> TensorId {
        let w = match self.output_weight(Global::OutputNorm, Part::Weight) {
            None => self.output_weight(Global::TokenEmbdNorm, Part::Weight),
            w => w,
        };
        let b = self.output_weight(Global::OutputNorm, Part::Bias);
        let cur = self.norm_with(x, w, b, None);
        self.graph.name_step(cur, "result_norm");
        cur
    }

    /// The output matrix over `x`; `embd` is what embeddings are taken from.
    pub fn lm_head(&mut self, embd: TensorId, x: TensorId) {
        self.set_embeddings(embd);
        if self.cp.embeddings && self.model.architecture.embeddings_skip_head {
            self.expand(x);
            return;
        }
        let logits = self.logits(x);
        self.graph.name_step(logits, "result_output");
        self.set_logits(logits);
    }

    /// The end of a graph: `logits` are its result.
    pub fn set_logits(&mut self, logits: TensorId) {
        self.set_output(logits);
        self.logits = Some(logits);
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

    /// The output matrix over `x`, with the bias, scale and cap that the model has.
    pub fn logits(&mut self, x: TensorId) -> TensorId {
        let w = self.output_matrix();
        let mut cur = match self.model.architecture.output_is_unadapted {
            true => self.mul_mat(w, x),
            false => {
                let scale = self.output_scale();
                self.adapted_scaled(w, x, None, scale)
            }
        };
        let bias = self.output_weight(Global::Output, Part::Bias);
        if let Some(b) = bias.filter(|_| self.model.architecture.has_output_bias) {
            cur = self.add(cur, b);
        }
        self.scaled_and_capped(cur)
    }

    /// Logits with the scale and the cap that the model has.
    pub fn scaled_and_capped(&mut self, mut logits: TensorId) -> TensorId {
        if self.hp.scales_logits {
            logits = self.scale(logits);
        }
        if self.hp.final_softcap {
            logits = self.softcap(logits);
        }
        logits
    }

    /// `tanh(x / c) * c`.
    pub fn softcap(&mut self, x: TensorId) -> TensorId {
        let x = self.scale(x);
        let x = self.unary(vramfit_ggml::Unary::Tanh, x);
        self.scale(x)
    }

    /// Rows of the output matrix.
    pub fn n_output_rows(&self) -> i64 {
        let model = self.model;
        let index = model
            .global_tensor(Global::Output, Part::Weight)
            .or_else(|| model.global_tensor(Global::TokenEmbd, Part::Weight));
        index.map_or(self.hp.n_vocab, |i| model.tensors[i].ne[1])
    }

    /// The output matrix once more.
    fn output_copy(&mut self) -> Option<TensorId> {
        let index = self.model.global_tensor(Global::Output, Part::Weight)?;
        let home = self.weights.output();
        let buffer = self.weights.graph_buffer(self.model, index, home, false);
        Some(self.new_weight(index, buffer))
    }

    fn output_matrix(&mut self) -> TensorId {
        if let Some(w) = self.output_weight(Global::Output, Part::Weight) {
            return w;
        }
        if self.model.architecture.embd_is_output {
            let table = self.input_weight(Global::TokenEmbd);
            return self.required(Global::TokenEmbd, table);
        }
        let Some(index) = self.model.global_tensor(Global::TokenEmbd, Part::Weight) else {
            return self.missing("token_embd.weight".to_string());
        };
        let buffer = self
            .weights
            .graph_buffer(self.model, index, self.weights.output(), true);
        if self.model.architecture.makes_output_first {
            return self.new_weight(index, buffer); // never the embedding itself
        }
        self.placed_in(index, buffer)
    }

    /// `ggml_set_output`: read after the graph has run, and with it what it is a view of.
    pub fn mark_output(&mut self, t: TensorId) {
        let mut next = Some(t);
        while let Some(t) = next {
            self.graph[t].flags.insert(Flags::OUTPUT);
            next = self.graph[t].view_src();
        }
    }

    /// Marks what embeddings are taken from.
    pub fn set_embeddings(&mut self, embd: TensorId) {
        self.mark_output(embd);
        self.embd = Some(embd);
    }

    /// The end of an encoder: `embd` is the result, there are no logits.
    pub fn end_in_embeddings(&mut self, embd: TensorId) {
        self.set_embeddings(embd);
        self.set_output(embd);
    }

    /// Marks a result that is read after the graph has run.
    pub fn set_output(&mut self, t: TensorId) {
        self.expand(t);
        self.mark_output(t);
    }
}
