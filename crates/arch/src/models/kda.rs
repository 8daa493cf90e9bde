//! Kimi Delta Attention (gated delta nets that fade a channel at a time) between layers with latent
//! attention: Kimi Linear, Ling 3.

use super::llama::pre_norm_layer;
use super::{Architecture, LATENT};
use crate::graph::{LlmGraph, MoeOptions, Scale, floats};
use crate::hparams::{Decay, Hparams, Kda, Mla, Ssm, limits};
use crate::keys::Keys;
use crate::names::Kind;
use crate::{Error, Result};
use vramfit_ggml::{TensorId, Unary};

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    Architecture::new("bailingmoe3", bailingmoe3)
        .whole()
        .constants(&["expert_weights_scale"])
        .leaves_scales(&[Scale::Qkv, Scale::AttnOutput, Scale::Output])
        .rolling_back()
        .tapped()
        .predicts(bailingmoe3_mtp)
        .reads(bailingmoe3_hparams)
        .large_graph()
        .no_scan()
        .unadapted(&[LATENT, DELTA, &[Kind::AttnGate, Kind::AttnOutput]])
        .output_unadapted()
        .rows_behind_norm(),
    Architecture::new("kimi-linear", kimi_linear)
        .whole()
        .constants(&["expert_weights_scale"])
        .leaves_scales(&[Scale::Qkv, Scale::Output])
        .reads(hparams)
        .large_graph()
        .reserves_one_sequence()
        .no_scan()
        .unadapted(&[LATENT, DELTA])
        .output_unadapted(),
];

/// What their delta nets multiply without asking adapters, beside the output matrix.
pub(super) const DELTA: &[Kind] = &[
    Kind::AttnQkv,
    Kind::AttnK,
    Kind::AttnV,
    Kind::SsmFA,
    Kind::SsmFB,
    Kind::SsmBeta,
    Kind::SsmG,
    Kind::SsmGA,
    Kind::SsmGB,
];

/// Layers without KV heads are recurrent: a matrix state a head, and three convolutions.
pub(super) fn hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    let head = keys.require("kda.head_dim", limits::WIDTH)?;
    let n_head = hp.layers.first().map_or(0, |l| l.n_head);
    let d_inner = n_head.saturating_mul(head);
    if d_inner > limits::WIDTH {
        return Err(Error::KeyRange {
            key: "kda.head_dim".to_string(),
            value: head,
            min: 1,
            max: limits::WIDTH / n_head.max(1),
        });
    }
    hp.ssm = Some(Ssm {
        d_conv: keys.require("ssm.conv_kernel", 1024)?,
        d_inner,
        d_state: head,
        dt_rank: n_head,
        n_group: n_head,
    });
    hp.set_recurrent(|_, layer| layer.n_head_kv == 0);
    Ok(())
}

fn bailingmoe3_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hparams(keys, hp)?;
    hp.kda.decay = Decay::Sigmoid;
    hp.set_swiglu_clamps(keys)?;
    // Its memory has no filter: layers for multi-token prediction have caches too.
    let behind = hp.layers.iter_mut().skip(hp.n_layer_main);
    behind.for_each(|layer| layer.is_cached = true);
    Ok(())
}

fn kimi_linear(g: &mut LlmGraph<'_>) {
    let options = MoeOptions {
        norms_weights: true,
        ..MoeOptions::of_file(&g.hp.moe)
    };
    graph(g, options, |g, n, il| {
        g.expand(n);
        mix(g, n, false, il)
    });
}

/// Ling 3: latent attention is rotated and gated.
fn bailingmoe3(g: &mut LlmGraph<'_>) {
    let options = MoeOptions::of_file(&g.hp.moe);
    graph(g, options, |g, n, il| mix(g, n, true, il));
}

fn bailingmoe3_mtp(g: &mut LlmGraph<'_>) {
    let (x, il) = g.mtp_input();
    let options = MoeOptions::of_file(&g.hp.moe);
    let attention = |g: &mut LlmGraph<'_>, n| mix(g, n, true, il);
    let ffn = |g: &mut LlmGraph<'_>, n| g.ffn_or_moe(n, options, il);
    let x = pre_norm_layer(g, x, il, attention, ffn);
    g.mtp_head(x, il);
}

fn graph(
    g: &mut LlmGraph<'_>,
    options: MoeOptions,
    mix: impl Fn(&mut LlmGraph<'_>, TensorId, usize) -> TensorId,
) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let attention = |g: &mut LlmGraph<'_>, n| mix(g, n, il);
        let ffn = |g: &mut LlmGraph<'_>, n| g.ffn_or_moe(n, options, il);
        pre_norm_layer(g, x, il, attention, ffn)
    });
}

/// The layer's delta net or attention. `rotates`: attention is told positions.
pub(super) fn mix(g: &mut LlmGraph<'_>, n: TensorId, rotates: bool, il: usize) -> TensorId {
    match (g.hp.layers[il].is_recurrent, g.hp.mla) {
        (true, _) => delta_attention(g, n, il),
        (false, Some(mla)) => latent_attention(g, n, mla, rotates, il),
        (false, None) => g.weight(il, Kind::AttnKB), // a file from before MLA
    }
}

/// Sizes of the delta net: width and number of heads, both together, taps; tokens a sequence, sequences.
fn shape(g: &mut LlmGraph<'_>) -> (Ssm, i64, i64) {
    (g.ssm(), g.n_seq_tokens(), g.n_seqs)
}

fn delta_attention(g: &mut LlmGraph<'_>, n: TensorId, il: usize) -> TensorId {
    let (ssm, n_time, n_seqs) = shape(g);
    let (head, n_head, d_inner, n_tokens) = (ssm.d_state, ssm.dt_rank, ssm.d_inner, g.n_tokens);
    let (conv, state) = (g.conv_state(il), g.scan_state(il));
    let before = g.gather_state(conv);
    let kernels = [Kind::SsmConv1dQ, Kind::SsmConv1dK, Kind::SsmConv1dV];
    let inputs = projections(g, n, il);
    let [q, k, v] = [0, 1, 2].map(|i| convolved(g, inputs[i], conv, before, kernels[i], il));
    let gate = decay(g, n, il);
    let beta = g.linear(n, Kind::SsmBeta, il);
    let beta = g.reshape(beta, [1, n_head, n_time, n_seqs]);
    let beta = g.unary(Unary::Sigmoid, beta);
    let before = g.gather_state(state);
    let before = g.reshape(before, [head, head, n_head, n_seqs]);
    let [q, k] = [q, k].map(|t| g.unit_length(t));
    let kept = |g: &mut LlmGraph<'_>| {
        // Kimi Linear keeps the states as one row.
        let has_low_rank_gate = g.has(il, Kind::SsmGB);
        let (n_state, row) = (ssm.n_embd_s(), g[state].nb[1]);
        if has_low_rank_gate {
            g.view_1d(state, n_state * n_seqs)
        } else {
            g.view_2d(state, [n_state, n_seqs], row)
        }
    };
    let y = g.recurrent_attention([q, k, v], [gate, beta, before], state, kept, il);

    let y = g.cont(y);
    let heads = [head, n_head, n_tokens, 1];
    let y = g.reshape(y, heads);
    let y = g.norm(y, Kind::SsmNorm, il);
    let gate = output_gate(g, n, il);
    let gate = g.reshape(gate, heads);
    let gate = g.unary(Unary::Sigmoid, gate);
    let y = g.mul(y, gate);
    let y = g.cont_shape(y, [d_inner, n_tokens, 1, 1]);
    g.linear_unadapted(y, Kind::AttnOutput, il)
}

/// Q, K and V before their convolutions, from one matrix or three.
fn projections(g: &mut LlmGraph<'_>, n: TensorId, il: usize) -> [TensorId; 3] {
    if !g.has(il, Kind::AttnQkv) {
        return [Kind::AttnQ, Kind::AttnK, Kind::AttnV].map(|kind| g.linear(n, kind, il));
    }
    let all = g.linear(n, Kind::AttnQkv, il);
    let (shape, row) = ([g.ssm().d_inner, g.n_tokens], g[all].nb[1]);
    [(); 3].map(|()| {
        let part = g.view_2d(all, shape, row);
        g.cont(part)
    })
}

/// One of Q, K and V along time: `[head, n_head, t, s]`. `before` is what all three saw last.
fn convolved(
    g: &mut LlmGraph<'_>,
    x: TensorId,
    state: TensorId,
    before: TensorId,
    kernel: Kind,
    il: usize,
) -> TensorId {
    let (ssm, n_time, n_seqs) = shape(g);
    let (d_inner, taps, n_tokens) = (ssm.d_inner, ssm.d_conv - 1, g.n_tokens);
    let (window, strides) = (
        [taps, d_inner, n_seqs],
        [floats(taps), floats(3 * taps * d_inner)],
    );
    let before = g.view_3d(before, window, strides);
    let x = g.reshape(x, [d_inner, n_time, n_seqs, 1]);
    let x = g.transpose(x);
    let all = g.concat(before, x, 0);
    let nb = g[all].nb;
    for _ in 0..g.n_written() {
        let last = g.view_3d(all, window, [nb[1], nb[2]]);
        let target = g.view_3d(state, window, strides);
        let kept = g.cpy(last, target);
        g.expand(kept);
    }
    let kernel = g.weight(il, kernel);
    let kernel = g.reshape(kernel, [ssm.d_conv, d_inner, 1, 1]);
    let y = g.ssm_conv(all, kernel);
    let y = g.reshape(y, [d_inner, n_tokens, 1, 1]);
    let y = g.unary(Unary::Silu, y);
    g.reshape(y, [ssm.d_state, ssm.dt_rank, n_time, n_seqs])
}

/// How fast each channel of the state fades.
fn decay(g: &mut LlmGraph<'_>, n: TensorId, il: usize) -> TensorId {
    let ((ssm, n_time, n_seqs), n_tokens) = (shape(g), g.n_tokens);
    let mut cur = g.linear(n, Kind::SsmFA, il);
    if g.has(il, Kind::SsmFB) {
        cur = g.linear(cur, Kind::SsmFB, il);
    }
    let dt = g.bias(il, Kind::SsmDt);
    cur = g.add(cur, dt);
    let Kda { decay, .. } = g.hp.kda;
    if decay == Decay::Softplus {
        cur = g.unary(Unary::Softplus, cur);
    }
    let cur = g.reshape(cur, [ssm.d_state, ssm.dt_rank, n_tokens, 1]);
    let rate = g.weight(il, Kind::SsmA);
    let rate = g.reshape(rate, [1, ssm.dt_rank, 1, 1]);
    let mut cur = g.mul(cur, rate);
    if decay == Decay::NegatedSigmoid {
        cur = g.scale(cur);
    }
    if decay != Decay::Softplus {
        cur = g.unary(Unary::Sigmoid, cur);
        cur = g.scale(cur);
    }
    g.reshape(cur, [ssm.d_state, ssm.dt_rank, n_time, n_seqs])
}

/// What the result is gated by: two matrices (Kimi Linear), one (Kimi K3), or a square one (Ling 3).
fn output_gate(g: &mut LlmGraph<'_>, n: TensorId, il: usize) -> TensorId {
    let (_, n_time, n_seqs) = shape(g);
    let (n_embd, n_tokens) = (g[n].ne[0], g.n_tokens);
    let is_kimi = g.has(il, Kind::SsmGB) || g.has(il, Kind::SsmG);
    if !is_kimi {
        return g.linear(n, Kind::SsmGA, il);
    }
    let n = g.reshape(n, [n_embd, n_time, n_seqs, 1]);
    let n = g.reshape(n, [n_embd, n_tokens, 1, 1]);
    if g.has(il, Kind::SsmG) {
        return g.linear(n, Kind::SsmG, il);
    }
    let narrow = g.linear(n, Kind::SsmGA, il);
    g.linear(narrow, Kind::SsmGB, il)
}

/// As DeepSeek's, with a gate where the layer has one.
fn latent_attention(
    g: &mut LlmGraph<'_>,
    n: TensorId,
    mla: Mla,
    rotates: bool,
    il: usize,
) -> TensorId {
    let (n_head, n_tokens) = (g.hp.layers[il].n_head, g.n_tokens);
    let q = if g.has(il, Kind::AttnQA) {
        let a = g.linear(n, Kind::AttnQA, il);
        let a = g.norm(a, Kind::AttnQANorm, il);
        g.linear(a, Kind::AttnQB, il)
    } else {
        g.linear(n, Kind::AttnQ, il)
    };
    let kv = g.linear(n, Kind::AttnKvAMqa, il);
    let row = g[kv].nb[1];
    let compressed = g.view_2d(kv, [mla.kv_lora_rank, n_tokens], row);
    let mut k_pe = g.view_3d(kv, [mla.n_rot, 1, n_tokens], [row, row]);
    let compressed = g.norm(compressed, Kind::AttnKvANorm, il);
    let strides = [floats(mla.key_length), floats(mla.key_length * n_head)];
    let nope = mla.key_length - mla.n_rot;
    let [q_nope, mut q_pe] =
        [nope, mla.n_rot].map(|w| g.view_3d(q, [w, n_head, n_tokens], strides));
    if rotates {
        [q_pe, k_pe] = [q_pe, k_pe].map(|t| g.rotate(t, None));
    }
    let q_nope = g.permute(q_nope, [0, 2, 1, 3]);
    let k_b = g.weight(il, Kind::AttnKB);
    let absorbed = g.mul_mat(k_b, q_nope);
    let absorbed = g.permute(absorbed, [0, 2, 1, 3]);
    let q = g.concat(absorbed, q_pe, 0);
    let v = g.reshape(compressed, [mla.kv_lora_rank, 1, n_tokens, 1]);
    let k = g.concat(v, k_pe, 0);
    let v_b = g.weight(il, Kind::AttnVB);
    let cur = g.attend_mla([q, k, v], v_b, None, il);
    let cur = gated(g, cur, n, mla, il);
    g.linear(cur, Kind::AttnOutput, il)
}

/// The result times a sigmoid of the layer's input, a channel (Kimi K3) or a head (Ling 3).
fn gated(g: &mut LlmGraph<'_>, cur: TensorId, n: TensorId, mla: Mla, il: usize) -> TensorId {
    if !g.has(il, Kind::AttnGate) {
        return cur;
    }
    let (n_head, n_tokens) = (g.hp.layers[il].n_head, g.n_tokens);
    let gate = g.linear(n, Kind::AttnGate, il);
    if g[gate].ne[0] != n_head {
        let gate = g.unary(Unary::Sigmoid, gate);
        return g.mul(cur, gate);
    }
    let gate = g.reshape(gate, [1, n_head, n_tokens, 1]);
    let gate = g.unary(Unary::Sigmoid, gate);
    let cur = g.reshape(cur, [mla.value_length, n_head, n_tokens, 1]);
    let cur = g.mul(cur, gate);
    g.cont_shape(cur, [mla.value_length * n_head, n_tokens, 1, 1])
}
