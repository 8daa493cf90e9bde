//! Time mixing of RWKV-6, and of Qwen 2 remade after it (QRWKV 6).

use super::rwkv::{head_norm, lerp, wkv};
use crate::graph::LlmGraph;
use crate::names::Kind;
use vramfit_ggml::{Op, TensorId, Unary};

/// Streams that time mixing interpolates at once: w, k, v, r, g.
const N_MIX: i64 = 5;

/// RWKV-6 has a bonus for the current token (`time_mix_first`); without it the recurrence is gated
/// linear attention.
pub(super) fn time_mix(g: &mut LlmGraph<'_>, cur: TensorId, prev: TensorId, il: usize) -> TensorId {
    let ssm = g.ssm();
    let (n_embd, head, n_seqs, n_tokens) = (ssm.d_inner, ssm.d_state, g.n_seqs, g.n_tokens);
    let n_head = n_embd / head.max(1);
    let heads = [head, n_head, n_tokens, 1];
    let is_gla = !g.has(il, Kind::TimeMixFirst);
    let [xw, xk, xv, xr, xg] = mixed_streams(g, cur, prev, il);
    let r = g.linear(xr, Kind::TimeMixReceptance, il);
    let [k, v] = [(xk, Kind::TimeMixKey), (xv, Kind::TimeMixValue)].map(|(x, kind)| {
        let t = g.linear(x, kind, il);
        repeat_heads(g, t, head, n_head, il)
    });
    let gate = g.linear(xg, Kind::TimeMixGate, il);
    let gate = g.unary(if is_gla { Unary::Sigmoid } else { Unary::Silu }, gate);
    let [mut k, v, r] = [k, v, r].map(|t| g.reshape(t, heads));
    let w = decay(g, xw, il);
    let w = g.reshape(w, heads);

    let cur = if is_gla {
        let faded = g.mul(k, w);
        k = g.sub(k, faded);
        wkv(g, Op::GatedLinearAttn, &[k, v, r, w], il)
    } else {
        let first = g.weight(il, Kind::TimeMixFirst);
        wkv(g, Op::RwkvWkv6, &[k, v, r, first, w], il)
    };
    let cur = head_norm(g, cur, il);
    let cur = g.mul(cur, gate);
    let cur = g.linear(cur, Kind::TimeMixOutput, il);
    g.reshape(cur, [n_embd, n_tokens / n_seqs.max(1), n_seqs, 1])
}

/// K or V, repeated to all heads where heads share them.
fn repeat_heads(g: &mut LlmGraph<'_>, t: TensorId, head: i64, n_head: i64, il: usize) -> TensorId {
    let (n_head_kv, n_tokens) = (g.hp.layers[il].n_head_kv, g.n_tokens);
    if n_head_kv == 0 || n_head_kv == n_head {
        return t;
    }
    let t = g.reshape(t, [head, 1, n_head_kv, n_tokens]);
    g.repeat(t, [head, n_head / n_head_kv, n_head_kv, n_tokens])
}

/// What time mixing attends to, interpolated between a token and its predecessor.
fn mixed_streams(
    g: &mut LlmGraph<'_>,
    cur: TensorId,
    prev: TensorId,
    il: usize,
) -> [TensorId; N_MIX as usize] {
    let (n_embd, n_tokens) = (g.hp.n_embd, g.n_tokens);
    let diff = g.sub(prev, cur);
    let diff = g.reshape(diff, [n_embd, n_tokens, 1, 1]);
    let cur = g.reshape(cur, [n_embd, n_tokens, 1, 1]);
    let mix = lerp(g, diff, cur, Kind::TimeMixLerpX, il);
    let w1 = g.weight(il, Kind::TimeMixW1);
    let rank = g[w1].ne[1] / N_MIX;
    let mix = g.mul_mat(w1, mix);
    let mix = g.unary(Unary::Tanh, mix);
    let mix = g.reshape(mix, [rank, 1, N_MIX, n_tokens]);
    let mix = g.permute(mix, [0, 1, 3, 2]);
    let mix = g.cont(mix);
    let w2 = g.weight(il, Kind::TimeMixW2);
    let ne = g[w2].ne;
    let w2 = g.reshape(w2, [ne[0], ne[1], 1, N_MIX]);
    let mix = g.mul_mat(w2, mix);
    let diff = g.reshape(diff, [n_embd, 1, n_tokens, 1]);
    let cur = g.reshape(cur, [n_embd, 1, n_tokens, 1]);
    let fused = g.weight(il, Kind::TimeMixLerpFused);
    let mix = g.add(mix, fused);
    let mix = g.mul(mix, diff);
    let mix = g.add(mix, cur);
    let row = g[mix].nb[1];
    [(); N_MIX as usize].map(|()| g.view_2d(mix, [n_embd, n_tokens], row))
}

/// `exp(-exp(w))` of a low-rank map of the stream.
fn decay(g: &mut LlmGraph<'_>, x: TensorId, il: usize) -> TensorId {
    let w = g.linear(x, Kind::TimeMixDecayW1, il);
    let w = g.unary(Unary::Tanh, w);
    let w = g.linear(w, Kind::TimeMixDecayW2, il);
    let bias = g.weight(il, Kind::TimeMixDecay);
    let w = g.add(w, bias);
    let w = g.unary(Unary::Exp, w);
    let w = g.unary(Unary::Neg, w);
    g.unary(Unary::Exp, w)
}
