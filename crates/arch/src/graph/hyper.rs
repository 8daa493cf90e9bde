//! Hyper connections: the residual is several streams `[n_embd, n_streams, n_tokens]`. How they are
//! summed into what a block reads, and how its result is spread over them, is made of themselves.

use super::LlmGraph;
use crate::params::FusedOp;
use vramfit_ggml::{Op, TensorId, Type, Unary};

/// The three weights of a hyper connection.
#[derive(Clone, Copy)]
pub struct HcWeights {
    /// A matrix over all streams of a token: its coefficients.
    pub of_streams: TensorId,
    /// One factor a kind of coefficient.
    pub scale: TensorId,
    /// Added to each coefficient.
    pub base: TensorId,
}

impl LlmGraph<'_> {
    /// The embedding in every stream.
    pub fn hc_streams(&mut self, x: TensorId) -> TensorId {
        let (n_embd, n_streams, n_tokens) = (self.hp.n_embd, self.hp.n_streams, self.n_tokens);
        let x = self.reshape(x, [n_embd, 1, n_tokens, 1]);
        self.repeat(x, [n_embd, n_streams, n_tokens, 1])
    }

    /// The streams of tokens with wanted logits.
    pub fn hc_output_rows(&mut self, x: TensorId) -> TensorId {
        let ne = self[x].ne;
        let flat = self.reshape(x, [ne[0] * ne[1], ne[2], 1, 1]);
        let rows = self.output_rows(flat);
        let n_rows = self[rows].ne[1];
        self.reshape(rows, [ne[0], ne[1], n_rows, 1])
    }

    /// Coefficients `[n, n_tokens]` of the streams `x`.
    pub fn hc_mixes(&mut self, x: TensorId, of_streams: TensorId) -> TensorId {
        let ne = self[x].ne;
        let flat = self.reshape(x, [ne[0] * ne[1], ne[2], 1, 1]);
        let flat = self.rms(flat);
        self.mul_mat(of_streams, flat)
    }

    /// `n` of the coefficients, scaled and shifted.
    pub fn hc_affine(&mut self, mixes: TensorId, weights: HcWeights, n: i64) -> TensorId {
        let (ne, nb) = (self[mixes].ne, self[mixes].nb);
        let scale = self.view_1d(weights.scale, 1);
        let base = self.view_1d(weights.base, n);
        let cur = self.view_2d(mixes, [n, ne[1]], nb[1]);
        let cur = self.mul(cur, scale);
        self.add(cur, base)
    }

    /// One gate a stream, of its share of the coefficients; scaled or shifted.
    pub fn hc_gate(&mut self, mixes: TensorId, weights: HcWeights) -> TensorId {
        let cur = self.hc_affine(mixes, weights, self.hp.n_streams);
        let cur = self.unary(Unary::Sigmoid, cur);
        self.scale(cur)
    }

    /// The gates behind the last layer, which has no other coefficients.
    pub fn hc_head_gate(&mut self, mixes: TensorId, weights: HcWeights) -> TensorId {
        let cur = self.mul(mixes, weights.scale);
        let cur = self.add(cur, weights.base);
        let cur = self.unary(Unary::Sigmoid, cur);
        self.scale(cur)
    }

    /// One stream of `x`.
    pub fn hc_stream(&mut self, x: TensorId) -> TensorId {
        let (ne, nb) = (self[x].ne, self[x].nb);
        self.view_2d(x, [ne[0], ne[2]], nb[2])
    }

    /// One number a token of `x`, whose dimension `tokens` is that of tokens.
    pub fn hc_number(&mut self, x: TensorId, tokens: usize) -> TensorId {
        let (ne, nb) = (self[x].ne, self[x].nb);
        self.view_2d(x, [1, ne[tokens]], nb[tokens])
    }

    /// The mean of the streams: `[n_embd, n_tokens]`.
    pub fn hc_mean(&mut self, x: TensorId) -> TensorId {
        let mut sum = self.hc_stream(x);
        for _ in 1..self[x].ne[1] {
            let stream = self.hc_stream(x);
            sum = self.add(sum, stream);
        }
        self.scale(sum)
    }

    /// The streams summed, each times its gate: `[n_embd, n_tokens]`.
    pub fn hc_sum(&mut self, x: TensorId, gates: TensorId) -> TensorId {
        let mut sum = None;
        for _ in 0..self[x].ne[1] {
            let stream = self.hc_stream(x);
            let gate = self.hc_number(gates, 1);
            let cur = self.mul(stream, gate);
            sum = Some(match sum {
                Some(sum) => self.add(sum, cur),
                None => cur,
            });
        }
        sum.unwrap_or(x)
    }
}

/// The gates of a hyper connection by which a block's result goes into the streams, and how these
/// are mixed with each other.
#[derive(Clone, Copy)]
pub struct HcGates {
    post: TensorId,
    comb: TensorId,
}

/// Hyper connections as DeepSeek-V4 has them, with operations of their own where those run on the
/// layer's device.
impl LlmGraph<'_> {
    pub fn is_fused(&self, op: FusedOp) -> bool {
        !self.cp.unfused.contains(op)
    }

    /// What a block of layer `il` reads of the streams `x`.
    pub fn hc_read(&mut self, x: TensorId, weights: HcWeights, il: usize) -> (TensorId, HcGates) {
        let mixes = self.hc_mixes(x, weights.of_streams);
        let pre = self.hc_gate(mixes, weights);
        let post = self.hc_gate(mixes, weights);
        let comb = if self.is_fused(FusedOp::HcComb) {
            let comb = self.dsv4_hc_comb(mixes, weights.scale, weights.base);
            self.fused.push((FusedOp::HcComb, comb, il));
            comb
        } else {
            self.hc_comb(mixes, weights)
        };
        let cur = if self.is_fused(FusedOp::HcPre) {
            let cur = self.dsv4_hc_pre(x, pre);
            self.fused.push((FusedOp::HcPre, cur, il));
            cur
        } else {
            self.hc_sum(x, pre)
        };
        (cur, HcGates { post, comb })
    }

    /// The gates are computed before what the block does.
    pub fn hc_expand(&mut self, x: TensorId, gates: HcGates) {
        [x, gates.post, gates.comb]
            .into_iter()
            .for_each(|t| self.expand(t));
    }

    /// The streams `x` mixed, and a block's result `cur` added to each.
    pub fn hc_write(&mut self, cur: TensorId, x: TensorId, gates: HcGates, il: usize) -> TensorId {
        let HcGates { post, comb } = gates;
        if self.is_fused(FusedOp::HcPost) {
            let all = self.dsv4_hc_post([cur, x, post], Some(comb));
            self.fused.push((FusedOp::HcPost, all, il));
            return all;
        }
        let ne = self[x].ne;
        let mut all = None;
        for _ in 0..ne[1] {
            let gate = self.hc_number(post, 1);
            let mut stream = self.mul(cur, gate);
            for _ in 0..ne[1] {
                let other = self.hc_stream(x);
                let share = self.hc_number(comb, 2);
                let mixed = self.mul(other, share);
                stream = self.add(stream, mixed);
            }
            let stream = self.reshape(stream, [ne[0], 1, ne[2], 1]);
            all = Some(match all {
                Some(all) => self.concat(all, stream, 1),
                None => stream,
            });
        }
        all.unwrap_or(x)
    }

    /// Sinkhorn's algorithm: rows and columns are normalised in turn.
    fn hc_comb(&mut self, mixes: TensorId, weights: HcWeights) -> TensorId {
        let (n, n_tokens) = (self.hp.n_streams, self[mixes].ne[1]);
        let comb = self.hc_affine(mixes, weights, n * n);
        let comb = self.reshape(comb, [n, n, n_tokens, 1]);
        let comb = self.soft_max(comb, None, None);
        let eps = self.new_tensor(Op::None, Type::F32, [1; 4], &[]);
        let eps = self.map(Op::Fill, eps);
        let comb = self.add(comb, eps);
        let mut comb = self.hc_norm_columns(comb, eps);
        for _ in 1..self.hp.compressor.map_or(1, |c| c.n_iterations) {
            let sum = self.sum_rows(comb);
            let sum = self.add(sum, eps);
            comb = self.div(comb, sum);
            comb = self.hc_norm_columns(comb, eps);
        }
        comb
    }

    fn hc_norm_columns(&mut self, comb: TensorId, eps: TensorId) -> TensorId {
        let columns = self.permute(comb, [1, 0, 2, 3]);
        let columns = self.cont(columns);
        let sum = self.sum_rows(columns);
        let sum = self.add(sum, eps);
        let sum = self.permute(sum, [1, 0, 2, 3]);
        self.div(comb, sum)
    }
}
