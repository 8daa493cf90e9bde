//! Time mixing of RWKV-7 (a generalised delta rule), and of Qwen 2.5 remade after it (ARWKV 7).

use super::rwkv::{head_norm, wkv};
use crate::graph::LlmGraph;
use crate::names::Kind;
use vramfit_ggml::{Op, TensorId, Unary};

/// Time mixing, and this layer's values before `first`, those of the first layer, are mixed in.
pub(super) fn time_mix(
    g: &mut LlmGraph<'_>,
    cur: TensorId,
    prev: TensorId,
    first: Option<TensorId>,
    il: usize,
) -> (TensorId, TensorId) {
    let ssm = g.ssm();
    let (n_embd, head, n_seqs, n_tokens) = (ssm.d_inner, ssm.d_state, g.n_seqs, g.n_tokens);
    let n_head = n_embd / head.max(1);
    let heads = [head, n_head, n_tokens, 1];
    let flat = [n_embd, n_tokens, 1, 1];
    let has_gate = g.has(il, Kind::TimeMixG1) && g.has(il, Kind::TimeMixG2);
    let [xr, xw, xk, xv, xa, xg] = mixed_streams(g, cur, prev, has_gate, il);

    let r = g.linear(xr, Kind::TimeMixReceptance, il);
    let w = decay(g, xw, il);
    let k = g.linear(xk, Kind::TimeMixKey, il);
    let own = g.linear(xv, Kind::TimeMixValue, il);
    let v = first.map_or(own, |first| with_first_values(g, own, first, xv, il));
    let a = low_rank(
        g,
        xa,
        [Kind::TimeMixA1, Kind::TimeMixA2, Kind::TimeMixA0],
        il,
    );
    let a = g.unary(Unary::Sigmoid, a);

    let k_k = g.weight(il, Kind::TimeMixKK);
    let kk = g.mul(k, k_k);
    let kk = g.reshape(kk, heads);
    let kk = g.map(Op::L2Norm, kk);
    let k_a = g.weight(il, Kind::TimeMixKA);
    let ka = g.mul(k, k_a);
    let aka = g.mul(a, ka);
    let step = g.sub(aka, ka);
    let k = g.add(k, step);

    let [r, w, k, v, a] = [r, w, k, v, a].map(|t| g.reshape(t, heads));
    let removed = g.unary(Unary::Neg, kk);
    let written = g.mul(kk, a);
    let cur = wkv(g, Op::RwkvWkv7, &[r, w, k, v, removed, written], il);
    let cur = head_norm(g, cur, il);

    let r_k = g.weight(il, Kind::TimeMixRK);
    let r_k = g.reshape(r_k, [head, n_head, 1, 1]);
    let kr = g.mul(k, r);
    let rk = g.mul(kr, r_k);
    let rk = g.sum_rows(rk);
    let bonus = g.mul(v, rk);
    let bonus = g.reshape(bonus, flat);
    let mut cur = g.add(cur, bonus);
    if has_gate {
        let gate = g.linear(xg, Kind::TimeMixG1, il);
        let gate = g.unary(Unary::Sigmoid, gate);
        let gate = g.linear(gate, Kind::TimeMixG2, il);
        cur = g.mul(cur, gate);
    }
    let cur = g.linear(cur, Kind::TimeMixOutput, il);
    (
        g.reshape(cur, [n_embd, n_tokens / n_seqs.max(1), n_seqs, 1]),
        own,
    )
}

/// r, w, k, v, a and the gate's stream (r's again without a gate), each interpolated between a
/// token and its predecessor.
fn mixed_streams(
    g: &mut LlmGraph<'_>,
    cur: TensorId,
    prev: TensorId,
    has_gate: bool,
    il: usize,
) -> [TensorId; 6] {
    let ([n_embd, n_time, n_seqs, _], n_tokens) = (g[cur].ne, g.n_tokens);
    let diff = g.sub(prev, cur);
    let n_mix = 5 + i64::from(has_gate);
    let diff = g.repeat(diff, [n_embd, n_time, n_seqs, n_mix]);
    let mix = super::rwkv::lerp(g, diff, cur, Kind::TimeMixLerpFused, il);
    let row = g[mix].nb[1];
    [(); 6].map(|()| g.view_2d(mix, [n_embd, n_tokens], row))
}

/// `W2 W1 x + b`.
fn low_rank(g: &mut LlmGraph<'_>, x: TensorId, [w1, w2, b]: [Kind; 3], il: usize) -> TensorId {
    let t = g.linear(x, w1, il);
    let t = g.linear(t, w2, il);
    let b = g.weight(il, b);
    g.add(t, b)
}

/// `exp(-c * sigmoid(w))` of a low-rank map of the stream.
fn decay(g: &mut LlmGraph<'_>, x: TensorId, il: usize) -> TensorId {
    let w = g.linear(x, Kind::TimeMixW1, il);
    let w = g.unary(Unary::Tanh, w);
    let w = g.linear(w, Kind::TimeMixW2, il);
    let bias = g.weight(il, Kind::TimeMixW0);
    let w = g.add(w, bias);
    let w = g.unary(Unary::Sigmoid, w);
    let w = g.scale(w);
    g.unary(Unary::Exp, w)
}

/// A layer's values, moved towards the first layer's.
fn with_first_values(
    g: &mut LlmGraph<'_>,
    v: TensorId,
    first: TensorId,
    xv: TensorId,
    il: usize,
) -> TensorId {
    let diff = g.sub(first, v);
    let share = low_rank(
        g,
        xv,
        [Kind::TimeMixV1, Kind::TimeMixV2, Kind::TimeMixV0],
        il,
    );
    let share = g.unary(Unary::Sigmoid, share);
    let step = g.mul(diff, share);
    g.add(v, step)
}
