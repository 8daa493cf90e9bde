//! A compute graph of shapes: what `ggml_cgraph` is to llama.cpp, without any data.

use crate::{Op, Type};
use std::ops::{Index, IndexMut};

/// `GGML_MAX_SRC`.
pub const MAX_SRC: usize = 10;

/// A tensor of one [`Graph`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TensorId(u32);

impl TensorId {
    const NONE: TensorId = TensorId(u32::MAX);

    /// Position in [`Graph::tensors`].
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    #[inline]
    pub(crate) const fn new(index: usize) -> TensorId {
        TensorId(index as u32)
    }
}

/// Where memory comes from: 0 is the host, `1 + i` the i-th device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BufferType(u8);

impl BufferType {
    /// Host memory, plain or pinned.
    pub const HOST: BufferType = BufferType(0);
    /// Host memory in an order that only ggml-cpu reads (`CPU_REPACK`): never copied to a device.
    pub const HOST_REPACKED: BufferType = BufferType(u8::MAX);

    /// Memory of the device with this index.
    pub const fn device(index: usize) -> BufferType {
        BufferType(index as u8 + 1)
    }

    /// The device whose memory this is; `None` for the host.
    pub const fn device_index(self) -> Option<usize> {
        if self.0 == Self::HOST_REPACKED.0 {
            return None;
        }
        (self.0 as usize).checked_sub(1)
    }

    /// 0 for the host, `1 + i` for the i-th device.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A backend of the scheduler, by its place in the scheduler's list (the CPU is the last).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BackendId(pub u8);

impl BackendId {
    /// Position in the scheduler's list.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a tensor is called when people look at a graph.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Label {
    /// No name was given.
    #[default]
    None,
    /// A step of the graph as llama.cpp names it.
    Step(&'static str),
    /// A step of one layer.
    Layer(&'static str, u32),
    /// The tensor of the model file with this index.
    Weight(u32),
}

/// Marks of a tensor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct Flags(u8);

impl Flags {
    /// Set by the user before the graph is computed; allocated first.
    pub const INPUT: Flags = Flags(1);
    /// Read by the user after the graph is computed; never freed.
    pub const OUTPUT: Flags = Flags(2);
    /// A weight of the model: where it lies decides where its operation runs.
    pub const WEIGHT: Flags = Flags(4);
    /// A matrix product that asks for f32 accumulation (`GGML_PREC_F32`).
    pub const PREC_F32: Flags = Flags(8);
    /// A product with a Hadamard matrix, which CUDA computes without the matrix.
    pub const HADAMARD: Flags = Flags(16);
    /// A matrix product that asks for its second source in f32 (`ggml_prec_set_src`).
    pub const SRC_F32: Flags = Flags(64);
    /// An attention with linear biases (ALiBi): heads cannot share their work.
    pub const ALIBI: Flags = Flags(128);
    const VISITED: Flags = Flags(32);

    /// Whether every mark of `other` is set.
    #[inline]
    pub const fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Sets the marks of `other`.
    #[inline]
    pub fn insert(&mut self, other: Flags) {
        self.0 |= other.0;
    }
}

impl std::ops::BitOr for Flags {
    type Output = Flags;
    fn bitor(self, rhs: Flags) -> Flags {
        Flags(self.0 | rhs.0)
    }
}

/// `ggml_tensor` without data: elements `ne` and strides in bytes `nb` of up to four dimensions,
/// fastest first.
#[derive(Clone, Copy, Debug)]
pub struct Tensor {
    /// What makes it.
    pub op: Op,
    /// Element type.
    pub ty: Type,
    /// Marks.
    pub flags: Flags,
    /// Memory it was given before the graph was built: weights and caches.
    pub buffer: Option<BufferType>,
    /// Backend it was assigned to by hand (`ggml_backend_sched_set_tensor_backend`).
    pub pin: Option<BackendId>,
    n_src: u8,
    view_src: TensorId,
    /// Elements.
    pub ne: [i64; 4],
    /// Strides, bytes.
    pub nb: [u64; 4],
    src: [TensorId; MAX_SRC],
}

impl Tensor {
    /// Sources, in order.
    #[inline]
    pub fn sources(&self) -> &[TensorId] {
        &self.src[..self.n_src as usize]
    }

    /// The i-th source.
    #[inline]
    pub fn source(&self, i: usize) -> Option<TensorId> {
        self.sources().get(i).copied()
    }

    #[inline]
    pub(crate) fn replace_source(&mut self, i: usize, with: TensorId) {
        self.src[i] = with;
    }

    /// The tensor whose memory this one looks at.
    #[inline]
    pub fn view_src(&self) -> Option<TensorId> {
        (self.view_src != TensorId::NONE).then_some(self.view_src)
    }

    /// `ggml_nbytes`: bytes from the first element to the last, 0 when empty.
    #[inline]
    pub fn n_bytes(&self) -> u64 {
        if self.ne.iter().any(|&n| n <= 0) {
            return 0;
        }
        let block = self.ty.block_size();
        let mut bytes = if block == 1 {
            self.ty
                .type_size()
                .saturating_add((self.ne[0] as u64 - 1).saturating_mul(self.nb[0]))
        } else {
            (self.ne[0] as u64).saturating_mul(self.nb[0]) / block
        };
        for i in 1..4 {
            bytes = bytes.saturating_add((self.ne[i] as u64 - 1).saturating_mul(self.nb[i]));
        }
        bytes
    }

    /// `ggml_nelements`.
    #[inline]
    pub fn n_elements(&self) -> i64 {
        self.ne.iter().fold(1, |a: i64, &n| a.saturating_mul(n))
    }

    /// `ggml_is_contiguous`.
    #[inline]
    pub fn is_contiguous(&self) -> bool {
        self.is_contiguous_from(0)
    }

    /// `ggml_is_contiguous_n`: no gaps from dimension `n` up; those below may be permuted within.
    pub fn is_contiguous_from(&self, n: usize) -> bool {
        let block = self.ty.block_size() as i64;
        let mut next = self.ty.type_size();
        if self.ne[0] != block && self.nb[0] != next {
            return false;
        }
        next = next.saturating_mul((self.ne[0] / block) as u64);
        for i in 1..4 {
            if i > n {
                if self.ne[i] != 1 && self.nb[i] != next {
                    return false;
                }
                next = next.saturating_mul(self.ne[i] as u64);
            } else {
                next = (self.ne[i] as u64).saturating_mul(self.nb[i]);
            }
        }
        true
    }

    /// `ggml_is_contiguous_rows`.
    #[inline]
    pub fn has_contiguous_rows(&self) -> bool {
        self.ne[0] == self.ty.block_size() as i64 || self.nb[0] == self.ty.type_size()
    }
}

/// Strides of a contiguous tensor, bytes.
#[inline]
pub fn contiguous_strides(ty: Type, ne: [i64; 4]) -> [u64; 4] {
    let n = ne[0].max(0) as u64;
    let blocks = if ty.is_quantized() {
        n / ty.block_size()
    } else {
        n
    };
    let row = blocks.saturating_mul(ty.type_size());
    let plane = row.saturating_mul(ne[1].max(0) as u64);
    [
        ty.type_size(),
        row,
        plane,
        plane.saturating_mul(ne[2].max(0) as u64),
    ]
}

/// Why a graph cannot be built: ggml would stop with a failed assertion.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GraphError {
    /// Shapes that do not go together.
    #[error("{op}: shapes {a:?} and {b:?} do not fit together")]
    Shapes {
        /// The operation.
        op: Op,
        /// Elements of the first source.
        a: [i64; 4],
        /// Elements of the second source, or of the result.
        b: [i64; 4],
    },
    /// Types that no backend of llama.cpp multiplies.
    #[error("{op}: no backend of llama.cpp multiplies {a} by {b}")]
    Types {
        /// The operation.
        op: Op,
        /// Of the first source.
        a: Type,
        /// Of the second source.
        b: Type,
    },
    /// A tensor of more than 2^62 bytes.
    #[error(
        "{op}: a tensor of shape {ne:?} is larger than any memory (a smaller -c or -ub makes smaller ones)"
    )]
    TooLarge {
        /// The operation.
        op: Op,
        /// Elements of the result.
        ne: [i64; 4],
    },
}

/// `ggml_cgraph` and the context its tensors live in. Made by the methods of [`Graph`], which
/// mirror ggml's constructors; a failed assertion of ggml's is kept in [`Graph::error`] and the
/// graph goes on, so that a model reads as straight code.
#[derive(Default)]
pub struct Graph {
    tensors: Vec<Tensor>,
    labels: Vec<Label>,
    /// Operations in the order they are computed.
    pub nodes: Vec<TensorId>,
    /// Tensors without an operation that a node needs, in the order they were met.
    pub leafs: Vec<TensorId>,
    error: Option<GraphError>,
    stack: Vec<(TensorId, u8)>,
}

thread_local! {
    /// Memory of the last graph that was recycled.
    static SPARE: std::cell::Cell<Option<Graph>> = const { std::cell::Cell::new(None) };
}

impl Index<TensorId> for Graph {
    type Output = Tensor;
    #[inline]
    fn index(&self, t: TensorId) -> &Tensor {
        &self.tensors[t.index()]
    }
}

impl IndexMut<TensorId> for Graph {
    #[inline]
    fn index_mut(&mut self, t: TensorId) -> &mut Tensor {
        &mut self.tensors[t.index()]
    }
}

impl Graph {
    /// An empty graph with room for `n` tensors, in memory that an earlier graph of this thread left.
    pub fn with_capacity(n: usize) -> Graph {
        let mut graph = SPARE.take().unwrap_or_default();
        graph.tensors.reserve(n);
        graph.labels.reserve(n);
        graph.nodes.reserve(n);
        graph
    }

    /// Ends the graph and leaves its memory to the thread's next one: fresh pages cost more than
    /// filling them.
    pub fn recycle(mut self) {
        self.tensors.clear();
        self.labels.clear();
        self.nodes.clear();
        self.leafs.clear();
        self.stack.clear();
        self.error = None;
        SPARE.set(Some(self));
    }

    /// Every tensor, used or not.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Lets every tensor go where the scheduler would put it by itself.
    pub fn unpin(&mut self) {
        self.tensors.iter_mut().for_each(|t| t.pin = None);
    }

    /// The first assertion of ggml's that failed while the graph was built.
    pub fn error(&self) -> Option<&GraphError> {
        self.error.as_ref()
    }

    pub(crate) fn fail(&mut self, error: GraphError) {
        self.error.get_or_insert(error);
    }

    /// What `t` is called.
    pub fn label(&self, t: TensorId) -> Label {
        self.labels.get(t.index()).copied().unwrap_or_default()
    }

    pub(crate) fn set_label(&mut self, t: TensorId, label: Label) {
        // Beside the tensors: names are not needed where every byte of a tensor counts.
        self.labels.resize(self.tensors.len(), Label::None);
        self.labels[t.index()] = label;
    }

    pub(crate) fn push(&mut self, tensor: Tensor) -> TensorId {
        let id = TensorId::new(self.tensors.len());
        self.tensors.push(tensor);
        id
    }

    /// A contiguous tensor made by `op` from `src`.
    pub fn new_tensor(&mut self, op: Op, ty: Type, ne: [i64; 4], src: &[TensorId]) -> TensorId {
        const LARGEST: u64 = 1 << 62;
        let nb = contiguous_strides(ty, ne);
        if nb[3].saturating_mul(ne[3].max(0) as u64) > LARGEST {
            self.fail(GraphError::TooLarge { op, ne });
        }
        let mut sources = [TensorId::NONE; MAX_SRC];
        sources[..src.len()].copy_from_slice(src);
        self.push(Tensor {
            op,
            ty,
            flags: Flags::default(),
            buffer: None,
            pin: None,
            n_src: src.len() as u8,
            view_src: TensorId::NONE,
            ne,
            nb,
            src: sources,
        })
    }

    /// A tensor over the memory of `of`, or of what `of` itself is a view of.
    pub fn new_view(
        &mut self,
        op: Op,
        of: TensorId,
        ne: [i64; 4],
        nb: [u64; 4],
        src: &[TensorId],
    ) -> TensorId {
        let ty = self[of].ty;
        let target = self[of].view_src().unwrap_or(of);
        let view = self.new_tensor(op, ty, ne, src);
        let tensor = &mut self[view];
        tensor.view_src = target;
        tensor.nb = nb;
        view
    }

    /// A tensor that the user sets before each run.
    pub fn input(&mut self, name: &'static str, ty: Type, ne: [i64; 4]) -> TensorId {
        let t = self.new_tensor(Op::None, ty, ne, &[]);
        self[t].flags = Flags::INPUT;
        self.set_label(t, Label::Step(name));
        t
    }

    /// A weight or a cache: a leaf that lies in memory taken before the graph is built.
    pub fn placed(&mut self, label: Label, ty: Type, ne: [i64; 4], buffer: BufferType) -> TensorId {
        let t = self.new_tensor(Op::None, ty, ne, &[]);
        self[t].buffer = Some(buffer);
        self.set_label(t, label);
        t
    }

    /// `ggml_build_forward_expand`: appends what `root` needs, in post-order over the sources.
    pub fn expand(&mut self, root: TensorId) {
        if self[root].flags.contains(Flags::VISITED) {
            return;
        }
        self[root].flags.insert(Flags::VISITED);
        let mut stack = std::mem::take(&mut self.stack);
        stack.push((root, 0));
        while let Some((t, next)) = stack.last_mut() {
            let id = *t;
            if let Some(source) = self.tensors[id.index()].source(*next as usize) {
                *next += 1;
                let flags = &mut self.tensors[source.index()].flags;
                if !flags.contains(Flags::VISITED) {
                    flags.insert(Flags::VISITED);
                    stack.push((source, 0));
                }
            } else {
                stack.pop();
                if self[id].op == Op::None {
                    self.leafs.push(id)
                } else {
                    self.nodes.push(id)
                }
            }
        }
        self.stack = stack;
    }

    /// For each tensor, how many nodes take it as a source.
    pub fn use_counts(&self) -> Vec<u32> {
        let mut uses = vec![0; self.tensors.len()];
        for &node in &self.nodes {
            for source in self[node].sources() {
                uses[source.index()] += 1;
            }
        }
        uses
    }
}
