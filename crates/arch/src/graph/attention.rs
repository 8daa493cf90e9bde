//! Attention over the KV cache (`build_attn`), over the batch alone, and MLA.

use super::inputs::AttnInput;
use super::{LlmGraph, Qkv};
use crate::cache::CacheKind;
use crate::names::{Kind, Part};
use crate::params::FusedOp;
use vramfit_ggml::{BufferType, Flags, TensorId, Type};

/// What attention has beside queries, keys and values.
#[derive(Clone, Copy)]
struct Beside {
    mask: TensorId,
    sinks: Option<TensorId>,
    /// Added to the scores, which flash attention cannot do (T5).
    bias: Option<TensorId>,
    /// Expands what latent attention has summed.
    v_b: Option<TensorId>,
}

impl Beside {
    const fn mask(mask: TensorId) -> Beside {
        Beside {
            mask,
            sinks: None,
            bias: None,
            v_b: None,
        }
    }
}

impl LlmGraph<'_> {
    /// Attention of layer `il` over `n`, Q and K normalised where the layer has the norms, then rotated.
    pub fn rotated_attention(
        &mut self,
        n: TensorId,
        factors: Option<TensorId>,
        il: usize,
    ) -> TensorId {
        let qkv = self.qkv(n, il);
        let qkv = self.qk_norm(qkv, il);
        let qkv = self.rotate_qk(qkv, factors);
        self.attention(qkv, il)
    }

    /// Attention of layer `il` and its output matrix.
    pub fn attention(&mut self, qkv: Qkv, il: usize) -> TensorId {
        if !self.hp.has_memory || self.hp.ignores_memory {
            return self.attention_no_cache(qkv, il);
        }
        let cur = self.attend(qkv, il);
        if self.has(il, Kind::AttnOutput) {
            self.linear(cur, Kind::AttnOutput, il)
        } else {
            cur
        }
    }

    pub(super) fn attn_input_of(&mut self, il: usize) -> AttnInput {
        let swa = self.hp.has_swa_layers && self.hp.layers[il].is_swa;
        match self.attn_inputs[swa as usize] {
            Some(input) => input,
            None => {
                let t = self.missing("a KV cache".to_string());
                AttnInput {
                    k_idxs: t,
                    v_idxs: t,
                    mask: t,
                    k_rot: None,
                    v_rot: None,
                    n_kv: 1,
                }
            }
        }
    }

    /// Attention of layer `il` without its output matrix: writes K and V to the cache and attends
    /// to all of it.
    pub fn attend(&mut self, qkv: Qkv, il: usize) -> TensorId {
        self.attend_biased(qkv, None, il)
    }

    /// [`attend`](Self::attend) with a `bias` on the scores.
    pub fn attend_biased(&mut self, [q, k, v]: Qkv, bias: Option<TensorId>, il: usize) -> TensorId {
        let sinks = self.optional(il, Kind::AttnSinks, Part::Weight);
        let mask = self.attn_mask(il);
        let beside = Beside {
            sinks,
            bias,
            ..Beside::mask(mask)
        };
        self.attend_beside([q, k, v], beside, il)
    }

    /// [`attend`](Self::attend) to the `chosen` cells of each token.
    pub fn attend_chosen(&mut self, qkv: Qkv, chosen: TensorId, il: usize) -> TensorId {
        let mask = self.attn_mask(il);
        let mask = self.mask_others(mask, chosen, Type::F32);
        self.attend_beside(qkv, Beside::mask(mask), il)
    }

    /// The mask of layer `il`.
    pub fn attn_mask(&mut self, il: usize) -> TensorId {
        self.attn_input_of(il).mask
    }

    fn attend_beside(&mut self, [mut q, mut k, mut v]: Qkv, beside: Beside, il: usize) -> TensorId {
        let input = self.attn_input_of(il);
        if let Some(rot) = input.k_rot {
            q = self.hadamard(q, rot);
            k = self.hadamard(k, rot);
        }
        if let Some(rot) = input.v_rot {
            v = self.hadamard(v, rot);
        }
        let order = if self.hp.has_swa_layers {
            [q, k, v]
        } else {
            [q, v, k]
        };
        order.into_iter().for_each(|t| self.expand(t));
        self.store_k(k, &input, il);
        self.store_v(v, &input, il);
        self.attend_cache(q, beside, &input, il, il)
    }

    /// Attention of layer `il` to the cache of an earlier layer.
    pub fn attend_reused(&mut self, mut q: TensorId, cache_layer: usize, il: usize) -> TensorId {
        let input = self.attn_input_of(il);
        if let Some(rot) = input.k_rot {
            q = self.hadamard(q, rot);
        }
        self.expand(q);
        let cur = self.attend_cache(q, Beside::mask(input.mask), &input, cache_layer, il);
        self.linear(cur, Kind::AttnOutput, il)
    }

    fn attend_cache(
        &mut self,
        q: TensorId,
        beside: Beside,
        input: &AttnInput,
        cache_layer: usize,
        il: usize,
    ) -> TensorId {
        let k = self.cache_k_view(input.n_kv, cache_layer);
        let v = self.cache_v_view(input.n_kv, cache_layer);
        let cur = self.attend_over([q, k, v], beside, il);
        match input.v_rot {
            Some(rot) => self.hadamard(cur, rot),
            None => cur,
        }
    }

    /// The product with a Hadamard matrix, over chunks of its size.
    pub fn hadamard(&mut self, x: TensorId, rot: TensorId) -> TensorId {
        let (ne, n) = (self[x].ne, self[rot].ne[0]);
        let chunks = [n, self[x].n_elements() / n.max(1), 1, 1];
        let flat = if self[x].is_contiguous() {
            self.reshape(x, chunks)
        } else {
            self.cont_shape(x, chunks)
        };
        let cur = self.mul_mat(rot, flat);
        self[cur].flags.insert(Flags::HADAMARD);
        self.reshape(cur, ne)
    }

    /// All heads of a token in one row.
    fn flat_heads(&mut self, t: TensorId) -> TensorId {
        let (ne, nb) = (self[t].ne, self[t].nb);
        self.view_2d(t, [ne[0] * ne[1], ne[2]], nb[2])
    }

    /// The cells of all streams behind each other.
    fn merge_streams(&mut self, cache: TensorId) -> TensorId {
        let ne = self[cache].ne;
        if ne[2] > 1 {
            self.reshape(cache, [ne[0], ne[1] * ne[2], 1, 1])
        } else {
            cache
        }
    }

    pub(super) fn store_k(&mut self, k: TensorId, input: &AttnInput, il: usize) {
        let cache = self.cache(il, CacheKind::K);
        self.store_rows(k, cache, input.k_idxs);
    }

    /// Writes the tokens of `x` `[head, n_head, n_tokens]` to the cells `idxs` of `cache`.
    pub fn store_rows(&mut self, x: TensorId, cache: TensorId, idxs: TensorId) {
        let rows = self.flat_heads(x);
        let cache = self.merge_streams(cache);
        let stored = self.set_rows(cache, rows, idxs);
        self.expand(stored);
    }

    pub(super) fn store_v(&mut self, v: TensorId, input: &AttnInput, il: usize) {
        let cache = self.cache(il, CacheKind::V);
        let stored = if self.cp.v_trans {
            self.store_transposed(v, cache, input)
        } else {
            let rows = self.flat_heads(v);
            let cache = self.merge_streams(cache);
            self.set_rows(cache, rows, input.v_idxs)
        };
        self.expand(stored);
    }

    /// Element by element, since a token's values are not in one row.
    fn store_transposed(&mut self, v: TensorId, cache: TensorId, input: &AttnInput) -> TensorId {
        let (ne, nb, ty) = (self[v].ne, self[v].nb, self[v].ty);
        let row = ne[0] * ne[1];
        let mut rows = if ty.row_size(row.max(0) as u64) == nb[2] {
            self.reshape(v, [row, ne[2], 1, 1])
        } else {
            self.cont_shape(v, [row, ne[2], 1, 1])
        };
        let width = self[cache].ne[0];
        if row < width {
            rows = self.pad_to(rows, width);
        }
        let n = self[cache].n_elements();
        let cells = self.reshape(cache, [1, n, 1, 1]);
        let n = self[rows].n_elements();
        let values = self.reshape(rows, [1, n, 1, 1]);
        self.set_rows(cells, values, input.v_idxs)
    }

    /// K of the first `n_kv` cells: `[head, n_head_kv, n_kv, streams]`.
    pub(super) fn cache_k_view(&mut self, n_kv: i64, il: usize) -> TensorId {
        let cache = self.cache(il, CacheKind::K);
        let layer = self.hp.layers[il];
        let (ty, [row, n_cells, ..]) = (self[cache].ty, self[cache].ne);
        let size = |n: i64| ty.row_size(n.max(0) as u64);
        let ne = [layer.n_embd_head_k, layer.n_head_kv, n_kv, self.n_stream()];
        self.view_4d(
            cache,
            ne,
            [size(layer.n_embd_head_k), size(row), size(row * n_cells)],
        )
    }

    /// V of the first `n_kv` cells, transposed or not.
    pub(super) fn cache_v_view(&mut self, n_kv: i64, il: usize) -> TensorId {
        let cache = self.cache(il, CacheKind::V);
        let layer = self.hp.layers[il];
        let (ty, [row, n_cells, ..]) = (self[cache].ty, self[cache].ne);
        let (head, n_stream) = (layer.n_embd_head_v, self.n_stream());
        let size = |n: i64| ty.row_size(n.max(0) as u64);
        if self.cp.v_trans {
            let ne = [n_kv, layer.n_head_kv, head, n_stream];
            let strides = [n_cells * head, n_cells, n_cells * row];
            self.view_4d(cache, ne, strides.map(size))
        } else {
            let ne = [head, layer.n_head_kv, n_kv, n_stream];
            self.view_4d(cache, ne, [head, row, row * n_cells].map(size))
        }
    }

    /// Attention over the batch itself, as encoders do, and its output matrix.
    fn attention_no_cache(&mut self, qkv: Qkv, il: usize) -> TensorId {
        let mask = self.no_cache_mask(il);
        let cur = self.attend_batch(qkv, mask, None, il);
        self.linear(cur, Kind::AttnOutput, il)
    }

    /// Attention to keys and values that no cache holds, without the output matrix.
    pub fn attend_batch(
        &mut self,
        qkv: Qkv,
        mask: TensorId,
        bias: Option<TensorId>,
        il: usize,
    ) -> TensorId {
        qkv.into_iter().for_each(|t| self.expand(t));
        let beside = Beside {
            bias,
            ..Beside::mask(mask)
        };
        self.attend_over(qkv, beside, il)
    }

    /// Who sees whom in the batch; layers with a window have a mask of their own.
    pub fn no_cache_mask(&mut self, il: usize) -> TensorId {
        let swa = self.hp.has_swa_layers && self.hp.layers[il].is_swa;
        if let Some(mask) = self.no_cache_masks[swa as usize] {
            return mask;
        }
        let n = self.n_tokens;
        let mask = self.mask_over("attn_inp_kq_mask", n);
        *self.no_cache_masks[swa as usize].insert(mask)
    }

    /// A mask over `n` keys for each token of the batch.
    pub fn mask_over(&mut self, name: &'static str, n: i64) -> TensorId {
        let ty = if self.cp.flash_attn {
            Type::F16
        } else {
            Type::F32
        };
        let n_tokens = self.n_tokens;
        self.input(name, ty, [n, n_tokens, 1, 1])
    }

    /// Latent attention: the cache holds one compressed K for all heads, V is a part of it, and
    /// `v_b` expands the result.
    pub fn attention_mla(&mut self, qkv: Qkv, v_b: TensorId, il: usize) -> TensorId {
        let cur = self.attend_mla(qkv, v_b, None, il);
        self.linear(cur, Kind::AttnOutput, il)
    }

    /// Latent attention without its output matrix, to the `chosen` cells of each token or to all.
    pub fn attend_mla(
        &mut self,
        [q, k, v]: Qkv,
        v_b: TensorId,
        chosen: Option<TensorId>,
        il: usize,
    ) -> TensorId {
        let input = self.attn_input_of(il);
        let sinks = self.optional(il, Kind::AttnSinks, Part::Weight);
        [q, v, k].into_iter().for_each(|t| self.expand(t));
        self.store_k(k, &input, il);
        let mask = match chosen {
            Some(cells) => self.mask_others(input.mask, cells, Type::F32),
            None => input.mask,
        };
        let k = self.cache_k_view(input.n_kv, il);
        let (ne, nb) = (self[k].ne, self[k].nb);
        let rank = self[v].ne[0];
        let v = self.view_4d(k, [rank, ne[1], ne[2], ne[3]], [nb[1], nb[2], nb[3]]);
        let beside = Beside {
            sinks,
            v_b: Some(v_b),
            ..Beside::mask(mask)
        };
        self.attend_over([q, k, v], beside, il)
    }

    /// Attention of layer `il` to K alone, which serves as V (`llm_graph_input_attn_k_iswa`), without the output matrix.
    pub fn attend_to_k(&mut self, [mut q, mut k]: [TensorId; 2], il: usize) -> TensorId {
        let input = self.attn_input_of(il);
        let sinks = self.optional(il, Kind::AttnSinks, Part::Weight);
        if let Some(rot) = input.k_rot {
            [q, k] = [q, k].map(|t| self.hadamard(t, rot));
        }
        [q, k].into_iter().for_each(|t| self.expand(t));
        self.store_k(k, &input, il);
        let k = self.cache_k_view(input.n_kv, il);
        let (ne, nb) = (self[k].ne, self[k].nb);
        let v = self.view_4d(k, ne, [nb[1], nb[2], nb[3]]);
        let cur = self.attend_masked([q, k, v], input.mask, sinks, il);
        match input.k_rot {
            Some(rot) => self.hadamard(cur, rot),
            None => cur,
        }
    }

    /// Attention to keys and values that are not simply one cache.
    pub fn attend_masked(
        &mut self,
        qkv: Qkv,
        mask: TensorId,
        sinks: Option<TensorId>,
        il: usize,
    ) -> TensorId {
        let beside = Beside {
            sinks,
            ..Beside::mask(mask)
        };
        self.attend_over(qkv, beside, il)
    }

    /// `build_attn_mha`: q `[d, h, t]` against k and v `[d, h, n_kv, streams]`.
    fn attend_over(&mut self, [q, k, v]: Qkv, beside: Beside, il: usize) -> TensorId {
        let v_is_transposed = self[v].nb[1] > self[v].nb[2];
        let (ne, nb, n_stream) = (self[q].ne, self[q].nb, self[k].ne[3].max(1));
        let n = ne[2] / n_stream;
        let per_stream = nb[2].saturating_mul(n.max(0) as u64);
        let q = self.view_4d(q, [ne[0], ne[1], n, n_stream], [nb[1], nb[2], per_stream]);
        let [q, k, v] = [q, k, v].map(|t| self.permute(t, [0, 2, 1, 3]));
        let cur = if self.cp.flash_attn && beside.bias.is_none() {
            self.flash([q, k, v], v_is_transposed, beside, il)
        } else {
            self.plain([q, k, v], v_is_transposed, beside, il)
        };
        self.expand(cur);
        cur
    }

    fn flash(
        &mut self,
        [q, k, mut v]: Qkv,
        v_is_transposed: bool,
        beside: Beside,
        il: usize,
    ) -> TensorId {
        if v_is_transposed {
            v = self.transpose(v);
        }
        let [k, v] = [k, v].map(|t| {
            if self[t].ty == Type::F32 {
                self.cast(t, Type::F16)
            } else {
                t
            }
        });
        let mut cur = self.flash_attn([q, k, v], beside.mask, beside.sinks);
        if self.hp.alibi {
            self[cur].flags.insert(Flags::ALIBI);
        }
        self.name_layer(cur, "fattn", il);
        self.fused.push((FusedOp::FlashAttention, cur, il));
        if let Some(v_b) = beside.v_b {
            cur = self.permute(cur, [0, 2, 1, 3]);
            cur = self.mul_mat(v_b, cur);
            cur = self.permute(cur, [0, 2, 1, 3]);
            cur = self.cont(cur);
        }
        let ne = self[cur].ne;
        self.reshape(cur, [ne[0] * ne[1], ne[2] * ne[3], 1, 1])
    }

    fn plain(
        &mut self,
        [q, k, mut v]: Qkv,
        v_is_transposed: bool,
        beside: Beside,
        il: usize,
    ) -> TensorId {
        let mut kq = self.mul_mat(k, q);
        self[kq].flags.insert(Flags::PREC_F32);
        self.name_layer(kq, "kq", il);
        if self.hp.attn_softcap {
            kq = self.softcap(kq);
        }
        if let Some(bias) = beside.bias {
            kq = self.add(kq, bias);
        }
        kq = self.soft_max(kq, Some(beside.mask), beside.sinks);
        self.name_layer(kq, "kq_soft_max", il);
        if !v_is_transposed {
            v = self.transpose(v);
            v = self.cont(v);
        }
        let mut kqv = self.mul_mat(v, kq);
        self.name_layer(kqv, "kqv", il);
        if let Some(v_b) = beside.v_b {
            kqv = self.mul_mat(v_b, kqv);
        }
        let heads = self.permute(kqv, [0, 2, 1, 3]);
        let ne = self[heads].ne;
        let cur = self.cont_shape(heads, [ne[0] * ne[1], ne[2] * ne[3], 1, 1]);
        self.name_layer(cur, "kqv_out", il);
        if !self.cp.offload_kqv {
            let cpu = self.weights.backend(BufferType::HOST);
            self[cur].pin = Some(cpu);
        }
        cur
    }
}
