//! What the graphs of towers share (`clip_graph` in `clip.cpp`).

use super::{Activation, Modality, Tower, TowerHparams};
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
    /// What names of a layer's tensors begin with.
    pub layers: &'static str,
    /// The layer whose attention is kept in `tapped`.
    pub tap: Option<usize>,
    /// What goes into the network of layer `tap`.
    pub tapped: Option<TensorId>,
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

/// `w x`.
pub(crate) fn plain(b: &mut TowerGraph<'_>, name: &str, x: TensorId) -> TensorId {
    let w = b.need(name);
    b.g.mul_mat(w, x)
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
            layers: match tower.modality {
                Modality::Vision => "v.blk",
                Modality::Audio => "a.blk",
                Modality::Speech => "a.gen.code.blk",
            },
            tap: None,
            tapped: None,
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
        let ty = self.g.conv_type(kernel);
        self.conv_2d_in(ty, kernel, x, stride, pad)
    }

    /// [`conv_2d`](Self::conv_2d) with the input spread in type `ty`.
    pub fn conv_2d_in(
        &mut self,
        ty: Type,
        kernel: TensorId,
        x: TensorId,
        stride: i64,
        pad: i64,
    ) -> TensorId {
        let g = &mut self.g;
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
        let pad = self.g[kernel].ne[0] / 2;
        self.conv_1d_padded(kernel, x, stride, pad)
    }

    /// `ggml_conv_1d`.
    pub fn conv_1d_padded(
        &mut self,
        kernel: TensorId,
        x: TensorId,
        stride: i64,
        pad: i64,
    ) -> TensorId {
        let g = &mut self.g;
        let columns = g.im2col_1d(kernel, x, stride, pad);
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

    pub fn linear_by(
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
}
