//! Grok: soft-capped attention logits, norms behind each block, experts beside a dense block in
//! Grok 2.

use super::Architecture;
use crate::Result;
use crate::graph::{Ffn, LlmGraph, MoeOptions};
use crate::hparams::Hparams;
use crate::keys::Keys;
use crate::names::Kind;

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[Architecture::new("grok", graph)
    .whole()
    .constants(&["embedding_scale", "final_logit_softcapping", "logit_scale"])
    .reads(hparams)
    .no_flash_attention()];

/// Constants that old files do not state are not 0.
fn hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.attn_softcap = true;
    hp.scales_logits = true;
    hp.scales_embeddings = keys.float("embedding_scale")? != Some(0.0);
    Ok(())
}

fn graph(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let options = MoeOptions {
        activation: Ffn::Gelu,
        ..MoeOptions::softmax(true)
    };
    g.layers(x, |g, x, il| {
        let n = g.norm(x, Kind::AttnNorm, il);
        let cur = g.rotated_attention(n, None, il);
        let cur = g.last_rows(il, cur);
        let residual = g.last_rows(il, x);
        let cur = g.norm(cur, Kind::AttnOutputNorm, il);
        let h = g.add(cur, residual);
        let n = g.norm(h, Kind::FfnNorm, il);
        let mut cur = g.moe(n, options, il);
        if g.has(il, Kind::FfnUp) {
            let dense = g.ffn(n, Ffn::Gelu, il);
            let both = g.add(dense, cur);
            cur = g.scale(both);
        }
        let post_norm = if g.has(il, Kind::LayerOutNorm) {
            Kind::LayerOutNorm
        } else {
            Kind::FfnPostNorm
        };
        let cur = g.norm(cur, post_norm, il);
        g.add(cur, h)
    });
}
