//! Encoders: BERT and its kin with norms behind each block, ModernBERT, NeoBERT and EuroBERT with norms
//! in front. No KV cache, no logits.

use super::Architecture;
use super::llama::pre_norm_layer;
use crate::Result;
use crate::graph::{Ffn, LlmGraph, MoeOptions, RankHead};
use crate::hparams::Hparams;
use crate::keys::Keys;
use crate::names::{Global, Kind, Part};
use vramfit_ggml::TensorId;

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    encoder("bert", bert).layer_norm(),
    encoder("eurobert", eurobert),
    encoder("jina-bert-v2", jina_v2)
        .reads(jina_v2_hparams)
        .layer_norm(),
    encoder("jina-bert-v3", jina_v3).layer_norm(),
    encoder("modern-bert", modern)
        .reads(modern_hparams)
        .layer_norm()
        .ranks_by(RankHead::MeanGelu),
    encoder("neo-bert", neo),
    encoder("nomic-bert", nomic).layer_norm(),
    encoder("nomic-bert-moe", jina_v3).layer_norm(),
];

const fn encoder(name: &'static str, graph: fn(&mut LlmGraph<'_>)) -> Architecture {
    Architecture::new(name, graph).reads(hparams).no_lm_head()
}

pub(super) fn hparams(_: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.has_memory = false;
    Ok(())
}

fn jina_v2_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.alibi = true;
    hparams(keys, hp)
}

fn modern_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.set_swa_dense_first(keys, Hparams::window(keys)?, 3)?;
    hparams(keys, hp)
}

/// Learned positions.
fn bert(g: &mut LlmGraph<'_>) {
    let x = embed_types(g);
    let table = g.input_weight(Global::PositionEmbd);
    let table = g.required(Global::PositionEmbd, table);
    let Some(pos) = g.pos else { return };
    let positions = g.get_rows(table, pos);
    let x = g.add(positions, x);
    post_norm_layers(g, x, false, Ffn::Gelu);
}

/// Positions in the mask (ALiBi); in some models the gate is a part of the up matrix.
fn jina_v2(g: &mut LlmGraph<'_>) {
    let x = embed_types(g);
    post_norm_layers(g, x, false, Ffn::Gelu);
}

/// Rotated positions; Nomic's mixture has experts on every other layer.
fn jina_v3(g: &mut LlmGraph<'_>) {
    let x = embed_types(g);
    post_norm_layers(g, x, true, Ffn::Gelu);
}

/// Rotated positions, a gate on the feed-forward block.
fn nomic(g: &mut LlmGraph<'_>) {
    let x = embed_types(g);
    post_norm_layers(g, x, true, Ffn::Silu);
}

/// Token embeddings and that of the first token type.
fn embed_types(g: &mut LlmGraph<'_>) -> TensorId {
    let x = g.embed(false);
    let Some(types) = g.input_weight(Global::TokenTypes) else {
        return x;
    };
    let n_embd = g.hp.n_embd;
    let first = g.view_1d(types, n_embd);
    g.add(x, first)
}

pub(super) fn embd_norm(g: &mut LlmGraph<'_>, x: TensorId) -> TensorId {
    let w = g.global_of_layer(Global::TokenEmbdNorm, Part::Weight, 0);
    let b = g.global_of_layer(Global::TokenEmbdNorm, Part::Bias, 0);
    g.norm_with(x, w, b, Some(0))
}

fn post_norm_layers(g: &mut LlmGraph<'_>, x: TensorId, rotated: bool, ffn: Ffn) {
    let mut x = embd_norm(g, x);
    for il in 0..g.hp.n_layer() {
        let [q, k, v] = g.qkv(x, il);
        let q = flat_norm(g, q, Kind::AttnQNorm, il);
        let k = flat_norm(g, k, Kind::AttnKNorm, il);
        let mut qkv = [q, k, v];
        if rotated {
            qkv = g.rotate_qk(qkv, None);
        }
        let cur = g.attention(qkv, il);
        let cur = g.last_rows(il, cur);
        let residual = g.last_rows(il, x);
        let h = g.add(cur, residual);
        let mut h = g.norm(h, Kind::AttnOutputNorm, il);
        if g.has(il, Kind::AttnNorm2) {
            h = g.add(h, residual);
            h = g.norm(h, Kind::AttnNorm2, il);
        }
        let cur = feed_forward(g, h, ffn, il);
        let cur = g.add(cur, h);
        x = g.norm(cur, Kind::LayerOutNorm, il);
    }
    g.end_in_embeddings(x);
}

/// Normalised over all heads at once, where the model has the norm.
fn flat_norm(g: &mut LlmGraph<'_>, x: TensorId, kind: Kind, il: usize) -> TensorId {
    if !g.has(il, kind) {
        return x;
    }
    let ne = g[x].ne;
    let flat = g.reshape(x, [ne[0].saturating_mul(ne[1]), ne[2], 1, 1]);
    let flat = g.norm(flat, kind, il);
    g.reshape(flat, ne)
}

fn feed_forward(g: &mut LlmGraph<'_>, x: TensorId, ffn: Ffn, il: usize) -> TensorId {
    if g.has(il, Kind::FfnGateInp) {
        let options = MoeOptions {
            activation: Ffn::Gelu,
            ..MoeOptions::softmax(false)
        };
        return g.moe(x, options, il);
    }
    let (up, down) = (g.weight(il, Kind::FfnUp), g.weight(il, Kind::FfnDown));
    let gate_in_up = !g.has(il, Kind::FfnGate) && g[up].ne[1] != g[down].ne[0];
    dense(g, x, if gate_in_up { Ffn::GegluFused } else { ffn }, il)
}

/// `build_ffn` as encoders call it: scales are not read, nor are Nomic's biases.
fn dense(g: &mut LlmGraph<'_>, x: TensorId, ffn: Ffn, il: usize) -> TensorId {
    let linear = |g: &mut LlmGraph<'_>, x, kind| {
        let w = g.weight(il, kind);
        let cur = g.adapted(w, x, None);
        let bias = g.optional(il, kind, Part::Bias);
        match bias.filter(|_| ffn != Ffn::Silu) {
            Some(bias) => g.add(cur, bias),
            None => cur,
        }
    };
    let up = linear(g, x, Kind::FfnUp);
    let gate = g
        .has(il, Kind::FfnGate)
        .then(|| linear(g, x, Kind::FfnGate));
    let cur = g.activate(ffn, gate, up);
    linear(g, cur, Kind::FfnDown)
}

/// Windows on two of three layers; the first layer's norm is the embedding's.
fn modern(g: &mut LlmGraph<'_>) {
    let ffn = match g.hp.hidden_act.as_deref() {
        Some("silu" | "swish" | "swiglu") => Ffn::SwigluFused,
        Some("reglu") => Ffn::RegluFused,
        _ => Ffn::GegluFused,
    };
    let x = g.embed(false);
    let mut x = embd_norm(g, x);
    for il in 0..g.hp.n_layer() {
        let n = if g.has(il, Kind::AttnNorm) {
            g.norm(x, Kind::AttnNorm, il)
        } else {
            x
        };
        let cur = g.rotated_attention(n, None, il);
        let cur = g.last_rows(il, cur);
        let residual = g.last_rows(il, x);
        let h = g.add(cur, residual);
        let n = g.norm(h, Kind::FfnNorm, il);
        let cur = dense(g, n, ffn, il);
        x = g.add(cur, h);
    }
    let x = g.final_norm(x);
    g.end_in_embeddings(x);
}

/// Gate and up in one matrix, the final norm named as an encoder's.
fn neo(g: &mut LlmGraph<'_>) {
    let x = pre_norm_layers(g, Ffn::SwigluFused);
    let w = g.output_weight(Global::EncOutputNorm, Part::Weight);
    let w = g.required(Global::EncOutputNorm, w);
    let x = g.norm_with(x, Some(w), None, None);
    g.end_in_embeddings(x);
}

/// Llama without its causal mask.
fn eurobert(g: &mut LlmGraph<'_>) {
    let x = pre_norm_layers(g, Ffn::Silu);
    let x = g.final_norm(x);
    g.end_in_embeddings(x);
}

fn pre_norm_layers(g: &mut LlmGraph<'_>, ffn: Ffn) -> TensorId {
    let mut x = g.embed(false);
    for il in 0..g.hp.n_layer() {
        let attention = |g: &mut LlmGraph<'_>, n| g.rotated_attention(n, None, il);
        let ffn = |g: &mut LlmGraph<'_>, n| dense(g, n, ffn, il);
        x = pre_norm_layer(g, x, il, attention, ffn);
    }
    x
}
