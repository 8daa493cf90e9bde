//! What the graphs of towers share (`clip_graph` in `clip.cpp`).

use super::{Activation, Tower, TowerHparams};
use crate::{Error, Result};
use vramfit_ggml::{BufferType, Flags, Graph, Label, Op, TensorId, Type};

/// A graph in the making.
pub(crate) struct TowerGraph<'a> {
    pub g: Graph,
    pub tower: &'a Tower,
    pub hp: &'a TowerHparams,
    /// Patches in a row and in a column.
    pub n_patches: [i64; 2],
    /// Whether attention is one operation.
    pub flash_attn: bool,
    buffer: BufferType,
    placed: Vec<Option<TensorId>>,
    missing: Option<String>,
}

/// The kind of a layer's norms.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormKind {
    Layer,
    Rms,
}

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
    /// How a matrix is applied; some types limit what goes in and comes out.
    pub mm: &'p dyn Fn(&mut TowerGraph<'_>, &str, TensorId) -> TensorId,
}

/// Rotary positions.
#[derive(Clone, Copy)]
pub(crate) enum Rope {
    /// Of several kinds in one operation.
    Multi(TensorId),
    /// The first half of a head by one, the second by the other.
    Halves(TensorId, TensorId),
}

/// `w x`.
pub(crate) fn plain(b: &mut TowerGraph<'_>, name: &str, x: TensorId) -> TensorId {
    let w = b.need(name);
    b.g.mul_mat(w, x)
}

impl Vit<'_> {
    pub fn new(norm: NormKind) -> Vit<'static> {
        Vit {
            norm,
            positions: None,
            rope: None,
            normed_v: false,
            halved: false,
            mm: &plain,
        }
    }
}

impl<'a> TowerGraph<'a> {
    pub fn new(tower: &'a Tower, buffer: BufferType, flash_attn: bool) -> TowerGraph<'a> {
        let hp = &tower.hparams;
        TowerGraph {
            g: Graph::with_capacity(64 * hp.n_layer + 128),
            tower,
            hp,
            n_patches: hp.warmup.map(|side| side / hp.patch_size.max(1)),
            flash_attn,
            buffer,
            placed: vec![None; tower.tensors.len()],
            missing: None,
        }
    }

    pub fn finish(mut self, result: TensorId) -> Result<Graph> {
        if let Some(name) = self.missing {
            return Err(Error::MissingTensor { name });
        }
        if let Some(error) = self.g.error() {
            return Err(error.clone().into());
        }
        self.g.expand(result);
        Ok(self.g)
    }

    /// A weight, if the file has it.
    pub fn weight(&mut self, name: &str) -> Option<TensorId> {
        let index = self.tower.tensor(name)?;
        if let Some(t) = self.placed[index] {
            return Some(t);
        }
        let t = &self.tower.tensors[index];
        let label = Label::Weight(index as u32);
        let id = self.g.placed(label, t.ty, t.ne, self.buffer);
        self.g[id].flags.insert(Flags::WEIGHT);
        self.placed[index] = Some(id);
        Some(id)
    }

    /// A weight that has to be there.
    pub fn need(&mut self, name: &str) -> TensorId {
        match self.weight(name) {
            Some(t) => t,
            None => {
                self.missing.get_or_insert_with(|| name.to_string());
                self.g.new_tensor(Op::None, Type::F32, [1; 4], &[])
            }
        }
    }

    pub fn has(&self, name: &str) -> bool {
        self.tower.tensor(name).is_some()
    }

    pub fn n_pos(&self) -> i64 {
        self.n_patches[0].saturating_mul(self.n_patches[1])
    }

    /// An input of `n` whole numbers.
    pub fn ids(&mut self, name: &'static str, n: i64) -> TensorId {
        self.g.input(name, Type::I32, [n, 1, 1, 1])
    }

    /// `build_inp_raw`.
    pub fn raw(&mut self, channels: i64) -> TensorId {
        let [x, y] = self.hp.warmup;
        self.g.input("inp_raw", Type::F32, [x, y, channels, 1])
    }

    /// `ggml_conv_2d` with the same stride and padding both ways.
    pub fn conv_2d(&mut self, kernel: TensorId, x: TensorId, stride: i64, pad: i64) -> TensorId {
        let g = &mut self.g;
        let ty = g.conv_type(kernel);
        let columns = g.im2col_2d(kernel, x, [stride; 2], [pad; 2], ty);
        let (c, k) = (g[columns].ne, g[kernel].ne);
        let rows = c[1].saturating_mul(c[2]).saturating_mul(c[3]);
        let a = g.reshape(columns, [c[0], rows, 1, 1]);
        let b = g.reshape(kernel, [c[0], k[3], 1, 1]);
        let y = g.mul_mat(a, b);
        let y = g.reshape(y, [c[1], c[2], c[3], k[3]]);
        let y = g.permute(y, [0, 1, 3, 2]);
        g.cont(y)
    }

    /// `ggml_conv_1d_ph`.
    pub fn conv_1d(&mut self, kernel: TensorId, x: TensorId, stride: i64) -> TensorId {
        let g = &mut self.g;
        let columns = g.im2col_1d(kernel, x, stride, g[kernel].ne[0] / 2);
        let (c, k) = (g[columns].ne, g[kernel].ne);
        let a = g.reshape(columns, [c[0], c[1].saturating_mul(c[2]), 1, 1]);
        let b = g.reshape(kernel, [k[0].saturating_mul(k[1]), k[2], 1, 1]);
        let y = g.mul_mat(a, b);
        g.reshape(y, [c[1], k[2], c[2], 1])
    }

    /// `build_inp`: patches of the image, `[n_embd, n_patches]`.
    pub fn patches(&mut self) -> TensorId {
        let image = self.raw(3);
        let inp = self.patches_of(image);
        match self.weight("v.patch_embd.bias") {
            Some(bias) => self.g.add(inp, bias),
            None => inp,
        }
    }

    /// Patches without a bias.
    pub fn patches_of(&mut self, image: TensorId) -> TensorId {
        let kernel = self.need("v.patch_embd.weight");
        let inp = self.conv_2d(kernel, image, self.hp.patch_size, 0);
        let inp = self.g.reshape(inp, [self.n_pos(), self.hp.n_embd, 1, 1]);
        self.transposed(inp)
    }

    pub fn transposed(&mut self, x: TensorId) -> TensorId {
        let t = self.g.transpose(x);
        self.g.cont(t)
    }

    /// `build_norm` with `name.weight` and `name.bias`, as far as they are there.
    pub fn norm(&mut self, x: TensorId, kind: NormKind, name: &str) -> TensorId {
        let op = match kind {
            NormKind::Layer => Op::Norm,
            NormKind::Rms => Op::RmsNorm,
        };
        let mut x = self.g.map(op, x);
        if let Some(w) = self.weight(&format!("{name}.weight")) {
            x = self.g.mul(x, w);
        }
        if let Some(b) = self.weight(&format!("{name}.bias")) {
            x = self.g.add(x, b);
        }
        x
    }

    /// `name.weight` times `x`, plus `name.bias` if there is one.
    pub fn linear(&mut self, x: TensorId, name: &str) -> TensorId {
        self.linear_by(x, name, &plain)
    }

    fn linear_by(
        &mut self,
        x: TensorId,
        name: &str,
        mm: &dyn Fn(&mut TowerGraph<'_>, &str, TensorId) -> TensorId,
    ) -> TensorId {
        let y = mm(self, &format!("{name}.weight"), x);
        match self.weight(&format!("{name}.bias")) {
            Some(b) => self.g.add(y, b),
            None => y,
        }
    }

    pub fn activate(&mut self, x: TensorId, kind: Activation) -> TensorId {
        let y = self.g.unary(kind.unary(), x);
        match kind {
            Activation::ReluSqr => self.g.map(Op::Sqr, y),
            _ => y,
        }
    }

    /// `build_ffn` without a gate.
    pub fn mlp(&mut self, x: TensorId, up: &str, kind: Activation, down: &str) -> TensorId {
        let x = self.linear(x, up);
        let x = self.activate(x, kind);
        self.linear(x, down)
    }

    /// `build_ffn` with a gate, if there is one.
    pub fn ffn(
        &mut self,
        x: TensorId,
        [up, gate, down]: [&str; 3],
        kind: Activation,
        mm: &dyn Fn(&mut TowerGraph<'_>, &str, TensorId) -> TensorId,
    ) -> TensorId {
        let tmp = self.linear_by(x, up, mm);
        let y = match kind.glu().filter(|_| self.has(&format!("{gate}.weight"))) {
            Some(glu) => {
                let gate = self.linear_by(x, gate, mm);
                self.g.glu_split(glu, gate, tmp)
            }
            None => self.activate(tmp, kind),
        };
        self.linear_by(y, down, mm)
    }

    /// The feed-forward network of layer `il`. Old files of some types have up and down swapped.
    pub fn layer_ffn(
        &mut self,
        x: TensorId,
        il: usize,
        mm: &dyn Fn(&mut TowerGraph<'_>, &str, TensorId) -> TensorId,
    ) -> TensorId {
        let name = |kind: &str| self.layer_name(il, kind);
        let (mut up, gate, mut down) = (name("ffn_up"), name("ffn_gate"), name("ffn_down"));
        let down_in = self
            .tower
            .tensor(&format!("{down}.weight"))
            .map(|i| self.tower.tensors[i].ne[0]);
        if self.tower.kind.swaps_ffn && down_in == Some(self.hp.n_embd) {
            std::mem::swap(&mut up, &mut down);
        }
        self.ffn(x, [&up, &gate, &down], self.hp.activation, mm)
    }

    pub fn layer_name(&self, il: usize, kind: &str) -> String {
        format!("{}.blk.{il}.{kind}", self.tower.modality.tensor_prefix())
    }

    /// `build_attn` over `[d_head, n_head, n_pos]`, without the output matrix.
    pub fn attention(&mut self, [q, k, v]: [TensorId; 3], mask: Option<TensorId>) -> TensorId {
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
            let y = g.flash_attn([q, k, v], mask, None);
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
            let kq = g.soft_max(kq, mask, None);
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
            let row = self.g[x].ty.row_size(d.max(0) as u64);
            let nb = [row, nb1, nb1.saturating_mul(n_pos.max(0) as u64)];
            let mut parts = [0; 3].map(|_: u8| self.g.view_4d(x, [d, n_head, n_pos, 1], nb));
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
        let (pre, post) = (format!("{prefix}.pre_ln"), format!("{prefix}.post_ln"));
        if self.has(&format!("{pre}.weight")) {
            x = self.norm(x, vit.norm, &pre);
        }
        for il in 0..self.hp.n_layer {
            x = self.layer(x, il, n_pos, vit, None);
        }
        if vit.halved {
            let t = self.transposed(x);
            let t = self.g.pool_1d(t, 2);
            x = self.transposed(t);
        }
        if self.has(&format!("{post}.weight")) {
            x = self.norm(x, vit.norm, &post);
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
        let x = self.attention([q, k, v], mask);
        let x = self.linear_by(x, &out, vit.mm);
        let x = self.scaled(x, &ls1);
        let x = self.normed_if(x, vit.norm, &post);
        let mid = self.g.add(x, inp);
        let x = self.norm(mid, vit.norm, &ln2);
        let x = self.layer_ffn(x, il, vit.mm);
        let x = self.normed_if(x, vit.norm, &ffn_post);
        let x = self.scaled(x, &ls2);
        let x = self.g.add(mid, x);
        self.scaled(x, &out_scale)
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

    /// Patches in the order of squares of two by two, from `[w, h, c]`-like rows of `n_embd` (Qwen-VL).
    pub fn by_squares(&mut self, x: TensorId) -> TensorId {
        let n = self.hp.n_embd;
        let [w, h] = self.n_patches;
        let g = &mut self.g;
        let x = g.cont_shape(x, [2 * n, w / 2, h, 1]);
        let x = g.reshape(x, [2 * n, w / 2, 2, h / 2]);
        let x = g.permute(x, [0, 2, 1, 3]);
        g.cont_shape(x, [n, w.saturating_mul(h), 1, 1])
    }
}
