//! WavTokenizer's decoder, which makes spectra of audio tokens: convolutions over time, behind residual
//! and attention blocks (`posnet`), then ConvNeXt blocks. Columns are channels, rows are time.

use super::Architecture;
use super::bert::embd_norm;
use crate::Result;
use crate::graph::{LlmGraph, Norm};
use crate::hparams::Hparams;
use crate::hparams::limits::WIDTH;
use crate::keys::Keys;
use crate::names::{Global, Kind, Part};
use vramfit_ggml::{TensorId, Unary};

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[Architecture::new("wavtokenizer-dec", graph)
    .reads(hparams)
    .layer_norm()
    .no_lm_head()];

fn hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.has_memory = false;
    // `embedding_length` is the width of the result.
    hp.n_embd = keys.require("features_length", WIDTH)?;
    for layer in &mut hp.layers {
        let width = hp.n_embd / layer.n_head.max(1);
        layer.n_embd_head_k = keys
            .positive("attention.key_length", WIDTH)?
            .unwrap_or(width);
        layer.n_embd_head_v = keys
            .positive("attention.value_length", WIDTH)?
            .unwrap_or(width);
    }
    let n_layer = hp.n_layer() as i64;
    hp.n_posnet = keys.require("posnet.block_count", n_layer)? as usize;
    hp.n_convnext = keys.require("convnext.block_count", n_layer)? as usize;
    Ok(())
}

fn graph(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let x = turned(g, x);
    let w = g.global_of_layer(Global::Conv1d, Part::Weight, 0);
    let w = g.required(Global::Conv1d, w);
    let mut x = convolve(g, w, x);
    if let Some(b) = g.global_of_layer(Global::Conv1d, Part::Bias, 0) {
        x = g.add(x, b);
    }
    for il in 0..g.hp.n_posnet {
        x = match il {
            2 => attention(g, x, il),
            5 => group_norm(g, x, Kind::PosnetAttnNorm, il),
            _ => residual(g, x, il),
        };
    }
    let x = turned(g, x);
    let x = embd_norm(g, x);
    let mut x = turned(g, x);
    for il in 0..g.hp.n_convnext {
        x = convnext(g, x, il);
    }
    let x = turned(g, x);
    let x = g.final_norm(x);
    let x = g.logits(x);
    g.end_in_embeddings(x);
}

/// Channels and time exchanged.
fn turned(g: &mut LlmGraph<'_>, x: TensorId) -> TensorId {
    let x = g.transpose(x);
    g.cont(x)
}

/// `ggml_conv_1d_ph`: as long behind it as before.
fn convolve(g: &mut LlmGraph<'_>, w: TensorId, x: TensorId) -> TensorId {
    let patches = g.im2col(w, x);
    let [size, n, batch, _] = g[patches].ne;
    let flat = g.reshape(patches, [size, n.saturating_mul(batch), 1, 1]);
    let n_out = g[w].ne[2];
    let w = g.reshape(w, [size, n_out, 1, 1]);
    let cur = g.mul_mat(flat, w);
    g.reshape(cur, [n, n_out, batch, 1])
}

fn convolve_layer(g: &mut LlmGraph<'_>, x: TensorId, kind: Kind, il: usize) -> TensorId {
    let (w, b) = (g.weight(il, kind), g.bias(il, kind));
    let cur = convolve(g, w, x);
    g.add(cur, b)
}

/// Normalised in groups of channels, on the device of the first layer whatever the layer.
fn group_norm(g: &mut LlmGraph<'_>, x: TensorId, kind: Kind, il: usize) -> TensorId {
    let (w, b) = (g.weight(il, kind), g.bias(il, kind));
    g.norm_by(Norm::Group, x, Some(w), Some(b), Some(0))
}

fn residual(g: &mut LlmGraph<'_>, x: TensorId, il: usize) -> TensorId {
    let halves = [
        (Kind::PosnetNorm1, Kind::PosnetConv1),
        (Kind::PosnetNorm2, Kind::PosnetConv2),
    ];
    let mut cur = x;
    for (norm, conv) in halves {
        cur = group_norm(g, cur, norm, il);
        let open = g.unary(Unary::Sigmoid, cur);
        cur = g.mul(open, cur);
        cur = convolve_layer(g, cur, conv, il);
    }
    g.add(cur, x)
}

fn attention(g: &mut LlmGraph<'_>, x: TensorId, il: usize) -> TensorId {
    let n = group_norm(g, x, Kind::PosnetAttnNorm, il);
    let names = [Kind::PosnetAttnQ, Kind::PosnetAttnK, Kind::PosnetAttnV];
    let [q, k, v] = names.map(|kind| convolve_layer(g, n, kind, il));
    let [q, k] = [q, k].map(|t| turned(g, t));
    let scores = g.mul_mat(k, q);
    let scores = g.soft_max(scores, None, None);
    let cur = g.mul_mat(scores, v);
    let cur = convolve_layer(g, cur, Kind::PosnetAttnOutput, il);
    g.add(cur, x)
}

fn convnext(g: &mut LlmGraph<'_>, x: TensorId, il: usize) -> TensorId {
    // A filter a channel (`ggml_conv_1d_dw_ph`).
    let (w, b) = (g.weight(il, Kind::ConvnextDw), g.bias(il, Kind::ConvnextDw));
    let [n, channels, batch, _] = g[x].ne;
    let apart = g.reshape(x, [n, 1, channels, batch]);
    let patches = g.im2col(w, apart);
    let cur = g.mul_mat(patches, w);
    let [n, _, channels, _] = g[cur].ne;
    let cur = g.reshape(cur, [n, channels, 1, 1]);
    let cur = g.add(cur, b);
    let cur = turned(g, cur);
    let norm = [Part::Weight, Part::Bias].map(|part| g.optional(il, Kind::ConvnextNorm, part));
    let cur = g.norm_with(cur, norm[0], norm[1], None);
    let cur = g.linear(cur, Kind::ConvnextPw1, il);
    let cur = g.unary(Unary::Gelu, cur);
    let cur = g.linear(cur, Kind::ConvnextPw2, il);
    let gamma = g.weight(il, Kind::ConvnextGamma);
    let cur = g.mul(cur, gamma);
    let cur = turned(g, cur);
    g.add(cur, x)
}
