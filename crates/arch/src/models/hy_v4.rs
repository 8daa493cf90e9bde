//! Hunyuan 4: hyper connections, in f32 throughout; sparse latent attention, gated.

use super::Architecture;
use super::dsa::{indexer_layers, sparse_attention};
use crate::Result;
use crate::graph::{Ffn, HcWeights, LlmGraph, MoeOptions, Scale};
use crate::hparams::{Hparams, limits};
use crate::keys::Keys;
use crate::names::{Global, Kind, Part};
use vramfit_ggml::{TensorId, Type};

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[Architecture::new("hy_v4", graph)
    .whole()
    .constants(&["expert_weights_scale"])
    .leaves_scales(&[Scale::Qkv, Scale::AttnOutput, Scale::Output])
    .reads(hparams)
    .unadapted(&[super::LATENT, &[Kind::AttnGate]])
    .output_unadapted()
    .no_control()
    .large_graph()];

fn hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    read_expert_limits(keys, hp)?;
    match keys.positive("attention.indexer.top_k", limits::CONTEXT)? {
        Some(_) => indexer_layers(keys, hp, |_| false),
        None => Ok(()),
    }
}

/// `swiglu_clamp_exp`: layers whose experts are limited.
pub(super) fn read_expert_limits(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    let limits = keys.floats("swiglu_clamp_exp", hp.n_layer_all)?;
    for (layer, limit) in hp.layers.iter_mut().zip(limits) {
        layer.clamps_experts = limit > 1e-6;
    }
    Ok(())
}

fn graph(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let mut x = g.hc_streams(x);
    let mut chosen = None;
    for il in 0..g.hp.n_layer() {
        let weights = hc_weights(g, HC_ATTN, il);
        let (cur, gates) = read_streams(g, x, weights);
        let n = g.norm(cur, Kind::AttnNorm, il);
        let cur = sparse_attention(g, n, &mut chosen, false, il);
        x = write_streams(g, cur, x, gates);
        let weights = hc_weights(g, HC_FFN, il);
        let (cur, gates) = read_streams(g, x, weights);
        let n = g.norm(cur, Kind::FfnNorm, il);
        let cur = feed_forward(g, n, il);
        x = write_streams(g, cur, x, gates);
    }
    let x = g.hc_output_rows(x);
    let weights = hc_head_weights(g);
    let mixes = g.hc_mixes(x, weights.of_streams);
    let gates = g.hc_head_gate(mixes, weights);
    let cur = sum_streams(g, x, gates);
    let embd = g.final_norm(cur);
    g.lm_head(embd, embd);
}

pub(super) const HC_ATTN: [Kind; 3] = [Kind::HcAttnFn, Kind::HcAttnScale, Kind::HcAttnBase];
pub(super) const HC_FFN: [Kind; 3] = [Kind::HcFfnFn, Kind::HcFfnScale, Kind::HcFfnBase];

pub(super) fn hc_weights(g: &mut LlmGraph<'_>, kinds: [Kind; 3], il: usize) -> HcWeights {
    let [of_streams, scale, base] = kinds.map(|kind| g.weight(il, kind));
    HcWeights {
        of_streams,
        scale,
        base,
    }
}

/// The hyper connection behind the last layer.
pub(super) fn hc_head_weights(g: &mut LlmGraph<'_>) -> HcWeights {
    let [of_streams, scale, base] = [
        Global::OutputHcFn,
        Global::OutputHcScale,
        Global::OutputHcBase,
    ]
    .map(|global| {
        let weight = g.output_weight(global, Part::Weight);
        g.required(global, weight)
    });
    HcWeights {
        of_streams,
        scale,
        base,
    }
}

fn sum_streams(g: &mut LlmGraph<'_>, x: TensorId, gates: TensorId) -> TensorId {
    let x = g.cast(x, Type::F32);
    let sum = g.hc_sum(x, gates);
    g.cast(sum, Type::F32)
}

/// What a block reads, and the gates by which its result is added to the streams.
fn read_streams(g: &mut LlmGraph<'_>, x: TensorId, weights: HcWeights) -> (TensorId, TensorId) {
    let mixes = g.hc_mixes(x, weights.of_streams);
    let read = g.hc_gate(mixes, weights);
    let write = g.hc_gate(mixes, weights);
    let write = g.scale(write);
    (sum_streams(g, x, read), write)
}

/// The streams `x` and the block's result `cur`, which each takes by its gate.
fn write_streams(g: &mut LlmGraph<'_>, cur: TensorId, x: TensorId, gates: TensorId) -> TensorId {
    let ne = g[x].ne;
    let [cur, gates, x] = [cur, gates, x].map(|t| g.cast(t, Type::F32));
    let mut all = None;
    for _ in 0..ne[1] {
        let stream = g.hc_stream(x);
        let gate = g.hc_number(gates, 1);
        let added = g.mul(cur, gate);
        let stream = g.add(stream, added);
        let stream = g.reshape(stream, [ne[0], 1, ne[2], 1]);
        all = Some(match all {
            Some(all) => g.concat(all, stream, 1),
            None => stream,
        });
    }
    let all = all.unwrap_or(x);
    g.cast(all, Type::F32)
}

/// Only the routed experts are limited.
fn feed_forward(g: &mut LlmGraph<'_>, n: TensorId, il: usize) -> TensorId {
    if !g.has(il, Kind::FfnGateInp) {
        return g.ffn(n, Ffn::Silu, il);
    }
    let mut options = MoeOptions::of_file(&g.hp.moe);
    if g.hp.layers[il].clamps_experts {
        options.activation = Ffn::SwigluClamp;
    }
    let routed = g.moe(n, options, il);
    let shared = g.shared_expert(n, Ffn::Silu, il);
    g.add(routed, shared)
}
