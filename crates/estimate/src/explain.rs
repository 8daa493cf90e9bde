//! Which tensors make the compute buffer as large as it is.

use crate::breakdown::Pass;
use crate::simulate::{Context, runtime_of};
use crate::{EngineProfile, Error, Layout, RunConfig};
use vramfit_arch::Model;
use vramfit_ggml::cuda::{Batches, PoolKind};
use vramfit_ggml::{Backend, BackendId, Graph, Label, Observer, TensorId, Type, reserve};

/// A tensor in the compute buffer at its peak.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct AliveTensor {
    /// As llama.cpp names it, where it does.
    pub name: String,
    /// What made it.
    pub op: &'static str,
    /// Element type.
    pub ty: Type,
    /// Elements.
    pub ne: [i64; 4],
    /// Bytes it takes in the buffer.
    pub bytes: u64,
}

/// The moment at which a compute buffer is fullest.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Peak {
    /// Device in the layout's order; `None` for the host.
    pub device: Option<usize>,
    /// The pass that needs the larger buffer.
    pub pass: Pass,
    /// Bytes of the buffer.
    pub bytes: u64,
    /// The most bytes that are in use at once: what a buffer without gaps would take.
    pub unfragmented_bytes: u64,
    /// The operation that is being allocated when the buffer grows to its size.
    pub at: String,
    /// What is in it then, the largest first.
    pub alive: Vec<AliveTensor>,
}

/// One thing that happened to a compute buffer.
#[derive(Clone, Copy)]
enum Event {
    Allocated {
        t: TensorId,
        offset: u64,
        bytes: u64,
    },
    Reused {
        t: TensorId,
        parent: TensorId,
        bytes: u64,
    },
    Freed {
        t: TensorId,
    },
}

/// Events by backend.
struct Recorder {
    events: Vec<Vec<Event>>,
    home: Vec<u8>,
}

impl Observer for Recorder {
    fn allocated(&mut self, t: TensorId, backend: BackendId, offset: u64, bytes: u64) {
        self.home[t.index()] = backend.0;
        self.events[backend.index()].push(Event::Allocated { t, offset, bytes });
    }

    fn reused(&mut self, t: TensorId, parent: TensorId, bytes: u64) {
        let backend = self.home[parent.index()];
        self.home[t.index()] = backend;
        self.events[backend as usize].push(Event::Reused { t, parent, bytes });
    }

    fn freed(&mut self, t: TensorId) {
        self.events[self.home[t.index()] as usize].push(Event::Freed { t });
    }
}

/// What is in a buffer, in order of allocation.
#[derive(Default)]
struct Live(Vec<(TensorId, u64, u64)>);

impl Live {
    fn apply(&mut self, event: Event) {
        match event {
            Event::Allocated { t, offset, bytes } => self.0.push((t, offset, bytes)),
            Event::Freed { t } => self.0.retain(|&(x, ..)| x != t),
            Event::Reused { t, parent, bytes } => {
                if let Some(entry) = self.0.iter_mut().find(|(x, ..)| *x == parent) {
                    (entry.0, entry.2) = (t, bytes);
                }
            }
        }
    }

    fn bytes(&self) -> u64 {
        self.0.iter().map(|&(_, _, bytes)| bytes).sum()
    }
}

impl Peak {
    /// The peaks of every device's compute buffer and of the host's.
    pub fn explain(
        model: &Model,
        run: &RunConfig,
        layout: &Layout,
        profile: &EngineProfile,
    ) -> Result<Vec<Peak>, Error> {
        let context = Context::new(model, run, layout, profile)?;
        let mut peaks: Vec<Option<Peak>> = vec![None; context.backends.len()];
        let passes = Pass::ALL.map(|pass| (pass, context.batch(pass)));
        let of_one = context.prompt_of_one().map(|batch| (Pass::Prompt, batch));
        for (pass, batch) in passes.into_iter().chain(of_one) {
            let (built, schedule) = context.schedule(batch)?;
            let mut recorder = Recorder {
                events: vec![Vec::new(); context.backends.len()],
                home: vec![0; built.graph.tensors().len()],
            };
            let sizes = reserve(&built.graph, &schedule, &context.backends, &mut recorder);
            for (i, (events, bytes)) in recorder.events.iter().zip(sizes).enumerate() {
                if peaks[i].as_ref().is_some_and(|p| p.bytes >= bytes) {
                    continue;
                }
                let device = context.backends[i].buffer_type().device_index();
                peaks[i] = Some(peak(model, &built.graph, events, device, pass, bytes));
            }
        }
        Ok(peaks.into_iter().flatten().collect())
    }
}

/// What sets the size of a device's runtime pool. Modelled, like the pool itself.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct PoolPeak {
    /// Device in the layout's order.
    pub device: usize,
    /// The pass that holds the more.
    pub pass: Pass,
    /// How temporary buffers are kept.
    pub kind: PoolKind,
    /// The pool, whole granules. Of the legacy kind all that it keeps, not of this operation alone.
    pub pool_bytes: u64,
    /// Of the legacy kind: what it keeps where the first prompts fill the context. Else `pool_bytes`.
    pub pool_filled_bytes: u64,
    /// Of the legacy kind: what it cannot do without. Else `pool_bytes`.
    pub pool_least_bytes: u64,
    /// cuBLAS's workspace, beside it.
    pub workspace_bytes: u64,
    /// Some of it depends on what is not known of the device.
    pub is_bound: bool,
    /// The operation that holds the most at once, and what it does it with; `None` where none holds anything.
    pub at: Option<PoolOp>,
}

/// An operation that needs temporary buffers.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct PoolOp {
    /// ggml's operation.
    pub op: &'static str,
    /// Its result.
    pub name: String,
    /// Its first source: in a product the weights. With type and elements.
    pub source: Option<AliveTensor>,
    /// The bytes that it holds.
    pub bytes: u64,
}

impl PoolPeak {
    /// The pools of every device that has one. None of an architecture that is not known: its pool is a bound.
    pub fn explain(
        model: &Model,
        run: &RunConfig,
        layout: &Layout,
        profile: &EngineProfile,
    ) -> Result<Vec<PoolPeak>, Error> {
        if !model.is_known() {
            return Ok(Vec::new());
        }
        let context = Context::new(model, run, layout, profile)?;
        let mut peaks: Vec<Option<PoolPeak>> = vec![None; layout.devices.len()];
        for (pass, batch) in context.pool_batches() {
            let (built, schedule) = context.schedule(batch)?;
            for backend in &context.backends {
                let device = backend.buffer_type().device_index();
                let (Backend::Cuda(cuda), Some(device)) = (backend, device) else {
                    continue;
                };
                let id = context.backend_id(backend.buffer_type());
                let held = cuda.pool_use(&built.graph, &schedule, id, Batches::UpToOwn);
                let runtime = runtime_of(cuda, &held);
                let Some(slot) = peaks.get_mut(device) else {
                    continue;
                };
                let workspace = slot.as_ref().map_or(0, |p| p.workspace_bytes);
                let workspace_bytes = workspace.max(runtime.workspace_bytes);
                if let Some(known) = slot
                    && known.at.as_ref().map_or(0, |at| at.bytes) >= held.bytes
                {
                    known.workspace_bytes = workspace_bytes;
                    continue;
                }
                *slot = Some(PoolPeak {
                    device,
                    pass,
                    kind: cuda.pool,
                    pool_bytes: runtime.pool_bytes,
                    pool_filled_bytes: runtime.pool_filled_bytes,
                    pool_least_bytes: runtime.pool_least_bytes,
                    workspace_bytes,
                    is_bound: runtime.is_bound,
                    at: held
                        .peak
                        .map(|t| pool_op(model, &built.graph, t, held.bytes)),
                });
            }
            built.graph.recycle();
        }
        for (device, held) in context.legacy_pool_use()? {
            if let Some(Some(peak)) = peaks.get_mut(device) {
                peak.pool_bytes = held.pool_bytes();
                peak.pool_filled_bytes = held.pool_filled_bytes();
                peak.pool_least_bytes = held.pool_least_bytes();
                peak.is_bound = held.is_bound;
            }
        }
        Ok(peaks.into_iter().flatten().collect())
    }
}

fn pool_op(model: &Model, graph: &Graph, t: TensorId, bytes: u64) -> PoolOp {
    let result = describe(model, graph, t, 0);
    let source = graph[t].source(0);
    PoolOp {
        op: result.op,
        name: result.name,
        source: source.map(|source| describe(model, graph, source, graph[source].n_bytes())),
        bytes,
    }
}

fn peak(
    model: &Model,
    graph: &Graph,
    events: &[Event],
    device: Option<usize>,
    pass: Pass,
    bytes: u64,
) -> Peak {
    let (mut live, mut unfragmented_bytes) = (Live::default(), 0);
    let mut at = None;
    for (i, &event) in events.iter().enumerate() {
        live.apply(event);
        unfragmented_bytes = unfragmented_bytes.max(live.bytes());
        if let Event::Allocated {
            t,
            offset,
            bytes: n,
        } = event
            && at.is_none()
            && offset + n == bytes
        {
            at = Some((i, t));
        }
    }
    let mut live = Live::default();
    events[..at.map_or(0, |(i, _)| i + 1)]
        .iter()
        .for_each(|&e| live.apply(e));
    let mut alive: Vec<AliveTensor> = live
        .0
        .iter()
        .map(|&(t, _, bytes)| describe(model, graph, t, bytes))
        .collect();
    alive.sort_by_key(|t| std::cmp::Reverse(t.bytes));
    let at = at.map_or_else(String::new, |(_, t)| describe(model, graph, t, 0).name);
    Peak {
        device,
        pass,
        bytes,
        unfragmented_bytes,
        at,
        alive,
    }
}

fn describe(model: &Model, graph: &Graph, t: TensorId, bytes: u64) -> AliveTensor {
    let tensor = &graph[t];
    let name = match graph.label(t) {
        Label::None => tensor.op.name().to_lowercase(),
        Label::Step(name) => name.to_string(),
        Label::Layer(name, il) => format!("{name}-{il}"),
        Label::Weight(i) => model
            .tensors
            .get(i as usize)
            .map_or_else(String::new, |t| t.name.clone()),
    };
    AliveTensor {
        name,
        op: tensor.op.name(),
        ty: tensor.ty,
        ne: tensor.ne,
        bytes,
    }
}
