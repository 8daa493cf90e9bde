//! MUL_MAT and MUL_MAT_ID: which kernel multiplies (`ggml_cuda_mul_mat` in `ggml-cuda.cu`) and
//! what it holds from the pool.

use super::{
    ADA, AMPERE, BLACKWELL, Cuda, DGX_SPARK, DP4A, Held, ORIN, PASCAL, RUBIN, TURING, VOLTA, count,
};
use crate::cuda::MATRIX_ROW_PADDING;
use crate::graph::Tensor;
use crate::{Flags, Graph, Type, align};

/// Most rows that the vector kernels take.
const VECTOR_ROWS: i64 = 8;
/// Without tensor cores in the compiled code, cards that have them use cuBLAS from here on.
pub(super) const DP4A_ROWS: i64 = 64;

/// One side of a product.
#[derive(Clone, Copy)]
struct Side<'a> {
    ty: Type,
    ne: [i64; 4],
    nb: [u64; 4],
    /// Where its elements lie; `None` for a buffer of the pool, which has no gaps.
    tensor: Option<&'a Tensor>,
}

impl<'a> Side<'a> {
    fn of(t: &'a Tensor) -> Side<'a> {
        Side {
            ty: t.ty,
            ne: t.ne,
            nb: t.nb,
            tensor: Some(t),
        }
    }

    fn is_contiguous(&self) -> bool {
        self.tensor.is_none_or(Tensor::is_contiguous)
    }

    /// `ggml_is_contiguously_allocated`: permuted perhaps, but without gaps.
    fn is_dense(&self) -> bool {
        let bytes = |t: &Tensor| t.ty.row_size(count(t.n_elements()));
        self.tensor.is_none_or(|t| t.n_bytes() == bytes(t))
    }

    /// `ggml_is_contiguous_2`.
    fn planes_follow(&self) -> bool {
        self.tensor.is_none_or(|t| t.is_contiguous_from(2))
    }

    fn elements(&self) -> u64 {
        self.ne
            .iter()
            .fold(1, |a: u64, &n| a.saturating_mul(count(n)))
    }

    /// Matrices over dimensions 2 and 3.
    fn planes(&self) -> u64 {
        count(self.ne[2]).saturating_mul(count(self.ne[3]))
    }

    /// Rows can be read two elements at a time.
    fn reads_in_pairs(&self) -> bool {
        let size = self.ty.type_size();
        self.nb[0] == size && self.nb[1..].iter().all(|nb| nb % (2 * size) == 0)
    }
}

/// `quantize_row_q8_1_cuda`'s result: blocks of 32 elements in 36 bytes, rows padded.
pub(super) fn padded_row(k: i64) -> u64 {
    align(count(k), MATRIX_ROW_PADDING as u64)
}

impl Cuda {
    /// `columns`: of another batch than the graph's.
    pub(super) fn mul_mat_pool(&self, graph: &Graph, t: &Tensor, columns: Option<i64>) -> Held {
        let &[a, b, ..] = t.sources() else {
            return Held::NOTHING;
        };
        let (a, b) = (&graph[a], &graph[b]);
        let by_butterflies = t.flags.contains(Flags::HADAMARD)
            && matches!(b.ne[0], 64 | 128 | 256 | 512)
            && b.is_contiguous()
            && t.is_contiguous();
        if by_butterflies {
            return Held::NOTHING;
        }
        let prec_f32 = t.flags.contains(Flags::PREC_F32);
        let mut b = Side::of(b);
        b.ne[1] = columns.unwrap_or(b.ne[1]);
        self.product_pool(Side::of(a), b, prec_f32)
    }

    /// `a [k, n] * b [k, rows]`, by the first kernel that fits.
    fn product_pool(&self, a: Side, b: Side, prec_f32: bool) -> Held {
        let rows = b.ne[1];
        if b.ty != Type::F32 {
            return self.cublas_pool(a, b, prec_f32);
        }
        if self.uses_mmvf(&a, rows) || self.is_transposed_vector(&a, &b) || self.uses_mmf(&a, rows)
        {
            return Held::NOTHING;
        }
        if a.ty.is_quantized() && rows <= self.mmvq_rows(a.ty) {
            return mmvq_pool(&b);
        }
        if self.uses_mmq(a.ty, rows, false) {
            return self.mmq_pool(a.ty, a.ne[1], b.ne);
        }
        self.cublas_pool(a, b, prec_f32)
    }

    /// A row times a matrix, done as the matrix times a vector.
    fn is_transposed_vector(&self, a: &Side, b: &Side) -> bool {
        a.ne[1] == 1
            && b.ne[1] > VECTOR_ROWS
            && b.planes() == 1
            && a.ty == Type::F32
            && a.is_contiguous()
            && b.is_contiguous()
            && self.uses_mmvf(b, 1)
    }

    /// `ggml_cuda_should_use_mmvf`: a float matrix times a few vectors.
    fn uses_mmvf(&self, a: &Side, rows: i64) -> bool {
        if a.ne[0] % 2 != 0 || !a.reads_in_pairs() {
            return false;
        }
        let (cc, ampere) = (self.compute_capability, self.compiled_or_zero() >= AMPERE);
        let is_small = a.ne[1] <= 512 || a.planes() == 1;
        let tensor_cores_from = match a.ty {
            Type::F32 if ampere || cc < TURING => return rows <= 3,
            Type::F32 => return rows <= 4,
            Type::F16 => VOLTA,
            Type::BF16 => AMPERE,
            _ => return false,
        };
        if ampere {
            is_small && rows == 1
        } else if cc >= ADA {
            is_small && rows <= 4
        } else if cc >= tensor_cores_from {
            is_small && rows <= 3
        } else {
            rows <= VECTOR_ROWS
        }
    }

    /// `ggml_cuda_should_use_mmf` for MUL_MAT: a float matrix times up to 16 vectors.
    fn uses_mmf(&self, a: &Side, rows: i64) -> bool {
        rows <= 16 && self.has_mmf(a)
    }

    /// There is an MMF kernel for `a`.
    fn has_mmf(&self, a: &Side) -> bool {
        let compiled = self.compiled_or_zero();
        let cores = match a.ty {
            Type::F32 | Type::BF16 => compiled >= AMPERE,
            Type::F16 => compiled == VOLTA || compiled >= TURING,
            _ => false,
        };
        cores && {
            let warp_elements = 32 * (4 / a.ty.type_size()) as i64;
            a.ne[0] % warp_elements == 0 && a.ne[1] % 32 == 0 && a.reads_in_pairs()
        }
    }

    /// `ggml_cuda_should_use_mmvq`: rows up to which a quantised matrix is read once a row.
    fn mmvq_rows(&self, ty: Type) -> i64 {
        use Type::*;
        match (self.compute_capability, ty) {
            (ADA | VOLTA, Q2_K) => 4,
            (ADA | VOLTA, Q3_K) => 6,
            (VOLTA, Q4_K) => 5,
            (VOLTA, Q5_K) => 6,
            (VOLTA, Q6_K) => 7,
            (BLACKWELL, Q2_K | Q3_K | Q4_K) => 5,
            (BLACKWELL, Q5_K) => 6,
            (BLACKWELL, Q6_K) => 7,
            (DGX_SPARK, Q2_K) => 6,
            (ORIN, Q2_K | Q3_K | Q4_K | Q5_K | Q6_K) => 1,
            _ => VECTOR_ROWS,
        }
    }

    /// `ggml_cuda_should_use_mmq`: quantised tiles, without expanding the matrix.
    fn uses_mmq(&self, ty: Type, rows: i64, has_experts: bool) -> bool {
        use Type::*;
        let no_kernel = matches!(ty, IQ1_M | Q8_1 | Q8_K | TQ1_0 | TQ2_0);
        let (cc, compiled) = (self.compute_capability, self.compiled_or_zero());
        if !ty.is_quantized() || no_kernel {
            false
        } else if compiled >= TURING {
            true
        } else if compiled < DP4A {
            cc >= PASCAL && has_experts
        } else {
            cc < VOLTA || rows < DP4A_ROWS
        }
    }

    /// `ggml_cuda_mul_mat_cublas`: both sides in the type it computes in.
    fn cublas_pool(&self, a: Side, b: Side, prec_f32: bool) -> Held {
        let compute = self.cublas_type(a.ty, b.ne[1], prec_f32);
        let size = compute.type_size();
        let mut held = Held {
            cublas: true,
            ..Held::NOTHING
        };
        for side in [&a, &b] {
            if side.ty != compute {
                held.add([size, side.elements()]);
            }
        }
        if compute == Type::F16 && self.compute_capability != VOLTA {
            held.add([size, count(a.ne[1]), count(b.ne[1]), b.planes()]);
        }
        if b.planes() != 1 {
            // an expanded matrix without gaps keeps its order, one with gaps is made anew
            let follows = |s: &Side| s.planes_follow() || (s.ty != compute && !s.is_dense());
            let is_broadcast = a.ne[2] != b.ne[2] || a.ne[3] != b.ne[3];
            if is_broadcast || !follows(&a) || !follows(&b) {
                held.add([16, b.planes()]);
                held.add([8, b.planes()]);
            }
        }
        held
    }

    fn cublas_type(&self, ty: Type, rows: i64, prec_f32: bool) -> Type {
        let cc = self.compute_capability;
        let fast_f16 = cc >= PASCAL && cc != DP4A;
        match ty {
            _ if prec_f32 => Type::F32,
            Type::F16 if !fast_f16 => Type::F32,
            Type::BF16 if cc < AMPERE && rows > if cc >= VOLTA { 8 } else { 128 } => Type::F32,
            Type::F16 | Type::BF16 => ty,
            _ if ty.is_quantized() && fast_f16 => Type::F16,
            _ => Type::F32,
        }
    }

    /// `n_tokens`: of another batch than the graph's. `routed`: how many of them chose one expert, where each
    /// expert's product is one of its own; at worst all.
    pub(super) fn mul_mat_id_pool(
        &self,
        graph: &Graph,
        t: &Tensor,
        n_tokens: Option<i64>,
        routed: Option<i64>,
    ) -> Held {
        let &[a, b, ids, ..] = t.sources() else {
            return Held::NOTHING;
        };
        let (a, mut b) = (Side::of(&graph[a]), Side::of(&graph[b]));
        b.ne[2] = n_tokens.unwrap_or(b.ne[2]);
        let (n_used, n_tokens) = (count(graph[ids].ne[0]), b.ne[2]);
        if a.ty.is_quantized() && n_tokens <= self.mmvq_expert_tokens(a.ty) {
            return mmvq_pool(&b);
        }
        let n_experts = a.ne[2];
        let rows = count(n_tokens).saturating_mul(n_used);
        let by_mmq = self.uses_mmq(a.ty, n_tokens, true);
        let most_mmf_tokens = if a.ne[1] <= 1024 { 512 } else { 128 };
        let by_mmf = !by_mmq && n_tokens <= most_mmf_tokens && self.has_mmf(&a);
        if !by_mmq && !by_mmf {
            return self.expert_by_expert_pool(a, b, rows, routed.unwrap_or(n_tokens));
        }
        let mut held = Held::NOTHING;
        if by_mmq || n_tokens > 16 {
            held.add([4, rows]);
            held.add([4, rows]);
            held.add([4, count(n_experts) + 1]);
        }
        if by_mmq {
            let shape = [b.ne[0], a.ne[1]];
            let tiles = self.mmq_experts_pool(a.ty, shape, n_experts, b.ne[1], n_tokens, rows);
            held.append(tiles);
        }
        held
    }

    /// Rows sorted by expert, then a product an expert: at worst all tokens want the same one.
    fn expert_by_expert_pool(&self, a: Side, b: Side, rows: u64, routed: i64) -> Held {
        let slow_f16 = a.ty == Type::F16 && self.cublas_type(a.ty, 1, false) == Type::F32;
        let sorted_type = if slow_f16 || a.ty.is_quantized() {
            Type::F32
        } else {
            a.ty
        };
        let sorted = Side {
            ty: sorted_type,
            ne: [b.ne[0], routed, 1, 1],
            nb: crate::contiguous_strides(sorted_type, [b.ne[0], routed, 1, 1]),
            tensor: None,
        };
        let mut expert = a;
        expert.ne[2] = 1;
        let mut held = Held {
            is_bound: true,
            most_routed: b.ne[2],
            ..Held::NOTHING
        };
        held.add([8, rows]);
        held.add([sorted_type.type_size(), rows, count(b.ne[0])]);
        held.add([4, rows, count(a.ne[1])]);
        held.append(self.product_pool(expert, sorted, false));
        held
    }

    /// `get_mmvq_mmid_max_batch`.
    fn mmvq_expert_tokens(&self, ty: Type) -> i64 {
        use Type::*;
        let cc = self.compute_capability;
        if cc == VOLTA || cc >= ADA {
            return VECTOR_ROWS;
        }
        if cc >= TURING {
            return match ty {
                Q3_K => 5,
                IQ3_S => 6,
                IQ2_S | IQ3_XXS | MXFP4 | Q2_K => 7,
                _ => VECTOR_ROWS,
            };
        }
        match ty {
            IQ2_S | IQ3_S | IQ3_XXS | MXFP4 | NVFP4 | Q2_K | Q3_K | Q6_K | Q8_0 => 4,
            IQ2_XS | IQ2_XXS | IQ4_XS | Q4_K | Q5_K => 5,
            IQ1_S | IQ1_M | IQ4_NL | Q4_0 | Q4_1 | Q5_0 | Q5_1 => 6,
            _ => VECTOR_ROWS,
        }
    }

    /// Blackwell's own FP4 tiles.
    pub(super) fn has_native_fp4(&self, ty: Type) -> bool {
        let compiled = self.compiled_or_zero();
        matches!(ty, Type::MXFP4 | Type::NVFP4) && compiled >= BLACKWELL && compiled < RUBIN
    }
}

/// MMVQ: the vectors as q8_1.
fn mmvq_pool(b: &Side) -> Held {
    let mut held = Held::NOTHING;
    let blocks = padded_row(b.ne[0]) / Type::Q8_1.block_size();
    held.add([b.planes(), count(b.ne[1]), blocks, Type::Q8_1.type_size()]);
    held
}
