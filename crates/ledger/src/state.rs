//! What is held where: a state that only events change, so that a journal of them is the ledger.

use crate::account::{Account, Figure, Seen, narrow};
use crate::fading::{Fading, FadingSum};
use crate::ids::check_shares;
use crate::{GpuId, Name, ReservationId, Share, StoreError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU64;

/// What a reservation is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Promised; the engine loads, or has not begun to. Counts like any other.
    Pending,
    /// Loaded: the shares are what the engine took.
    Running,
    /// To be unloaded for another: its bytes are promised on, but not free before its release.
    Leaving,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Pending => "still starting",
            Phase::Running => "running",
            Phase::Leaving => "leaving",
        })
    }
}

/// One model's bytes, held by somebody. Times are milliseconds of any clock that all holders share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Its number.
    pub id: ReservationId,
    /// What is loaded.
    pub model: Name,
    /// Who asked: the process to look for when the lease runs out.
    pub holder: Name,
    /// Bytes on each GPU.
    pub shares: Vec<Share>,
    /// What it is doing.
    pub phase: Phase,
    /// When it was reserved.
    pub created_ms: u64,
    /// When it was last used: reserved, committed, or a request began or ended.
    pub active_ms: u64,
    /// Requests it is answering.
    pub requests: u32,
    /// How long a renewal lasts; `None` is a reservation without a lease.
    pub lease_ms: Option<u64>,
    /// When the lease runs out.
    pub lease_until_ms: Option<u64>,
    /// So often in a row it began anew by itself, as the ledger was away, see [`crate::Ledger::reap`].
    #[serde(default, skip_serializing_if = "is_never")]
    pub spared: u32,
    /// For whom it leaves, or was to leave until nobody needed its room any more ([`Event::Stayed`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaves: Option<Leaves>,
    /// What the holder called the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Name>,
    /// Once loaded it stays so until it is told to leave or released, see [`crate::Request::stays`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stays: bool,
}

/// For whom a reservation leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaves {
    /// The reservation that needs its room.
    pub room_for: ReservationId,
    /// What it was doing before.
    pub was: Phase,
}

fn is_never(times: &u32) -> bool {
    *times == 0
}

impl Reservation {
    /// Its bytes on `gpu`, 0 where it has none.
    pub fn bytes_on(&self, gpu: &GpuId) -> u64 {
        let share = self.shares.iter().find(|s| s.gpu == *gpu);
        share.map_or(0, |s| s.bytes.get())
    }

    /// Whether it is loaded as long as it runs. Who was to leave, and then was not, may have begun to unload: until a
    /// request to it begins.
    pub(crate) fn surely_stays(&self) -> bool {
        self.stays && (self.phase == Phase::Leaving || self.leaves.is_none())
    }

    /// Whether the lease has run out by the clock alone: [`crate::Ledger::lapsed`] knows whether its holder had
    /// time to renew it.
    pub fn lapsed(&self, now_ms: u64) -> bool {
        self.lease_until_ms.is_some_and(|until| until < now_ms)
    }
}

/// Something that happened. What has been appended to the store has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// A GPU is there, or has another capacity.
    Gpu {
        /// Which.
        gpu: GpuId,
        /// What models may take of it in all.
        capacity_bytes: NonZeroU64,
    },
    /// A GPU is gone. What was reserved on it stays in the list until it is released, and what the driver last said
    /// of it counts again when it is back.
    GpuGone {
        /// Which.
        gpu: GpuId,
    },
    /// What the driver said is free of a GPU, and which reservations account for how much of the rest.
    Figure {
        /// Which.
        gpu: GpuId,
        /// Free, by the driver.
        free_bytes: u64,
        /// Reservations whose bytes were surely loaded then.
        seen: Vec<Seen>,
        /// By how much those have become fewer since (in snapshots).
        #[serde(default)]
        unconfirmed_bytes: u64,
        /// What others are believed to hold of the capacity: no less than this. Not in journals of before,
        /// where they hold what the figure says.
        #[serde(default)]
        others_bytes: Option<i64>,
        /// What has been adopted since, and was taken already (in snapshots and behind adoptions).
        #[serde(default)]
        adopted_bytes: u64,
        /// What may still be there of reservations that are gone. Not in journals of before.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        going: Vec<Fading>,
        /// By how much more others are believed to hold than before: a reservation that is larger than was promised may
        /// have been that. Not in journals of before.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        risen: Vec<Fading>,
        /// How many events there were when the driver was asked. Not in journals of before.
        #[serde(default)]
        asked: u64,
    },
    /// The driver says no more of a GPU: what it said does not count any longer.
    Forgotten {
        /// Which.
        gpu: GpuId,
    },
    /// As [`Event::Figure`] in journals of before: how much of a GPU is taken by what is not in the ledger,
    /// whatever is released later.
    Probed {
        /// Which.
        gpu: GpuId,
        /// Taken by others.
        foreign_bytes: u64,
    },
    /// A reservation was made, and those of `evict` are to leave for it.
    Reserved {
        /// The reservation.
        reservation: Reservation,
        /// Those that leave.
        evict: Vec<ReservationId>,
    },
    /// The engine has loaded it and says what it took.
    Committed {
        /// Which.
        id: ReservationId,
        /// What it took.
        shares: Vec<Share>,
        /// When.
        at_ms: u64,
    },
    /// The engine says later that it holds something else.
    Measured {
        /// Which.
        id: ReservationId,
        /// What it holds.
        shares: Vec<Share>,
    },
    /// What it was to leave for is gone without having been loaded: it need not leave any more.
    Stayed {
        /// Which.
        id: ReservationId,
    },
    /// Requests began or ended.
    Requests {
        /// Which.
        id: ReservationId,
        /// Active now.
        active: u32,
        /// When.
        at_ms: u64,
    },
    /// The holder is alive.
    Renewed {
        /// Which.
        id: ReservationId,
        /// Until when the lease lasts now.
        until_ms: u64,
    },
    /// The lease would have run out while nobody could renew it, and begins anew.
    Spared {
        /// Which.
        id: ReservationId,
        /// Until when the lease lasts now.
        until_ms: u64,
        /// So often in a row.
        times: u32,
    },
    /// The engine has unloaded it, or never loaded it.
    Released {
        /// Which.
        id: ReservationId,
    },
    /// Numbers below have been given, even where nothing with them is left (in snapshots).
    Numbered {
        /// The next to give.
        next_id: u64,
        /// The last event that changed anything but when a driver was asked.
        #[serde(default)]
        moved: u64,
    },
}

/// The ledger as of one moment. A pure value: deciding reads it, [`State::apply`] changes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub(crate) seq: u64,
    /// The last event that changed anything but when a driver was asked.
    pub(crate) moved: u64,
    pub(crate) next_id: u64,
    pub(crate) gpus: BTreeMap<GpuId, Account>,
    /// Those that are gone and of which the driver had said something: nothing is counted, planned or promised there.
    pub(crate) gone: BTreeMap<GpuId, Account>,
    pub(crate) held: BTreeMap<ReservationId, Reservation>,
}

impl State {
    /// How many events led here.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Everything that is reserved, oldest first.
    pub fn reservations(&self) -> impl Iterator<Item = &Reservation> {
        self.held.values()
    }

    /// One reservation.
    pub fn reservation(&self, id: ReservationId) -> Option<&Reservation> {
        self.held.get(&id)
    }

    /// The next event. An event that cannot have happened changes nothing.
    pub fn apply(&mut self, event: Event) -> Result<(), StoreError> {
        let says_nothing_new = self.is_known(&event);
        let applied = match event {
            Event::Gpu {
                gpu,
                capacity_bytes,
            } => {
                self.open_account(gpu, capacity_bytes.get());
                Ok(())
            }
            Event::GpuGone { gpu } => self.close_account(gpu).ok_or("no such GPU"),
            Event::Forgotten { gpu } => {
                let here = self.gpus.get_mut(&gpu);
                let forget = |account: &mut Account| account.figure = None;
                let forgotten = here.map(forget);
                forgotten
                    .or(self.gone.remove(&gpu).map(drop))
                    .ok_or("no such GPU")
            }
            Event::Figure {
                gpu,
                free_bytes,
                seen,
                unconfirmed_bytes,
                others_bytes,
                adopted_bytes,
                going,
                risen,
                asked,
            } => {
                let mut figure = Figure::new(free_bytes, seen);
                figure.unconfirmed = unconfirmed_bytes;
                figure.going = FadingSum::new(going);
                figure.risen = FadingSum::new(risen);
                figure.asked = asked;
                figure.adopted = adopted_bytes;
                let account = self.gpus.get_mut(&gpu).ok_or("no such GPU");
                account.map(|account| account.takes(figure, others_bytes))
            }
            Event::Probed { gpu, foreign_bytes } => {
                let account = self.gpus.get_mut(&gpu).ok_or("no such GPU");
                account.map(|account| {
                    let free = account.capacity.saturating_sub(foreign_bytes);
                    account.takes(Figure::new(free, Vec::new()), None);
                })
            }
            Event::Reserved { reservation, evict } => self.enter(reservation, &evict),
            Event::Committed { id, shares, at_ms } => {
                self.turns_out(id, &shares);
                self.change(id, |r| {
                    r.shares = shares;
                    r.phase = Phase::Running;
                    r.leaves = None;
                    r.active_ms = r.active_ms.max(at_ms);
                })
            }
            Event::Measured { id, shares } => {
                self.turns_out(id, &shares);
                self.change(id, |r| r.shares = shares)
            }
            Event::Requests { id, active, at_ms } => self.note(id, |r| {
                if active > r.requests {
                    r.leaves = None;
                }
                r.requests = active;
                r.active_ms = r.active_ms.max(at_ms);
            }),
            Event::Renewed { id, until_ms } => self.note(id, |r| {
                (r.lease_until_ms, r.spared) = (Some(until_ms), 0);
            }),
            Event::Spared {
                id,
                until_ms,
                times,
            } => self.note(id, |r| {
                (r.lease_until_ms, r.spared) = (Some(until_ms), times);
            }),
            Event::Stayed { id } => match self.held.get(&id).and_then(|r| r.leaves) {
                Some(leaves) => self.change(id, |r| r.phase = leaves.was),
                None => Err("it leaves for nobody"),
            },
            Event::Released { id } => match self.held.remove(&id) {
                Some(gone) => {
                    self.count(&gone, false);
                    for share in &gone.shares {
                        self.leave_gpu(&share.gpu, &gone, share.bytes.get());
                    }
                    Ok(())
                }
                None => Err("no such reservation"),
            },
            Event::Numbered { next_id, .. } => {
                self.next_id = self.next_id.max(next_id);
                Ok(())
            }
        };
        let seq = self.seq.saturating_add(1);
        match applied {
            Ok(()) => {
                self.seq = seq;
                if !says_nothing_new {
                    self.moved = seq;
                }
                Ok(())
            }
            Err(what) => Err(StoreError::Corrupt {
                seq,
                what: what.to_string(),
            }),
        }
    }

    /// Events that lead from nothing to here (with another `seq`): what a snapshot stores.
    pub fn as_events(&self) -> Vec<Event> {
        let events = |(gpu, account): (&GpuId, &Account)| {
            let capacity = NonZeroU64::new(account.capacity);
            let there = capacity.map(|capacity_bytes| Event::Gpu {
                gpu: gpu.clone(),
                capacity_bytes,
            });
            let figure = account.figure.as_ref();
            let figure = figure.map(|figure| figure.as_event(gpu));
            there.into_iter().chain(figure).collect::<Vec<_>>()
        };
        let gpus = self.gpus.iter().flat_map(events);
        let gone = self.gone.iter().flat_map(|(gpu, account)| {
            let gone = Event::GpuGone { gpu: gpu.clone() };
            events((gpu, account)).into_iter().chain([gone])
        });
        let held = self.held.values().map(|r| Event::Reserved {
            reservation: r.clone(),
            evict: Vec::new(),
        });
        let numbered = Event::Numbered {
            next_id: self.next_id,
            moved: self.moved,
        };
        gpus.chain(gone).chain(held).chain([numbered]).collect()
    }

    /// The state of a snapshot that was taken at `seq`.
    pub fn from_snapshot(seq: u64, events: Vec<Event>) -> Result<State, StoreError> {
        let mut state = State::default();
        let mut last_moved = 0;
        for event in events {
            if let Event::Numbered { moved, .. } = &event {
                last_moved = *moved;
            }
            state.apply(event)?;
        }
        (state.seq, state.moved) = (seq, last_moved);
        Ok(state)
    }

    fn open_account(&mut self, gpu: GpuId, capacity: u64) {
        let mut account = Account {
            capacity,
            ..Account::default()
        };
        let known = self.gpus.remove(&gpu);
        if let Some(known) = known.or(self.gone.remove(&gpu)) {
            account.figure = known.figure;
            // What others hold is the same; how much of it lies beyond the capacity is not.
            let more = i128::from(capacity).saturating_sub(known.capacity.into());
            if let Some(figure) = &mut account.figure {
                figure.others = narrow(more.saturating_add(figure.others.into()));
            }
        }
        for r in self.held.values() {
            account.count(r.phase, r.bytes_on(&gpu), true);
        }
        self.gpus.insert(gpu, account);
    }

    fn close_account(&mut self, gpu: GpuId) -> Option<()> {
        let Account {
            capacity, figure, ..
        } = self.gpus.remove(&gpu)?;
        if figure.is_some() {
            let account = Account {
                capacity,
                figure,
                ..Account::default()
            };
            self.gone.insert(gpu, account);
        }
        Some(())
    }

    /// Whether the event is a figure that says what the last one did, of a later moment.
    fn is_known(&self, event: &Event) -> bool {
        let Event::Figure { gpu, asked, .. } = event else {
            return false;
        };
        let last = self.gpus.get(gpu).and_then(|a| a.figure.clone());
        last.is_some_and(|mut last| {
            last.asked = *asked;
            last.as_event(gpu) == *event
        })
    }

    /// A reservation is gone that had so much of the GPU. Of one that is not there nobody knows what has been unloaded.
    fn leave_gpu(&mut self, gpu: &GpuId, gone: &Reservation, bytes: u64) {
        let is_there = self.gpus.contains_key(gpu);
        if let Some(account) = self.account(gpu) {
            account.released(gone, bytes, is_there);
        }
    }

    /// Of a GPU that is there, or was.
    fn account(&mut self, gpu: &GpuId) -> Option<&mut Account> {
        let here = self.gpus.get_mut(gpu);
        here.or(self.gone.get_mut(gpu))
    }

    fn enter(&mut self, r: Reservation, evict: &[ReservationId]) -> Result<(), &'static str> {
        if self.held.contains_key(&r.id) {
            return Err("a reservation number twice");
        }
        check_shares(&r.shares).map_err(|_| "shares that cannot be")?;
        if !evict.iter().all(|id| self.held.contains_key(id)) {
            return Err("an eviction of what is not there");
        }
        for &id in evict {
            self.change(id, |evicted| {
                evicted.leaves = Some(Leaves {
                    room_for: r.id,
                    was: evicted.phase,
                });
                evicted.phase = Phase::Leaving;
            })?;
        }
        self.next_id = self.next_id.max(r.id.0.saturating_add(1));
        self.count(&r, true);
        self.held.insert(r.id, r);
        Ok(())
    }

    /// What surely stayed of what was taken at a GPU's last figure.
    pub(crate) fn staying(&self, figure: &Figure) -> u128 {
        let stays = |id| self.held.get(id).is_some_and(Reservation::surely_stays);
        let staying = figure.seen.iter().filter(|(id, _)| stays(*id));
        let staying = staying.map(|(_, &bytes)| u128::from(bytes));
        staying.fold(0, u128::saturating_add)
    }

    /// A reservation has other sizes than the ledger had. Where it has less, that may have been so at the last
    /// figure, too.
    fn turns_out(&mut self, id: ReservationId, shares: &[Share]) {
        let Some(r) = self.held.get(&id) else {
            return;
        };
        for (gpu, account) in self.gpus.iter_mut().chain(&mut self.gone) {
            let share = shares.iter().find(|s| s.gpu == *gpu);
            let bytes = share.map_or(0, |s| s.bytes.get());
            account.grown(bytes.saturating_sub(r.bytes_on(gpu)));
            account.limit_seen(id, bytes);
        }
    }

    /// A change that moves no bytes.
    fn note(
        &mut self,
        id: ReservationId,
        change: impl FnOnce(&mut Reservation),
    ) -> Result<(), &'static str> {
        self.held
            .get_mut(&id)
            .map(change)
            .ok_or("no such reservation")
    }

    fn change(
        &mut self,
        id: ReservationId,
        change: impl FnOnce(&mut Reservation),
    ) -> Result<(), &'static str> {
        let mut r = self.held.remove(&id).ok_or("no such reservation")?;
        self.count(&r, false);
        change(&mut r);
        self.count(&r, true);
        self.held.insert(id, r);
        Ok(())
    }

    fn count(&mut self, r: &Reservation, add: bool) {
        for share in &r.shares {
            if let Some(account) = self.gpus.get_mut(&share.gpu) {
                account.count(r.phase, share.bytes.get(), add);
            }
        }
    }
}
