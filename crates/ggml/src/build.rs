//! ggml's tensor constructors: the shape of each operation's result (`ggml.c`). Views and copies are in `shape`,
//! convolutions in `conv`.

use crate::{Flags, Glu, Graph, GraphError, Label, Op, TensorId, Type, Unary};

impl Graph {
    pub(crate) fn like(&mut self, op: Op, a: TensorId, src: &[TensorId]) -> TensorId {
        let (ty, ne) = (self[a].ty, self[a].ne);
        self.new_tensor(op, ty, ne, src)
    }

    fn check_repeats(&mut self, op: Op, a: TensorId, b: TensorId) {
        let (x, y) = (self[a].ne, self[b].ne);
        // rows that nobody wants are none on both sides
        let differs = |(&x, &y): (&i64, &i64)| x.checked_rem(y).map_or(x != 0, |rest| rest != 0);
        if x.iter().zip(&y).any(differs) {
            self.fail(GraphError::Shapes { op, a: x, b: y });
        }
    }

    /// An operation of one source whose result has its shape.
    pub fn map(&mut self, op: Op, a: TensorId) -> TensorId {
        self.like(op, a, &[a])
    }

    /// An element-wise activation.
    pub fn unary(&mut self, kind: Unary, a: TensorId) -> TensorId {
        self.like(Op::Unary(kind), a, &[a])
    }

    /// [`unary`](Self::unary) written over its source.
    pub fn unary_inplace(&mut self, kind: Unary, a: TensorId) -> TensorId {
        let (ne, nb) = (self[a].ne, self[a].nb);
        self.new_view(Op::Unary(kind), a, ne, nb, &[a])
    }

    /// `a * constant` (`ggml_scale`).
    pub fn scale(&mut self, a: TensorId) -> TensorId {
        self.like(Op::Scale, a, &[a])
    }

    /// [`scale`](Self::scale) written over its source.
    pub fn scale_inplace(&mut self, a: TensorId) -> TensorId {
        let (ne, nb) = (self[a].ne, self[a].nb);
        self.new_view(Op::Scale, a, ne, nb, &[a])
    }

    /// `a op b`, element by element; `b` is repeated to the shape of `a`.
    pub fn binary(&mut self, op: Op, a: TensorId, b: TensorId) -> TensorId {
        self.check_repeats(op, a, b);
        self.like(op, a, &[a, b])
    }

    /// `a + b`.
    pub fn add(&mut self, a: TensorId, b: TensorId) -> TensorId {
        self.binary(Op::Add, a, b)
    }

    /// [`add`](Self::add) written over `a`.
    pub fn add_inplace(&mut self, a: TensorId, b: TensorId) -> TensorId {
        self.check_repeats(Op::Add, a, b);
        let (ne, nb) = (self[a].ne, self[a].nb);
        self.new_view(Op::Add, a, ne, nb, &[a, b])
    }

    /// `a - b`.
    pub fn sub(&mut self, a: TensorId, b: TensorId) -> TensorId {
        self.binary(Op::Sub, a, b)
    }

    /// `a * b`, element by element.
    pub fn mul(&mut self, a: TensorId, b: TensorId) -> TensorId {
        self.binary(Op::Mul, a, b)
    }

    /// `a / b`, element by element.
    pub fn div(&mut self, a: TensorId, b: TensorId) -> TensorId {
        self.binary(Op::Div, a, b)
    }

    /// `w^T x`: `[k, n] x [k, t, ..] -> [n, t, ..]`, f32.
    pub fn mul_mat(&mut self, w: TensorId, x: TensorId) -> TensorId {
        let (a, b) = (self[w].ne, self[x].ne);
        if a[0] != b[0] || a[2] <= 0 || a[3] <= 0 || b[2] % a[2] != 0 || b[3] % a[3] != 0 {
            self.fail(GraphError::Shapes {
                op: Op::MulMat,
                a,
                b,
            });
        }
        self.new_tensor(Op::MulMat, Type::F32, [a[1], b[1], b[2], b[3]], &[w, x])
    }

    /// One matrix a chosen expert: `[k, n, e] x [k, 1 | u, t], ids [u, t] -> [n, u, t]`, f32.
    pub fn mul_mat_id(&mut self, w: TensorId, x: TensorId, ids: TensorId) -> TensorId {
        let (a, b, i) = (self[w].ne, self[x].ne, self[ids].ne);
        if a[0] != b[0] || a[3] != 1 || b[3] != 1 || i[1] != b[2] || b[1] <= 0 || i[0] % b[1] != 0 {
            self.fail(GraphError::Shapes {
                op: Op::MulMatId,
                a,
                b,
            });
        }
        self.new_tensor(Op::MulMatId, Type::F32, [a[1], i[0], b[2], 1], &[w, x, ids])
    }

    /// Rows of `a` picked by `ids`: f32, or i32 for an i32 table.
    pub fn get_rows(&mut self, a: TensorId, ids: TensorId) -> TensorId {
        let (x, i) = (self[a].ne, self[ids].ne);
        if x[2] != i[1] || x[3] != i[2] || i[3] != 1 {
            self.fail(GraphError::Shapes {
                op: Op::GetRows,
                a: x,
                b: i,
            });
        }
        let ty = if self[a].ty == Type::I32 {
            Type::I32
        } else {
            Type::F32
        };
        self.new_tensor(Op::GetRows, ty, [x[0], i[0], i[1], i[2]], &[a, ids])
    }

    /// A copy of `a` with `b` written over a part of it.
    pub fn set(&mut self, a: TensorId, b: TensorId) -> TensorId {
        self.like(Op::Set, a, &[a, b])
    }

    /// Writes the rows of `b` into `a` at the places `ids`; the result is a view of `a`.
    pub fn set_rows(&mut self, a: TensorId, b: TensorId, ids: TensorId) -> TensorId {
        let (x, y) = (self[a].ne, self[b].ne);
        if x[0] != y[0] || x[2] != y[2] || x[3] != y[3] {
            self.fail(GraphError::Shapes {
                op: Op::SetRows,
                a: x,
                b: y,
            });
        }
        let nb = self[a].nb;
        self.new_view(Op::SetRows, a, x, nb, &[b, ids, a])
    }

    /// Rotary position embedding, with frequency factors when the model has them.
    pub fn rope(&mut self, a: TensorId, pos: TensorId, factors: Option<TensorId>) -> TensorId {
        match factors {
            Some(f) => self.like(Op::Rope, a, &[a, pos, f]),
            None => self.like(Op::Rope, a, &[a, pos]),
        }
    }

    /// [`rope`](Self::rope) undone.
    pub fn rope_back(&mut self, a: TensorId, pos: TensorId) -> TensorId {
        self.like(Op::RopeBack, a, &[a, pos])
    }

    /// Where each row is largest.
    pub fn argmax(&mut self, a: TensorId) -> TensorId {
        let n = self[a].ne[1];
        self.new_tensor(Op::Argmax, Type::I32, [n, 1, 1, 1], &[a])
    }

    /// `activation(gate) * up`.
    pub fn glu_split(&mut self, kind: Glu, gate: TensorId, up: TensorId) -> TensorId {
        if self[gate].ne != self[up].ne {
            let error = GraphError::Shapes {
                op: Op::Glu(kind),
                a: self[gate].ne,
                b: self[up].ne,
            };
            self.fail(error);
        }
        self.like(Op::Glu(kind), gate, &[gate, up])
    }

    /// Gate and up side by side in one tensor: half as wide.
    pub fn glu(&mut self, kind: Glu, a: TensorId) -> TensorId {
        let (ty, ne) = (self[a].ty, self[a].ne);
        self.new_tensor(Op::Glu(kind), ty, [ne[0] / 2, ne[1], ne[2], ne[3]], &[a])
    }

    /// `softmax(a + mask)`, with attention sinks when there are any.
    pub fn soft_max(
        &mut self,
        a: TensorId,
        mask: Option<TensorId>,
        sinks: Option<TensorId>,
    ) -> TensorId {
        match (mask, sinks) {
            (None, _) => self.like(Op::SoftMax, a, &[a]),
            (Some(m), None) => self.like(Op::SoftMax, a, &[a, m]),
            (Some(m), Some(s)) => self.like(Op::SoftMax, a, &[a, m, s]),
        }
    }

    /// Flash attention over permuted q `[d, t, h]`, k `[d, n_kv, h_kv]`, v `[dv, n_kv, h_kv]`.
    pub fn flash_attn(
        &mut self,
        [q, k, v]: [TensorId; 3],
        mask: impl Into<Option<TensorId>>,
        sinks: Option<TensorId>,
    ) -> TensorId {
        let (a, b, c) = (self[q].ne, self[v].ne, self[k].ne);
        if a[0] != c[0] || c[2] <= 0 || a[2] % c[2] != 0 || c[1] != b[1] {
            self.fail(GraphError::Shapes {
                op: Op::FlashAttnExt,
                a,
                b: c,
            });
        }
        let ne = [b[0], a[2], a[1], a[3]];
        let mut src = vec![q, k, v];
        src.extend(mask.into());
        src.extend(sinks);
        let t = self.new_tensor(Op::FlashAttnExt, Type::F32, ne, &src);
        self[t].flags.insert(Flags::PREC_F32);
        t
    }

    /// Indices of each row in the order of its elements.
    pub fn argsort(&mut self, a: TensorId) -> TensorId {
        let ne = self[a].ne;
        self.new_tensor(Op::Argsort, Type::I32, ne, &[a])
    }

    /// Indices of the `k` largest of each row: a view of a full argsort.
    pub fn argsort_top_k(&mut self, a: TensorId, k: i64) -> TensorId {
        let ne = self[a].ne;
        if k > ne[0] {
            self.fail(GraphError::Shapes {
                op: Op::Argsort,
                a: ne,
                b: [k, ne[1], ne[2], ne[3]],
            });
        }
        let sorted = self.argsort(a);
        let nb = self[sorted].nb;
        self.view_4d(sorted, [k, ne[1], ne[2], ne[3]], [nb[1], nb[2], nb[3]])
    }

    /// Indices of the `k` largest of each row, in no order.
    pub fn top_k(&mut self, a: TensorId, k: i64) -> TensorId {
        let [n, rows @ ..] = self[a].ne;
        if k > n {
            let error = GraphError::Shapes {
                op: Op::TopK,
                a: self[a].ne,
                b: [k, rows[0], rows[1], rows[2]],
            };
            self.fail(error);
        }
        self.new_tensor(Op::TopK, Type::I32, [k, rows[0], rows[1], rows[2]], &[a])
    }

    /// How well each cell answers each token: q `[d, h, t, s]`, k `[d, 1, n_kv, s]`, weights
    /// `[h, t, 1, s]` and mask `[n_kv, t, 1, s]` give `[n_kv, t, 1, s]`.
    pub fn lightning_indexer(&mut self, src: [TensorId; 4]) -> TensorId {
        let [q, k, w, m] = src.map(|t| self[t].ne);
        let fits = q[0] == k[0] && k[1] == 1 && q[1] == w[0] && q[2] == w[1] && q[3] == k[3];
        if !fits || [m[0], m[1], m[2]] != [k[2], q[2], 1] || w[2] != 1 || w[3] != k[3] {
            let op = Op::LightningIndexer;
            self.fail(GraphError::Shapes { op, a: q, b: k });
        }
        let ne = [k[2], q[2], 1, q[3]];
        self.new_tensor(Op::LightningIndexer, Type::F32, ne, &src)
    }

    /// Streams `[d, h, t]` summed by weight `[h, t]`: `[d, t]`.
    pub fn dsv4_hc_pre(&mut self, x: TensorId, weights: TensorId) -> TensorId {
        let (a, b) = (self[x].ne, self[weights].ne);
        if b != [a[1], a[2], 1, 1] {
            let op = Op::Dsv4HcPre;
            self.fail(GraphError::Shapes { op, a, b });
        }
        let ne = [a[0], a[2], 1, 1];
        self.new_tensor(Op::Dsv4HcPre, Type::F32, ne, &[x, weights])
    }

    /// Streams `[d, h, t]` summed, each element by the sigmoid of its own gate: `[d, t]`.
    pub fn dsv4_hc_pre_gated(&mut self, x: TensorId, gates: TensorId) -> TensorId {
        let (a, b) = (self[x].ne, self[gates].ne);
        if a != b {
            let op = Op::Dsv4HcPre;
            self.fail(GraphError::Shapes { op, a, b });
        }
        let ne = [a[0], a[2], 1, 1];
        self.new_tensor(Op::Dsv4HcPre, Type::F32, ne, &[x, gates])
    }

    /// How four streams are mixed, made of their coefficients `[24, t]`: `[4, 4, t]`.
    pub fn dsv4_hc_comb(&mut self, mixes: TensorId, scale: TensorId, base: TensorId) -> TensorId {
        let a = self[mixes].ne;
        if a[0] != 24 || self[base].ne[0] != 24 || self[scale].ne[0] < 3 {
            let (op, b) = (Op::Dsv4HcComb, self[base].ne);
            self.fail(GraphError::Shapes { op, a, b });
        }
        let ne = [4, 4, a[1], 1];
        self.new_tensor(Op::Dsv4HcComb, Type::F32, ne, &[mixes, scale, base])
    }

    /// A block's result `[d, t]` added by weight to the streams `[d, h, t]`, these mixed by `comb`
    /// where there is one.
    pub fn dsv4_hc_post(
        &mut self,
        [x, streams, post]: [TensorId; 3],
        comb: Option<TensorId>,
    ) -> TensorId {
        let (a, b) = (self[x].ne, self[streams].ne);
        let fits = self[post].ne == [b[1], a[1], 1, 1]
            && comb.is_none_or(|c| self[c].ne == [b[1], b[1], a[1], 1]);
        if !fits || [a[0], a[1]] != [b[0], b[2]] {
            let op = Op::Dsv4HcPost;
            self.fail(GraphError::Shapes { op, a, b });
        }
        match comb {
            Some(c) => self.new_tensor(Op::Dsv4HcPost, Type::F32, b, &[x, streams, post, c]),
            None => self.new_tensor(Op::Dsv4HcPost, Type::F32, b, &[x, streams, post]),
        }
    }

    /// The numbers from 0 to `n`, f32.
    pub fn arange(&mut self, n: i64) -> TensorId {
        self.new_tensor(Op::Arange, Type::F32, [n, 1, 1, 1], &[])
    }

    /// The sum of each row.
    pub fn sum_rows(&mut self, a: TensorId) -> TensorId {
        self.rows_to_one(Op::SumRows, a)
    }

    /// The mean of each row.
    pub fn mean(&mut self, a: TensorId) -> TensorId {
        self.rows_to_one(Op::Mean, a)
    }

    fn rows_to_one(&mut self, op: Op, a: TensorId) -> TensorId {
        let ne = self[a].ne;
        self.new_tensor(op, Type::F32, [1, ne[1], ne[2], ne[3]], &[a])
    }

    /// Adds to each expert's row the bias of that expert.
    pub fn add_id(&mut self, a: TensorId, bias: TensorId, ids: TensorId) -> TensorId {
        if self[a].ne[0] != self[bias].ne[0] {
            let error = GraphError::Shapes {
                op: Op::AddId,
                a: self[a].ne,
                b: self[bias].ne,
            };
            self.fail(error);
        }
        self.like(Op::AddId, a, &[a, bias, ids])
    }

    /// Causal convolution along time: `[d_conv - 1 + t, d, s] * [d_conv, d] -> [d, t, s]`.
    pub fn ssm_conv(&mut self, x: TensorId, kernel: TensorId) -> TensorId {
        let (a, w) = (self[x].ne, self[kernel].ne);
        if a[1] != w[1] || a[0] < w[0] {
            self.fail(GraphError::Shapes {
                op: Op::SsmConv,
                a,
                b: w,
            });
        }
        let ne = [w[1], a[0].saturating_sub(w[0]).saturating_add(1), a[2], 1];
        self.new_tensor(Op::SsmConv, Type::F32, ne, &[x, kernel])
    }

    /// Selective state space scan over `s, x, dt, a, b, c, ids`: the outputs, then the new states, `n_kept` of each.
    pub fn ssm_scan(&mut self, src: [TensorId; 7], n_kept: i64) -> TensorId {
        let (s, x, ids) = (
            self[src[0]].ne,
            self[src[1]].n_elements(),
            self[src[6]].ne[0],
        );
        let states = s[0]
            .saturating_mul(s[1])
            .saturating_mul(s[2])
            .saturating_mul(ids)
            .saturating_mul(n_kept);
        self.new_tensor(
            Op::SsmScan,
            Type::F32,
            [x.saturating_add(states), 1, 1, 1],
            &src,
        )
    }

    /// Names a tensor as a step of layer `il`.
    pub fn name_layer(&mut self, t: TensorId, name: &'static str, il: usize) {
        self.set_label(t, Label::Layer(name, il as u32));
    }

    /// Names a tensor as a step outside the layers.
    pub fn name_step(&mut self, t: TensorId, name: &'static str) {
        self.set_label(t, Label::Step(name));
    }
}
