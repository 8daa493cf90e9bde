//! Constructors of views and copies: other shapes of the same values.

use crate::graph::contiguous_strides;
use crate::{Graph, GraphError, Op, TensorId, Type};

impl Graph {
    /// The same elements in another shape.
    pub fn reshape(&mut self, a: TensorId, ne: [i64; 4]) -> TensorId {
        let t = &self[a];
        let n = ne.iter().fold(1, |n: i64, &x| n.saturating_mul(x));
        if !t.is_contiguous() || t.n_elements() != n {
            let error = GraphError::Shapes {
                op: Op::Reshape,
                a: t.ne,
                b: ne,
            };
            self.fail(error);
        }
        let nb = contiguous_strides(self[a].ty, ne);
        self.new_view(Op::Reshape, a, ne, nb, &[a])
    }

    /// A window of `a` with strides `nb1`, `nb2`, `nb3` in bytes.
    pub fn view_4d(&mut self, a: TensorId, ne: [i64; 4], nb: [u64; 3]) -> TensorId {
        let nb0 = self[a].ty.type_size();
        self.new_view(Op::View, a, ne, [nb0, nb[0], nb[1], nb[2]], &[a])
    }

    /// A three-dimensional window.
    pub fn view_3d(&mut self, a: TensorId, ne: [i64; 3], nb: [u64; 2]) -> TensorId {
        let nb3 = nb[1].saturating_mul(ne[2].max(0) as u64);
        self.view_4d(a, [ne[0], ne[1], ne[2], 1], [nb[0], nb[1], nb3])
    }

    /// A two-dimensional window.
    pub fn view_2d(&mut self, a: TensorId, ne: [i64; 2], nb1: u64) -> TensorId {
        let nb2 = nb1.saturating_mul(ne[1].max(0) as u64);
        self.view_4d(a, [ne[0], ne[1], 1, 1], [nb1, nb2, nb2])
    }

    /// `n` elements in a row.
    pub fn view_1d(&mut self, a: TensorId, n: i64) -> TensorId {
        let nb = contiguous_strides(self[a].ty, [n, 1, 1, 1]);
        self.view_4d(a, [n, 1, 1, 1], [nb[1], nb[2], nb[3]])
    }

    /// Dimension `i` becomes dimension `axes[i]`.
    pub fn permute(&mut self, a: TensorId, axes: [usize; 4]) -> TensorId {
        let (x, b) = (self[a].ne, self[a].nb);
        let (mut ne, mut nb) = ([0; 4], [0; 4]);
        for i in 0..4 {
            ne[axes[i]] = x[i];
            nb[axes[i]] = b[i];
        }
        self.new_view(Op::Permute, a, ne, nb, &[a])
    }

    /// The first two dimensions swapped.
    pub fn transpose(&mut self, a: TensorId) -> TensorId {
        let (x, b) = (self[a].ne, self[a].nb);
        let (ne, nb) = ([x[1], x[0], x[2], x[3]], [b[1], b[0], b[2], b[3]]);
        self.new_view(Op::Transpose, a, ne, nb, &[a])
    }

    /// A contiguous copy.
    pub fn cont(&mut self, a: TensorId) -> TensorId {
        self.like(Op::Cont, a, &[a])
    }

    /// A contiguous copy in another shape.
    pub fn cont_shape(&mut self, a: TensorId, ne: [i64; 4]) -> TensorId {
        let ty = self[a].ty;
        if self[a].n_elements() != ne.iter().fold(1, |n: i64, &x| n.saturating_mul(x)) {
            let error = GraphError::Shapes {
                op: Op::Cont,
                a: self[a].ne,
                b: ne,
            };
            self.fail(error);
        }
        self.new_tensor(Op::Cont, ty, ne, &[a])
    }

    /// Writes `a` over `b`; the result is a view of `b`.
    pub fn cpy(&mut self, a: TensorId, b: TensorId) -> TensorId {
        let (ne, nb) = (self[b].ne, self[b].nb);
        if self[a].n_elements() != self[b].n_elements() {
            let error = GraphError::Shapes {
                op: Op::Cpy,
                a: self[a].ne,
                b: ne,
            };
            self.fail(error);
        }
        self.new_view(Op::Cpy, b, ne, nb, &[a, b])
    }

    /// A copy in another type (a CPY whose second source is itself).
    pub fn cast(&mut self, a: TensorId, ty: Type) -> TensorId {
        let ne = self[a].ne;
        let t = self.new_tensor(Op::Cpy, ty, ne, &[a, a]);
        self[t].replace_source(1, t);
        t
    }

    /// `a` and `b` behind each other along `dim`.
    pub fn concat(&mut self, a: TensorId, b: TensorId, dim: usize) -> TensorId {
        let (ty, mut ne, y) = (self[a].ty, self[a].ne, self[b].ne);
        if (0..4).any(|i| i != dim && ne[i] != y[i]) {
            self.fail(GraphError::Shapes {
                op: Op::Concat,
                a: ne,
                b: y,
            });
        }
        ne[dim] = ne[dim].saturating_add(y[dim]);
        self.new_tensor(Op::Concat, ty, ne, &[a, b])
    }

    /// `a` repeated to the shape `ne`.
    pub fn repeat(&mut self, a: TensorId, ne: [i64; 4]) -> TensorId {
        let ty = self[a].ty;
        self.new_tensor(Op::Repeat, ty, ne, &[a])
    }

    /// Zeros behind the first dimension up to `n` elements.
    pub fn pad_to(&mut self, a: TensorId, n: i64) -> TensorId {
        let (ty, ne) = (self[a].ty, self[a].ne);
        self.new_tensor(Op::Pad, ty, [n, ne[1], ne[2], ne[3]], &[a])
    }
}
