//! The pool where there is no virtual memory management (`ggml_cuda_pool_leg`): each buffer is a
//! `cudaMalloc` that is kept when it comes back, for the next operation that it is large enough for.
//!
//! What is kept in the end depends on the order of all that was ever asked for, so the operations
//! of whole prompts are played through it, graph by graph. In which of its slots a buffer is kept
//! does not matter: the smallest that is large enough is taken, and those of one size are alike.

use super::steps::{BatchSteps, Step, StepKind};
use super::{Attention, Cuda};
use crate::{Graph, TensorId};

/// Most buffers that one operation holds at once.
const MOST_BUFFERS: usize = 10;
/// Buffers that are kept at most; those that come back beyond are given to the driver.
const SLOTS: usize = 256;
/// A kept buffer that is this much too large is left alone, bytes.
const TOO_LARGE: u64 = 1 << 36;
/// New buffers are this much larger than asked for, for requests that grow.
pub(super) const LOOK_AHEAD: f64 = 1.05;
/// Of new buffers, bytes.
pub(super) const GRANULARITY: u64 = 256;

/// Buffers that one operation takes in this order, and gives back when it is done.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Buffers {
    bytes: [u64; MOST_BUFFERS],
    pub(super) n: usize,
}

impl Buffers {
    /// Takes nothing.
    pub const NONE: Buffers = Buffers {
        bytes: [0; MOST_BUFFERS],
        n: 0,
    };

    /// One more, of `bytes`.
    #[inline]
    pub fn push(&mut self, bytes: u64) {
        debug_assert!(
            self.n < MOST_BUFFERS,
            "an operation with so many buffers is not known"
        );
        match self.bytes.get_mut(self.n) {
            Some(slot) => {
                *slot = bytes;
                self.n += 1;
            }
            // rather too much in one than too little
            None => {
                if let Some(last) = self.bytes.last_mut() {
                    *last = last.saturating_add(bytes);
                }
            }
        }
    }

    /// Sizes, in order, bytes.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.bytes.iter().copied().take(self.n)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }
}

/// How many tokens each expert gets, where every expert's product is one of its own. That is not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Routes {
    /// One token more than the last, up to all of them: most buffers are too small for the next expert.
    #[default]
    Ascending,
    /// All to one: no smaller buffers are there to be used again.
    ToOne,
}

impl Routes {
    /// Both of them.
    pub const ALL: [Routes; 2] = [Routes::Ascending, Routes::ToOne];
}

/// What the operations of graphs take on one device, each kind of them looked at once.
#[derive(Clone, Debug)]
pub struct Demands {
    cuda: Cuda,
    routes: Routes,
    /// By kind: what such an operation takes, one part after the other, and whether that is a bound.
    of: Vec<Option<Vec<(Buffers, bool)>>>,
}

impl Demands {
    /// None are known yet.
    pub fn new(cuda: Cuda, routes: Routes) -> Demands {
        let of = Vec::new();
        Demands { cuda, routes, of }
    }

    /// What `steps` of `graph` take.
    pub fn learn(&mut self, graph: &Graph, steps: &[Step]) {
        let mut attention = Attention::new(&self.cuda);
        for step in steps {
            let StepKind(kind) = step.kind;
            if self.of.len() <= kind {
                self.of.resize(kind + 1, None);
            }
            let Some(slot @ None) = self.of.get_mut(kind) else {
                continue;
            };
            let mut parts = Vec::new();
            let take = |buffers: Buffers, is_bound| {
                if !buffers.is_empty() {
                    parts.push((buffers, is_bound));
                }
            };
            let routes = self.routes;
            operation(&self.cuda, graph, step.node, routes, &mut attention, take);
            *slot = Some(parts);
        }
    }

    /// Whether all that was learned takes the same in both.
    pub fn take_the_same(&self, other: &Demands) -> bool {
        self.of == other.of
    }

    fn of(&self, StepKind(kind): StepKind) -> &[(Buffers, bool)] {
        self.of.get(kind).and_then(Option::as_deref).unwrap_or(&[])
    }

    /// What a pool cannot do without, in whatever order and however often these are computed, bytes.
    ///
    /// Where the driver has no more, everything that is kept and not in use goes back to it. What is in use then are the
    /// other buffers of one operation, each kept for it by the largest request at the most, and what is missing is its own.
    pub fn least(&self) -> u64 {
        let all = self.of.iter().flatten().flatten();
        let all = all.map(|(buffers, _)| buffers);
        let most = |buffers: &Buffers| buffers.iter().max().unwrap_or(0);
        let largest = new_buffer(all.clone().map(most).max().unwrap_or(0));
        let least = |buffers: &Buffers| {
            let others = buffers.n.saturating_sub(1) as u64;
            let others = largest.saturating_mul(others);
            others.saturating_add(new_buffer(most(buffers)))
        };
        all.map(least).max().unwrap_or(0)
    }
}

/// A legacy pool, as full as what has been computed made it.
#[derive(Clone, Debug, Default)]
pub struct LegacyPool {
    /// Buffers that are kept and not in use, the smallest first.
    free: Vec<u64>,
    /// What it holds of the driver's now, and held at most.
    held: u64,
    most: u64,
    /// Kinds of operations that found all they took since the pool last changed: they change nothing.
    settled: Vec<bool>,
    changes: u64,
    is_bound: bool,
}

impl LegacyPool {
    /// The most that it took of the driver's memory, bytes.
    pub fn bytes(&self) -> u64 {
        self.most
    }

    /// Some operation's buffers are a bound.
    pub fn is_bound(&self) -> bool {
        self.is_bound
    }

    /// How often it has changed: what changed nothing changes nothing until this is another.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Computes a batch.
    pub fn compute(&mut self, demands: &Demands, batch: &BatchSteps) {
        // Most batches change nothing, and the same few kinds stand in every layer.
        if batch.kinds.iter().all(|&kind| self.is_settled(kind)) {
            return;
        }
        for &step in &batch.steps {
            if self.is_settled(step) {
                continue;
            }
            let before = self.changes;
            for &(buffers, is_bound) in demands.of(step) {
                self.is_bound |= is_bound;
                self.operate(buffers);
            }
            if self.changes == before {
                let StepKind(kind) = step;
                let len = self.settled.len().max(kind + 1);
                self.settled.resize(len, false);
                if let Some(settled) = self.settled.get_mut(kind) {
                    *settled = true;
                }
            }
        }
    }

    fn is_settled(&self, StepKind(kind): StepKind) -> bool {
        self.settled.get(kind) == Some(&true)
    }

    /// One operation takes `buffers` and gives them back.
    pub fn operate(&mut self, buffers: Buffers) {
        if buffers.is_empty() {
            return;
        }
        let before = self.held;
        let mut taken = Buffers::NONE;
        for bytes in buffers.iter() {
            taken.push(self.take(bytes));
        }
        self.most = self.most.max(self.held);
        let is_settled = self.held == before;
        taken.iter().for_each(|bytes| self.give_back(bytes));
        if !is_settled || self.held != before {
            self.settled.clear();
            self.changes += 1;
        }
    }

    /// The size of the buffer that is handed out for a request of `bytes`.
    fn take(&mut self, bytes: u64) -> u64 {
        let first = self.free.partition_point(|&kept| kept < bytes);
        match self.free.get(first) {
            Some(&kept) if kept - bytes < TOO_LARGE => self.free.remove(first),
            _ => {
                let new = new_buffer(bytes);
                self.held = self.held.saturating_add(new);
                new
            }
        }
    }

    fn give_back(&mut self, bytes: u64) {
        if self.free.len() >= SLOTS {
            self.held = self.held.saturating_sub(bytes);
            return;
        }
        let at = self.free.partition_point(|&kept| kept < bytes);
        self.free.insert(at, bytes);
    }
}

/// What one operation takes, and whether that is a bound.
pub(super) fn operation(
    cuda: &Cuda,
    graph: &Graph,
    node: TensorId,
    routes: Routes,
    attention: &mut Attention,
    mut operate: impl FnMut(Buffers, bool),
) {
    let t = &graph[node];
    let held = cuda.held(graph, t, attention);
    if held.most_routed == 0 || routes == Routes::ToOne {
        operate(held.buffers, held.is_bound);
        return;
    }
    let mut last = Buffers::NONE;
    for routed in 1..=held.most_routed {
        let buffers = cuda.mul_mat_id_pool(graph, t, None, Some(routed)).buffers;
        if buffers != last {
            operate(buffers, true);
            last = buffers;
        }
    }
}

/// What is allocated for a request of `bytes`.
pub(super) fn new_buffer(bytes: u64) -> u64 {
    // in double precision, as the engine does it
    let ahead = (LOOK_AHEAD * bytes as f64) as u64;
    ahead.div_ceil(GRANULARITY).saturating_mul(GRANULARITY)
}

#[cfg(test)]
mod tests {
    use super::super::AnyOrder;
    use super::*;

    fn buffers(sizes: &[u64]) -> Buffers {
        let mut buffers = Buffers::NONE;
        sizes.iter().for_each(|&bytes| buffers.push(bytes));
        buffers
    }

    fn played(operations: &[&[u64]]) -> LegacyPool {
        let mut pool = LegacyPool::default();
        operations
            .iter()
            .for_each(|sizes| pool.operate(buffers(sizes)));
        pool
    }

    // Worked out by hand: a twentieth more, then whole 256 bytes.
    #[test]
    fn buffers_are_kept_for_what_they_are_large_enough_for() {
        assert_eq!(played(&[&[1000]]).bytes(), 1280);
        assert_eq!(played(&[&[1000], &[1280], &[10]]).bytes(), 1280);
        assert_eq!(played(&[&[1000], &[1281]]).bytes(), 1280 + 1536);
        // both at once; the smaller one goes where it fits best
        assert_eq!(played(&[&[1000, 2000], &[1280, 2304]]).bytes(), 1280 + 2304);
        // what is small takes the only buffer there is
        assert_eq!(played(&[&[2000], &[10, 2000]]).bytes(), 2304 + 2304);
        // a buffer that is 64 GiB too large is left alone
        let far = (1 << 36) + 100;
        assert_eq!(played(&[&[far], &[10]]).bytes(), new_buffer(far) + 256);
    }

    /// The engine's way: slots, each looked at.
    #[derive(Default)]
    struct Slots {
        kept: Vec<Option<u64>>,
        bytes: u64,
        most: u64,
    }

    impl Slots {
        fn take(&mut self, bytes: u64) -> u64 {
            let fits = |kept: u64| kept >= bytes && kept - bytes < TOO_LARGE;
            let kept = self.kept.iter().enumerate();
            let kept = kept.filter_map(|(i, slot)| slot.filter(|&n| fits(n)).map(|n| (n, i)));
            if let Some((n, i)) = kept.min() {
                self.kept[i] = None;
                return n;
            }
            let n = ((1.05 * bytes as f64) as u64).div_ceil(256) * 256;
            self.bytes += n;
            self.most = self.most.max(self.bytes);
            n
        }

        fn give_back(&mut self, n: u64) {
            self.kept.resize(SLOTS, None);
            match self.kept.iter_mut().find(|slot| slot.is_none()) {
                Some(slot) => *slot = Some(n),
                None => self.bytes -= n,
            }
        }

        fn operate(&mut self, sizes: &[u64]) {
            let taken: Vec<u64> = sizes.iter().map(|&n| self.take(n)).collect();
            taken.into_iter().rev().for_each(|n| self.give_back(n));
        }
    }

    #[test]
    fn slots_do_not_matter_and_no_order_is_above_the_bound() {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = |n: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % n
        };
        for round in 0..300 {
            let (mut pool, mut slots) = (LegacyPool::default(), Slots::default());
            let (mut asked, mut any) = (AnyOrder::default(), AnyOrder::default());
            let largest = 1 << (8 + round % 20);
            for _ in 0..1 + random(300) {
                let sizes: Vec<u64> = (0..1 + random(4)).map(|_| 1 + random(largest)).collect();
                pool.operate(buffers(&sizes));
                slots.operate(&sizes);
                asked.sizes.extend(&sizes);
                asked.hold_at_once(sizes.len());
                any.hold_at_once(sizes.len());
            }
            assert_eq!(pool.bytes(), slots.most, "round {round}");
            assert!(pool.bytes() <= asked.bytes(0), "round {round}");
            assert!(pool.bytes() <= any.bytes(largest), "round {round}");
        }
    }

    #[test]
    fn more_buffers_than_slots_go_back_to_the_driver() {
        let (mut pool, mut slots) = (LegacyPool::default(), Slots::default());
        let (mut size, mut all) = (256, 0);
        for _ in 0..SLOTS + 20 {
            pool.operate(buffers(&[size]));
            slots.operate(&[size]);
            all += new_buffer(size);
            size = new_buffer(size) + 1;
        }
        assert_eq!(pool.bytes(), slots.most);
        assert!(pool.bytes() < all);
    }
}
