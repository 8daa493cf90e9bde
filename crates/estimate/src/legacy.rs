//! Devices whose pool keeps single buffers: what it holds depends on the order of everything computed
//! before. Played through are prompts that fill the context, batch by batch and all sequences side by side, then
//! one token a sequence.
//!
//! Modelled: shorter prompts, sequences one after the other or a warm-up come to other buffers, and may come to more. A
//! bound where a context takes too many batches to be played, or where what a batch asks for does not
//! follow from how full the context is.

use crate::Error;
use crate::breakdown::Pass;
use crate::simulate::{Context, Needs};
use std::collections::BTreeSet;
use vramfit_arch::Batch;
use vramfit_ggml::cuda::{AnyOrder, Cuda, LegacyPool, PoolKind, PoolUse, Step, Steps};
use vramfit_ggml::{Backend, BackendId, Graph};

/// Graphs of a prompt that are played, at most: beyond it takes seconds.
const MOST_PLAYED: i64 = 128;
/// Batches of `n_batch` that a model without attention is played through: its graphs do not change.
const ROUNDS: i64 = 4;

/// The pool of one device, or of each that it may be.
struct Pools {
    device: usize,
    backend: BackendId,
    kinds: Vec<(Cuda, LegacyPool)>,
}

/// What is asked for in an order that is not known.
struct Asked {
    device: usize,
    backend: BackendId,
    cuda: Cuda,
    asked: AnyOrder,
    /// Of these requests all smaller ones are asked for as well, bytes.
    any_bytes: u64,
    /// Shares of what one device would be asked for.
    is_shared: bool,
}

/// A model's prompts.
#[derive(Clone, Copy)]
struct Prompt {
    n_seqs: i64,
    /// Tokens of all sequences.
    n_all: i64,
    /// Tokens that are handed over at once, and of these computed at once.
    n_batch: i64,
    n_ubatch: i64,
    /// Sequences that have a cache of their own.
    n_streams: i64,
    /// Every token has an output.
    all_outputs: bool,
    /// Otherwise, of a batch's last tokens.
    n_outputs: i64,
}

fn held(bytes: u64, is_bound: bool) -> PoolUse {
    PoolUse {
        bytes,
        kind: PoolKind::Legacy,
        is_bound,
        ..PoolUse::default()
    }
}

impl Prompt {
    /// The batches, in order.
    fn batches(self) -> impl Iterator<Item = Batch> {
        let mut n_done = 0;
        std::iter::from_fn(move || {
            let left = self.n_all - n_done;
            if left <= 0 {
                return None;
            }
            let to_end = left.min(self.n_batch - n_done % self.n_batch);
            let n_tokens = self.n_ubatch.min(to_end).max(1);
            n_done += n_tokens;
            Some(self.batch(n_tokens, n_tokens == to_end, n_done / self.n_streams))
        })
    }

    fn batch(self, n_tokens: i64, ends: bool, n_filled: i64) -> Batch {
        let n_tokens = n_tokens.div_euclid(self.n_seqs).max(1) * self.n_seqs;
        let n_outputs = match (self.all_outputs, ends) {
            (true, _) => n_tokens,
            (false, true) => self.n_seqs.min(n_tokens).min(self.n_outputs),
            (false, false) => 0,
        };
        Batch {
            n_tokens,
            n_outputs,
            n_seqs: self.n_seqs,
            n_filled,
        }
    }

    /// Some of them that have all shapes but those in between: while the context is empty, and when it is full.
    fn ends(self) -> [Vec<Batch>; 2] {
        let at = |n_filled| {
            let rest = |n_tokens: i64| n_tokens % self.n_ubatch;
            let rests = [rest(self.n_batch), rest(self.n_all % self.n_batch)];
            let sizes = [self.n_ubatch.min(self.n_all)].into_iter().chain(rests);
            let sizes = sizes.filter(|&n| n > 0);
            let batch = |n| [true, false].map(|ends| self.batch(n, ends, n_filled));
            sizes.flat_map(batch).collect()
        };
        [at(1), at(Batch::FULL)]
    }
}

impl Context<'_> {
    /// Puts what legacy pools hold in place of the most that one operation holds.
    pub(crate) fn play_legacy_pools(&self, needs: &mut [Needs]) -> Result<(), Error> {
        for (device, held) in self.legacy_pool_use()? {
            if let Some(need) = needs.get_mut(device) {
                need.pool = PoolUse {
                    uses_cublas: need.pool.uses_cublas,
                    peak: need.pool.peak,
                    ..held
                };
            }
        }
        Ok(())
    }

    /// What each device's legacy pool holds, if it has one.
    pub(crate) fn legacy_pool_use(&self) -> Result<Vec<(usize, PoolUse)>, Error> {
        if self.devices.iter().all(|d| d.pool == PoolKind::Vmm) {
            return Ok(Vec::new());
        }
        let prompt = self.prompt();
        let is_shared = |b: &Backend| matches!(b, Backend::Meta(_));
        if !self.backends.iter().any(is_shared) && self.is_played(&prompt) {
            self.played(&prompt)
        } else {
            self.in_any_order(&prompt)
        }
    }

    /// Batch by batch, as they come.
    fn played(&self, prompt: &Prompt) -> Result<Vec<(usize, PoolUse)>, Error> {
        let mut own: Vec<Pools> = self.legacy_devices().map(Pools::new).collect();
        let (mut settled, mut steps) = (BTreeSet::new(), Steps::default());
        let last = std::iter::once(self.batch(Pass::Generation));
        for batch in prompt.batches().chain(last) {
            let n_read = self.n_read(batch);
            if settled.contains(&(batch.n_tokens, batch.n_outputs, n_read)) {
                continue;
            }
            let (built, schedule) = self.schedule(batch)?;
            let mut grew = false;
            for pools in &mut own {
                let ops = steps.of(&built.graph, &schedule, pools.backend);
                grew |= pools.compute(&built.graph, &ops);
            }
            built.graph.recycle();
            // what found all it asked for finds it again, until something is put elsewhere
            match grew {
                true => settled.clear(),
                false => _ = settled.insert((batch.n_tokens, batch.n_outputs, n_read)),
            }
        }
        Ok(own.iter().map(Pools::held).collect())
    }

    /// Never below, whatever the order: from the prompts' first batches, their last ones, and all that may lie between.
    fn in_any_order(&self, prompt: &Prompt) -> Result<Vec<(usize, PoolUse)>, Error> {
        let [first, last] = prompt.ends();
        let mut all = self.asked(&last)?;
        let generation = self.asked(&[self.batch(Pass::Generation)])?;
        let grows = self.asked(&first)?;
        let is_known = self.follows_from_filling();
        for ((of, first), generation) in all.iter_mut().zip(&grows).zip(&generation) {
            let apart = of.asked.largest_apart(&first.asked);
            of.asked.join(&first.asked);
            of.asked.join(&generation.asked);
            let is_exact = is_known && !of.is_shared && of.cuda.sm_count.is_some();
            of.any_bytes = match is_exact {
                true => apart,
                false => of.asked.largest(),
            };
        }
        Ok(all.iter().map(Asked::held).collect())
    }

    /// What each device is asked for by `batches`.
    fn asked(&self, batches: &[Batch]) -> Result<Vec<Asked>, Error> {
        let own = self.legacy_devices().map(Asked::of);
        let mut all: Vec<Asked> = own.chain(self.legacy_shares()).collect();
        let mut steps = Steps::default();
        for &batch in batches {
            let (built, schedule) = self.schedule(batch)?;
            for of in &mut all {
                let ops = steps.of(&built.graph, &schedule, of.backend);
                let nodes = ops.iter().map(|step| step.node);
                of.asked.compute(&of.cuda, &built.graph, nodes);
            }
            built.graph.recycle();
        }
        Ok(all)
    }

    fn legacy_devices(&self) -> impl Iterator<Item = (Cuda, BackendId)> + '_ {
        self.backends.iter().filter_map(|backend| match backend {
            Backend::Cuda(cuda) if cuda.pool == PoolKind::Legacy => {
                Some((*cuda, self.backend_id(backend.buffer_type())))
            }
            _ => None,
        })
    }

    /// Of a backend that shares every operation out over its devices.
    fn legacy_shares(&self) -> impl Iterator<Item = Asked> + '_ {
        let shares = self.backends.iter().filter_map(|backend| match backend {
            Backend::Meta(all) => Some(all.iter().enumerate()),
            _ => None,
        });
        let legacy = shares
            .flatten()
            .filter(|(_, cuda)| cuda.pool == PoolKind::Legacy);
        legacy.map(|(device, &cuda)| Asked {
            device,
            is_shared: true,
            ..Asked::of((cuda, BackendId(0)))
        })
    }

    /// Whether what a batch asks for follows from how full the context is: not where older tokens are compressed,
    /// or looked at in blocks that are chosen.
    fn follows_from_filling(&self) -> bool {
        let hp = &self.model.hparams;
        !hp.compressor.is_some_and(|c| c.has_cells)
            && hp.indexer.is_none_or(|indexer| indexer.block.is_none())
    }

    /// Whether its graphs change with what is in the context.
    fn attends(&self) -> bool {
        // layers with both have heads of K as well
        let mut layers = self.model.hparams.layers.iter();
        layers.any(|l| !l.is_recurrent || l.n_head_kv > 0)
    }

    fn is_played(&self, prompt: &Prompt) -> bool {
        let n_batches = prompt.n_all / prompt.n_ubatch;
        let n_reads = match self.attends() {
            true => prompt.n_all / prompt.n_streams / 256,
            false => 1,
        };
        self.follows_from_filling() && n_batches.min(n_reads) <= MOST_PLAYED
    }

    /// Cells of the largest cache that `batch` reads.
    fn n_read(&self, batch: Batch) -> i64 {
        match self.attends() {
            true => self
                .params
                .n_ctx_seq
                .min(vramfit_arch::pad_256(batch.n_filled)),
            false => 0,
        }
    }

    /// What fills the context, all sequences side by side.
    fn prompt(&self) -> Prompt {
        let p = &self.params;
        let n_seqs = p.n_seq_max.max(1);
        // llama.cpp reserves for as many tokens of each sequence, and so for a few more than fit in a batch
        let n_tokens = p.n_ctx.min(p.n_ubatch).max(1);
        let n_ubatch = (n_tokens + n_seqs - 1) / n_seqs * n_seqs;
        let n_streams = if p.kv_unified { 1 } else { n_seqs };
        let n_batch = p.n_batch.max(n_ubatch);
        // what has no memory takes a whole text at once
        let n_all = match self.model.hparams.has_memory {
            true => p.n_ctx_seq.saturating_mul(n_streams),
            false => n_ubatch,
        };
        let rounds = n_batch.saturating_mul(ROUNDS);
        let n_all = match self.attends() {
            true => n_all,
            false if n_all > rounds => rounds.saturating_add(n_all % n_batch),
            false => n_all,
        };
        Prompt {
            n_seqs,
            n_all,
            n_batch,
            n_ubatch,
            n_streams,
            all_outputs: p.n_outputs_max >= n_tokens.min(p.n_batch),
            n_outputs: p.n_outputs_max,
        }
    }
}

impl Pools {
    /// Empty ones. Where the number of multiprocessors is not known, one for each that there may be.
    fn new((cuda, backend): (Cuda, BackendId)) -> Self {
        let kinds = cuda.with_each_sm_count();
        Pools {
            device: cuda.index,
            backend,
            kinds: kinds.map(|c| (c, LegacyPool::default())).collect(),
        }
    }

    /// Whether any of them had to grow.
    fn compute(&mut self, graph: &Graph, steps: &[Step]) -> bool {
        let mut grew = false;
        for (cuda, pool) in &mut self.kinds {
            let before = pool.bytes();
            pool.compute(cuda, graph, steps);
            grew |= pool.bytes() != before;
        }
        grew
    }

    fn held(&self) -> (usize, PoolUse) {
        let largest = self.kinds.iter().map(|(_, pool)| pool.bytes()).max();
        let is_bound = self.kinds.len() > 1 || self.kinds.iter().any(|(_, p)| p.is_bound());
        (self.device, held(largest.unwrap_or(0), is_bound))
    }
}

impl Asked {
    fn of((cuda, backend): (Cuda, BackendId)) -> Self {
        Asked {
            device: cuda.index,
            backend,
            cuda,
            asked: AnyOrder::default(),
            any_bytes: 0,
            is_shared: false,
        }
    }

    fn held(&self) -> (usize, PoolUse) {
        (self.device, held(self.asked.bytes(self.any_bytes), true))
    }
}
