//! Gemma: a scaled embedding and GeGLU; since Gemma 2 norms on both sides of each block, sliding windows on most layers.

use super::Architecture;
use super::llama::pre_norm_layer;
use crate::Result;
use crate::graph::{Ffn, LlmGraph, Scale};
use crate::hparams::{Hparams, limits};
use crate::keys::Keys;
use crate::names::{Global, Kind, Part};
use vramfit_ggml::{TensorId, Type};

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    Architecture::new("gemma", gemma),
    Architecture::new("gemma2", gemma2)
        .constants(&["final_logit_softcapping"])
        .reads(gemma2_hparams),
    Architecture::new("gemma3", gemma3)
        .constants(&["final_logit_softcapping"])
        .reads(gemma3_hparams),
    Architecture::new("gemma4", gemma4)
        .constants(&["final_logit_softcapping"])
        .scales(&[Scale::Dense, Scale::Experts])
        .tapped()
        .reads(gemma4_hparams)
        .rows_behind_norm()
        .lazily()
        .output_first()
        .plain_rope_in_window(),
    Architecture::new("gemma4-assistant", gemma4_assistant)
        .predicts(gemma4_assistant)
        .reads(gemma4_assistant_hparams)
        .plain_rope_in_window(),
    Architecture::new("gemma-embedding", gemma_embedding)
        .leaves_scales(&[Scale::Output])
        .reads(gemma_embedding_hparams),
];

pub(super) fn gemma2_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.attn_softcap = true;
    hp.final_softcap = true;
    hp.set_swa(keys, Hparams::window(keys)?.or(Some(4096)), 2)
}

pub(super) fn gemma3_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.set_swa(keys, Hparams::window(keys)?, 6)
}

fn gemma_embedding_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.has_memory = false;
    hp.is_causal = false;
    gemma3_hparams(keys, hp)
}

pub(super) fn gemma4_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    let n_shared = keys
        .int("attention.shared_kv_layers", i64::MAX)?
        .unwrap_or(0) as usize;
    hp.n_layer_kv = hp.n_layer().saturating_sub(n_shared);
    hp.set_swa(keys, Hparams::window(keys)?, 6)
}

fn gemma4_assistant_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.n_embd_target = keys.require("embedding_length_out", limits::WIDTH)?;
    hp.set_swa(keys, Hparams::window(keys)?, 6)
}

/// Gemma 1: pre-norm, Q scaled by itself.
fn gemma(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let x = g.scale(x);
    g.layers(x, |g, x, il| {
        let attention = |g: &mut LlmGraph<'_>, n| {
            let qkv = g.qkv(n, il);
            let [q, k, v] = g.rotate_qk(qkv, None);
            let q = g.scale(q);
            g.attention([q, k, v], il)
        };
        pre_norm_layer(g, x, il, attention, |g, n| g.ffn(n, Ffn::Gelu, il))
    });
}

pub(super) fn gemma2(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let x = g.scale(x);
    g.layers(x, layer);
}

pub(super) fn gemma3(g: &mut LlmGraph<'_>) {
    let x = g.embed(true);
    g.layers(x, layer);
}

/// Gemma 3 as an encoder.
fn gemma_embedding(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let mut x = g.scale(x);
    for il in 0..g.hp.n_layer() {
        x = layer(g, x, il);
        x = g.control(x, il);
    }
    let x = g.final_norm(x);
    g.end_in_embeddings(x);
}

fn layer(g: &mut LlmGraph<'_>, x: TensorId, il: usize) -> TensorId {
    let n = g.norm(x, Kind::AttnNorm, il);
    let qkv = g.qkv(n, il);
    let qkv = g.qk_norm(qkv, il);
    let [q, k, v] = g.rotate_qk(qkv, None);
    let q = g.scale(q);
    let cur = g.attention([q, k, v], il);
    let cur = g.last_rows(il, cur);
    let residual = g.last_rows(il, x);
    let cur = g.norm(cur, Kind::AttnPostNorm, il);
    let h = g.add(cur, residual);
    let n = g.norm(h, Kind::FfnNorm, il);
    let cur = g.ffn(n, Ffn::Gelu, il);
    let cur = g.norm_unpinned(cur, Kind::FfnPostNorm, il);
    g.add(cur, h)
}

pub(super) fn gemma4(g: &mut LlmGraph<'_>) {
    let x = g.embed(true);
    g.layers(x, gemma4_layer);
}

/// V is normalised, too, and made of K where the layer has no V matrix.
fn gemma4_layer(g: &mut LlmGraph<'_>, x: TensorId, il: usize) -> TensorId {
    let (shape, n_tokens) = (g.hp.layers[il], g.n_tokens);
    let n = g.norm(x, Kind::AttnNorm, il);
    let factors = if shape.is_swa {
        None
    } else {
        g.global_of_layer(Global::RopeFreqs, Part::Weight, il)
    };
    let q = g.linear(n, Kind::AttnQ, il);
    let q = g.reshape(q, [shape.n_embd_head_k, shape.n_head, n_tokens, 1]);
    let q = g.norm(q, Kind::AttnQNorm, il);
    let q = g.rotate(q, factors);
    let k = g.linear(n, Kind::AttnK, il);
    let v = if g.has(il, Kind::AttnV) {
        g.linear(n, Kind::AttnV, il)
    } else {
        k
    };
    let heads = [shape.n_embd_head_k, shape.n_head_kv, n_tokens, 1];
    let [k, v] = [k, v].map(|t| g.reshape(t, heads));
    let k = g.norm(k, Kind::AttnKNorm, il);
    let v = g.rms(v);
    let k = g.rotate(k, factors);
    let cur = g.attention([q, k, v], il);
    let cur = g.norm(cur, Kind::AttnPostNorm, il);
    let h = g.add(cur, x);
    let n = g.norm(h, Kind::FfnNorm, il);
    let cur = g.ffn(n, Ffn::Gelu, il);
    let cur = g.norm_unpinned(cur, Kind::FfnPostNorm, il);
    let cur = g.add(cur, h);
    match g.optional(il, Kind::LayerOutScale, Part::Weight) {
        Some(scale) => g.mul(cur, scale),
        None => cur,
    }
}

/// A draft for Gemma 4: it reads the target's embeddings, its last state, and the caches of its last layers.
fn gemma4_assistant(g: &mut LlmGraph<'_>) {
    let (n_tokens, width) = (g.n_tokens, g.hp.n_embd_target);
    let table = g.table_of_target();
    let tokens = g.input("inp_tokens", Type::I32, [n_tokens, 1, 1, 1]);
    let state = g.input("inp_h", Type::F32, [width, n_tokens, 1, 1]);
    let embd = g.get_rows(table, tokens);
    let embd = g.scale(embd);
    g.build_inputs();
    let both = g.concat(embd, state, 0);
    let w = g.global_of_layer(Global::NextnPreProjection, Part::Weight, 0);
    let w = g.required(Global::NextnPreProjection, w);
    let mut x = g.mul_mat(w, both);
    for il in 0..g.hp.n_layer_all {
        x = gemma4_assistant_layer(g, x, il);
    }
    let x = g.final_norm(x);
    let logits = g.logits(x);
    let w = g.output_weight(Global::NextnPostProjection, Part::Weight);
    let w = g.required(Global::NextnPostProjection, w);
    let state = g.mul_mat(w, x);
    g.set_logits(logits);
    g.set_output(state);
}

fn gemma4_assistant_layer(g: &mut LlmGraph<'_>, x: TensorId, il: usize) -> TensorId {
    let (shape, n_tokens) = (g.hp.layers[il], g.n_tokens);
    let n = g.norm(x, Kind::AttnNorm, il);
    let q = g.linear(n, Kind::AttnQ, il);
    let q = g.reshape(q, [shape.n_embd_head_k, shape.n_head, n_tokens, 1]);
    let q = g.norm(q, Kind::AttnQNorm, il);
    let factors = match shape.is_swa {
        true => None,
        false => g.global_of_layer(Global::RopeFreqs, Part::Weight, il),
    };
    let q = g.rotate(q, factors);
    let mut cur = g.attend_reused(q, il, il);
    let mut residual = x;
    if il + 1 == g.hp.n_layer_all {
        [cur, residual] = [cur, residual].map(|t| g.output_rows(t));
    }
    let cur = g.norm(cur, Kind::AttnPostNorm, il);
    let h = g.add(cur, residual);
    let n = g.norm(h, Kind::FfnNorm, il);
    let cur = g.ffn(n, Ffn::Gelu, il);
    let cur = g.norm_unpinned(cur, Kind::FfnPostNorm, il);
    let cur = g.add(cur, h);
    let scale = g.weight(il, Kind::LayerOutScale);
    g.mul(cur, scale)
}
