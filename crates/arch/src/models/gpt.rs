//! GPT-2 and its kin (BLOOM, CodeShell, MPT, StarCoder 1 and 2), and gpt-oss.

use super::Architecture;
use super::plain::{alibi, stack};
use crate::Result;
use crate::graph::{Ffn, LlmGraph, MoeOptions};
use crate::hparams::{Gating, Hparams};
use crate::keys::Keys;
use crate::names::{Global, Kind, Part};
use vramfit_ggml::TensorId;

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    Architecture::new("bloom", bloom).reads(alibi).layer_norm(),
    Architecture::new("codeshell", starcoder2)
        .layer_norm()
        .embeds_by_output(),
    Architecture::new("gpt-oss", gpt_oss)
        .tapped()
        .reads(gpt_oss_hparams)
        .rows_behind_layers(),
    Architecture::new("gpt2", gpt2).layer_norm(),
    Architecture::new("mpt", mpt)
        .whole()
        .reads(mpt_hparams)
        .layer_norm(),
    Architecture::new("starcoder", gpt2).layer_norm(),
    Architecture::new("starcoder2", starcoder2).layer_norm(),
];

/// GPT-2, StarCoder: learned positions instead of rotation.
pub(super) fn gpt2(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let table = g.input_weight(Global::PositionEmbd);
    let table = g.required(Global::PositionEmbd, table);
    let x = add_positions(g, x, table);
    stack(g, x, false, Ffn::Gelu);
}

fn add_positions(g: &mut LlmGraph<'_>, x: TensorId, table: TensorId) -> TensorId {
    let Some(pos) = g.pos else { return x };
    let positions = g.get_rows(table, pos);
    g.add(x, positions)
}

/// CodeShell, StarCoder 2.
pub(super) fn starcoder2(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    stack(g, x, true, Ffn::Gelu);
}

/// BLOOM: a norm behind the embedding, linear biases instead of positions.
fn bloom(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let w = g.global_of_layer(Global::TokenEmbdNorm, Part::Weight, 0);
    let b = g.global_of_layer(Global::TokenEmbdNorm, Part::Bias, 0);
    let x = g.norm_with(x, w, b, Some(0));
    stack(g, x, false, Ffn::Gelu);
}

fn mpt_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.set_alibi(keys)?;
    hp.set_clamp(keys)
}

/// MPT: positions where the file has them. (It may also have norms of Q and K, at which v0.5.0 aborts.)
fn mpt(g: &mut LlmGraph<'_>) {
    let mut x = g.embed(false);
    if let Some(table) = g.input_weight(Global::PositionEmbd) {
        x = add_positions(g, x, table);
    }
    stack(g, x, false, Ffn::Gelu);
}

pub(super) fn gpt_oss_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.set_swa(keys, Hparams::window(keys)?, 2)
}

/// gpt-oss: attention sinks, experts with biases, every other layer with a window.
pub(super) fn gpt_oss(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let options = MoeOptions {
        gating: Gating::SoftmaxWeight,
        activation: Ffn::SwigluOai,
        ..MoeOptions::softmax(false)
    };
    g.layers(x, |g, x, il| {
        let n = g.norm(x, Kind::AttnNorm, il);
        let cur = g.rotated_attention(n, None, il);
        let h = g.add(cur, x);
        let n = g.norm(h, Kind::AttnPostNorm, il);
        let cur = g.moe(n, options, il);
        g.add(cur, h)
    });
}
