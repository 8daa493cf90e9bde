//! Mixtures of experts in a plain pre-norm transformer: they differ in what the router does and in
//! how attention normalises Q and K.

use super::Architecture;
use super::llama::{pre_norm_layer, pre_norm_layer_named};
use crate::Result;
use crate::graph::{Ffn, LlmGraph, MoeOptions, Scale};
use crate::hparams::{Gating, Hparams};
use crate::keys::Keys;
use crate::names::Kind;
use vramfit_ggml::TensorId;

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    Architecture::new("arctic", arctic),
    Architecture::new("bailingmoe", bailing).constants(&["expert_weights_scale"]),
    Architecture::new("bailingmoe2", as_in_file).constants(&["expert_weights_scale"]),
    Architecture::new("dbrx", dbrx)
        .reads(|keys, hp| hp.set_clamp(keys))
        .layer_norm(),
    Architecture::new("deepseek", deepseek).constants(&["expert_weights_scale"]),
    Architecture::new("deepseek2-ocr", as_in_file)
        .constants(&["expert_weights_scale"])
        .leaves_scales(&[Scale::Output])
        .output_unadapted(),
    Architecture::new("dots1", as_in_file).constants(&["expert_weights_scale"]),
    Architecture::new("exaone-moe", exaone)
        .constants(&["expert_weights_scale"])
        .reads(exaone_hparams),
    Architecture::new("hy_v3", as_in_file)
        .constants(&["expert_weights_scale"])
        .scales(&[Scale::Dense, Scale::Experts, Scale::SharedExperts])
        .reads(hy_v3_hparams)
        .predicts(hy_v3_mtp)
        .rows_behind_norm()
        .loads_of_mtp(HY_V3_MTP),
    Architecture::new("minimax-m2", minimax_m2).tapped().whole(),
    Architecture::new("olmoe", olmoe).whole(),
];

/// DeepSeek-MoE: weights as the softmax over all experts has them.
fn deepseek(g: &mut LlmGraph<'_>) {
    graph(g, MoeOptions::softmax(false));
}

/// Ling: the file says whether weights add up to one.
fn bailing(g: &mut LlmGraph<'_>) {
    let options = MoeOptions {
        gating: Gating::Softmax,
        ..MoeOptions::of_file(&g.hp.moe)
    };
    graph(g, options);
}

/// DeepSeek-OCR, dots.llm1, Ling 2 and HY V3: the file describes the router.
fn as_in_file(g: &mut LlmGraph<'_>) {
    let options = MoeOptions::of_file(&g.hp.moe);
    graph(g, options);
}

fn graph(g: &mut LlmGraph<'_>, options: MoeOptions) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| layer(g, x, options, il));
}

fn layer(g: &mut LlmGraph<'_>, x: TensorId, options: MoeOptions, il: usize) -> TensorId {
    let attention = |g: &mut LlmGraph<'_>, n| {
        let factors = g.rope_factors(il);
        g.rotated_attention(n, factors, il)
    };
    let ffn = |g: &mut LlmGraph<'_>, n| g.ffn_or_moe(n, options, il);
    pre_norm_layer(g, x, il, attention, ffn)
}

fn hy_v3_mtp(g: &mut LlmGraph<'_>) {
    let (x, il) = g.mtp_input();
    let options = MoeOptions::of_file(&g.hp.moe);
    let x = layer(g, x, options, il);
    g.mtp_head(x, il);
}

fn hy_v3_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.sigmoid_by_default(keys)
}

/// Its feed-forward block, and what the head has of its own.
const HY_V3_MTP: &[Kind] = &[
    Kind::FfnUp,
    Kind::FfnGate,
    Kind::FfnDown,
    Kind::FfnGateInp,
    Kind::ExpProbsB,
    Kind::FfnUpExps,
    Kind::FfnGateExps,
    Kind::FfnGateUpExps,
    Kind::FfnDownExps,
    Kind::FfnUpShexp,
    Kind::FfnGateShexp,
    Kind::FfnDownShexp,
    Kind::NextnEmbedTokens,
    Kind::NextnSharedHeadHead,
    Kind::NextnSharedHeadNorm,
];

fn olmoe(g: &mut LlmGraph<'_>) {
    flat_norm(g, MoeOptions::softmax(false));
}

fn minimax_m2(g: &mut LlmGraph<'_>) {
    let options = MoeOptions {
        norms_weights: true,
        ..MoeOptions::of_file(&g.hp.moe)
    };
    flat_norm(g, options);
}

/// Q and K normalised over all heads at once.
fn flat_norm(g: &mut LlmGraph<'_>, options: MoeOptions) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let attention = |g: &mut LlmGraph<'_>, n| {
            let qkv = g.qkv_flat_norm(n, il);
            let qkv = g.rotate_qk(qkv, None);
            g.attention(qkv, il)
        };
        let ffn = |g: &mut LlmGraph<'_>, n| g.ffn_or_moe(n, options, il);
        pre_norm_layer(g, x, il, attention, ffn)
    });
}

fn exaone_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.set_swa(keys, Hparams::window(keys)?, 4)
}

/// K-EXAONE: full attention without rotation where other layers have a window.
fn exaone(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let options = MoeOptions::of_file(&g.hp.moe);
    g.layers(x, |g, x, il| {
        let attention = |g: &mut LlmGraph<'_>, n| {
            let factors = g.rope_factors(il);
            let qkv = g.qkv(n, il);
            let mut qkv = g.qk_norm(qkv, il);
            if g.hp.layers[il].is_swa {
                qkv = g.rotate_qk(qkv, factors);
            }
            g.attention(qkv, il)
        };
        let ffn = |g: &mut LlmGraph<'_>, n| g.ffn_or_moe(n, options, il);
        pre_norm_layer(g, x, il, attention, ffn)
    });
}

/// DBRX: the norm before the experts is named after attention.
fn dbrx(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let attention = |g: &mut LlmGraph<'_>, n| g.rotated_attention(n, None, il);
        let ffn = |g: &mut LlmGraph<'_>, n| g.moe(n, MoeOptions::softmax(true), il);
        pre_norm_layer_named(g, x, il, Kind::AttnOutputNorm, attention, ffn)
    });
}

/// Arctic: experts over the layer's input beside attention and a dense block.
fn arctic(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let n = g.norm(x, Kind::AttnNorm, il);
        let cur = g.rotated_attention(n, None, il);
        let cur = g.last_rows(il, cur);
        let residual = g.last_rows(il, x);
        let h = g.add(cur, residual);
        let n = g.norm(h, Kind::FfnNorm, il);
        let dense = g.ffn(n, Ffn::Silu, il);
        let dense = g.add(dense, h);
        let n = g.norm(residual, Kind::FfnNormExps, il);
        let routed = g.moe(n, MoeOptions::softmax(true), il);
        g.add(routed, dense)
    });
}
