//! What the driver counts, and what of it says what is others'; what is promised beside that; and how a world comes to
//! rest.

use super::{Asked, Bytes, Counted, Engine, Others, World};
use vramfit_ledger::{Event, GpuId, Phase, State};

impl World {
    /// The driver is asked, counts, answers: three moments.
    pub(super) fn drive(&mut self) {
        self.asked = match self.asked.take() {
            None => Some(Asked {
                before: self.state(),
                going: self.still_going(),
                counted: None,
                is_overtaken: false,
            }),
            Some(asked) => match &asked.counted {
                None => Some(Asked {
                    counted: Some(self.counted()),
                    ..asked
                }),
                Some(counted) if asked.is_overtaken => {
                    let now = self.state();
                    let late = self.ledger.probe_since(&asked.before, &counted.probes);
                    assert!(late.is_ok() && self.state() == now);
                    self.seen.overtaken += 1;
                    None
                }
                Some(counted) => {
                    self.seen.late += u64::from(asked.before != self.state());
                    self.answer(&asked.before, &asked.going, counted);
                    None
                }
            },
        };
    }

    pub(super) fn still_going(&self) -> Bytes {
        let going = self.going.iter();
        let sum = |going: &Vec<(u64, u32)>| going.iter().map(|(bytes, _)| bytes).sum();
        going
            .map(|(gpu, going)| (gpu.clone(), sum(going)))
            .collect()
    }

    pub(super) fn counted(&mut self) -> Counted {
        let (mut is_asleep, mut is_missing, mut is_over) = (false, false, false);
        let state = self.state();
        for engine in &mut self.engines {
            let held = state.reservation(engine.id).unwrap();
            let over = |(gpu, there): (&GpuId, &u64)| *there > held.bytes_on(gpu);
            let over = engine.there.iter().any(over);
            engine.over += u32::from(over);
            is_over |= over;
            let less = |(gpu, there): (&GpuId, &u64)| *there < held.bytes_on(gpu);
            let less = engine.committed && engine.there.iter().any(less);
            is_missing |= less;
            is_asleep |= less && !engine.going;
        }
        let others = self.others.iter();
        Counted {
            probes: self.count(),
            others: others
                .map(|(gpu, &now)| (gpu.clone(), (now, now)))
                .collect(),
            is_missing,
            is_unclear: is_asleep && (is_over || !self.ghosts.is_empty()),
        }
    }

    /// The ledger is told.
    fn answer(&mut self, before: &State, going: &Bytes, counted: &Counted) {
        let now = self.state();
        self.ledger.probe_since(before, &counted.probes).unwrap();
        self.told(before, &now, going, counted);
    }

    /// What was asked before and is not answered yet says nothing any more. Where nobody can know that it was asked
    /// before, as it was of the same ledger or nothing has come of the newer answer, nobody wants to hear it.
    fn overtake(&mut self) {
        let figures = self.state().as_events().into_iter();
        let asked = figures.filter_map(|event| match event {
            Event::Figure { asked, .. } => Some(asked),
            _ => None,
        });
        let oldest = asked.min().unwrap();
        self.asked = self
            .asked
            .take()
            .filter(|asked| asked.before.seq() < oldest);
        if let Some(asked) = &mut self.asked {
            asked.is_overtaken = true;
        }
    }

    /// What is taken beyond all that may be the ledger's, or is going, is others', and now that is known.
    pub(super) fn told(&mut self, before: &State, now: &State, then: &Bytes, counted: &Counted) {
        self.overtake();
        self.unclear |= counted.is_unclear;
        self.was_missing = counted.is_missing;
        for probe in &counted.probes {
            let gpu = &probe.gpu;
            let bytes = |state: &State, id| state.reservation(id).map_or(0, |r| r.bytes_on(gpu));
            let states = [before, now].into_iter();
            let mut ids: Vec<_> = states
                .flat_map(|s| s.reservations().map(|r| r.id))
                .collect();
            ids.sort();
            ids.dedup();
            let held = ids.iter().map(|&id| bytes(before, id).max(bytes(now, id)));
            let runs = |state: &State, id| {
                state
                    .reservation(id)
                    .is_some_and(|r| r.phase == Phase::Running)
            };
            let ran = ids.iter().filter(|&&id| runs(before, id) && runs(now, id));
            let ran = ran.map(|&id| bytes(before, id).min(bytes(now, id)));
            let used = self.memory[gpu] - probe.free_bytes;
            let going = self.going.entry(gpu.clone()).or_default();
            let gone: u64 = going.iter().map(|(bytes, _)| bytes).sum();
            let surely = used.saturating_sub(held.sum::<u64>() + gone);
            let (_, least) = counted.others[gpu];
            let shown = self.shown.get_mut(gpu).unwrap();
            *shown = (*shown).max(surely.min(least));
            // What is explained by what runs and others is not going; but what went since the driver was asked may have
            // loaded more since it counted. The oldest has ended first.
            let rest = used.saturating_sub(ran.sum::<u64>() + *shown);
            let rest = rest + gone.saturating_sub(then.get(gpu).copied().unwrap_or(0));
            // What was found may have been loaded behind the last figure, which did not have it then.
            let rest = rest + self.found.get(gpu).copied().unwrap_or(0);
            going.iter_mut().for_each(|(_, figures)| *figures -= 1);
            going.retain(|&(_, figures)| figures > 0);
            let gone: u64 = going.iter().map(|(bytes, _)| bytes).sum();
            let mut less = gone.saturating_sub(rest);
            for (bytes, _) in going {
                let ended = less.min(*bytes);
                (*bytes, less) = (*bytes - ended, less - ended);
            }
        }
        for ghost in &mut self.ghosts {
            ghost.figures = ghost.figures.saturating_sub(1);
        }
        self.ghosts.retain(|ghost| ghost.figures > 0);
    }

    /// Beside what others hold, and have held since a figure showed it, everything that was promised has room.
    pub fn check_promises(&self, on: impl Fn(&GpuId) -> bool) {
        let state = self.state();
        for (gpu, &memory) in self.memory.iter().filter(|(gpu, _)| on(gpu)) {
            let promised = self.engines.iter().map(|e| {
                let r = state.reservation(e.id).unwrap();
                match (r.phase, e.going) {
                    (Phase::Leaving, _) => 0,
                    (_, true) => e.there.get(gpu).copied().unwrap_or(0).min(r.bytes_on(gpu)),
                    (_, false) => r.bytes_on(gpu),
                }
            });
            let promised = promised.sum::<u64>() + self.shown[gpu];
            assert!(promised <= memory, "{gpu}: {promised} of {memory}");
        }
    }

    pub(super) fn check(&self) {
        if self.manner.others != Others::ComeAndGo {
            assert_eq!(self.shown, self.others);
            if !self.manner.resizes {
                self.check_promises(|_| true);
            }
        }
        self.count();
        let is_fact = self.manner.resizes || self.manner.adopts;
        assert!(is_fact || self.ledger.audit().unwrap().is_empty());
    }

    /// Everything comes to its end.
    pub fn come_to_rest(&mut self) {
        if self.manner.others == Others::ComeAndGo {
            // They may have taken what was promised: then they give it back.
            self.others.values_mut().for_each(|others| *others = 0);
            self.shown = self.others.clone();
        }
        self.ghosts.clear();
        let lingers = std::mem::take(&mut self.manner.lingers);
        let is_still = |e: &Engine| !e.going && e.committed && e.there == e.most;
        for moves in 0.. {
            if self.engines.iter().all(is_still) {
                break;
            }
            if moves > 500 {
                // What another took beyond its promise, or was found to have, is missing here.
                assert!(self.manner.resizes || self.manner.adopts);
                let stuck = self.engines.iter_mut().filter(|e| !is_still(e));
                stuck.for_each(|engine| engine.going = true);
            }
            self.move_one();
            self.stay();
        }
        self.manner.lingers = lingers;
        if self.manner.resizes {
            (0..self.engines.len()).for_each(|at| self.report(at));
        }
        let (before, going) = (self.state(), self.still_going());
        let counted = self.counted();
        self.answer(&before, &going, &counted);
    }
}
