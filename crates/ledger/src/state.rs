//! What is held where: a state that only events change, so that a journal of them is the ledger.

use crate::account::{Account, Figure, Seen, narrow};
use crate::fading::{Fading, FadingSum};
use crate::ids::check_shares;
use crate::{GpuId, Name, ReservationId, Share, Shortfall, StoreError};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
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
    /// What the holder called the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Name>,
    /// Once loaded it stays so until it is told to leave or released, see [`crate::Request::stays`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stays: bool,
}

impl Reservation {
    /// Its bytes on `gpu`, 0 where it has none.
    pub fn bytes_on(&self, gpu: &GpuId) -> u64 {
        let share = self.shares.iter().find(|s| s.gpu == *gpu);
        share.map_or(0, |s| s.bytes.get())
    }

    /// Whether the lease has run out.
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
    /// A GPU is gone. What was reserved on it stays in the list until it is released.
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
    /// The engine has unloaded it, or never loaded it.
    Released {
        /// Which.
        id: ReservationId,
    },
    /// Numbers below have been given, even where nothing with them is left (in snapshots).
    Numbered {
        /// The next to give.
        next_id: u64,
    },
}

/// The ledger as of one moment. A pure value: deciding reads it, [`State::apply`] changes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub(crate) seq: u64,
    pub(crate) next_id: u64,
    pub(crate) gpus: BTreeMap<GpuId, Account>,
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
        let applied = match event {
            Event::Gpu {
                gpu,
                capacity_bytes,
            } => {
                self.open_account(gpu, capacity_bytes.get());
                Ok(())
            }
            Event::GpuGone { gpu } => self.gpus.remove(&gpu).map(drop).ok_or("no such GPU"),
            Event::Figure {
                gpu,
                free_bytes,
                seen,
                unconfirmed_bytes,
                others_bytes,
                adopted_bytes,
                going,
                risen,
            } => {
                let mut figure = Figure::new(free_bytes, seen);
                figure.unconfirmed = unconfirmed_bytes;
                figure.going = FadingSum::new(going);
                figure.risen = FadingSum::new(risen);
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
                    r.active_ms = r.active_ms.max(at_ms);
                })
            }
            Event::Measured { id, shares } => {
                self.turns_out(id, &shares);
                self.change(id, |r| r.shares = shares)
            }
            Event::Requests { id, active, at_ms } => self.note(id, |r| {
                r.requests = active;
                r.active_ms = r.active_ms.max(at_ms);
            }),
            Event::Renewed { id, until_ms } => self.note(id, |r| r.lease_until_ms = Some(until_ms)),
            Event::Released { id } => match self.held.remove(&id) {
                Some(gone) => {
                    self.count(&gone, false);
                    for share in &gone.shares {
                        if let Some(account) = self.gpus.get_mut(&share.gpu) {
                            account.released(&gone, share.bytes.get());
                        }
                    }
                    Ok(())
                }
                None => Err("no such reservation"),
            },
            Event::Numbered { next_id } => {
                self.next_id = self.next_id.max(next_id);
                Ok(())
            }
        };
        let seq = self.seq.saturating_add(1);
        match applied {
            Ok(()) => {
                self.seq = seq;
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
        let gpus = self.gpus.iter().flat_map(|(gpu, account)| {
            let capacity = NonZeroU64::new(account.capacity);
            let there = capacity.map(|capacity_bytes| Event::Gpu {
                gpu: gpu.clone(),
                capacity_bytes,
            });
            let figure = account.figure.as_ref();
            let figure = figure.map(|figure| figure.as_event(gpu));
            there.into_iter().chain(figure)
        });
        let held = self.held.values().map(|r| Event::Reserved {
            reservation: r.clone(),
            evict: Vec::new(),
        });
        let numbered = Event::Numbered {
            next_id: self.next_id,
        };
        gpus.chain(held).chain([numbered]).collect()
    }

    /// The state of a snapshot that was taken at `seq`.
    pub fn from_snapshot(seq: u64, events: Vec<Event>) -> Result<State, StoreError> {
        let mut state = State::default();
        for event in events {
            state.apply(event)?;
        }
        state.seq = seq;
        Ok(state)
    }

    fn open_account(&mut self, gpu: GpuId, capacity: u64) {
        let mut account = Account {
            capacity,
            ..Account::default()
        };
        if let Some(known) = self.gpus.remove(&gpu) {
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

    fn enter(&mut self, r: Reservation, evict: &[ReservationId]) -> Result<(), &'static str> {
        if self.held.contains_key(&r.id) {
            return Err("a reservation number twice");
        }
        check_shares(&r.shares).map_err(|_| "shares that cannot be")?;
        if !evict.iter().all(|id| self.held.contains_key(id)) {
            return Err("an eviction of what is not there");
        }
        for &id in evict {
            self.change(id, |r| r.phase = Phase::Leaving)?;
        }
        self.next_id = self.next_id.max(r.id.0.saturating_add(1));
        self.count(&r, true);
        self.held.insert(r.id, r);
        Ok(())
    }

    /// What surely stayed of what was taken at a GPU's last figure.
    pub(crate) fn staying(&self, figure: &Figure) -> u128 {
        let stays = |id| self.held.get(id).is_some_and(|r| r.stays);
        let staying = figure.seen.iter().filter(|(id, _)| stays(*id));
        let staying = staying.map(|(_, &bytes)| u128::from(bytes));
        staying.fold(0, u128::saturating_add)
    }

    /// A reservation has other sizes than the ledger had. Where it has less, that may have been so at the last figure, too.
    fn turns_out(&mut self, id: ReservationId, shares: &[Share]) {
        let Some(r) = self.held.get(&id) else {
            return;
        };
        for (gpu, account) in &mut self.gpus {
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

/// One GPU as the next decision sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GpuView {
    /// Which.
    pub gpu: GpuId,
    /// What models may take of it in all.
    pub capacity_bytes: u64,
    /// Pending and running reservations.
    pub reserved_bytes: u64,
    /// Reservations that are to leave: promised on, not yet free.
    pub leaving_bytes: u64,
    /// Taken by what is not in the ledger, as of the driver's last figure: what is in it beside the reservations, or,
    /// where less is, what others held before: an engine that has unloaded without a word may load again
    /// ([`crate::Request::stays`]).
    pub foreign_bytes: u64,
    /// Loaded by the ledger, but not in the driver's figure if others hold `foreign_bytes`: unloaded without a word,
    /// or larger in the ledger than in memory; or others have less by now.
    #[serde(default)]
    pub missing_bytes: u64,
    /// Of `foreign_bytes`: the bytes of reservations that were released since. The next figure shows whether
    /// they are free.
    #[serde(default)]
    pub unconfirmed_bytes: u64,
    /// What can be promised: `capacity - reserved - foreign`, at least 0.
    pub free_bytes: u64,
}

/// A GPU with more on it than it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Violation {
    /// Which.
    pub gpu: GpuId,
    /// What it has; 0 where the GPU is gone.
    pub capacity_bytes: u64,
    /// What is promised on it, or, with what has yet to leave, still lies there.
    pub reserved_bytes: u128,
    /// By whom.
    pub reservations: Vec<ReservationId>,
}

impl State {
    /// Every GPU.
    pub fn gpus(&self) -> Vec<GpuView> {
        let clamp = |bytes: u128| u64::try_from(bytes).unwrap_or(u64::MAX);
        let view = |(gpu, account): (&GpuId, &Account)| GpuView {
            gpu: gpu.clone(),
            capacity_bytes: account.capacity,
            reserved_bytes: clamp(account.promised),
            leaving_bytes: clamp(account.leaving),
            foreign_bytes: account.foreign(),
            missing_bytes: account.missing(),
            unconfirmed_bytes: account.unconfirmed(),
            free_bytes: u64::try_from(account.room()).unwrap_or(0),
        };
        self.gpus.iter().map(view).collect()
    }

    /// Every over-committed GPU. Counts from the reservations, not from the sums kept beside them.
    pub fn audit(&self) -> Vec<Violation> {
        let mut on: BTreeMap<&GpuId, Vec<(&Reservation, u64)>> = BTreeMap::new();
        for r in self.held.values() {
            for share in &r.shares {
                let there = on.entry(&share.gpu).or_default();
                there.push((r, share.bytes.get()));
            }
        }
        let mut violations = Vec::new();
        for (gpu, there) in on {
            let sum = |in_phase: fn(Phase) -> bool| -> u128 {
                let counted = there.iter().filter(|(r, _)| in_phase(r.phase));
                counted.map(|&(_, bytes)| u128::from(bytes)).sum()
            };
            let reserved = sum(|p| p != Phase::Leaving).max(sum(|p| p != Phase::Pending));
            let capacity = self.gpus.get(gpu).map_or(0, |account| account.capacity);
            if reserved > u128::from(capacity) {
                violations.push(Violation {
                    gpu: gpu.clone(),
                    capacity_bytes: capacity,
                    reserved_bytes: reserved,
                    reservations: there.iter().map(|(r, _)| r.id).collect(),
                });
            }
        }
        violations
    }

    /// The one check, for one GPU and for any number: where `shares` do not fit once `evict` have
    /// left. Empty where they do. [`crate::Error::EvictedTwice`] where `evict` names one twice, which
    /// frees its bytes once.
    pub fn validate(
        &self,
        shares: &[Share],
        evict: &[ReservationId],
    ) -> Result<Vec<Shortfall>, crate::Error> {
        check_shares(shares)?;
        let mut seen = BTreeSet::new();
        if let Some(&id) = evict.iter().find(|&id| !seen.insert(id)) {
            return Err(crate::Error::EvictedTwice(id));
        }
        let leavers = || evict.iter().filter_map(|id| self.held.get(id));
        let leavers = || leavers().filter(|r| r.phase != Phase::Leaving);
        self.shortfalls(shares, |gpu, account| {
            account.room() + leavers().map(|r| i128::from(r.bytes_on(gpu))).sum::<i128>()
        })
    }

    /// Where `shares` are more than `room` says.
    pub(crate) fn shortfalls(
        &self,
        shares: &[Share],
        room: impl Fn(&GpuId, &Account) -> i128,
    ) -> Result<Vec<Shortfall>, crate::Error> {
        let mut short = Vec::new();
        for share in shares {
            let account = self.gpus.get(&share.gpu);
            let account = account.ok_or_else(|| crate::Error::UnknownGpu(share.gpu.clone()))?;
            let room = room(&share.gpu, account);
            if i128::from(share.bytes.get()) > room {
                short.push(Shortfall {
                    gpu: share.gpu.clone(),
                    need_bytes: share.bytes.get(),
                    room_bytes: u64::try_from(room).unwrap_or(0),
                });
            }
        }
        Ok(short)
    }
}
