//! Who holds which bytes of which GPU: a ledger that never promises a byte twice.
//!
//! A loader asks, [`Ledger::reserve`] plans and promises in one step, the engine loads,
//! [`Ledger::commit`] records what it really took, [`Ledger::release`] gives it back. The crate knows
//! bytes and GPUs, no models.
//!
//! `state` is what is held, changed by events alone, `account` what the driver said of a GPU and what follows from
//! it, `view` what all that comes to; `plan` looks at options, `evict` finds what has
//! to leave, `hold` and `reconcile` decide which events should happen, `lease` when a lease has run out,
//! `ledger` makes them happen under one lock, `store` keeps them and `journal` keeps them in a file. There is no clock: times are
//! arguments, in milliseconds.
//!
//! ```
//! use vramfit_ledger::{GpuId, Ledger, Request, Shape, Volatile, size};
//!
//! let ledger = Ledger::open(Volatile)?;
//! let gib = |n: u64| n << 30;
//! ledger.set_gpus(&[(GpuId::new("host", "GPU-0"), size(gib(80))?)])?;
//!
//! let shapes = vec![Shape::anywhere([gib(74)])?];
//! let grant = ledger.reserve(&Request::new("qwen3:30b", "server", shapes.clone()), 0)?;
//! let second = ledger.reserve(&Request::new("another", "server", shapes), 1);
//! assert!(second.is_err()); // room for 6 GiB, and it says so
//!
//! ledger.commit(grant.id, &grant.shares, 2)?;
//! ledger.release(grant.id)?;
//! # Ok::<(), vramfit_ledger::Error>(())
//! ```

mod account;
mod error;
mod evict;
mod fading;
mod hold;
mod ids;
#[cfg(feature = "journal")]
mod journal;
mod lease;
mod ledger;
mod owner;
mod plan;
mod reconcile;
mod request;
mod state;
mod store;
mod view;

pub use account::Seen;
pub use error::{Error, StoreError};
pub use fading::Fading;
pub use ids::{GpuId, Name, ReservationId, Share, size};
#[cfg(feature = "journal")]
pub use journal::Journal;
pub use ledger::{Inner, Ledger, Lock};
pub use reconcile::{Differences, Drift, Held, Probe, Reaped};
pub use request::{
    Adopt, Decision, Eviction, Grant, Looked, Plan, Request, Shape, Shortfall, Stale, Verdict,
};
pub use state::{Event, Leaves, Phase, Reservation, State};
pub use store::{Log, Memory, Store, Tail, Volatile};
pub use view::{GpuView, Violation};
