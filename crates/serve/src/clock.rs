//! The time of the ledger: milliseconds since 1970, so that a restart goes on where it was, and not back for an
//! adjustment.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// A clock that was set back by more than this had been wrong: nobody waits for it to come so far again.
const WRONG_MS: u64 = 60_000;

/// A clock that only goes forward, unless it was wrong.
#[derive(Debug, Default)]
pub struct Clock(AtomicU64);

impl Clock {
    /// Now; where the system's clock was set back a little, the latest that it has shown.
    pub fn now_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = since.map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        });
        self.goes_to(now)
    }

    fn goes_to(&self, now: u64) -> u64 {
        let forward = |last: u64| match last.saturating_sub(now) {
            0..=WRONG_MS => last.max(now),
            _ => now,
        };
        let last = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                Some(forward(last))
            });
        last.map_or(now, forward)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_little_back_is_no_time_and_far_back_was_wrong() {
        let clock = Clock::default();
        let shown = [1_000_000, 999_990, 1_000_001, 940_001, 940_000, 940_002];
        let shown = shown.map(|now| clock.goes_to(now));
        let expected = [1_000_000, 1_000_000, 1_000_001, 1_000_001, 940_000, 940_002];
        assert_eq!(shown, expected);
    }
}
