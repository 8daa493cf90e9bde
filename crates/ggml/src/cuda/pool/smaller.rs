//! What the operations of a graph take in the graph's batch or in any smaller one. Most grows with the tokens;
//! partial tiles do not: they are there where tiles fill the device badly, and that may be so with fewer tokens only.

use super::attention::Attention;
use super::matmul::DP4A_ROWS;
use super::{Cuda, Held, MOST_SCANNED, count};
use crate::graph::Tensor;
use crate::{Graph, Op, Type};

/// Tiles are multiples of so many columns wide.
const TILE: i64 = 8;

impl Cuda {
    /// The most that the operation holds; something less where that is not more than `floor` bytes.
    pub(super) fn most_held(
        &self,
        graph: &Graph,
        t: &Tensor,
        attention: &mut Attention,
        floor: u64,
    ) -> Held {
        let own = |attention| self.held(graph, t, attention);
        let (Some(a), Some(b)) = (t.source(0), t.source(1)) else {
            return own(attention);
        };
        let (a, b) = (&graph[a], &graph[b]);
        match t.op {
            Op::FlashAttnExt => attention.most_held(graph, t),
            Op::MulMat if a.ty.is_quantized() && b.ty == Type::F32 => {
                let held = own(attention);
                let most = self.most_of(held, b.ne[1], floor, |n| {
                    self.mul_mat_pool(graph, t, Some(n))
                });
                match a.op {
                    Op::None => most,
                    // rows of a cache, of which there are more with every batch
                    _ => self.with_any_tiles(held, most),
                }
            }
            Op::MulMatId if a.ty.is_quantized() => {
                self.most_of(own(attention), b.ne[2], floor, |n| {
                    self.mul_mat_id_pool(graph, t, Some(n), None)
                })
            }
            Op::SsmScan => self.most_of_scan(graph, t),
            _ => own(attention),
        }
    }

    /// A scan by matrix products: each sequence has to have enough tokens, so that fewer sequences may take more.
    fn most_of_scan(&self, graph: &Graph, t: &Tensor) -> Held {
        let [n_tokens, n_seqs] = t.source(1).map_or([0; 2], |x| {
            let ne = graph[x].ne.map(count);
            [ne[2], ne[3]]
        });
        let all = n_tokens.saturating_mul(n_seqs);
        let batches = (1..=n_seqs).map(|s| [(all / s).min(MOST_SCANNED), s]);
        let held = batches.map(|batch| self.ssm_scan_pool(graph, t, Some(batch)));
        held.max_by_key(|held| held.bytes).unwrap_or(Held::NOTHING)
    }

    /// The most that `held` says of up to `n` tokens; `own` is of all of them.
    fn most_of(&self, own: Held, n: i64, floor: u64, held: impl Fn(i64) -> Held) -> Held {
        let most_partial = self.most_partial_tiles();
        let mut most = own;
        let mut keep = |of: Held| {
            if of.bytes > most.bytes {
                most = of;
            }
            // fewer tokens take less but for partial tiles
            let others = of.bytes.saturating_sub(of.partial_tiles);
            others.saturating_add(most_partial) > most.bytes.max(floor)
        };
        if !keep(own) {
            return most;
        }
        // another kernel takes these
        if n >= DP4A_ROWS {
            keep(held(DP4A_ROWS - 1));
        }
        let mut tokens = (1..=(n - 1).div_euclid(TILE))
            .rev()
            .map(|tiles| tiles * TILE);
        let _ = tokens.try_for_each(|n| keep(held(n)).then_some(()));
        most
    }

    /// `most` with whatever partial tiles there may be, where `own` is a product of tiles.
    fn with_any_tiles(&self, own: Held, most: Held) -> Held {
        if own.cublas {
            return most;
        }
        let others = own.bytes.saturating_sub(own.partial_tiles);
        let bytes = others.saturating_add(self.most_partial_tiles());
        match bytes > most.bytes {
            true => Held {
                bytes,
                is_bound: true,
                ..most
            },
            false => most,
        }
    }
}
