//! Convolutions and what goes with them: pooling, padding, stretching (`ggml.c`).

use crate::{Graph, GraphError, Op, TensorId, Type};

impl Graph {
    /// What a filter `w` sees at each place of `x` (`ggml_im2col`, one dimension), with so many zeros
    /// on both sides that a filter of odd length sees as many places as there are.
    pub fn im2col(&mut self, w: TensorId, x: TensorId) -> TensorId {
        let pad = self[w].ne[0] / 2;
        self.im2col_1d(w, x, 1, pad)
    }

    /// The largest of each `n` elements of a row.
    pub fn pool_rows(&mut self, a: TensorId, n: i64) -> TensorId {
        let ne = self[a].ne;
        let ne = [ne[0] / n.max(1), ne[1], ne[2], ne[3]];
        self.new_tensor(Op::Pool2d, Type::F32, ne, &[a])
    }

    /// The mean of each `n` elements of a row.
    pub fn pool_1d(&mut self, a: TensorId, n: i64) -> TensorId {
        let ne = self[a].ne;
        let ne = [ne[0] / n.max(1), ne[1], ne[2], ne[3]];
        self.new_tensor(Op::Pool1d, Type::F32, ne, &[a])
    }

    /// The mean of each square of `n` by `n` elements.
    pub fn pool_2d(&mut self, a: TensorId, n: i64) -> TensorId {
        self.pool_2d_by(a, [n; 2])
    }

    /// The same of other rectangles.
    pub fn pool_2d_by(&mut self, a: TensorId, by: [i64; 2]) -> TensorId {
        let (ne, [x, y]) = (self[a].ne, by.map(|n| n.max(1)));
        let ne = [ne[0] / x, ne[1] / y, ne[2], ne[3]];
        self.new_tensor(Op::Pool2d, Type::F32, ne, &[a])
    }

    /// The first two dimensions stretched to those of `ne` (`ggml_interpolate`).
    pub fn interpolate(&mut self, a: TensorId, ne: [i64; 4]) -> TensorId {
        let ty = self[a].ty;
        if ty != Type::F32 {
            let a = self[a].ne;
            let op = Op::Upscale;
            self.fail(GraphError::Shapes { op, a, b: ne });
        }
        self.new_tensor(Op::Upscale, ty, ne, &[a])
    }

    /// Zeros behind each dimension, as many as `by` says.
    pub fn pad_by(&mut self, a: TensorId, by: [i64; 4]) -> TensorId {
        let (ty, mut ne) = (self[a].ty, self[a].ne);
        ne.iter_mut()
            .zip(by)
            .for_each(|(n, more)| *n = n.saturating_add(more));
        self.new_tensor(Op::Pad, ty, ne, &[a])
    }

    /// What each step of a two-dimensional convolution sees, in a row: an image `[w, h, c, n]` and a kernel
    /// `[kw, kh, c, ..]` give `[kw kh c, w', h', n]`.
    pub fn im2col_2d(
        &mut self,
        kernel: TensorId,
        x: TensorId,
        stride: [i64; 2],
        pad: [i64; 2],
        ty: Type,
    ) -> TensorId {
        let (k, i) = (self[kernel].ne, self[x].ne);
        let [w, h] = [0, 1].map(|d| conv_size(i[d], k[d], stride[d], pad[d]));
        if k[2] != i[2] || w <= 0 || h <= 0 {
            let op = Op::Im2col;
            self.fail(GraphError::Shapes { op, a: k, b: i });
        }
        let row = k[0].saturating_mul(k[1]).saturating_mul(k[2]);
        self.new_tensor(Op::Im2col, ty, [row, w, h, i[3]], &[kernel, x])
    }

    /// The type that `ggml_conv_1d` and `ggml_conv_2d` spread an input in.
    pub fn conv_type(&self, kernel: TensorId) -> Type {
        match self[kernel].ty {
            Type::BF16 => Type::F32,
            _ => Type::F16,
        }
    }

    /// The same along one dimension: `[t, c]` and `[k, c, ..]` give `[k c, t']`.
    pub fn im2col_1d(&mut self, kernel: TensorId, x: TensorId, stride: i64, pad: i64) -> TensorId {
        let ty = self.conv_type(kernel);
        self.im2col_1d_by(kernel, x, [stride, pad, 1], ty)
    }

    /// The same in type `ty`, and of every `dilation`-th element.
    pub fn im2col_1d_by(
        &mut self,
        kernel: TensorId,
        x: TensorId,
        [stride, pad, dilation]: [i64; 3],
        ty: Type,
    ) -> TensorId {
        let (k, i) = (self[kernel].ne, self[x].ne);
        let seen = (k[0] - 1).saturating_mul(dilation).saturating_add(1);
        let n = conv_size(i[0], seen, stride, pad);
        if k[1] != i[1] || i[3] != 1 || n <= 0 {
            let op = Op::Im2col;
            self.fail(GraphError::Shapes { op, a: k, b: i });
        }
        let ne = [k[0].saturating_mul(k[1]), n, i[2], 1];
        self.new_tensor(Op::Im2col, ty, ne, &[kernel, x])
    }

    /// `ggml_conv_2d_dw`: a kernel `[kw, kh, 1, c]` a channel, as a product over what each step sees.
    pub fn conv_2d_dw(&mut self, kernel: TensorId, x: TensorId, stride: i64, pad: i64) -> TensorId {
        let ty = self.conv_type(kernel);
        let (k, i) = (self[kernel].ne, self[x].ne);
        let kernel = self.reshape(kernel, [k[0], k[1], 1, k[2].saturating_mul(k[3])]);
        let flat = self.reshape(x, [i[0], i[1], 1, i[2].saturating_mul(i[3])]);
        let columns = self.im2col_2d(kernel, flat, [stride; 2], [pad; 2], ty);
        let c = self[columns].ne;
        let b = self.reshape(columns, [c[0], c[2].saturating_mul(c[1]), i[2], i[3]]);
        let k = self[kernel].ne;
        let a = self.reshape(kernel, [k[0].saturating_mul(k[1]), k[2], k[3], 1]);
        if ty == Type::F16 && self[a].ty != Type::F16 {
            let (op, a) = (Op::MulMat, self[a].ty);
            self.fail(GraphError::Types { op, a, b: ty });
        }
        let y = self.mul_mat(a, b);
        self.reshape(y, [c[1], c[2], i[2], i[3]])
    }

    /// A two-dimensional convolution in one operation: an image `[w, h, c, n]` and kernels `[kw, kh, c, c']` give
    /// `[w', h', c', n]`.
    pub fn conv_2d_direct(
        &mut self,
        kernel: TensorId,
        x: TensorId,
        stride: i64,
        pad: i64,
    ) -> TensorId {
        let (k, i) = (self[kernel].ne, self[x].ne);
        self.direct(Op::Conv2d, [kernel, x], [stride, pad], (k[2] == i[2], k[3]))
    }

    /// The same with one kernel `[kw, kh, 1, c]` a channel.
    pub fn conv_2d_dw_direct(
        &mut self,
        kernel: TensorId,
        x: TensorId,
        stride: i64,
        pad: i64,
    ) -> TensorId {
        let (k, i) = (self[kernel].ne, self[x].ne);
        let fits = k[2] == 1 && k[3] == i[2];
        self.direct(Op::Conv2dDw, [kernel, x], [stride, pad], (fits, i[2]))
    }

    /// `op` gives so many channels where its kernel fits.
    fn direct(
        &mut self,
        op: Op,
        [kernel, x]: [TensorId; 2],
        [stride, pad]: [i64; 2],
        (fits, channels): (bool, i64),
    ) -> TensorId {
        let (k, i, ty) = (self[kernel].ne, self[x].ne, self[x].ty);
        let [w, h] = [0, 1].map(|d| conv_size(i[d], k[d], stride, pad));
        if !fits || w <= 0 || h <= 0 {
            self.fail(GraphError::Shapes { op, a: k, b: i });
        }
        self.new_tensor(op, ty, [w, h, channels, i[3]], &[kernel, x])
    }

    /// Each row with its first and last `n` elements mirrored at its ends.
    pub fn pad_reflect_1d(&mut self, a: TensorId, n: i64) -> TensorId {
        let (ty, mut ne) = (self[a].ty, self[a].ne);
        if n >= ne[0] || ty != Type::F32 || !self[a].is_contiguous() {
            let (op, b) = (Op::PadReflect1d, [n, 0, 0, 0]);
            self.fail(GraphError::Shapes { op, a: ne, b });
        }
        ne[0] = ne[0].saturating_add(n.saturating_mul(2));
        self.new_tensor(Op::PadReflect1d, ty, ne, &[a])
    }

    /// The elements moved round along one dimension or more.
    pub fn roll(&mut self, a: TensorId) -> TensorId {
        let (ty, ne) = (self[a].ty, self[a].ne);
        self.new_tensor(Op::Roll, ty, ne, &[a])
    }
}

/// `ggml_calc_conv_output_size` without dilation.
fn conv_size(n: i64, kernel: i64, stride: i64, pad: i64) -> i64 {
    n.saturating_add(pad.saturating_mul(2))
        .saturating_sub(kernel)
        .div_euclid(stride.max(1))
        .saturating_add(1)
}
