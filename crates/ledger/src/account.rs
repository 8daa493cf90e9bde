//! What is promised and loaded of one GPU, and what the driver last said of it.

use crate::fading::FadingSum;
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
///
/// A total does not tell an engine that has unloaded without a word, and may load again, from others that have
/// gone. So what others held is remembered from figure to figure, see [`believed`]. Nor does it tell a process that
/// takes its time to end after its release from others that have come: so what is gone from the ledger may still be
/// there for some figures ([`Figure::going`]). That only says how little others may hold. While it is in a figure it
/// counts as taken.
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
    /// Bytes of reservations that are gone, whatever they were doing: their processes may still be there.
    pub going: FadingSum,
    /// What others are believed to hold of the capacity at least, see [`believed`]. Below zero where they hold
    /// less than is set aside for them (a capacity below what the GPU has), or reservations are larger
    /// than what is loaded.
    pub others: i64,
    /// By how much more than before, as figures showed more than reservations may have: a reservation that turns out
    /// larger than was promised may have been that.
    pub risen: FadingSum,
    /// What has been adopted since, and so was taken already.
    pub adopted: u64,
    /// How many events there were when the driver was asked: the answer to an older question says nothing new.
    pub asked: u64,
}

impl Figure {
    pub fn new(free: u64, seen: Vec<Seen>) -> Figure {
        let seen: BTreeMap<_, _> = seen.into_iter().map(|s| (s.id, s.bytes)).collect();
        let bytes = seen.values().map(|&bytes| u128::from(bytes));
        Figure {
            free,
            known: bytes.fold(0, u128::saturating_add),
            seen,
            unconfirmed: 0,
            going: FadingSum::default(),
            others: 0,
            risen: FadingSum::default(),
            adopted: 0,
            asked: 0,
        }
    }

    /// Taken of `capacity`, by whomever; below zero where more is free than it.
    pub fn used(&self, capacity: u64) -> i128 {
        i128::from(capacity).saturating_sub(self.free.into())
    }

    /// Taken of `capacity`, but by none of those in the figure; below zero where they are not all there.
    pub fn unexplained(&self, capacity: u64) -> i128 {
        self.used(capacity).saturating_sub(signed(self.known))
    }

    /// Taken of `capacity` by what is not in the ledger.
    pub fn foreign(&self, capacity: u64) -> u64 {
        let foreign = self.unexplained(capacity).max(self.others.into());
        clamped(foreign)
    }

    /// Loaded by the ledger, but not in the figure, if others hold what [`Figure::foreign`] says.
    pub fn missing(&self, capacity: u64) -> u64 {
        let foreign = i128::from(self.foreign(capacity));
        clamped(foreign.saturating_sub(self.unexplained(capacity)))
    }

    /// What the figure makes of what was believed at the `last`, and of what is `going` since, of which `then` when the
    /// driver was asked. Of what is taken, reservations have at most `held`, and at least what is in the figure and
    /// surely stays.
    pub fn follows(&mut self, last: &Figure, going: FadingSum, then: u128, may: MayHold) {
        let (capacity, all) = (may.capacity, going.sum());
        let held = may.held.saturating_add(all);
        self.others = believed(last.others, self.used(capacity), held, may.staying);
        self.risen = last.risen.clone().aged();
        let more = i128::from(self.others).saturating_sub(last.others.into());
        self.risen.add(clamped(more));
        self.risen.less(clamped(more.saturating_neg()));
        // If all that runs is there, what is left beside others is going, or loads. What went only since the driver was
        // asked may have loaded more since it counted.
        let rest = self
            .unexplained(capacity)
            .saturating_sub(self.others.into());
        let rest = u128::try_from(rest).unwrap_or(0);
        self.going = going.aged();
        self.going
            .limit(rest.saturating_add(all.saturating_sub(then)));
    }

    /// The first figure: others have at least what reservations cannot have. What loads may be in it or not.
    pub fn begins(&mut self, held: u128, capacity: u64) {
        self.others = narrow(self.used(capacity).saturating_sub(signed(held)));
    }

    /// What leads here: for snapshots.
    pub fn as_event(&self, gpu: &GpuId) -> Event {
        let seen = self.seen.iter();
        Event::Figure {
            gpu: gpu.clone(),
            free_bytes: self.free,
            seen: seen.map(|(&id, &bytes)| Seen { id, bytes }).collect(),
            unconfirmed_bytes: self.unconfirmed,
            others_bytes: Some(self.others),
            adopted_bytes: self.adopted,
            going: self.going.parts(),
            risen: self.risen.parts(),
            asked: self.asked,
        }
    }

    /// So much of what was taken turns out to be a reservation's. What others were believed to hold may never have
    /// had it: where an engine had unloaded without a word, it may lie in what that one left. So others hold at most
    /// what is taken beside it and beside what surely stayed. Where less was taken than what is believed to be there,
    /// it may have been loaded only after the figure: the belief stays, and the next figure sets it right where it can.
    pub fn adopt(&mut self, bytes: u64, staying: u128, capacity: u64) {
        if self.missing(capacity) > 0 {
            return;
        }
        self.adopted = self.adopted.saturating_add(bytes);
        let ours = signed(staying).saturating_add(self.adopted.into());
        let most = narrow(self.used(capacity).saturating_sub(ours));
        self.risen
            .less(clamped(i128::from(self.others).saturating_sub(most.into())));
        self.others = self.others.min(most);
    }

    /// A reservation turns out so much larger than was promised. Where figures showed more than reservations may
    /// have, and others were believed to have come, it was that. But not where less was taken than is believed to be
    /// there: an engine may have unloaded without a word, and it may lie in what that one left.
    pub fn grow(&mut self, bytes: u64, capacity: u64) {
        if self.missing(capacity) == 0 {
            let less = self.risen.less(bytes);
            self.others = narrow(i128::from(self.others).saturating_sub(less.into()));
        }
    }

    /// Who knows says what others hold. What the figure shows beside its reservations counts as taken all the same.
    pub fn tell(&mut self, others: u64) {
        let believed = self.others;
        self.others = match narrow(others.into()) {
            0 => believed.min(0), // how much less than is set aside, nobody says
            others => others,
        };
        self.risen = FadingSum::default();
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

    /// The reservation was in the figure, and has been unloaded since. What others are believed to hold stays
    /// taken: so much of what leaves was missing already.
    fn leave(&mut self, id: ReservationId, capacity: u64) {
        let others = self.unexplained(capacity).max(self.others.into());
        let beside = self.used(capacity).saturating_sub(others);
        let left = self.forget(id);
        let back = left.min(clamped(beside));
        self.free = self.free.saturating_add(back);
    }

    fn forget(&mut self, id: ReservationId) -> u64 {
        let bytes = self.seen.remove(&id).unwrap_or(0);
        self.known = self.known.saturating_sub(bytes.into());
        bytes
    }
}

/// What reservations can have had of a GPU's capacity when the driver counted.
pub(crate) struct MayHold {
    pub capacity: u64,
    /// At most.
    pub held: u128,
    /// At least, as it does not unload without a word.
    pub staying: u128,
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
        let figure = self.figure.as_ref();
        figure.map_or(0, |figure| figure.foreign(self.capacity))
    }

    /// Loaded by the ledger, but not in the driver's last figure, if others hold what [`Account::foreign`] says.
    pub fn missing(&self) -> u64 {
        let figure = self.figure.as_ref();
        figure.map_or(0, |figure| figure.missing(self.capacity))
    }

    /// Of [`Account::foreign`]: what may only count as taken because it was released after the figure.
    pub fn unconfirmed(&self) -> u64 {
        let since = self.figure.as_ref().map_or(0, |figure| figure.unconfirmed);
        self.foreign().min(since)
    }

    /// The driver has counted. Where nobody says what others hold, it is what the figure says.
    pub fn takes(&mut self, mut figure: Figure, others: Option<i64>) {
        let unexplained = figure.unexplained(self.capacity);
        figure.others = others.unwrap_or_else(|| narrow(unexplained));
        self.figure = Some(figure);
    }

    /// The reservation has, or had when the driver counted, no more than `bytes`.
    pub fn limit_seen(&mut self, id: ReservationId, bytes: u64) {
        if let Some(figure) = &mut self.figure {
            figure.limit(id, bytes);
        }
    }

    /// The reservation has `more` than was promised.
    pub fn grown(&mut self, more: u64) {
        if let Some(figure) = &mut self.figure {
            figure.grow(more, self.capacity);
        }
    }

    /// A reservation is gone that had so much here. Only where the GPU `is_there` it says that what was to leave has.
    pub fn released(&mut self, r: &Reservation, bytes: u64, is_there: bool) {
        let Some(figure) = &mut self.figure else {
            return;
        };
        match r.phase {
            Phase::Leaving if is_there => figure.leave(r.id, self.capacity),
            Phase::Leaving | Phase::Pending | Phase::Running => figure.limit(r.id, 0),
        }
        figure.going.add(bytes);
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

/// What others hold after a figure in which `used` bytes are taken: as much as before, unless the figure rules that
/// out. Of what is taken, reservations have at most all that they may (`held`, with what is going) and at least what
/// does not unload without a word (`staying`), and others the rest.
fn believed(before: i64, used: i128, held: u128, staying: u128) -> i64 {
    let least = used.saturating_sub(signed(held));
    let most = used.saturating_sub(signed(staying)).max(least);
    narrow(i128::from(before).clamp(least, most))
}

pub(crate) fn narrow(bytes: i128) -> i64 {
    let end = if bytes < 0 { i64::MIN } else { i64::MAX };
    i64::try_from(bytes).unwrap_or(end)
}

/// At least 0.
fn clamped(bytes: i128) -> u64 {
    u64::try_from(bytes.max(0)).unwrap_or(u64::MAX)
}

pub(crate) fn signed(bytes: u128) -> i128 {
    i128::try_from(bytes).unwrap_or(i128::MAX)
}
