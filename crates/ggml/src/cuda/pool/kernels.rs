//! The kernels of flash attention as data: how many queries a tile takes, threads, shared memory
//! (`fattn.cu` and the tables of `fattn-mma-f16.cuh` and `fattn-tile.cuh`).

use super::attention::Shape;
use super::{ADA, AMPERE, BLACKWELL, Cuda, DGX_SPARK, GA102, HOPPER, ORIN, TURING, VOLTA, count};
use crate::ComputeCapability;

const WARP: u64 = 32;

impl Cuda {
    /// Blocks of `threads` and `shared` bytes that run on one multiprocessor at once.
    pub(super) fn blocks_a_multiprocessor(&self, threads: u64, shared: u64) -> u64 {
        const THREADS: u64 = 2048;
        const REGISTERS: u64 = 65_536;
        const REGISTERS_A_THREAD: u64 = 128;
        let by_threads = (THREADS / threads).min(REGISTERS / (REGISTERS_A_THREAD * threads));
        let by_shared = if shared > 0 {
            self.shared_memory() / (shared + 1024)
        } else {
            u64::MAX
        };
        by_threads.min(by_shared).max(1)
    }

    /// Shared memory that a block can opt in to, bytes.
    fn shared_memory(&self) -> u64 {
        const KIB: [(ComputeCapability, u64); 9] = [
            (BLACKWELL, 99),
            (HOPPER, 227),
            (ADA, 99),
            (ORIN, 163),
            (GA102, 99),
            (AMPERE, 163),
            (TURING, 64),
            (VOLTA, 96),
            (ComputeCapability(0), 48),
        ];
        let from = |(cc, _): &&(ComputeCapability, u64)| self.compute_capability >= *cc;
        KIB.iter().find(from).map_or(48, |&(_, kib)| kib) << 10
    }

    /// Queries a tile and queries that share a head, of the kernel for tensor cores.
    pub(super) fn mma_columns(&self, shape: &Shape) -> [u64; 2] {
        let shared = self.mma_shared(shape);
        let (n, compiled) = (shape.n_tokens, self.compiled_or_zero());
        let total = if shared <= 8 && n <= 8 / shared {
            8
        } else if shared <= 16 && n <= 16 / shared {
            16
        } else if n <= 32 / shared || compiled == TURING {
            32
        } else {
            64
        };
        [total / shared, shared]
    }

    fn mma_shared(&self, shape: &Shape) -> u64 {
        let ratio = shape.gqa_ratio;
        match shape.head {
            192 if ratio.is_multiple_of(16) => 16,
            192 => 8,
            320 => 32,
            576 if ratio == 20 => self.mma_shared_by_20(shape),
            576 if ratio.is_multiple_of(16) => 16,
            576 => 4,
            _ if !shape.shares_heads => 1,
            _ => match ratio {
                ..=1 => 1,
                2 => 2,
                3 | 4 => 4,
                _ => 8,
            },
        }
    }

    /// 20 queries a head (GLM 4.7 Flash) have rules of their own.
    fn mma_shared_by_20(&self, shape: &Shape) -> u64 {
        let (cc, n) = (self.compute_capability, shape.n_tokens);
        let wide = if cc >= DGX_SPARK {
            n <= 8
        } else if cc >= BLACKWELL {
            n <= 4 && shape.n_kv >= 65_536
        } else {
            n <= 4
        };
        if !wide {
            4
        } else if cc < ADA && shape.n_kv > 16_384 {
            32
        } else {
            16
        }
    }

    /// `ggml_cuda_fattn_mma_get_config` for a tile of `columns`.
    pub(super) fn mma_config(&self, shape: &Shape, columns: u64) -> MmaConfig {
        let turing = self.compiled_or_zero() < AMPERE;
        let narrow = columns <= 16;
        let half = count(shape.head) / 2;
        let new = |threads, step, k, v, combined, stages, q_in_registers| MmaConfig {
            threads,
            step,
            k,
            v,
            combined,
            stages,
            q_in_registers,
        };
        match (shape.head, columns) {
            (192, 8) => new(64, 64, 96, 64, 64, 2, true),
            (192, 16) => new(64, 32, 96, 64, 64, 2, true),
            (192, _) => new(128, 32, 96, 64, 64, 2, true),
            (256, _) if turing => new(128, 64, 128, 128, if narrow { 128 } else { 64 }, 2, true),
            (256, 16) => new(256, 64, 128, 128, 128, 2, true),
            (256, 8) => new(128, 64, 128, 128, 128, 2, true),
            (256, _) => new(128, 32, 128, 128, 128, 2, true),
            (320, 32) => new(128, 32, 128, 128, 128, 1, false),
            (320, _) => new(256, 32, 128, 128, 128, 1, false),
            (512 | 576, _) if turing && narrow => new(64, 32, 96, 64, 128, 1, false),
            (512, 32) if turing => new(128, 32, 128, 128, 128, 1, false),
            (512, 8) => new(128, 64, 128, 128, 128, 1, false),
            (512, 16) => new(256, 64, 128, 128, 128, 1, false),
            (512, _) => new(256, 32, 128, 128, 128, 1, false),
            (576, _) if narrow => new(64, 32, 288, 256, 128, 1, false),
            (576, 32) => new(128, 32, 160, 128, 128, 1, false),
            (576, _) => new(256, 32, 160, 128, 128, 1, false),
            (_, 8) => new(128, 128, half, half, half, 2, true),
            _ => new(128, 64, half, half, half, 2, true),
        }
    }

    /// All queries of a tile, and those that share a head, of the kernel without tensor cores.
    pub(super) fn f32_columns(&self, shape: &Shape) -> [u64; 2] {
        let shared = tile_shared(shape);
        let n = shape.n_tokens;
        let total = if shape.head <= 256 && n > 16 / shared {
            32
        } else if n > 8 / shared || shared > 8 {
            16
        } else if n > 4 / shared || shared > 4 {
            8
        } else if n > 2 / shared || shared > 2 {
            4
        } else {
            2
        };
        [total, shared]
    }
}

fn tile_shared(shape: &Shape) -> u64 {
    let ratio = shape.gqa_ratio;
    let few = !(ratio <= 4 && shape.head_v <= 256) || shape.n_tokens <= 16;
    let divides = |n: &u64| ratio.is_multiple_of(*n);
    let choices: &[u64] = match shape.head {
        320 => return 16,
        576 => &[16, 4],
        192 => &[16, 8],
        _ if !few || !shape.is_padded => return 1,
        _ => &[8, 4, 2],
    };
    choices.iter().copied().find(divides).unwrap_or(1)
}

/// `ggml_cuda_fattn_tile_get_config`: threads, and rows of K a step.
pub(super) fn tile_config(head: i64, columns: u64, fast_f16: bool) -> [u64; 2] {
    let by_columns = match columns {
        2 => 64,
        4 => 128,
        _ => 256,
    };
    if fast_f16 {
        return [by_columns, 64];
    }
    match (head, columns) {
        (64, 2 | 16) | (128 | 192 | 256, 2) | (128, 8) => [128, 64],
        (64, 4 | 8) | (128, 4 | 16) | (192 | 256, 4) => [128, 32],
        (64 | 128, 32) => [256, 64],
        _ => [by_columns, 32],
    }
}

/// A kernel for tensor cores.
pub(super) struct MmaConfig {
    pub threads: u64,
    /// Rows of K and V a step.
    pub step: u64,
    /// Pairs of elements of K, V and the result that are in shared memory at once.
    k: u64,
    v: u64,
    combined: u64,
    stages: u64,
    q_in_registers: bool,
}

impl MmaConfig {
    /// Shared memory of a block, bytes.
    pub(super) fn shared_bytes(
        &self,
        shape: &Shape,
        [columns, shared]: [u64; 2],
        cuda: &Cuda,
    ) -> u64 {
        const PAIR: u64 = 4;
        const PADDING: u64 = 4;
        let all = columns * shared;
        let swizzled = self.k.is_multiple_of(32) && self.v.is_multiple_of(32);
        let padding = if swizzled { 0 } else { PADDING };
        let k = self.k + padding;
        let v = if shape.head == 576 {
            k
        } else {
            self.v + padding
        };
        let stages = if cuda.compiled_or_zero() >= AMPERE && shared >= 2 {
            self.stages
        } else {
            0
        };
        let rows = if stages <= 1 { k.max(v) } else { k + v };
        let cache = self.step * rows * PAIR;
        let q = all * (count(shape.head) / 2 + PADDING) * PAIR;
        let mask = columns * (self.step / 2 + PADDING) * PAIR;
        let combined = self.threads / WARP * all.min(16) * (self.combined + PADDING) * PAIR;
        let loop_bytes = if self.q_in_registers {
            q.max(cache + mask)
        } else {
            q + cache + mask
        };
        combined.max(loop_bytes)
    }
}
