//! Qwen 2 and 3, dense and with experts: Q and K normalised a head where the file has the norms.

use super::Architecture;
use super::llama::pre_norm_layer;
use crate::graph::{LlmGraph, MoeOptions};
use crate::names::Kind;

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    Architecture::new("qwen2", graph),
    Architecture::new("qwen3", graph),
    Architecture::new("qwen3moe", graph),
];

pub(super) fn graph(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let attention = |g: &mut LlmGraph<'_>, n| {
            let [mut q, mut k, v] = g.qkv(n, il);
            // Each is normalised and rotated before the other.
            if g.has(il, Kind::AttnQNorm) {
                q = g.norm(q, Kind::AttnQNorm, il);
            }
            q = g.rotate(q, None);
            if g.has(il, Kind::AttnKNorm) {
                k = g.norm(k, Kind::AttnKNorm, il);
            }
            k = g.rotate(k, None);
            g.attention([q, k, v], il)
        };
        let ffn = |g: &mut LlmGraph<'_>, n| g.ffn_or_moe(n, MoeOptions::softmax(true), il);
        pre_norm_layer(g, x, il, attention, ffn)
    });
}
