//! Talkie: norms without weights, a share of the embedding added behind every layer.

use super::Architecture;
use crate::Result;
use crate::graph::{Ffn, LlmGraph, Scale};
use crate::hparams::Hparams;
use crate::keys::Keys;
use crate::names::Kind;

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[Architecture::new("talkie", graph)
    .constants(&["logit_scale"])
    .scales(&[Scale::FfnDown])
    .leaves_scales(&[Scale::Output])
    .reads(hparams)];

fn hparams(_: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.scales_logits = true;
    Ok(())
}

fn graph(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let embd = g.rms(x);
    g.layers(embd, |g, x, il| {
        let n = g.rms(x);
        let qkv = g.qkv(n, il);
        let [q, k, v] = g.rotate_qk(qkv, None);
        let q = g.norm(q, Kind::AttnQNorm, il);
        let k = g.rms(k);
        let cur = g.attention([q, k, v], il);
        let cur = g.last_rows(il, cur);
        let residual = g.last_rows(il, x);
        let skip = g.last_rows(il, embd);
        let h = g.add(cur, residual);
        let n = g.rms(h);
        let cur = g.ffn(n, Ffn::Silu, il);
        let cur = g.add(cur, h);
        let share = g.weight(il, Kind::LayerOutScale);
        let skip = g.mul(skip, share);
        g.add(cur, skip)
    });
}
