//! Why not, typed: what a caller does next depends on it.

use crate::{Decision, GpuId, Name, Phase, ReservationId, Shortfall};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why the ledger did not do it. Nothing has changed then.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// Would fit on these GPUs, but not now: retry later.
    #[error("no room for {} now: retry later{}", .0.model, .0.shortest())]
    FullNow(Box<Decision>),
    /// As [`Error::FullNow`], but reservations are still starting or leaving: retry when they have.
    #[error(
        "no room for {} while {} still to start or leave: retry then{}",
        .decision.model, are(.pending), .decision.shortest()
    )]
    FullPending {
        /// Those that start or leave on the hosts that were asked for.
        pending: Vec<ReservationId>,
        /// What was looked at.
        decision: Box<Decision>,
    },
    /// Would not fit even if every GPU were empty: fatal.
    #[error("{} does not fit even on empty GPUs{}", .0.model, .0.shortest())]
    NeverFits(Box<Decision>),
    /// No such GPU, or no longer: fatal.
    #[error("unknown GPU {0}")]
    UnknownGpu(GpuId),
    /// No such host: fatal.
    #[error("unknown host {0}")]
    UnknownHost(Name),
    /// No such reservation, or it has been released.
    #[error("unknown reservation {0}")]
    UnknownReservation(ReservationId),
    /// A reservation was made for this request before, and is still held: the answer was lost, or two ask
    /// under one key.
    #[error("{0} was reserved under this key before; use it, or release it and ask again")]
    KeyTaken(ReservationId),
    /// The ledger has moved on since the plan was made, and it no longer holds: plan again.
    #[error("the plan for {model} no longer holds: {why}")]
    StalePlan {
        /// What was to be placed.
        model: Name,
        /// What has changed.
        why: String,
    },
    /// A plan that is not for its own request: nothing that this ledger made. Plan again.
    #[error("the plan for {model} is not what its request asks for: {why}; plan again")]
    NotAsked {
        /// What was to be placed.
        model: Name,
        /// Where they part.
        why: String,
    },
    /// One reservation twice among those that are to leave: its bytes would be promised on twice.
    #[error("{0} is to be evicted twice; plan again")]
    EvictedTwice(ReservationId),
    /// A size that is zero or unknown.
    #[error("a size is zero or unknown")]
    NoSize,
    /// One GPU twice among a model's shares.
    #[error("{0} is named twice")]
    GpuTwice(GpuId),
    /// One reservation twice in an engine's report, maybe in two sizes: report it once.
    #[error("{0} is reported twice; report it once, with all its GPUs")]
    ReportedTwice(ReservationId),
    /// A model's shares on two hosts.
    #[error("{0} and {1} are on two hosts")]
    TwoHosts(GpuId, GpuId),
    /// The engine took more than there is room for: unload it and release the reservation.
    #[error("{id} took more than there is room for{}", crate::request::first(.short))]
    TookTooMuch {
        /// The reservation, which stays as it was.
        id: ReservationId,
        /// Where.
        short: Vec<Shortfall>,
    },
    /// It cannot have been loaded: what it is to replace has not been released.
    #[error("{id} waits: {} to leave first: unload, release, then commit", are(.leaving))]
    Waits {
        /// The reservation, which stays as it was.
        id: ReservationId,
        /// Unload and release these first.
        leaving: Vec<ReservationId>,
    },
    /// Not in this phase.
    #[error("{id} is {phase}")]
    Phase {
        /// The reservation.
        id: ReservationId,
        /// What it is.
        phase: Phase,
    },
    /// A request ended on a reservation that has none.
    #[error("{0} has no active request")]
    NoRequest(ReservationId),
    /// The store did not take it, or could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// So many that a sentence is about.
fn are(reservations: &[ReservationId]) -> String {
    match reservations {
        [one] => format!("{one} is"),
        more => format!("{} reservations are", more.len()),
    }
}

/// What a store can answer instead of doing it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Somebody else has appended first: read on, decide again. The ledger does so by itself.
    #[error("the journal has moved on")]
    Conflict,
    /// The store has not got as far as this ledger, which has read event `seq` there: an older copy was put in its place.
    /// What has happened since is not in it.
    #[error(
        "the journal ends before its event {seq}, as an older copy would: open the ledger again, and adopt what is loaded"
    )]
    Behind {
        /// The last event that was there.
        seq: u64,
    },
    /// What is stored cannot be: event `seq` does not follow from those before it.
    #[error("event {seq} of the journal: {what}")]
    Corrupt {
        /// Its number, from 1.
        seq: u64,
        /// What is wrong.
        what: String,
    },
    /// This process is a child by `fork()` of the one that opened the ledger: what either promised from here on, the
    /// other would promise again.
    #[error(
        "the ledger is process {0}'s, which opened it before this one was forked: reserve there, or let all processes \
         ask one server"
    )]
    AnotherProcess(u32),
    /// The journal cannot be opened: it is in use, or out of reach.
    #[error("cannot open the journal {}: {source}", shown(.file))]
    Open {
        /// Which.
        file: PathBuf,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The journal is cut short or overwritten, or is none. Nothing has been changed in it by this call.
    #[error("{} is damaged or no journal: {what}; put a copy of it in its place, or begin a new one elsewhere", shown(.file))]
    Damaged {
        /// Which.
        file: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The disk, the network: it is not known whether the events were stored. The ledger reads the
    /// journal again before it decides anything else.
    #[error("the store failed: {0}")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A path on one line.
fn shown(file: &Path) -> String {
    match file.as_os_str().is_empty() {
        true => "the journal".to_string(),
        false => format!("{file:?}"),
    }
}

#[cfg(feature = "journal")]
impl StoreError {
    pub(crate) fn damaged(file: impl Into<PathBuf>, what: impl Into<String>) -> StoreError {
        StoreError::Damaged {
            file: file.into(),
            what: what.into(),
        }
    }

    /// Says which file it is that is damaged.
    pub(crate) fn in_file(mut self, path: &Path) -> StoreError {
        if let StoreError::Damaged { file, .. } = &mut self {
            *file = path.to_path_buf();
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_and_several_are_sentences() {
        let waits = |leaving: &[u64]| {
            let leaving = leaving.iter().map(|&n| ReservationId(n)).collect();
            let id = ReservationId(9);
            Error::Waits { id, leaving }.to_string()
        };
        let then = "to leave first: unload, release, then commit";
        assert_eq!(waits(&[3]), format!("#9 waits: #3 is {then}"));
        assert_eq!(
            waits(&[3, 4]),
            format!("#9 waits: 2 reservations are {then}")
        );
    }
}
