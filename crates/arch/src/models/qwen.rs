//! Qwen 2 and 3, dense and with experts: Q and K normalised a head where the file has the norms.

use super::Architecture;
use super::llama::pre_norm_layer;
use crate::graph::{Ffn, LlmGraph, MoeOptions, RankHead, Scale};
use crate::names::Kind;
use vramfit_ggml::{TensorId, Unary};

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    Architecture::new("qwen2", graph),
    Architecture::new("qwen2moe", qwen2moe),
    Architecture::new("qwen3", graph)
        .tapped()
        .scales(&[Scale::Dense])
        .ranks_by(RankHead::Softmax),
    Architecture::new("qwen3moe", graph)
        .tapped()
        .scales(&[Scale::Experts]),
];

pub(super) fn graph(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| layer(g, x, MoeOptions::softmax(true), il));
}

pub(super) fn layer(g: &mut LlmGraph<'_>, x: TensorId, options: MoeOptions, il: usize) -> TensorId {
    let attention = |g: &mut LlmGraph<'_>, n| g.rotated_attention(n, None, il);
    let ffn = |g: &mut LlmGraph<'_>, n| g.ffn_or_moe(n, options, il);
    pre_norm_layer(g, x, il, attention, ffn)
}

/// Qwen1.5-MoE and Qwen2-MoE: the shared expert has a gate, `silu(x) / x`.
fn qwen2moe(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let attention = |g: &mut LlmGraph<'_>, n| g.rotated_attention(n, None, il);
        let ffn = |g: &mut LlmGraph<'_>, n| {
            let routed = g.moe(n, MoeOptions::softmax(false), il);
            let shared = g.shared_expert(n, Ffn::Silu, il);
            let logit = g.linear(n, Kind::FfnGateInpShexp, il);
            let silu = g.unary(Unary::Silu, logit);
            let gate = g.div(silu, logit);
            let shared = g.mul(shared, gate);
            g.add(routed, shared)
        };
        pre_norm_layer(g, x, il, attention, ffn)
    });
}
