//! Which flash attention kernel runs (`ggml_cuda_get_best_fattn_kernel` in `fattn.cu`): it decides
//! whether K and V are first expanded to f16.

use super::{ComputeCapability, Cuda};
use crate::graph::Tensor;
use crate::{Flags, Graph, Type};

/// A family of flash attention kernels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlashAttnKernel {
    /// None fits: the node runs on the CPU.
    Unsupported,
    /// One query row at a time, reads quantised K and V.
    Vec,
    /// Without tensor cores.
    Tile,
    /// Tensor cores.
    Mma,
}

const TURING: ComputeCapability = ComputeCapability::new(7, 5);
const ADA: ComputeCapability = ComputeCapability::new(8, 9);

/// Whether the vector kernel expands K and V. It was compiled for equal pairs of f16, q4_0, q8_0
/// and bf16; f32 counts as f16.
pub(super) fn vec_needs_f16(q: &Tensor, k: &Tensor, v: &Tensor) -> (bool, bool) {
    let as_f16 = |ty| if ty == Type::F32 { Type::F16 } else { ty };
    let pair = (as_f16(k.ty), as_f16(v.ty));
    let compiled = matches!(q.ne[0], 64 | 128 | 256)
        && pair.0 == pair.1
        && matches!(pair.0, Type::F16 | Type::Q4_0 | Type::Q8_0 | Type::BF16);
    (
        !compiled || k.ty == Type::F32,
        !compiled || v.ty == Type::F32,
    )
}

/// K and V types some kernel reads, at least through an f16 copy.
fn is_readable(ty: Type) -> bool {
    use Type::*;
    matches!(ty, F32 | F16 | BF16 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0)
}

impl Cuda {
    /// The kernel for the FLASH_ATTN_EXT node `t`.
    pub fn flash_attn_kernel(&self, graph: &Graph, t: &Tensor) -> FlashAttnKernel {
        let ne = t.source(0).map_or([0; 4], |q| graph[q].ne);
        self.flash_attn_kernel_for(graph, t, [ne[1], ne[3]])
    }

    /// The same for another batch of `[tokens, sequences]` than the graph's.
    pub(super) fn flash_attn_kernel_for(
        &self,
        graph: &Graph,
        t: &Tensor,
        batch: [i64; 2],
    ) -> FlashAttnKernel {
        let &[q, k, v, ..] = t.sources() else {
            return FlashAttnKernel::Unsupported;
        };
        let [q, k, v] = [q, k, v].map(|s| &graph[s]);
        let mask = t.source(3).map(|s| &graph[s]);
        if k.ne[2] <= 0 {
            return FlashAttnKernel::Unsupported;
        }
        let gqa_ratio = q.ne[2] / k.ne[2];
        let aligned = |t: &&Tensor| t.ty.is_quantized() || t.nb[1..].iter().all(|nb| nb % 16 == 0);
        let alibi = t.flags.contains(Flags::ALIBI);
        let gqa_opt = gqa_ratio >= 2
            && !alibi
            && k.ne[1] % 256 == 0
            && mask.is_some_and(|mask| [q, k, v, mask].iter().all(aligned));
        let heads_fit = match (k.ne[0], v.ne[0]) {
            (40 | 64 | 72 | 80 | 96 | 112 | 128 | 256, dv) => dv == k.ne[0],
            (192, 128) => gqa_opt && gqa_ratio % 8 == 0,
            (320, 256) => gqa_opt && gqa_ratio % 32 == 0,
            (512, 512) | (576, 512) => gqa_opt,
            _ => false,
        };
        if !heads_fit
            || !is_readable(k.ty)
            || !is_readable(v.ty)
            || mask.is_some_and(|m| m.ne[2] != 1)
        {
            return FlashAttnKernel::Unsupported;
        }
        self.choose([q, k, v], batch, gqa_ratio, gqa_opt)
    }

    fn choose(
        &self,
        [q, k, v]: [&Tensor; 3],
        [n_tokens, n_seqs]: [i64; 2],
        gqa_ratio: i64,
        gqa_opt: bool,
    ) -> FlashAttnKernel {
        let head = q.ne[0];
        let vec_fits = head <= 256 && head % 64 == 0 && head != 192 && k.ne[1] % 256 == 0;
        let quantized = k.ty.is_quantized() || v.ty.is_quantized();
        let ada = self.compute_capability >= ADA;
        let has_mma = self.compiled.is_some_and(|c| c >= TURING) && head != 40 && head != 72;
        let vec_wins = if !has_mma {
            if quantized {
                n_tokens <= 2
            } else {
                n_tokens == 1 && !gqa_opt
            }
        } else if quantized {
            n_tokens <= if ada { 2 } else { 1 } || (!gqa_opt && n_tokens == 1)
        } else {
            let mma_shares_more = gqa_ratio > 4 && (head >= 256 || k.ne[1] >= 8192);
            (ada && n_tokens == 1 && n_seqs == 1 && !mma_shares_more) || (!gqa_opt && n_tokens == 1)
        };
        match (vec_fits && vec_wins, has_mma) {
            (true, _) => FlashAttnKernel::Vec,
            (false, true) => FlashAttnKernel::Mma,
            (false, false) => FlashAttnKernel::Tile,
        }
    }
}
