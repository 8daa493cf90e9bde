//! RWKV: time mixing with a matrix state a head and channel mixing, both shifted by one token. The
//! Qwen-shaped kin (QRWKV 6, ARWKV 7) keep a gated feed-forward block instead of channel mixing.

use super::Architecture;
use super::rwkv6::time_mix as time_mix_6;
use super::rwkv7::time_mix as time_mix_7;
use crate::Result;
use crate::graph::{Ffn, LlmGraph};
use crate::hparams::{Hparams, Ssm, limits};
use crate::keys::Keys;
use crate::names::{Global, Kind, Part};
use vramfit_ggml::{Op, TensorId, Unary};

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    Architecture::new("arwkv7", rwkv7)
        .reads(hparams)
        .unadapted(&[LOW_RANK]),
    Architecture::new("rwkv6", rwkv6)
        .reads(hparams)
        .unadapted(&[LOW_RANK])
        .layer_norm(),
    Architecture::new("rwkv6qwen2", rwkv6qwen2)
        .reads(hparams)
        .unadapted(&[LOW_RANK]),
    Architecture::new("rwkv7", rwkv7)
        .reads(hparams)
        .unadapted(&[LOW_RANK])
        .layer_norm(),
];

/// Maps through a narrow stream, which adapters leave alone.
const LOW_RANK: &[Kind] = &[
    Kind::TimeMixA1,
    Kind::TimeMixA2,
    Kind::TimeMixDecayW1,
    Kind::TimeMixDecayW2,
    Kind::TimeMixG1,
    Kind::TimeMixG2,
    Kind::TimeMixV1,
    Kind::TimeMixV2,
    Kind::TimeMixW1,
    Kind::TimeMixW2,
];

fn hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
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

fn rwkv6(g: &mut LlmGraph<'_>) {
    let every = g.hp.rescale_every_n_layers;
    layers(g, |g, x, il| {
        let x = layer(g, x, &mut time_mix_6, il);
        if every != 0 && (il as i64 + 1) % every == 0 {
            return g.scale(x);
        }
        x
    });
}

fn rwkv6qwen2(g: &mut LlmGraph<'_>) {
    layers(g, |g, x, il| layer(g, x, &mut time_mix_6, il));
}

/// RWKV-7: every layer mixes the first one's values into its own.
fn rwkv7(g: &mut LlmGraph<'_>) {
    let mut first = None;
    layers(g, |g, x, il| {
        let mut time_mix = |g: &mut LlmGraph<'_>, cur, prev, il| {
            let (y, v) = time_mix_7(g, cur, prev, first, il);
            first.get_or_insert(v);
            y
        };
        layer(g, x, &mut time_mix, il)
    });
}

fn layers(
    g: &mut LlmGraph<'_>,
    mut layer: impl FnMut(&mut LlmGraph<'_>, TensorId, usize) -> TensorId,
) {
    let mut x = g.embed(false);
    if let Some(w) = g.global_of_layer(Global::TokenEmbdNorm, Part::Weight, 0) {
        let b = g.global_of_layer(Global::TokenEmbdNorm, Part::Bias, 0);
        x = g.norm_with(x, Some(w), b, Some(0));
    }
    for il in 0..g.hp.n_layer() {
        x = layer(g, x, il);
    }
    let embd = g.final_norm(x);
    g.lm_head(embd, embd);
}

/// Time mixing of a layer: of each token and the one before it.
type TimeMix<'f> = &'f mut dyn FnMut(&mut LlmGraph<'_>, TensorId, TensorId, usize) -> TensorId;

fn layer(g: &mut LlmGraph<'_>, x: TensorId, time_mix: TimeMix<'_>, il: usize) -> TensorId {
    let (n_embd, n_seqs, n_time) = (g.hp.n_embd, g.n_seqs, g.n_seq_tokens());
    let x = g.reshape(x, [n_embd, n_time, n_seqs, 1]);
    let state = g.conv_state(il);
    let before = g.gather_state(state);
    let n_shift = g.ssm().d_conv - 1;
    let before = g.reshape(before, [n_embd, n_shift, n_seqs, 1]);
    if g.has(il, Kind::ChannelMixKey) {
        with_channel_mix(g, x, before, time_mix, il)
    } else {
        with_ffn(g, x, before, time_mix, il)
    }
}

fn with_channel_mix(
    g: &mut LlmGraph<'_>,
    x: TensorId,
    before: TensorId,
    time_mix: TimeMix<'_>,
    il: usize,
) -> TensorId {
    let (n_embd, n_seqs, n_tokens) = (g.hp.n_embd, g.n_seqs, g.n_tokens);
    let nb = g[before].nb;
    let [att_before, ffn_before] =
        [(); 2].map(|()| g.view_3d(before, [n_embd, 1, n_seqs], [nb[1], nb[2]]));

    let att = g.norm(x, Kind::AttnNorm, il);
    let att_prev = shifted(g, att, att_before);
    let cur = time_mix(g, att, att_prev, il);
    let h = g.add(cur, x);
    let ffn = g.norm(h, Kind::AttnNorm2, il);
    let ffn_prev = shifted(g, ffn, ffn_before);

    let [att_last, ffn_last] = [att, ffn].map(|t| last_tokens(g, t));
    let last = g.concat(att_last, ffn_last, 1);
    keep_last(g, last, il);

    let [h, ffn, ffn_prev] = [h, ffn, ffn_prev].map(|t| g.reshape(t, [n_embd, n_tokens, 1, 1]));
    let [h, ffn, ffn_prev] = [h, ffn, ffn_prev].map(|t| g.last_rows(il, t));
    let cur = channel_mix(g, ffn, ffn_prev, il);
    let x = g.add(cur, h);
    g.control(x, il)
}

fn with_ffn(
    g: &mut LlmGraph<'_>,
    x: TensorId,
    before: TensorId,
    time_mix: TimeMix<'_>,
    il: usize,
) -> TensorId {
    let (n_embd, n_tokens) = (g.hp.n_embd, g.n_tokens);
    let att = g.norm(x, Kind::AttnNorm, il);
    let att_prev = shifted(g, att, before);
    let cur = time_mix(g, att, att_prev, il);
    let last = last_tokens(g, att);
    keep_last(g, last, il);
    let h = g.add(cur, x);
    let h = g.reshape(h, [n_embd, n_tokens, 1, 1]);
    let h = g.last_rows(il, h);
    let n = g.norm(h, Kind::FfnNorm, il);
    let cur = g.ffn(n, Ffn::Silu, il);
    let x = g.add(cur, h);
    g.control(x, il)
}

/// Each token's predecessor; the first one's is from the batch before.
fn shifted(g: &mut LlmGraph<'_>, x: TensorId, before: TensorId) -> TensorId {
    let (ne, nb) = (g[x].ne, g[x].nb);
    let earlier = g.view_3d(x, [ne[0], ne[1] - 1, ne[2]], [nb[1], nb[2]]);
    g.concat(before, earlier, 1)
}

/// The last token of each sequence.
fn last_tokens(g: &mut LlmGraph<'_>, x: TensorId) -> TensorId {
    let (ne, nb) = (g[x].ne, g[x].nb);
    g.view_3d(x, [ne[0], 1, ne[2]], [nb[1], nb[2]])
}

/// Keeps the last tokens for the next batch.
fn keep_last(g: &mut LlmGraph<'_>, last: TensorId, il: usize) {
    let state = g.conv_state(il);
    let n = g[last].n_elements();
    let last = g.view_1d(last, n);
    let target = g.view_1d(state, n);
    let kept = g.cpy(last, target);
    g.expand(kept);
}

/// A squared ReLU layer, gated by the receptance in RWKV-6.
fn channel_mix(g: &mut LlmGraph<'_>, cur: TensorId, prev: TensorId, il: usize) -> TensorId {
    let diff = g.sub(prev, cur);
    let xk = lerp(g, diff, cur, Kind::ChannelMixLerpK, il);
    let value = |g: &mut LlmGraph<'_>| {
        let k = g.linear(xk, Kind::ChannelMixKey, il);
        let k = g.unary(Unary::Relu, k);
        let k = g.map(Op::Sqr, k);
        g.linear(k, Kind::ChannelMixValue, il)
    };
    if !g.has(il, Kind::ChannelMixReceptance) {
        return value(g);
    }
    let xr = lerp(g, diff, cur, Kind::ChannelMixLerpR, il);
    let r = g.linear(xr, Kind::ChannelMixReceptance, il);
    let r = g.unary(Unary::Sigmoid, r);
    let v = value(g);
    g.mul(r, v)
}

/// `cur + diff * W`.
pub(super) fn lerp(
    g: &mut LlmGraph<'_>,
    diff: TensorId,
    cur: TensorId,
    kind: Kind,
    il: usize,
) -> TensorId {
    let w = g.weight(il, kind);
    let step = g.mul(diff, w);
    g.add(step, cur)
}

/// Runs the recurrence `op` of layer `il` over `inputs` and the state: the tokens' outputs,
/// `[n_embd, n_tokens]` in one row. The new state is kept.
pub(super) fn wkv(g: &mut LlmGraph<'_>, op: Op, inputs: &[TensorId], il: usize) -> TensorId {
    let ssm = g.ssm();
    let (n_embd, head, n_seqs, n_tokens) = (ssm.d_inner, ssm.d_state, g.n_seqs, g.n_tokens);
    let state = g.scan_state(il);
    let before = g.gather_state(state);
    let sources = [inputs, &[before]].concat();
    let rows = n_tokens.saturating_add(head.saturating_mul(n_seqs));
    let out = g.new_tensor(op, vramfit_ggml::Type::F32, [n_embd, rows, 1, 1], &sources);
    let cur = g.view_1d(out, n_embd * n_tokens);
    let n = n_embd * head * n_seqs;
    let after = g.view_1d(out, n);
    let target = g.view_1d(state, n);
    let kept = g.cpy(after, target);
    g.expand(kept);
    cur
}

/// Normalised a head, where the layer has the weights; `[n_embd, n_tokens]`.
pub(super) fn head_norm(g: &mut LlmGraph<'_>, cur: TensorId, il: usize) -> TensorId {
    let ssm = g.ssm();
    let (n_embd, head, n_tokens) = (ssm.d_inner, ssm.d_state, g.n_tokens);
    if !g.has(il, Kind::TimeMixLn) {
        return g.reshape(cur, [n_embd, n_tokens, 1, 1]);
    }
    let cur = g.reshape(cur, [head, n_embd / head.max(1), n_tokens, 1]);
    let cur = g.map(Op::Norm, cur);
    let cur = g.reshape(cur, [n_embd, n_tokens, 1, 1]);
    let w = g.weight(il, Kind::TimeMixLn);
    let b = g.bias(il, Kind::TimeMixLn);
    let cur = g.mul(cur, w);
    g.add(cur, b)
}
