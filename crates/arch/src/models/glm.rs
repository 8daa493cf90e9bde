//! GLM-4, PLaMo 3 and GLM-4.5, and Seed-OSS, which names its norms as the latter does.

use super::Architecture;
use super::llama::pre_norm_layer_named;
use crate::Result;
use crate::graph::{Ffn, LlmGraph, MoeOptions, Scale};
use crate::hparams::Hparams;
use crate::keys::Keys;
use crate::names::Kind;
use vramfit_ggml::TensorId;

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    Architecture::new("glm4", glm4).reads(hparams).f32_sums(),
    Architecture::new("glm4moe", glm4moe)
        .constants(&["expert_weights_scale"])
        .predicts(glm4moe_mtp)
        .reads(hparams)
        .f32_sums(),
    Architecture::new("plamo3", glm4)
        .leaves_scales(&[Scale::Qkv])
        .reads(plamo3_hparams),
    Architecture::new("seed_oss", glm4moe),
];

fn hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.set_mrope(keys)
}

/// A window on seven of eight layers.
fn plamo3_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.set_swa(keys, Hparams::window(keys)?, 8)
}

/// GLM-4, PLaMo 3: norms on both sides of each block.
pub(super) fn glm4(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let attention = |g: &mut LlmGraph<'_>, n| g.rotated_attention(n, None, il);
        layer_between_norms(g, x, il, attention)
    });
}

/// Norms on both sides of `mix` and of a dense block whose gate and up projection are one matrix.
pub(super) fn layer_between_norms(
    g: &mut LlmGraph<'_>,
    x: TensorId,
    il: usize,
    mix: impl Fn(&mut LlmGraph<'_>, TensorId) -> TensorId,
) -> TensorId {
    let n = g.norm(x, Kind::AttnNorm, il);
    let cur = mix(g, n);
    let cur = g.last_rows(il, cur);
    let residual = g.last_rows(il, x);
    let cur = g.norm(cur, Kind::AttnPostNorm, il);
    let h = g.add(cur, residual);
    let n = g.norm(h, Kind::FfnNorm, il);
    let cur = g.ffn(n, Ffn::SwigluFused, il);
    let cur = g.norm(cur, Kind::FfnPostNorm, il);
    g.add(cur, h)
}

/// GLM-4.5: experts behind the first layers; the norm before them is named after attention.
/// Seed-OSS: no experts at all.
pub(super) fn glm4moe(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, glm4moe_layer);
}

fn glm4moe_layer(g: &mut LlmGraph<'_>, x: TensorId, il: usize) -> TensorId {
    let options = MoeOptions::of_file(&g.hp.moe);
    let attention = |g: &mut LlmGraph<'_>, n| g.rotated_attention(n, None, il);
    let ffn = |g: &mut LlmGraph<'_>, n| g.ffn_or_moe(n, options, il);
    pre_norm_layer_named(g, x, il, Kind::AttnPostNorm, attention, ffn)
}

fn glm4moe_mtp(g: &mut LlmGraph<'_>) {
    let (x, il) = g.mtp_input();
    let x = glm4moe_layer(g, x, il);
    g.mtp_head(x, il);
}
