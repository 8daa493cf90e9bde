//! What devices' pools hold: behind operations in the order of their computing, or in any.

use vramfit_ggml::cuda::{AnyOrder, Cuda, LegacyPool, PoolKind, PoolUse, Routes, Step};
use vramfit_ggml::{BackendId, Graph};

/// The pool of one device, or of each that it may be.
pub(crate) struct Pools {
    device: usize,
    pub backend: BackendId,
    kinds: Vec<(Cuda, LegacyPool)>,
}

/// What is asked for in an order that is not known.
pub(super) struct Asked {
    pub device: usize,
    pub backend: BackendId,
    pub cuda: Cuda,
    pub asked: AnyOrder,
    /// Of these requests all smaller ones are asked for as well, bytes.
    pub any_bytes: u64,
    /// Shares of what one device would be asked for.
    pub is_shared: bool,
}

fn held(bytes: u64, is_bound: bool) -> PoolUse {
    PoolUse {
        bytes,
        kind: PoolKind::Legacy,
        is_bound,
        ..PoolUse::default()
    }
}

impl Pools {
    /// Empty ones. Where the number of multiprocessors is not known, one for each that there may be; and
    /// for all ways that tokens may go to experts.
    pub fn new((cuda, backend): (Cuda, BackendId)) -> Self {
        let kinds = cuda.with_each_sm_count();
        let kinds = kinds.flat_map(|cuda| Routes::ALL.map(|r| (cuda, LegacyPool::new(r))));
        Pools {
            device: cuda.index,
            backend,
            kinds: kinds.collect(),
        }
    }

    /// Whether any of them had to grow.
    pub fn compute(&mut self, graph: &Graph, steps: &[Step]) -> bool {
        let mut grew = false;
        for (cuda, pool) in &mut self.kinds {
            let before = pool.bytes();
            pool.compute(cuda, graph, steps);
            grew |= pool.bytes() != before;
        }
        grew
    }

    pub fn held(&self) -> (usize, PoolUse) {
        let largest = self.kinds.iter().map(|(_, pool)| pool.bytes()).max();
        let is_guess = self.kinds.len() > Routes::ALL.len();
        let is_bound = is_guess || self.kinds.iter().any(|(_, pool)| pool.is_bound());
        (self.device, held(largest.unwrap_or(0), is_bound))
    }
}

impl Asked {
    pub fn of((cuda, backend): (Cuda, BackendId)) -> Self {
        Asked {
            device: cuda.index,
            backend,
            cuda,
            asked: AnyOrder::default(),
            any_bytes: 0,
            is_shared: false,
        }
    }

    pub fn held(&self) -> (usize, PoolUse) {
        (self.device, held(self.asked.bytes(self.any_bytes), true))
    }
}
