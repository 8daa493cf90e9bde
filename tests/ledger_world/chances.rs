//! What happens to engines, holders, GPUs and the store beside loading and unloading.

use super::{Bytes, Engine, LEASE_MS, World, shares, sum};
use vramfit_ledger::{Adopt, GpuId, Held, Ledger, ReservationId, Store, size};

impl World {
    /// One that runs takes more or less, or says what it has.
    pub(super) fn resize(&mut self) {
        if !self.manner.resizes {
            return;
        }
        let here = (0..self.engines.len()).filter(|&i| {
            let engine = &self.engines[i];
            engine.committed && !engine.going && engine.there == engine.most
        });
        let here: Vec<_> = here.collect();
        let Some(&at) = self.rng.choice(&here) else {
            return;
        };
        let stays = self.held(&self.engines[at]).stays;
        if self.rng.bool() {
            let free = self.count();
            let engine = &mut self.engines[at];
            for (gpu, bytes) in &mut engine.there {
                let free = free.iter().find(|probe| probe.gpu == *gpu).unwrap();
                let more = self.rng.u64(0..=4.min(free.free_bytes));
                let less = if stays {
                    0
                } else {
                    self.rng.u64(0..=2.min(*bytes - 1))
                };
                *bytes = *bytes + more - less;
                // What others were thought to have taken is gone again.
                self.unclear |= engine.over > 0 && more < less;
            }
            engine.most = engine.there.clone();
        }
        if self.rng.bool() {
            self.report(at);
        }
    }

    /// An engine says what it has. Beside what is generous that is less than what was said before.
    pub fn report(&mut self, at: usize) {
        let was = self.held(&self.engines[at]);
        let (id, shares) = (was.id, shares(&self.engines[at].there));
        let report = [Held { id, shares }];
        self.ledger.reconcile(&"holder".into(), &report).unwrap();
        self.has_grown(at, &was);
        // It was larger in between than when the driver was asked and than it is now: no figure of then knows that.
        let then = self
            .asked
            .as_ref()
            .and_then(|asked| asked.before.reservation(id));
        let (then, is) = (then.cloned(), self.held(&self.engines[at]));
        let peaked = |gpu: &GpuId| {
            let then = then.as_ref().map_or(u64::MAX, |then| then.bytes_on(gpu));
            was.bytes_on(gpu) > then.max(is.bytes_on(gpu))
        };
        self.unclear |= self.memory.keys().any(peaked);
    }

    /// A holder has died: its lease runs out, and its process ends when it does.
    pub(super) fn reap(&mut self) {
        let state = self.state();
        let leased = |&i: &usize| {
            state
                .reservation(self.engines[i].id)
                .unwrap()
                .lease_ms
                .is_some()
        };
        let leased: Vec<_> = (0..self.engines.len()).filter(leased).collect();
        let Some(&at) = self.rng.choice(&leased) else {
            return;
        };
        let id = self.engines[at].id;
        self.outlive(id);
        let held = self.held(&self.engines[at]);
        if !self.manner.lingers {
            let there = self.engines[at].there.values_mut();
            there.for_each(|bytes| *bytes = 0);
        }
        self.seen.reaped += 1;
        if self.rng.u8(..3) == 0 {
            assert_eq!(self.ledger.expire(self.now).unwrap()[0].id, id);
            return self.gone(at, &held);
        }
        let counted = self.counted();
        let reaped = self.ledger.reap(&counted.probes, self.now).unwrap();
        assert_eq!(reaped.released, std::slice::from_ref(&held));
        let (after, going) = (self.state(), self.still_going());
        self.gone(at, &held);
        // What is gone was there to be counted: it is going, and not held besides.
        self.told(&after, &after, &going, &counted);
    }

    /// The time passes in which all holders could have renewed their leases, and all have but one. The ledger may be
    /// away before, until all leases have run out, or while one holder is dead already: nobody is dropped for that.
    fn outlive(&mut self, dead: ReservationId) {
        let away = self.rng.u64(..=3 * LEASE_MS);
        let is_away = self.rng.bool() && away > LEASE_MS / 4;
        for quarter in 0..=8 {
            self.now += LEASE_MS / 4;
            if is_away && quarter == 0 {
                self.now += away;
                if self.rng.bool() {
                    self.reopen();
                }
            }
            // Nobody's lease has run out but that of who has been dead for all of it.
            let lapsed = self.ledger.lapsed(self.now).unwrap();
            let may = quarter > 4 || !is_away;
            assert!(lapsed.iter().all(|r| r.id == dead && may));
            let alive = self.engines.iter().filter(|e| e.id != dead);
            for engine in alive.filter(|_| quarter % 3 == 1) {
                self.ledger.renew(engine.id, self.now).unwrap();
            }
        }
        self.seen.anew += u64::from(is_away && away > LEASE_MS);
    }

    /// Some of the others are an engine that somebody answers for from now on.
    pub(super) fn adopt(&mut self) {
        let gpu = self
            .rng
            .choice(self.memory.keys().collect::<Vec<_>>())
            .unwrap();
        let gpu = GpuId::clone(gpu);
        let bytes = self.rng.u64(1..=10);
        if !self.manner.adopts || self.others[&gpu] < bytes {
            return;
        }
        let there = Bytes::from([(gpu.clone(), bytes)]);
        let mut found = Adopt::new("found", "holder", shares(&there));
        found.stays = self.rng.bool();
        let id = self.ledger.adopt(&found, self.now).unwrap();
        self.seen.adopted += 1;
        *self.found.entry(gpu.clone()).or_default() += bytes;
        // As long as anything beside it may sleep, it may be that which they left.
        self.unclear = true;
        let others = self.others.get_mut(&gpu).unwrap();
        *others -= bytes;
        let others = *others;
        let shown = self.shown.get_mut(&gpu).unwrap();
        *shown = shown.saturating_sub(bytes);
        self.no_more_than(&gpu, others);
        self.engines.push(Engine {
            id,
            waits: Vec::new(),
            most: there.clone(),
            there,
            committed: true,
            going: false,
            evicted: false,
            over: 0,
        });
    }

    /// More or less of a GPU is set aside: not what is promised. Or it was gone for a while.
    pub(super) fn set_aside(&mut self) {
        for view in self.ledger.gpus().unwrap() {
            let aside = self.aside.get_mut(&view.gpu).unwrap();
            let free = if view.leaving_bytes > 0 {
                0
            } else {
                view.free_bytes
            };
            let most = 12.min(*aside + free);
            *aside = self.rng.u64(0..=most);
            let capacity = size(self.memory[&view.gpu] - *aside).unwrap();
            if self.rng.bool() {
                self.ledger.gpu_gone(&view.gpu).unwrap();
            }
            self.ledger.set_gpus(&[(view.gpu, capacity)]).unwrap();
        }
    }

    /// Now and then somebody knows what others hold, and says so.
    pub fn tell(&mut self) -> bool {
        let tells = self.rng.u8(..4) == 0;
        for (gpu, others) in self.others.iter().filter(|_| tells) {
            let others = others.saturating_sub(self.aside[gpu]);
            self.ledger.others_hold(gpu, others).unwrap();
        }
        if tells {
            // By how much less than is set aside they hold nobody says.
            let less = |(gpu, others): (&GpuId, &u64)| *others < self.aside[gpu];
            self.unclear = self.others.iter().any(less);
        }
        tells
    }

    /// What is left of a process that nobody answers for ends by and by.
    pub(super) fn fade(&mut self) {
        for ghost in &mut self.ghosts {
            for bytes in ghost.there.values_mut() {
                *bytes = self.rng.u64(0..=*bytes);
            }
        }
        self.ghosts.retain(|ghost| sum(&ghost.there) > 0);
    }

    pub(super) fn reopen(&mut self) {
        let state = self.state();
        if self.rng.bool() {
            self.store.compact(&state).unwrap();
        }
        self.ledger = Ledger::open(self.store.clone()).unwrap();
        assert_eq!(self.state(), state);
    }
}
