//! The KV cache and the recurrent state: which tensors there are and how large
//! (`llama-kv-cache.cpp`, `llama-memory-recurrent.cpp`).

use crate::hparams::Hparams;
use crate::params::ContextParams;
use vramfit_ggml::{Type, contiguous_strides};

/// What a tensor of the memory holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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
}

impl CacheKind {
    /// Every kind.
    pub const ALL: [CacheKind; 6] = [
        CacheKind::K,
        CacheKind::V,
        CacheKind::R,
        CacheKind::S,
        CacheKind::Index,
        CacheKind::IndexV,
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
    let layer = &hp.layers[il];
    let tensor = |ty, ne| Some(CacheTensor { kind, ty, ne });
    match kind {
        CacheKind::R | CacheKind::S => {
            let ssm = hp.ssm.filter(|_| layer.is_recurrent && hp.has_memory)?;
            let row = if kind == CacheKind::R {
                ssm.n_embd_r()
            } else {
                ssm.n_embd_s()
            };
            tensor(Type::F32, [row, cp.n_seq_max, 1, 1])
        }
        CacheKind::Index => {
            let indexer = hp.indexer.filter(|_| layer.has_indexer)?;
            let ne = [indexer.head, n_cells(hp, cp, il), cp.n_stream(), 1];
            tensor(cp.type_k, ne)
        }
        CacheKind::IndexV => {
            hp.indexer
                .filter(|_| layer.has_indexer && hp.mla.is_none())?;
            let widest = hp.layers.iter().map(|l| l.n_embd_head_v).max();
            let row = widest.filter(|_| cp.v_trans).unwrap_or(layer.n_embd_head_v);
            let ne = [row, n_cells(hp, cp, il), cp.n_stream(), 1];
            tensor(cp.type_v, ne)
        }
        CacheKind::K | CacheKind::V if !hp.has_kv(il) => None,
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
