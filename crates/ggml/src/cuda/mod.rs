//! The CUDA backend of llama.cpp as data (`ggml-cuda.cu`): which operations it runs, which it
//! wants, what a tensor takes in its memory.

mod fattn;
mod fusion;
mod pool;

use crate::graph::Tensor;
use crate::{Flags, Graph, Op, TensorId, Type, align};
use std::fmt;
use std::str::FromStr;

pub use fattn::FlashAttnKernel;
pub(crate) use fusion::{graph_optimize, has_experts};
pub use pool::{
    AnyOrder, BatchSteps, Batches, Buffers, Demands, LegacyPool, POOL_GRANULARITY, PoolKind,
    PoolUse, Routes, Step, StepKind, Steps,
};

/// Rows of quantised tensors are padded to this many elements (`MATRIX_ROW_PADDING`).
const MATRIX_ROW_PADDING: i64 = 512;
/// Least batch for which host weights are worth copying over (`GGML_OP_OFFLOAD_MIN_BATCH`'s default).
const OFFLOAD_MIN_BATCH: i64 = 32;

/// Compute capability as ggml-cuda counts it: 100 x major + 10 x minor, so 8.6 is 860.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ComputeCapability(pub u32);

impl ComputeCapability {
    /// From NVIDIA's two numbers, e.g. 8 and 6.
    pub const fn new(major: u32, minor: u32) -> ComputeCapability {
        ComputeCapability(100 * major + 10 * minor)
    }
}

impl fmt::Display for ComputeCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 / 100, self.0 % 100 / 10)
    }
}

/// Not a compute capability.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("'{0}' is not a compute capability (two numbers such as 8.6 are)")]
pub struct ParseComputeCapabilityError(String);

impl FromStr for ComputeCapability {
    type Err = ParseComputeCapabilityError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (major, minor) = s.trim().split_once('.')?;
            let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
            (major <= 99 && minor <= 9).then_some(ComputeCapability::new(major, minor))
        };
        parse().ok_or_else(|| ParseComputeCapabilityError(s.to_string()))
    }
}

/// ggml-cuda on one device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cuda {
    /// Index of the device among those the model uses.
    pub index: usize,
    /// Of the device.
    pub compute_capability: ComputeCapability,
    /// Highest architecture among those the build was compiled for that the device runs
    /// (`ggml_cuda_highest_compiled_arch`); `None` when the build holds nothing for it.
    pub compiled: Option<ComputeCapability>,
    /// Shares its memory with the host.
    pub integrated: bool,
    /// Streaming multiprocessors; `None` where not known: what grows with them is then a bound.
    pub sm_count: Option<u32>,
    /// How it keeps temporary buffers.
    pub pool: PoolKind,
}

/// What padding a quantised row takes behind a tensor of CUDA memory, bytes.
#[inline]
pub fn row_padding(ty: Type, ne0: i64) -> u64 {
    let rest = ne0 % MATRIX_ROW_PADDING;
    if ty.is_quantized() && rest > 0 {
        ty.row_size((MATRIX_ROW_PADDING - rest) as u64)
    } else {
        0
    }
}

/// `offload_op`: the operation's batch is large enough to copy host weights over.
pub(crate) fn offload_op(graph: &Graph, node: TensorId) -> bool {
    let t = &graph[node];
    let batch = match t.op {
        Op::GetRows => 0,
        Op::MulMat => t.ne[1],
        Op::MulMatId | Op::Rope | Op::RopeBack => t.ne[2],
        _ => t.ne[1].saturating_mul(t.ne[2]).saturating_mul(t.ne[3]),
    };
    batch >= OFFLOAD_MIN_BATCH
}

impl Cuda {
    /// `ggml_backend_cuda_buffer_type_get_alloc_size`, with the scratch that flash attention
    /// keeps behind its result.
    pub fn alloc_size(&self, graph: &Graph, t: TensorId) -> u64 {
        let tensor = &graph[t];
        let bytes = match tensor.op {
            Op::FlashAttnExt => self.flash_attn_size(graph, tensor),
            _ => tensor.n_bytes(),
        };
        bytes.saturating_add(row_padding(tensor.ty, tensor.ne[0]))
    }

    /// The result, then f16 copies of K and V where the kernel reads no other type.
    fn flash_attn_size(&self, graph: &Graph, t: &Tensor) -> u64 {
        let mut bytes = t.n_bytes();
        let &[q, k, v, ..] = t.sources() else {
            return bytes;
        };
        let (needs_k, needs_v) = match self.flash_attn_kernel(graph, t) {
            FlashAttnKernel::Unsupported => (false, false),
            FlashAttnKernel::Vec => fattn::vec_needs_f16(&graph[q], &graph[k], &graph[v]),
            FlashAttnKernel::Tile | FlashAttnKernel::Mma => (true, true),
        };
        // MLA: V is a view into K, so K's copy serves both.
        let v_in_k = graph[v]
            .view_src()
            .is_some_and(|s| s == k || Some(s) == graph[k].view_src());
        for (needed, t) in [(needs_k, &graph[k]), (needs_v && !v_in_k, &graph[v])] {
            if needed && t.ty != Type::F16 {
                let f16 = Type::F16.row_size(t.n_elements().max(0) as u64);
                bytes = align(bytes, 128).saturating_add(f16);
            }
        }
        bytes
    }

    /// `ggml_backend_cuda_device_supports_op`.
    pub fn supports_op(&self, graph: &Graph, node: TensorId) -> bool {
        let t = &graph[node];
        let own = crate::BufferType::device(self.index);
        let elsewhere = |s: &TensorId| {
            let buffer = graph[*s].buffer.filter(|b| b.device_index().is_some());
            buffer.is_some_and(|b| b != own)
        };
        if t.sources().iter().any(elsewhere) {
            return false;
        }
        let Some(&first) = t.sources().first() else {
            return true;
        };
        let a = &graph[first];
        // Every operation that asks for a second source has one; the first stands in otherwise.
        let src = |i: usize| t.source(i).map_or(a, |s| &graph[s]);
        match t.op {
            Op::Unary(_) => a.is_contiguous(),
            Op::Glu(_) => a.is_contiguous_from(1),
            Op::MulMatId if t.flags.contains(Flags::SRC_F32) => false,
            Op::MulMat | Op::MulMatId => supports_mul_mat(a, src(1)),
            Op::GetRows => gets_rows(a.ty, a.ne[0]),
            Op::SetRows => supports_set_rows(t.ty, a.ty),
            Op::Cpy => supports_cpy(a, src(1)),
            Op::Repeat => is_float(a.ty),
            Op::Concat => a.ty == src(1).ty,
            Op::L2Norm | Op::Norm | Op::RmsNorm => a.has_contiguous_rows(),
            Op::Add | Op::Sub | Op::Mul | Op::Div => {
                is_float(a.ty) && is_float(src(1).ty) && is_float(t.ty)
            }
            Op::SsmScan => supports_ssm_scan(a.ne, src(3).ne, src(4).ne),
            Op::GroupNorm => a.is_contiguous(),
            Op::Im2col | Op::Conv2d => a.is_contiguous() && src(1).is_contiguous(),
            Op::Conv2dDw => a.ty == Type::F32,
            Op::Roll => a.ty == Type::F32 && a.is_contiguous(),
            Op::SsmConv => a.ne[1] % 128 == 0,
            Op::Rope | Op::RopeBack => a.nb[0] == a.ty.type_size() && a.is_contiguous_from(2),
            Op::SumRows | Op::Mean => a.ty == Type::F32 && a.has_contiguous_rows(),
            Op::LightningIndexer => supports_lightning_indexer(a, src(1)),
            Op::FlashAttnExt => self.flash_attn_kernel(graph, t) != FlashAttnKernel::Unsupported,
            _ => true,
        }
    }
}

fn is_float(ty: Type) -> bool {
    matches!(ty, Type::F32 | Type::F16)
}

fn supports_mul_mat(a: &Tensor, b: &Tensor) -> bool {
    let no_kernel = matches!(
        a.ty,
        Type::Q8_1
            | Type::TQ1_0
            | Type::TQ2_0
            | Type::I8
            | Type::I16
            | Type::I32
            | Type::I64
            | Type::F64
    );
    a.nb[0] == a.ty.type_size()
        && b.nb[0] == b.ty.type_size()
        && !(b.ty == Type::F16 && a.ty != Type::F16)
        && !no_kernel
}

/// Whether rows of `n` elements of type `ty` can be looked up on a device.
pub fn gets_rows(ty: Type, n: i64) -> bool {
    match ty {
        // blocks of 32 values do not promise rows of whole super-blocks
        Type::IQ4_NL | Type::MXFP4 => n % 256 == 0,
        Type::Q8_1 | Type::Q8_K | Type::TQ1_0 | Type::TQ2_0 | Type::NVFP4 => false,
        Type::I8 | Type::I16 | Type::I64 | Type::F64 => false,
        _ => true,
    }
}

fn supports_set_rows(to: Type, from: Type) -> bool {
    use Type::*;
    let writes = matches!(
        to,
        F32 | F16 | BF16 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | IQ4_NL
    );
    (writes && from == F32) || (to == F16 && from == F16)
}

fn supports_cpy(a: &Tensor, b: &Tensor) -> bool {
    use Type::*;
    let float = |t: Type| matches!(t, F32 | F16 | BF16);
    let packs = |t: Type| matches!(t, Q8_0 | Q4_0 | Q4_1 | Q5_0 | Q5_1);
    match (a.ty, b.ty) {
        (x, y) if float(x) && float(y) => true,
        (F32, y) if packs(y) || matches!(y, IQ4_NL | I32) => true,
        (x, F32) if packs(x) || x == I32 => true,
        (I32, I32) => true,
        (x, y) => x == y && a.is_contiguous() && b.is_contiguous(),
    }
}

fn supports_ssm_scan(state: [i64; 4], a: [i64; 4], b: [i64; 4]) -> bool {
    let [d_state, head_dim, n_head, _] = state;
    if a[0] == 1 {
        // Mamba 2: one decay a head
        (d_state == 128 || d_state == 256) && head_dim % 16 == 0
    } else {
        d_state == 16 && head_dim == 1 && n_head % 128 == 0 && b[1] == 1
    }
}

/// `ggml_cuda_lightning_indexer_supported`: 32 or 64 heads of 128, K of a common type.
fn supports_lightning_indexer(q: &Tensor, k: &Tensor) -> bool {
    use Type::*;
    let aligned = |t: &&Tensor| t.ty.is_quantized() || t.nb[1..].iter().all(|nb| nb % 16 == 0);
    q.ne[0] == 128
        && matches!(q.ne[1], 32 | 64)
        && [q, k].iter().all(aligned)
        && matches!(k.ty, F32 | BF16 | F16 | Q8_0 | Q5_1 | Q5_0 | Q4_1 | Q4_0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compute_capability_reads_and_prints() {
        assert_eq!("8.6".parse(), Ok(ComputeCapability(860)));
        assert_eq!("12.0".parse(), Ok(ComputeCapability::new(12, 0)));
        assert_eq!(ComputeCapability(370).to_string(), "3.7");
        for bad in ["", "8", "8.10", "a.b", "-1.0", "8.6.1"] {
            assert!(bad.parse::<ComputeCapability>().is_err(), "{bad}");
        }
    }
}
