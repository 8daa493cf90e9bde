//! ggml's graph allocator, replayed (`ggml-alloc.c`): which offset each tensor gets, and so how
//! large the compute buffer has to be.

use crate::backend::align;
use crate::sched::Schedule;
use crate::{Backend, BackendId, Flags, Graph, Op, TensorId};

#[derive(Clone, Copy)]
struct Block {
    offset: u64,
    size: u64,
}

/// `ggml_dyn_tallocr`: one backend's memory, as a list of free blocks. The last block has no end:
/// neither the CPU nor CUDA has a largest buffer, so ggml's second and further chunks never open.
struct DynAllocator {
    free: Vec<Block>,
    max_size: u64,
}

impl DynAllocator {
    fn new() -> DynAllocator {
        DynAllocator {
            free: vec![Block {
                offset: 0,
                size: u64::MAX / 2,
            }],
            max_size: 0,
        }
    }

    /// The smallest block that fits (of equals, the later), else the last one.
    fn best_fit(&self, size: u64) -> usize {
        let last = self.free.len() - 1;
        let (mut best, mut best_size) = (last, u64::MAX);
        for (i, block) in self.free[..last].iter().enumerate() {
            if block.size >= size && block.size <= best_size {
                (best, best_size) = (i, block.size);
            }
        }
        best
    }

    fn allocate(&mut self, size: u64) -> u64 {
        let i = self.best_fit(size);
        let block = &mut self.free[i];
        let offset = block.offset;
        block.offset = offset.saturating_add(size);
        block.size = block.size.saturating_sub(size);
        if block.size == 0 && i + 1 < self.free.len() {
            self.free.remove(i);
        }
        self.max_size = self.max_size.max(offset.saturating_add(size));
        offset
    }

    fn release(&mut self, offset: u64, size: u64) {
        let free = &mut self.free;
        let end = offset + size;
        for i in 0..free.len() {
            if free[i].offset + free[i].size == offset {
                free[i].size += size;
                if i + 1 < free.len() && free[i].offset + free[i].size == free[i + 1].offset {
                    free[i].size += free[i + 1].size;
                    free.remove(i + 1);
                }
                return;
            }
            if end == free[i].offset {
                free[i].offset = offset;
                free[i].size += size;
                if i > 0 && free[i - 1].offset + free[i - 1].size == free[i].offset {
                    free[i - 1].size += free[i].size;
                    free.remove(i);
                }
                return;
            }
        }
        // A linear scan as in ggml, not a binary search: tensors of no bytes leave blocks out of order.
        let i = free
            .iter()
            .position(|b| b.offset >= offset)
            .unwrap_or(free.len());
        free.insert(i, Block { offset, size });
    }
}

/// Is told of every step of the replay.
pub trait Observer {
    /// `t` takes `bytes` at `offset` of the backend's compute buffer.
    fn allocated(&mut self, t: TensorId, backend: BackendId, offset: u64, bytes: u64);
    /// `t` takes the place of `parent`, which ends.
    fn reused(&mut self, t: TensorId, parent: TensorId, bytes: u64);
    /// `t` gives its memory back.
    fn freed(&mut self, t: TensorId);
}

/// Watches nothing.
pub struct Unwatched;

impl Observer for Unwatched {
    fn allocated(&mut self, _: TensorId, _: BackendId, _: u64, _: u64) {}
    fn reused(&mut self, _: TensorId, _: TensorId, _: u64) {}
    fn freed(&mut self, _: TensorId) {}
}

/// `struct hash_node`: what the allocator knows of a tensor.
#[derive(Clone, Copy)]
struct Slot {
    children: u32,
    views: u32,
    /// What it is a view of, else itself.
    root: TensorId,
    backend: u8,
    owned: bool,
    /// Has memory from elsewhere, or none of its own.
    foreign: bool,
    offset: u64,
    size: u64,
}

impl Slot {
    fn new(index: usize, tensor: &crate::Tensor) -> Slot {
        let root = tensor.view_src();
        Slot {
            children: 0,
            views: 0,
            root: root.unwrap_or(TensorId::new(index)),
            backend: 0,
            owned: false,
            foreign: root.is_some() || tensor.buffer.is_some(),
            offset: 0,
            size: 0,
        }
    }
}

struct GraphAllocator<'a, O> {
    graph: &'a Graph,
    backends: &'a [Backend],
    pools: Vec<DynAllocator>,
    slots: Vec<Slot>,
    observer: &'a mut O,
}

impl<O: Observer> GraphAllocator<'_, O> {
    fn size_on(&self, backend: BackendId, t: TensorId) -> u64 {
        let b = &self.backends[backend.index()];
        align(b.alloc_size(self.graph, t), b.alignment())
    }

    /// A source that `t` may overwrite: it owns its memory, looks the same, and nobody else needs it.
    fn reusable_parent(&self, t: TensorId) -> Option<TensorId> {
        let tensor = &self.graph[t];
        tensor.sources().iter().copied().find(|&p| {
            let slot = &self.slots[p.index()];
            if !slot.owned || slot.children != 1 || slot.views != 0 {
                return false;
            }
            let parent = &self.graph[p];
            !parent.flags.contains(Flags::OUTPUT)
                && parent.ty == tensor.ty
                && parent.ne == tensor.ne
                && parent.nb == tensor.nb
        })
    }

    fn allocate_node(&mut self, t: TensorId, backend: BackendId) {
        let slot = &self.slots[t.index()];
        if slot.foreign || slot.owned {
            return;
        }
        if self.graph[t].op.can_inplace()
            && let Some(parent) = self.reusable_parent(t)
        {
            self.take_over(t, parent);
            return;
        }
        let size = self.size_on(backend, t);
        let offset = self.pools[backend.index()].allocate(size);
        let slot = &mut self.slots[t.index()];
        (slot.owned, slot.backend, slot.offset, slot.size) = (true, backend.0, offset, size);
        self.observer.allocated(t, backend, offset, size);
    }

    /// `t` takes its parent's memory; what it does not need is freed.
    fn take_over(&mut self, t: TensorId, parent: TensorId) {
        let from = self.slots[parent.index()];
        let size = self.size_on(BackendId(from.backend), t);
        self.slots[parent.index()].owned = false;
        let slot = &mut self.slots[t.index()];
        (slot.owned, slot.backend, slot.offset, slot.size) =
            (true, from.backend, from.offset, size);
        if from.size > size {
            self.pools[from.backend as usize].release(from.offset + size, from.size - size);
        }
        self.observer.reused(t, parent, size);
    }

    fn free_node(&mut self, t: TensorId) {
        if self.graph[t].flags.contains(Flags::OUTPUT) {
            return;
        }
        let slot = &mut self.slots[t.index()];
        slot.owned = false;
        let slot = *slot;
        self.pools[slot.backend as usize].release(slot.offset, slot.size);
        self.observer.freed(t);
    }

    /// Counts what needs each tensor, and allocates inputs before anything can be reused.
    fn count_uses(&mut self, nodes: &[(TensorId, BackendId)]) {
        for &(t, backend) in nodes {
            let tensor = &self.graph[t];
            if let Some(v) = tensor.view_src()
                && tensor.op != Op::None
            {
                self.slots[v.index()].views += 1;
            }
            if tensor.flags.contains(Flags::INPUT) {
                self.allocate_node(t, backend);
            }
            for &source in self.graph[t].sources() {
                self.slots[source.index()].children += 1;
                if self.graph[source].flags.contains(Flags::INPUT) {
                    self.allocate_node(source, backend);
                }
            }
        }
    }

    /// One use of `t` is over.
    fn release_use(&mut self, t: TensorId) {
        let slot = &mut self.slots[t.index()];
        slot.children -= 1;
        if slot.children != 0 || slot.views != 0 {
            return;
        }
        let (root, owned) = (slot.root, slot.owned);
        if root != t {
            let source = &mut self.slots[root.index()];
            source.views -= 1;
            if source.views == 0 && source.children == 0 && source.owned {
                self.free_node(root);
            }
        } else if owned {
            self.free_node(t);
        }
    }

    fn run(&mut self, schedule: &Schedule) {
        for &(leaf, backend) in &schedule.leafs {
            self.allocate_node(leaf, backend);
        }
        self.count_uses(&schedule.nodes);
        for &(t, backend) in &schedule.nodes {
            let graph = self.graph;
            for &source in graph[t].sources() {
                self.allocate_node(source, backend);
            }
            self.allocate_node(t, backend);
            for &source in graph[t].sources() {
                self.release_use(source);
            }
        }
    }
}

/// `ggml_gallocr_reserve`: bytes of the compute buffer of each backend.
pub fn reserve(
    graph: &Graph,
    schedule: &Schedule,
    backends: &[Backend],
    observer: &mut impl Observer,
) -> Vec<u64> {
    let mut allocator = GraphAllocator {
        graph,
        backends,
        pools: backends.iter().map(|_| DynAllocator::new()).collect(),
        slots: graph
            .tensors()
            .iter()
            .enumerate()
            .map(|(i, t)| Slot::new(i, t))
            .collect(),
        observer,
    };
    allocator.run(schedule);
    allocator.pools.iter().map(|p| p.max_size).collect()
}
