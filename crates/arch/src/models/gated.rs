//! Muse Glimmer and Spark 2.5: a sigmoid gate behind attention, windows on most layers.

use super::Architecture;
use super::llama::pre_norm_layer;
use crate::Result;
use crate::graph::{Ffn, LlmGraph, Scale};
use crate::hparams::Hparams;
use crate::keys::Keys;
use crate::names::Kind;
use vramfit_ggml::{TensorId, Unary};

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    Architecture::new("muse-glimmer", muse)
        .tapped()
        .constants(&["final_logit_softcapping", "logit_scale"])
        .reads(muse_hparams),
    Architecture::new("spark2_5", spark)
        .leaves_scales(&[Scale::Output])
        .reads(spark_hparams),
];

fn muse_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.scales_logits = true;
    hp.final_softcap = keys.float("final_logit_softcapping")? != Some(0.0);
    hp.set_swa(keys, Hparams::window(keys)?, 4)
}

fn spark_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.set_swa(keys, Hparams::window(keys)?, 0)
}

/// The gate of layer `il` for the normalised stream `n`.
pub(super) fn gate(g: &mut LlmGraph<'_>, n: TensorId, il: usize) -> TensorId {
    let gate = g.linear(n, Kind::AttnGate, il);
    g.unary(Unary::Sigmoid, gate)
}

/// Attention of layer `il`, gated element by element before its output matrix.
pub(super) fn gated_attention(
    g: &mut LlmGraph<'_>,
    qkv: [TensorId; 3],
    gate: TensorId,
    il: usize,
) -> TensorId {
    let cur = g.attend(qkv, il);
    let cur = g.mul(cur, gate);
    g.linear(cur, Kind::AttnOutput, il)
}

/// `cur` times what `activation` makes of the layer's gate over `n`, one an element or one a head,
/// through the output matrix.
pub(super) fn gate_and_output(
    g: &mut LlmGraph<'_>,
    cur: TensorId,
    n: TensorId,
    activation: Unary,
    il: usize,
) -> TensorId {
    let shape = g.hp.layers[il];
    let gate = g.linear(n, Kind::AttnGate, il);
    let gate = g.unary(activation, gate);
    let [n_gates, n_tokens, ..] = g[gate].ne;
    let cur = if n_gates == shape.n_head {
        let (ne, head) = (g[cur].ne, shape.n_embd_head_v);
        let heads = g.reshape(cur, [head, n_gates, n_tokens, 1]);
        let gate = g.reshape(gate, [1, n_gates, n_tokens, 1]);
        let gated = g.mul(heads, gate);
        g.reshape(gated, ne)
    } else {
        g.mul(cur, gate)
    };
    g.linear(cur, Kind::AttnOutput, il)
}

/// Muse Glimmer: norms on both sides of each block; only layers with a window rotate.
fn muse(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let x = g.rms(x);
    g.layers(x, |g, x, il| {
        let n = g.norm(x, Kind::AttnNorm, il);
        let qkv = g.qkv(n, il);
        let mut qkv = g.qk_norm(qkv, il);
        if g.hp.layers[il].is_swa {
            qkv = g.rotate_qk(qkv, None);
        }
        let gate = gate(g, n, il);
        let cur = gated_attention(g, qkv, gate, il);
        let cur = g.norm_unpinned(cur, Kind::AttnPostNorm, il);
        let cur = g.last_rows(il, cur);
        let residual = g.last_rows(il, x);
        let h = g.add(cur, residual);
        let n = g.norm(h, Kind::FfnNorm, il);
        let cur = g.ffn(n, Ffn::Silu, il);
        let cur = g.norm_unpinned(cur, Kind::FfnPostNorm, il);
        g.add(cur, h)
    });
}

/// Spark 2.5: one gate a head.
fn spark(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let attention = |g: &mut LlmGraph<'_>, n| {
            let qkv = g.qkv(n, il);
            let qkv = g.rotate_qk(qkv, None);
            let cur = g.attend(qkv, il);
            gate_and_output(g, cur, n, Unary::Sigmoid, il)
        };
        let ffn = |g: &mut LlmGraph<'_>, n| g.ffn(n, Ffn::Gelu, il);
        pre_norm_layer(g, x, il, attention, ffn)
    });
}
