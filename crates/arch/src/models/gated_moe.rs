//! AFMoE (Trinity), Laguna and Step 3.5: attention whose result is gated before its output matrix,
//! windows on most layers, experts behind the first ones.

use super::Architecture;
use super::gated::gate_and_output;
use super::llama::pre_norm_layer;
use crate::Result;
use crate::graph::{LlmGraph, MoeOptions, Scale};
use crate::hparams::Hparams;
use crate::keys::Keys;
use crate::names::Kind;
use vramfit_ggml::{TensorId, Unary};

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    Architecture::new("afmoe", afmoe)
        .constants(&["expert_weights_scale"])
        .reads(afmoe_hparams),
    Architecture::new("laguna", laguna)
        .constants(&["expert_weights_scale"])
        .leaves_scales(&[Scale::Output])
        .reads(laguna_hparams),
    Architecture::new("step35", step35)
        .constants(&["expert_weights_scale"])
        .reads(step35_hparams)
        .rows_behind_layers()
        .predicts(step35_mtp)
        .loads_of_mtp(STEP35_MTP),
];

fn afmoe_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.sigmoid_by_default(keys)?;
    hp.set_swa(keys, Hparams::window(keys)?, 4)
}

/// AFMoE: norms on both sides of each block, every fourth layer without rotation.
fn afmoe(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let x = g.scale(x);
    let options = MoeOptions::of_file(&g.hp.moe);
    g.layers(x, |g, x, il| {
        let n = g.norm(x, Kind::AttnNorm, il);
        let qkv = g.qkv(n, il);
        let mut qkv = g.qk_norm(qkv, il);
        if (il + 1) % 4 != 0 {
            qkv = g.rotate_qk(qkv, None);
        }
        let cur = g.attend(qkv, il);
        let cur = gate_and_output(g, cur, n, Unary::Sigmoid, il);
        let cur = g.norm(cur, Kind::AttnPostNorm, il);
        let cur = g.last_rows(il, cur);
        let residual = g.last_rows(il, x);
        let h = g.add(cur, residual);
        let n = g.norm(h, Kind::FfnNorm, il);
        let cur = g.ffn_or_moe(n, options, il);
        let cur = g.norm(cur, Kind::FfnPostNorm, il);
        g.add(cur, h)
    });
}

fn laguna_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.sigmoid_by_default(keys)?;
    hp.set_swa_dense_first(keys, Hparams::window(keys)?, 4)
}

fn laguna(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let options = MoeOptions::of_file(&g.hp.moe);
    g.layers(x, |g, x, il| {
        let attention = |g: &mut LlmGraph<'_>, n| {
            let qkv = g.qkv(n, il);
            let qkv = g.qk_norm(qkv, il);
            let qkv = g.rotate_qk(qkv, None);
            let cur = g.attend(qkv, il);
            gate_and_output(g, cur, n, Unary::Softplus, il)
        };
        let ffn = |g: &mut LlmGraph<'_>, n| g.ffn_or_moe(n, options, il);
        pre_norm_layer(g, x, il, attention, ffn)
    });
}

fn step35_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.sigmoid_by_default(keys)?;
    hp.set_swiglu_clamps(keys)?;
    hp.set_swa(keys, Hparams::window(keys)?, 0)
}

/// What is optional in the layers for multi-token prediction.
const STEP35_MTP: &[Kind] = &[
    Kind::AttnQNorm,
    Kind::AttnKNorm,
    Kind::AttnGate,
    Kind::FfnUp,
    Kind::FfnGate,
    Kind::FfnDown,
    Kind::FfnGateInp,
    Kind::ExpProbsB,
    Kind::FfnUpExps,
    Kind::FfnGateExps,
    Kind::FfnDownExps,
    Kind::FfnUpShexp,
    Kind::FfnGateShexp,
    Kind::FfnDownShexp,
    Kind::NextnEmbedTokens,
    Kind::NextnSharedHeadHead,
    Kind::NextnSharedHeadNorm,
];

/// Step 3.5: the gate is optional, SwiGLU is clamped on some layers.
fn step35(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, step35_layer);
}

fn step35_layer(g: &mut LlmGraph<'_>, x: TensorId, il: usize) -> TensorId {
    let options = MoeOptions::of_file(&g.hp.moe);
    let attention = |g: &mut LlmGraph<'_>, n| {
        let factors = g.rope_factors(il).filter(|_| !g.hp.layers[il].is_swa);
        let qkv = g.qkv_flat(n, il);
        let qkv = g.split_heads(qkv, il);
        let qkv = g.qk_norm(qkv, il);
        let qkv = g.rotate_qk(qkv, factors);
        if !g.has(il, Kind::AttnGate) {
            return g.attention(qkv, il);
        }
        let cur = g.attend(qkv, il);
        gate_and_output(g, cur, n, Unary::Sigmoid, il)
    };
    let ffn = |g: &mut LlmGraph<'_>, n| g.ffn_or_moe(n, options, il);
    pre_norm_layer(g, x, il, attention, ffn)
}

fn step35_mtp(g: &mut LlmGraph<'_>) {
    let (x, il) = g.mtp_input();
    let x = step35_layer(g, x, il);
    g.mtp_head_of_rows(x, il);
}
