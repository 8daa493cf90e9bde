//! Qwen4's experiment: Qwen3.5's gated delta nets and gated attention between low-rank hyper
//! connections; attention reads whole blocks of tokens that an indexer chooses; one layer adds
//! embeddings of n-grams.

use super::Architecture;
use super::qwen3next::{Variant, delta_net, experts, gated_attention, keep_columns};
use crate::cache::CacheKind;
use crate::graph::{LlmGraph, Scale};
use crate::hparams::{Hparams, NgramEmbd, limits};
use crate::keys::Keys;
use crate::names::{Global, Kind, Part};
use crate::params::FusedOp;
use crate::{Error, Result};
use vramfit_ggml::{Op, TensorId, Type, Unary};

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[Architecture::new("qwen4exp", graph)
    .whole()
    .scales(&[Scale::Experts, Scale::SharedExperts, Scale::AttnGate])
    .reads(hparams)
    .large_graph()
    .tapped()
    .rolling_back()
    .lazily()
    .no_scan()];

/// Tokens of a block and heads of the indexer that are believed: each is a node of its own.
const LARGEST_BLOCK: i64 = 256;

fn hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.n_pos_per_embd = 4;
    hp.fuses_hyper_connections = true;
    hp.set_recurrent_layers(keys, 4)?;
    let key = "attention.compress_ratios";
    if let Some(ratios) = keys.per_layer(key, hp.n_layer_all, LARGEST_BLOCK)? {
        for (layer, ratio) in hp.layers.iter_mut().zip(ratios) {
            layer.compress_ratio = ratio;
        }
    }
    keys.require("attention.indexer.head_count", LARGEST_BLOCK)?;
    hp.ngrams = ngrams(keys)?;
    let recurrent: Vec<bool> = hp.layers.iter().map(|l| l.is_recurrent).collect();
    hp.set_indexer(keys, |il| !recurrent.get(il).copied().unwrap_or(true))
}

fn ngrams(keys: &Keys<'_>) -> Result<Option<NgramEmbd>> {
    let Some(layer) = keys.int("ple.layers", limits::LAYERS)? else {
        return Ok(None);
    };
    let n = keys.require("ple.ngram_size", 64)?;
    let n_rows = (n - 1) * keys.require("ple.heads_per_ngram", limits::HEADS)?;
    if n_rows == 0 {
        let key = "ple.ngram_size".to_string();
        let (value, min, max) = (n, 2, 64);
        return Err(Error::KeyRange {
            key,
            value,
            min,
            max,
        });
    }
    Ok(Some(NgramEmbd {
        layer: layer as usize,
        n_rows,
        width: keys.require("embedding_length_per_layer_input", limits::WIDTH)?,
        taps: keys.require("ple.conv_kernel", LARGEST_BLOCK)?,
        dilation: n,
    }))
}

/// The weights of a low-rank hyper connection: norm, down, up and, but for the last, what spreads
/// a block's result.
const HC_ATTN: [Kind; 4] = [
    Kind::HcAttnNorm,
    Kind::HcAttnDown,
    Kind::HcAttnUp,
    Kind::HcAttnInject,
];
const HC_FFN: [Kind; 4] = [
    Kind::HcFfnNorm,
    Kind::HcFfnDown,
    Kind::HcFfnUp,
    Kind::HcFfnInject,
];

fn graph(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let ngrams = g.hp.ngrams.map(|ngrams| embed_ngrams(g, ngrams));
    let mut blocks = Vec::new();
    let mut x = g.hc_streams(x);
    for il in 0..g.hp.n_layer() {
        g.tap(x, il);
        if let (Some(n), Some(rows)) = (g.hp.ngrams.filter(|n| n.layer == il), ngrams) {
            x = add_ngrams(g, n, rows, x, il);
        }
        let (n, mut inject) = read_streams(g, x, HC_ATTN, il);
        g.expand(n);
        let mut cur = if g.hp.layers[il].is_recurrent {
            delta_net(g, n, Variant::Four, il)
        } else {
            let chosen = choose_blocks(g, n, &mut blocks, il);
            gated_attention(g, n, Variant::Four, chosen, il)
        };
        if il + 1 == g.hp.n_layer() {
            cur = g.output_rows(cur);
            inject = g.output_rows(inject);
            x = g.hc_output_rows(x);
        }
        x = write_streams(g, cur, x, inject, il);
        let (n, inject) = read_streams(g, x, HC_FFN, il);
        let cur = experts(g, n, il);
        x = write_streams(g, cur, x, inject, il);
        g.pin_to_layer(x, "l_last", il);
    }
    let weights = [
        Global::OutputHcNorm,
        Global::OutputHcDown,
        Global::OutputHcUp,
    ]
    .map(|global| {
        let weight = g.output_weight(global, Part::Weight);
        g.required(global, weight)
    });
    let (x, gates) = gated_streams(g, x, weights);
    let embd = mean_of_streams(g, x, gates);
    g.lm_head(embd, embd);
}

/// The streams, each normalised, and a gate an element.
fn gated_streams(
    g: &mut LlmGraph<'_>,
    x: TensorId,
    [norm, down, up]: [TensorId; 3],
) -> (TensorId, TensorId) {
    let ne = g[x].ne;
    let x = g.rms(x);
    let x = g.mul(x, norm);
    let x = g.reshape(x, [ne[0] * ne[1], ne[2], 1, 1]);
    let low = g.adapted(down, x, None);
    let low = g.scale(low);
    let low = g.unary(Unary::Silu, low);
    (x, g.adapted(up, low, None))
}

/// What a block of layer `il` reads of the streams, and how its result will be spread over them.
fn read_streams(
    g: &mut LlmGraph<'_>,
    x: TensorId,
    [norm, down, up, inject]: [Kind; 4],
    il: usize,
) -> (TensorId, TensorId) {
    let ne = g[x].ne;
    let weights = [norm, down, up].map(|kind| g.weight(il, kind));
    let (x, gates) = gated_streams(g, x, weights);
    let cur = if g.is_fused(FusedOp::HcPre) {
        let [streams, gates] = [x, gates].map(|t| g.reshape(t, ne));
        let cur = g.dsv4_hc_pre_gated(streams, gates);
        g.fused.push((FusedOp::HcPre, cur, il));
        cur
    } else {
        mean_of_streams(g, x, gates)
    };
    (cur, g.linear(x, inject, il))
}

fn mean_of_streams(g: &mut LlmGraph<'_>, x: TensorId, gates: TensorId) -> TensorId {
    let (n_embd, n_streams, n) = (g.hp.n_embd, g.hp.n_streams, g[x].ne[1]);
    let gates = g.unary(Unary::Sigmoid, gates);
    let gated = g.mul(x, gates);
    let gated = g.reshape(gated, [n_embd, n_streams, n, 1]);
    let first = g.hc_stream(gated);
    let mut sum = g.cont(first);
    for _ in 1..n_streams {
        let stream = g.hc_stream(gated);
        sum = g.add(sum, stream);
    }
    g.scale(sum)
}

/// A block's result added to each stream, by weight.
fn write_streams(
    g: &mut LlmGraph<'_>,
    cur: TensorId,
    x: TensorId,
    inject: TensorId,
    il: usize,
) -> TensorId {
    let ne = g[x].ne;
    let weights = g.scale(inject);
    let weights = g.unary(Unary::Sigmoid, weights);
    let weights = g.scale(weights);
    if g.is_fused(FusedOp::HcPost) {
        let all = g.dsv4_hc_post([cur, x, weights], None);
        g.fused.push((FusedOp::HcPost, all, il));
        return all;
    }
    let weights = g.reshape(weights, [1, ne[1], ne[2], 1]);
    let cur = g.reshape(cur, [ne[0], 1, ne[2], 1]);
    let cur = g.repeat(cur, ne);
    let cur = g.mul(cur, weights);
    g.add(x, cur)
}

/// What choosing blocks of one size reads.
#[derive(Clone, Copy)]
struct Blocks {
    size: i64,
    k_idxs: TensorId,
    /// The block of each cell, the cells of each block, and its positions.
    of_cells: TensorId,
    cells: TensorId,
    pos: TensorId,
    bias: TensorId,
}

impl Blocks {
    fn new(g: &mut LlmGraph<'_>, size: i64) -> Blocks {
        let n_kv = g.n_read(g.cp.n_ctx_seq);
        let (n_stream, n_tokens) = (g.n_stream(), g.n_tokens);
        let n_blocks = (n_kv + size - 1) / size;
        let per_row = if g.hp.is_causal { n_blocks } else { n_kv };
        let bias = [per_row, n_tokens / n_stream.max(1), n_stream, 1];
        let mut list = |name, n, m| g.input(name, Type::I32, [n, m, 1, 1]);
        Blocks {
            size,
            of_cells: list("qsa_cell_blk", n_kv, n_stream),
            cells: list("qsa_blk_cells", size * n_blocks, n_stream),
            pos: list("qsa_blk_pos", 4 * n_blocks * n_stream, 1),
            k_idxs: g.input("attn_inp_k_idxs", Type::I64, [n_tokens, 1, 1, 1]),
            bias: g.input("qsa_bias", Type::F32, bias),
        }
    }
}

/// The cells of the blocks that the indexer of layer `il` chooses, one key a block: the mean of its
/// tokens'. Nothing where the layer has no blocks.
fn choose_blocks(
    g: &mut LlmGraph<'_>,
    n: TensorId,
    known: &mut Vec<Blocks>,
    il: usize,
) -> Option<TensorId> {
    let (size, indexer) = (g.hp.layers[il].compress_ratio, g.hp.indexer?);
    if size == 0 {
        return None;
    }
    let blocks = match known.iter().find(|b| b.size == size) {
        Some(&blocks) => blocks,
        None => {
            known.push(Blocks::new(g, size));
            *known.last()?
        }
    };
    let (n_tokens, head) = (g.n_tokens, indexer.head);
    let k = g.linear(n, Kind::IndexerKProj, il);
    let k = g.reshape(k, [head, 1, n_tokens, 1]);
    let cache = g.cache(il, CacheKind::Index);
    g.store_rows(k, cache, blocks.k_idxs);
    let keys = block_keys(g, cache, &blocks, il);

    let [_, n_blocks, n_stream, _] = g[keys].ne;
    let n_time = n_tokens / n_stream.max(1);
    let q = g.linear(n, Kind::IndexerQProj, il);
    let q = g.reshape(q, [head, indexer.n_head, n_tokens, 1]);
    let q = g.norm(q, Kind::IndexerQNorm, il);
    let q = g.rotate(q, None);
    let q = g.reshape(q, [head, indexer.n_head * n_time, n_stream, 1]);
    let scores = g.mul_mat(keys, q);
    let scores = g.reshape(scores, [n_blocks, indexer.n_head, n_time, n_stream]);
    let scores = g.unary(Unary::Relu, scores);
    let nb = g[scores].nb;
    let mut sum = None;
    for _ in 0..indexer.n_head {
        let of_head = g.view_3d(scores, [n_blocks, n_time, n_stream], [nb[2], nb[3]]);
        sum = Some(match sum {
            Some(sum) => g.add(sum, of_head),
            None => g.cont(of_head),
        });
    }
    let scores = sum?;
    Some(best_cells(g, scores, &blocks, indexer.top_k, il))
}

/// One key a block, `[head, blocks, streams]`: the mean of its tokens' keys, then norm and rotation.
fn block_keys(g: &mut LlmGraph<'_>, cache: TensorId, blocks: &Blocks, il: usize) -> TensorId {
    let n_kv = g.n_read(g.cp.n_ctx_seq);
    let all = g.index_keys(cache, n_kv);
    let (ne, nb) = (g[all].ne, g[all].nb);
    let (head, n_stream) = (ne[0], ne[3]);
    let all = g.view_3d(all, [head, n_kv, n_stream], [nb[2], nb[3]]);
    let members = g.get_rows(all, blocks.cells);
    let n_blocks = g[members].ne[1] / blocks.size;
    let members = g.reshape(members, [head, blocks.size, n_blocks, n_stream]);
    let nb = g[members].nb;
    let mut sum = None;
    for _ in 0..blocks.size {
        let member = g.view_3d(members, [head, n_blocks, n_stream], [nb[2], nb[3]]);
        let member = g.cont(member);
        sum = Some(match sum {
            Some(sum) => g.add(sum, member),
            None => member,
        });
    }
    let mean = g.scale(sum.unwrap_or(members));
    let flat = g.reshape(mean, [head, n_blocks * n_stream, 1, 1]);
    let flat = g.norm(flat, Kind::IndexerKNorm, il);
    let flat = g.reshape(flat, [head, 1, n_blocks * n_stream, 1]);
    let flat = g.rope(flat, blocks.pos, None);
    g.reshape(flat, [head, n_blocks, n_stream, 1])
}

/// The best cells, each as good as its block: `[cells, tokens, 1, streams]`.
fn best_cells(
    g: &mut LlmGraph<'_>,
    mut scores: TensorId,
    blocks: &Blocks,
    top_k: i64,
    il: usize,
) -> TensorId {
    let [_, n_time, n_stream, _] = g[scores].ne;
    let (n_kv, is_causal) = (g.n_read(g.cp.n_ctx_seq), g.hp.is_causal);
    if is_causal {
        scores = g.add(scores, blocks.bias);
    }
    let by_block = g.permute(scores, [1, 0, 2, 3]);
    let by_block = g.cont(by_block);
    let by_cell = g.get_rows(by_block, blocks.of_cells);
    let by_cell = g.permute(by_cell, [1, 0, 2, 3]);
    let by_cell = g.cont(by_cell);
    let hidden = if is_causal {
        let mut mask = g.attn_mask(il);
        if g[mask].ty != Type::F32 {
            mask = g.cast(mask, Type::F32);
        }
        g.reshape(mask, [n_kv, n_time, n_stream, 1])
    } else {
        blocks.bias
    };
    let by_cell = g.add(by_cell, hidden);
    let width = n_kv.min(top_k + blocks.size - 1);
    let best = g.top_k(by_cell, width);
    let best = g.cont(best);
    g.reshape(best, [width, n_time, 1, n_stream])
}

/// Rows of the table of n-grams, those of a token behind each other.
fn embed_ngrams(g: &mut LlmGraph<'_>, ngrams: NgramEmbd) -> TensorId {
    let n_tokens = g.n_tokens;
    let n = ngrams.n_rows * n_tokens;
    let rows = g.input("ple_rows", Type::I32, [n, 1, 1, 1]);
    let table = g.input_weight(Global::PerLayerTokenEmbd);
    let table = g.required(Global::PerLayerTokenEmbd, table);
    let embd = g.get_rows(table, rows);
    let embd = g.reshape(embd, [ngrams.width * ngrams.n_rows, n_tokens, 1, 1]);
    g.expand(embd);
    embd
}

/// The streams `x` with values made of n-grams added: gated by how well their keys answer each
/// stream, and once more behind a dilated convolution over time.
fn add_ngrams(
    g: &mut LlmGraph<'_>,
    ngrams: NgramEmbd,
    rows: TensorId,
    x: TensorId,
    il: usize,
) -> TensorId {
    let ne = g[x].ne;
    let key = g.linear(rows, Kind::PleKey, il);
    let value = g.linear(rows, Kind::PleValue, il);
    let key = norm_streams(g, key, Kind::PleNormKey, il);
    let query = norm_streams(g, x, Kind::PleNormQuery, il);
    let fit = g.mul(key, query);
    let fit = g.sum_rows(fit);
    let fit = g.scale(fit);
    let size = g.unary(Unary::Abs, fit);
    let size = g.map(Op::Clamp, size);
    let root = g.map(Op::Sqrt, size);
    let sign = g.unary(Unary::Sgn, fit);
    let gate = g.mul(sign, root);
    let gate = g.unary(Unary::Sigmoid, gate);
    let value = g.reshape(value, [ne[0], 1, ne[2], 1]);
    let value = g.repeat(value, ne);
    let gated = g.mul(value, gate);
    let flat = g.reshape(gated, [ne[0] * ne[1], ne[2], 1, 1]);
    let normed = norm_streams(g, flat, Kind::PleNormConv, il);
    let convolved = convolve(g, ngrams, normed, il);
    let convolved = g.reshape(convolved, ne);
    let added = g.add(gated, convolved);
    g.add(x, added)
}

fn norm_streams(g: &mut LlmGraph<'_>, x: TensorId, kind: Kind, il: usize) -> TensorId {
    let (n_embd, n_streams, n_tokens) = (g.hp.n_embd, g.hp.n_streams, g.n_tokens);
    let x = g.reshape(x, [n_embd, n_streams, n_tokens, 1]);
    let x = g.rms(x);
    let weight = g.weight(il, kind);
    g.mul(x, weight)
}

/// A causal convolution a channel, as a sum of shifted copies.
fn convolve(g: &mut LlmGraph<'_>, ngrams: NgramEmbd, x: TensorId, il: usize) -> TensorId {
    let (width, n_tokens) = (g.hp.n_embd * g.hp.n_streams, g.n_tokens);
    let (n_seqs, n_time) = (g.n_seqs, g.n_seq_tokens());
    let x = g.reshape(x, [width, n_tokens, 1, 1]);
    let x = g.reshape(x, [width, n_time, n_seqs, 1]);
    let n_before = (ngrams.taps - 1) * ngrams.dilation;
    let state = g.cache(il, CacheKind::Ngrams);
    let before = g.gather_state(state);
    let before = g.reshape(before, [n_before, width, n_seqs, 1]);
    let x = g.transpose(x);
    let all = g.concat(before, x, 0);
    keep_columns(g, state, all, width, n_before);
    let kernel = g.weight(il, Kind::PleConv1d);
    let (nb, kernel_nb) = (g[all].nb, g[kernel].nb);
    let mut sum = None;
    for _ in 0..ngrams.taps {
        let shifted = g.view_3d(all, [n_time, width, n_seqs], [nb[1], nb[2]]);
        let shifted = g.transpose(shifted);
        let shifted = g.cont(shifted);
        let tap = g.view_2d(kernel, [1, width], kernel_nb[1]);
        let tap = g.cont(tap);
        let mut tap = g.reshape(tap, [width, 1, 1, 1]);
        if g[tap].ty != Type::F32 {
            tap = g.cast(tap, Type::F32);
        }
        let term = g.mul(shifted, tap);
        sum = Some(match sum {
            Some(sum) => g.add(sum, term),
            None => term,
        });
    }
    let cur = g.unary(Unary::Silu, sum.unwrap_or(all));
    g.cont(cur)
}
