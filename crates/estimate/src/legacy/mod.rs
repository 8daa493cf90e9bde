//! Devices whose pool keeps single buffers: what it keeps depends on the order of everything computed before.
//!
//! Several histories are played, batch by batch: prompts that fill the context at once, by one sequence alone or by all of
//! them side by side, then prompts of many lengths before those. What the pool keeps behind the one that leaves the most is
//! what it is shown to take. Modelled: there are orders that leave more. What it cannot do without does not depend on
//! the order, and all it keeps beyond goes back to the driver where memory runs out.
//!
//! A bound where a context takes too many batches to be played, or where what a batch asks for does not
//! follow from how full the context is.

mod histories;
mod pools;
mod prompts;

use crate::Error;
use crate::simulate::{Context, Needs};
use histories::{filling, mixed};
use pools::Asked;
use prompts::Prompts;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use vramfit_arch::Batch;
use vramfit_ggml::cuda::{Cuda, PoolKind, PoolUse, Steps};
use vramfit_ggml::{Backend, BackendId};

pub(crate) use pools::Player;

/// Graphs of a prompt that are played, at most: beyond it takes a second.
const MOST_PLAYED: i64 = 512;

/// What a batch's operations follow from: tokens, outputs, sequences, and cells of the largest cache that it reads.
type BatchShape = [i64; 4];

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
        let prompts = self.prompts();
        let is_shared = |b: &Backend| matches!(b, Backend::Meta(_));
        let is_played = self.follows_from_filling() && prompts.iter().all(|p| self.is_played(p));
        if is_played && !self.backends.iter().any(is_shared) {
            self.played(&prompts)
        } else {
            self.in_any_order(&prompts)
        }
    }

    /// Batch by batch, as they come.
    fn played(&self, prompts: &[Prompts]) -> Result<Vec<(usize, PoolUse)>, Error> {
        let (filling, mixed) = (filling(prompts), mixed(prompts));
        let mut players: Vec<Player> = self.legacy_devices().map(Player::new).collect();
        let mut steps = Steps::default();
        let mut numbers: BTreeMap<BatchShape, usize> = BTreeMap::new();
        for &batch in filling.iter().chain(&mixed).flatten() {
            let next = numbers.len();
            let Entry::Vacant(slot) = numbers.entry(self.batch_shape(batch)) else {
                continue;
            };
            slot.insert(next);
            let (built, schedule) = self.schedule(batch)?;
            for player in &mut players {
                let own = steps.of(&built.graph, &schedule, player.backend);
                player.learn(&built.graph, &own);
            }
            built.graph.recycle();
        }
        players.iter_mut().for_each(Player::sum_up);
        let number = |&batch: &Batch| numbers.get(&self.batch_shape(batch)).copied();
        let numbered = |all: Vec<Vec<Batch>>| -> Vec<Vec<usize>> {
            let one = |history: Vec<Batch>| history.iter().filter_map(number).collect();
            all.into_iter().map(one).collect()
        };
        let (filling, mixed) = (numbered(filling), numbered(mixed));
        let held = players.iter().map(|player| {
            let most = |all: &[Vec<usize>]| {
                let all = all.iter().map(|history| player.play(history));
                all.reduce(PoolUse::max)
            };
            let filled = most(&filling).unwrap_or_default();
            let most = most(&mixed).map_or(filled, |mixed| mixed.max(filled));
            let filled_bytes = filled.bytes;
            (
                player.device,
                PoolUse {
                    filled_bytes,
                    ..most
                },
            )
        });
        Ok(held.collect())
    }

    /// Never below, whatever the order: from the prompts' first batches, their last ones, and all that may lie between.
    fn in_any_order(&self, prompts: &[Prompts]) -> Result<Vec<(usize, PoolUse)>, Error> {
        let all_of = |which: fn(Prompts) -> Vec<Batch>| -> Vec<Batch> {
            prompts.iter().copied().flat_map(which).collect()
        };
        let mut all = self.asked(&all_of(Prompts::last))?;
        let generation = self.asked(&all_of(|p| vec![p.generation()]))?;
        let grows = self.asked(&all_of(Prompts::first))?;
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

    fn is_played(&self, prompts: &Prompts) -> bool {
        let n_batches = prompts.n_all / prompts.n_ubatch;
        let n_reads = match self.attends() {
            true => prompts.n_all / prompts.n_streams / 256,
            false => 1,
        };
        n_batches.min(n_reads) <= MOST_PLAYED
    }

    fn batch_shape(&self, batch: Batch) -> BatchShape {
        let n_read = match self.attends() {
            true => self
                .params
                .n_ctx_seq
                .min(vramfit_arch::pad_256(batch.n_filled)),
            false => 0,
        };
        [batch.n_tokens, batch.n_outputs, batch.n_seqs, n_read]
    }
}
