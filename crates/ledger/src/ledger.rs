//! The handle: one lock, under which a decision is made, stored and applied in one step.

use crate::hold::Decided;
use crate::lease::Presence;
use crate::owner::Owner;
use crate::reconcile::{Differences, Drift, Held, Probe, Reaped};
use crate::{
    Adopt, Error, Event, GpuId, GpuView, Grant, Name, Plan, Request, Reservation, ReservationId,
    Share, State, Store, StoreError, Tail, Violation,
};
use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};

/// Events after which the journal is made short again.
const COMPACT_AFTER: u64 = 10_000;

/// Mutual exclusion. A trait, so that the same ledger can be proved under another scheduler.
pub trait Lock<T> {
    /// A lock around `value`.
    fn new(value: T) -> Self;
    /// Runs `work` while nobody else has the value.
    fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R;
}

impl<T> Lock<T> for Mutex<T> {
    fn new(value: T) -> Self {
        Mutex::new(value)
    }

    fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        // The state only changes by whole events: after a panic it is still one that has been.
        work(&mut self.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What the lock guards.
pub struct Inner<S> {
    state: State,
    store: S,
    /// The last append may or may not have been stored.
    unsure: bool,
    compacted: u64,
    /// When it was there, so that leases could be renewed.
    presence: Presence,
}

/// A ledger over a store. Share it between threads by reference or `Arc`; every call is atomic. It is its process's own:
/// a child of `fork()` is told so ([`StoreError::AnotherProcess`]), as both would promise the same bytes.
pub struct Ledger<S, L = Mutex<Inner<S>>> {
    lock: L,
    owner: Owner,
    store: std::marker::PhantomData<fn() -> S>,
}

impl<S: Store> Ledger<S> {
    /// Opens the ledger as the store has it. Leases of before that have run out since begin anew when it is first told
    /// the time: while it was not open nobody could renew them, see [`Ledger::reap`].
    pub fn open(store: S) -> Result<Self, Error> {
        Self::open_with(store)
    }
}

impl<S: Store, L: Lock<Inner<S>>> Ledger<S, L> {
    /// As [`Ledger::open`], with another lock.
    pub fn open_with(store: S) -> Result<Self, Error> {
        let mut inner = Inner {
            state: State::default(),
            store,
            unsure: false,
            compacted: 0,
            presence: Presence::default(),
        };
        inner.catch_up()?;
        Ok(Ledger {
            lock: L::new(inner),
            owner: Owner::this(),
            store: std::marker::PhantomData,
        })
    }

    /// Says which GPUs there are and how many bytes models may take of each; new ones are added,
    /// others get this capacity.
    pub fn set_gpus(&self, gpus: &[(GpuId, NonZeroU64)]) -> Result<(), Error> {
        self.transact(|state| {
            let known = |gpu, bytes: u64| {
                let account = state.gpus.get(gpu);
                account.is_some_and(|account| account.capacity == bytes)
            };
            let news = gpus.iter().filter(|(gpu, bytes)| !known(gpu, bytes.get()));
            let event = |(gpu, bytes): &(GpuId, NonZeroU64)| Event::Gpu {
                gpu: gpu.clone(),
                capacity_bytes: *bytes,
            };
            Ok((news.map(event).collect(), ()))
        })
    }

    /// A GPU is gone. Its reservations stay until they are released; the audit lists them. What the driver last said
    /// of it counts again when [`Ledger::set_gpus`] says that it is back.
    pub fn gpu_gone(&self, gpu: &GpuId) -> Result<(), Error> {
        self.transact(|state| match state.gpus.contains_key(gpu) {
            true => Ok((vec![Event::GpuGone { gpu: gpu.clone() }], ())),
            false => Err(Error::UnknownGpu(gpu.clone())),
        })
    }

    /// The driver says no more of a GPU: what it said last does not count any longer, and all of the capacity is
    /// there to be promised. [`Ledger::set_gpus`] says what models may still take.
    pub fn forget_figure(&self, gpu: &GpuId) -> Result<(), Error> {
        self.transact(|state| {
            let known = state.gpus.get(gpu).or(state.gone.get(gpu));
            let known = known.ok_or_else(|| Error::UnknownGpu(gpu.clone()))?;
            let forgotten = known.figure.is_some();
            let event = forgotten.then(|| Event::Forgotten { gpu: gpu.clone() });
            Ok((event.into_iter().collect(), ()))
        })
    }

    /// Where the request would go now. Promises nothing.
    pub fn plan(&self, request: &Request, now_ms: u64) -> Result<Plan, Error> {
        self.transact_at(now_ms, |state, _| {
            Ok((Vec::new(), state.plan(request, now_ms)?))
        })
    }

    /// Reserves what was planned. [`Error::StalePlan`] where that no longer holds.
    pub fn take(&self, plan: &Plan, now_ms: u64) -> Result<Grant, Error> {
        self.transact_at(now_ms, |state, _| state.take(plan, now_ms))
    }

    /// Plans and reserves in one step. The next decision of anybody sees the reservation.
    pub fn reserve(&self, request: &Request, now_ms: u64) -> Result<Grant, Error> {
        self.transact_at(now_ms, |state, _| state.reserve(request, now_ms))
    }

    /// The engine has loaded it and took exactly `shares`.
    pub fn commit(&self, id: ReservationId, shares: &[Share], now_ms: u64) -> Result<(), Error> {
        self.transact_at(now_ms, |state, _| state.commit(id, shares, now_ms))
    }

    /// The engine has unloaded it, or has never loaded it. Where it was never loaded, who was to leave for it alone need
    /// not any more, and is what it was ([`Event::Stayed`]), unless its room has been promised to another since; who
    /// has begun to unload already releases it all the same.
    pub fn release(&self, id: ReservationId) -> Result<(), Error> {
        self.transact(|state| state.release(id))
    }

    /// A request begins: until it ends the reservation is not evicted. [`Error::Phase`] where it is
    /// already leaving.
    pub fn begin_request(&self, id: ReservationId, now_ms: u64) -> Result<(), Error> {
        self.transact_at(now_ms, |state, _| state.requests(id, 1, 0, now_ms))
    }

    /// A request ends.
    pub fn end_request(&self, id: ReservationId, now_ms: u64) -> Result<(), Error> {
        self.transact_at(now_ms, |state, _| state.requests(id, 0, 1, now_ms))
    }

    /// The holder is alive: its lease begins anew. Without a lease nothing happens.
    pub fn renew(&self, id: ReservationId, now_ms: u64) -> Result<(), Error> {
        self.transact_at(now_ms, |state, _| state.renew(id, now_ms))
    }

    /// Reservations whose lease has run out: look for their holders. Where the ledger was away, leases begin anew as by
    /// [`Ledger::reap`].
    pub fn lapsed(&self, now_ms: u64) -> Result<Vec<Reservation>, Error> {
        self.transact_at(now_ms, |state, presence| state.lapsed(presence, now_ms))
    }

    /// Drops reservations whose lease has run out, together with a probe of their GPUs, taken just
    /// before. What an orphaned engine still holds is taken for as long as figures show it.
    ///
    /// A lease has run out where its holder had time to renew it and did not. A ledger is there whenever a call tells it
    /// the time. If there was more than a quarter of the lease between two such calls (its process was stopped or
    /// the machine asleep, or the clock jumped), or before the first since it was opened, or the store failed, then the
    /// lease begins anew when the ledger is back, and runs out a lease later at the earliest. That happens three times in a
    /// row at most without a renewal: so call this, or anything else that takes the time, several times in the shortest
    /// lease, or what a dead holder has is dropped only when its lease has run out the fourth time. Several processes
    /// over one store each know when they were there; who was not gives no more than that.
    ///
    /// A lease that would run for more than twice its length, as the clock was set back, begins anew, too.
    pub fn reap(&self, probes: &[Probe], now_ms: u64) -> Result<Reaped, Error> {
        self.transact_at(now_ms, |state, presence| {
            state.reap(state, probes, &[], (presence, now_ms))
        })
    }

    /// As [`Ledger::reap`] where the driver takes its time: `before` is the ledger as it was when the driver
    /// was asked. What has been loaded since may be in its figures or not, and counts as taken by others until
    /// the next probe. Leases on GPUs in `blind`, of which no driver says what is free, end as with
    /// [`Ledger::expire`].
    pub fn reap_since(
        &self,
        before: &State,
        probes: &[Probe],
        blind: &[GpuId],
        now_ms: u64,
    ) -> Result<Reaped, Error> {
        self.transact_at(now_ms, |state, presence| {
            state.reap(before, probes, blind, (presence, now_ms))
        })
    }

    /// As [`Ledger::reap`] where no driver can be asked: what a dead holder's engine still holds is not
    /// known then, and is promised on (but for what an earlier probe of its GPU leaves).
    pub fn expire(&self, now_ms: u64) -> Result<Vec<Reservation>, Error> {
        self.transact_at(now_ms, |state, presence| state.expire(presence, now_ms))
    }

    /// Something that is already loaded, as when a server starts beside running engines. A fact: it is
    /// not checked, and the audit shows where it is too much. A figure of before it counts it as taken by others,
    /// too, so that less is promised until the next: probe again behind it. Beside an engine that may have unloaded
    /// without a word it may go on counting twice, as it may lie in what that one left; of what is said to stay
    /// ([`Adopt::staying`]) the next figure shows it. It is thought to be in the last figure: what was loaded only since
    /// takes its bytes from what others are believed to hold, until the next figure; so probe before, too.
    pub fn adopt(&self, found: &Adopt, now_ms: u64) -> Result<ReservationId, Error> {
        self.transact_at(now_ms, |state, _| state.adopt(found, now_ms))
    }

    /// What the driver says is free, just now: since it was asked nothing has been committed or released by
    /// anybody. Where that is not sure, [`Ledger::probe_since`].
    ///
    /// Never more than that is promised from now on: free is `min(driver - pending, capacity - ledger)`. A
    /// reservation made later, or committed later, is not in the figure and comes out of what it leaves. One
    /// released later gives back what the figure leaves of the capacity, but no more before the next figure, as it
    /// may have been unloaded before the driver counted ([`GpuView::unconfirmed_bytes`]): probe again when
    /// something was released. Only what leaves by a plan, which is told to after the figure, gives its bytes back
    /// at once.
    ///
    /// So a GPU that was probed once is probed again and again. Where its driver has no more answers, what is released
    /// stays taken: [`Ledger::forget_figure`] then.
    ///
    /// An engine may unload without a word, and load again with its next request (llama-server does when it sleeps).
    /// The driver gives totals: it does not say whether it is that, or others that have gone. So where less is taken
    /// than before, others are believed to hold what they held, as far as reservations that are not said to stay
    /// ([`Request::stays`]) may be what is missing ([`GpuView::missing_bytes`]), and for as long as anything on the
    /// GPU may be.
    ///
    /// A process may outlive its reservation. What it holds is taken while figures show it, and is not believed to be
    /// others' in the 16 figures behind its release, so that it is free when it has ended, whatever else may sleep.
    /// It counts as ended once a figure is explained by what runs and others alone, and as one of the others if it is
    /// still there beyond those figures.
    ///
    /// What totals cannot tell at all, and per-process figures could ([`Ledger::others_hold`]): that others take more
    /// while an engine has unloaded without a word or a released process may still end, by no more than that, or in
    /// the same interval in which it does so or something is loaded, released or adopted; which of the two has gone
    /// where an engine unloads without a word while a released process ends: that counts as others' if the engine
    /// loads again before the other has ended; and what an engine had unloaded before the first figure that could
    /// show it (of what is adopted, the first behind the adoption; of what runs while something loads at the first
    /// figure of all, the first behind that).
    ///
    /// A share larger than the reservation's counts as others'. A commit with more, or [`Ledger::reconcile`] with what
    /// engines say they hold, makes reservations as large as they are: what others were believed to have taken in the
    /// last 16 figures was theirs, as far as they are larger than was promised, and nothing is missing.
    pub fn probe(&self, probes: &[Probe]) -> Result<Vec<Drift>, Error> {
        self.transact(|state| state.probe(state, probes))
    }

    /// As [`Ledger::probe`] with figures of any moment since `before`, the ledger as it was when the driver was
    /// asked. What was loaded or released in between may be in them or not, and is taken as what leaves less.
    ///
    /// The answer to an older question than that of the last figure says nothing any more: it may have been counted
    /// before. Of two questions that were asked of the same ledger nobody knows which was first: ask one at a time.
    pub fn probe_since(&self, before: &State, probes: &[Probe]) -> Result<Vec<Drift>, Error> {
        self.transact(|state| state.probe(before, probes))
    }

    /// What others hold of a GPU's capacity, from who knows: an operator, or per-process figures, of which totals are
    /// the sum. It takes the place of what they are believed to hold, so that what they left beside an engine that
    /// may sleep is free at once, and what they took while one slept is kept for them. What the last figure shows
    /// beside the ledger's own counts as taken all the same, until the next; and later figures are held against it as
    /// ever. Without a figure it says nothing. What is set aside of a GPU (what it has beyond the capacity) is not
    /// part of `bytes`.
    pub fn others_hold(&self, gpu: &GpuId, bytes: u64) -> Result<(), Error> {
        self.transact(|state| state.others_hold(gpu, bytes))
    }

    /// What a holder's engine says it holds. [`Error::ReportedTwice`] where one is in `report` twice.
    pub fn reconcile(&self, holder: &Name, report: &[Held]) -> Result<Differences, Error> {
        self.transact(|state| state.reconcile(holder, report))
    }

    /// Every over-committed GPU.
    pub fn audit(&self) -> Result<Vec<Violation>, Error> {
        self.look(State::audit)
    }

    /// Every GPU as the next decision sees it.
    pub fn gpus(&self) -> Result<Vec<GpuView>, Error> {
        self.look(State::gpus)
    }

    /// The ledger as of now.
    pub fn state(&self) -> Result<State, Error> {
        self.look(State::clone)
    }

    fn look<T>(&self, look: impl FnOnce(&State) -> T) -> Result<T, Error> {
        self.with(|inner| {
            inner.catch_up()?;
            Ok(look(&inner.state))
        })
    }

    fn transact<T>(&self, decide: impl Fn(&State) -> Decided<T>) -> Result<T, Error> {
        self.with(|inner| inner.transact(|state, _| decide(state)))
    }

    /// As [`Ledger::transact`] for what says what time it is: the ledger is there then.
    fn transact_at<T>(
        &self,
        now_ms: u64,
        decide: impl Fn(&State, &Presence) -> Decided<T>,
    ) -> Result<T, Error> {
        self.with(|inner| {
            inner.presence.look(now_ms);
            inner.transact(decide)
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Inner<S>) -> Result<T, Error>) -> Result<T, Error> {
        // First of all: the lock may have been held by a thread that a child does not have.
        self.owner.check()?;
        self.lock.with(work)
    }
}

impl<S: Store> Inner<S> {
    /// Decides, stores, applies. Where somebody else was first, decides again on what is so now.
    fn transact<T>(
        &mut self,
        decide: impl Fn(&State, &Presence) -> Decided<T>,
    ) -> Result<T, Error> {
        if self.unsure {
            self.catch_up()?;
        }
        loop {
            let decided = decide(&self.state, &self.presence);
            let decides = matches!(&decided, Ok((events, _)) if !events.is_empty());
            // What is refused may have become possible elsewhere, and what is no news may be some by now.
            if !decides && self.catch_up()? {
                continue;
            }
            let (events, answer) = decided?;
            match self.append(events) {
                Err(StoreError::Conflict) => {
                    let seq = self.state.seq();
                    if !self.catch_up()? {
                        return Err(StoreError::Behind { seq }.into());
                    }
                }
                done => return Ok(done.map(|()| answer)?),
            }
        }
    }

    fn append(&mut self, events: Vec<Event>) -> Result<(), StoreError> {
        // That nothing is to be stored does not say that it could be.
        if events.is_empty() && !self.presence.failed {
            return Ok(());
        }
        let stored = self.store.append(self.state.seq(), &events);
        if !matches!(stored, Err(StoreError::Conflict)) {
            self.unsure = stored.is_err();
            self.presence.failed = stored.is_err();
        }
        stored?;
        for event in events {
            self.state.apply(event)?;
        }
        if self.state.seq().saturating_sub(self.compacted) >= COMPACT_AFTER {
            // The events are stored; that the journal stays long for now loses nothing.
            let _ = self.store.compact(&self.state);
            self.compacted = self.state.seq();
        }
        Ok(())
    }

    /// Applies what others have appended. Whether there was any.
    fn catch_up(&mut self) -> Result<bool, StoreError> {
        let read = self.store.read(self.state.seq());
        self.presence.failed |= read.is_err();
        let Tail { snapshot, events } = read?;
        let news = snapshot.is_some() || !events.is_empty();
        if let Some((seq, events)) = snapshot {
            self.state = State::from_snapshot(seq, events)?;
            self.compacted = seq;
        }
        for event in events {
            self.state.apply(event)?;
        }
        self.unsure = false;
        Ok(news)
    }
}
