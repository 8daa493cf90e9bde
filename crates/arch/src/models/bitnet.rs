//! BitNet: norms before the output matrices of both blocks.

use super::Architecture;
use super::llama::pre_norm_layer;
use crate::graph::{LlmGraph, Scale, ScaleAt};
use crate::names::Kind;
use vramfit_ggml::Glu;

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[Architecture::new("bitnet", graph)
    .whole()
    .scales(&[Scale::Dense])
    .leaves_scales(&[Scale::Output])
    .embd_output()];

fn graph(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let attention = |g: &mut LlmGraph<'_>, n| {
            let qkv = g.qkv(n, il);
            let qkv = g.rotate_qk(qkv, None);
            let cur = g.attend(qkv, il);
            let cur = g.norm(cur, Kind::AttnSubNorm, il);
            g.linear(cur, Kind::AttnOutput, il)
        };
        let ffn = |g: &mut LlmGraph<'_>, n| {
            let up = g.linear(n, Kind::FfnUp, il);
            let gate = g.linear(n, Kind::FfnGate, il);
            let cur = g.glu_split(Glu::Swiglu, gate, up);
            let cur = g.norm(cur, Kind::FfnSubNorm, il);
            g.linear_scaled(cur, Kind::FfnDown, il, ScaleAt::Product)
        };
        pre_norm_layer(g, x, il, attention, ffn)
    });
}
