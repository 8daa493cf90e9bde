//! Falcon: attention and feed-forward side by side, with a norm each where the file has two.

use super::Architecture;
use crate::graph::{Ffn, LlmGraph};
use crate::names::Kind;

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[Architecture::new("falcon", graph).layer_norm()];

pub(super) fn graph(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let n = g.norm(x, Kind::AttnNorm, il);
        let for_attention = if g.has(il, Kind::AttnNorm2) {
            g.norm(x, Kind::AttnNorm2, il)
        } else {
            n
        };
        let qkv = g.qkv(for_attention, il);
        let qkv = g.rotate_qk(qkv, None);
        let attn = g.attention(qkv, il);
        let attn = g.last_rows(il, attn);
        let residual = g.last_rows(il, x);
        let n = g.last_rows(il, n);
        let cur = g.ffn(n, Ffn::Gelu, il);
        let cur = g.add(cur, attn);
        g.add(cur, residual)
    });
}
