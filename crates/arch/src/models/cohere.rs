//! Command R and R7B: attention and feed-forward side by side on one normalised stream.

use super::Architecture;
use crate::Result;
use crate::graph::{Ffn, LlmGraph, Scale};
use crate::hparams::Hparams;
use crate::keys::Keys;
use crate::names::Kind;

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    Architecture::new("cohere2", command_r)
        .constants(&["logit_scale"])
        .scales(&[Scale::Dense])
        .reads(cohere2_hparams)
        .layer_norm(),
    Architecture::new("command-r", command_r)
        .constants(&["logit_scale"])
        .layer_norm(),
];

fn cohere2_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.set_swa(keys, Hparams::window(keys)?, 4)
}

/// Where some layers have a window, only those rotate.
pub(super) fn command_r(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let n = g.norm(x, Kind::AttnNorm, il);
        let qkv = g.qkv(n, il);
        let qkv = g.qk_norm(qkv, il);
        let qkv = if g.hp.has_swa_layers && !g.hp.layers[il].is_swa {
            qkv
        } else {
            g.rotate_qk(qkv, None)
        };
        let attn = g.attention(qkv, il);
        let attn = g.last_rows(il, attn);
        let residual = g.last_rows(il, x);
        let n = g.last_rows(il, n);
        let cur = g.ffn(n, Ffn::Silu, il);
        let cur = g.add(cur, residual);
        g.add(cur, attn)
    });
}
