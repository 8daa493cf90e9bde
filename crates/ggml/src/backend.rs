//! A backend as data: what the scheduler and the allocator ask of it.

use crate::cuda::Cuda;
use crate::{BufferType, Graph, TensorId};
use std::sync::Arc;

/// A backend of the scheduler. Metal and Vulkan would be further variants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Backend {
    /// ggml-cpu: runs everything, from host memory. The last of the scheduler's list.
    Cpu,
    /// ggml-cuda on one device.
    Cuda(Cuda),
    /// Several devices as one (`ggml-backend-meta.cpp`): tensors are shared out among them, and what is computed is allocated
    /// on each as if it were whole.
    Meta(Arc<[Cuda]>),
}

impl Backend {
    /// Its own memory (`ggml_backend_get_default_buffer_type`).
    #[inline]
    pub fn buffer_type(&self) -> BufferType {
        match self {
            Backend::Cpu => BufferType::HOST,
            Backend::Cuda(c) => BufferType::device(c.index),
            Backend::Meta(_) => BufferType::device(0),
        }
    }

    /// Alignment of tensors in its memory, bytes.
    #[inline]
    pub fn alignment(&self) -> u64 {
        match self {
            Backend::Cpu => 32,
            Backend::Cuda(_) | Backend::Meta(_) => 128,
        }
    }

    /// `supports_buft`: it can read tensors that lie there.
    #[inline]
    pub fn supports_buffer(&self, buffer: BufferType) -> bool {
        buffer == self.buffer_type()
            || (*self == Backend::Cpu && buffer == BufferType::HOST_REPACKED)
            || matches!(self, Backend::Cuda(c) if c.integrated && buffer == BufferType::HOST)
    }

    /// `supports_op`.
    #[inline]
    pub fn supports_op(&self, graph: &Graph, node: TensorId) -> bool {
        match self {
            Backend::Cpu => true,
            Backend::Cuda(c) => c.supports_op(graph, node),
            Backend::Meta(all) => all.iter().all(|c| c.supports_op(graph, node)),
        }
    }

    /// `offload_op`: worth copying host weights over for.
    #[inline]
    pub fn offload_op(&self, graph: &Graph, node: TensorId) -> bool {
        match self {
            Backend::Cpu | Backend::Meta(_) => false,
            Backend::Cuda(_) => crate::cuda::offload_op(graph, node),
        }
    }

    /// `get_alloc_size`: bytes a tensor takes in its memory before alignment.
    #[inline]
    pub fn alloc_size(&self, graph: &Graph, t: TensorId) -> u64 {
        match self {
            Backend::Cpu => graph[t].n_bytes(),
            Backend::Cuda(c) => c.alloc_size(graph, t),
            Backend::Meta(all) => {
                let sizes = all.iter().map(|c| c.alloc_size(graph, t));
                sizes.max().unwrap_or_else(|| graph[t].n_bytes())
            }
        }
    }

    /// Bytes of a tensor of its own memory, aligned: what a weight or a cache tensor takes there.
    pub fn placed_size(&self, ty: crate::Type, ne: [i64; 4], n_bytes: u64) -> u64 {
        let padded = match self {
            Backend::Cpu => n_bytes,
            Backend::Cuda(_) | Backend::Meta(_) => {
                n_bytes.saturating_add(crate::cuda::row_padding(ty, ne[0]))
            }
        };
        align(padded, self.alignment())
    }
}

/// `GGML_PAD`: `n` rounded up to a multiple of `to`.
#[inline]
pub const fn align(n: u64, to: u64) -> u64 {
    n.div_ceil(to).saturating_mul(to)
}
