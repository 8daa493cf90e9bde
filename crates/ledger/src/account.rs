//! What is promised and loaded of one GPU, and what the driver last said of it.

use crate::{Event, GpuId, Phase, Reservation, ReservationId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A reservation that was loaded when the driver counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Which.
    pub id: ReservationId,
    /// Its bytes in the driver's figure.
    pub bytes: u64,
}

/// The driver's last figure of a GPU. It ages as soon as it is read; what it says for longer is this: what
/// was taken then, but by no reservation that was loaded then and is still held, counts as taken by others.
///
/// So what is promised later is not in the figure and has to find room in it, and what is released later gives
/// nothing back before the next one: an engine unloads before it says so, and the driver may have counted in
/// between. What leaves for another is told to only after the figure, and gives back what it had in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figure {
    /// Free then, and what has left since.
    pub free: u64,
    /// Of what was taken then: the bytes of reservations that are still held.
    pub seen: BTreeMap<ReservationId, u64>,
    /// The sum of those.
    pub known: u128,
    /// The bytes by which those have become fewer since. Nobody knows whether they were still in the figure:
    /// an engine unloads before it says so.
    pub unconfirmed: u64,
}

impl Figure {
    pub fn new(free: u64, seen: Vec<Seen>, unconfirmed: u64) -> Figure {
        let seen: BTreeMap<_, _> = seen.into_iter().map(|s| (s.id, s.bytes)).collect();
        let bytes = seen.values().map(|&bytes| u128::from(bytes));
        Figure {
            free,
            known: bytes.fold(0, u128::saturating_add),
            seen,
            unconfirmed,
        }
    }

    /// What leads here: for snapshots.
    pub fn as_event(&self, gpu: &GpuId) -> Event {
        let seen = self.seen.iter();
        Event::Figure {
            gpu: gpu.clone(),
            free_bytes: self.free,
            seen: seen.map(|(&id, &bytes)| Seen { id, bytes }).collect(),
            unconfirmed_bytes: self.unconfirmed,
        }
    }

    /// At least `bytes` of the reservation, and maybe no more, were in the figure.
    pub fn limit(&mut self, id: ReservationId, bytes: u64) {
        let was = self.forget(id);
        let is = was.min(bytes);
        if is > 0 {
            self.seen.insert(id, is);
            self.known = self.known.saturating_add(is.into());
        }
        let less = was.saturating_sub(is);
        self.unconfirmed = self.unconfirmed.saturating_add(less);
    }

    /// The reservation was in the figure, and has been unloaded since.
    fn leave(&mut self, id: ReservationId) {
        self.free = self.free.saturating_add(self.forget(id));
    }

    fn forget(&mut self, id: ReservationId) -> u64 {
        let bytes = self.seen.remove(&id).unwrap_or(0);
        self.known = self.known.saturating_sub(bytes.into());
        bytes
    }
}

/// A GPU's account. Sums are u128: no number of u64 shares overflows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Account {
    pub capacity: u64,
    /// The driver's last figure, if there was one.
    pub figure: Option<Figure>,
    /// Pending and running.
    pub promised: u128,
    /// Running alone.
    pub running: u128,
    pub leaving: u128,
}

impl Account {
    /// What can still be promised; below zero where it is over-committed.
    pub fn room(&self) -> i128 {
        self.room_beside(self.promised)
    }

    /// The same, if so much were promised.
    pub fn room_beside(&self, promised: u128) -> i128 {
        let taken = promised.saturating_add(self.foreign().into());
        signed(self.capacity.into()).saturating_sub(signed(taken))
    }

    /// Taken by what is not in the ledger, as far as the driver's last figure says.
    pub fn foreign(&self) -> u64 {
        self.figure.as_ref().map_or(0, |figure| {
            let used = u128::from(self.capacity.saturating_sub(figure.free));
            let foreign = used.saturating_sub(figure.known);
            u64::try_from(foreign).unwrap_or(u64::MAX)
        })
    }

    /// Of [`Account::foreign`]: what may only count as taken because it was released after the figure.
    pub fn unconfirmed(&self) -> u64 {
        let since = self.figure.as_ref().map_or(0, |figure| figure.unconfirmed);
        self.foreign().min(since)
    }

    /// The reservation has, or had when the driver counted, no more than `bytes`.
    pub fn limit_seen(&mut self, id: ReservationId, bytes: u64) {
        if let Some(figure) = &mut self.figure {
            figure.limit(id, bytes);
        }
    }

    /// A reservation is gone.
    pub fn released(&mut self, r: &Reservation) {
        match (&mut self.figure, r.phase) {
            (Some(figure), Phase::Leaving) => figure.leave(r.id),
            (Some(figure), _) => figure.limit(r.id, 0),
            (None, _) => {}
        }
    }

    /// What is in the GPU's memory by the ledger: a model that leaves is there until it is released.
    pub fn occupied(&self) -> u128 {
        self.running.saturating_add(self.leaving)
    }

    pub fn count(&mut self, phase: Phase, bytes: u64, add: bool) {
        let change = |sum: &mut u128| {
            *sum = match add {
                true => sum.saturating_add(bytes.into()),
                false => sum.saturating_sub(bytes.into()),
            }
        };
        match phase {
            Phase::Pending => change(&mut self.promised),
            Phase::Leaving => change(&mut self.leaving),
            Phase::Running => {
                change(&mut self.promised);
                change(&mut self.running);
            }
        }
    }
}

pub(crate) fn signed(bytes: u128) -> i128 {
    i128::try_from(bytes).unwrap_or(i128::MAX)
}
