//! vramfit over HTTP, for model servers that want a sidecar: estimates, plans on what is free, and
//! reservations that no two loaders are promised.
//!
//! `asked` and `api` are what goes in and out (`wire`, `whole`), `routes` and `facts` what is done with it, `problem` how
//! it is refused, `decisions` why; `own` sees to it that a journal is this machine's; `models` finds files below the
//! configured folders and keeps what was read of them; `watch` looks after leases and asks the driver; `guard` lets in
//! who may, as many as may; `accept` is the listener. Everything that computes or waits for a disk runs beside the
//! threads that talk to clients (`work`), at most one task a core.

mod accept;
mod api;
mod app;
mod asked;
mod clock;
mod config;
mod decisions;
mod facts;
mod guard;
mod metrics;
mod models;
mod openapi;
mod own;
mod patient;
mod problem;
mod routes;
mod watch;
mod whole;
mod wire;
mod work;

pub use app::{Server, StartError, on_threads};
pub use config::{Config, Limits, Token, TokenError};
pub use openapi::openapi;
pub use own::Unknown;
