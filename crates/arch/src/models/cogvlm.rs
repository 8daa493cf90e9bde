//! CogVLM on text; images take other matrices, which are loaded all the same. The last layer
//! computes every token.

use super::Architecture;
use crate::graph::{Ffn, LlmGraph, Scale};
use crate::names::Kind;

/// Its architectures.
pub(super) const ALL: &[Architecture] =
    &[Architecture::new("cogvlm", graph).leaves_scales(&[Scale::Qkv])];

fn graph(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let n = g.norm(x, Kind::AttnNorm, il);
        let cur = g.rotated_attention(n, None, il);
        let h = g.add(cur, x);
        let n = g.norm(h, Kind::FfnNorm, il);
        let cur = g.ffn(n, Ffn::Silu, il);
        g.add(cur, h)
    });
}
