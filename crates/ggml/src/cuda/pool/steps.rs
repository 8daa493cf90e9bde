//! Which operations of a graph take buffers of the pool, and which of them take the same.

use crate::{BackendId, Flags, Graph, Op, Schedule, TensorId, Type};
use std::collections::{BTreeMap, BTreeSet};

/// Sources of an operation that decide what it takes, at most.
const SOURCES: usize = 5;

/// A node that takes buffers of the pool.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// The node.
    pub node: TensorId,
    /// Steps of one kind take the same.
    pub kind: StepKind,
}

/// A kind of operation, by its number in [`Steps`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct StepKind(pub(super) usize);

/// The steps of a batch on one device.
#[derive(Clone, Debug)]
pub struct BatchSteps {
    /// In the order of their computing.
    pub(super) steps: Vec<StepKind>,
    /// Each kind of them once.
    pub(super) kinds: Vec<StepKind>,
}

impl FromIterator<StepKind> for BatchSteps {
    fn from_iter<I: IntoIterator<Item = StepKind>>(steps: I) -> Self {
        let steps = Vec::from_iter(steps);
        let kinds = BTreeSet::from_iter(steps.iter().copied());
        let kinds = kinds.into_iter().collect();
        BatchSteps { steps, kinds }
    }
}

/// All that decides what an operation takes: itself, its flags, and types, elements and strides of its
/// result and its sources.
type Shapes = (u8, Flags, [Option<(Type, [i64; 4], [u64; 4])>; 1 + SOURCES]);

/// Kinds of operations, over all graphs that one context computes.
#[derive(Clone, Debug, Default)]
pub struct Steps(BTreeMap<Shapes, usize>);

impl Steps {
    /// The steps of the splits of `backend`, in order.
    pub fn of(&mut self, graph: &Graph, schedule: &Schedule, backend: BackendId) -> Vec<Step> {
        let own = schedule.splits.iter().filter(|s| s.backend == backend);
        let nodes = own.flat_map(|s| graph.nodes.get(s.nodes.clone()).unwrap_or_default());
        nodes.filter_map(|&node| self.step(graph, node)).collect()
    }

    fn step(&mut self, graph: &Graph, node: TensorId) -> Option<Step> {
        let t = &graph[node];
        if t.ne.contains(&0) {
            return None; // nothing to compute: a batch of which no outputs are wanted
        }
        let op = match t.op {
            Op::MulMat => 0,
            Op::MulMatId => 1,
            Op::FlashAttnExt => 2,
            Op::Conv2d => 3,
            Op::SsmScan => 4,
            Op::Argsort => 5,
            Op::TopK => 6,
            _ => return None,
        };
        let mut shapes = [None; 1 + SOURCES];
        let sources = t.sources().iter().map(|&s| &graph[s]);
        for (shape, t) in shapes.iter_mut().zip(std::iter::once(t).chain(sources)) {
            *shape = Some((t.ty, t.ne, t.nb));
        }
        let next = self.0.len();
        let kind = *self.0.entry((op, t.flags, shapes)).or_insert(next);
        let kind = StepKind(kind);
        Some(Step { node, kind })
    }
}
