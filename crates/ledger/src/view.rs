//! What a state comes to: every GPU's figures, the audit, and the one check of what fits.

use crate::account::Account;
use crate::ids::check_shares;
use crate::{GpuId, Phase, Reservation, ReservationId, Share, Shortfall, State};
use serde::{Deserialize, Serialize, Serializer};
use std::collections::{BTreeMap, BTreeSet};

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
    /// What is promised on it, or, with what has yet to leave, still lies there. At most 2^64 - 1 where it is written down:
    /// JSON's readers know no larger integers.
    #[serde(serialize_with = "saturated")]
    pub reserved_bytes: u128,
    /// By whom.
    pub reservations: Vec<ReservationId>,
}

fn saturated<S: Serializer>(bytes: &u128, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(u64::try_from(*bytes).unwrap_or(u64::MAX))
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

    /// Every GPU with more reserved on it than it has. Counts from the reservations, not from the sums kept beside them.
    /// What others hold is no promise and not in it: [`GpuView::foreign_bytes`] beside `reserved_bytes` says where both
    /// are more than there is.
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
