//! The time of the ledger: milliseconds since 1970, so that a restart goes on where it was, and never back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// A clock that only goes forward.
#[derive(Debug, Default)]
pub struct Clock(AtomicU64);

impl Clock {
    /// Now; where the system's clock was set back, the latest that it has shown.
    pub fn now_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = since.map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        });
        self.0.fetch_max(now, Ordering::Relaxed).max(now)
    }
}
