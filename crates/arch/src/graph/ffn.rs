//! Feed-forward blocks: dense, mixture of experts, shared experts.

use super::LlmGraph;
use crate::hparams::{Gating, Moe};
use crate::names::{Kind, Part};
use vramfit_ggml::{Flags, Glu, Op, TensorId, Unary};

/// Activation of a feed-forward block, dense or of experts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ffn {
    /// SiLU, gated where the layer has a gate.
    Silu,
    /// GELU, gated where the layer has a gate.
    Gelu,
    /// ReLU, gated where the layer has a gate.
    Relu,
    /// Squared ReLU.
    ReluSqr,
    /// xIELU.
    Xielu,
    /// SwiGLU with gate and up in one matrix.
    SwigluFused,
    /// SwiGLU with limits on both sides (Maple).
    SwigluClamp,
    /// Gated SiLU, both sides clamped before they are multiplied (Step 3.5).
    SiluClamped,
    /// gpt-oss's gated SiLU with limits.
    SwigluOai,
    /// Kimi K3's SiLU with soft limits on the gate and, where asked for, on what is gated.
    Situ {
        /// Both are limited.
        limits_up: bool,
    },
    /// GeGLU with gate and up in one matrix.
    GegluFused,
    /// ReGLU with gate and up in one matrix.
    RegluFused,
}

/// How a mixture of experts departs from the file's own settings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MoeOptions {
    /// The router.
    pub gating: Gating,
    /// Weights are made to add up to one.
    pub norms_weights: bool,
    /// Weights go in before the experts, not behind them (Llama 4).
    pub weights_before: bool,
    /// Activation of the experts.
    pub activation: Ffn,
}

/// The matrices of a set of experts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bank {
    /// Into the hidden layer.
    pub up: Kind,
    /// Its gate, if any.
    pub gate: Kind,
    /// Out of it.
    pub down: Kind,
}

impl Bank {
    /// Those of nearly every model.
    pub const ROUTED: Bank = Bank {
        up: Kind::FfnUpExps,
        gate: Kind::FfnGateExps,
        down: Kind::FfnDownExps,
    };
}

impl MoeOptions {
    /// Softmax over all experts.
    pub fn softmax(norms_weights: bool) -> MoeOptions {
        let gating = Gating::Softmax;
        MoeOptions {
            gating,
            norms_weights,
            weights_before: false,
            activation: Ffn::Silu,
        }
    }

    /// As the file says.
    pub fn of_file(moe: &Option<Moe>) -> MoeOptions {
        let (gating, norms) = moe
            .as_ref()
            .map_or((Gating::Softmax, false), |m| (m.gating, m.norms_weights));
        MoeOptions {
            gating,
            ..MoeOptions::softmax(norms)
        }
    }
}

impl Ffn {
    /// With SwiGLU clamped, where a layer asks for it.
    fn clamped(self, clamps: bool) -> Ffn {
        match self {
            Ffn::Silu if clamps => Ffn::SiluClamped,
            kind => kind,
        }
    }
}

impl LlmGraph<'_> {
    /// The dense block of layer `il` (`build_ffn`).
    pub fn ffn(&mut self, x: TensorId, kind: Ffn, il: usize) -> TensorId {
        let up = self.linear(x, Kind::FfnUp, il);
        let gate = self
            .has(il, Kind::FfnGate)
            .then(|| self.linear(x, Kind::FfnGate, il));
        let kind = kind.clamped(self.hp.layers[il].clamps_ffn);
        let cur = self.activate(kind, gate, up);
        let cur = match self.optional(il, Kind::FfnAct, Part::Weight) {
            Some(scales) => self.div(cur, scales),
            None => cur,
        };
        self.name_layer(cur, "ffn_act", il);
        self.linear(cur, Kind::FfnDown, il)
    }

    /// What goes into the last matrix of a block.
    pub fn activate(&mut self, kind: Ffn, gate: Option<TensorId>, up: TensorId) -> TensorId {
        match (kind, gate) {
            (Ffn::Situ { limits_up }, Some(gate)) => self.situ(gate, up, limits_up),
            (Ffn::Gelu, Some(gate)) => self.glu_split(Glu::Geglu, gate, up),
            (Ffn::SwigluClamp, Some(gate)) => self.glu_split(Glu::SwigluClamp, gate, up),
            (Ffn::Relu, Some(gate)) => self.glu_split(Glu::Reglu, gate, up),
            (Ffn::SiluClamped, Some(gate)) => {
                let up = self.map(Op::Clamp, up);
                let gate = self.unary(Unary::Silu, gate);
                let gate = self.map(Op::Clamp, gate);
                self.mul(gate, up)
            }
            (Ffn::SwigluOai, Some(gate)) => self.glu_split(Glu::SwigluOai, gate, up),
            (_, Some(gate)) => self.glu_split(Glu::Swiglu, gate, up),
            (Ffn::Gelu, None) => self.unary(Unary::Gelu, up),
            (Ffn::Relu, None) => self.unary(Unary::Relu, up),
            (Ffn::SwigluFused, None) => self.glu(Glu::Swiglu, up),
            (Ffn::GegluFused, None) => self.glu(Glu::Geglu, up),
            (Ffn::RegluFused, None) => self.glu(Glu::Reglu, up),
            (Ffn::ReluSqr, None) => {
                let relu = self.unary(Unary::Relu, up);
                self.map(Op::Sqr, relu)
            }
            (Ffn::Xielu, None) => self.unary(Unary::Xielu, up),
            (_, None) => self.unary(Unary::Silu, up),
        }
    }

    /// `b tanh(gate / b) sigmoid(gate) c tanh(up / c)`.
    fn situ(&mut self, gate: TensorId, up: TensorId, limits_up: bool) -> TensorId {
        let limited = self.softcap(gate);
        let open = self.unary(Unary::Sigmoid, gate);
        let act = self.mul(limited, open);
        let up = if limits_up { self.softcap(up) } else { up };
        self.mul(act, up)
    }

    /// Experts where layer `il` has a router (and shared ones, if any, added), else the dense block.
    pub fn ffn_or_moe(&mut self, x: TensorId, options: MoeOptions, il: usize) -> TensorId {
        if !self.has(il, Kind::FfnGateInp) {
            return self.ffn(x, Ffn::Silu, il);
        }
        let routed = self.moe(x, options, il);
        if !self.has(il, Kind::FfnUpShexp) {
            return routed;
        }
        let shared = self.shared_expert(x, options.activation, il);
        self.add(routed, shared)
    }

    /// The expert that every token takes.
    pub fn shared_expert(&mut self, x: TensorId, kind: Ffn, il: usize) -> TensorId {
        let up = self.linear(x, Kind::FfnUpShexp, il);
        let gate = self
            .has(il, Kind::FfnGateShexp)
            .then(|| self.linear(x, Kind::FfnGateShexp, il));
        let kind = kind.clamped(self.hp.layers[il].clamps_ffn);
        let cur = self.activate(kind, gate, up);
        self.linear(cur, Kind::FfnDownShexp, il)
    }

    /// Experts of layer `il` (`build_moe_ffn`).
    pub fn moe(&mut self, x: TensorId, options: MoeOptions, il: usize) -> TensorId {
        let logits = self.linear(x, Kind::FfnGateInp, il);
        self.moe_routed(x, logits, options, il)
    }

    /// [`moe`](Self::moe) where the router's `logits` are made of something else than `x`.
    pub fn moe_routed(
        &mut self,
        x: TensorId,
        logits: TensorId,
        options: MoeOptions,
        il: usize,
    ) -> TensorId {
        let Some(moe) = self.hp.moe else {
            return self.missing("expert_count".to_string());
        };
        let route = self.route(logits, &moe, options, il);
        self.experts(x, route, Bank::ROUTED, options, il)
    }

    /// The chosen experts of `bank` over `x`, and their weighted sum.
    pub fn experts(
        &mut self,
        x: TensorId,
        (ids, weights): (TensorId, TensorId),
        bank: Bank,
        options: MoeOptions,
        il: usize,
    ) -> TensorId {
        let (n_embd, n_tokens) = (self[x].ne[0], self[x].ne[1]);
        let n_used = self[ids].ne[0];
        let mut cur = self.reshape(x, [n_embd, 1, n_tokens, 1]);
        if options.weights_before {
            let repeated = self.repeat(cur, [n_embd, n_used, n_tokens, 1]);
            cur = self.mul(repeated, weights);
        }
        let hidden = self.expert_hidden(cur, ids, bank, options, il);
        self.name_layer(hidden, "ffn_moe_act", il);
        let mut experts = self.expert_linear(hidden, bank.down, ids, il);
        if !options.weights_before {
            experts = self.mul(experts, weights);
            self.name_layer(experts, "ffn_moe_weighted", il);
        }
        self.expand(experts);
        self.sum_experts(experts, n_used)
    }

    /// Gate and up, from one matrix or two, and the activation.
    fn expert_hidden(
        &mut self,
        x: TensorId,
        ids: TensorId,
        bank: Bank,
        options: MoeOptions,
        il: usize,
    ) -> TensorId {
        if self.has(il, Kind::FfnGateUpExps) {
            let [gate, up] = self.expert_gate_up(x, ids, il);
            return self.activate(options.activation, Some(gate), up);
        }
        let up = self.expert_linear(x, bank.up, ids, il);
        let gate = self
            .has(il, bank.gate)
            .then(|| self.expert_linear(x, bank.gate, ids, il));
        let kind = options
            .activation
            .clamped(self.hp.layers[il].clamps_experts);
        self.activate(kind, gate, up)
    }

    /// `W[id] x + b[id]` for each chosen expert.
    fn expert_linear(&mut self, x: TensorId, kind: Kind, ids: TensorId, il: usize) -> TensorId {
        let w = self.weight(il, kind);
        let scale = self.scale_of(il, kind);
        let scale = scale.map(|scale| self.scale_of_experts(scale, ids, self[x].ne[2]));
        let mut cur = self.adapted_scaled(w, x, Some(ids), scale);
        if kind == Kind::FfnDownExps && self.model.architecture.experts_in_f32 {
            self[cur].flags.insert(Flags::SRC_F32);
        }
        if let Some(b) = self.optional(il, kind, Part::Bias) {
            cur = self.add_id(cur, b, ids);
        }
        let name = match kind {
            Kind::FfnGateExps => "ffn_moe_gate",
            Kind::FfnUpExps => "ffn_moe_up",
            Kind::FfnGateUpExps => "ffn_moe_gate_up",
            _ => "ffn_moe_down",
        };
        self.name_layer(cur, name, il);
        cur
    }

    /// Gate and up of each chosen expert, the halves of one matrix.
    fn expert_gate_up(&mut self, x: TensorId, ids: TensorId, il: usize) -> [TensorId; 2] {
        let both = self.expert_linear(x, Kind::FfnGateUpExps, ids, il);
        let (ne, nb) = (self[both].ne, self[both].nb);
        [(); 2].map(|()| self.view_3d(both, [ne[0] / 2, ne[1], ne[2]], [nb[1], nb[2]]))
    }

    /// Chosen experts and their weights, `[n_used, n_tokens]` and `[1, n_used, n_tokens]`.
    fn route(
        &mut self,
        logits: TensorId,
        moe: &Moe,
        options: MoeOptions,
        il: usize,
    ) -> (TensorId, TensorId) {
        let (n_used, n_tokens) = (self.hp.layers[il].n_expert_used, self[logits].ne[1]);
        let probs = match options.gating {
            Gating::Softmax => self.soft_max(logits, None, None),
            Gating::Sigmoid => self.unary(Unary::Sigmoid, logits),
            Gating::SoftmaxWeight => logits,
            Gating::SqrtSoftplus => {
                self[logits].flags.insert(Flags::PREC_F32);
                let cur = self.unary(Unary::Softplus, logits);
                self.map(Op::Sqrt, cur)
            }
        };
        // HY V3 writes the bias without a suffix.
        let bias = self.optional(il, Kind::ExpProbsB, Part::Bias);
        let bias = bias.or_else(|| self.optional(il, Kind::ExpProbsB, Part::Weight));
        let mut scores = match bias {
            Some(bias) => self.add(probs, bias),
            None => probs,
        };
        if options.weights_before {
            scores = logits; // Llama 4 chooses by logit
        }
        if moe.n_expert_groups > 1 {
            scores = self.mask_groups(scores, moe, n_tokens);
        }
        let by_token = self.optional(il, Kind::FfnGateTid2eid, Part::Weight);
        let ids = match (by_token, self.tokens) {
            (Some(table), Some(tokens)) => self.get_rows(table, tokens),
            _ => self.argsort_top_k(scores, n_used),
        };
        let flat = self.reshape(probs, [1, moe.n_expert, n_tokens, 1]);
        let mut weights = self.get_rows(flat, ids);
        if options.gating == Gating::SoftmaxWeight {
            weights = self.reshape(weights, [n_used, n_tokens, 1, 1]);
            weights = self.soft_max(weights, None, None);
            weights = self.reshape(weights, [1, n_used, n_tokens, 1]);
        }
        if options.norms_weights {
            weights = self.norm_weights(weights);
        }
        if moe.scales_weights {
            weights = self.scale(weights);
        }
        self.expand(weights);
        (ids, weights)
    }

    /// Weights of experts, `[1, n_used, n_tokens]`, that add up to one.
    pub fn norm_weights(&mut self, weights: TensorId) -> TensorId {
        let ne = self[weights].ne;
        let flat = self.reshape(weights, [ne[1], ne[2], 1, 1]);
        let sum = self.sum_rows(flat);
        let sum = self.map(Op::Clamp, sum);
        let normed = self.div(flat, sum);
        self.reshape(normed, ne)
    }

    /// Scores with all but the best groups of experts masked; a group is as good as its best two.
    fn mask_groups(&mut self, scores: TensorId, moe: &Moe, n_tokens: i64) -> TensorId {
        let n_groups = moe.n_expert_groups;
        let per_group = moe.n_expert / n_groups;
        let groups = self.reshape(scores, [per_group, n_groups, n_tokens, 1]);
        let best = self.argsort_top_k(groups, 2);
        let single = self.reshape(groups, [1, per_group, n_groups, n_tokens]);
        let best = self.get_rows(single, best);
        let ne = self[best].ne;
        let best = self.reshape(best, [ne[1], ne[2], ne[3], 1]);
        let sums = self.sum_rows(best);
        let ne = self[sums].ne;
        let sums = self.reshape(sums, [ne[1], ne[2], 1, 1]);
        let chosen = self.argsort_top_k(sums, moe.n_group_used);
        let kept = self.get_rows(groups, chosen);
        let blank = self.map(Op::Fill, groups);
        let masked = self.set_rows(blank, kept, chosen);
        self.reshape(masked, [moe.n_expert, n_tokens, 1, 1])
    }

    /// `[n_embd, n_used, n_tokens] -> [n_embd, n_tokens]`: a view an expert, added in order.
    fn sum_experts(&mut self, experts: TensorId, n_used: i64) -> TensorId {
        let (ne, nb) = (self[experts].ne, self[experts].nb);
        let mut sum: Option<TensorId> = None;
        let views: Vec<TensorId> = (0..n_used)
            .map(|_| {
                let view = self.view_2d(experts, [ne[0], ne[2]], nb[2]);
                self.expand(view);
                view
            })
            .collect();
        for view in views {
            sum = Some(match sum {
                None => view,
                Some(sum) => {
                    let sum = self.add(sum, view);
                    self.expand(sum);
                    sum
                }
            });
        }
        let sum = sum.unwrap_or(experts);
        if n_used == 1 { self.cont(sum) } else { sum }
    }
}
