//! Where events are kept. A store is a log with one rule: an append names the event that it follows,
//! and fails if another came first. That is a compare-and-put in etcd, a transaction in a database,
//! a lock in memory; with it any number of ledgers over one store never promise the same byte twice.

use crate::{Event, Lock, State, StoreError};
use std::sync::{Arc, Mutex};

/// A log of events.
pub trait Store {
    /// Appends `events`, all or none, as numbers `after + 1` and on. When this returns they survive
    /// a crash. [`StoreError::Conflict`] where the last event is not number `after`.
    fn append(&mut self, after: u64, events: &[Event]) -> Result<(), StoreError>;

    /// What has happened since event `after`.
    fn read(&mut self, after: u64) -> Result<Tail, StoreError>;

    /// Stores `state` in place of the events up to its number. A store may ignore it.
    fn compact(&mut self, state: &State) -> Result<(), StoreError>;
}

/// A store that is chosen while the program runs.
impl<S: Store + ?Sized> Store for Box<S> {
    fn append(&mut self, after: u64, events: &[Event]) -> Result<(), StoreError> {
        (**self).append(after, events)
    }

    fn read(&mut self, after: u64) -> Result<Tail, StoreError> {
        (**self).read(after)
    }

    fn compact(&mut self, state: &State) -> Result<(), StoreError> {
        (**self).compact(state)
    }
}

/// What a store has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// A state to start from, as its number and [`State::as_events`], where the events since `after`
    /// are no longer all there.
    pub snapshot: Option<(u64, Vec<Event>)>,
    /// The events after that.
    pub events: Vec<Event>,
}

/// Keeps nothing: the ledger lives and dies with its process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Volatile;

impl Store for Volatile {
    fn append(&mut self, _: u64, _: &[Event]) -> Result<(), StoreError> {
        Ok(())
    }

    fn read(&mut self, _: u64) -> Result<Tail, StoreError> {
        Ok(Tail::default())
    }

    fn compact(&mut self, _: &State) -> Result<(), StoreError> {
        Ok(())
    }
}

/// The log that clones of a [`Memory`] share.
#[derive(Debug, Default)]
pub struct Log {
    snapshot: (u64, Vec<Event>),
    events: Vec<Event>,
}

/// A log in memory. Clones are the same log, as several processes over one etcd are.
#[derive(Debug)]
pub struct Memory<L = Mutex<Log>>(Arc<L>);

impl<L> Clone for Memory<L> {
    fn clone(&self) -> Self {
        Memory(Arc::clone(&self.0))
    }
}

impl Memory {
    /// An empty log.
    pub fn new() -> Self {
        Self::default()
    }
}

impl<L: Lock<Log>> Default for Memory<L> {
    fn default() -> Self {
        Memory(Arc::new(L::new(Log::default())))
    }
}

impl Log {
    fn last(&self) -> u64 {
        let events = u64::try_from(self.events.len()).unwrap_or(u64::MAX);
        self.snapshot.0.saturating_add(events)
    }

    /// Events from the snapshot to number `seq`.
    fn up_to(&self, seq: u64) -> usize {
        usize::try_from(seq.saturating_sub(self.snapshot.0)).unwrap_or(usize::MAX)
    }
}

impl<L: Lock<Log>> Store for Memory<L> {
    fn append(&mut self, after: u64, events: &[Event]) -> Result<(), StoreError> {
        self.0.with(|log| {
            if log.last() != after {
                return Err(StoreError::Conflict);
            }
            log.events.extend_from_slice(events);
            Ok(())
        })
    }

    fn read(&mut self, after: u64) -> Result<Tail, StoreError> {
        self.0.with(|log| {
            let gone = after < log.snapshot.0;
            let events = log.events.get(log.up_to(after)..).unwrap_or_default();
            Ok(Tail {
                snapshot: gone.then(|| log.snapshot.clone()),
                events: events.to_vec(),
            })
        })
    }

    fn compact(&mut self, state: &State) -> Result<(), StoreError> {
        self.0.with(|log| {
            if state.seq() > log.snapshot.0 && state.seq() <= log.last() {
                log.events
                    .drain(..log.up_to(state.seq()).min(log.events.len()));
                log.snapshot = (state.seq(), state.as_events());
            }
            Ok(())
        })
    }
}
