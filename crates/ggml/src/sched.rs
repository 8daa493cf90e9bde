//! ggml's backend scheduler, replayed (`ggml_backend_sched_split_graph` in `ggml-backend.cpp`):
//! which backend runs each node, where the graph is cut, and what is copied between the parts.

use crate::{Backend, BackendId, BufferType, Flags, Graph, Op, Tensor, TensorId};
use std::ops::Range;

/// Nodes that run on one backend without a break.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Split {
    /// Runs it.
    pub backend: BackendId,
    /// Positions in [`Graph::nodes`].
    pub nodes: Range<usize>,
    /// Tensors of other backends that are copied over before it runs.
    pub inputs: Vec<TensorId>,
}

/// A graph made ready for the allocator.
pub struct Schedule {
    assigned: Vec<u8>,
    /// The parts, in order.
    pub splits: Vec<Split>,
    /// What the allocator walks: the graph's nodes, copies of split inputs and dependencies.
    pub nodes: Vec<(TensorId, BackendId)>,
    /// The graph's leafs and, for pipeline parallelism, every copy.
    pub leafs: Vec<(TensorId, BackendId)>,
    /// Tensors that have to be kept until the node at a position of [`Graph::nodes`] is done.
    pub dependencies: Vec<(usize, TensorId)>,
}

impl Schedule {
    /// The backend that runs (or holds) `t`.
    pub fn backend_of(&self, t: TensorId) -> Option<BackendId> {
        self.assigned
            .get(t.index())
            .copied()
            .filter(|&b| b != NONE)
            .map(BackendId)
    }
}

/// The scheduler of one context.
pub struct Scheduler<'a> {
    /// By priority; the CPU is the last.
    pub backends: &'a [Backend],
    /// Copies of each input: 4 for pipeline parallelism, else 1.
    pub n_copies: usize,
    /// Whether a device may take over operations on host weights (`op_offload`).
    pub op_offload: bool,
}

const NONE: u8 = u8::MAX;
const NO_COPY: u32 = u32::MAX;

impl Scheduler<'_> {
    /// Assigns, splits and orders `graph`. The sources of its nodes are replaced by the copies
    /// they read.
    pub fn split(&self, graph: &mut Graph) -> Schedule {
        let is_computed = |&(_, t): &(usize, TensorId)| !graph[t].op.is_view();
        let computed: Vec<(usize, TensorId)> = graph
            .nodes
            .iter()
            .copied()
            .enumerate()
            .filter(is_computed)
            .collect();
        let assigned = self.assign(graph, &computed);
        Splitter::new(self, graph, assigned).run(&computed)
    }

    fn cpu(&self) -> u8 {
        (self.backends.len() - 1) as u8
    }

    fn supports(&self, backend: u8, graph: &Graph, node: TensorId) -> bool {
        self.backends[backend as usize].supports_op(graph, node)
    }

    /// The first backend that reads `buffer` and can run `node`.
    fn backend_for_buffer(&self, graph: &Graph, buffer: BufferType, node: TensorId) -> u8 {
        let found = self
            .backends
            .iter()
            .position(|b| b.supports_buffer(buffer) && b.supports_op(graph, node));
        found.map_or(NONE, |i| i as u8)
    }

    /// `ggml_backend_sched_backend_id_from_cur`: by the memory a tensor lies in, or that of the
    /// first weight it reads.
    fn backend_from_memory(&self, graph: &Graph, t: TensorId) -> u8 {
        let tensor = &graph[t];
        if let Some(buffer) = buffer_of(graph, tensor) {
            let backend = self.backend_for_buffer(graph, buffer, t);
            if backend != NONE {
                return backend;
            }
        }
        if tensor.flags.contains(Flags::INPUT) {
            return self.cpu();
        }
        if matches!(tensor.op, Op::Rope | Op::FlashAttnExt) {
            return NONE; // their weights (factors, sinks) are small: they do not decide
        }
        let weight = tensor
            .sources()
            .iter()
            .find(|s| graph[**s].flags.contains(Flags::WEIGHT));
        let Some(buffer) = weight.and_then(|&w| buffer_of(graph, &graph[w])) else {
            return NONE;
        };
        let home = self.backend_for_buffer(graph, buffer, t);
        if self.op_offload && home == self.cpu() && buffer == BufferType::HOST {
            let wants = |b: &Backend| b.supports_op(graph, t) && b.offload_op(graph, t);
            if let Some(b) = self.backends[..home as usize].iter().position(wants) {
                return b as u8;
            }
        }
        home
    }

    /// Passes 1 to 4: a backend for every tensor of the graph.
    fn assign(&self, graph: &Graph, computed: &[(usize, TensorId)]) -> Vec<u8> {
        let pinned = |t: &Tensor| t.pin.map_or(NONE, |b| b.0);
        let mut assigned: Vec<u8> = graph.tensors().iter().map(pinned).collect();
        for &t in graph.leafs.iter().chain(&graph.nodes) {
            if assigned[t.index()] == NONE {
                assigned[t.index()] = self.backend_from_memory(graph, t);
            }
        }
        for device_only in [true, false] {
            self.spread(graph, computed.iter(), device_only, &mut assigned);
            self.spread(graph, computed.iter().rev(), device_only, &mut assigned);
        }
        self.assign_rest(graph, computed, &mut assigned);
        self.assign_views(graph, &mut assigned);
        assigned
    }

    /// Pass 2: assigned nodes hand their backend on to neighbours that it supports.
    fn spread<'n>(
        &self,
        graph: &Graph,
        computed: impl Iterator<Item = &'n (usize, TensorId)>,
        device_only: bool,
        assigned: &mut [u8],
    ) {
        let cpu = self.cpu();
        let mut current = NONE;
        for &(_, t) in computed {
            let own = &mut assigned[t.index()];
            if *own != NONE {
                current = if device_only && *own == cpu {
                    NONE
                } else {
                    *own
                };
            } else if current != NONE && self.supports(current, graph, t) {
                *own = current;
            }
        }
    }

    /// Pass 3: what is left goes where most of its sources can be read. (Moving a node to a
    /// better backend with the same memory, as for BLAS, never applies to CUDA and the CPU.)
    fn assign_rest(&self, graph: &Graph, computed: &[(usize, TensorId)], assigned: &mut [u8]) {
        for &(_, t) in computed {
            if assigned[t.index()] != NONE {
                continue;
            }
            let mut most = None;
            for b in 0..self.backends.len() as u8 {
                if !self.supports(b, graph, t) {
                    continue;
                }
                let readable = |s: &&TensorId| self.can_read(graph, assigned, **s, b);
                let n = graph[t].sources().iter().filter(readable).count();
                if most.is_none_or(|m| n > m) {
                    most = Some(n);
                    assigned[t.index()] = b;
                }
            }
        }
    }

    /// Pass 4: views follow what they look at, sources without a backend their first user.
    fn assign_views(&self, graph: &Graph, assigned: &mut [u8]) {
        for &t in &graph.nodes {
            let tensor = &graph[t];
            if let (NONE, Some(v)) = (assigned[t.index()], tensor.view_src()) {
                assigned[t.index()] = assigned[v.index()];
            }
            for &s in tensor.sources() {
                if assigned[s.index()] == NONE {
                    let from = graph[s].view_src().unwrap_or(t);
                    assigned[s.index()] = assigned[from.index()];
                }
            }
            if assigned[t.index()] == NONE {
                let first = self.backends.iter().position(|b| b.supports_op(graph, t));
                assigned[t.index()] = first.map_or(self.cpu(), |b| b as u8);
            }
        }
    }

    /// `ggml_backend_sched_buffer_supported`: backend `b` reads `t` where it lies or will lie.
    fn can_read(&self, graph: &Graph, assigned: &[u8], t: TensorId, b: u8) -> bool {
        let tensor = &graph[t];
        let buffer = buffer_of(graph, tensor).or_else(|| {
            let own = assigned[t.index()];
            let of = if own != NONE {
                own
            } else {
                assigned[tensor.view_src()?.index()]
            };
            Some(self.backends.get(of as usize)?.buffer_type())
        });
        buffer.is_some_and(|buffer| self.backends[b as usize].supports_buffer(buffer))
    }
}

/// Memory that `t`, or what it looks at, was given before the graph was built.
fn buffer_of(graph: &Graph, t: &Tensor) -> Option<BufferType> {
    t.view_src().map_or(t.buffer, |v| graph[v].buffer)
}

/// Pass 5 and what follows: cuts, copies, dependencies and the order for the allocator.
struct Splitter<'a, 'g> {
    scheduler: &'a Scheduler<'a>,
    graph: &'g mut Graph,
    assigned: Vec<u8>,
    /// For each tensor, where its copies start in `copies`.
    copy_index: Vec<u32>,
    /// Copies of copied tensors: `n_copies` for each backend.
    copies: Vec<Option<TensorId>>,
    graph_inputs: Vec<TensorId>,
    splits: Vec<Split>,
}

impl<'a, 'g> Splitter<'a, 'g> {
    fn new(scheduler: &'a Scheduler<'a>, graph: &'g mut Graph, assigned: Vec<u8>) -> Self {
        let copy_index = vec![NO_COPY; graph.tensors().len()];
        Splitter {
            scheduler,
            graph,
            assigned,
            copy_index,
            copies: Vec::new(),
            graph_inputs: Vec::new(),
            splits: Vec::new(),
        }
    }

    fn run(mut self, computed: &[(usize, TensorId)]) -> Schedule {
        let uses = crate::cuda::has_experts(self.graph, computed).then(|| self.graph.use_counts());
        let nodes = std::mem::take(&mut self.graph.nodes);
        self.cut(nodes.len(), computed);
        let kept = uses.map_or_else(Vec::new, |uses| self.dependencies(&nodes, &uses));
        let leafs = self.order_leafs();
        let order = self.order_nodes(&nodes, &kept);
        self.graph.nodes = nodes;
        Schedule {
            assigned: self.assigned,
            splits: self.splits,
            nodes: order,
            leafs,
            dependencies: kept,
        }
    }

    /// A tensor of no operation with the shape and strides of `of`.
    fn duplicate(&mut self, of: TensorId, backend: u8, src: &[TensorId]) -> TensorId {
        let Tensor { ty, ne, nb, .. } = self.graph[of];
        let label = self.graph.label(of);
        let t = self.graph.new_tensor(Op::None, ty, ne, src);
        self.graph[t].nb = nb;
        self.graph.set_label(t, label);
        self.assigned.push(backend);
        t
    }

    /// A contiguous view of `of` that only keeps `sources` alive.
    fn keeper(&mut self, of: TensorId, sources: &[TensorId], backend: u8) -> TensorId {
        let Tensor { ne, nb, .. } = self.graph[of];
        let t = self.graph.new_view(Op::None, of, ne, nb, sources);
        self.assigned.push(backend);
        t
    }

    fn cut(&mut self, n_nodes: usize, computed: &[(usize, TensorId)]) {
        let Some(&(_, first)) = computed.first() else {
            return;
        };
        let backend = BackendId(self.assigned[first.index()]);
        let mut split = Split {
            backend,
            nodes: 0..0,
            inputs: Vec::new(),
        };
        for &(i, t) in computed {
            let backend = BackendId(self.assigned[t.index()]);
            if backend != split.backend || self.wants_new_split(t, &split) {
                split.nodes.end = i;
                let next = Split {
                    backend,
                    nodes: i..i,
                    inputs: Vec::new(),
                };
                self.splits.push(std::mem::replace(&mut split, next));
            }
            self.copy_sources(t, &mut split);
        }
        split.nodes.end = n_nodes;
        self.splits.push(split);
    }

    /// A weight that has to be copied over starts a new split when others were copied before:
    /// so the memory of copied weights can be used again.
    fn wants_new_split(&self, t: TensorId, split: &Split) -> bool {
        !split.inputs.is_empty()
            && self.graph[t].sources().iter().any(|&s| {
                self.assigned[s.index()] != split.backend.0
                    && self.graph[s].flags.contains(Flags::WEIGHT)
                    && !self
                        .scheduler
                        .can_read(self.graph, &self.assigned, s, split.backend.0)
            })
    }

    /// Replaces the sources that the split's backend cannot read by copies on it.
    fn copy_sources(&mut self, t: TensorId, split: &mut Split) {
        let backend = split.backend.0;
        let cpu = self.scheduler.cpu();
        for j in 0..self.graph[t].sources().len() {
            let s = self.graph[t].sources()[j];
            let home = self.assigned[s.index()];
            if self.scheduler.n_copies > 1
                && home == cpu // where every input is
                && self.graph[s].flags.contains(Flags::INPUT)
                && !self.graph_inputs.contains(&s)
            {
                self.graph_inputs.push(s);
            }
            if home == backend
                || self
                    .scheduler
                    .can_read(self.graph, &self.assigned, s, backend)
            {
                continue;
            }
            let copy = self.copy_on(s, backend).unwrap_or_else(|| {
                split.inputs.push(s);
                self.make_copies(s, backend)
            });
            self.graph[t].replace_source(j, copy);
        }
    }

    fn copy_slot(&self, t: TensorId, backend: u8) -> Option<usize> {
        let start = self.copy_index[t.index()];
        let n_copies = self.scheduler.n_copies;
        (start != NO_COPY).then(|| start as usize + backend as usize * n_copies)
    }

    fn copy_on(&self, t: TensorId, backend: u8) -> Option<TensorId> {
        self.copies[self.copy_slot(t, backend)?]
    }

    fn make_copies(&mut self, t: TensorId, backend: u8) -> TensorId {
        let n_copies = self.scheduler.n_copies;
        if self.copy_index[t.index()] == NO_COPY {
            self.copy_index[t.index()] = self.copies.len() as u32;
            let room = self.copies.len() + n_copies * self.scheduler.backends.len();
            self.copies.resize(room, None);
        }
        let slot = self.copy_index[t.index()] as usize + backend as usize * n_copies;
        let mut first = None;
        for c in 0..n_copies {
            let copy = self.duplicate(t, backend, &[]);
            if n_copies > 1 {
                self.graph[copy].flags = Flags::INPUT | Flags::OUTPUT;
            }
            self.copies[slot + c] = Some(copy);
            first.get_or_insert(copy);
        }
        first.unwrap_or(t)
    }

    /// `graph_optimize` of the backends, which look for experts only: tensors to keep until a node (by position) is done.
    fn dependencies(&self, nodes: &[TensorId], uses: &[u32]) -> Vec<(usize, TensorId)> {
        let mut kept = Vec::new();
        for split in &self.splits {
            if let Backend::Cuda(_) = self.scheduler.backends[split.backend.index()] {
                crate::cuda::graph_optimize(
                    self.graph,
                    nodes,
                    split.nodes.clone(),
                    uses,
                    &mut kept,
                );
            }
        }
        kept.sort_by_key(|&(until, _)| until);
        kept
    }

    fn order_leafs(&mut self) -> Vec<(TensorId, BackendId)> {
        let mut leafs = Vec::with_capacity(self.graph.leafs.len());
        if self.scheduler.n_copies > 1 {
            for input in std::mem::take(&mut self.graph_inputs) {
                let backend = self.assigned[input.index()];
                for c in 0..self.scheduler.n_copies {
                    let copy = if c == 0 {
                        input
                    } else {
                        self.duplicate(input, backend, &[])
                    };
                    self.graph[copy].flags.insert(Flags::INPUT | Flags::OUTPUT);
                    leafs.push((copy, BackendId(backend)));
                }
            }
            for split in &self.splits {
                for &input in &split.inputs {
                    let Some(slot) = self.copy_slot(input, split.backend.0) else {
                        continue;
                    };
                    let copies = &self.copies[slot..slot + self.scheduler.n_copies];
                    leafs.extend(copies.iter().flatten().map(|&c| (c, split.backend)));
                }
            }
        }
        let own = self
            .graph
            .leafs
            .iter()
            .map(|&t| (t, BackendId(self.assigned[t.index()])));
        leafs.extend(own);
        leafs
    }

    fn order_nodes(
        &mut self,
        nodes: &[TensorId],
        kept: &[(usize, TensorId)],
    ) -> Vec<(TensorId, BackendId)> {
        let mut order = Vec::with_capacity(nodes.len() + 64);
        let mut kept = kept;
        for split in std::mem::take(&mut self.splits) {
            for &input in &split.inputs {
                // Keeps the original until the copy is made.
                let backend = self.assigned[input.index()];
                let keeper = self.keeper(input, &[input], backend);
                order.push((keeper, BackendId(backend)));
                if let Some(copy) = self.copy_on(input, split.backend.0) {
                    order.push((copy, split.backend));
                }
            }
            for i in split.nodes.clone() {
                let t = nodes[i];
                order.push((t, BackendId(self.assigned[t.index()])));
                let n = kept.iter().take_while(|(until, _)| *until == i).count();
                if n > 0 {
                    self.keep_alive(&kept[..n], split.backend, &mut order);
                    kept = &kept[n..];
                }
            }
            self.splits.push(split);
        }
        order
    }

    /// Dependencies become nodes without an operation, of at most [`crate::MAX_SRC`] sources.
    fn keep_alive(
        &mut self,
        kept: &[(usize, TensorId)],
        backend: BackendId,
        order: &mut Vec<(TensorId, BackendId)>,
    ) {
        let mut sources: Vec<TensorId> = Vec::with_capacity(kept.len());
        for &(_, t) in kept {
            if !sources.contains(&t) {
                sources.push(t);
            }
        }
        for some in sources.chunks(crate::MAX_SRC) {
            let keeper = self.keeper(some[0], some, backend.0);
            order.push((keeper, backend));
        }
    }
}
