//! Mamba, Mamba 2, Jamba and Nemotron-H (also with experts): layers with a state, alone or between attention.

use super::Architecture;
use crate::Result;
use crate::graph::{Ffn, LlmGraph, MoeOptions, Norm, Scale};
use crate::hparams::{Gating, Hparams, limits};
use crate::keys::Keys;
use crate::names::{Kind, Part};
use vramfit_ggml::TensorId;

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    Architecture::new("jamba", jamba)
        .whole()
        .reads(hybrid_hparams),
    Architecture::new("mamba", mamba)
        .whole()
        .reads(hybrid_hparams),
    Architecture::new("mamba2", mamba2)
        .whole()
        .reads(hybrid_hparams),
    Architecture::new("nemotron_h", nemotron_h)
        .whole()
        .constants(&["expert_weights_scale"])
        .scales(&[Scale::Dense, Scale::Experts, Scale::SharedExperts])
        .rolling_back()
        .tapped()
        .unadapted(&[&[Kind::FfnLatentDown, Kind::FfnLatentUp]])
        .reads(nemotron_h_hparams)
        .no_control()
        .rows_behind_norm(),
    Architecture::new("nemotron_h_moe", nemotron_h)
        .whole()
        .constants(&["expert_weights_scale"])
        .scales(&[Scale::Dense, Scale::Experts, Scale::SharedExperts])
        .rolling_back()
        .tapped()
        .predicts(nemotron_h_mtp)
        .unadapted(&[&[Kind::FfnLatentDown, Kind::FfnLatentUp]])
        .reads(nemotron_h_hparams)
        .no_control()
        .rows_behind_norm(),
];

/// Layers without KV heads are recurrent.
pub(super) fn hybrid_hparams(_: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.set_recurrent(|_, layer| layer.n_head_kv == 0);
    Ok(())
}

/// Layers with neither KV heads nor a feed-forward width are recurrent; those with a width do not
/// attend.
pub(super) fn nemotron_h_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    let n_ff = keys.per_layer("feed_forward_length", hp.layers.len(), limits::WIDTH)?;
    let n_ff = n_ff.unwrap_or_else(|| vec![0; hp.layers.len()]);
    hp.set_recurrent(|il, layer| layer.n_head_kv == 0 && n_ff[il] == 0);
    for (layer, n_ff) in hp.layers.iter_mut().zip(n_ff) {
        layer.is_cached = !layer.is_recurrent && n_ff == 0;
    }
    Ok(())
}

pub(super) fn mamba(g: &mut LlmGraph<'_>) {
    recurrent_only(g, |g, n, il| g.mamba1(n, il));
}

pub(super) fn mamba2(g: &mut LlmGraph<'_>) {
    recurrent_only(g, |g, n, il| g.mamba2(n, il));
}

fn recurrent_only(
    g: &mut LlmGraph<'_>,
    step: impl Fn(&mut LlmGraph<'_>, TensorId, usize) -> TensorId,
) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let n = g.norm(x, Kind::AttnNorm, il);
        let cur = step(g, n, il);
        let cur = g.last_rows(il, cur);
        let residual = g.last_rows(il, x);
        g.add(cur, residual)
    });
}

pub(super) fn jamba(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let n = g.norm(x, Kind::AttnNorm, il);
        let cur = if g.hp.layers[il].is_recurrent {
            g.mamba1(n, il)
        } else {
            let qkv = g.qkv(n, il);
            g.attention(qkv, il)
        };
        let cur = g.last_rows(il, cur);
        let residual = g.last_rows(il, x);
        let h = g.add(residual, cur);
        let n = g.norm(h, Kind::FfnNorm, il);
        let cur = g.ffn_or_moe(n, MoeOptions::softmax(false), il);
        g.add(h, cur)
    });
}

/// Nemotron-H: each layer is one block, a scan, attention or feed-forward.
pub(super) fn nemotron_h(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let n = g.norm(x, Kind::AttnNorm, il);
        let cur = if g.hp.layers[il].is_recurrent {
            g.mamba2(n, il)
        } else if g.has(il, Kind::AttnOutput) {
            let qkv = g.qkv(n, il);
            g.attention(qkv, il)
        } else {
            let cur = relu_sqr_ffn(g, n, il);
            g.control(cur, il) // behind these layers alone
        };
        g.add(cur, x)
    });
}

/// Attention and experts, without positions; the states that go on are those of tokens with wanted logits.
fn nemotron_h_mtp(g: &mut LlmGraph<'_>) {
    let (x, il) = g.mtp_input();
    let n = g.norm(x, Kind::AttnNorm, il);
    let qkv = g.qkv(n, il);
    let cur = g.attention(qkv, il);
    let h = g.add(cur, x);
    let h = g.output_rows(h);
    let n = g.norm(h, Kind::AttnPostNorm, il);
    let cur = relu_sqr_ffn(g, n, il);
    let x = g.add(cur, h);
    let w = g.optional(il, Kind::NextnSharedHeadNorm, Part::Weight);
    let x = g.norm_by(Norm::Layer, x, w, None, None);
    g.mark_output(x);
    g.mtp_logits(x, il);
}

/// Dense, or experts which may work on a narrower stream, and a shared one.
fn relu_sqr_ffn(g: &mut LlmGraph<'_>, n: TensorId, il: usize) -> TensorId {
    if !g.has(il, Kind::FfnGateInp) {
        return g.ffn(n, Ffn::ReluSqr, il);
    }
    let options = MoeOptions {
        activation: Ffn::ReluSqr,
        gating: Gating::Sigmoid,
        ..MoeOptions::of_file(&g.hp.moe)
    };
    let mut cur = n;
    if g.has(il, Kind::FfnLatentDown) {
        cur = g.linear(n, Kind::FfnLatentDown, il);
    }
    let logits = g.linear(n, Kind::FfnGateInp, il);
    let mut routed = g.moe_routed(cur, logits, options, il);
    if g.has(il, Kind::FfnLatentUp) {
        routed = g.linear(routed, Kind::FfnLatentUp, il);
    }
    let shared = g.shared_expert(n, Ffn::ReluSqr, il);
    g.add(routed, shared)
}
