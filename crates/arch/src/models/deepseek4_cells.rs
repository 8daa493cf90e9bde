//! DeepSeek-V4's compressed cells: what a batch adds to them, and the states between two batches.

use crate::cache::{CacheKind, compressor_rows, n_compressed_cells, overlaps};
use crate::graph::LlmGraph;
use crate::names::Kind;
use vramfit_ggml::{TensorId, Type};

/// What attention to one kind of compressed cells reads, and what its compressor does.
#[derive(Clone, Copy)]
pub(super) struct Compressed {
    ratio: i64,
    n_blocks: i64,
    /// Place of each token in its cell.
    place: TensorId,
    /// Tokens that are kept, and where.
    kept: TensorId,
    kept_at: TensorId,
    /// States that are gone back to, and those that are kept for that.
    restored: Option<[TensorId; 2]>,
    snapshot: Option<[TensorId; 2]>,
    /// Tokens of each cell that is written, the cells, and their positions.
    read: TensorId,
    cells: TensorId,
    pos: TensorId,
    pub(super) mask: TensorId,
    /// A Hadamard matrix for the cells.
    pub(super) rot: Option<TensorId>,
}

impl Compressed {
    /// Planned for the worst case (`dsv4_build_reserve_comp_plan`).
    pub(super) fn new(
        g: &mut LlmGraph<'_>,
        ratio: i64,
        ty: Type,
        rot: Option<TensorId>,
    ) -> Compressed {
        let (n_tokens, n_stream) = (g.n_tokens, g.n_seqs.max(1));
        let n_blocks = n_tokens / ratio + n_stream;
        let n_rows = compressor_rows(ratio);
        let n_states = n_rows * g.cp.n_seq_max.max(1);
        let n_kept = n_tokens.min(n_states);
        let n_back = i64::from(g.cp.role.n_rollback);
        let mask = [
            n_compressed_cells(g.cp, ratio),
            n_tokens / n_stream,
            1,
            n_stream,
        ];
        let mut list = |name, ty, n| g.input(name, ty, [n, 1, 1, 1]);
        Compressed {
            ratio,
            n_blocks,
            place: list("dsv4_state_pos", Type::I32, n_tokens),
            kept: list("dsv4_state_persist_src_idxs", Type::I32, n_kept),
            kept_at: list("dsv4_state_persist_dst_idxs", Type::I32, n_kept),
            restored: (n_back > 0).then(|| {
                ["dsv4_state_restore_src_idxs", "dsv4_state_restore_dst_idxs"]
                    .map(|name| list(name, Type::I32, n_states))
            }),
            snapshot: (n_back > 0).then(|| {
                [
                    "dsv4_state_snapshot_src_idxs",
                    "dsv4_state_snapshot_dst_idxs",
                ]
                .map(|name| list(name, Type::I32, n_states.saturating_mul(n_back)))
            }),
            read: list("dsv4_state_read_idxs", Type::I32, n_rows * n_blocks),
            cells: list("dsv4_state_write_idxs", Type::I64, n_blocks),
            pos: list("dsv4_state_write_pos", Type::I32, n_blocks),
            mask: g.input("dsv4_kq_mask", ty, mask),
            rot,
        }
    }
}

/// Weights and caches of a compressor.
pub(super) struct Parts {
    kv: Kind,
    gate: Kind,
    ape: Kind,
    norm: Kind,
    state_kv: CacheKind,
    state_score: CacheKind,
    cells: CacheKind,
    head: i64,
}

pub(super) fn attention_parts(head: i64) -> Parts {
    Parts {
        kv: Kind::AttnCompressorKv,
        gate: Kind::AttnCompressorGate,
        ape: Kind::AttnCompressorApe,
        norm: Kind::AttnCompressorNorm,
        state_kv: CacheKind::CompKv,
        state_score: CacheKind::CompScore,
        cells: CacheKind::Comp,
        head,
    }
}

pub(super) fn index_parts(g: &LlmGraph<'_>) -> Parts {
    Parts {
        kv: Kind::IndexerCompressorKv,
        gate: Kind::IndexerCompressorGate,
        ape: Kind::IndexerCompressorApe,
        norm: Kind::IndexerCompressorNorm,
        state_kv: CacheKind::IndexKv,
        state_score: CacheKind::IndexScore,
        cells: CacheKind::Index,
        head: g.hp.indexer.map_or(1, |i| i.head),
    }
}

/// Writes the cells that the batch completes, and keeps its last tokens for the next.
pub(super) fn compress(
    g: &mut LlmGraph<'_>,
    n: TensorId,
    c: &Compressed,
    parts: &Parts,
    il: usize,
) {
    let kv = g.linear(n, parts.kv, il);
    let score = g.linear(n, parts.gate, il);
    let ape = g.weight(il, parts.ape);
    let ape = g.get_rows(ape, c.place);
    let score = g.add(score, ape);
    let of = [(kv, parts.state_kv), (score, parts.state_score)];
    let states = of.map(|(_, kind)| restored_state(g, c, kind, il));
    let n_states = compressor_rows(c.ratio) * g.cp.n_seq_max.max(1);
    let [all_kv, all_score] = [(states[0], kv), (states[1], score)].map(|(state, new)| {
        let (ne, nb) = (g[state].ne, g[state].nb);
        let before = g.view_2d(state, [ne[0], n_states], nb[1]);
        g.concat(before, new, 1)
    });
    let cell = if overlaps(c.ratio) {
        overlapping_cells(g, [all_kv, all_score], c, parts.head)
    } else {
        [all_kv, all_score].map(|t| {
            let rows = g.get_rows(t, c.read);
            g.reshape(rows, [parts.head, c.ratio, c.n_blocks, 1])
        })
    };
    let mut cell = weighted_mean(g, cell);
    cell = g.norm(cell, parts.norm, il);
    cell = g.rope(cell, c.pos, None);
    if let Some(rot) = c.rot {
        cell = g.hadamard(cell, rot);
    }
    let cache = g.cache(il, parts.cells);
    g.store_rows(cell, cache, c.cells);
    if let Some([from, to]) = c.snapshot {
        let kept = [(states[0], of[0]), (states[1], of[1])].map(|(state, (new, kind))| {
            let all = g.concat(state, new, 1);
            let rows = g.get_rows(all, from);
            let state = all_rows(g, kind, il);
            g.set_rows(state, rows, to)
        });
        kept.into_iter().for_each(|t| g.expand(t));
    }
    let stored = of.map(|(new, kind)| {
        let rows = g.get_rows(new, c.kept);
        let state = all_rows(g, kind, il);
        g.set_rows(state, rows, c.kept_at)
    });
    stored.into_iter().for_each(|t| g.expand(t));
}

/// A compressor's state, where a batch may go back to an earlier one.
fn restored_state(g: &mut LlmGraph<'_>, c: &Compressed, kind: CacheKind, il: usize) -> TensorId {
    let state = all_rows(g, kind, il);
    let Some([from, to]) = c.restored else {
        return state;
    };
    let rows = g.get_rows(state, from);
    let state = all_rows(g, kind, il);
    g.set_rows(state, rows, to)
}

/// A compressor's state of all streams, with those to go back to.
fn all_rows(g: &mut LlmGraph<'_>, kind: CacheKind, il: usize) -> TensorId {
    let state = g.cache(il, kind);
    let (ne, nb) = (g[state].ne, g[state].nb);
    g.view_2d(state, [ne[0], ne[1] * ne[2]], nb[1])
}

/// Values and scores of a cell's tokens: one half of each token's row counts for the cell that it
/// is in, the other for the one behind. A row of nothing stands before the first token.
fn overlapping_cells(
    g: &mut LlmGraph<'_>,
    all: [TensorId; 2],
    c: &Compressed,
    head: i64,
) -> [TensorId; 2] {
    let n_read = c.ratio * c.n_blocks;
    let rows = all.map(|t| {
        let n = g[t].ne[0];
        let blank = g.view_1d(t, n);
        let blank = g.scale(blank);
        let blank = g.reshape(blank, [n, 1, 1, 1]);
        let t = g.concat(t, blank, 1);
        g.get_rows(t, c.read)
    });
    rows.map(|t| {
        let nb1 = g[t].nb[1];
        let [before, current] = [(); 2].map(|()| {
            let half = g.view_2d(t, [head, n_read], nb1);
            let half = g.cont(half);
            g.reshape(half, [head, c.ratio, c.n_blocks, 1])
        });
        g.concat(before, current, 1)
    })
}

/// Values `[head, tokens, cells]` by the softmax of their scores: `[head, 1, cells]`.
fn weighted_mean(g: &mut LlmGraph<'_>, parts: [TensorId; 2]) -> TensorId {
    let [values, scores] = parts.map(|t| {
        let t = g.permute(t, [1, 0, 2, 3]);
        g.cont(t)
    });
    let weights = g.soft_max(scores, None, None);
    let sum = g.mul(values, weights);
    let sum = g.sum_rows(sum);
    let sum = g.permute(sum, [1, 0, 2, 3]);
    g.cont(sum)
}

/// The cells of a compressed cache that the mask covers, which is all of them.
pub(super) fn compressed_keys(
    g: &mut LlmGraph<'_>,
    kind: CacheKind,
    c: &Compressed,
    il: usize,
) -> TensorId {
    let cache = g.cache(il, kind);
    let all = g.index_keys(cache, n_compressed_cells(g.cp, c.ratio));
    let (ne, nb) = (g[all].ne, g[all].nb);
    g.view_4d(all, ne, [nb[1], nb[2], nb[3]])
}
