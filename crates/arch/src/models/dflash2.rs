//! What DFlash 2 adds to DFlash: short convolutions along each block, before and behind attention and the
//! feed-forward block, and a selector that scores which candidate follows which.

use crate::graph::LlmGraph;
use crate::names::{Global, Kind, Part};
use vramfit_ggml::{Op, TensorId, Type};

/// Shape of the convolutions and of the selector.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Selector {
    /// Taps of a convolution.
    pub taps: i64,
    /// Channels that share a tap's weight.
    pub group: i64,
    /// Width of what the selector compares.
    pub rank: i64,
    /// Candidates a position.
    pub top_k: i64,
}

/// `build_dflash2_conv`: `x` along its block, by taps that are fixed and taps made of the token itself.
pub(super) fn convolve(
    g: &mut LlmGraph<'_>,
    x: TensorId,
    dynamic: TensorId,
    base: Kind,
    il: usize,
) -> TensorId {
    let Some(Selector { taps, group, .. }) = g.hp.selector else {
        return x;
    };
    let [width, n_tokens, ..] = g[x].ne;
    let n_blocks = g.n_seqs.max(1);
    let (block, n_groups) = (n_tokens / n_blocks, width / group.max(1));
    let blocks = g.reshape(x, [width, block, n_blocks, 1]);
    let own = g.reshape(dynamic, [n_groups, taps, 2, n_tokens]);
    let nb = g[own].nb;
    let own = g.view_3d(own, [n_groups, taps, n_tokens], [nb[1], nb[3]]);
    let own = g.cont(own);
    let own = g.reshape(own, [1, n_groups, taps, n_tokens]);
    let own = g.repeat(own, [group, n_groups, taps, n_tokens]);
    let fixed = g.weight(il, base);
    let fixed = g.view_1d(fixed, width * taps);
    let fixed = g.reshape(fixed, [group, n_groups, taps, 1]);
    let weights = g.add(own, fixed);
    let mut sum = None;
    for tap in 0..taps {
        let values = earlier(g, blocks, tap);
        let values = g.reshape(values, [width, n_tokens, 1, 1]);
        let nb = g[weights].nb;
        let weight = g.view_4d(
            weights,
            [group, n_groups, 1, n_tokens],
            [nb[1], nb[2], nb[3]],
        );
        let weight = g.cont(weight);
        let weight = g.reshape(weight, [width, n_tokens, 1, 1]);
        let term = g.mul(weight, values);
        sum = Some(match sum {
            Some(sum) => g.add(sum, term),
            None => term,
        });
    }
    sum.unwrap_or(x)
}

/// Each block, `tap` tokens later; nothing comes before its first.
fn earlier(g: &mut LlmGraph<'_>, blocks: TensorId, tap: i64) -> TensorId {
    if tap == 0 {
        return blocks;
    }
    let ([width, block, n_blocks, _], nb) = (g[blocks].ne, g[blocks].nb);
    let zeros = g.new_tensor(
        Op::None,
        Type::F32,
        [width, tap.min(block), n_blocks, 1],
        &[],
    );
    let zeros = g.map(Op::Fill, zeros);
    if tap >= block {
        return zeros;
    }
    let before = g.view_3d(blocks, [width, block - tap, n_blocks], [nb[1], nb[2]]);
    g.concat(zeros, before, 1)
}

/// Candidates of each position in blocks.
struct Candidates {
    /// Token ids, their logits, and what the position says.
    ids: TensorId,
    logits: TensorId,
    gate: TensorId,
    n_blocks: i64,
    selector: Selector,
}

/// `build_dflash2_selector`: the candidates of each position, and how well each follows those before it.
pub(super) fn select(g: &mut LlmGraph<'_>, tokens: TensorId, embd: TensorId, logits: TensorId) {
    let Some(selector) = g.hp.selector else {
        return;
    };
    let Some(hidden) = g.output_weight(Global::SelectorHidden, Part::Weight) else {
        return;
    };
    let (top_k, rank, n_embd) = (selector.top_k, selector.rank, g.hp.n_embd);
    let (n_blocks, [n_vocab, n_tokens, ..]) = (g.n_seqs.max(1), g[logits].ne);
    let n_each = n_tokens / n_blocks;
    let block = n_each.min(g.hp.block_size);
    let ids = g.top_k(logits, top_k);
    let rows = g.reshape(logits, [1, n_vocab, n_tokens, 1]);
    let values = g.get_rows(rows, ids);
    let values = g.reshape(values, [top_k, n_tokens, 1, 1]);
    let gate = g.adapted_scaled(hidden, embd, None, None);
    let candidates = Candidates {
        ids: g.reshape(ids, [top_k, n_each, n_blocks, 1]),
        logits: g.reshape(values, [top_k, n_each, n_blocks, 1]),
        gate: g.reshape(gate, [rank, n_each, n_blocks, 1]),
        n_blocks,
        selector,
    };
    let packed = g.new_tensor(Op::None, Type::F32, [n_embd, 1, n_blocks, 1], &[]);
    let mut packed = g.map(Op::Fill, packed);
    if block > 1 {
        let stride = g[tokens].nb[0].saturating_mul(n_each.max(0) as u64);
        let anchors = g.view_2d(tokens, [1, n_blocks], stride);
        let anchors = g.cont_shape(anchors, [n_blocks, 1, 1, 1]);
        let row = score(g, &candidates, 1, anchors);
        packed = g.concat(packed, row, 1);
    }
    if block > 2 {
        let n = block - 2;
        let before = positions(g, candidates.ids, top_k, n, n_blocks);
        let before = g.reshape(before, [top_k * n * n_blocks, 1, 1, 1]);
        let rows = score(g, &candidates, n, before);
        packed = g.concat(packed, rows, 1);
    }
    let packed = g.reshape(packed, [n_embd, block * n_blocks, 1, 1]);
    g.set_output(packed);
}

/// `n` positions of each block.
fn positions(g: &mut LlmGraph<'_>, t: TensorId, width: i64, n: i64, n_blocks: i64) -> TensorId {
    let nb = g[t].nb;
    let part = g.view_3d(t, [width, n, n_blocks], [nb[1], nb[2]]);
    g.cont(part)
}

/// How well the candidates of `n` positions follow `before`, packed with them into rows of an embedding's width.
fn score(g: &mut LlmGraph<'_>, all: &Candidates, n: i64, before: TensorId) -> TensorId {
    let Candidates {
        n_blocks, selector, ..
    } = *all;
    let (top_k, rank) = (selector.top_k, selector.rank);
    let ids = positions(g, all.ids, top_k, n, n_blocks);
    let logits = positions(g, all.logits, top_k, n, n_blocks);
    let gate = positions(g, all.gate, rank, n, n_blocks);
    let n_before = g[before].ne[0] / (n * n_blocks).max(1);
    let next = g.output_weight(Global::SelectorSuccessor, Part::Weight);
    let next = g.required(Global::SelectorSuccessor, next);
    let flat = g.reshape(ids, [top_k * n * n_blocks, 1, 1, 1]);
    let after = g.get_rows(next, flat);
    let after = g.reshape(after, [rank, top_k, n, n_blocks]);
    let previous = g.output_weight(Global::SelectorPredecessor, Part::Weight);
    let previous = g.required(Global::SelectorPredecessor, previous);
    let before = g.get_rows(previous, before);
    let before = g.reshape(before, [rank, n_before, n, n_blocks]);
    let gate = g.reshape(gate, [rank, 1, n, n_blocks]);
    let ne = g[before].ne;
    let gate = g.repeat(gate, ne);
    let told = g.mul(before, gate);
    let mut scores = g.mul_mat(after, told);
    if n_before == 1 {
        scores = g.repeat(scores, [top_k, top_k, n, n_blocks]);
    }
    let logits = g.reshape(logits, [top_k, 1, n, n_blocks]);
    let ne = g[scores].ne;
    let logits = g.repeat(logits, ne);
    let scores = g.add(scores, logits);
    let ids = g.cast(ids, Type::F32);
    let scores = g.reshape(scores, [top_k * top_k, n, n_blocks, 1]);
    let row = g.concat(ids, scores, 0);
    let missing = g.hp.n_embd - top_k * (top_k + 1);
    g.pad_by(row, [missing, 0, 0, 0])
}
