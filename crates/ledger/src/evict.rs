//! Which reservations have to leave: the fewest that make enough room, the longest unused of those.

use crate::request::Stale;
use crate::{GpuId, Name, Phase, Reservation, ReservationId, State};
use std::cmp::Reverse;

/// Sets tried before the search settles for one that may not be the fewest. Twenty candidates on
/// several GPUs never come near it.
const MAX_TRIED: usize = 200_000;

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
/// longest unused. `None` where all of them are not enough. `lacking` is above zero everywhere.
pub(crate) fn fewest<'a>(
    lacking: &[(&GpuId, i128)],
    stale: &[&'a Reservation],
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
    let mut search = Search {
        rows: &rows,
        largest_first: (0..lacking.len()).map(largest_first).collect(),
        tried: 0,
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
    tried: usize,
    taken: Vec<&'a Reservation>,
}

impl<'a> Search<'_, 'a> {
    /// Whether `n` of the rows from `from` could be enough: on each GPU by itself, the largest are.
    fn could(&self, from: usize, n: usize, lacking: &[i128]) -> bool {
        let mut columns = lacking.iter().zip(&self.largest_first).enumerate();
        columns.all(|(column, (&lack, order))| {
            let left = order.iter().filter(|&&row| row >= from);
            let bytes = left.map(|&row| bytes(self.rows, row, column));
            lack <= 0 || bytes.take(n).sum::<i128>() >= lack
        })
    }

    /// Takes exactly `n` rows from `from`, the first set in order that is enough.
    fn take(&mut self, from: usize, n: usize, lacking: &[i128]) -> bool {
        if lacking.iter().all(|&lack| lack <= 0) {
            return true;
        }
        if n == 0 || self.tried >= MAX_TRIED || !self.could(from, n, lacking) {
            return false;
        }
        let rows = self.rows;
        for (i, (r, row)) in rows.iter().enumerate().skip(from) {
            self.tried += 1;
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
