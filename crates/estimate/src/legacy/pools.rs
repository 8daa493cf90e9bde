//! What devices' pools hold: behind operations in the order of their computing, or in any.

use vramfit_ggml::cuda::{
    AnyOrder, BatchSteps, Cuda, Demands, LegacyPool, PoolKind, PoolUse, Routes, Step,
};
use vramfit_ggml::{BackendId, Graph};

/// A device, or each that it may be, and what operations take there.
pub(crate) struct Player {
    pub device: usize,
    pub backend: BackendId,
    demands: Vec<Demands>,
    batches: Vec<BatchSteps>,
    /// Bytes that the pool cannot do without.
    least: u64,
    /// Which of them it is is not known.
    is_guess: bool,
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

impl Player {
    /// Where the number of multiprocessors is not known, for each that there may be; and for all ways that
    /// tokens may go to experts.
    pub fn new((cuda, backend): (Cuda, BackendId)) -> Self {
        let kinds = cuda.with_each_sm_count();
        let kinds = kinds.flat_map(|cuda| Routes::ALL.map(|r| Demands::new(cuda, r)));
        let demands: Vec<Demands> = kinds.collect();
        Player {
            device: cuda.index,
            backend,
            is_guess: demands.len() > Routes::ALL.len(),
            demands,
            batches: Vec::new(),
            least: 0,
        }
    }

    /// One more batch: `steps` of `graph`.
    pub fn learn(&mut self, graph: &Graph, steps: &[Step]) {
        self.batches
            .push(steps.iter().map(|step| step.kind).collect());
        for demands in &mut self.demands {
            demands.learn(graph, steps);
        }
    }

    /// When all is learned, before the first play: what takes the same is played once.
    pub fn sum_up(&mut self) {
        let least = self.demands.iter().map(Demands::least);
        self.least = least.max().unwrap_or(0);
        let mut apart: Vec<Demands> = Vec::new();
        for demands in self.demands.drain(..) {
            if !apart.iter().any(|other| other.take_the_same(&demands)) {
                apart.push(demands);
            }
        }
        self.demands = apart;
    }

    /// What an empty pool keeps behind batches, which are numbered as they were learned.
    pub fn play(&self, history: &[usize]) -> PoolUse {
        let played = self.demands.iter().map(|d| self.played(d, history));
        let pools: Vec<LegacyPool> = played.collect();
        let bytes = pools.iter().map(LegacyPool::bytes).max().unwrap_or(0);
        PoolUse {
            bytes,
            kind: PoolKind::Legacy,
            filled_bytes: bytes,
            least_bytes: self.least.min(bytes),
            is_bound: self.is_guess || pools.iter().any(LegacyPool::is_bound),
            ..PoolUse::default()
        }
    }

    fn played(&self, demands: &Demands, history: &[usize]) -> LegacyPool {
        let mut pool = LegacyPool::default();
        // of each batch: it changed nothing, when there had been so many changes
        let mut settled = vec![None; self.batches.len()];
        for &number in history {
            let (Some(batch), Some(settled)) = (self.batches.get(number), settled.get_mut(number))
            else {
                continue;
            };
            let before = Some(pool.changes());
            if *settled == before {
                continue;
            }
            pool.compute(demands, batch);
            if before == Some(pool.changes()) {
                *settled = before;
            }
        }
        pool
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
        let bytes = self.asked.bytes(self.any_bytes);
        let held = PoolUse {
            bytes,
            kind: PoolKind::Legacy,
            filled_bytes: bytes,
            least_bytes: self.asked.least(self.any_bytes).min(bytes),
            is_bound: true,
            ..PoolUse::default()
        };
        (self.device, held)
    }
}
