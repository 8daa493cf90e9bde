//! Normalisation (`build_norm`).

use super::LlmGraph;
use crate::names::{Kind, Part};
use vramfit_ggml::{Op, TensorId};

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

impl LlmGraph<'_> {
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
}
