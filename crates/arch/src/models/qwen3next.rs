//! Qwen3-Next and Qwen3.5: gated delta nets, full attention with a gate on every fourth layer.

use super::Architecture;
use crate::Result;
use crate::graph::{Ffn, LlmGraph, MoeOptions, Scale, floats};
use crate::hparams::Hparams;
use crate::keys::Keys;
use crate::names::Kind;
use crate::slices::TensorSplit;
use vramfit_ggml::{TensorId, Unary};

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    interleaved("qwen35").scales(&[Scale::Dense, Scale::AttnGate]),
    interleaved("qwen35moe").scales(&[Scale::Experts, Scale::SharedExperts, Scale::AttnGate]),
    Architecture::new("qwen3next", qwen3next)
        .tensor_split(TensorSplit::DeltaNet)
        .scales(&[Scale::Experts, Scale::SharedExperts])
        .leaves_scales(&[Scale::Ssm])
        .tapped()
        .predicts(qwen3next_mtp)
        .reads(hparams)
        .rows_behind_norm()
        .large_graph()
        .no_scan(),
];

const fn interleaved(name: &'static str) -> Architecture {
    Architecture::new(name, qwen35)
        .tensor_split(TensorSplit::DeltaNetInterleaved)
        .rolling_back()
        .tapped()
        .predicts(qwen35_mtp)
        .reads(qwen35_hparams)
        .rows_behind_norm()
        .large_graph()
        .no_scan()
}

pub(super) fn hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.set_recurrent_layers(keys, 4)
}

pub(super) fn qwen35_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.n_pos_per_embd = 4;
    hparams(keys, hp)
}

/// What sets the three apart.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Variant {
    /// Packs beta with alpha, and repeats Q and K to V's heads.
    Next,
    /// Qwen3.5.
    Plain,
    /// Qwen4's experiment: a sigmoid as gate, the convolution's state copied out of line.
    Four,
}

pub(super) fn qwen3next(g: &mut LlmGraph<'_>) {
    graph(g, Variant::Next);
}

pub(super) fn qwen35(g: &mut LlmGraph<'_>) {
    graph(g, Variant::Plain);
}

fn graph(g: &mut LlmGraph<'_>, variant: Variant) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let n = g.norm(x, Kind::AttnNorm, il);
        g.expand(n);
        let cur = if g.hp.layers[il].is_recurrent {
            delta_net(g, n, variant, il)
        } else {
            gated_attention(g, n, variant, None, il)
        };
        let h = g.add(cur, x);
        feed_forward(g, h, il)
    });
}

/// The second half of a layer.
fn feed_forward(g: &mut LlmGraph<'_>, h: TensorId, il: usize) -> TensorId {
    let n = g.norm(h, Kind::AttnPostNorm, il);
    let cur = if g.has(il, Kind::FfnGateInp) {
        experts(g, n, il)
    } else {
        g.ffn(n, Ffn::Silu, il)
    };
    g.add(cur, h)
}

fn qwen35_mtp(g: &mut LlmGraph<'_>) {
    let (x, il) = g.mtp_input();
    let n = g.norm(x, Kind::AttnNorm, il);
    let cur = gated_attention(g, n, Variant::Plain, None, il);
    let h = g.add(cur, x);
    let x = feed_forward(g, h, il);
    g.mtp_head(x, il);
}

/// Drops the tokens without wanted logits behind attention.
fn qwen3next_mtp(g: &mut LlmGraph<'_>) {
    let (x, il) = g.mtp_input();
    let n = g.norm(x, Kind::AttnNorm, il);
    let cur = gated_attention(g, n, Variant::Plain, None, il);
    let cur = g.output_rows(cur);
    let x = g.output_rows(x);
    let h = g.add(cur, x);
    let x = feed_forward(g, h, il);
    let x = g.mtp_norm(x, il);
    g.mtp_logits(x, il);
}

/// Routed experts and a shared one with a gate of its own.
pub(super) fn experts(g: &mut LlmGraph<'_>, n: TensorId, il: usize) -> TensorId {
    let routed = g.moe(n, MoeOptions::softmax(true), il);
    let shared = g.shared_expert(n, Ffn::Silu, il);
    let gate = g.linear(n, Kind::FfnGateInpShexp, il);
    let gate = g.unary(Unary::Sigmoid, gate);
    let shared = g.mul(shared, gate);
    g.add(routed, shared)
}

/// Attention (to the `chosen` cells) whose result is gated; Q and the gate come from one matrix.
pub(super) fn gated_attention(
    g: &mut LlmGraph<'_>,
    n: TensorId,
    variant: Variant,
    chosen: Option<TensorId>,
    il: usize,
) -> TensorId {
    let (shape, n_tokens) = (g.hp.layers[il], g.n_tokens);
    let (head, n_head, n_head_kv) = (shape.n_embd_head_k, shape.n_head, shape.n_head_kv);
    let mut q_gate = g.linear(n, Kind::AttnQ, il);
    let k = g.linear(n, Kind::AttnK, il);
    let v = g.linear(n, Kind::AttnV, il);
    if variant == Variant::Next {
        q_gate = g.reshape(q_gate, [2 * head, n_head, n_tokens, 1]);
    }
    let strides = [floats(2 * head), floats(2 * head * n_head)];
    let [q, gate] = [(); 2].map(|()| g.view_3d(q_gate, [head, n_head, n_tokens], strides));
    let q = g.norm(q, Kind::AttnQNorm, il);
    let k = g.reshape(k, [head, n_head_kv, n_tokens, 1]);
    let k = g.norm(k, Kind::AttnKNorm, il);
    let gate = g.cont_shape(gate, [head * n_head, n_tokens, 1, 1]);
    let v = g.reshape(v, [head, n_head_kv, n_tokens, 1]);
    let qkv = g.rotate_qk([q, k, v], None);
    let cur = match chosen {
        Some(cells) => g.attend_chosen(qkv, cells, il),
        None => g.attend(qkv, il),
    };
    let gate = g.unary(Unary::Sigmoid, gate);
    let cur = g.mul(cur, gate);
    g.linear(cur, Kind::AttnOutput, il)
}

/// Sizes of a gated delta net.
#[derive(Clone, Copy)]
struct Net {
    key_head: i64,
    n_key_head: i64,
    value_head: i64,
    n_value_head: i64,
    /// Channels of the convolution: Q, K and V.
    channels: i64,
    taps: i64,
    n_seqs: i64,
    n_time: i64,
}

pub(super) fn delta_net(
    g: &mut LlmGraph<'_>,
    n: TensorId,
    variant: Variant,
    il: usize,
) -> TensorId {
    let next = variant == Variant::Next;
    let ssm = g.ssm();
    let net = Net {
        key_head: ssm.d_state,
        n_key_head: ssm.n_group,
        value_head: ssm.d_inner / ssm.dt_rank.max(1),
        n_value_head: ssm.dt_rank,
        channels: ssm.d_inner + 2 * ssm.n_group * ssm.d_state,
        taps: ssm.d_conv,
        n_seqs: g.n_seqs,
        n_time: g.n_seq_tokens(),
    };
    let (conv_state, state) = (g.conv_state(il), g.scan_state(il));
    let qkv = g.linear(n, Kind::AttnQkv, il);
    let qkv = g.reshape(qkv, [net.channels, net.n_time, net.n_seqs, 1]);
    let z = g.linear(n, Kind::AttnGate, il);
    let (gate, beta) = decay_and_beta(g, n, net, next, il);

    let before = g.taps_before(conv_state, net.channels, net.taps);
    let qkv = g.transpose(qkv);
    let all = g.concat(before, qkv, 0);
    if variant == Variant::Four {
        keep_columns(g, conv_state, all, net.channels, net.taps - 1);
    } else {
        for _ in 0..g.n_kept() {
            g.keep_taps_once(conv_state, all, net.channels, net.taps);
        }
    }
    let before = g.gather_state(state);
    let (hv, dv) = (net.n_value_head, net.value_head);
    let before = g.reshape(before, [dv, dv, hv, net.n_seqs]);
    let kernel = g.weight(il, Kind::SsmConv1d);
    let convolved = g.ssm_conv(all, kernel);
    let convolved = g.unary(Unary::Silu, convolved);
    let [q, k, v] = convolved_qkv(g, convolved, net, next);

    let kept = |g: &mut LlmGraph<'_>| {
        let row = g[state].nb[1];
        g.view_2d(state, [ssm.n_embd_s(), net.n_seqs], row)
    };
    let y = g.recurrent_attention([q, k, v], [gate, beta, before], state, kept, il);

    let z = g.reshape(z, [dv, hv, net.n_time, net.n_seqs]);
    let y = g.norm(y, Kind::SsmNorm, il);
    let gate = if variant == Variant::Four {
        Unary::Sigmoid
    } else {
        Unary::Silu
    };
    let z = g.unary(gate, z);
    let y = g.mul(y, z);
    let y = g.reshape(y, [dv * hv, net.n_time, net.n_seqs, 1]);
    let y = g.linear(y, Kind::SsmOut, il);
    let (n_embd, n_tokens) = (g.hp.n_embd, g.n_tokens);
    g.reshape(y, [n_embd, n_tokens, 1, 1])
}

/// Keeps the last columns of a convolution's input for the next batch, by way of a copy.
pub(super) fn keep_columns(
    g: &mut LlmGraph<'_>,
    state: TensorId,
    all: TensorId,
    width: i64,
    n: i64,
) {
    let (nb, row, n_seqs) = (g[all].nb, g[state].nb[1], g.n_seqs);
    for _ in 0..g.n_kept() {
        let last = g.view_3d(all, [n, width, n_seqs], [nb[1], nb[2]]);
        let last = g.cont(last);
        let target = g.view_2d(state, [n * width, n_seqs], row);
        let kept = g.cpy(last, target);
        g.expand(kept);
    }
}

/// How fast the state fades, and how strongly new values are written.
fn decay_and_beta(
    g: &mut LlmGraph<'_>,
    n: TensorId,
    net: Net,
    next: bool,
    il: usize,
) -> (TensorId, TensorId) {
    let (hv, hk) = (net.n_value_head, net.n_key_head.max(1));
    let (n_time, n_seqs) = (net.n_time, net.n_seqs);
    let (beta, alpha) = if next {
        let both = g.linear(n, Kind::SsmBa, il);
        let both = g.reshape(both, [2 * hv / hk, hk, n_time, n_seqs]);
        let nb = g[both].nb;
        let [beta, alpha] =
            [(); 2].map(|()| g.view_4d(both, [hv / hk, hk, n_time, n_seqs], [nb[1], nb[2], nb[3]]));
        let beta = g.cont(beta);
        (
            g.unary(Unary::Sigmoid, beta),
            g.cont_shape(alpha, [hv, n_time, n_seqs, 1]),
        )
    } else {
        let beta = g.linear(n, Kind::SsmBeta, il);
        let beta = g.reshape(beta, [1, hv, n_time, n_seqs]);
        let beta = g.unary(Unary::Sigmoid, beta);
        let alpha = g.linear(n, Kind::SsmAlpha, il);
        (beta, g.reshape(alpha, [hv, n_time, n_seqs, 1]))
    };
    let dt = g.bias(il, Kind::SsmDt);
    let a = g.add(alpha, dt);
    let a = g.unary(Unary::Softplus, a);
    let decay = g.weight(il, Kind::SsmA);
    let gate = g.mul(a, decay);
    let beta = if next {
        g.reshape(beta, [1, hv, n_time, n_seqs])
    } else {
        beta
    };
    let gate = g.reshape(gate, [1, hv, n_time, n_seqs]);
    (gate, beta)
}

/// Q and K of unit length (repeated to V's heads in Qwen3-Next), and V.
fn convolved_qkv(g: &mut LlmGraph<'_>, x: TensorId, net: Net, next: bool) -> [TensorId; 3] {
    let (n_time, n_seqs) = (net.n_time, net.n_seqs);
    let (row, seq) = (floats(net.channels), floats(net.channels * n_time));
    let key = [net.key_head, net.n_key_head, n_time, n_seqs];
    let [q, k] = [(); 2].map(|()| g.view_4d(x, key, [floats(net.key_head), row, seq]));
    let value = [net.value_head, net.n_value_head, n_time, n_seqs];
    let v = g.view_4d(x, value, [floats(net.value_head), row, seq]);
    let [q, k] = [q, k].map(|t| {
        let t = g.unit_length(t);
        if !next || net.n_key_head == net.n_value_head {
            return t;
        }
        let times = net.n_value_head / net.n_key_head.max(1);
        let t = g.reshape(t, [net.key_head, 1, net.n_key_head, n_time * n_seqs]);
        let t = g.repeat(t, [net.key_head, times, net.n_key_head, n_time * n_seqs]);
        g.reshape(t, [net.key_head, net.n_value_head, n_time, n_seqs])
    });
    [q, k, v]
}
