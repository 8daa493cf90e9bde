//! Granite, dense, with experts or with Mamba 2 layers: what a layer adds is scaled.

use super::{Architecture, mamba};
use crate::graph::{LlmGraph, MoeOptions};
use crate::names::Kind;

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    Architecture::new("granite", graph),
    Architecture::new("granitehybrid", graph).reads(mamba::hybrid_hparams),
];

pub(super) fn graph(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let n = g.norm(x, Kind::AttnNorm, il);
        let cur = if g.hp.layers[il].is_recurrent {
            g.mamba2(n, il)
        } else {
            let factors = g.rope_factors(il);
            let mut qkv = g.qkv(n, il);
            if !g.hp.no_rope {
                qkv = g.rotate_qk(qkv, factors);
            }
            g.attention(qkv, il)
        };
        let mut cur = g.last_rows(il, cur);
        let residual = g.last_rows(il, x);
        if g.hp.scales_residual {
            cur = g.scale(cur);
        }
        let h = g.add(cur, residual);
        let n = g.norm(h, Kind::FfnNorm, il);
        let mut cur = g.ffn_or_moe(n, MoeOptions::softmax(true), il);
        if g.hp.scales_residual {
            cur = g.scale(cur);
        }
        g.add(cur, h)
    });
}
