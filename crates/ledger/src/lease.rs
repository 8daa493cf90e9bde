//! Leases that run out: of holders that had time to renew them, and only of those.
//!
//! A lease that runs out says that its holder is gone only if the holder could have renewed it. While a ledger is not
//! open, its process is stopped, the machine sleeps or the store does not answer, nobody can; and a clock that jumps
//! looks the same. So a ledger remembers when it was there: each call that says what time it is shows that it is. Where two
//! of those are further apart than a quarter of a lease, or the store failed in between, it was away for that lease,
//! and the lease begins anew when it is back.
//!
//! That must not keep a dead holder's reservation for ever, where a ledger is opened again and again, or is hardly ever
//! looked at: a lease begins anew so [`SPARES`] times in a row, and the next time that it runs out it has run out.

use crate::{Event, Reservation};

/// So often in a row a lease begins anew by itself.
const SPARES: u32 = 3;

/// When a ledger was there. Times are those that it was told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Presence {
    /// When it was last.
    last_ms: Option<u64>,
    /// When it came back, and how long it had been away: the longest first, and of those that are as long or longer
    /// only the last.
    back: Vec<(u64, u64)>,
    /// The store has failed, and has taken nothing since.
    pub failed: bool,
}

impl Presence {
    /// It is there now.
    pub fn look(&mut self, now_ms: u64) {
        // However long nobody looked before the first time, or while nothing could be stored.
        let last = self.last_ms.filter(|_| !self.failed);
        let away = last.map_or(u64::MAX, |last| last.abs_diff(now_ms));
        self.last_ms = Some(now_ms);
        // A clock that was set back: what is past is not to come.
        for (at, _) in &mut self.back {
            *at = now_ms.min(*at);
        }
        while self.back.pop_if(|(_, other)| *other <= away).is_some() {}
        if away > 0 {
            self.back.push((now_ms, away));
        }
    }

    /// Since when it has been there without having been away for more than a quarter of the lease.
    fn since(&self, lease_ms: u64) -> u64 {
        let mut away = self.back.iter().rev();
        let last = away.find(|&&(_, away)| away > lease_ms / 4);
        last.map_or(0, |&(at, _)| at)
    }
}

/// What a look at a lease says.
pub(crate) enum Lease {
    /// Nothing.
    Runs,
    /// It begins anew.
    Anew(Event),
    /// The holder had time to renew it, and did not.
    RanOut,
}

impl Reservation {
    /// `presence` is that of the ledger that looks, `now_ms` included.
    pub(crate) fn lease(&self, presence: &Presence, now_ms: u64) -> Lease {
        let (Some(lease_ms), Some(until)) = (self.lease_ms, self.lease_until_ms) else {
            return Lease::Runs;
        };
        let spared = |until_ms, times| {
            let id = self.id;
            Lease::Anew(Event::Spared {
                id,
                until_ms,
                times,
            })
        };
        let in_full = |from: u64| from.saturating_add(lease_ms);
        if until > in_full(in_full(now_ms)) {
            // The clock was set back. Nobody waits for it to come so far again.
            return spared(in_full(now_ms), self.spared);
        }
        let anew = in_full(presence.since(lease_ms));
        match until < now_ms {
            false => Lease::Runs,
            true if anew < now_ms || self.spared >= SPARES => Lease::RanOut,
            true => spared(anew, self.spared.saturating_add(1)),
        }
    }
}
