//! Layers with a recurrent state: Mamba 1 and 2, short convolutions.

use super::LlmGraph;
use crate::cache::CacheKind;
use crate::hparams::Ssm;
use crate::names::Kind;
use vramfit_ggml::{Glu, Graph, Op, TensorId, Type, Unary};

const F32_SIZE: u64 = Type::F32.type_size();

/// Bytes of `n` floats.
pub(crate) fn floats(n: i64) -> u64 {
    (n.max(0) as u64).saturating_mul(F32_SIZE)
}

impl LlmGraph<'_> {
    /// Shape of the recurrent layers.
    pub fn ssm(&mut self) -> Ssm {
        match self.hp.ssm {
            Some(ssm) => ssm,
            None => {
                self.missing("ssm.conv_kernel".to_string());
                Ssm {
                    d_conv: 1,
                    d_inner: 1,
                    d_state: 1,
                    dt_rank: 1,
                    n_group: 1,
                }
            }
        }
    }

    /// The convolution's state of layer `il`.
    pub fn conv_state(&mut self, il: usize) -> TensorId {
        self.cache(il, CacheKind::R)
    }

    /// The scan's state of layer `il`.
    pub fn scan_state(&mut self, il: usize) -> TensorId {
        self.cache(il, CacheKind::S)
    }

    /// `build_rs`: states of the batch's sequences, by `read(states, ids)`; the rest is moved on.
    pub fn read_state(
        &mut self,
        state: TensorId,
        read: impl FnOnce(&mut Graph, TensorId, TensorId) -> TensorId,
    ) -> TensorId {
        let (ne, nb) = (self[state].ne, self[state].nb);
        let Some([_, main, extra]) = self.state_ids else {
            return state;
        };
        let states = self.reshape(state, [ne[0], ne[1], 1, 1]);
        let cleared = self.view_1d(states, ne[0]);
        let cleared = self.scale_inplace(cleared);
        self.expand(cleared);
        let output = read(self, states, main);
        self.expand(output);
        let moved = self.get_rows(states, extra);
        let n_extra = self[extra].ne[0];
        let target = self.view_2d(state, [ne[0], n_extra], nb[1]);
        let moved = self.cpy(moved, target);
        self.expand(moved);
        output
    }

    /// States of the batch's sequences, copied out.
    pub fn gather_state(&mut self, state: TensorId) -> TensorId {
        self.read_state(state, |g, states, ids| g.get_rows(states, ids))
    }

    /// What a convolution of `taps` over `width` channels saw last: `[taps - 1, width, s]`.
    pub(crate) fn taps_before(&mut self, state: TensorId, width: i64, taps: i64) -> TensorId {
        let n_seqs = self.n_seqs;
        let before = self.gather_state(state);
        self.reshape(before, [taps - 1, width, n_seqs, 1])
    }

    /// A Mamba 2 layer (`build_mamba2_layer`).
    pub fn mamba2(&mut self, x: TensorId, il: usize) -> TensorId {
        let ssm = self.ssm();
        let (n_seqs, n_time) = (self.n_seqs, self.n_seq_tokens());
        let (n_head, head) = (ssm.dt_rank, ssm.d_inner / ssm.dt_rank.max(1));
        let width = ssm.d_inner + 2 * ssm.n_group * ssm.d_state;
        let (conv, scan) = (self.conv_state(il), self.scan_state(il));
        let n_kept = self.n_kept();

        let before = self.taps_before(conv, width, ssm.d_conv);
        let projected = self.linear(x, Kind::SsmIn, il);
        let n = self[projected].ne[0];
        let zxbcdt = self.reshape(projected, [n, n_time, n_seqs, 1]);
        let nb = self[zxbcdt].nb;
        let z = self.view_4d(
            zxbcdt,
            [head, n_head, n_time, n_seqs],
            [floats(head), nb[1], nb[2]],
        );
        let xbc = self.view_3d(zxbcdt, [width, n_time, n_seqs], [nb[1], nb[2]]);
        let dt = self.view_3d(zxbcdt, [n_head, n_time, n_seqs], [nb[1], nb[2]]);

        let xbc = self.transpose(xbc);
        let all = self.concat(before, xbc, 0);
        self.keep_taps(conv, all, width, ssm.d_conv);
        let kernel = self.weight(il, Kind::SsmConv1d);
        let kernel_b = self.bias(il, Kind::SsmConv1d);
        let xbc = self.ssm_conv(all, kernel);
        let xbc = self.add(xbc, kernel_b);
        let xbc = self.unary(Unary::Silu, xbc);
        let nb = self[xbc].nb;
        let x = self.view_4d(
            xbc,
            [head, n_head, n_time, n_seqs],
            [floats(head), nb[1], nb[2]],
        );
        let group = [ssm.d_state, ssm.n_group, n_time, n_seqs];
        let [b, c] =
            [(); 2].map(|()| self.view_4d(xbc, group, [floats(ssm.d_state), nb[1], nb[2]]));

        let dt = self.cont(dt);
        let dt_b = self.bias(il, Kind::SsmDt);
        let dt = self.add(dt, dt_b);
        let a = self.weight(il, Kind::SsmA);
        let y = self.read_state(scan, |g, states, ids| {
            let n_states = g[states].ne[1];
            let states = g.reshape(states, [ssm.d_state, head, n_head, n_states]);
            g.ssm_scan([states, x, dt, a, b, c, ids], n_kept)
        });
        self.keep_scan(scan, y, ssm);

        let nb1 = self[x].nb[1];
        let strides = [
            nb1,
            n_head as u64 * nb1,
            (n_time * n_head).max(0) as u64 * nb1,
        ];
        let y = self.view_4d(y, [head, n_head, n_time, n_seqs], strides);
        let d = self.weight(il, Kind::SsmD);
        let skip = self.mul(x, d);
        let y = self.add(y, skip);
        let z = self.cont(z);
        let mut y = self.glu_split(Glu::Swiglu, z, y);
        if self.has(il, Kind::SsmNorm) {
            let per_group = ssm.d_inner / ssm.n_group.max(1);
            y = self.reshape(y, [per_group, ssm.n_group, n_time, n_seqs]);
            y = self.norm(y, Kind::SsmNorm, il);
        }
        let n_tokens = self.n_tokens;
        let y = self.reshape(y, [ssm.d_inner, n_tokens, 1, 1]);
        self.linear(y, Kind::SsmOut, il)
    }

    /// States of a sequence that are kept: the last one, and those to go back to.
    pub(crate) fn n_kept(&self) -> i64 {
        1 + i64::from(self.cp.role.n_rollback)
    }

    /// Of them, those that a batch writes.
    pub(crate) fn n_written(&self) -> i64 {
        self.n_kept().min(self.n_seq_tokens())
    }

    /// Keeps the last taps of a convolution's input for the next batch.
    pub(crate) fn keep_taps(&mut self, state: TensorId, all: TensorId, width: i64, taps: i64) {
        for _ in 0..self.n_written() {
            self.keep_taps_once(state, all, width, taps);
        }
    }

    /// One of the states that [`keep_taps`](Self::keep_taps) keeps; where it lies changes no size.
    pub(crate) fn keep_taps_once(&mut self, state: TensorId, all: TensorId, width: i64, taps: i64) {
        let (row, n_seqs) = (self[state].nb[1], self.n_seqs);
        let last = self.last_taps(all, width, taps);
        let target = self.view_2d(state, [(taps - 1) * width, n_seqs], row);
        let kept = self.cpy(last, target);
        self.expand(kept);
    }

    /// [`keep_taps`](Self::keep_taps) into one row, as Mamba 1 does.
    pub(crate) fn keep_taps_in_line(
        &mut self,
        state: TensorId,
        all: TensorId,
        width: i64,
        taps: i64,
    ) {
        let n_seqs = self.n_seqs;
        let last = self.last_taps(all, width, taps);
        let target = self.view_1d(state, (taps - 1) * width * n_seqs);
        let kept = self.cpy(last, target);
        self.expand(kept);
    }

    fn last_taps(&mut self, all: TensorId, width: i64, taps: i64) -> TensorId {
        let (nb, n_seqs) = (self[all].nb, self.n_seqs);
        self.view_3d(all, [taps - 1, width, n_seqs], [nb[1], nb[2]])
    }

    /// Keeps the states behind a scan's output for the next batch.
    fn keep_scan(&mut self, state: TensorId, y: TensorId, ssm: Ssm) {
        let (n, n_seqs, row) = (ssm.n_embd_s(), self.n_seqs, self[state].nb[1]);
        let (all, n_written) = (floats(n.saturating_mul(n_seqs)), self.n_written());
        let stored = floats(n.saturating_mul(self.cp.n_seq_max));
        let states = self.view_3d(y, [n, n_seqs, n_written], [floats(n), all]);
        let target = self.view_3d(state, [n, n_seqs, n_written], [row, stored]);
        let kept = self.cpy(states, target);
        self.expand(kept);
    }

    /// A Mamba 1 layer (`build_mamba_layer`), with Jamba's norms where the layer has them.
    pub fn mamba1(&mut self, x: TensorId, il: usize) -> TensorId {
        let ssm = self.ssm();
        let (n_seqs, n_time, n_tokens) = (self.n_seqs, self.n_seq_tokens(), self.n_tokens);
        let d_inner = ssm.d_inner;
        let (conv, scan) = (self.conv_state(il), self.scan_state(il));

        let before = self.taps_before(conv, d_inner, ssm.d_conv);
        let n_embd = self[x].ne[0];
        let x = self.reshape(x, [n_embd, n_time, n_seqs, 1]);
        let xz = self.linear(x, Kind::SsmIn, il);
        let nb = self[xz].nb;
        let [x, z] = [(); 2].map(|()| self.view_3d(xz, [d_inner, n_time, n_seqs], [nb[1], nb[2]]));

        let x = self.transpose(x);
        let all = self.concat(before, x, 0);
        self.keep_taps_in_line(conv, all, d_inner, ssm.d_conv);
        let kernel = self.weight(il, Kind::SsmConv1d);
        let kernel_b = self.bias(il, Kind::SsmConv1d);
        let x = self.ssm_conv(all, kernel);
        let x = self.add(x, kernel_b);
        let x = self.unary(Unary::Silu, x);

        let [dt, b, c] = self.mamba1_dt_b_c(x, ssm, il);
        let heads = self.reshape(x, [1, d_inner, n_time, n_seqs]);
        let a = self.weight(il, Kind::SsmA);
        let y = self.read_state(scan, |g, states, ids| {
            let n_states = g[states].ne[1];
            let states = g.reshape(states, [ssm.d_state, 1, d_inner, n_states]);
            g.ssm_scan([states, heads, dt, a, b, c, ids], 1)
        });
        let n = ssm.n_embd_s() * n_seqs;
        let states = self.view_1d(y, n);
        let target = self.view_1d(scan, n);
        let kept = self.cpy(states, target);
        self.expand(kept);

        let nb = self[heads].nb;
        let y = self.view_3d(y, [d_inner, n_time, n_seqs], [nb[2], nb[3]]);
        let d = self.weight(il, Kind::SsmD);
        let skip = self.mul(x, d);
        let y = self.add(y, skip);
        let z = self.cont(z);
        let y = self.glu_split(Glu::Swiglu, z, y);
        let y = self.linear(y, Kind::SsmOut, il);
        let n = self[y].ne[0];
        self.reshape(y, [n, n_tokens, 1, 1])
    }

    /// Time step, B and C of a Mamba 1 layer, all made of `x`.
    fn mamba1_dt_b_c(&mut self, x: TensorId, ssm: Ssm, il: usize) -> [TensorId; 3] {
        let (n_seqs, n_time) = (self.n_seqs, self.n_seq_tokens());
        let all = self.linear(x, Kind::SsmX, il);
        let nb = self[all].nb;
        let mut dt = self.view_3d(all, [ssm.dt_rank, n_time, n_seqs], [nb[1], nb[2]]);
        let ne = [ssm.d_state, 1, n_time, n_seqs];
        let [mut b, mut c] =
            [(); 2].map(|()| self.view_4d(all, ne, [floats(ssm.d_state), nb[1], nb[2]]));
        if self.has(il, Kind::SsmDtNorm) {
            dt = self.norm(dt, Kind::SsmDtNorm, il);
            b = self.norm(b, Kind::SsmBNorm, il);
            c = self.norm(c, Kind::SsmCNorm, il);
        } else {
            dt = self.cont(dt);
        }
        let dt = self.linear(dt, Kind::SsmDt, il);
        [dt, b, c]
    }

    /// `build_recurrent_attn`: [`gated_delta_net`](Self::gated_delta_net) that keeps its states in `state`, each as
    /// `kept` says where only the last one is.
    pub(crate) fn recurrent_attention(
        &mut self,
        qkv: [TensorId; 3],
        [gate, beta, before]: [TensorId; 3],
        state: TensorId,
        kept: impl FnOnce(&mut Self) -> TensorId,
        il: usize,
    ) -> TensorId {
        let [y, after, out] = self.gated_delta_net(qkv, gate, beta, before, il);
        let (source, target) = if self.n_kept() == 1 {
            (after, kept(self))
        } else {
            let [dv, _, hv, n_seqs] = self[before].ne;
            let (n, n_written) = (dv * dv * hv, self.n_written());
            let (row, stored) = (self[state].nb[1], floats(n * self.cp.n_seq_max));
            let source = self.view_3d(out, [n, n_seqs, n_written], [floats(n), floats(n * n_seqs)]);
            let target = self.view_3d(state, [n, n_seqs, n_written], [row, stored]);
            (source, target)
        };
        let stored = self.cpy(source, target);
        self.expand(stored);
        y
    }

    /// `build_delta_net_fused`: the outputs of a gated delta net, `[d_v, h_v, t, s]`, its new
    /// states, and both together. `gate` and `beta` say how fast the state fades and how strongly values are written.
    pub fn gated_delta_net(
        &mut self,
        [q, k, v]: [TensorId; 3],
        gate: TensorId,
        beta: TensorId,
        before: TensorId,
        il: usize,
    ) -> [TensorId; 3] {
        let [dv, hv, n_time, n_seqs] = self[v].ne;
        let row = dv.saturating_mul(hv);
        let states = dv.saturating_mul(self.n_kept());
        let rows = n_time.saturating_add(states).saturating_mul(n_seqs);
        let sources = [q, k, v, gate, beta, before];
        let out = self.new_tensor(Op::GatedDeltaNet, Type::F32, [row, rows, 1, 1], &sources);
        self.name_layer(out, "gated_delta_net", il);
        let token = floats(row);
        let y = self.view_4d(
            out,
            [dv, hv, n_time, n_seqs],
            [
                floats(dv),
                token,
                token.saturating_mul(n_time.max(0) as u64),
            ],
        );
        let square = dv.saturating_mul(dv);
        let after = self.view_4d(
            out,
            [dv, dv, hv, n_seqs],
            [
                floats(dv),
                floats(square),
                floats(square.saturating_mul(hv)),
            ],
        );
        [y, after, out]
    }

    /// Rows of unit length.
    pub fn unit_length(&mut self, x: TensorId) -> TensorId {
        let x = self.rms(x);
        self.scale(x)
    }

    /// A gated short convolution (LFM2).
    pub fn short_conv(&mut self, x: TensorId, il: usize) -> TensorId {
        let ssm = self.ssm();
        let (n_seqs, n_time, width) = (self.n_seqs, self.n_seq_tokens(), ssm.d_inner);
        let state = self.conv_state(il);
        let x = self.reshape(x, [width, n_time, n_seqs, 1]);
        let bcx = self.linear(x, Kind::ShortConvIn, il);
        let nb = self[bcx].nb;
        let [b, c, x] =
            [(); 3].map(|()| self.view_3d(bcx, [width, n_time, n_seqs], [nb[1], nb[2]]));
        let bx = self.mul(b, x);
        let bx = self.transpose(bx);
        let before = self.taps_before(state, width, ssm.d_conv);
        let all = if self.hp.is_causal {
            self.concat(before, bx, 0)
        } else {
            self.centered(before, bx, ssm.d_conv)
        };
        self.keep_taps(state, all, width, ssm.d_conv);
        let kernel = self.weight(il, Kind::ShortConv);
        let convolved = self.ssm_conv(all, kernel);
        let y = self.mul(c, convolved);
        let y = self.linear(y, Kind::ShortConvOut, il);
        self.reshape(y, [width, n_time * n_seqs, 1, 1])
    }

    /// A window that sees as far ahead as back.
    fn centered(&mut self, before: TensorId, x: TensorId, taps: i64) -> TensorId {
        let (ne, nb, pad) = (self[before].ne, self[before].nb, (taps - 1) / 2);
        let left = self.view_3d(before, [pad, ne[1], ne[2]], [nb[1], nb[2]]);
        let left = self.cont(left);
        let x = self.concat(left, x, 0);
        let n = self[x].ne[0];
        self.pad_to(x, n.saturating_add(pad))
    }
}
