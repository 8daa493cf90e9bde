//! The KV cache and the recurrent state: which tensors there are and how large
//! (`llama-kv-cache.cpp`, `llama-memory-recurrent.cpp`).

use crate::hparams::Hparams;
use crate::params::{ContextParams, pad_256};
use vramfit_ggml::{Type, contiguous_strides};

/// What a tensor of the memory holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum CacheKind {
    /// Keys.
    K,
    /// Values.
    V,
    /// The state of convolutions.
    R,
    /// The state of scans.
    S,
    /// Keys of the lightning indexer.
    Index,
    /// Values of the indexer: never written, but there.
    IndexV,
    /// Compressed K.
    Comp,
    /// What the compressor has seen of its next cell, and the weights of that.
    CompKv,
    CompScore,
    /// The same of the indexer's compressor.
    IndexKv,
    IndexScore,
    /// What the convolution over embeddings of n-grams saw last.
    Ngrams,
}

impl CacheKind {
    /// Every kind.
    pub const ALL: [CacheKind; 12] = [
        CacheKind::K,
        CacheKind::V,
        CacheKind::R,
        CacheKind::S,
        CacheKind::Index,
        CacheKind::IndexV,
        CacheKind::Comp,
        CacheKind::CompKv,
        CacheKind::CompScore,
        CacheKind::IndexKv,
        CacheKind::IndexScore,
        CacheKind::Ngrams,
    ];
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// As llama.cpp names it.
    pub const fn name(self) -> &'static str {
        match self {
            CacheKind::K => "cache_k",
            CacheKind::V => "cache_v",
            CacheKind::R => "cache_r",
            CacheKind::S => "cache_s",
            CacheKind::Index => "cache_idx_k",
            CacheKind::IndexV => "cache_idx_v",
            CacheKind::Comp => "cache_comp_k",
            CacheKind::CompKv => "dsv4_state_kv",
            CacheKind::CompScore => "dsv4_state_score",
            CacheKind::IndexKv => "dsv4_lid_state_kv",
            CacheKind::IndexScore => "dsv4_lid_state_score",
            CacheKind::Ngrams => "cache_ple_r",
        }
    }
}

/// A tensor of the memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CacheTensor {
    /// What it holds.
    pub kind: CacheKind,
    /// Element type.
    pub ty: Type,
    /// Elements: row, cells (sequences for a state), streams.
    pub ne: [i64; 4],
}

impl CacheTensor {
    /// Bytes of its elements.
    pub fn n_bytes(&self) -> u64 {
        contiguous_strides(self.ty, self.ne)[3]
    }
}

/// Cells of layer `il`'s cache, a stream.
pub fn n_cells(hp: &Hparams, cp: &ContextParams, il: usize) -> i64 {
    if hp.layers[il].is_swa {
        cp.n_ctx_swa(hp.n_swa)
    } else {
        cp.n_ctx_seq
    }
}

/// The memory tensor of layer `il` that holds `kind`, if the layer has one.
pub fn cache_tensor(
    hp: &Hparams,
    cp: &ContextParams,
    il: usize,
    kind: CacheKind,
) -> Option<CacheTensor> {
    let is_mtp = cp.role.is_mtp;
    if hp.compressor.is_some_and(|c| c.has_cells) && !is_mtp {
        return compressed_tensor(hp, cp, il, kind);
    }
    let layer = &hp.layers[il];
    let lends = cp.role.target.as_ref().is_some_and(|t| t.caches.is_some());
    let has_kv = match is_mtp {
        _ if lends => false,
        true => hp.has_mtp_kv(il),
        false => hp.has_kv(il),
    };
    let indexed = layer.has_indexer && layer.is_cached && !is_mtp;
    let tensor = |ty, ne| Some(CacheTensor { kind, ty, ne });
    match kind {
        CacheKind::R | CacheKind::S => {
            let ssm = hp
                .ssm
                .filter(|_| layer.is_recurrent && hp.has_memory && !is_mtp)?;
            let row = if kind == CacheKind::R {
                ssm.n_embd_r()
            } else {
                ssm.n_embd_s()
            };
            tensor(Type::F32, [row, n_states(cp), 1, 1])
        }
        CacheKind::Index => {
            let indexer = hp.indexer.filter(|_| indexed)?;
            let ne = [indexer.head, n_cells(hp, cp, il), cp.n_stream(), 1];
            tensor(cp.type_k, ne)
        }
        CacheKind::IndexV => {
            hp.indexer.filter(|i| indexed && i.caches_values)?;
            let widest = hp.layers.iter().map(|l| l.n_embd_head_v).max();
            let row = widest.filter(|_| cp.v_trans).unwrap_or(layer.n_embd_head_v);
            let ne = [row, n_cells(hp, cp, il), cp.n_stream(), 1];
            tensor(cp.type_v, ne)
        }
        CacheKind::Ngrams => {
            let ngrams = hp.ngrams.filter(|n| n.layer == il && !is_mtp)?;
            let row = (ngrams.taps - 1) * ngrams.dilation * hp.n_streams * hp.n_embd;
            tensor(Type::F32, [row, n_states(cp), 1, 1])
        }
        CacheKind::Comp
        | CacheKind::CompKv
        | CacheKind::CompScore
        | CacheKind::IndexKv
        | CacheKind::IndexScore => None,
        CacheKind::K | CacheKind::V if !has_kv => None,
        CacheKind::V if hp.mla.is_some() => None,
        CacheKind::K => {
            let ne = [layer.n_embd_k_gqa(), n_cells(hp, cp, il), cp.n_stream(), 1];
            tensor(cp.type_k, ne)
        }
        CacheKind::V => {
            // Transposed rows have to be equally long on all layers.
            let row = if cp.v_trans {
                hp.n_embd_v_gqa_max()
            } else {
                layer.n_embd_v_gqa()
            };
            tensor(cp.type_v, [row, n_cells(hp, cp, il), cp.n_stream(), 1])
        }
    }
}

/// States of all sequences, with those to go back to.
fn n_states(cp: &ContextParams) -> i64 {
    let n_kept = 1 + i64::from(cp.role.n_rollback);
    cp.n_seq_max.saturating_mul(n_kept)
}

/// Tokens whose states a compressor keeps: those of the cell that it is at, and of the one before
/// where its cells overlap.
pub fn compressor_rows(ratio: i64) -> i64 {
    if overlaps(ratio) { 2 * ratio } else { ratio }
}

/// Cells of four tokens overlap.
pub fn overlaps(ratio: i64) -> bool {
    ratio == 4
}

/// Cells of a compressed cache, a stream.
pub fn n_compressed_cells(cp: &ContextParams, ratio: i64) -> i64 {
    pad_256((cp.n_ctx_seq.saturating_add(ratio - 1) / ratio.max(1)).max(1))
}

/// [`cache_tensor`] where older tokens are compressed (`llama_kv_cache_dsv4`): a stream a sequence
/// also where the rest is unified.
fn compressed_tensor(
    hp: &Hparams,
    cp: &ContextParams,
    il: usize,
    kind: CacheKind,
) -> Option<CacheTensor> {
    let layer = &hp.layers[il];
    let is_main = il < hp.n_layer();
    let (ratio, n_stream) = (layer.compress_ratio, cp.n_seq_max);
    let n_halves = if overlaps(ratio) { 2 } else { 1 };
    let tensor = |ty, row, n| {
        let ne = [row, n, n_stream, 1];
        Some(CacheTensor { kind, ty, ne })
    };
    let state = |row| {
        let ne = [row, compressor_rows(ratio), n_states(cp), 1];
        let ty = Type::F32;
        Some(CacheTensor { kind, ty, ne })
    };
    let index = || hp.indexer.filter(|_| layer.has_indexer);
    match kind {
        CacheKind::K => {
            let n = cp.n_ctx_swa_of(hp.n_swa, 1);
            tensor(cp.type_k, layer.n_embd_k_gqa(), n)
        }
        _ if ratio == 0 => None,
        CacheKind::Comp => {
            let n = n_compressed_cells(cp, ratio);
            tensor(cp.type_k, layer.n_embd_k_gqa(), n)
        }
        CacheKind::CompKv | CacheKind::CompScore if is_main => {
            state(n_halves * layer.n_embd_head_k)
        }
        CacheKind::Index => tensor(cp.type_k, index()?.head, n_compressed_cells(cp, ratio)),
        CacheKind::IndexKv | CacheKind::IndexScore if is_main => state(2 * index()?.head),
        _ => None,
    }
}

/// How many parts llama.cpp's memory of a model may have.
pub const MEMORY_PARTS: usize = 7;

/// The part of llama.cpp's memory that `kind` of layer `il` belongs to. Each part has one buffer on every device
/// that it has a tensor on; parts are numbered in the order in which they are made.
pub fn memory_part(hp: &Hparams, il: usize, kind: CacheKind) -> usize {
    let layer = hp.layers.get(il);
    if hp.compressor.is_some_and(|c| c.has_cells) {
        // of cells of four tokens, then of longer ones
        let longer = usize::from(!layer.is_some_and(|l| overlaps(l.compress_ratio)));
        return match kind {
            CacheKind::Comp => 1 + longer,
            CacheKind::Index => 3,
            CacheKind::CompKv | CacheKind::CompScore => 4 + longer,
            CacheKind::IndexKv | CacheKind::IndexScore => 6,
            _ => 0,
        };
    }
    match kind {
        CacheKind::R | CacheKind::S | CacheKind::Ngrams => 3,
        // an indexer comes with the attention that it is for, but behind recurrent layers
        CacheKind::Index | CacheKind::IndexV if hp.layers.iter().any(|l| l.is_recurrent) => 4,
        CacheKind::Index | CacheKind::IndexV => 1,
        _ if layer.is_some_and(|l| l.is_swa) => 2,
        _ => 0,
    }
}

/// All memory tensors of layer `il`.
pub fn cache_tensors(
    hp: &Hparams,
    cp: &ContextParams,
    il: usize,
) -> impl Iterator<Item = CacheTensor> {
    CacheKind::ALL
        .into_iter()
        .filter_map(move |kind| cache_tensor(hp, cp, il, kind))
}
