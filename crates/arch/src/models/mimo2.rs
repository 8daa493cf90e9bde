//! MiMo-V2: windows with attention sinks on most layers, V narrower than K.

use super::Architecture;
use super::llama::pre_norm_layer;
use crate::Result;
use crate::graph::{LlmGraph, MoeOptions};
use crate::hparams::{Gating, Hparams};
use crate::keys::Keys;

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[Architecture::new("mimo2", graph).reads(hparams)];

fn hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    let scale = keys.float("attention.value_scale")?.unwrap_or(0.0);
    hp.scales_attention = scale != 0.0 && scale != 1.0;
    hp.set_swa(keys, Hparams::window(keys)?, 0)
}

fn graph(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let options = MoeOptions {
        gating: Gating::Sigmoid,
        ..MoeOptions::softmax(true)
    };
    g.layers(x, |g, x, il| {
        let attention = |g: &mut LlmGraph<'_>, n| {
            let qkv = g.qkv(n, il);
            let qkv = g.rotate_qk(qkv, None);
            let cur = g.attention(qkv, il);
            if g.hp.scales_attention {
                g.scale(cur)
            } else {
                cur
            }
        };
        let ffn = |g: &mut LlmGraph<'_>, n| g.ffn_or_moe(n, options, il);
        pre_norm_layer(g, x, il, attention, ffn)
    });
}
