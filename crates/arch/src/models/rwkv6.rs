//! RWKV-6: time mixing with a matrix state a head, channel mixing, both shifted by one token.

use super::Architecture;
use crate::Result;
use crate::graph::LlmGraph;
use crate::hparams::{Hparams, Ssm, limits};
use crate::keys::Keys;
use crate::names::{Global, Kind, Part};
use vramfit_ggml::{Op, TensorId, Type, Unary};

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[Architecture::new("rwkv6", graph)
    .reads(hparams)
    .layer_norm()];

/// Streams that time mixing interpolates at once: w, k, v, r, g.
const N_MIX: i64 = 5;

pub(super) fn hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    let n_shift = keys.int("token_shift_count", 16)?.unwrap_or(2);
    let head = keys.require("wkv.head_size", limits::WIDTH)?;
    hp.ssm = Some(Ssm {
        d_conv: n_shift + 1,
        d_inner: hp.n_embd,
        d_state: head,
        ..Ssm::default()
    });
    hp.set_recurrent(|_, _| true);
    Ok(())
}

pub(super) fn graph(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let w = g.global_of_layer(Global::TokenEmbdNorm, Part::Weight, 0);
    let b = g.global_of_layer(Global::TokenEmbdNorm, Part::Bias, 0);
    let mut x = g.norm_with(x, w, b, Some(0));
    let every = g.hp.rescale_every_n_layers;
    for il in 0..g.hp.n_layer() {
        x = layer(g, x, il);
        if every != 0 && (il as i64 + 1) % every == 0 {
            x = g.scale(x);
        }
    }
    let embd = g.final_norm(x);
    g.lm_head(embd, embd);
}

fn layer(g: &mut LlmGraph<'_>, x: TensorId, il: usize) -> TensorId {
    let (n_embd, n_seqs, n_time, n_tokens) =
        (g.hp.n_embd, g.cp.n_seq_max, g.n_seq_tokens(), g.n_tokens);
    let x = g.reshape(x, [n_embd, n_time, n_seqs, 1]);
    let (shift_state, wkv_state) = (g.conv_state(il), g.scan_state(il));
    let shift = g.gather_state(shift_state);
    let shift = g.reshape(shift, [n_embd, 2, n_seqs, 1]);
    let nb = g[shift].nb;
    let [att_before, ffn_before] =
        [(); 2].map(|()| g.view_3d(shift, [n_embd, 1, n_seqs], [nb[1], nb[2]]));

    let att = g.norm(x, Kind::AttnNorm, il);
    let att_prev = shifted(g, att, att_before);
    let cur = time_mix(g, att, att_prev, wkv_state, il);
    let h = g.add(cur, x);
    let ffn = g.norm(h, Kind::AttnNorm2, il);
    let ffn_prev = shifted(g, ffn, ffn_before);

    let [att_last, ffn_last] = [att, ffn].map(|t| {
        let nb = g[t].nb;
        g.view_3d(t, [n_embd, 1, n_seqs], [nb[1], nb[2]])
    });
    let last = g.concat(att_last, ffn_last, 1);
    let n = 2 * n_embd * n_seqs;
    let last = g.view_1d(last, n);
    let target = g.view_1d(shift_state, n);
    let kept = g.cpy(last, target);
    g.expand(kept);

    let [h, ffn, ffn_prev] = [h, ffn, ffn_prev].map(|t| g.reshape(t, [n_embd, n_tokens, 1, 1]));
    let [h, ffn, ffn_prev] = [h, ffn, ffn_prev].map(|t| g.last_rows(il, t));
    let cur = channel_mix(g, ffn, ffn_prev, il);
    g.add(cur, h)
}

/// Each token's predecessor; the first one's is from the batch before.
fn shifted(g: &mut LlmGraph<'_>, x: TensorId, before: TensorId) -> TensorId {
    let (ne, nb) = (g[x].ne, g[x].nb);
    let earlier = g.view_3d(x, [ne[0], ne[1] - 1, ne[2]], [nb[1], nb[2]]);
    g.concat(before, earlier, 1)
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
    let lerp_x = g.weight(il, Kind::TimeMixLerpX);
    let mix = g.mul(diff, lerp_x);
    let mix = g.add(mix, cur);
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

fn time_mix(
    g: &mut LlmGraph<'_>,
    cur: TensorId,
    prev: TensorId,
    state: TensorId,
    il: usize,
) -> TensorId {
    let ssm = g.ssm();
    let (n_embd, head, n_seqs, n_tokens) = (ssm.d_inner, ssm.d_state, g.cp.n_seq_max, g.n_tokens);
    let n_head = n_embd / head.max(1);
    let heads = [head, n_head, n_tokens, 1];
    let [xw, xk, xv, xr, xg] = mixed_streams(g, cur, prev, il);
    let r = g.linear(xr, Kind::TimeMixReceptance, il);
    let k = g.linear(xk, Kind::TimeMixKey, il);
    let v = g.linear(xv, Kind::TimeMixValue, il);
    let gate = g.linear(xg, Kind::TimeMixGate, il);
    let gate = g.unary(Unary::Silu, gate);
    let [k, v, r] = [k, v, r].map(|t| g.reshape(t, heads));
    let w = decay(g, xw, il);
    let w = g.reshape(w, heads);

    let before = g.gather_state(state);
    let first = g.weight(il, Kind::TimeMixFirst);
    let out = g.new_tensor(
        Op::RwkvWkv6,
        Type::F32,
        [n_embd, n_tokens + head * n_seqs, 1, 1],
        &[k, v, r, first, w, before],
    );
    let cur = g.view_1d(out, n_embd * n_tokens);
    let n = n_embd * head * n_seqs;
    let after = g.view_1d(out, n);
    let target = g.view_1d(state, n);
    let kept = g.cpy(after, target);
    g.expand(kept);

    let cur = g.reshape(cur, heads);
    let cur = g.norm_with(cur, None, None, None);
    let cur = g.reshape(cur, [n_embd, n_tokens, 1, 1]);
    let ln = g.weight(il, Kind::TimeMixLn);
    let ln_b = g.bias(il, Kind::TimeMixLn);
    let cur = g.mul(cur, ln);
    let cur = g.add(cur, ln_b);
    let cur = g.mul(cur, gate);
    let cur = g.linear(cur, Kind::TimeMixOutput, il);
    g.reshape(cur, [n_embd, n_tokens / n_seqs, n_seqs, 1])
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

fn channel_mix(g: &mut LlmGraph<'_>, cur: TensorId, prev: TensorId, il: usize) -> TensorId {
    let diff = g.sub(prev, cur);
    let lerp_k = g.weight(il, Kind::ChannelMixLerpK);
    let xk = g.mul(diff, lerp_k);
    let xk = g.add(xk, cur);
    let lerp_r = g.weight(il, Kind::ChannelMixLerpR);
    let xr = g.mul(diff, lerp_r);
    let xr = g.add(xr, cur);
    let r = g.linear(xr, Kind::ChannelMixReceptance, il);
    let r = g.unary(Unary::Sigmoid, r);
    let k = g.linear(xk, Kind::ChannelMixKey, il);
    let k = g.unary(Unary::Relu, k);
    let k = g.map(Op::Sqr, k);
    let v = g.linear(k, Kind::ChannelMixValue, il);
    g.mul(r, v)
}
