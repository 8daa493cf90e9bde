//! Layouts over several GPUs that evictions make room for. Which reservations leave depends on the layout, and
//! the layout on what they free: layouts are looked for, of sets of reservations, and the ledger says of each
//! what has to leave for it.

use crate::host::free;

/// Layouts that are planned for one request, at most: with 8 that may leave it is every search below to its end.
const MAX_PLANS: usize = 48;

/// Reservations that leave together, at most, where sets are tried in turn.
const MAX_TOGETHER: usize = 2;

/// Layouts once some of those that may leave have left: `room` is what there is of each GPU (below zero where more is
/// promised than that), `frees` what each of them frees of each GPU, the longest unused first. `plan` lays the model out
/// over the bytes free of each GPU, if it can. The ledger finds the best of the layouts; among them is one for the
/// fewest, where so many plans tell.
pub fn layouts<L, E>(
    room: &[i128],
    frees: &[Vec<u64>],
    plan: impl FnMut(&[u64]) -> Result<Option<L>, E>,
) -> Result<Vec<L>, E> {
    let mut search = Search {
        room,
        frees,
        plan,
        too_little: Vec::new(),
        plans: 0,
    };
    let Some((mut set, longest_unused)) = search.longest_unused()? else {
        return Ok(Vec::new());
    };
    let mut found = vec![longest_unused];
    found.extend(search.put_back(&mut set)?);
    found.extend(search.better_than(&set)?);
    Ok(found)
}

struct Search<'a, P> {
    room: &'a [i128],
    frees: &'a [Vec<u64>],
    plan: P,
    /// Free bytes of each GPU that were not enough.
    too_little: Vec<Vec<u64>>,
    plans: usize,
}

impl<L, E, P: FnMut(&[u64]) -> Result<Option<L>, E>> Search<'_, P> {
    /// The layout once `set` has left. `None`, too, once there are to be no more plans.
    fn after(&mut self, set: &[usize]) -> Result<Option<L>, E> {
        let mut room = self.room.to_vec();
        for freed in set.iter().filter_map(|&one| self.frees.get(one)) {
            for (room, freed) in room.iter_mut().zip(freed) {
                *room = room.saturating_add((*freed).into());
            }
        }
        let free = free(&room);
        let no_more = |known: &Vec<u64>| free.iter().zip(known).all(|(free, known)| free <= known);
        if self.plans >= MAX_PLANS || self.too_little.iter().any(no_more) {
            return Ok(None);
        }
        self.plans += 1;
        let layout = (self.plan)(&free)?;
        if layout.is_none() {
            self.too_little.push(free);
        }
        Ok(layout)
    }

    /// As many of the longest unused as it takes.
    fn longest_unused(&mut self) -> Result<Option<(Vec<usize>, L)>, E> {
        let all = self.frees.len();
        if all == 0 {
            return Ok(None);
        }
        let set = |n: usize| (0..n).collect::<Vec<_>>();
        let Some(mut best) = self.after(&set(all))? else {
            return Ok(None);
        };
        let (mut too_few, mut enough) = (0, all);
        while enough - too_few > 1 {
            let n = too_few.midpoint(enough);
            match self.after(&set(n))? {
                Some(layout) => (best, enough) = (layout, n),
                None => too_few = n,
            }
        }
        Ok(Some((set(enough), best)))
    }

    /// Leaves out of `set` those without which the rest is enough, the last used first.
    fn put_back(&mut self, set: &mut Vec<usize>) -> Result<Option<L>, E> {
        let mut best = None;
        for one in set.clone().into_iter().rev() {
            let rest: Vec<usize> = set.iter().copied().filter(|&other| other != one).collect();
            if rest.is_empty() {
                break;
            }
            if let Some(layout) = self.after(&rest)? {
                (*set, best) = (rest, Some(layout));
            }
        }
        Ok(best)
    }

    /// A set of fewer than `set`, or of as many that are longer unused: each alone, then each two.
    fn better_than(&mut self, set: &[usize]) -> Result<Option<L>, E> {
        for n in 1..=set.len().min(MAX_TOGETHER) {
            let mut next: Vec<usize> = (0..n).collect();
            loop {
                if n == set.len() && next.as_slice() >= set {
                    return Ok(None);
                }
                if let Some(layout) = self.after(&next)? {
                    return Ok(Some(layout));
                }
                if !advance(&mut next, self.frees.len()) {
                    break;
                }
            }
        }
        Ok(None)
    }
}

/// The next set of as many numbers below `end`, each set in ascending order; false after the last.
fn advance(set: &mut [usize], end: usize) -> bool {
    let n = set.len();
    for at in (0..n).rev() {
        let Some(&first) = set.get(at) else {
            return false;
        };
        if first + (n - at) < end {
            for (place, value) in set.iter_mut().skip(at).zip(first + 1..) {
                *place = value;
            }
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The free bytes that a layout was found for, where it takes all of `need` together.
    fn found(room: &[i128], frees: &[Vec<u64>], need: u64) -> (Vec<Vec<u64>>, usize) {
        let mut plans = 0;
        let plan = |free: &[u64]| {
            plans += 1;
            Ok::<_, ()>((free.iter().sum::<u64>() >= need).then(|| free.to_vec()))
        };
        let found = layouts(room, frees, plan).unwrap();
        (found, plans)
    }

    #[test]
    fn one_that_is_enough_is_found_behind_many_that_are_not() {
        let mut frees = vec![vec![1, 0]; 7];
        frees.push(vec![5, 5]);
        let (found, plans) = found(&[3, 3], &frees, 16);
        assert!(found.contains(&vec![8, 8]), "{found:?}");
        assert!(plans <= MAX_PLANS);
    }

    #[test]
    fn two_that_are_enough_are_found_where_three_were() {
        // The first three are enough, and none of them can stay; two that are younger are enough, too.
        let frees = [vec![4, 0], vec![4, 0], vec![4, 0], vec![6, 0], vec![6, 0]];
        // By what each layout was planned for: the three, then the two.
        let exact = |free: &[u64]| Ok::<_, ()>((free[0] >= 12).then(|| free[0]));
        let mut search = Search {
            room: &[0, 0],
            frees: &frees,
            plan: exact,
            too_little: Vec::new(),
            plans: 0,
        };
        let (mut set, _) = search.longest_unused().unwrap().unwrap();
        assert_eq!(search.put_back(&mut set).unwrap(), None);
        assert_eq!(set, [0, 1, 2]);
        assert_eq!(search.better_than(&set).unwrap(), Some(12));
        assert_eq!(search.better_than(&[3, 4]).unwrap(), None);
    }

    #[test]
    fn the_longest_unused_of_as_many() {
        let frees = [vec![3, 0], vec![1, 0], vec![4, 0], vec![6, 0]];
        // 1 and 2 are not enough, 0 and 2 are; 0 and 3 would be no better.
        let (found, _) = found(&[0, 0], &frees, 7);
        assert_eq!(found.last(), Some(&vec![7, 0]));
    }

    #[test]
    fn plans_have_an_end() {
        // Every set counts for itself: each frees most of a GPU of its own.
        let n = 40;
        let free = vec![0; n];
        let frees: Vec<Vec<u64>> = (0..n)
            .map(|i| (0..n).map(|gpu| u64::from(gpu == i)).collect())
            .collect();
        let (layouts, plans) = found(&free, &frees, 30);
        assert_eq!(plans, MAX_PLANS);
        assert_eq!(layouts[0].iter().sum::<u64>(), 30);
    }

    #[test]
    fn where_nothing_helps_there_is_nothing() {
        assert!(found(&[1], &[], 2).0.is_empty());
        assert!(found(&[1], &[vec![1]], 3).0.is_empty());
    }

    #[test]
    fn what_is_promised_too_often_makes_room_only_for_the_rest() {
        let free = found(&[-3, 2], &[vec![5, 0]], 4).0;
        assert_eq!(free, [[2, 2]]);
        assert!(found(&[-3, 2], &[vec![5, 0]], 5).0.is_empty());
    }

    #[test]
    fn each_set_has_its_turn() {
        let mut set = [0, 1];
        let mut seen = vec![set];
        while advance(&mut set, 4) {
            seen.push(set);
        }
        assert_eq!(seen, [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]);
    }
}
