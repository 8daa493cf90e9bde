//! The ledger against the world: what the driver says is free, what an engine says it holds, and
//! holders that are no longer there.

use crate::account::{Figure, MayHold, Seen};
use crate::hold::Decided;
use crate::ids::check_shares;
use crate::lease::{Lease, Presence};
use crate::{Error, Event, GpuId, Name, Phase, Reservation, ReservationId, Share, State};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What the driver says of a GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Which.
    pub gpu: GpuId,
    /// Free, by the driver.
    pub free_bytes: u64,
}

/// What a probe has shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Drift {
    /// Which GPU.
    pub gpu: GpuId,
    /// Taken, but by nothing in the ledger that runs. What a reservation that starts or leaves has in memory
    /// is in here too, until the next probe: too little is promised rather than too much. So is what others had
    /// before and is not taken any more, as far as an engine that need not stay ([`crate::Request::stays`]) may have
    /// unloaded as much without a word: it may load again.
    pub foreign_bytes: u64,
    /// In the ledger as running, but not in the driver's figure if others hold `foreign_bytes`: models that are larger
    /// in the ledger than in memory, or an engine that has unloaded one without a word; or others have less by now.
    pub missing_bytes: u64,
}

/// What an engine says it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// By the number it was granted.
    pub id: ReservationId,
    /// Bytes on each GPU.
    pub shares: Vec<Share>,
}

/// How an engine's report differs from the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Differences {
    /// Held in other sizes: the ledger has them as reported now.
    pub resized: Vec<ReservationId>,
    /// Reported, but not in the ledger as this holder's: adopt or unload them.
    pub unknown: Vec<ReservationId>,
    /// Loaded by the ledger, running or told to leave, but not reported: release them.
    pub missing: Vec<ReservationId>,
}

/// Reservations whose lease has run out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Reaped {
    /// Dropped: the probes say what of them is still on the GPUs.
    pub released: Vec<Reservation>,
    /// Kept, because a GPU of theirs was not probed.
    pub unprobed: Vec<ReservationId>,
}

impl State {
    /// From now on a GPU has `min(driver - pending, capacity - ledger)` free, see [`Figure`].
    ///
    /// `before` is the ledger as it was when the driver was asked: of what it holds now, only what it held
    /// then, too, is surely in the driver's figure.
    pub(crate) fn probe(&self, before: &State, probes: &[Probe]) -> Decided<Vec<Drift>> {
        let mut events = Vec::new();
        let mut drifts = Vec::new();
        for probe in probes {
            let (drift, event) = self.drift(before, probe, &[])?;
            events.extend(event);
            drifts.push(drift);
        }
        Ok((events, drifts))
    }

    /// What `probe` shows once those of `gone` are, and the event if that is news. What is overtaken shows nothing.
    fn drift(
        &self,
        before: &State,
        probe: &Probe,
        gone: &[&Reservation],
    ) -> Result<(Drift, Option<Event>), Error> {
        let account = self.gpus.get(&probe.gpu);
        let account = account.ok_or_else(|| Error::UnknownGpu(probe.gpu.clone()))?;
        if let Some(last) = &account.figure
            && self.is_overtaken(before, &probe.gpu)
        {
            return Ok((last.drift(&probe.gpu, account.capacity), None));
        }
        let is_gone = |id| gone.iter().any(|g| g.id == id);
        let here = || self.held.values().filter(|r| !is_gone(r.id));
        let mut staying = 0u128;
        let seen = here().filter_map(|r| {
            let then = before.held.get(&r.id)?;
            let bytes = loaded(then, &probe.gpu).min(loaded(r, &probe.gpu));
            let stays = r.surely_stays() && then.surely_stays();
            staying = staying.saturating_add(if stays { bytes.into() } else { 0 });
            (bytes > 0).then_some(Seen { id: r.id, bytes })
        });
        let mut figure = Figure::new(probe.free_bytes, seen.collect());
        let capacity = account.capacity;
        let held = may_have_held(here(), before, self, &probe.gpu);
        match &account.figure {
            Some(last) => {
                let mut going = last.going.clone();
                gone.iter().for_each(|r| going.add(r.bytes_on(&probe.gpu)));
                let then = before.gpus.get(&probe.gpu);
                let then = then.and_then(|account| account.figure.as_ref());
                let then = then.map_or(0, |figure| figure.going.sum());
                let may = MayHold {
                    capacity,
                    held,
                    staying,
                };
                figure.follows(last, going, then, may);
            }
            None => figure.begins(held, capacity),
        }
        // What goes now changes the last figure, too.
        let goes = gone.iter().any(|r| r.bytes_on(&probe.gpu) > 0);
        let asked = account.figure.as_ref().map_or(0, |last| last.asked);
        figure.asked = asked;
        // Where it says nothing new, it still says it of a later moment than answers that are yet to come.
        let is_later = asked < before.seq && asked < self.moved;
        let is_news = goes || is_later || account.figure.as_ref() != Some(&figure);
        figure.asked = before.seq;
        let drift = figure.drift(&probe.gpu, capacity);
        Ok((drift, is_news.then(|| figure.as_event(&probe.gpu))))
    }

    /// Whether an answer to a newer question was there before that to the question of `before`.
    fn is_overtaken(&self, before: &State, gpu: &GpuId) -> bool {
        let account = self.gpus.get(gpu);
        let last = account.and_then(|account| account.figure.as_ref());
        last.is_some_and(|last| before.seq < last.asked)
    }

    /// Those whose leases have run out, and the events by which others begin anew.
    fn leases(&self, presence: &Presence, now_ms: u64) -> (Vec<&Reservation>, Vec<Event>) {
        let (mut ran_out, mut anew) = (Vec::new(), Vec::new());
        for r in self.held.values() {
            match r.lease(presence, now_ms) {
                Lease::Runs => {}
                Lease::Anew(event) => anew.push(event),
                Lease::RanOut => ran_out.push(r),
            }
        }
        (ran_out, anew)
    }

    /// Those whose leases have run out.
    pub(crate) fn lapsed(&self, presence: &Presence, now_ms: u64) -> Decided<Vec<Reservation>> {
        let (ran_out, anew) = self.leases(presence, now_ms);
        Ok((anew, ran_out.into_iter().cloned().collect()))
    }

    /// Drops reservations whose lease has run out, together with a probe taken just before: a dead
    /// holder's engine may live on, and its memory then counts as foreign.
    ///
    /// `before` is the ledger as it was when the driver was asked: of what it holds now, only what it held
    /// then, too, is surely in the driver's figure. Of GPUs in `blind` nobody will ever say what is free.
    pub(crate) fn reap(
        &self,
        before: &State,
        probes: &[Probe],
        blind: &[GpuId],
        (presence, now_ms): (&Presence, u64),
    ) -> Decided<Reaped> {
        let is_probed = |gpu: &GpuId| probes.iter().any(|p| p.gpu == *gpu);
        let probed = |s: &Share| {
            is_probed(&s.gpu) || blind.contains(&s.gpu) || !self.gpus.contains_key(&s.gpu)
        };
        let (ran_out, anew) = self.leases(presence, now_ms);
        let (gone, kept): (Vec<_>, Vec<_>) = ran_out
            .into_iter()
            .partition(|r| r.shares.iter().all(probed));
        let mut events = anew;
        let abandoned = self.abandoned(&gone, |gpu| {
            !is_probed(gpu) || self.is_overtaken(before, gpu)
        });
        events.extend(abandoned);
        events.extend(gone.iter().map(|r| Event::Released { id: r.id }));
        for probe in probes {
            let (_, event) = self.drift(before, probe, &gone)?;
            events.extend(event);
        }
        events.extend(self.stay(&gone, &events));
        let reaped = Reaped {
            released: gone.into_iter().cloned().collect(),
            unprobed: kept.iter().map(|r| r.id).collect(),
        };
        Ok((events, reaped))
    }

    /// Drops reservations whose lease has run out, where nobody can be asked what is still on the GPUs.
    pub(crate) fn expire(&self, presence: &Presence, now_ms: u64) -> Decided<Vec<Reservation>> {
        let blind: Vec<GpuId> = self.gpus.keys().cloned().collect();
        let (events, reaped) = self.reap(self, &[], &blind, (presence, now_ms))?;
        Ok((events, reaped.released))
    }

    /// Before reservations of dead holders are dropped, on GPUs without a new figure. A holder that died may
    /// not have unloaded what was to leave: that it was to says nothing, and it gives nothing back.
    fn abandoned(&self, gone: &[&Reservation], on: impl Fn(&GpuId) -> bool) -> Vec<Event> {
        let mut events = Vec::new();
        for (gpu, account) in self.gpus.iter().filter(|(gpu, _)| on(gpu)) {
            if let Some(mut figure) = account.figure.clone() {
                gone.iter().for_each(|r| figure.limit(r.id, 0));
                let is_news = account.figure.as_ref() != Some(&figure);
                events.extend(is_news.then(|| figure.as_event(gpu)));
            }
        }
        events
    }

    /// Somebody knows what others hold of the capacity.
    pub(crate) fn others_hold(&self, gpu: &GpuId, bytes: u64) -> Decided<()> {
        let account = self.gpus.get(gpu);
        let account = account.ok_or_else(|| Error::UnknownGpu(gpu.clone()))?;
        let told = account.figure.clone().map(|mut figure| {
            figure.tell(bytes);
            figure
        });
        let is_news = told != account.figure;
        let event = told.filter(|_| is_news).map(|figure| figure.as_event(gpu));
        Ok((event.into_iter().collect(), ()))
    }

    /// An engine's own list against the holder's reservations. Sizes are facts and taken over, even
    /// where that over-commits a GPU: the audit shows it, and nothing more is promised there.
    pub(crate) fn reconcile(&self, holder: &Name, report: &[Held]) -> Decided<Differences> {
        let mut events = Vec::new();
        let mut found = Differences::default();
        let mut ids = BTreeSet::new();
        for held in report {
            check_shares(&held.shares)?;
            if !ids.insert(held.id) {
                return Err(Error::ReportedTwice(held.id));
            }
            match self.held.get(&held.id).filter(|r| r.holder == *holder) {
                None => found.unknown.push(held.id),
                Some(r) if r.phase != Phase::Pending && r.shares != held.shares => {
                    // One that is gone may still be held; one that never was is a mistake.
                    let known = |gpu| self.gpus.contains_key(gpu) || r.bytes_on(gpu) > 0;
                    if let Some(share) = held.shares.iter().find(|s| !known(&s.gpu)) {
                        return Err(Error::UnknownGpu(share.gpu.clone()));
                    }
                    let (id, shares) = (held.id, held.shares.clone());
                    events.push(Event::Measured { id, shares });
                    found.resized.push(id);
                }
                Some(_) => {}
            }
        }
        let reported = |r: &&Reservation| report.iter().any(|held| held.id == r.id);
        let theirs = self.held.values().filter(|r| r.holder == *holder);
        let running = theirs.filter(|r| r.phase != Phase::Pending && !reported(r));
        found.missing = running.map(|r| r.id).collect();
        Ok((events, found))
    }
}

impl Figure {
    fn drift(&self, gpu: &GpuId, capacity: u64) -> Drift {
        Drift {
            gpu: gpu.clone(),
            foreign_bytes: self.foreign(capacity),
            missing_bytes: self.missing(capacity),
        }
    }
}

/// What a reservation surely has in the GPU's memory: nothing while it loads or is being unloaded.
fn loaded(r: &Reservation, gpu: &GpuId) -> u64 {
    match r.phase {
        Phase::Pending | Phase::Leaving => 0,
        Phase::Running => r.bytes_on(gpu),
    }
}

/// The most that reservations which are `here`, or are gone since `before`, may have had in a GPU's memory at some
/// moment since: those that start or leave all that is theirs. What is gone is going, too, but a figure that was
/// counted later and came sooner may have shown it ended.
fn may_have_held<'a>(
    here: impl Iterator<Item = &'a Reservation>,
    before: &State,
    now: &State,
    gpu: &GpuId,
) -> u128 {
    let then = |id| before.held.get(id).map_or(0, |r| r.bytes_on(gpu));
    let here = here.map(|r| r.bytes_on(gpu).max(then(&r.id)));
    let gone = before.held.values();
    let gone = gone.filter(|r| !now.held.contains_key(&r.id));
    let all = here.chain(gone.map(|r| r.bytes_on(gpu)));
    all.map(u128::from).fold(0, u128::saturating_add)
}
