//! Command A with experts: attention and feed-forward side by side, full attention without rotation
//! where other layers have a window.

use super::Architecture;
use crate::Result;
use crate::graph::{LlmGraph, MoeOptions, Norm, Scale};
use crate::hparams::Hparams;
use crate::keys::Keys;
use crate::names::Kind;
use vramfit_ggml::TensorId;

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[Architecture::new("cohere2moe", graph)
    .constants(&["expert_weights_scale", "logit_scale"])
    .scales(&[Scale::Dense, Scale::Experts, Scale::SharedExperts])
    .leaves_scales(&[Scale::Output])
    .reads(hparams)
    .rows_behind_norm()
    .predicts(mtp)
    .loads_of_mtp(&[
        Kind::NextnEmbedTokens,
        Kind::NextnSharedHeadHead,
        Kind::NextnSharedHeadNorm,
    ])];

/// The file's epsilon tells the normalisation.
fn hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    if !keys.is_set("attention.layer_norm_rms_epsilon")? {
        hp.norm = Some(Norm::Layer);
    }
    hp.sigmoid_by_default(keys)?;
    hp.set_swa_dense_first(keys, Hparams::window(keys)?, 4)
}

fn graph(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let rotates = g.hp.layers[il].is_swa || il < g.hp.n_layer_dense_lead;
        layer(g, x, rotates, None, il)
    });
}

fn layer(
    g: &mut LlmGraph<'_>,
    x: TensorId,
    rotates: bool,
    factors: Option<TensorId>,
    il: usize,
) -> TensorId {
    let options = MoeOptions::of_file(&g.hp.moe);
    let n = g.norm(x, Kind::AttnNorm, il);
    let mut qkv = g.qkv(n, il);
    if rotates {
        qkv = g.rotate_qk(qkv, factors);
    }
    let attn = g.attention(qkv, il);
    let mut cur = g.ffn_or_moe(n, options, il);
    if g.has(il, Kind::FfnUpShexp) {
        cur = g.scale(cur); // the mean of routed and shared
    }
    let cur = g.add(cur, x);
    g.add(cur, attn)
}

fn mtp(g: &mut LlmGraph<'_>) {
    let (x, il) = g.mtp_input();
    let factors = g.rope_factors(il);
    let x = layer(g, x, true, factors, il);
    g.mtp_head(x, il);
}
