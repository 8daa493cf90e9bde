//! The ledger's rules in other words: a list of what is held, sums counted anew each time, and every option tried
//! with every set of evictions.

use std::collections::{BTreeMap, BTreeSet};
use vramfit_ledger::{GpuId, Name, Phase, Probe, ReservationId};

pub const IDLE_MS: u64 = 50;
pub const START_MS: u64 = 200;

pub struct Slot {
    pub id: ReservationId,
    pub model: Name,
    pub holder: Name,
    pub shares: Vec<(GpuId, u64)>,
    pub phase: Phase,
    pub created: u64,
    pub active: u64,
    pub requests: u32,
    pub lease: Option<(u64, u64)>,
    /// It had its whole lease again so often, as the ledger was away, since its holder was heard of.
    pub again: u32,
    /// Who needs its room, and what it was.
    pub leaves: Option<(ReservationId, Phase)>,
    pub stays: bool,
}

impl Slot {
    /// It does not unload unasked, and nobody has asked it to.
    pub fn is_sure(&self) -> bool {
        self.stays && (self.phase == Phase::Leaving || self.leaves.is_none())
    }

    /// Whether it has been loaded.
    pub fn began(&self) -> Phase {
        self.leaves.map_or(self.phase, |(_, was)| was)
    }
}

/// What the driver said is free, and which reservations explain how much of the rest.
#[derive(Default)]
pub struct Figure {
    pub free: u64,
    pub explained: BTreeMap<ReservationId, u64>,
    /// What others are thought to hold.
    pub others: i128,
    /// Found out since to have been a reservation's.
    pub found: u64,
    /// Of what others are thought to hold: what came so many figures ago, as there was more than anybody in the ledger
    /// could have.
    pub came: Vec<(u32, i128)>,
    /// How old the question was: what had happened by then.
    pub asked: u64,
}

impl Figure {
    /// Those who came first are the first to be thought gone.
    fn went(&mut self, mut bytes: i128) {
        for (_, came) in &mut self.came {
            let less = bytes.min(*came);
            (*came, bytes) = (*came - less, bytes - less);
        }
    }
}

/// Of a reservation that is gone: nobody knows when its process is.
pub struct Ghost {
    pub bytes: i128,
    /// The driver has counted so often since.
    pub figures: u32,
}

/// After so many figures a process that is still there is one of the others.
const HAUNTS: u32 = 16;
/// So often in a row a holder that is not heard of may have had no time.
const AGAIN: u32 = 3;

#[derive(Default)]
pub struct Naive {
    pub capacity: BTreeMap<GpuId, u64>,
    pub figures: BTreeMap<GpuId, Figure>,
    /// Oldest first.
    pub ghosts: BTreeMap<GpuId, Vec<Ghost>>,
    pub slots: Vec<Slot>,
    /// All the times that the ledger has been told since it was opened.
    pub told: Vec<u64>,
    /// Sizes were taken over as facts: GPUs may be over-committed from here on.
    pub facts: bool,
}

/// Fewest GPUs, fewest evictions, the longest unused, the most room.
pub type Price = (usize, usize, Vec<(u64, u64)>, i128);

impl Naive {
    /// Those whose time is over; others who had not all of theirs have it again.
    pub fn over(&mut self, now: u64) -> Vec<ReservationId> {
        let told = &self.told;
        let mut over = Vec::new();
        for slot in &mut self.slots {
            let Some((ms, _)) = slot.lease.filter(|&(_, until)| until < now) else {
                continue;
            };
            // The last time that it was told the time after longer than a quarter of the lease, or for the first time.
            let back = told.iter().zip(&told[1..]).rev();
            let back = back.take_while(|&(a, b)| b - a <= ms / 4).last();
            let back = back.map_or(now, |(a, _)| *a);
            if back + ms < now || slot.again == AGAIN {
                over.push(slot.id);
            } else {
                slot.again += 1;
                slot.lease = Some((ms, back + ms));
            }
        }
        over
    }

    pub fn on(&self, gpu: &GpuId, counted: impl Fn(&Slot) -> bool) -> i128 {
        let slots = self.slots.iter().filter(|s| counted(s));
        let shares = slots.flat_map(|s| &s.shares).filter(|(g, _)| g == gpu);
        shares.map(|&(_, bytes)| i128::from(bytes)).sum()
    }

    pub fn room(&self, gpu: &GpuId) -> i128 {
        let capacity = self.capacity.get(gpu).copied().unwrap_or(0);
        i128::from(capacity) - self.foreign(gpu) - self.on(gpu, |s| s.phase != Phase::Leaving)
    }

    pub fn foreign(&self, gpu: &GpuId) -> i128 {
        let Some(figure) = self.figures.get(gpu) else {
            return 0;
        };
        self.unexplained(gpu, figure).max(figure.others).max(0)
    }

    pub fn unexplained(&self, gpu: &GpuId, figure: &Figure) -> i128 {
        let used = i128::from(self.capacity[gpu]) - i128::from(figure.free);
        used - figure
            .explained
            .values()
            .copied()
            .map(i128::from)
            .sum::<i128>()
    }

    /// What anybody has there, loaded or not.
    pub fn held(&self, gpu: &GpuId) -> BTreeMap<ReservationId, u64> {
        let bytes = (0..self.slots.len()).map(|i| (self.slots[i].id, self.bytes(i, gpu)));
        bytes.collect()
    }

    /// The driver has counted, after the moment at which this was held and ran and so much was haunted. Others hold
    /// what they held, as long as that can be: if nobody has loaded but those who never unload unasked, they have the
    /// rest; if everybody has loaded everything, and nothing has ended that is gone, they have what is left.
    pub fn note(
        &mut self,
        probe: &Probe,
        mut held: BTreeMap<ReservationId, u64>,
        ran: &BTreeMap<ReservationId, u64>,
        sure: &BTreeSet<ReservationId>,
        haunted: i128,
    ) {
        let gpu = &probe.gpu;
        let mut figure = Figure {
            free: probe.free_bytes,
            explained: self.running(gpu),
            others: 0,
            found: 0,
            came: Vec::new(),
            asked: 0,
        };
        figure.explained.retain(|id, bytes| {
            *bytes = ran.get(id).map_or(0, |ran| *ran.min(bytes));
            *bytes > 0
        });
        let used = i128::from(self.capacity[gpu]) - i128::from(figure.free);
        for (id, bytes) in self.held(gpu) {
            let most = held.entry(id).or_default();
            *most = bytes.max(*most);
        }
        let all: i128 = held.values().copied().map(i128::from).sum();
        let all = all + self.haunted(gpu);
        let stays = |id| {
            self.slots
                .iter()
                .any(|s| s.id == id && s.is_sure() && sure.contains(&id))
        };
        let sure = figure.explained.iter().filter(|&(&id, _)| stays(id));
        let sure: i128 = sure.map(|(_, &bytes)| i128::from(bytes)).sum();
        figure.others = match self.figures.get(gpu) {
            None => used - all,
            Some(last) if last.others > used - sure => used - sure,
            Some(last) if last.others < used - all => used - all,
            Some(last) => last.others,
        };
        if let Some(last) = self.figures.get(gpu) {
            let older = last.came.iter().map(|&(ago, bytes)| (ago + 1, bytes));
            figure.came = older.filter(|(ago, _)| *ago < HAUNTS).collect();
            figure.came.push((0, (figure.others - last.others).max(0)));
            figure.went((last.others - figure.others).max(0));
            figure.asked = last.asked;
        }
        let rest = self.unexplained(gpu, &figure) - figure.others;
        self.figures.insert(gpu.clone(), figure);
        // Who has died only since may have had more when he did.
        let fresh = (self.haunted(gpu) - haunted).max(0);
        self.exorcise(gpu, rest.max(0) + fresh);
    }

    pub fn haunted(&self, gpu: &GpuId) -> i128 {
        let ghosts = self.ghosts.get(gpu).into_iter().flatten();
        ghosts.map(|ghost| ghost.bytes).sum()
    }

    /// Another figure, and `rest` is what it leaves for ghosts where all that runs is there, and others.
    fn exorcise(&mut self, gpu: &GpuId, rest: i128) {
        let ghosts = self.ghosts.entry(gpu.clone()).or_default();
        ghosts.iter_mut().for_each(|ghost| ghost.figures += 1);
        ghosts.retain(|ghost| ghost.figures < HAUNTS);
        while !ghosts.is_empty() && ghosts.iter().map(|g| g.bytes).sum::<i128>() > rest {
            ghosts[0].bytes -= 1;
            ghosts.retain(|ghost| ghost.bytes > 0);
        }
    }

    /// So much was there, and is a reservation's. Unless something is asleep by the figure, others can have had no
    /// more than the rest of what was taken, without those who never unload unasked.
    pub fn found(&mut self, gpu: &GpuId, bytes: u64) {
        let Some(figure) = self.figures.get(gpu) else {
            return;
        };
        if self.foreign(gpu) > self.unexplained(gpu, figure) {
            return;
        }
        let stays = |id| self.slots.iter().any(|s| s.id == id && s.is_sure());
        let theirs = figure.explained.iter().filter(|&(&id, _)| !stays(id));
        let theirs: i128 = theirs.map(|(_, &bytes)| i128::from(bytes)).sum();
        let rest = self.unexplained(gpu, figure) + theirs;
        let figure = self.figures.get_mut(gpu).unwrap();
        figure.found += bytes;
        let most = rest - i128::from(figure.found);
        if most < figure.others {
            figure.went(figure.others - most);
            figure.others = most;
        }
    }

    /// What somebody has is more than was said. As far as others are thought to have come lately, it was that, unless
    /// something is asleep by the figure. Whether it was.
    pub fn grew(&mut self, gpu: &GpuId, bytes: i128) -> bool {
        let Some(figure) = self.figures.get(gpu) else {
            return false;
        };
        let came: i128 = figure.came.iter().map(|(_, bytes)| bytes).sum();
        let less = bytes.min(came);
        let is_asleep = self.foreign(gpu) > self.unexplained(gpu, figure);
        if less <= 0 || is_asleep {
            return false;
        }
        let figure = self.figures.get_mut(gpu).unwrap();
        figure.went(less);
        figure.others -= less;
        true
    }

    /// Those who do not unload unasked.
    pub fn sure(&self) -> BTreeSet<ReservationId> {
        let sure = self.slots.iter().filter(|s| s.is_sure());
        sure.map(|s| s.id).collect()
    }

    /// What runs of it.
    pub fn running(&self, gpu: &GpuId) -> BTreeMap<ReservationId, u64> {
        let running = (0..self.slots.len()).filter(|&i| self.slots[i].phase == Phase::Running);
        let bytes = running.map(|i| (self.slots[i].id, self.bytes(i, gpu)));
        bytes.filter(|&(_, bytes)| bytes > 0).collect()
    }

    /// What has left by a plan was there; what else is gone may not have been.
    pub fn gone(&mut self, id: ReservationId, phase: Phase) {
        let capacity = &self.capacity;
        let slot = self.slots.iter().find(|s| s.id == id).unwrap();
        for (gpu, bytes) in slot
            .shares
            .iter()
            .filter(|(g, _)| self.figures.contains_key(g))
        {
            let (bytes, figures) = (i128::from(*bytes), 0);
            let ghost = Ghost { bytes, figures };
            self.ghosts.entry(gpu.clone()).or_default().push(ghost);
        }
        for (gpu, figure) in &mut self.figures {
            let was = figure.explained.remove(&id).unwrap_or(0);
            if phase == Phase::Leaving {
                // But what others hold is not given back with it.
                let others: u64 = figure.explained.values().sum();
                let used = i128::from(capacity[gpu]) - i128::from(figure.free);
                let least = (used - i128::from(others + was)).max(figure.others);
                let left = (used - i128::from(was)).max(least).min(used);
                figure.free += u64::try_from(used - left).unwrap();
            }
        }
    }

    /// Those who need no room any more are gone: who was to leave for them stays where that goes. How many did.
    pub fn stay(&mut self, gone: &[(ReservationId, Phase)]) -> usize {
        let never_loaded = |id| gone.contains(&(id, Phase::Pending));
        let mut who: Vec<_> = (0..self.slots.len()).collect();
        who.retain(|&i| self.slots[i].leaves.is_some_and(|(id, _)| never_loaded(id)));
        who.retain(|&i| self.slots[i].phase == Phase::Leaving);
        who.sort_by_key(|&i| (self.slots[i].active, self.slots[i].id));
        let mut stayed = 0;
        while let Some(i) = who.pop() {
            let fits = |(gpu, bytes): &(GpuId, u64)| {
                let others = self.figures.get(gpu).map_or(0, |figure| figure.others);
                let promised = self.on(gpu, |s| s.phase != Phase::Leaving);
                // Somebody may only wait for this one, and for who left then, but not for who leaves only since.
                let me = &self.slots[i];
                let others_leave = |s: &Slot| {
                    let waits = |w: &&Slot| {
                        w.phase == Phase::Pending
                            && w.shares.iter().any(|(g, _)| g == gpu)
                            && me.leaves.unwrap().0 < w.id
                            && s.leaves.is_some_and(|(id, _)| w.id < id)
                    };
                    s.phase == Phase::Leaving
                        && s.id != me.id
                        && self.slots.iter().any(|w| waits(&w))
                };
                let all = promised + i128::from(*bytes) + others.max(0);
                all + self.on(gpu, others_leave) <= self.capacity[gpu].into()
            };
            if self.slots[i].shares.iter().all(fits) {
                let (_, was) = self.slots[i].leaves.unwrap();
                self.slots[i].phase = was;
                stayed += 1;
            }
        }
        stayed
    }

    pub fn stale(&self, model: &Name, now: u64) -> Vec<usize> {
        let unused = |s: &Slot| match s.phase {
            Phase::Running => s.requests == 0 && now - s.active > IDLE_MS,
            Phase::Pending => now - s.created > START_MS && !self.held_up(s),
            Phase::Leaving => false,
        };
        let stale = |&i: &usize| unused(&self.slots[i]) && self.slots[i].model != *model;
        (0..self.slots.len()).filter(stale).collect()
    }

    pub fn held_up(&self, s: &Slot) -> bool {
        let gpus = || s.shares.iter().map(|(gpu, _)| gpu);
        gpus().any(|gpu| self.on(gpu, |s| s.phase == Phase::Leaving) > 0)
    }

    /// Every ordered choice of GPUs of one host.
    pub fn choices(&self, n: usize) -> Vec<Vec<GpuId>> {
        let mut choices: Vec<Vec<GpuId>> = vec![vec![]];
        for _ in 0..n {
            let longer = |way: &Vec<GpuId>| {
                let host = way.first().map(|g| g.host().clone());
                let next = self.capacity.keys().filter(|g| !way.contains(g));
                let next = next.filter(|g| host.as_ref().is_none_or(|h| g.host() == h));
                next.map(|g| [way.as_slice(), std::slice::from_ref(g)].concat())
                    .collect::<Vec<_>>()
            };
            choices = choices.iter().flat_map(longer).collect();
        }
        choices
    }

    pub fn price(&self, shares: &[(GpuId, u64)], out: &[usize]) -> Price {
        let mut ages: Vec<_> = out
            .iter()
            .map(|&i| (self.slots[i].active, self.slots[i].id.0))
            .collect();
        ages.sort();
        let room: i128 = shares.iter().map(|(gpu, _)| self.room(gpu)).sum();
        (shares.len(), out.len(), ages, -room)
    }

    pub fn fits(&self, shares: &[(GpuId, u64)], out: &[usize]) -> bool {
        shares.iter().all(|(gpu, bytes)| {
            let freed: i128 = out.iter().map(|&i| i128::from(self.bytes(i, gpu))).sum();
            i128::from(*bytes) <= self.room(gpu) + freed
        })
    }

    pub fn bytes(&self, slot: usize, gpu: &GpuId) -> u64 {
        let share = self.slots[slot].shares.iter().find(|(g, _)| g == gpu);
        share.map_or(0, |&(_, bytes)| bytes)
    }

    /// The price of the best option there is.
    pub fn best(&self, model: &Name, ways: &[Vec<u64>], evict: bool, now: u64) -> Option<Price> {
        let mut ways = ways.to_vec();
        ways.sort_by_key(Vec::len);
        let stale = if evict {
            self.stale(model, now)
        } else {
            vec![]
        };
        ways.chunk_by(|a, b| a.len() == b.len()).find_map(|ways| {
            let mut best: Option<Price> = None;
            for way in ways {
                for gpus in self.choices(way.len()) {
                    let shares: Vec<_> = gpus.into_iter().zip(way.iter().copied()).collect();
                    for set in 0u32..1 << stale.len() {
                        let taken = (0..stale.len()).filter(|i| set >> i & 1 == 1);
                        let out: Vec<_> = taken.map(|i| stale[i]).collect();
                        let price = || self.price(&shares, &out);
                        if self.fits(&shares, &out) && best.as_ref().is_none_or(|b| price() < *b) {
                            best = Some(price());
                        }
                    }
                }
            }
            best
        })
    }

    pub fn ever(&self, ways: &[Vec<u64>]) -> bool {
        ways.iter().any(|way| {
            self.choices(way.len()).iter().any(|gpus| {
                gpus.iter()
                    .zip(way)
                    .all(|(gpu, bytes)| self.capacity[gpu] >= *bytes)
            })
        })
    }

    pub fn slot(&mut self, id: ReservationId) -> Option<&mut Slot> {
        self.slots.iter_mut().find(|s| s.id == id)
    }
}
