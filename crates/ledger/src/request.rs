//! What is asked for, and what comes back: plans, grants, and the record of why.

use crate::{Error, GpuId, GpuView, Name, Reservation, ReservationId, Share, ids};
use serde::{Deserialize, Serialize};
use std::num::NonZeroU64;

/// One way to place a model, in exact bytes a GPU. There is no total to divide: whoever asks knows
/// what each GPU will take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Shape {
    /// On as many GPUs of one host, whichever have room.
    Anywhere(Vec<NonZeroU64>),
    /// On these GPUs.
    On(Vec<Share>),
}

impl Shape {
    /// On any GPUs of one host. [`Error::NoSize`] where a size is zero or unknown, or there is none.
    pub fn anywhere<T: Into<Option<u64>>>(
        bytes: impl IntoIterator<Item = T>,
    ) -> Result<Self, Error> {
        let bytes: Vec<_> = bytes.into_iter().map(ids::size).collect::<Result<_, _>>()?;
        if bytes.is_empty() {
            return Err(Error::NoSize);
        }
        Ok(Shape::Anywhere(bytes))
    }

    /// GPUs that it takes.
    pub fn n_gpus(&self) -> usize {
        match self {
            Shape::Anywhere(bytes) => bytes.len(),
            Shape::On(shares) => shares.len(),
        }
    }
}

/// When a reservation may be evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stale {
    /// One that runs: without a request for longer than this.
    pub idle_ms: u64,
    /// One that never started: reserved longer ago than this.
    pub start_ms: u64,
}

impl Stale {
    /// Idle for longer than `idle_ms`, or not started within `start_ms`.
    pub fn after(idle_ms: u64, start_ms: u64) -> Self {
        Stale { idle_ms, start_ms }
    }
}

/// A model to place. The same shapes feed the options, the check and the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Request {
    /// What is to be loaded; its own reservations are never evicted for it.
    pub model: Name,
    /// Who asks.
    pub holder: Name,
    /// Ways to place it. Fewer GPUs are tried first, whatever the order here.
    pub shapes: Vec<Shape>,
    /// This host alone.
    pub host: Option<Name>,
    /// Which reservations may be evicted; none without it.
    pub stale: Option<Stale>,
    /// A lease to renew at least this often, see [`crate::Ledger::reap`].
    pub lease_ms: Option<u64>,
    /// What the holder calls this request. While a reservation with this key is held no other is made
    /// with it, so that asking again after an answer was lost reserves nothing twice.
    #[serde(default)]
    pub key: Option<Name>,
    /// Once loaded it stays so until it is told to leave, or is unloaded and released at once: its engine never
    /// unloads it by its own wish (as llama-server does when it sleeps, to load it again with the next request), and
    /// holds what was committed. Unless that is said, memory that becomes free beside it may still be its, and is not
    /// promised on where others were believed to hold it.
    #[serde(default)]
    pub stays: bool,
}

impl Request {
    /// Any host, no evictions, no lease.
    pub fn new(model: impl Into<Name>, holder: impl Into<Name>, shapes: Vec<Shape>) -> Self {
        Request {
            model: model.into(),
            holder: holder.into(),
            shapes,
            host: None,
            stale: None,
            lease_ms: None,
            key: None,
            stays: false,
        }
    }

    /// On this host alone.
    pub fn on_host(mut self, host: impl Into<Name>) -> Self {
        self.host = Some(host.into());
        self
    }

    /// Reservations that may be evicted.
    pub fn evicting(mut self, stale: Stale) -> Self {
        self.stale = Some(stale);
        self
    }

    /// With a lease that is renewed at least this often.
    pub fn leased(mut self, lease_ms: u64) -> Self {
        self.lease_ms = Some(lease_ms);
        self
    }

    /// With a name of its own, under which nothing is reserved twice.
    pub fn keyed(mut self, key: impl Into<Name>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Its engine never unloads it by its own wish, see [`Request::stays`].
    pub fn staying(mut self) -> Self {
        self.stays = true;
        self
    }
}

/// Something that is already loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Adopt {
    /// What is loaded.
    pub model: Name,
    /// Who holds it.
    pub holder: Name,
    /// Bytes on each GPU.
    pub shares: Vec<Share>,
    /// A lease to renew at least this often.
    pub lease_ms: Option<u64>,
    /// What the holder calls it: as with [`Request::key`] nothing is adopted twice.
    pub key: Option<Name>,
    /// Its engine never unloads it by its own wish, see [`Request::stays`].
    #[serde(default)]
    pub stays: bool,
}

impl Adopt {
    /// Without a lease.
    pub fn new(model: impl Into<Name>, holder: impl Into<Name>, shares: Vec<Share>) -> Self {
        Adopt {
            model: model.into(),
            holder: holder.into(),
            shares,
            lease_ms: None,
            key: None,
            stays: false,
        }
    }

    /// With a lease that is renewed at least this often.
    pub fn leased(mut self, lease_ms: u64) -> Self {
        self.lease_ms = Some(lease_ms);
        self
    }

    /// With a name of its own, under which nothing is adopted twice.
    pub fn keyed(mut self, key: impl Into<Name>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Its engine never unloads it by its own wish, see [`Request::stays`].
    pub fn staying(mut self) -> Self {
        self.stays = true;
        self
    }
}

/// Where something does not fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Shortfall {
    /// Which GPU.
    pub gpu: GpuId,
    /// What it would take.
    pub need_bytes: u64,
    /// What there is, with everything gone that could be evicted.
    pub room_bytes: u64,
}

/// An option of a [`Decision`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Looked {
    /// Where.
    pub shares: Vec<Share>,
    /// What would have to leave.
    pub evict: Vec<ReservationId>,
    /// What came of it.
    pub verdict: Verdict,
}

/// What came of an option.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Verdict {
    /// This one.
    Taken,
    /// Would have done; another was better.
    Behind,
    /// Does not fit.
    Short(Vec<Shortfall>),
}

/// Why a request was answered as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Decision {
    /// What was to be placed.
    pub model: Name,
    /// When.
    pub at_ms: u64,
    /// Every option looked at, in order.
    pub options: Vec<Looked>,
    /// The GPUs before.
    pub before: Vec<GpuView>,
    /// The GPUs after; as before where nothing was taken.
    pub after: Vec<GpuView>,
}

impl Decision {
    /// The option that came closest, as the end of a sentence.
    pub(crate) fn shortest(&self) -> String {
        let short = self.options.iter().filter_map(|o| match &o.verdict {
            Verdict::Short(short) => Some(short),
            _ => None,
        });
        let missing = |short: &&Vec<Shortfall>| {
            let missing = short
                .iter()
                .map(|s| s.need_bytes.saturating_sub(s.room_bytes));
            missing.fold(0u64, u64::saturating_add)
        };
        let nearest = short.min_by_key(missing);
        nearest.map_or(String::new(), |short| first(short) + &self.kept(short))
    }

    /// What is no others' by the driver's figure, and still not promised.
    fn kept(&self, short: &[Shortfall]) -> String {
        let view = short
            .first()
            .and_then(|s| self.before.iter().find(|v| v.gpu == s.gpu));
        let kept = view.map_or(0, |view| view.missing_bytes.min(view.foreign_bytes));
        match kept {
            0 => String::new(),
            kept => format!(
                " ({} more are kept for an engine that may only sleep)",
                mib(kept)
            ),
        }
    }
}

pub(crate) fn first(short: &[Shortfall]) -> String {
    let sentence = |s: &Shortfall| {
        let [need, room] = [s.need_bytes, s.room_bytes].map(mib);
        let [need, room] = match need == room {
            true => [s.need_bytes, s.room_bytes].map(|bytes| format!("{bytes} bytes")),
            false => [need, room],
        };
        format!(": {} needs {need} and has room for {room}", s.gpu)
    };
    short.first().map_or(String::new(), sentence)
}

/// For a sentence; decisions have the bytes.
fn mib(bytes: u64) -> String {
    format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20))
}

/// A reservation that is to leave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Eviction {
    /// Which.
    pub id: ReservationId,
    /// What it has loaded.
    pub model: Name,
    /// Who holds it.
    pub holder: Name,
    /// What it frees, on each of its GPUs.
    pub frees: Vec<Share>,
    /// For how long it has not been used.
    pub idle_ms: u64,
}

impl Eviction {
    pub(crate) fn of(r: &Reservation, now_ms: u64) -> Eviction {
        Eviction {
            id: r.id,
            model: r.model.clone(),
            holder: r.holder.clone(),
            frees: r.shares.clone(),
            idle_ms: now_ms.saturating_sub(r.active_ms),
        }
    }
}

/// Where a model could go, as of one moment. [`crate::Ledger::take`] makes it a reservation if it
/// still holds. Of what was to leave, only what still has to does: there may be more room by then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Plan {
    /// What was asked.
    pub request: Request,
    /// Bytes on each GPU, in the shape's order.
    pub shares: Vec<Share>,
    /// The price: what has to leave, the longest unused first.
    pub evict: Vec<Eviction>,
    /// The ledger's number then.
    pub seq: u64,
    /// Why.
    pub decision: Decision,
}

/// A reservation that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Grant {
    /// Its number.
    pub id: ReservationId,
    /// Bytes on each GPU, in the shape's order.
    pub shares: Vec<Share>,
    /// To be unloaded, then released, before this one is loaded.
    pub evict: Vec<Eviction>,
    /// Evictions of others that have to be released first, too: until they are, or do not leave any more.
    pub waits_for: Vec<ReservationId>,
    /// Why.
    pub decision: Decision,
}
