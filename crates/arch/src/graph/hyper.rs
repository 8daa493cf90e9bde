//! Hyper connections: the residual is several streams `[n_embd, n_streams, n_tokens]`. How they are
//! summed into what a block reads, and how its result is spread over them, is made of themselves.

use super::LlmGraph;
use vramfit_ggml::{TensorId, Unary};

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
