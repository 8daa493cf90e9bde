//! Which reservations have to leave: the fewest that make enough room, the longest unused of those.

use crate::account::signed;
use crate::request::Stale;
use crate::{Event, GpuId, Leaves, Name, Phase, Reservation, ReservationId, State};
use std::cmp::Reverse;

/// Steps of all searches for one request before they settle for sets that may not be the fewest. Only models over
/// several GPUs, many of them, can come to that.
pub(crate) const MAX_TRIED: usize = 200_000;

impl State {
    /// What may be evicted for `model`, the longest unused first.
    pub(crate) fn stale(
        &self,
        model: &Name,
        rule: Option<Stale>,
        now_ms: u64,
    ) -> Vec<&Reservation> {
        let Some(rule) = rule else {
            return Vec::new();
        };
        let stale = |r: &&Reservation| {
            let since = |ms: u64| now_ms.saturating_sub(ms);
            let unused = match r.phase {
                Phase::Running => r.requests == 0 && since(r.active_ms) > rule.idle_ms,
                Phase::Pending => since(r.created_ms) > rule.start_ms && !self.held_up(r),
                Phase::Leaving => false,
            };
            unused && r.model != *model
        };
        let mut stale: Vec<_> = self.held.values().filter(stale).collect();
        stale.sort_by_key(|r| age(r));
        stale
    }

    /// Whether something has yet to leave a GPU of its: then it may not have been able to start, and
    /// to have it leave, too, would have more leaving than there ever was.
    fn held_up(&self, r: &Reservation) -> bool {
        let mut accounts = r.shares.iter().filter_map(|s| self.gpus.get(&s.gpu));
        accounts.any(|account| account.leaving > 0)
    }

    /// Those of `gone` that were never loaded need no room any more: who was to leave for them stays, if there is still
    /// room for it beside what has been promised since, the last used first. `events` are what else happens.
    ///
    /// Who has begun to unload already goes on, and releases it: that is nothing that the ledger is told before, so what
    /// stays like this may be less than it was, see [`Reservation::surely_stays`].
    pub(crate) fn stay(&self, gone: &[&Reservation], events: &[Event]) -> Vec<Event> {
        let needs_none = |leaves: &Leaves| {
            let gone = gone.iter().find(|g| g.id == leaves.room_for);
            gone.is_some_and(|g| g.leaves.map_or(g.phase, |l| l.was) == Phase::Pending)
        };
        let is_here = |r: &&Reservation| gone.iter().all(|g| g.id != r.id);
        let leaving = self.held.values().filter(|r| r.phase == Phase::Leaving);
        let leaving = leaving.filter(|r| r.leaves.as_ref().is_some_and(needs_none));
        let mut may_stay: Vec<_> = leaving.filter(is_here).collect();
        if may_stay.is_empty() {
            return Vec::new();
        }
        may_stay.sort_by_key(|r| Reverse(age(r)));
        let mut after = self.clone();
        let apply = |after: &mut State, event: &Event| after.apply(event.clone()).is_ok();
        if !events.iter().all(|event| apply(&mut after, event)) {
            return Vec::new();
        }
        let mut stay = Vec::new();
        for r in may_stay {
            let event = Event::Stayed { id: r.id };
            if after.may_stay(r) && apply(&mut after, &event) {
                stay.push(event);
            }
        }
        stay
    }

    /// Whether what leaves could stay beside what is promised and what others are believed to hold. What it has itself may
    /// count for others' in a figure, as it leaves. Who was told to wait for it, and for what left then, loads when that
    /// has left and it stays: then there has to be room for what leaves only since, too.
    fn may_stay(&self, r: &Reservation) -> bool {
        r.shares.iter().all(|share| {
            let Some(account) = self.gpus.get(&share.gpu) else {
                return true;
            };
            let here = || self.held.values().filter(|o| o.bytes_on(&share.gpu) > 0);
            let waits = |o: &&Reservation| {
                o.phase == Phase::Pending && r.leaves.is_some_and(|l| l.room_for < o.id)
            };
            let first = here().find(waits).map(|o| o.id);
            let since = |o: &&Reservation| {
                let later = |l: Leaves| first.is_some_and(|first| first < l.room_for);
                o.phase == Phase::Leaving && o.id != r.id && o.leaves.is_some_and(later)
            };
            let others = account.figure.as_ref().map_or(0, |figure| figure.others);
            let leaving = here().filter(since).map(|o| o.bytes_on(&share.gpu));
            let all = leaving.chain([share.bytes.get()]).map(u128::from);
            let all = all.fold(account.promised, u128::saturating_add);
            signed(all).saturating_add(others.max(0).into()) <= signed(account.capacity.into())
        })
    }

    /// Which reservations may be evicted for `model`, the longest unused first.
    pub fn evictable(&self, model: &Name, rule: Stale, now_ms: u64) -> Vec<&Reservation> {
        self.stale(model, Some(rule), now_ms)
    }

    /// What evictions for `model` could free on `gpu` at most.
    pub fn evictable_bytes(&self, gpu: &GpuId, model: &Name, rule: Stale, now_ms: u64) -> u64 {
        let stale = self.stale(model, Some(rule), now_ms);
        let bytes = stale.iter().map(|r| r.bytes_on(gpu));
        bytes.fold(0, u64::saturating_add)
    }
}

/// The longest unused first.
pub(crate) fn age(r: &Reservation) -> (u64, ReservationId) {
    (r.active_ms, r.id)
}

/// The fewest of `stale` that free what each GPU lacks, and of the sets with as few the one with the
/// longest unused. `None` where all of them are not enough. `lacking` is above zero everywhere. `tried` are the
/// steps of this request so far.
pub(crate) fn fewest<'a>(
    lacking: &[(&GpuId, i128)],
    stale: &[&'a Reservation],
    tried: &mut usize,
) -> Option<Vec<&'a Reservation>> {
    let frees = |r: &Reservation| -> Vec<i128> {
        let bytes = lacking.iter().map(|(gpu, _)| r.bytes_on(gpu).into());
        bytes.collect()
    };
    let rows = stale.iter().map(|&r| (r, frees(r)));
    let rows: Vec<_> = rows.filter(|(_, row)| row.iter().any(|&b| b > 0)).collect();
    let largest_first = |column: usize| {
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|&row| Reverse(bytes(&rows, row, column)));
        order
    };
    let width = |row: &[i128]| row.iter().filter(|&&b| b > 0).count();
    let mut search = Search {
        rows: &rows,
        largest_first: (0..lacking.len()).map(largest_first).collect(),
        widest: rows.iter().map(|(_, row)| width(row)).max().unwrap_or(0),
        tried,
        taken: Vec::new(),
    };
    let lacking: Vec<i128> = lacking.iter().map(|&(_, bytes)| bytes).collect();
    if !search.could(0, rows.len(), &lacking) {
        return None;
    }
    for n in 1..=rows.len() {
        if search.take(0, n, &lacking) {
            return Some(search.taken);
        }
    }
    Some(search.without_the_superfluous(&lacking))
}

/// A candidate, and what it frees of each GPU that lacks room.
type Row<'a> = (&'a Reservation, Vec<i128>);

fn bytes(rows: &[Row<'_>], row: usize, column: usize) -> i128 {
    let bytes = rows.get(row).and_then(|(_, bytes)| bytes.get(column));
    bytes.copied().unwrap_or(0)
}

struct Search<'s, 'a> {
    rows: &'s [Row<'a>],
    /// The rows for each column.
    largest_first: Vec<Vec<usize>>,
    /// On how many of the GPUs a row is at most.
    widest: usize,
    tried: &'s mut usize,
    taken: Vec<&'a Reservation>,
}

impl<'a> Search<'_, 'a> {
    /// Whether `n` of the rows from `from` could be enough. Each GPU needs so many of its largest, and
    /// no row counts on more GPUs than the widest does. Exact where every row is on one GPU alone.
    fn could(&self, from: usize, n: usize, lacking: &[i128]) -> bool {
        let mut needed = 0;
        for (column, (&lack, order)) in lacking.iter().zip(&self.largest_first).enumerate() {
            let mut rows = order.iter().filter(|&&row| row >= from);
            let (mut left, mut rows_here) = (lack, 0);
            while left > 0 {
                let Some(&row) = rows.next().filter(|_| rows_here < n) else {
                    return false;
                };
                left -= bytes(self.rows, row, column);
                rows_here += 1;
            }
            needed += rows_here;
        }
        needed <= n.saturating_mul(self.widest)
    }

    /// Takes exactly `n` rows from `from`, the first set in order that is enough.
    fn take(&mut self, from: usize, n: usize, lacking: &[i128]) -> bool {
        if lacking.iter().all(|&lack| lack <= 0) {
            return true;
        }
        if n == 0 || *self.tried >= MAX_TRIED || !self.could(from, n, lacking) {
            return false;
        }
        let rows = self.rows;
        for (i, (r, row)) in rows.iter().enumerate().skip(from) {
            *self.tried += 1;
            let left: Vec<i128> = lacking.iter().zip(row).map(|(lack, b)| lack - b).collect();
            self.taken.push(r);
            if self.take(i + 1, n - 1, &left) {
                return true;
            }
            self.taken.pop();
        }
        false
    }

    /// All rows, less those that are not needed, the most recently used first.
    fn without_the_superfluous(&self, lacking: &[i128]) -> Vec<&'a Reservation> {
        let mut left: Vec<i128> = lacking.to_vec();
        for (_, row) in self.rows {
            left.iter_mut().zip(row).for_each(|(lack, b)| *lack -= b);
        }
        let mut kept = Vec::new();
        for (r, row) in self.rows.iter().rev() {
            let without: Vec<i128> = left.iter().zip(row).map(|(lack, b)| lack + b).collect();
            match without.iter().all(|&lack| lack <= 0) {
                true => left = without,
                false => kept.push(*r),
            }
        }
        kept.reverse();
        kept
    }
}
