//! The transformer of a tower, and the ways its patches become fewer (`build_vit` and its kin in `clip.cpp`).

use super::Activation;
use super::graph::{NormKind, TowerGraph, plain};
use vramfit_ggml::{Op, TensorId, Type, Unary};

const MAX_EXPERTS: i64 = 1024;

/// What [`TowerGraph::vit`] can do beside the plain transformer.
pub(crate) struct Vit<'p> {
    pub norm: NormKind,
    /// Learned positions that are added to the patches.
    pub positions: Option<TensorId>,
    /// Positions by rotation, applied to Q and K.
    pub rope: Option<Rope>,
    /// A norm of V without a weight (Gemma 4).
    pub normed_v: bool,
    /// Frames are averaged in pairs behind the layers.
    pub halved: bool,
    /// Which pairs of patches each layer may compare; none where all may, or behind the end.
    pub masks: Vec<Option<TensorId>>,
    /// The norm behind the layers.
    pub post_norm: PostNorm,
    /// Width of a head, heads of Q, and of K and V in one matrix for all three, where they are not the tower's.
    pub fused: Option<[i64; 3]>,
    /// A sink a head where there is a mask.
    pub sinks: bool,
    /// Of the networks; without it as the file says.
    pub activation: Option<Activation>,
    /// How a matrix is applied; some types limit what goes in and comes out.
    pub mm: &'p dyn Fn(&mut TowerGraph<'_>, &str, TensorId) -> TensorId,
}

/// The norm behind the layers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum PostNorm {
    /// `post_ln`, where the file has one.
    Own,
    /// One of the projector.
    Named(&'static str),
    /// Left to the caller.
    Left,
}

/// Rotary positions.
#[derive(Clone, Copy)]
pub(crate) enum Rope {
    /// Of several kinds in one operation.
    Multi(TensorId),
    /// The first half of a head by one, the second by the other.
    Halves(TensorId, TensorId),
}

impl Vit<'_> {
    pub fn new(norm: NormKind) -> Vit<'static> {
        Vit {
            norm,
            positions: None,
            rope: None,
            normed_v: false,
            halved: false,
            masks: Vec::new(),
            post_norm: PostNorm::Own,
            fused: None,
            sinks: false,
            activation: None,
            mm: &plain,
        }
    }
}

impl TowerGraph<'_> {
    /// The feed-forward network of layer `il`. Old files of some types have up and down swapped.
    pub fn layer_ffn(&mut self, x: TensorId, il: usize, vit: &Vit<'_>) -> TensorId {
        let kind = vit.activation.unwrap_or(self.hp.activation);
        let name = |kind: &str| self.layer_name(il, kind);
        let (mut up, gate, mut down) = (name("ffn_up"), name("ffn_gate"), name("ffn_down"));
        let down_in = self
            .tower
            .tensor(&format!("{down}.weight"))
            .map(|i| self.tower.tensors[i].ne[0]);
        if self.tower.kind.swaps_ffn && down_in == Some(self.hp.n_embd) {
            std::mem::swap(&mut up, &mut down);
        }
        self.ffn(x, [&up, &gate, &down], kind, vit.mm)
    }

    pub fn layer_name(&self, il: usize, kind: &str) -> String {
        format!("{}.{il}.{kind}", self.layers)
    }

    /// `build_attn` over `[d_head, n_head, n_pos]`, without the output matrix.
    pub fn attention(&mut self, parts: [TensorId; 3], mask: Option<TensorId>) -> TensorId {
        self.attention_with(parts, mask, None)
    }

    /// [`attention`](Self::attention) with a sink a head.
    pub fn attention_with(
        &mut self,
        [q, k, v]: [TensorId; 3],
        mask: Option<TensorId>,
        sinks: Option<TensorId>,
    ) -> TensorId {
        let g = &mut self.g;
        for t in [q, k, v] {
            g.expand(t);
        }
        let q = g.permute(q, [0, 2, 1, 3]);
        let k = g.permute(k, [0, 2, 1, 3]);
        if self.flash_attn {
            let v = g.permute(v, [0, 2, 1, 3]);
            let k = g.cast(k, Type::F16);
            let v = g.cast(v, Type::F16);
            let mask = mask.map(|m| g.cast(m, Type::F16));
            let y = g.flash_attn([q, k, v], mask, sinks);
            let ne = g[y].ne;
            g.reshape(
                y,
                [
                    ne[0].saturating_mul(ne[1]),
                    ne[2].saturating_mul(ne[3]),
                    1,
                    1,
                ],
            )
        } else {
            let v = g.permute(v, [1, 2, 0, 3]);
            let v = g.cont(v);
            let kq = g.mul_mat(k, q);
            let kq = g.soft_max(kq, mask, sinks);
            let y = g.mul_mat(v, kq);
            let y = g.permute(y, [0, 2, 1, 3]);
            let ne = g[y].ne;
            g.cont_shape(
                y,
                [
                    ne[0].saturating_mul(ne[1]),
                    ne[2].saturating_mul(ne[3]),
                    1,
                    1,
                ],
            )
        }
    }

    /// Q, K and V of layer `il`, from one matrix or three, `[d_head, n_head, n_pos]`.
    pub fn qkv(&mut self, x: TensorId, il: usize, n_pos: i64, vit: &Vit<'_>) -> [TensorId; 3] {
        let (d, n_head, n_kv) = (self.hp.n_embd_head, self.hp.n_head, self.hp.n_head_kv);
        let name = |b: &Self, kind: &str| b.layer_name(il, kind);
        let norms = ["attn_q_norm", "attn_k_norm"].map(|kind| name(self, kind));
        let has_norm = |b: &Self, i: usize| b.has(&format!("{}.weight", norms[i]));
        let fused = name(self, "attn_qkv");
        if self.has(&format!("{fused}.weight")) {
            let x = self.linear_by(x, &fused, vit.mm);
            let [_, nb1, ..] = self.g[x].nb;
            let [d, n_q, n_kv] = vit.fused.unwrap_or([d, n_head, n_head]);
            let row = self.g[x].ty.row_size(d.max(0) as u64);
            let nb = [row, nb1, nb1.saturating_mul(n_pos.max(0) as u64)];
            let mut parts = [n_q, n_kv, n_kv].map(|n| self.g.view_4d(x, [d, n, n_pos, 1], nb));
            for i in 0..2 {
                if has_norm(self, i) {
                    parts[i] = self.norm(parts[i], vit.norm, &norms[i]);
                }
            }
            return parts;
        }
        let names = ["attn_q", "attn_k", "attn_v"].map(|kind| name(self, kind));
        let mut parts = names.map(|name| self.linear_by(x, &name, vit.mm));
        let q_norm = self.tower.tensor(&format!("{}.weight", norms[0]));
        let per_head = q_norm.is_some_and(|i| self.tower.tensors[i].ne[0] == d);
        let normed = |b: &mut Self, parts: &mut [TensorId; 3]| {
            for i in 0..2 {
                if has_norm(b, i) {
                    parts[i] = b.norm(parts[i], vit.norm, &norms[i]);
                }
            }
        };
        if !per_head {
            normed(self, &mut parts);
        }
        for (part, n) in parts.iter_mut().zip([n_head, n_kv, n_kv]) {
            *part = self.g.reshape(*part, [d, n, n_pos, 1]);
        }
        if per_head {
            normed(self, &mut parts);
        }
        parts
    }

    pub fn rotate(&mut self, x: TensorId, rope: Rope) -> TensorId {
        match rope {
            Rope::Multi(pos) => self.g.rope(x, pos, None),
            Rope::Halves(a, b) => {
                let x = self.g.rope(x, a, None);
                self.g.rope(x, b, None)
            }
        }
    }

    /// `build_vit`: the transformer over `n_pos` patches.
    pub fn vit(&mut self, inp: TensorId, n_pos: i64, vit: &Vit<'_>) -> TensorId {
        let inp = match vit.positions {
            Some(pos) => self.g.add(inp, pos),
            None => inp,
        };
        let n_embd = self.hp.n_embd;
        let mut x = self.g.reshape(inp, [n_embd, n_pos, 1, 1]);
        let prefix = self.tower.modality.tensor_prefix();
        let pre = format!("{prefix}.pre_ln");
        let post = match vit.post_norm {
            PostNorm::Own => Some(format!("{prefix}.post_ln")),
            PostNorm::Named(name) => Some(name.to_string()),
            PostNorm::Left => None,
        };
        if self.has(&format!("{pre}.weight")) {
            x = self.norm(x, vit.norm, &pre);
        }
        for il in 0..self.hp.n_layer {
            let mask = vit.masks.get(il).copied().flatten();
            x = self.layer(x, il, n_pos, vit, mask);
        }
        if vit.halved {
            let t = self.transposed(x);
            let t = self.g.pool_1d(t, 2);
            x = self.transposed(t);
        }
        if let Some(post) = post {
            x = self.normed_if(x, vit.norm, &post);
        }
        let rows = self.g[x].ne[1];
        self.g.reshape(x, [n_embd, rows, 1, 1])
    }

    /// One layer of the transformer.
    pub fn layer(
        &mut self,
        inp: TensorId,
        il: usize,
        n_pos: i64,
        vit: &Vit<'_>,
        mask: Option<TensorId>,
    ) -> TensorId {
        let name = |kind: &str| self.layer_name(il, kind);
        let [ln1, out, ls1, post] = ["ln1", "attn_out", "ls1", "attn_post_norm"].map(name);
        let [ln2, ls2, ffn_post, out_scale] =
            ["ln2", "ls2", "ffn_post_norm", "out_scale"].map(name);
        let x = self.norm(inp, vit.norm, &ln1);
        let [mut q, mut k, mut v] = self.qkv(x, il, n_pos, vit);
        if let Some(rope) = vit.rope {
            q = self.rotate(q, rope);
            k = self.rotate(k, rope);
        }
        if vit.normed_v {
            v = self.g.map(Op::RmsNorm, v);
        }
        let sinks = (vit.sinks && mask.is_some()).then(|| {
            let name = self.layer_name(il, "attn_sinks");
            self.need(&name)
        });
        let x = self.attention_with([q, k, v], mask, sinks);
        let x = self.linear_by(x, &out, vit.mm);
        let x = self.scaled(x, &ls1);
        let x = self.normed_if(x, vit.norm, &post);
        let mid = self.g.add(x, inp);
        if self.tap == Some(il) {
            self.tapped = Some(mid);
        }
        let x = self.norm(mid, vit.norm, &ln2);
        let x = match self.has(&self.layer_name(il, "ffn_gate_exps.weight")) {
            true => self.experts(x, il),
            false => self.layer_ffn(x, il, vit),
        };
        let x = self.normed_if(x, vit.norm, &ffn_post);
        let x = self.scaled(x, &ls2);
        let x = self.g.add(mid, x);
        self.scaled(x, &out_scale)
    }

    /// `build_moe_ffn`: a sigmoid chooses experts, their sum is weighed.
    fn experts(&mut self, x: TensorId, il: usize) -> TensorId {
        let name = |kind: &str| self.layer_name(il, kind);
        let names = ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"].map(name);
        let (router, bias) = (name("ffn_gate_inp.weight"), name("exp_probs_b.weight"));
        let [gate, up, down] = names.map(|name| self.need(&format!("{name}.weight")));
        let n_expert = self.g[gate].ne[2];
        let n_used = self.hp.n_expert_used.min(n_expert);
        let logits = plain(self, &router, x);
        let probs = self.g.unary(Unary::Sigmoid, logits);
        let choice = match self.weight(&bias) {
            Some(bias) => self.g.add(probs, bias),
            None => probs,
        };
        let g = &mut self.g;
        let [n_embd, n_pos, ..] = g[x].ne;
        let chosen = g.top_k(choice, n_used);
        let rows = g.reshape(probs, [1, n_expert, n_pos, 1]);
        let weights = g.get_rows(rows, chosen);
        let weights = g.reshape(weights, [n_used, n_pos, 1, 1]);
        let sum = g.sum_rows(weights);
        let weights = g.div(weights, sum);
        let weights = g.reshape(weights, [1, n_used, n_pos, 1]);
        let x = g.reshape(x, [n_embd, 1, n_pos, 1]);
        let gate = g.mul_mat_id(gate, x, chosen);
        let up = g.mul_mat_id(up, x, chosen);
        let gate = g.unary(Unary::Silu, gate);
        let y = g.mul(gate, up);
        let y = g.mul_mat_id(down, y, chosen);
        let y = g.mul(y, weights);
        let ([n, ..], [_, _, nb2, _]) = (g[y].ne, g[y].nb);
        let mut sum: Option<TensorId> = None;
        for _ in 0..n_used.min(MAX_EXPERTS) {
            let one = g.view_2d(y, [n, n_pos], nb2);
            sum = Some(match sum {
                Some(sum) => g.add(sum, one),
                None => one,
            });
        }
        match sum {
            Some(sum) if n_used > 1 => sum,
            sum => g.cont(sum.unwrap_or(y)),
        }
    }

    fn scaled(&mut self, x: TensorId, name: &str) -> TensorId {
        match self.weight(&format!("{name}.weight")) {
            Some(scale) => self.g.mul(x, scale),
            None => x,
        }
    }

    pub fn normed_if(&mut self, x: TensorId, kind: NormKind, name: &str) -> TensorId {
        match self.has(&format!("{name}.weight")) {
            true => self.norm(x, kind, name),
            false => x,
        }
    }

    /// `build_patch_merge_permute`: squares of patches become one token each.
    pub fn merge_patches(&mut self, x: TensorId) -> TensorId {
        let s = self.hp.n_merge.max(1);
        let n_embd = self.g[x].ne[0];
        let [w, h] = self.n_patches;
        let x = self.g.reshape(x, [n_embd, w, h, 1]);
        let pad = |n: i64| (s - n % s) % s;
        let (w, h, x) = match (pad(w), pad(h)) {
            (0, 0) => (w, h, x),
            (a, b) => (w + a, h + b, self.g.pad_by(x, [0, a, b, 0])),
        };
        let wide = n_embd.saturating_mul(s);
        let x = self.g.reshape(x, [wide, w / s, h, 1]);
        let x = self.g.permute(x, [0, 2, 1, 3]);
        let x = self
            .g
            .cont_shape(x, [wide.saturating_mul(s), h / s, w / s, 1]);
        let x = self.g.permute(x, [0, 2, 1, 3]);
        let ne = self.g[x].ne;
        self.g
            .cont_shape(x, [ne[0], ne[1].saturating_mul(ne[2]), 1, 1])
    }

    /// `resize_position_embeddings`: learned positions of a square stretched to the image.
    pub fn resized_positions(&mut self) -> TensorId {
        let pos = self.need("v.position_embd.weight");
        let side = self.g[pos].ne[1].max(0).isqrt();
        let [w, h] = self.n_patches;
        if [w, h] == [side; 2] {
            return pos;
        }
        let n_embd = self.hp.n_embd;
        let g = &mut self.g;
        let pos = g.reshape(pos, [n_embd, side, side, 1]);
        let pos = g.permute(pos, [2, 0, 1, 3]);
        let pos = g.interpolate(pos, [w, h, n_embd, 1]);
        let pos = g.permute(pos, [1, 2, 0, 3]);
        g.cont_shape(pos, [n_embd, w.saturating_mul(h), 1, 1])
    }

    /// Patches in the order of squares of `s` by `s`, from `[w, h, c]`-like rows of `n_embd` (Qwen-VL).
    pub fn by_squares(&mut self, x: TensorId, s: i64) -> TensorId {
        let s = s.max(1);
        let wide = self.hp.n_embd.saturating_mul(s);
        let [w, h] = self.n_patches;
        let g = &mut self.g;
        let x = g.cont_shape(x, [wide, w / s, h, 1]);
        let x = g.reshape(x, [wide, w / s, s, h / s]);
        let x = g.permute(x, [0, 2, 1, 3]);
        g.cont_shape(x, [self.hp.n_embd, w.saturating_mul(h), 1, 1])
    }

    /// Patches as an image: `[n_embd, w h]` to `[w, h, n_embd]`.
    pub fn as_image(&mut self, x: TensorId) -> TensorId {
        let [w, h] = self.n_patches;
        let n = self.g[x].ne[0];
        let x = self.g.reshape(x, [n, w, h, 1]);
        self.channels_last(x)
    }

    /// `[c, w, h]` to `[w, h, c]`.
    pub fn channels_last(&mut self, x: TensorId) -> TensorId {
        let x = self.g.permute(x, [2, 0, 1, 3]);
        self.g.cont(x)
    }

    /// `[w, h, c]` to `[c, w, h]`.
    pub fn channels_first(&mut self, x: TensorId) -> TensorId {
        let x = self.g.permute(x, [1, 2, 0, 3]);
        self.g.cont(x)
    }

    /// The bias `name` a channel, added to `[w, h, c]`.
    pub fn add_channels(&mut self, x: TensorId, name: &str) -> TensorId {
        match self.weight(name) {
            Some(bias) => {
                let n = self.g[bias].ne[0];
                let bias = self.g.reshape(bias, [1, 1, n, 1]);
                self.g.add(x, bias)
            }
            None => x,
        }
    }

    /// A row `[n]` of the projector as the matrix `[n, 1]`.
    pub fn row(&mut self, name: &str) -> TensorId {
        let row = self.need(name);
        let n = self.g[row].n_elements();
        self.g.reshape(row, [n, 1, 1, 1])
    }
}
