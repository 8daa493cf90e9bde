//! What ggml-cuda takes beside llama.cpp's buffers while it computes: the pool of temporary
//! buffers and cuBLAS's workspace.
//!
//! What an operation takes, buffer by buffer, follows from which kernel runs it, and that from
//! shapes, types and the device. What a pool makes of that depends on its kind ([`PoolKind`]):
//! where the driver manages virtual memory (`ggml_cuda_pool_vmm`) it grows to the most that one
//! operation holds at once and never shrinks, so the order of operations does not matter and the
//! answer is a maximum over nodes. Elsewhere buffers are kept and used again one by one, and the
//! graphs have to be played through in order ([`LegacyPool`]).
//!
//! Modelled, not proved: the figures are ggml's own arithmetic, but how many blocks of a flash
//! attention kernel fit on a multiprocessor depends on registers that only the compiler knows
//! (see `attention`), and a bound stands in where the number of multiprocessors or the routing of
//! tokens to experts is not known. A batch smaller than the graph's can take a little more than
//! the graph, where its tiles fill the device worse: see [`Batches`]. Not covered: memory inside
//! cuBLAS and the driver, CUDA graphs.

mod any_order;
mod attention;
mod conv;
mod kernels;
mod legacy;
mod matmul;
mod mmq;
mod smaller;
mod steps;

use super::{ComputeCapability, Cuda};
use crate::graph::Tensor;
use crate::{BackendId, Graph, Op, Schedule, TensorId, align};
use attention::Attention;

pub use any_order::AnyOrder;
pub use legacy::{Buffers, Demands, LegacyPool, Routes};
pub use steps::{BatchSteps, Step, StepKind, Steps};

/// Granularity of the VMM pool: its size is a multiple of this.
pub const POOL_GRANULARITY: u64 = 2 << 20;
/// Alignment of every buffer from the pool.
const BUFFER_ALIGNMENT: u64 = 128;

const PASCAL: ComputeCapability = ComputeCapability::new(6, 0);
const DP4A: ComputeCapability = ComputeCapability::new(6, 1);
const VOLTA: ComputeCapability = ComputeCapability::new(7, 0);
const TURING: ComputeCapability = ComputeCapability::new(7, 5);
const AMPERE: ComputeCapability = ComputeCapability::new(8, 0);
const GA102: ComputeCapability = ComputeCapability::new(8, 6);
const ORIN: ComputeCapability = ComputeCapability::new(8, 7);
const ADA: ComputeCapability = ComputeCapability::new(8, 9);
const HOPPER: ComputeCapability = ComputeCapability::new(9, 0);
const BLACKWELL: ComputeCapability = ComputeCapability::new(12, 0);
const DGX_SPARK: ComputeCapability = ComputeCapability::new(12, 1);
const RUBIN: ComputeCapability = ComputeCapability::new(13, 0);

/// Multiprocessors of the largest chip below each compute capability, cut-down cards left aside:
/// GK110, GM200, GP100, GP102, GV100, TU102, GA100, GA102, AD102, GB100 (two dies), GB202.
const FULL_CHIPS: [(u32, u64); 10] = [
    (500, 15),
    (600, 24),
    (610, 60),
    (700, 30),
    (750, 84),
    (800, 72),
    (860, 128),
    (890, 84),
    (900, 144),
    (1200, 160),
];
const LARGEST_CHIP: u64 = 192;
/// Tokens of a sequence that are scanned by matrix products, at most.
const MOST_SCANNED: u64 = 8192;

/// How ggml-cuda keeps temporary buffers on a device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum PoolKind {
    /// One range of addresses that memory is mapped into as it is needed.
    #[default]
    Vmm,
    /// Buffers of `cudaMalloc`, kept to be used again: where device or driver have no virtual memory
    /// management, or llama.cpp was built without (`GGML_CUDA_NO_VMM`).
    Legacy,
}

/// Which batches a graph stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Batches {
    /// Its own.
    Own,
    /// Its own and all with fewer tokens: the most that any of them takes.
    UpToOwn,
}

/// What the nodes of one device take from the pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PoolUse {
    /// The most that one operation holds at once, or all that a legacy pool keeps, bytes.
    pub bytes: u64,
    /// How they are kept.
    pub kind: PoolKind,
    /// Of one that maps memory: the most that one operation holds in the graph's own batch. `bytes` is that of smaller ones,
    /// too, which need not run.
    pub own_bytes: u64,
    /// Of a legacy pool: what it keeps behind prompts that fill the context, before which there was nothing, bytes.
    pub filled_bytes: u64,
    /// Of a legacy pool: what it cannot do without, bytes. All that it keeps beyond goes back where memory runs out.
    pub least_bytes: u64,
    /// Some operation goes through cuBLAS, whose workspace is then taken, too.
    pub uses_cublas: bool,
    /// `bytes` is a bound: how much it really is depends on what a graph does not say.
    pub is_bound: bool,
    /// The operation that holds the most; `None` when nothing takes anything.
    pub peak: Option<TensorId>,
}

impl PoolUse {
    /// What the pool asks the driver for: whole granules, or each buffer as it is.
    pub fn pool_bytes(&self) -> u64 {
        match self.kind {
            PoolKind::Vmm => align(self.bytes, POOL_GRANULARITY),
            PoolKind::Legacy => self.bytes,
        }
    }

    /// The same of an empty pool behind prompts that fill the context: less, if buffers are kept.
    pub fn pool_filled_bytes(&self) -> u64 {
        match self.kind {
            PoolKind::Vmm => self.pool_bytes(),
            PoolKind::Legacy => self.filled_bytes,
        }
    }

    /// What it asks for behind the graph's own batch alone.
    pub fn pool_own_bytes(&self) -> u64 {
        match self.kind {
            PoolKind::Vmm => align(self.own_bytes.min(self.bytes), POOL_GRANULARITY),
            PoolKind::Legacy => self.bytes,
        }
    }

    /// What the pool cannot do without.
    pub fn pool_least_bytes(&self) -> u64 {
        match self.kind {
            PoolKind::Vmm => self.pool_bytes(),
            PoolKind::Legacy => self.least_bytes.min(self.bytes),
        }
    }

    /// The larger of two evaluations, for one pool serves them all. Its peak is that of the
    /// larger and means nothing in the other's graph.
    pub fn max(self, other: PoolUse) -> PoolUse {
        let larger = if other.bytes > self.bytes {
            other
        } else {
            self
        };
        let is_same = self.bytes == other.bytes;
        PoolUse {
            uses_cublas: self.uses_cublas || other.uses_cublas,
            is_bound: larger.is_bound || (is_same && other.is_bound),
            own_bytes: self.own_bytes.max(other.own_bytes),
            filled_bytes: self.filled_bytes.max(other.filled_bytes),
            least_bytes: self.least_bytes.max(other.least_bytes),
            ..larger
        }
    }
}

/// What one operation holds.
#[derive(Clone, Copy, Default)]
struct Held {
    /// In whole units of a VMM pool, bytes.
    bytes: u64,
    /// Buffer by buffer, in the order they are taken.
    buffers: Buffers,
    cublas: bool,
    is_bound: bool,
    /// Of `bytes`: partial tiles, which smaller batches may have, too.
    partial_tiles: u64,
    /// Experts compute one after the other, each with the tokens that chose it: up to this many.
    most_routed: i64,
}

impl Held {
    const NOTHING: Held = Held {
        bytes: 0,
        buffers: Buffers::NONE,
        cublas: false,
        is_bound: false,
        partial_tiles: 0,
        most_routed: 0,
    };

    /// One more buffer of the product of `factors`, bytes.
    fn add<const N: usize>(&mut self, factors: [u64; N]) {
        let bytes = factors.iter().fold(1, |a: u64, &n| a.saturating_mul(n));
        self.bytes = self.bytes.saturating_add(align(bytes, BUFFER_ALIGNMENT));
        self.buffers.push(bytes);
    }

    /// Whatever `inner` takes, behind what is held already.
    fn append(&mut self, inner: Held) {
        self.bytes = self.bytes.saturating_add(inner.bytes);
        self.cublas |= inner.cublas;
        self.is_bound |= inner.is_bound;
        self.partial_tiles = self.partial_tiles.saturating_add(inner.partial_tiles);
        inner
            .buffers
            .iter()
            .for_each(|bytes| self.buffers.push(bytes));
    }
}

/// Elements as an unsigned number; negative ones do not occur in a valid graph.
const fn count(n: i64) -> u64 {
    if n > 0 { n as u64 } else { 0 }
}

impl Cuda {
    /// What the splits of `backend` take from the pool when they are computed.
    pub fn pool_use(
        &self,
        graph: &Graph,
        schedule: &Schedule,
        backend: BackendId,
        batches: Batches,
    ) -> PoolUse {
        let own = schedule.splits.iter().filter(|s| s.backend == backend);
        let nodes = own.flat_map(|s| graph.nodes.get(s.nodes.clone()).unwrap_or_default());
        self.pool_use_of(graph, nodes, batches)
    }

    /// What `nodes` take from the pool when this device computes them.
    pub fn pool_use_of<'n>(
        &self,
        graph: &Graph,
        nodes: impl IntoIterator<Item = &'n TensorId>,
        batches: Batches,
    ) -> PoolUse {
        let mut most = PoolUse::default();
        let mut attention = Attention::new(self);
        for &node in nodes {
            let t = &graph[node];
            let held = match batches {
                Batches::Own => self.held(graph, t, &mut attention),
                Batches::UpToOwn => self.most_held(graph, t, &mut attention, most.bytes),
            };
            most.uses_cublas |= held.cublas;
            // never more than of any batch
            if held.bytes > most.own_bytes {
                let own = match batches {
                    Batches::Own => held.bytes,
                    Batches::UpToOwn => self.held(graph, t, &mut attention).bytes,
                };
                most.own_bytes = most.own_bytes.max(own);
            }
            if held.bytes > most.bytes {
                most.bytes = held.bytes;
                most.is_bound = held.is_bound;
                most.peak = Some(node);
            }
        }
        most
    }

    /// What one operation holds when this device computes it.
    #[inline]
    fn held(&self, graph: &Graph, t: &Tensor, attention: &mut Attention) -> Held {
        match t.op {
            Op::MulMat => self.mul_mat_pool(graph, t, None),
            Op::MulMatId => self.mul_mat_id_pool(graph, t, None, None),
            Op::FlashAttnExt => attention.held(graph, t),
            Op::Conv2d => self.conv_2d_pool(graph, t),
            Op::SsmScan => self.ssm_scan_pool(graph, t, None),
            Op::Argsort => argsort_pool(graph, t),
            Op::TopK => top_k_pool(graph, t),
            _ => Held::NOTHING,
        }
    }

    /// cuBLAS's workspace: a `cudaMalloc` of its own when the first product goes through cuBLAS.
    pub fn cublas_workspace_bytes(&self) -> u64 {
        if self.compute_capability >= HOPPER {
            32 << 20
        } else {
            4 << 20
        }
    }

    /// Highest architecture compiled into the build, 0.0 when none runs on the device.
    fn compiled_or_zero(&self) -> ComputeCapability {
        self.compiled.unwrap_or(ComputeCapability(0))
    }

    /// The multiprocessors, or where that is not known those of the largest chip ever made with
    /// this compute capability: what grows with them is then a bound.
    fn multiprocessors(&self) -> (u64, bool) {
        if let Some(n) = self.sm_count {
            return (u64::from(n.max(1)), false);
        }
        let before = |&&(cc, _): &&(u32, u64)| self.compute_capability.0 < cc;
        let full_chip = FULL_CHIPS
            .iter()
            .find(before)
            .map_or(LARGEST_CHIP, |&(_, n)| n);
        (full_chip, true)
    }

    /// This device, or where its number of multiprocessors is not known one with each number that
    /// there may be.
    pub fn with_each_sm_count(self) -> impl Iterator<Item = Cuda> {
        let (most, is_bound) = self.multiprocessors();
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        let least = if is_bound { 1 } else { most };
        (least..=most).map(move |n| Cuda {
            sm_count: Some(n),
            ..self
        })
    }

    /// SSM_SCAN: Mamba 2 over a long prompt runs as matrix products over chunks of tokens. `batch`: `[tokens,
    /// sequences]` of another batch than the graph's.
    fn ssm_scan_pool(&self, graph: &Graph, t: &Tensor, batch: Option<[u64; 2]>) -> Held {
        const CHUNK: u64 = 256;
        const MORE_THAN: u64 = 128;
        let &[states, x, _, decay, b, ..] = t.sources() else {
            return Held::NOTHING;
        };
        let [d_state, head_dim, ..] = graph[states].ne.map(count);
        let [_, n_head, n_tokens, n_seqs] = graph[x].ne.map(count);
        let [n_tokens, s] = batch.unwrap_or([n_tokens, n_seqs]);
        let n_groups = count(graph[b].ne[1]);
        let one_decay_a_head = graph[decay].ne[0] == 1;
        if !one_decay_a_head || self.compute_capability < TURING || head_dim % 8 != 0 {
            return Held::NOTHING;
        }
        if n_tokens <= MORE_THAN || n_tokens > MOST_SCANNED {
            return Held::NOTHING;
        }
        let mut held = Held {
            cublas: true,
            ..Held::NOTHING
        };
        held.add([4, n_head, n_tokens, s]);
        held.add([4, n_head, n_tokens, s]);
        held.add([4, CHUNK, CHUNK, n_groups, s]);
        held.add([2, CHUNK, head_dim, n_head, s]);
        held.add([2, d_state, CHUNK, n_head, s]);
        held.add([4, d_state, CHUNK, n_head, s]);
        held.add([2, CHUNK, CHUNK, n_head, s]);
        held
    }
}

/// Rows that are sorted at once: 64 MiB of them.
fn sorted_rows(keys: &Tensor) -> u64 {
    const CHUNK_BYTES: u64 = 1 << 26;
    let n_rows = keys.ne[1..]
        .iter()
        .fold(1, |a: u64, &n| a.saturating_mul(count(n)));
    (CHUNK_BYTES / keys.nb[1].max(1)).clamp(1, n_rows.max(1))
}

/// TOP_K: sorts into a buffer of its own (CUB before 3.2 has nothing better), then copies.
fn top_k_pool(graph: &Graph, t: &Tensor) -> Held {
    let mut held = Held::NOTHING;
    if let Some(keys) = t.source(0).map(|s| &graph[s]) {
        held.add([4, count(keys.ne[0]), sorted_rows(keys)]);
    }
    held.append(argsort_pool(graph, t));
    held
}

/// ARGSORT: rows that no block can sort go through CUB, 64 MiB of rows at a time.
fn argsort_pool(graph: &Graph, t: &Tensor) -> Held {
    const BLOCK_SORTS: u64 = 1024;
    let Some(keys) = t.source(0).map(|s| &graph[s]) else {
        return Held::NOTHING;
    };
    let n_cols = count(keys.ne[0]);
    if n_cols <= BLOCK_SORTS {
        return Held::NOTHING;
    }
    let rows = sorted_rows(keys);
    let mut held = Held {
        is_bound: true, // CUB's own storage is an estimate
        ..Held::NOTHING
    };
    for _ in 0..3 {
        held.add([4, n_cols, rows]);
    }
    let keys_twice = 2 * align(n_cols.saturating_mul(rows).saturating_mul(4), 256);
    let segments_twice = if rows >= 500 {
        2 * align(rows.saturating_mul(4), 256) + 256
    } else {
        0
    };
    held.add([keys_twice + 256 + segments_twice]);
    held
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Flags, Type};

    fn device(cc: u32, sm_count: Option<u32>) -> Cuda {
        let compute_capability = ComputeCapability(cc);
        Cuda {
            index: 0,
            compute_capability,
            compiled: (cc >= 750).then_some(compute_capability),
            integrated: false,
            sm_count,
            pool: PoolKind::Vmm,
        }
    }

    /// What `rows` tokens through a weight `[k, n]` of type `ty` take.
    fn product(cuda: &Cuda, ty: Type, [k, n]: [i64; 2], rows: i64, flags: &[Flags]) -> PoolUse {
        let mut g = Graph::with_capacity(4);
        let w = g.new_tensor(Op::None, ty, [k, n, 1, 1], &[]);
        let x = g.new_tensor(Op::None, Type::F32, [k, rows, 1, 1], &[]);
        let y = g.mul_mat(w, x);
        flags.iter().for_each(|&f| g[y].flags.insert(f));
        g.expand(y);
        cuda.pool_use_of(&g, &g.nodes, Batches::Own)
    }

    #[test]
    fn a_k80_expands_the_output_matrix() {
        let k80 = device(370, Some(13));
        let shape = [3584, 152_064];
        let many = product(&k80, Type::Q6_K, shape, 512, &[]);
        assert_eq!(many.bytes, 152_064 * 3584 * 4);
        assert!(many.uses_cublas && !many.is_bound && many.peak.is_some());
        // eight rows still go through the vector kernel
        let few = product(&k80, Type::Q6_K, shape, 8, &[]);
        assert_eq!(few.bytes, 8 * 3584 * 36 / 32);
        assert!(!few.uses_cublas);
    }

    #[test]
    fn tiles_that_do_not_fill_the_device_need_a_fixup() {
        let quantised = 512 * 4096 * 144 / 128 + 128 * 144;
        // 32 x 4 tiles on 132 multiprocessors: a wave of tiles; on 80 not
        let fits = product(&device(900, Some(132)), Type::Q4_K, [4096, 4096], 512, &[]);
        assert_eq!(fits.bytes, quantised);
        let tail = product(&device(890, Some(80)), Type::Q4_K, [4096, 4096], 512, &[]);
        assert_eq!(tail.bytes, quantised + 80 * 64 * 1024);
        let bound = product(&device(890, None), Type::Q4_K, [4096, 4096], 512, &[]);
        assert_eq!(bound.bytes, quantised + 144 * 64 * 1024);
        assert!(bound.is_bound && !tail.is_bound);
    }

    #[test]
    fn fewer_tokens_may_fill_the_device_worse() {
        let cuda = device(900, Some(132));
        let mut g = Graph::with_capacity(4);
        let w = g.new_tensor(Op::None, Type::Q4_K, [4096, 4096, 1, 1], &[]);
        let x = g.new_tensor(Op::None, Type::F32, [4096, 512, 1, 1], &[]);
        let y = g.mul_mat(w, x);
        g.expand(y);
        let [own, most] =
            [Batches::Own, Batches::UpToOwn].map(|of| cuda.pool_use_of(&g, &g.nodes, of).bytes);
        assert_eq!(own, 512 * 4096 * 144 / 128 + 128 * 144);
        // 32 x 3 tiles leave a quarter of the multiprocessors idle
        assert_eq!(most, 384 * 4096 * 144 / 128 + 128 * 144 + 132 * 64 * 1024);
    }

    #[test]
    fn a_hadamard_product_takes_nothing() {
        let cuda = device(860, Some(82));
        let held = product(&cuda, Type::F32, [128, 128], 4096, &[Flags::HADAMARD]);
        assert_eq!((held.bytes, held.uses_cublas), (0, false));
        assert!(product(&cuda, Type::F32, [128, 128], 4096, &[]).uses_cublas);
    }

    #[test]
    fn f32_accumulation_expands_an_f16_matrix() {
        let cuda = device(860, Some(82));
        let held = product(&cuda, Type::F16, [128, 4096], 512, &[Flags::PREC_F32]);
        assert_eq!(held.bytes, 128 * 4096 * 4);
        let half = product(&cuda, Type::F16, [128, 4096], 512, &[]);
        assert_eq!(half.bytes, 128 * 512 * 2 + 4096 * 512 * 2);
    }
}
