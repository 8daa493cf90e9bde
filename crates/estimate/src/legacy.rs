//! Devices whose pool keeps single buffers: what it holds depends on the order of everything computed
//! before. Played through are prompts that fill the context, batch by batch, then one token a sequence.
//!
//! Modelled: shorter prompts, other batches or a warm-up come to other buffers, and may come to more.

use crate::Error;
use crate::breakdown::Pass;
use crate::simulate::{Context, Needs};
use std::collections::BTreeSet;
use vramfit_arch::Batch;
use vramfit_ggml::cuda::{AnyOrder, Cuda, LegacyPool, PoolKind, PoolUse, Steps};
use vramfit_ggml::{Backend, BackendId};

/// The pool of one device, or of each that it may be.
struct Pools {
    device: usize,
    backend: BackendId,
    kinds: Vec<(Cuda, LegacyPool)>,
}

/// The pool of a part of a device's work, of which only the whole is known.
struct Shared {
    device: usize,
    cuda: Cuda,
    asked: AnyOrder,
}

fn held(bytes: u64, is_bound: bool) -> PoolUse {
    PoolUse {
        bytes,
        kind: PoolKind::Legacy,
        is_bound,
        ..PoolUse::default()
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
        let (mut own, mut shared) = self.legacy_pools();
        let (mut settled, mut steps) = (BTreeSet::new(), Steps::default());
        for batch in self.batches() {
            let n_read = self.n_read(batch);
            if settled.contains(&(batch.n_tokens, batch.n_outputs, n_read)) {
                continue;
            }
            let (built, schedule) = self.schedule(batch)?;
            let mut grew = false;
            for pools in &mut own {
                let ops = steps.of(&built.graph, &schedule, pools.backend);
                for (cuda, pool) in &mut pools.kinds {
                    let before = pool.bytes();
                    pool.compute(cuda, &built.graph, &ops);
                    grew |= pool.bytes() != before;
                }
            }
            for part in &mut shared {
                let ops = steps.of(&built.graph, &schedule, BackendId(0));
                let nodes = ops.iter().map(|step| step.node);
                part.asked.compute(&part.cuda, &built.graph, nodes);
            }
            built.graph.recycle();
            // what found all it asked for finds it again, until something is put elsewhere
            match grew {
                true => settled.clear(),
                false => _ = settled.insert((batch.n_tokens, batch.n_outputs, n_read)),
            }
        }
        let of_own = own.into_iter().map(|pools| {
            let largest = pools.kinds.iter().map(|(_, pool)| pool.bytes()).max();
            let is_bound = pools.kinds.len() > 1 || pools.kinds.iter().any(|(_, p)| p.is_bound());
            (pools.device, held(largest.unwrap_or(0), is_bound))
        });
        let of_shared = shared
            .into_iter()
            .map(|part| (part.device, held(part.asked.shrunk_bytes(), true)));
        Ok(of_own.chain(of_shared).collect())
    }

    /// Empty pools. Where the number of multiprocessors is not known, one for each that there may be.
    fn legacy_pools(&self) -> (Vec<Pools>, Vec<Shared>) {
        let (mut own, mut shared) = (Vec::new(), Vec::new());
        let is_legacy = |(_, cuda): &(usize, &Cuda)| cuda.pool == PoolKind::Legacy;
        for backend in &self.backends {
            match backend {
                Backend::Cuda(cuda) if cuda.pool == PoolKind::Legacy => own.push(Pools {
                    device: cuda.index,
                    backend: self.backend_id(backend.buffer_type()),
                    kinds: cuda
                        .with_each_sm_count()
                        .map(|c| (c, LegacyPool::default()))
                        .collect(),
                }),
                Backend::Meta(all) => {
                    let parts = all.iter().enumerate().filter(is_legacy);
                    shared.extend(parts.map(|(device, &cuda)| Shared {
                        device,
                        cuda,
                        asked: AnyOrder::default(),
                    }));
                }
                _ => {}
            }
        }
        (own, shared)
    }

    /// Cells of the largest cache that `batch` reads.
    fn n_read(&self, batch: Batch) -> i64 {
        self.params
            .n_ctx_seq
            .min(vramfit_arch::pad_256(batch.n_filled))
    }

    /// Prompts that fill the context, side by side, then a token of each.
    fn batches(&self) -> Vec<Batch> {
        let p = &self.params;
        let (prompt, n_seqs) = (self.batch(Pass::Prompt), p.n_seq_max.max(1));
        let n_outputs_of = |n_tokens: i64, ends: bool| match p.n_outputs_max >= prompt.n_tokens {
            true => n_tokens,
            false if ends => n_seqs.min(n_tokens).min(p.n_outputs_max),
            false => 0,
        };
        let n_streams = if p.kv_unified { 1 } else { n_seqs };
        // what has no memory takes a whole text at once
        let n_all = match self.model.hparams.has_memory {
            true => p.n_ctx_seq.saturating_mul(n_streams),
            false => prompt.n_tokens,
        };
        let n_batch = p.n_batch.max(prompt.n_tokens);
        let (mut batches, mut n_done) = (Vec::new(), 0);
        while n_done < n_all {
            let end = n_all.min(n_done + n_batch);
            while n_done < end {
                let n_tokens = prompt.n_tokens.min(end - n_done).max(1);
                n_done += n_tokens;
                batches.push(Batch {
                    n_tokens: n_tokens.div_euclid(n_seqs).max(1) * n_seqs,
                    n_outputs: n_outputs_of(n_tokens, n_done >= end),
                    n_seqs,
                    n_filled: n_done / n_streams,
                });
            }
        }
        batches.push(self.batch(Pass::Generation));
        batches
    }
}
