//! Which GPUs are tried, and in what order.

use crate::fit::Problem;
use crate::{Device, Prefer};
use std::cmp::Reverse;

/// Most sets of GPUs that are tried for one number of GPUs.
const MOST_SETS: usize = 12;
/// Most sets that are looked at to find those.
const MOST_COMBINATIONS: usize = 4_000;

/// `pool`, the preferred first.
pub(crate) fn by_preference(problem: &Problem, pool: &[usize]) -> Vec<usize> {
    let free = |&d: &usize| problem.devices.get(d).map_or(0, |x| x.free_bytes);
    let mut order = pool.to_vec();
    match problem.policy.prefer {
        Prefer::MostFree => order.sort_by_key(|d| (Reverse(free(d)), *d)),
        Prefer::First => order.sort_unstable(),
        Prefer::Last => order.sort_by_key(|d| Reverse(*d)),
        Prefer::Tightest => order.sort_by_key(|d| (free(d), *d)),
    }
    order
}

/// Two GPUs that need not both be tried.
fn alike(a: &Device, b: &Device) -> bool {
    (
        a.free_bytes,
        a.overhead.bytes,
        a.compute_capability,
        a.integrated,
    ) == (
        b.free_bytes,
        b.overhead.bytes,
        b.compute_capability,
        b.integrated,
    )
}

/// Sets of `k` GPUs of `order` that have `needed_bytes` between them, each ascending, no two alike,
/// the preferred first. The one with the most memory is always among them.
pub(crate) fn of_size(
    problem: &Problem,
    order: &[usize],
    k: usize,
    must: &[usize],
    needed_bytes: u64,
) -> Vec<Vec<usize>> {
    let room = |d: usize| {
        let d = problem.devices.get(d);
        d.map_or(0, |d| d.free_bytes.saturating_sub(d.overhead.bytes))
    };
    let mut sets: Vec<Vec<usize>> = Vec::new();
    let mut keep = |set: Vec<usize>| {
        let enough = set.iter().map(|&d| room(d)).fold(0, u64::saturating_add) >= needed_bytes;
        let is_new = !sets.iter().any(|s| same(problem, s, &set));
        if enough && is_new && must.iter().all(|d| set.contains(d)) {
            sets.push(set);
        }
        sets.len() < MOST_SETS
    };
    let mut largest = order.to_vec();
    largest.sort_by_key(|&d| (Reverse(room(d)), d));
    let mut places: Vec<usize> = (0..k).collect();
    for _ in 0..MOST_COMBINATIONS {
        let mut set: Vec<usize> = places
            .iter()
            .filter_map(|&p| order.get(p).copied())
            .collect();
        set.sort_unstable();
        if set.len() < k || !keep(set) || !advance(&mut places, order.len()) {
            break;
        }
    }
    let mut set: Vec<usize> = largest.into_iter().take(k).collect();
    set.sort_unstable();
    keep(set);
    sets
}

/// Whether two sets are of the same GPUs but for their indices.
fn same(problem: &Problem, a: &[usize], b: &[usize]) -> bool {
    let device = |&d: &usize| problem.devices.get(d);
    a.iter()
        .map(device)
        .zip(b.iter().map(device))
        .all(|pair| match pair {
            (Some(a), Some(b)) => alike(a, b),
            _ => false,
        })
}

/// The next combination of places below `n`, in lexicographic order.
fn advance(places: &mut [usize], n: usize) -> bool {
    let k = places.len();
    let Some(i) = (0..k).rev().find(|&i| places[i] + k < n + i) else {
        return false;
    };
    places[i] += 1;
    for j in i + 1..k {
        places[j] = places[j - 1] + 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::advance;

    #[test]
    fn all_combinations_come_in_order() {
        let mut places = vec![0, 1];
        let mut seen = vec![places.clone()];
        while advance(&mut places, 4) {
            seen.push(places.clone());
        }
        let want = [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]];
        assert_eq!(seen, want.map(|p| p.to_vec()));
    }
}
