//! Gemma 3n: several streams that predict and correct each other (AltUp), a low-rank detour
//! (LAuReL), inputs of their own for every layer, the last layers on the caches of earlier ones.

use super::Architecture;
use crate::Result;
use crate::graph::{LlmGraph, floats};
use crate::hparams::{Altup, Hparams, limits};
use crate::keys::Keys;
use crate::names::{Global, Kind, Part};
use vramfit_ggml::{Op, TensorId, Type, Unary};

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[Architecture::new("gemma3n", graph)
    .whole()
    .reads(hparams)
    .unadapted(&[&[Kind::AltupRouter]])
    .output_first()];

/// Layers with a KV cache of their own (`n_layer_kv_from_start`, fixed in llama.cpp).
const N_LAYER_KV: usize = 20;
/// Layers whose feed-forward activations are made sparse.
const N_LAYER_SPARSE: usize = 10;

pub(super) fn hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.n_layer_kv = N_LAYER_KV;
    hp.final_softcap = true;
    hp.altup = Some(Altup {
        n_altup: keys.require("altup.num_inputs", 64)?,
        n_embd_altup: keys.require("embedding_length_per_layer_input", limits::WIDTH)?,
    });
    hp.set_swa(keys, Hparams::window(keys)?, 5)
}

/// Sizes that every step needs.
#[derive(Clone, Copy)]
struct Sizes {
    n_embd: i64,
    n_tokens: i64,
    n_layer: i64,
    n_altup: i64,
    n_embd_altup: i64,
}

pub(super) fn graph(g: &mut LlmGraph<'_>) {
    let Some(altup) = g.hp.altup else { return };
    let s = Sizes {
        n_embd: g.hp.n_embd,
        n_tokens: g.n_tokens,
        n_layer: g.hp.n_layer() as i64,
        n_altup: altup.n_altup,
        n_embd_altup: altup.n_embd_altup,
    };
    let x = g.embed(false);
    let x = g.scale(x);
    let inputs = per_layer_inputs(g, x, s);
    let mut streams = spread(g, x, s);
    for il in 0..g.hp.n_layer() {
        streams = layer(g, streams, inputs, s, il);
        streams = g.control(streams, il);
    }
    let cur = gather(g, streams, s);
    let cur = g.output_rows(cur);
    let embd = g.final_norm(cur);
    g.lm_head(embd, embd);
}

/// The first `[n, tokens]` of a three-dimensional tensor.
fn slice(g: &mut LlmGraph<'_>, t: TensorId) -> TensorId {
    let ne = g[t].ne;
    g.view_2d(t, [ne[0], ne[1]], floats(ne[0]))
}

fn magnitude(g: &mut LlmGraph<'_>, t: TensorId) -> TensorId {
    let t = g.map(Op::Sqr, t);
    let t = g.sum_rows(t);
    g.map(Op::Sqrt, t)
}

/// A small embedding a layer and token, and a projection of the stream: `[n, tokens, layers]`.
fn per_layer_inputs(g: &mut LlmGraph<'_>, x: TensorId, s: Sizes) -> TensorId {
    let tokens = g.input("inp_tokens_per_layer", Type::I32, [s.n_tokens, 1, 1, 1]);
    let table = g.input_weight(Global::PerLayerTokenEmbd);
    let table = g.required(Global::PerLayerTokenEmbd, table);
    let own = g.get_rows(table, tokens);
    let shape = [s.n_embd_altup, s.n_layer, s.n_tokens, 1];
    let own = g.reshape(own, shape);
    let own = g.scale(own);
    g.expand(own);
    let w = g.global_of_layer(Global::PerLayerModelProj, Part::Weight, 0);
    let w = g.required(Global::PerLayerModelProj, w);
    let projected = g.mul_mat(w, x);
    let projected = g.scale(projected);
    let projected = g.reshape(projected, shape);
    let w = g.global_of_layer(Global::PerLayerProjNorm, Part::Weight, 0);
    let projected = g.norm_with(projected, w, None, None);
    let sum = g.add(projected, own);
    let sum = g.scale(sum);
    let sum = g.permute(sum, [0, 2, 1, 3]);
    g.cont(sum)
}

/// One stream becomes `n_altup`, all of the same magnitude.
fn spread(g: &mut LlmGraph<'_>, x: TensorId, s: Sizes) -> TensorId {
    let target = magnitude(g, x);
    let repeated = g.repeat(x, [s.n_embd, s.n_tokens, s.n_altup - 1, 1]);
    let w = g.output_weight(Global::AltupProj, Part::Weight);
    let w = g.required(Global::AltupProj, w);
    let added = g.mul_mat(w, repeated);
    let own = magnitude(g, added);
    let added = g.mul(added, target);
    let added = g.div(added, own);
    g.concat(x, added, 2)
}

/// The streams become one again.
fn gather(g: &mut LlmGraph<'_>, streams: TensorId, s: Sizes) -> TensorId {
    let active = slice(g, streams);
    let target = magnitude(g, active);
    let strides = [floats(s.n_embd), floats(s.n_embd * s.n_tokens)];
    let others = g.view_3d(streams, [s.n_embd, s.n_tokens, s.n_altup - 1], strides);
    let w = g.output_weight(Global::AltupUnembdProj, Part::Weight);
    let w = g.required(Global::AltupUnembdProj, w);
    let unembedded = g.mul_mat(w, others);
    let own = magnitude(g, unembedded);
    let unembedded = g.mul(unembedded, target);
    let unembedded = g.div(unembedded, own);
    let mut cur = slice(g, streams);
    for _ in 0..s.n_altup - 1 {
        let other = slice(g, unembedded);
        cur = g.add(cur, other);
    }
    g.scale(cur)
}

fn layer(
    g: &mut LlmGraph<'_>,
    streams: TensorId,
    inputs: TensorId,
    s: Sizes,
    il: usize,
) -> TensorId {
    let predicted = predict(g, streams, s, il);
    let active = slice(g, predicted);
    let n = g.norm(active, Kind::AttnNorm, il);
    let laurel = laurel(g, n, il);
    let cur = attention(g, n, s, il);
    let cur = g.norm(cur, Kind::AttnPostNorm, il);
    let cur = g.add(cur, active);
    let h = g.add(cur, laurel);
    let h = g.scale(h);
    let n = g.norm(h, Kind::FfnNorm, il);
    let cur = ffn(g, n, il);
    let cur = g.norm_unpinned(cur, Kind::FfnPostNorm, il);
    let cur = g.add(cur, h);
    let corrected = correct(g, predicted, cur, s, il);
    add_layer_input(g, corrected, inputs, s, il)
}

/// Which mix of streams the active one asks for.
fn router(g: &mut LlmGraph<'_>, x: TensorId, il: usize) -> TensorId {
    let n = g.norm(x, Kind::AltupRouterNorm, il);
    let n = g.scale(n);
    let mix = g.linear(n, Kind::AltupRouter, il);
    g.unary(Unary::Tanh, mix)
}

fn predict(g: &mut LlmGraph<'_>, streams: TensorId, s: Sizes, il: usize) -> TensorId {
    let active = slice(g, streams);
    let mix = router(g, active, il);
    let coefs = g.linear(mix, Kind::AltupPredictCoef, il);
    let coefs = g.reshape(coefs, [s.n_altup, s.n_altup, s.n_tokens, 1]);
    let by_token = g.permute(streams, [1, 2, 0, 3]);
    let by_token = g.cont(by_token);
    let mixed = g.mul_mat(by_token, coefs);
    let mixed = g.permute(mixed, [0, 2, 1, 3]);
    let mixed = g.cont(mixed);
    g.add(mixed, streams)
}

fn correct(
    g: &mut LlmGraph<'_>,
    predicted: TensorId,
    activated: TensorId,
    s: Sizes,
    il: usize,
) -> TensorId {
    let mix = router(g, activated, il);
    let active = slice(g, predicted);
    let innovation = g.sub(activated, active);
    let coefs = g.linear(mix, Kind::AltupCorrectCoef, il);
    let coefs = g.scale(coefs);
    let coefs = g.transpose(coefs);
    let coefs = g.cont_shape(coefs, [1, s.n_tokens, s.n_altup, 1]);
    let innovation = g.repeat(innovation, [s.n_embd, s.n_tokens, s.n_altup, 1]);
    let correction = g.mul(innovation, coefs);
    g.add(correction, predicted)
}

fn laurel(g: &mut LlmGraph<'_>, n: TensorId, il: usize) -> TensorId {
    let cur = g.linear(n, Kind::LaurelL, il);
    let cur = g.linear(cur, Kind::LaurelR, il);
    let cur = g.norm(cur, Kind::LaurelPostNorm, il);
    g.add(cur, n)
}

/// The last layers attend to the cache of the last layer of their kind that has one.
fn attention(g: &mut LlmGraph<'_>, n: TensorId, s: Sizes, il: usize) -> TensorId {
    let shape = g.hp.layers[il];
    if il < g.hp.n_layer_kv {
        let [q, k, v] = g.qkv(n, il);
        let q = g.norm(q, Kind::AttnQNorm, il);
        let k = g.norm(k, Kind::AttnKNorm, il);
        let v = g.rms(v);
        let qkv = g.rotate_qk([q, k, v], None);
        return g.attention(qkv, il);
    }
    let q = g.linear(n, Kind::AttnQ, il);
    let q = g.reshape(q, [shape.n_embd_head_k, shape.n_head, s.n_tokens, 1]);
    let q = g.norm(q, Kind::AttnQNorm, il);
    let q = g.rotate(q, None);
    let cache_layer = g.hp.n_layer_kv - if shape.is_swa { 2 } else { 1 };
    g.attend_reused(q, cache_layer, il)
}

fn ffn(g: &mut LlmGraph<'_>, n: TensorId, il: usize) -> TensorId {
    let up = g.linear(n, Kind::FfnUp, il);
    let mut gate = g.linear(n, Kind::FfnGate, il);
    if il < N_LAYER_SPARSE {
        gate = gaussian_top_k(g, gate);
    }
    let gate = g.unary(Unary::Gelu, gate);
    let cur = g.mul(up, gate);
    g.linear(cur, Kind::FfnDown, il)
}

/// Only what is far enough above the mean stays.
fn gaussian_top_k(g: &mut LlmGraph<'_>, x: TensorId) -> TensorId {
    let mean = g.mean(x);
    let diff = g.sub(x, mean);
    let square = g.map(Op::Sqr, diff);
    let variance = g.sum_rows(square);
    let variance = g.scale(variance);
    let deviation = g.map(Op::Sqrt, variance);
    let deviation = g.scale(deviation);
    let cutoff = g.add(mean, deviation);
    let above = g.sub(x, cutoff);
    g.unary(Unary::Relu, above)
}

fn add_layer_input(
    g: &mut LlmGraph<'_>,
    corrected: TensorId,
    inputs: TensorId,
    s: Sizes,
    il: usize,
) -> TensorId {
    let first = slice(g, corrected);
    let scale = g.weight(il, Kind::AltupCorrectScale);
    let first = g.mul(first, scale);
    let first = g.linear(first, Kind::PerLayerInpGate, il);
    let first = g.unary(Unary::Gelu, first);
    let own = slice(g, inputs);
    let first = g.mul(first, own);
    let first = g.linear(first, Kind::PerLayerProj, il);
    let first = g.norm(first, Kind::PerLayerPostNorm, il);
    let active = slice(g, corrected);
    let strides = [floats(s.n_embd), floats(s.n_embd * s.n_tokens)];
    let others = g.view_3d(corrected, [s.n_embd, s.n_tokens, s.n_altup - 1], strides);
    let others = g.add(others, first);
    g.concat(active, others, 2)
}
