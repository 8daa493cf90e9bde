//! What is told to the ledger rather than asked of it: figures of the driver, leases that ran out, what engines report,
//! what is found, what others hold, capacities.

use super::naive::Slot;
use super::{Asked, Game, exact};
use vramfit_ledger::{
    Adopt, Event, GpuId, Held, Ledger, Name, Phase, Probe, ReservationId, Store, size,
};

impl Game {
    /// What the driver would say: what has been loaded, and sometimes something else.
    pub(super) fn driver(&mut self, gpu: &GpuId) -> Probe {
        let loaded = self.naive.on(gpu, |s| s.phase != Phase::Pending);
        let other = if self.rng.bool() {
            0
        } else {
            self.rng.i128(0..15)
        };
        let free = i128::from(self.naive.capacity[gpu]) - loaded - other;
        let free_bytes = u64::try_from(free).unwrap_or(0);
        Probe {
            gpu: gpu.clone(),
            free_bytes,
        }
    }

    pub(super) fn note(&mut self, probe: &Probe, haunted: i128) {
        let (held, ran) = (self.naive.held(&probe.gpu), self.naive.running(&probe.gpu));
        let sure = self.naive.sure();
        self.naive.note(probe, held, &ran, &sure, haunted);
    }

    pub(super) fn probe(&mut self) {
        let gpu = self.rng.choice(&self.gpus).unwrap().clone();
        let (probe, was) = (self.driver(&gpu), self.figure(&gpu));
        let now = self.ledger.state().unwrap().seq();
        self.ledger.probe(std::slice::from_ref(&probe)).unwrap();
        self.note(&probe, self.naive.haunted(&gpu));
        self.asked_at(&gpu, now, was);
        // min(driver - pending, capacity - ledger).
        let n = &self.naive;
        let pending = n.on(&gpu, |s| s.phase == Phase::Pending);
        let promised = n.on(&gpu, |s| s.phase != Phase::Leaving);
        let by_ledger = i128::from(n.capacity[&gpu]) - promised;
        let by_driver = i128::from(probe.free_bytes) - pending;
        let views = self.ledger.gpus().unwrap();
        let view = views.iter().find(|v| v.gpu == gpu).unwrap();
        let free = i128::from(view.free_bytes);
        let both = by_driver.min(by_ledger);
        assert!(free <= both.max(0));
        assert_eq!(view.unconfirmed_bytes, 0);
        // Less only by what somebody may have unloaded who is not known to stay.
        let may_sleep = |s: &Slot| s.phase == Phase::Running && !s.is_sure();
        let held_back = both - free;
        assert!(held_back <= n.on(&gpu, may_sleep).max(0) || both < 0);
        let missing = view.missing_bytes > 0 && free < both;
        self.saw(match missing {
            true => "held back",
            false => "all that is free",
        });
    }

    /// The driver takes its time, and the ledger goes on.
    pub(super) fn ask_or_answer(&mut self) {
        let Some(asked) = self.asked.take() else {
            let gpu = self.rng.choice(&self.gpus).unwrap().clone();
            self.asked = Some(Asked {
                before: self.ledger.state().unwrap(),
                held: self.naive.held(&gpu),
                ran: self.naive.running(&gpu),
                sure: self.naive.sure(),
                haunted: self.naive.haunted(&gpu),
                probe: self.driver(&gpu),
            });
            return;
        };
        let Asked {
            before,
            held,
            ran,
            sure,
            haunted,
            probe,
        } = asked;
        let (probes, gpu) = (std::slice::from_ref(&probe), &probe.gpu);
        let last = self.naive.figures.get(gpu);
        let is_overtaken = last.is_some_and(|last| before.seq() < last.asked);
        let was = self.figure(gpu);
        self.ledger.probe_since(&before, probes).unwrap();
        if is_overtaken {
            assert_eq!(self.figure(gpu), was);
            return self.saw("overtaken");
        }
        self.naive.note(&probe, held, &ran, &sure, haunted);
        self.asked_at(gpu, before.seq(), was);
        self.saw(match self.naive.figures[gpu].explained == ran {
            true => "answered",
            false => "answered late",
        });
    }

    pub(super) fn figure(&self, gpu: &GpuId) -> Option<Event> {
        let events = self.ledger.state().unwrap().as_events().into_iter();
        let mut figures = events.filter(|e| matches!(e, Event::Figure { gpu: g, .. } if g == gpu));
        figures.next()
    }

    /// The last figure of a GPU was asked for then, if it is another than it `was`.
    pub(super) fn asked_at(&mut self, gpu: &GpuId, then: u64, was: Option<Event>) {
        let is_news = self.figure(gpu) != was;
        let figure = self.naive.figures.get_mut(gpu).unwrap();
        figure.asked = if is_news { then } else { figure.asked };
    }

    pub(super) fn reap(&mut self) {
        let gpus: Vec<_> = self
            .gpus
            .iter()
            .filter(|_| self.rng.u8(..4) > 0)
            .cloned()
            .collect();
        let probes: Vec<_> = gpus.iter().map(|gpu| self.driver(gpu)).collect();
        let figures: Vec<_> = gpus.iter().map(|gpu| self.figure(gpu)).collect();
        let now = self.ledger.state().unwrap().seq();
        let reaped = self.ledger.reap(&probes, self.now).unwrap();
        self.tells();
        let over = self.over();
        let lapsed = self.naive.slots.iter().filter(|s| {
            let probed = s.shares.iter().all(|(gpu, _)| gpus.contains(gpu));
            probed && over.contains(&s.id)
        });
        let released: Vec<_> = lapsed.map(|s| s.id).collect();
        let unprobed: Vec<_> = over.iter().filter(|id| !released.contains(id)).collect();
        assert_eq!(reaped.unprobed.iter().collect::<Vec<_>>(), unprobed);
        assert_eq!(
            reaped.released.iter().map(|r| r.id).collect::<Vec<_>>(),
            released
        );
        let haunted: Vec<_> = gpus.iter().map(|gpu| self.naive.haunted(gpu)).collect();
        let gone: Vec<_> = released
            .iter()
            .map(|&id| (id, self.naive.slot(id).unwrap().began()))
            .collect();
        // That it was to leave says nothing of what its holder, who died, has unloaded.
        for id in &released {
            self.naive.gone(*id, Phase::Running);
        }
        self.naive.slots.retain(|s| !released.contains(&s.id));
        for ((probe, haunted), was) in probes.iter().zip(haunted).zip(figures) {
            self.note(probe, haunted);
            self.asked_at(&probe.gpu, now, was);
        }
        self.stay(&gone);
        if !released.is_empty() {
            self.saw("reaped");
        }
    }

    pub(super) fn stay(&mut self, gone: &[(ReservationId, Phase)]) {
        if self.naive.stay(gone) > 0 {
            self.saw("stayed");
        }
    }

    /// The ledger is told the time.
    pub(super) fn tells(&mut self) {
        self.naive.told.push(self.now);
    }

    fn over(&mut self) -> Vec<ReservationId> {
        let over = self.naive.over(self.now);
        let again = self.naive.slots.iter().map(|s| s.again).max();
        match again {
            None | Some(0) => {}
            Some(1) => self.saw("began anew"),
            _ => self.saw("began anew in a row"),
        }
        over
    }

    /// Those whose leases have run out are named, and stay.
    pub(super) fn lapsed(&mut self) {
        let lapsed = self.ledger.lapsed(self.now).unwrap();
        self.tells();
        let over = self.over();
        assert_eq!(lapsed.iter().map(|r| r.id).collect::<Vec<_>>(), over);
    }

    /// The ledger is away: it is stopped, or ends and is opened again.
    pub(super) fn away(&mut self) {
        self.now += self.rng.u64(..400);
        if self.rng.bool() {
            let state = self.ledger.state().unwrap();
            if self.rng.bool() {
                self.store.compact(&state).unwrap();
            }
            self.ledger = Ledger::open(self.store.clone()).unwrap();
            assert_eq!(self.ledger.state().unwrap(), state);
            self.naive.told.clear();
        }
    }

    pub(super) fn reconcile(&mut self) {
        let holder = Name::from(format!("h{}", self.rng.u8(..2)));
        let mut report = Vec::new();
        let mut missing = Vec::new();
        for at in 0..self.naive.slots.len() {
            let slot = &self.naive.slots[at];
            if slot.phase == Phase::Pending || slot.holder != holder {
                continue;
            }
            let (id, mut shares) = (slot.id, slot.shares.clone());
            match self.rng.u8(..8) {
                0 => missing.push(id),
                // Rarely more than was committed: over-committed GPUs should not be the rule.
                draw => {
                    for (gpu, bytes) in &mut shares {
                        let was = *bytes;
                        *bytes = if draw == 1 {
                            was + self.rng.u64(..3)
                        } else {
                            (was - 1).max(1)
                        };
                        if self.naive.grew(gpu, i128::from(bytes.saturating_sub(was))) {
                            self.saw("outgrew what it had");
                        }
                        let figure = self.naive.figures.get_mut(gpu);
                        if let Some(explained) = figure.and_then(|f| f.explained.get_mut(&id)) {
                            *explained = (*explained).min(*bytes);
                        }
                    }
                    self.naive.facts |= draw == 1;
                    let exact = exact(&shares);
                    report.push(Held { id, shares: exact });
                    self.naive.slots[at].shares = shares;
                }
            }
        }
        let found = self.ledger.reconcile(&holder, &report).unwrap();
        assert_eq!(found.missing, missing);
        assert!(found.unknown.is_empty());
    }

    pub(super) fn adopt(&mut self) {
        let gpu = self.rng.choice(&self.gpus).unwrap().clone();
        let shares = vec![(gpu, self.rng.u64(1..=20))];
        let (model, holder) = (Name::from("adopted"), Name::from("h0"));
        let mut found = Adopt::new(model.clone(), holder.clone(), exact(&shares));
        found.stays = self.rng.bool();
        let id = self.ledger.adopt(&found, self.now).unwrap();
        self.tells();
        for (gpu, bytes) in &shares {
            self.naive.found(gpu, *bytes);
        }
        self.naive.facts = true;
        let (created, active) = (self.now, self.now);
        let (phase, requests, lease) = (Phase::Running, 0, None);
        self.naive.slots.push(Slot {
            id,
            model,
            holder,
            shares,
            phase,
            created,
            active,
            requests,
            lease,
            again: 0,
            leaves: None,
            stays: found.stays,
        });
    }

    /// Somebody knows what others hold.
    pub(super) fn tell(&mut self) {
        let gpu = self.rng.choice(&self.gpus).unwrap().clone();
        let bytes = self.rng.u64(..20);
        self.ledger.others_hold(&gpu, bytes).unwrap();
        if let Some(figure) = self.naive.figures.get_mut(&gpu) {
            if bytes > 0 || figure.others > 0 {
                figure.others = bytes.into();
            }
            figure.came.clear();
        }
    }

    pub(super) fn capacity(&mut self) {
        let gpu = self.rng.choice(&self.gpus).unwrap().clone();
        let more = self.rng.u64(..2);
        let bytes = self.naive.capacity[&gpu] + more;
        if self.rng.bool() {
            // It was gone for a while.
            self.ledger.gpu_gone(&gpu).unwrap();
        }
        self.ledger
            .set_gpus(&[(gpu.clone(), size(bytes).unwrap())])
            .unwrap();
        if let Some(figure) = self.naive.figures.get_mut(&gpu) {
            figure.others += i128::from(more);
        }
        self.naive.capacity.insert(gpu, bytes);
    }
}
