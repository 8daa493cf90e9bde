//! Draft models, which read states of the model that they draft for: EAGLE-3 and DFlash, alone or with
//! DSpark's Markov head. A context reserves their decoder's graph. Files without embeddings or an
//! output matrix borrow the target's and cannot be loaded alone.

use super::Architecture;
use super::dflash2::{Selector, convolve, select};
use super::{deepseek4, deepseek4_draft};
use crate::graph::{Ffn, LlmGraph, Scale};
use crate::hparams::Hparams;
use crate::hparams::limits::{CONTEXT, LAYERS, WIDTH};
use crate::keys::Keys;
use crate::names::{Global, Kind, Part};
use crate::{Error, Result};
use vramfit_ggml::{Op, TensorId, Type, Unary};

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    Architecture::new("dflash", dflash)
        .constants(&[
            "embedding_scale",
            "expert_weights_scale",
            "final_logit_softcapping",
            "logit_scale",
        ])
        .scales(&[Scale::Dense])
        .reads(dflash_hparams)
        .with_encoder(),
    Architecture::new("eagle3", eagle3)
        .leaves_scales(&[Scale::Qkv, Scale::AttnOutput, Scale::Output])
        .reads(eagle3_hparams)
        .with_encoder(),
];

fn eagle3_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    read_target_layers(keys, hp)?;
    hp.norm_before_residual = keys.flag("norm_before_residual")? == Some(true);
    hp.scales_logits = false;
    hp.final_softcap = false;
    Ok(())
}

fn read_target_layers(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    let n = keys.array_len("target_layers").unwrap_or(0);
    let layers = keys.per_layer("target_layers", n, LAYERS)?;
    let layers = layers.unwrap_or_default().into_iter();
    hp.target_layers = layers.filter_map(|il| usize::try_from(il).ok()).collect();
    Ok(())
}

/// One layer, whose Q, K and V are made of a token and of what the target thought of it.
fn eagle3(g: &mut LlmGraph<'_>) {
    let (n_embd, n_tokens) = (g.hp.n_embd, g.n_tokens);
    let (_, tokens) = g.token_rows_of_target();
    let thought = g.input("inp_g_embeddings", Type::F32, [n_embd, n_tokens, 1, 1]);
    g.build_inputs();
    let token_n = g.norm(tokens, Kind::AttnNorm, 0);
    let thought_n = g.norm_unpinned(thought, Kind::AttnNorm2, 0);
    let residual = if g.hp.norm_before_residual {
        thought_n
    } else {
        thought
    };
    let n = g.concat(token_n, thought_n, 0);
    let factors = g.rope_factors(0);
    let qkv = g.qkv(n, 0);
    let qkv = g.rotate_qk(qkv, factors);
    let cur = g.attention(qkv, 0);
    let h = g.add(cur, residual);
    let n = g.norm(h, Kind::FfnNorm, 0);
    let cur = g.ffn(n, Ffn::Silu, 0);
    let x = g.add(cur, h);
    g.mark_output(x);
    let x = g.final_norm(x);
    let logits = target_logits(g, x);
    g.set_logits(logits);
}

fn dflash_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    read_target_layers(keys, hp)?;
    hp.block_size = keys.int("block_size", CONTEXT)?.unwrap_or(0);
    hp.sample_from_anchor = keys.flag("sample_from_anchor")? != Some(false);
    if hp.n_streams > 0 {
        return stages_hparams(keys, hp);
    }
    if keys.has_tensor("selector_hidden.weight") {
        hp.selector = Some(Selector {
            taps: keys.require("conv_kernel_size", 1024)?,
            group: keys.require("conv_group_size", WIDTH)?,
            rank: keys.require("selector_rank", WIDTH)?,
            top_k: keys.require("selector_top_k", 1024)?,
        });
    } else {
        hp.scales_logits = false; // its sampler does
        hp.final_softcap = false;
    }
    let sections = keys.per_layer("rope.dimension_sections", 1, i64::MAX)?;
    if sections.is_some_and(|s| s.iter().any(|&n| n > 0)) {
        hp.n_pos_per_embd = 4;
    }
    if let Some(window) = Hparams::window(keys)? {
        hp.set_swa(keys, Some(window), 1)?;
    }
    Ok(())
}

/// Layers of DeepSeek-V4, which all attend to a window alone.
fn stages_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.scales_logits = false;
    hp.final_softcap = false;
    hp.n_swa = keys.require("attention.sliding_window", CONTEXT)?;
    hp.has_swa_layers = true;
    hp.layers.iter_mut().for_each(|layer| layer.is_swa = true);
    let key = "attention.compress_ratios";
    let ratios = keys.per_layer(key, hp.n_layer_all, CONTEXT)?;
    if let Some(&value) = ratios.iter().flatten().find(|&&ratio| ratio != 0) {
        let (key, min, max) = (key.to_string(), 0, 0);
        return Err(Error::KeyRange {
            key,
            value,
            min,
            max,
        });
    }
    deepseek4::read_layers(keys, hp, false)
}

/// A block of tokens, drafted at once by layers of DeepSeek-V4.
fn stages(g: &mut LlmGraph<'_>) {
    g.build_inputs();
    let (tokens, x) = g.token_rows_of_target();
    let mut x = g.hc_streams(x);
    for il in 0..g.hp.n_layer() {
        x = deepseek4_draft::layer(g, x, il);
    }
    let embd = deepseek4::sum_for_head(g, x);
    g.set_embeddings(embd);
    let x = g.final_norm(embd);
    let logits = logits_by_target(g, x);
    g.expand(logits);
    let logits = markov(g, tokens, embd, logits);
    g.set_logits(logits);
}

/// A block of tokens, drafted at once.
fn dflash(g: &mut LlmGraph<'_>) {
    if g.hp.n_streams > 0 {
        return stages(g);
    }
    let activation = match g.hp.hidden_act.as_deref() {
        Some("gelu" | "gelu_pytorch_tanh") => Ffn::Gelu,
        _ => Ffn::Silu,
    };
    g.build_inputs();
    let (tokens, mut x) = g.token_rows_of_target();
    if g.hp.scales_embeddings {
        x = g.scale(x);
    }
    for il in 0..g.hp.n_layer() {
        x = dflash_layer(g, x, activation, il);
    }
    let x = g.final_norm(x);
    g.set_embeddings(x);
    let logits = target_logits(g, x);
    g.expand(logits);
    let logits = markov(g, tokens, x, logits);
    g.set_logits(logits);
    select(g, tokens, x, logits);
}

fn dflash_layer(g: &mut LlmGraph<'_>, x: TensorId, activation: Ffn, il: usize) -> TensorId {
    let factors = if g.hp.n_pos_per_embd == 1 {
        g.global_of_layer(Global::RopeFreqs, Part::Weight, 0)
    } else {
        None
    };
    let (layer, n_tokens) = (g.hp.layers[il], g.n_tokens);
    let mut n = g.norm(x, Kind::AttnNorm, il);
    let around = taps_of(g, n, Kind::AttnConvProj, il);
    if let Some(taps) = around {
        n = convolve(g, n, taps, Kind::AttnConvBase, il);
    }
    let q = g.linear(n, Kind::AttnQ, il);
    let k = g.linear(n, Kind::AttnK, il);
    let has_v = g.has(il, Kind::AttnV);
    let v = if has_v {
        g.linear(n, Kind::AttnV, il)
    } else {
        k
    };
    let head = layer.n_embd_head_k;
    let q = g.reshape(q, [head, layer.n_head, n_tokens, 1]);
    let [k, v] = [k, v].map(|t| g.reshape(t, [head, layer.n_head_kv, n_tokens, 1]));
    let [q, k, mut v] = g.qk_norm([q, k, v], il);
    if !has_v {
        v = g.rms(v);
    }
    let qkv = g.rotate_qk([q, k, v], factors);
    let mut cur = g.attention(qkv, il);
    if let Some(taps) = around {
        cur = convolve(g, cur, taps, Kind::AttnConvBase, il);
    }
    if g.has(il, Kind::AttnPostNorm) {
        cur = g.norm(cur, Kind::AttnPostNorm, il);
    }
    let h = g.add(cur, x);
    let mut n = g.norm(h, Kind::FfnNorm, il);
    let around = taps_of(g, n, Kind::FfnConvProj, il);
    if let Some(taps) = around {
        n = convolve(g, n, taps, Kind::FfnConvBase, il);
    }
    let mut cur = g.ffn(n, activation, il);
    if let Some(taps) = around {
        cur = convolve(g, cur, taps, Kind::FfnConvBase, il);
    }
    if g.has(il, Kind::FfnPostNorm) {
        cur = g.norm(cur, Kind::FfnPostNorm, il);
    }
    let cur = g.add(cur, h);
    match g.optional(il, Kind::LayerOutScale, Part::Weight) {
        Some(scale) => g.mul(cur, scale),
        None => cur,
    }
}

/// Taps of the convolutions around a block, made of each token (DFlash 2).
fn taps_of(g: &mut LlmGraph<'_>, n: TensorId, kind: Kind, il: usize) -> Option<TensorId> {
    let has_one = g.hp.selector.is_some() && g.has(il, kind);
    has_one.then(|| g.linear(n, kind, il))
}

/// Logits over the target's vocabulary, of which the draft may know a part.
fn target_logits(g: &mut LlmGraph<'_>, x: TensorId) -> TensorId {
    let logits = logits_by_target(g, x);
    scatter(g, logits)
}

/// By its own output matrix or the target's.
fn logits_by_target(g: &mut LlmGraph<'_>, x: TensorId) -> TensorId {
    match g.output_of_target() {
        Some((w, scale)) => {
            let logits = g.adapted_scaled(w, x, None, scale);
            g.scaled_and_capped(logits)
        }
        None => g.logits(x),
    }
}

/// A draft's columns to where the target has them (`d2t`).
fn scatter(g: &mut LlmGraph<'_>, x: TensorId) -> TensorId {
    let Some(d2t) = g.output_weight(Global::D2t, Part::Weight) else {
        return x;
    };
    let (n_vocab, [n_draft, n, ..]) = (g.hp.n_vocab, g[x].ne);
    let shape = g.new_tensor(Op::None, Type::F32, [1, n_vocab, n, 1], &[]);
    let blank = g.map(Op::Fill, shape);
    let values = g.reshape(x, [1, n_draft, n, 1]);
    let ids = g.reshape(d2t, [n_draft, 1, 1, 1]);
    let all = g.set_rows(blank, values, ids);
    g.reshape(all, [n_vocab, n, 1, 1])
}

/// DSpark: each token of a block shifts the logits of the next one, and a head says how sure it is.
/// Blocks are longer than the model drafts while a prompt is read; then nothing is added.
fn markov(g: &mut LlmGraph<'_>, tokens: TensorId, embd: TensorId, base: TensorId) -> TensorId {
    let (n_blocks, [n_vocab, n_tokens, ..]) = (g.n_seqs.max(1), g[base].ne);
    let n_drafts = n_tokens / n_blocks;
    let Some(w1) = g.output_weight(Global::MarkovW1, Part::Weight) else {
        return base;
    };
    if n_drafts > g.hp.block_size {
        return base;
    }
    let confidence = g.output_weight(Global::ConfProj, Part::Weight);
    // A token of every block, or its column.
    let of_blocks = |g: &mut LlmGraph<'_>, t: TensorId, n: i64| {
        let nb = if g[t].ty == Type::I32 {
            g[t].nb[0]
        } else {
            g[t].nb[1]
        };
        let stride = nb.saturating_mul(n_drafts.max(0) as u64);
        g.view_2d(t, [n, n_blocks], stride)
    };
    let anchors = of_blocks(g, tokens, 1);
    let mut prev = g.cont_shape(anchors, [n_blocks, 1, 1, 1]);
    let (mut columns, mut sure) = (None, None);
    let first = i64::from(!g.hp.sample_from_anchor);
    if first == 1 {
        let column = of_blocks(g, base, n_vocab);
        columns = Some(g.cont(column));
        if confidence.is_some() {
            let unread = of_blocks(g, base, 1);
            let unread = g.cont(unread);
            sure = Some(g.unary(Unary::Sigmoid, unread));
        }
    }
    for i in first..n_drafts {
        let state = g.get_rows(w1, prev);
        let shift = markov_shift(g, state);
        let column = of_blocks(g, base, n_vocab);
        let column = g.add(column, shift);
        columns = Some(append(g, columns, column));
        if let Some(w) = confidence {
            let own = of_blocks(g, embd, g[embd].ne[0]);
            let own = g.cont(own);
            let both = g.concat(own, state, 0);
            let mut c = g.mul_mat(w, both);
            if let Some(b) = g.output_weight(Global::ConfProj, Part::Bias) {
                c = g.add(c, b);
            }
            c = g.unary(Unary::Sigmoid, c);
            sure = Some(append(g, sure, c));
        }
        if i + 1 < n_drafts {
            prev = g.argmax(column);
        }
    }
    // Position by position so far; the batch has block by block.
    let by_block = |g: &mut LlmGraph<'_>, t: TensorId, n: i64| {
        let t = g.reshape(t, [n, n_blocks, n_drafts, 1]);
        let t = g.permute(t, [0, 2, 1, 3]);
        let t = g.cont(t);
        g.reshape(t, [n, n_tokens, 1, 1])
    };
    let logits = columns.map_or(base, |t| by_block(g, t, n_vocab));
    if let Some(sure) = sure {
        let sure = by_block(g, sure, 1);
        let ne = g[embd].ne;
        let sure = g.repeat(sure, ne);
        g.set_output(sure);
    }
    logits
}

fn markov_shift(g: &mut LlmGraph<'_>, state: TensorId) -> TensorId {
    let w2 = g.output_weight(Global::MarkovW2, Part::Weight);
    let w2 = g.required(Global::MarkovW2, w2);
    let scale = g.output_weight(Global::MarkovW2, Part::Scale);
    let shift = g.adapted_scaled(w2, state, None, scale);
    scatter(g, shift)
}

fn append(g: &mut LlmGraph<'_>, all: Option<TensorId>, next: TensorId) -> TensorId {
    match all {
        Some(all) => g.concat(all, next, 1),
        None => next,
    }
}
