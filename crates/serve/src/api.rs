//! What goes in and out, in JSON. Keys are only ever added. GPUs go by the server's names for them, as
//! `GET /v1/devices` lists them; sizes are bytes, times milliseconds since 1970.

pub use crate::asked::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vramfit::ledger::{self, Looked, Phase, Reservation, Share, Verdict};
use vramfit::report::Estimate;

fn shares(shares: &[Share]) -> Vec<GpuBytes> {
    shares.iter().map(GpuBytes::from).collect()
}

/// How a holder's report differs from the ledger.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DifferencesReport {
    /// Held in other sizes: the ledger has them as reported now.
    pub resized: Vec<u64>,
    /// Reported, but not in the ledger as this holder's: adopt or unload them.
    pub unknown: Vec<u64>,
    /// Loaded by the ledger, running or told to leave, but not reported: release them.
    pub missing: Vec<u64>,
}

impl From<&ledger::Differences> for DifferencesReport {
    fn from(found: &ledger::Differences) -> DifferencesReport {
        let numbers = |ids: &[ledger::ReservationId]| ids.iter().map(|id| id.0).collect();
        DifferencesReport {
            resized: numbers(&found.resized),
            unknown: numbers(&found.unknown),
            missing: numbers(&found.missing),
        }
    }
}

/// What a reservation is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PhaseWord {
    /// Promised; the engine loads, or has not begun to.
    Pending,
    /// Loaded.
    Running,
    /// To be unloaded for another.
    Leaving,
}

/// A reservation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ReservationReport {
    /// Its number, never given twice.
    pub id: u64,
    /// What is loaded, by its name in the ledger.
    pub model: String,
    /// Who asked.
    pub holder: String,
    /// What it is doing.
    pub phase: PhaseWord,
    /// Bytes on each GPU.
    pub shares: Vec<GpuBytes>,
    /// When it was reserved.
    pub created_ms: u64,
    /// When it was last used.
    pub active_ms: u64,
    /// Requests that it is answering.
    pub requests: u32,
    /// How long a renewal lasts; null without a lease.
    pub lease_ms: Option<u64>,
    /// When the lease runs out; it begins anew where the server was away, as nobody could renew it.
    pub lease_until_ms: Option<u64>,
    /// The Idempotency-Key that it was made with.
    pub key: Option<String>,
    /// Whether its engine is said never to unload it by its own wish.
    #[serde(default)]
    pub stays: bool,
}

impl From<&Reservation> for ReservationReport {
    fn from(r: &Reservation) -> ReservationReport {
        ReservationReport {
            id: r.id.0,
            model: r.model.to_string(),
            holder: r.holder.to_string(),
            phase: match r.phase {
                Phase::Pending => PhaseWord::Pending,
                Phase::Running => PhaseWord::Running,
                Phase::Leaving => PhaseWord::Leaving,
            },
            shares: shares(&r.shares),
            created_ms: r.created_ms,
            active_ms: r.active_ms,
            requests: r.requests,
            lease_ms: r.lease_ms,
            lease_until_ms: r.lease_until_ms,
            key: r.key.as_ref().map(ToString::to_string),
            stays: r.stays,
        }
    }
}

/// A reservation that was made.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ReservedReport {
    /// The reservation.
    pub reservation: ReservationReport,
    /// Where everything goes, with llama-server's flags.
    pub estimate: Estimate,
    /// To be unloaded, then released, before this one is loaded.
    pub evict: Vec<EvictionReport>,
    /// Evictions for others that have to be released first, too: until they are, or do not leave any more.
    pub waits_for: Vec<u64>,
    /// What was looked at.
    pub options: Vec<LookedAt>,
    /// The GPUs before.
    pub before: Vec<GpuSums>,
    /// The GPUs with it.
    pub after: Vec<GpuSums>,
}

/// What is promised of a GPU.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct GpuSums {
    /// Which.
    pub gpu: String,
    /// What models may take of it in all.
    pub capacity_bytes: u64,
    /// Promised to reservations that start or run.
    pub reserved_bytes: u64,
    /// Promised on, but held until what is to leave has left.
    pub leaving_bytes: u64,
    /// Taken by what is not in the ledger.
    pub foreign_bytes: u64,
    /// Loaded by the ledger, but not there by the driver if others hold `foreign_bytes`.
    #[serde(default)]
    pub missing_bytes: u64,
    /// Of `foreign_bytes`: released since the driver was asked.
    #[serde(default)]
    pub unconfirmed_bytes: u64,
    /// What can be promised.
    pub free_bytes: u64,
}

impl From<&ledger::GpuView> for GpuSums {
    fn from(view: &ledger::GpuView) -> GpuSums {
        GpuSums {
            gpu: view.gpu.gpu().to_string(),
            capacity_bytes: view.capacity_bytes,
            reserved_bytes: view.reserved_bytes,
            leaving_bytes: view.leaving_bytes,
            foreign_bytes: view.foreign_bytes,
            missing_bytes: view.missing_bytes,
            unconfirmed_bytes: view.unconfirmed_bytes,
            free_bytes: view.free_bytes,
        }
    }
}

/// The last decisions, the latest first.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DecisionList {
    /// They.
    pub decisions: Vec<DecisionReport>,
    /// What `before` is for the page behind this one; null where nothing older is kept.
    #[serde(default)]
    pub next: Option<u64>,
}

/// How a request for a reservation was answered, and why.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DecisionReport {
    /// Its number since the server was started, from 1.
    #[serde(default)]
    pub number: u64,
    /// When.
    pub at_ms: u64,
    /// What was to be loaded, by its name in the ledger.
    pub model: String,
    /// Who asked.
    pub holder: String,
    /// The reservation that was made; null where it was refused.
    pub reservation: Option<u64>,
    /// What sort of refusal, as in its problem; null where it was not refused.
    pub refused: Option<String>,
    /// Why it was refused, on one line.
    pub detail: Option<String>,
    /// Options that the ledger has looked at, in order.
    pub options: Vec<LookedAt>,
    /// Placements that do not fit even on empty GPUs.
    pub rejected: Vec<vramfit::report::RejectedReport>,
    /// The GPUs before.
    pub before: Vec<GpuSums>,
    /// The GPUs after; as before where it was refused.
    pub after: Vec<GpuSums>,
}

/// A reservation that is to leave.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct EvictionReport {
    /// Which.
    pub id: u64,
    /// What it has loaded.
    pub model: String,
    /// Who holds it.
    pub holder: String,
    /// What it frees.
    pub frees: Vec<GpuBytes>,
    /// For how long it has not been used.
    pub idle_ms: u64,
}

impl From<&ledger::Eviction> for EvictionReport {
    fn from(e: &ledger::Eviction) -> EvictionReport {
        EvictionReport {
            id: e.id.0,
            model: e.model.to_string(),
            holder: e.holder.to_string(),
            frees: shares(&e.frees),
            idle_ms: e.idle_ms,
        }
    }
}

/// What came of an option.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LookedWord {
    /// This one.
    Taken,
    /// Would have done; another was better.
    Behind,
    /// Does not fit.
    Short,
}

/// An option that the ledger has looked at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct LookedAt {
    /// Bytes on each GPU.
    pub shares: Vec<GpuBytes>,
    /// What would have to leave.
    pub evict: Vec<u64>,
    /// What came of it.
    pub verdict: LookedWord,
    /// GPUs that fall short.
    pub shortfalls: Vec<GpuShortfall>,
}

impl From<&Looked> for LookedAt {
    fn from(looked: &Looked) -> LookedAt {
        let (verdict, short) = match &looked.verdict {
            Verdict::Taken => (LookedWord::Taken, None),
            Verdict::Short(short) => (LookedWord::Short, Some(short)),
            _ => (LookedWord::Behind, None),
        };
        LookedAt {
            shares: shares(&looked.shares),
            evict: looked.evict.iter().map(|id| id.0).collect(),
            verdict,
            shortfalls: short
                .into_iter()
                .flatten()
                .map(GpuShortfall::from)
                .collect(),
        }
    }
}

/// A GPU that falls short.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct GpuShortfall {
    /// Which.
    pub gpu: String,
    /// What it would take.
    pub need_bytes: u64,
    /// What there is, with everything gone that could be evicted.
    pub room_bytes: u64,
}

impl From<&ledger::Shortfall> for GpuShortfall {
    fn from(short: &ledger::Shortfall) -> GpuShortfall {
        GpuShortfall {
            gpu: short.gpu.gpu().to_string(),
            need_bytes: short.need_bytes,
            room_bytes: short.room_bytes,
        }
    }
}

/// All reservations, oldest first.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ReservationList {
    /// They.
    pub reservations: Vec<ReservationReport>,
}

/// The server's GPUs, in CUDA's order.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DeviceList {
    /// They.
    pub devices: Vec<GpuReport>,
    /// How asking the driver went; null where the GPUs were given by hand.
    pub probe: Option<ProbeReport>,
}

/// A GPU of the server's.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct GpuReport {
    /// What CUDA calls it: `CUDA0`.
    pub cuda: String,
    /// The server's name for it, in reservations.
    pub gpu: String,
    /// As people call it.
    pub name: String,
    /// Its compute capability: `8.6`.
    pub compute_capability: String,
    /// Streaming multiprocessors; null where not known.
    pub sm_count: Option<u32>,
    /// All of its memory.
    pub total_bytes: u64,
    /// What models may take of it in all.
    pub capacity_bytes: u64,
    /// Promised to reservations that start or run.
    pub reserved_bytes: u64,
    /// Promised on, but held until what is to leave has left.
    pub leaving_bytes: u64,
    /// Taken by what is not in the ledger: by the driver's last figure, or, where less is taken now, what was so
    /// before, as an engine may have unloaded without a word and may load again (`stays`).
    pub foreign_bytes: u64,
    /// Loaded by the ledger, but not there by the driver if others hold `foreign_bytes`: unloaded without a word, or
    /// larger in the ledger than in memory; or others have less by now.
    #[serde(default)]
    pub missing_bytes: u64,
    /// Of `foreign_bytes`: released since the driver was asked, which has yet to say that they are free.
    pub unconfirmed_bytes: u64,
    /// What can be promised.
    pub free_bytes: u64,
    /// Whether it is known what others take of it. Where the driver has not said what is free, all of it is
    /// promised.
    pub free_known: bool,
}

/// What came of asking the driver what is free.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ProbeReport {
    /// Seconds since it last answered; null where it never has.
    pub answered_s: Option<u64>,
    /// Why it did not answer the last time; null where it did.
    pub error: Option<String>,
}

/// The ledger as of now.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct LedgerReport {
    /// How many events led here.
    pub seq: u64,
    /// What is free, GPU by GPU.
    pub devices: Vec<GpuReport>,
    /// Everything that is reserved, oldest first.
    pub reservations: Vec<ReservationReport>,
    /// Who holds how much.
    pub holders: Vec<HolderReport>,
    /// Every over-committed GPU; empty in a sound ledger.
    pub violations: Vec<ViolationReport>,
}

/// Who holds how much.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct HolderReport {
    /// Who.
    pub holder: String,
    /// Which reservations.
    pub reservations: Vec<u64>,
    /// Their bytes on all GPUs together.
    pub bytes: u64,
}

/// A GPU with more on it than it has.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ViolationReport {
    /// Which.
    pub gpu: String,
    /// What it has; 0 where the GPU is gone.
    pub capacity_bytes: u64,
    /// What is promised on it.
    pub reserved_bytes: u64,
    /// By whom.
    pub reservations: Vec<u64>,
}

impl From<&ledger::Violation> for ViolationReport {
    fn from(violation: &ledger::Violation) -> ViolationReport {
        ViolationReport {
            gpu: violation.gpu.gpu().to_string(),
            capacity_bytes: violation.capacity_bytes,
            reserved_bytes: u64::try_from(violation.reserved_bytes).unwrap_or(u64::MAX),
            reservations: violation.reservations.iter().map(|id| id.0).collect(),
        }
    }
}

/// That the server is there.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    /// `ok`.
    pub status: String,
    /// The engine build that the figures are of.
    pub engine: String,
    /// The server's version.
    pub version: String,
    /// How asking the driver went; null where the GPUs were given by hand.
    pub probe: Option<ProbeReport>,
}
