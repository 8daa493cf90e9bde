//! Command R: attention and feed-forward side by side on one normalised stream.

use super::Architecture;
use crate::graph::{Ffn, LlmGraph};
use crate::names::Kind;

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[Architecture::new("command-r", command_r).layer_norm()];

pub(super) fn command_r(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let n = g.norm(x, Kind::AttnNorm, il);
        let qkv = g.qkv(n, il);
        let qkv = g.qk_norm(qkv, il);
        let qkv = g.rotate_qk(qkv, None);
        let attn = g.attention(qkv, il);
        let attn = g.last_rows(il, attn);
        let residual = g.last_rows(il, x);
        let n = g.last_rows(il, n);
        let cur = g.ffn(n, Ffn::Silu, il);
        let cur = g.add(cur, residual);
        g.add(cur, attn)
    });
}
