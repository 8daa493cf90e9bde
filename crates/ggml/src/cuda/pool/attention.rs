//! FLASH_ATTN_EXT: what the launch holds (`launch_fattn` in `fattn-common.cuh` and the tables of
//! its kernels). The f16 copies of K and V are in the compute buffer, not here.
//!
//! Work is cut so that it fills the device, which takes how many blocks fit on a multiprocessor.
//! Only the driver knows that, from the registers the compiler gave each kernel. Assumed here:
//! 128 registers a thread, 2048 threads and the device's shared memory. The large kernels take
//! more registers, so the assumption errs on the side of more memory.

use super::kernels::tile_config;
use super::{ADA, Cuda, DP4A, Held, PASCAL, count};
use crate::cuda::FlashAttnKernel;
use crate::graph::Tensor;
use crate::{Flags, Graph, Type};

/// `FATTN_KQ_STRIDE`: the cache is padded to this.
const CACHE_PADDING: i64 = 256;
/// Whole tiles are fine from this efficiency on, percent.
const FULL_ENOUGH: u64 = 75;
/// More waves are not tried once the device is this full, percent.
const VERY_FULL: u64 = 95;
/// Blocks may be left out for an even share, percent.
const MOST_LEFT_OUT: u64 = 5;
/// Shapes that alternate between layers at most: with a sliding window and without.
const REMEMBERED: usize = 2;

/// The shape of one attention.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// Elements of a row of Q and K.
    pub head: i64,
    /// Elements of a row of V.
    pub head_v: u64,
    pub n_tokens: u64,
    pub n_kv: u64,
    n_heads_kv: u64,
    n_seqs: u64,
    /// Heads of Q for one of K and V.
    pub gqa_ratio: u64,
    /// The cache is padded.
    pub is_padded: bool,
    /// Queries that share a head of K and V may be put side by side.
    pub shares_heads: bool,
    n_elements: u64,
}

impl Shape {
    /// Of a batch of `n_seqs` with `n_tokens` each.
    fn with_batch(self, [n_tokens, n_seqs]: [u64; 2]) -> Shape {
        let a_token = self.n_elements / self.n_tokens.saturating_mul(self.n_seqs).max(1);
        Shape {
            n_tokens,
            n_seqs,
            n_elements: a_token.saturating_mul(n_tokens).saturating_mul(n_seqs),
            ..self
        }
    }

    fn of(graph: &Graph, t: &Tensor) -> Option<Shape> {
        let &[q, k, v, mask, ..] = t.sources() else {
            return None;
        };
        let tensors = [q, k, v, mask].map(|s| &graph[s]);
        let [q, k, v, _] = tensors;
        let aligned = |t: &&Tensor| t.ty.is_quantized() || t.nb[1..].iter().all(|nb| nb % 16 == 0);
        let alibi = t.flags.contains(Flags::ALIBI);
        let is_padded = k.ne[1] % CACHE_PADDING == 0;
        Some(Shape {
            head: q.ne[0],
            head_v: count(v.ne[0]),
            n_tokens: count(q.ne[1]),
            n_kv: count(k.ne[1]),
            n_heads_kv: count(k.ne[2]),
            n_seqs: count(q.ne[3]),
            gqa_ratio: count(q.ne[2]).checked_div(count(k.ne[2]))?,
            is_padded,
            shares_heads: is_padded && !alibi && tensors.iter().all(aligned),
            n_elements: count(t.n_elements()),
        })
    }

    /// Tiles of `[columns, shared]` queries.
    fn tiles(&self, [columns, shared]: [u64; 2]) -> u64 {
        self.n_tokens
            .div_ceil(columns)
            .saturating_mul(self.gqa_ratio.div_ceil(shared))
            .saturating_mul(self.n_heads_kv)
            .saturating_mul(self.n_seqs)
    }

    /// The mask is scanned for parts to leave out: an index a tile.
    fn add_scan(&self, held: &mut Held, columns: u64) {
        if self.is_padded && (self.n_tokens >= 1024 || self.n_seqs > 1) {
            held.add([4, self.n_tokens.div_ceil(columns), self.n_seqs]);
        }
    }
}

/// How often K and V are cut so that parts of a tile run side by side, for given tiles, most
/// parts and blocks a multiprocessor.
type Cuts = ([u64; 3], u64);

/// The attentions of one graph.
pub(super) struct Attention<'a> {
    cuda: &'a Cuda,
    n_sms: u64,
    /// The number of multiprocessors is the most there can be.
    is_bound: bool,
    cuts: [Cuts; REMEMBERED],
    next: usize,
    /// What the last shapes hold at most.
    most: Vec<([Type; 2], Shape, Held)>,
}

impl<'a> Attention<'a> {
    pub fn new(cuda: &'a Cuda) -> Self {
        let (n_sms, is_bound) = cuda.multiprocessors();
        Attention {
            cuda,
            n_sms,
            is_bound,
            cuts: [([0; 3], 1); REMEMBERED],
            next: 0,
            most: Vec::new(),
        }
    }

    pub fn held(&mut self, graph: &Graph, t: &Tensor) -> Held {
        let Some(shape) = Shape::of(graph, t) else {
            return Held::NOTHING;
        };
        self.held_by(self.cuda.flash_attn_kernel(graph, t), &shape)
    }

    /// The most in this batch or any smaller one.
    ///
    /// A longer cache never takes less: more parts of it run side by side.
    pub fn most_held(&mut self, graph: &Graph, t: &Tensor) -> Held {
        let (Some(shape), &[_, k, v, ..]) = (Shape::of(graph, t), t.sources()) else {
            return Held::NOTHING;
        };
        let types = [k, v].map(|s| graph[s].ty);
        let known = self.most.iter().find(|m| (m.0, m.1) == (types, shape));
        if let Some(&(.., held)) = known {
            return held;
        }
        let mut most = self.held(graph, t);
        for batch in smaller_batches(&shape) {
            let signed = batch.map(|n| i64::try_from(n).unwrap_or(i64::MAX));
            let kernel = self.cuda.flash_attn_kernel_for(graph, t, signed);
            let held = self.held_by(kernel, &shape.with_batch(batch));
            if held.bytes > most.bytes {
                most = held;
            }
        }
        self.most.push((types, shape, most));
        most
    }

    fn held_by(&mut self, kernel: FlashAttnKernel, shape: &Shape) -> Held {
        match kernel {
            FlashAttnKernel::Unsupported => Held::NOTHING,
            FlashAttnKernel::Vec => {
                let columns = if shape.n_tokens == 1 { 1 } else { 2 };
                self.in_parts(shape, [columns, 1], 128, count(shape.head))
            }
            FlashAttnKernel::Tile => {
                let [columns, shared] = self.cuda.f32_columns(shape);
                let fast_f16 =
                    self.cuda.compiled_or_zero() >= PASCAL && self.cuda.compiled_or_zero() != DP4A;
                let [threads, step] = tile_config(shape.head, columns, fast_f16);
                self.in_parts(shape, [(columns / shared).max(1), shared], threads, step)
            }
            FlashAttnKernel::Mma => self.along_cache(shape),
        }
    }

    /// Kernels without stream-k: parts of the cache side by side, each with a result of its own.
    fn in_parts(&mut self, shape: &Shape, tile: [u64; 2], threads: u64, step: u64) -> Held {
        let mut held = Held::NOTHING;
        shape.add_scan(&mut held, tile[0]);
        let blocks_a_sm = self.cuda.blocks_a_multiprocessor(threads, 0);
        let most = shape.n_kv.div_ceil(step.max(1));
        let parts = self.parts([shape.tiles(tile), most, blocks_a_sm]);
        if parts > 1 {
            held.add([4, parts, shape.n_elements]);
            held.add([8, parts, shape.n_elements / shape.head_v.max(1)]);
            held.is_bound = self.is_bound;
        }
        held
    }

    /// Remembers the last answers, for most layers ask the same.
    fn parts(&mut self, question: [u64; 3]) -> u64 {
        if let Some((_, answer)) = self.cuts.iter().find(|(q, _)| *q == question) {
            return *answer;
        }
        let [tiles, most, blocks] = question;
        let sms = if self.is_bound { 1 } else { self.n_sms }..=self.n_sms;
        let answer = sms
            .map(|n| parts(tiles, most, blocks, n.saturating_mul(blocks)))
            .max()
            .unwrap_or(1);
        self.cuts[self.next % REMEMBERED] = (question, answer);
        self.next += 1;
        answer
    }

    /// Stream-k: blocks take equal shares of all tiles; what ends within a tile is kept aside.
    fn along_cache(&self, shape: &Shape) -> Held {
        let [columns, shared] = self.cuda.mma_columns(shape);
        let config = self.cuda.mma_config(shape, columns * shared);
        let smem = config.shared_bytes(shape, [columns, shared], self.cuda);
        let blocks_a_sm = self.cuda.blocks_a_multiprocessor(config.threads, smem);
        let most = self.n_sms.saturating_mul(blocks_a_sm);
        let mut held = Held::NOTHING;
        shape.add_scan(&mut held, columns);
        let tiles = shape.tiles([columns, shared]).max(1);
        let n_blocks = if self.is_bound {
            most
        } else {
            let raw = most.min(tiles.saturating_mul(shape.n_kv.div_ceil(config.step)));
            self.stream_k_blocks(tiles, most, raw)
        };
        if self.is_bound || !tiles.is_multiple_of(n_blocks) {
            held.add([8, n_blocks, columns * shared, 2 + shape.head_v / 2]);
            held.is_bound = self.is_bound;
        }
        held
    }

    /// Blocks that are launched for `tiles`: one each where that is good enough.
    fn stream_k_blocks(&self, tiles: u64, most: u64, raw: u64) -> u64 {
        let efficiency = tiles.saturating_mul(100) / tiles.div_ceil(most).saturating_mul(most);
        if self.cuda.compute_capability < ADA && efficiency >= FULL_ENOUGH {
            return tiles;
        }
        let even = raw / tiles * tiles;
        if even > 0 && 100 * (raw - even) / raw <= MOST_LEFT_OUT {
            even
        } else {
            raw
        }
    }
}

/// Batches `[tokens, sequences]` that between them have every number of tiles that a smaller one has: tiles take
/// multiples of 8 tokens, but for the narrowest.
fn smaller_batches(shape: &Shape) -> impl Iterator<Item = [u64; 2]> {
    const TILE: u64 = 8;
    const NARROW: u64 = 16;
    let all = shape.n_tokens.saturating_mul(shape.n_seqs);
    let n_kv = shape.n_kv;
    (1..=shape.n_seqs).flat_map(move |n_seqs| {
        // no sequence is longer than its cache
        let most = (all / n_seqs.max(1)).min(n_kv);
        let wide = (NARROW / TILE..=most / TILE).map(|n| n * TILE);
        let narrow = 1..=most.min(NARROW);
        wide.chain(narrow).chain([most]).map(move |n| [n, n_seqs])
    })
}

/// Parts that fill the device best, at least as many as fit on a multiprocessor.
fn parts(tiles: u64, most: u64, blocks_a_sm: u64, blocks_a_wave: u64) -> u64 {
    let first = blocks_a_sm.min(most);
    let (mut best, mut fewest_waves, mut highest) = (first, 0, 0);
    for parts in first..=most {
        let blocks = tiles.saturating_mul(parts);
        let waves = blocks.div_ceil(blocks_a_wave).max(1);
        if highest >= VERY_FULL && waves > fewest_waves {
            break;
        }
        let efficiency = blocks.saturating_mul(100) / waves.saturating_mul(blocks_a_wave);
        if efficiency > highest {
            (best, fewest_waves, highest) = (parts, waves, efficiency);
        }
    }
    best
}
