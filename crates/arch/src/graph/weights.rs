//! The weights and caches that a graph reads, each placed where llama.cpp has it.

use super::LlmGraph;
use crate::Error;
use crate::cache::{CacheKind, cache_tensor};
use crate::names::{Global, Kind, Part};
use crate::role::LentTensor;
use vramfit_ggml::{BufferType, Flags, Label, Op, TensorId, Type};

impl LlmGraph<'_> {
    /// The weight with index `index` where it would lie in `home` by itself.
    pub(super) fn placed_weight(&mut self, index: usize, home: BufferType) -> TensorId {
        let buffer = self.weights.graph_buffer(self.model, index, home, false);
        self.placed_in(index, buffer)
    }

    pub(super) fn placed_in(&mut self, index: usize, buffer: BufferType) -> TensorId {
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

    pub(super) fn new_weight(&mut self, index: usize, buffer: BufferType) -> TensorId {
        let tensor = &self.model.tensors[index];
        let t = self
            .graph
            .placed(Label::Weight(index as u32), tensor.ty, tensor.ne, buffer);
        self.graph[t].flags.insert(Flags::WEIGHT);
        t
    }

    pub(super) fn missing(&mut self, name: String) -> TensorId {
        self.fail_with(Error::MissingTensor { name })
    }

    /// Keeps the first error; the graph goes on with a tensor of nothing.
    pub(super) fn fail_with(&mut self, error: Error) -> TensorId {
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
}
