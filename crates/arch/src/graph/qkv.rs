//! Queries, keys and values (`build_qkv`).

use super::LlmGraph;
use crate::names::{Kind, Part};
use vramfit_ggml::{Op, TensorId, Type};

/// Queries, keys and values: `[head, n_head, n_tokens]`.
pub type Qkv = [TensorId; 3];

const QKV: [Kind; 3] = [Kind::AttnQ, Kind::AttnK, Kind::AttnV];

impl LlmGraph<'_> {
    /// Q, K and V of layer `il` (`build_qkv`): from one matrix or three.
    pub fn qkv(&mut self, x: TensorId, il: usize) -> Qkv {
        let (layer, n_tokens) = (self.hp.layers[il], self.n_tokens);
        let shapes = [
            [layer.n_embd_head_k, layer.n_head, n_tokens],
            [layer.n_embd_head_k, layer.n_head_kv, n_tokens],
            [layer.n_embd_head_v, layer.n_head_kv, n_tokens],
        ];
        if self.has(il, Kind::AttnQkv) {
            let all = self.fused_qkv(x, il);
            let all = self.clamped(all);
            let nb1 = self[all].nb[1];
            shapes.map(|ne| self.view_3d(all, ne, [Type::F32.row_size(ne[0] as u64), nb1]))
        } else {
            let flat = QKV.map(|k| self.linear(x, k, il));
            let flat = flat.map(|t| self.clamped(t));
            [0, 1, 2].map(|i| self.reshape(flat[i], [shapes[i][0], shapes[i][1], n_tokens, 1]))
        }
    }

    fn fused_qkv(&mut self, x: TensorId, il: usize) -> TensorId {
        let all = self.linear(x, Kind::AttnQkv, il);
        match self.separate_biases(il) {
            Some(bias) => self.add(all, bias),
            None => all,
        }
    }

    /// Biases of Q, K and V beside one matrix for all three, as old files have them.
    fn separate_biases(&mut self, il: usize) -> Option<TensorId> {
        if self.optional(il, Kind::AttnQkv, Part::Bias).is_some() {
            return None;
        }
        let [q, k, v] = QKV.map(|kind| self.optional(il, kind, Part::Bias));
        let qk = self.concat(q?, k?, 0);
        Some(self.concat(qk, v?, 0))
    }

    fn clamped(&mut self, x: TensorId) -> TensorId {
        if self.hp.clamps_qkv {
            self.map(Op::Clamp, x)
        } else {
            x
        }
    }

    /// [`qkv`](Self::qkv) with Q and K normalised over all heads at once.
    pub fn qkv_flat_norm(&mut self, x: TensorId, il: usize) -> Qkv {
        let [q, k, v] = self.qkv_flat(x, il);
        let q = self.norm(q, Kind::AttnQNorm, il);
        let k = self.norm(k, Kind::AttnKNorm, il);
        self.split_heads([q, k, v], il)
    }

    /// Q, K and V with all heads of a token in one row.
    pub fn qkv_flat(&mut self, x: TensorId, il: usize) -> Qkv {
        if !self.has(il, Kind::AttnQkv) {
            return QKV.map(|k| self.linear(x, k, il));
        }
        let (layer, n_tokens) = (self.hp.layers[il], self.n_tokens);
        let all = self.fused_qkv(x, il);
        let (n_q, nb1) = (layer.n_embd_head_k * layer.n_head, self[all].nb[1]);
        [n_q, layer.n_embd_k_gqa(), layer.n_embd_v_gqa()].map(|n| {
            let part = self.view_2d(all, [n, n_tokens], nb1);
            self.cont(part)
        })
    }

    /// [`qkv_flat`](Self::qkv_flat) by heads.
    pub fn split_heads(&mut self, [q, k, v]: Qkv, il: usize) -> Qkv {
        let (layer, n) = (self.hp.layers[il], self.n_tokens);
        [
            self.reshape(q, [layer.n_embd_head_k, layer.n_head, n, 1]),
            self.reshape(k, [layer.n_embd_head_k, layer.n_head_kv, n, 1]),
            self.reshape(v, [layer.n_embd_head_v, layer.n_head_kv, n, 1]),
        ]
    }

    /// Q and K normalised a head, where the model has the norms.
    pub fn qk_norm(&mut self, [mut q, mut k, v]: Qkv, il: usize) -> Qkv {
        if self.has(il, Kind::AttnQNorm) {
            q = self.norm(q, Kind::AttnQNorm, il);
        }
        if self.has(il, Kind::AttnKNorm) {
            k = self.norm(k, Kind::AttnKNorm, il);
        }
        [q, k, v]
    }

    /// Q and K rotated by position.
    pub fn rotate_qk(&mut self, [q, k, v]: Qkv, factors: Option<TensorId>) -> Qkv {
        [self.rotate(q, factors), self.rotate(k, factors), v]
    }
}
