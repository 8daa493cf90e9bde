//! llama.cpp's reserve passes, replayed (`llama_context::sched_reserve`).

use crate::breakdown::{Breakdown, MemoryBytes, Pass, PassStats, Runtime};
use crate::memory::check_tensor_split;
use crate::{EngineProfile, Error, Layout, LayoutDevice, Refusal, RunConfig, parallel};
use vramfit_arch::cache::{CacheKind, cache_tensor};
use vramfit_arch::{
    Batch, BuiltGraph, ContextParams, CpuRepack, FusedOp, Lent, LentCaches, LentTensor, Model,
    Slicer, TensorOverride, Unfused, WeightMap, build,
};
use vramfit_ggml::cuda::{Batches, Cuda, PoolUse};
use vramfit_ggml::{
    Backend, BackendId, BufferType, Graph, Observer, Schedule, Scheduler, Unwatched, reserve,
};

/// `GGML_SCHED_MAX_COPIES`.
const PIPELINE_COPIES: usize = 4;

/// Everything that is settled before the first graph is built.
pub(crate) struct Context<'a> {
    pub model: &'a Model,
    pub params: ContextParams,
    pub backends: Vec<Backend>,
    pub layers: Vec<BufferType>,
    pub weights: WeightMap,
    /// `-sm tensor`.
    pub slicer: Option<Slicer<'a>>,
    /// The devices in order; the scheduler may see them as one.
    pub devices: Vec<Cuda>,
    pub n_copies: usize,
    keeps_pins: bool,
    pub use_mmap: bool,
    pub reads_lazily: bool,
}

impl Breakdown {
    /// What llama.cpp takes for `model`, run as `run` says and laid out as `layout` says.
    pub fn estimate(
        model: &Model,
        run: &RunConfig,
        layout: &Layout,
        profile: &EngineProfile,
    ) -> Result<Breakdown, Error> {
        let context = Context::new(model, run, layout, profile)?;
        if !model.is_known() {
            let needs = context.bound();
            return context.breakdown(&needs, [PassStats::default(); 2]);
        }
        let reserve = |batch| context.reserve(batch, &mut Unwatched);
        let batches = Pass::ALL.map(|pass| context.batch(pass));
        let [prompt, generation] = batches;
        let (prompt, generation) = parallel::both(|| reserve(prompt), || reserve(generation));
        let (prompt, generation) = (prompt?, generation?);
        let passes = [prompt.1, generation.1];
        let mut reserved: Vec<_> = batches.into_iter().zip([prompt.0, generation.0]).collect();
        if let Some(batch) = context.prompt_of_one() {
            reserved.push((batch, reserve(batch)?.0));
        }
        let mut needs = context.most(reserved)?;
        context.play_legacy_pools(&mut needs)?;
        context.breakdown(&needs, passes)
    }
}

/// What one pass takes on one backend.
#[derive(Clone, Copy)]
pub(crate) struct Needs {
    /// Compute buffer.
    pub compute_bytes: u64,
    /// While it computes.
    pub pool: PoolUse,
}

impl Needs {
    fn max(self, other: Needs) -> Needs {
        Needs {
            compute_bytes: self.compute_bytes.max(other.compute_bytes),
            pool: self.pool.max(other.pool),
        }
    }
}

impl<'a> Context<'a> {
    pub fn new(
        model: &'a Model,
        run: &RunConfig,
        layout: &Layout,
        profile: &EngineProfile,
    ) -> Result<Context<'a>, Error> {
        if layout.split_tensors {
            check_tensor_split(model, run, layout)?;
        }
        let params = run.resolve(model)?;
        // as the scheduler counts them
        let n_devices = match layout.split_tensors {
            true => 1,
            false => layout.devices.len(),
        };
        let n_layer_all = model.hparams.n_layer_all;
        let full_offload = layout.gpu_layers(n_layer_all) > n_layer_all;
        let unused = |b: &BufferType| b.device_index().is_some_and(|i| i >= n_devices);
        let to_device = |o: &TensorOverride| o.buffer.device_index().is_some();
        if layout.split_tensors && layout.overrides.iter().any(to_device) {
            return Err(Refusal::TensorSplitOverride.into());
        }
        if let Some(o) = layout.overrides.iter().find(|o| unused(&o.buffer)) {
            let device = format!("device {}", o.buffer.index() - 1);
            return Err(Refusal::OverrideDevice { device }.into());
        }
        let layers = layout.layer_buffers(n_layer_all);
        // Weights in pinned memory stay as they are.
        let pinned = n_devices > 0 && run.pinned_host;
        let repack = if pinned {
            CpuRepack::Off
        } else {
            run.cpu_repack
        };
        let overrides = &layout.overrides;
        let weights = WeightMap::new(model, &layers, n_devices, full_offload, overrides, repack);
        let pipelined =
            n_devices > 1 && full_offload && params.offload_kqv && layout.overrides.is_empty();
        let has_integrated = layout.devices.iter().any(|d| d.integrated);
        let devices = devices(layout, profile);
        let slicer = Slicer::new(model, devices.len(), &layout.tensor_split);
        let mut context = Context {
            model,
            params,
            backends: backends(&devices, layout.split_tensors),
            layers,
            weights,
            slicer: layout.split_tensors.then_some(slicer),
            devices,
            n_copies: if pipelined { PIPELINE_COPIES } else { 1 },
            keeps_pins: profile.keeps_pins,
            use_mmap: run.use_mmap && !has_integrated,
            reads_lazily: !has_integrated,
        };
        context.check_caches()?;
        let probes = run.probes_flash_attention(model) && !layout.split_tensors;
        context.settle_fused_ops(probes)?;
        Ok(context)
    }

    /// `resolve_fused_ops`, one operation after the other: it stays fused when every node of its
    /// kind lands on the device of its layer.
    fn settle_fused_ops(&mut self, auto_flash_attention: bool) -> Result<(), Error> {
        if !self.model.is_known() {
            self.params.flash_attn &= !auto_flash_attention;
            return Ok(());
        }
        let probed = |op: &FusedOp| match op {
            FusedOp::FlashAttention => auto_flash_attention,
            _ => self.model.hparams.fuses_hyper_connections,
        };
        let probed: Vec<FusedOp> = FusedOp::ALL.into_iter().filter(probed).collect();
        let mut misplaced = None;
        for op in probed {
            let found = match &misplaced {
                Some(found) => found,
                None => misplaced.insert(self.misplaced_ops()?),
            };
            if found.contains(op) {
                match op {
                    FusedOp::FlashAttention => self.params.flash_attn = false,
                    _ => self.params.unfused.insert(op),
                }
                misplaced = None; // the next one is probed in another graph
            }
        }
        Ok(())
    }

    /// Fused operations of a graph of one token a sequence that are not on their layer's device.
    fn misplaced_ops(&self) -> Result<Unfused, Error> {
        let (built, schedule) = self.schedule(self.batch(Pass::Generation))?;
        let mut misplaced = Unfused::default();
        for &(op, node, il) in &built.fused {
            if schedule.backend_of(node) != Some(self.weights.backend(self.layers[il])) {
                misplaced.insert(op);
            }
        }
        built.graph.recycle();
        Ok(misplaced)
    }

    /// Builds the graph of `batch` and splits it over the backends.
    pub fn schedule(&self, batch: Batch) -> Result<(BuiltGraph, Schedule), Error> {
        let mut built = build(self.model, &self.params, &self.weights, batch)?;
        if !self.keeps_pins {
            built.graph.unpin();
        }
        let n_tensors = Model::graph_tensors(&built.graph);
        let room = self
            .model
            .max_graph_tensors(self.n_tokens_most(), &self.params.adapters);
        // More than the nodes of a sampler, for each row.
        let p = &self.params;
        let rows = (p.n_seq_max.max(0) as u64).saturating_mul(u64::from(p.role.n_sampled));
        let room = room.saturating_add(rows.saturating_mul(8));
        if n_tensors > room {
            return Err(Refusal::GraphTooLarge { n_tensors, room }.into());
        }
        let scheduler = Scheduler {
            backends: &self.backends,
            n_copies: self.n_copies,
            op_offload: self.params.op_offload,
        };
        let schedule = scheduler.split(&mut built.graph);
        Ok((built, schedule))
    }

    /// What the graph of `batch` takes on each backend.
    pub(crate) fn reserve(
        &self,
        batch: Batch,
        observer: &mut impl Observer,
    ) -> Result<(Vec<Needs>, PassStats), Error> {
        let (built, schedule) = self.schedule(batch)?;
        let sizes = reserve(&built.graph, &schedule, &self.backends, observer);
        let needs = self.needs(&built.graph, &schedule, sizes);
        let stats = PassStats {
            n_nodes: built.graph.nodes.len(),
            n_splits: schedule.splits.len(),
        };
        built.graph.recycle();
        Ok((needs, stats))
    }

    /// What the graph of `batch` takes of the pools alone.
    fn pools(&self, batch: Batch) -> Result<Vec<Needs>, Error> {
        let (built, schedule) = self.schedule(batch)?;
        let needs = self.needs(&built.graph, &schedule, std::iter::repeat(0));
        built.graph.recycle();
        Ok(needs)
    }

    /// What a graph takes with compute buffers of these sizes, by backend.
    fn needs(
        &self,
        graph: &Graph,
        schedule: &Schedule,
        sizes: impl IntoIterator<Item = u64>,
    ) -> Vec<Needs> {
        let mut needs = Vec::with_capacity(self.devices.len() + 1);
        for (backend, compute_bytes) in self.backends.iter().zip(sizes) {
            let id = self.backend_id(backend.buffer_type());
            let pool = |cuda: &Cuda| cuda.pool_use(graph, schedule, id, Batches::UpToOwn);
            let need = |pool| Needs {
                compute_bytes,
                pool,
            };
            match backend {
                Backend::Cpu => needs.push(need(PoolUse::default())),
                Backend::Cuda(cuda) => needs.push(need(pool(cuda))),
                // each computes less than all of it
                Backend::Meta(all) => needs.extend(all.iter().map(|cuda| need(whole(pool(cuda))))),
            }
        }
        needs
    }

    /// The most that the batches take which are reserved for; of pools, the most that what runs takes, which is not the
    /// same.
    fn most(&self, mut all: Vec<(Batch, Vec<Needs>)>) -> Result<Vec<Needs>, Error> {
        let runs = self.pool_batches();
        for (batch, needs) in &mut all {
            if !runs.iter().any(|(_, runs)| runs == batch) {
                let pools = needs.iter_mut().map(|need| &mut need.pool);
                pools.for_each(|pool| *pool = PoolUse::default());
            }
        }
        for (_, batch) in runs {
            if !all.iter().any(|(known, _)| *known == batch) {
                all.push((batch, self.pools(batch)?));
            }
        }
        let all = all.into_iter().map(|(_, needs)| needs);
        let most = all.reduce(|most, needs| {
            let pairs = most.into_iter().zip(needs);
            pairs.map(|(most, need)| most.max(need)).collect()
        });
        Ok(most.unwrap_or_default())
    }

    /// What a draft may read of this model.
    pub fn lends(&self) -> Lent {
        let n_layer = self.model.hparams.n_layer();
        let both = || {
            Some(LentCaches {
                window: self.lent_kv(n_layer.checked_sub(2)?)?,
                full: self.lent_kv(n_layer.checked_sub(1)?)?,
            })
        };
        Lent {
            caches: both().filter(|_| self.ends_in_window_and_full()),
            ..self.weights.lends(self.model)
        }
    }

    /// The last layer sees everything, the one before a window: Gemma 4.
    fn ends_in_window_and_full(&self) -> bool {
        let hp = &self.model.hparams;
        let is_swa = |from_end: usize| {
            let il = hp.n_layer().checked_sub(from_end)?;
            hp.layers.get(il).map(|l| l.is_swa)
        };
        is_swa(2) == Some(true) && is_swa(1) == Some(false)
    }

    /// K and V of layer `il`.
    fn lent_kv(&self, il: usize) -> Option<[LentTensor; 2]> {
        let buffer = self.cache_home(il);
        let lent = |kind| {
            let t = cache_tensor(&self.model.hparams, &self.params, il, kind)?;
            Some(LentTensor {
                ty: t.ty,
                ne: t.ne,
                buffer,
            })
        };
        Some([lent(CacheKind::K)?, lent(CacheKind::V)?])
    }

    pub fn backend_id(&self, buffer: BufferType) -> BackendId {
        self.weights.backend(buffer)
    }

    pub fn backend_of(&self, buffer: BufferType) -> &Backend {
        &self.backends[self.backend_id(buffer).index()]
    }

    /// `needs` has those of every device, the host's behind them.
    fn breakdown(self, needs: &[Needs], passes: [PassStats; 2]) -> Result<Breakdown, Error> {
        // the host, then the devices
        let mut memory = vec![MemoryBytes::default(); self.devices.len() + 1];
        let mut host_repacked_bytes = 0;
        self.add_weights(&mut memory, &mut host_repacked_bytes)?;
        self.add_cache(&mut memory)?;
        self.add_adapters(&mut memory);
        let mut runtime = Vec::with_capacity(self.devices.len());
        for (i, cuda) in self.devices.iter().enumerate() {
            memory[i + 1].compute = needs[i].compute_bytes;
            let reduce_bytes = self.reduce_bytes();
            runtime.push(Runtime {
                reduce_bytes,
                ..runtime_of(cuda, &needs[i].pool)
            });
        }
        memory[0].compute = needs[self.devices.len()].compute_bytes;
        let (host, bounded) = (memory[0], self.bounded());
        Ok(Breakdown {
            params: self.params,
            pipeline_copies: self.n_copies as u32,
            runtime,
            devices: memory.split_off(1),
            host,
            host_repacked_bytes,
            layers: self.layers.iter().map(|b| b.device_index()).collect(),
            split_tensors: self.slicer.is_some(),
            passes,
            bounded,
        })
    }
}

pub(crate) fn runtime_of(cuda: &Cuda, pool: &PoolUse) -> Runtime {
    Runtime {
        pool_bytes: pool.pool_bytes(),
        pool_filled_bytes: pool.pool_filled_bytes(),
        pool_own_bytes: pool.pool_own_bytes(),
        pool_least_bytes: pool.pool_least_bytes(),
        workspace_bytes: if pool.uses_cublas {
            cuda.cublas_workspace_bytes()
        } else {
            0
        },
        reduce_bytes: 0,
        is_bound: pool.is_bound,
    }
}

/// What the operations of a whole graph take, for a device that computes a part of each.
fn whole(pool: PoolUse) -> PoolUse {
    PoolUse {
        is_bound: true,
        ..pool
    }
}

fn devices(layout: &Layout, profile: &EngineProfile) -> Vec<Cuda> {
    let cuda = |(index, device): (usize, &LayoutDevice)| Cuda {
        index,
        compute_capability: device.compute_capability,
        compiled: profile.compiled_for(device.compute_capability),
        integrated: device.integrated,
        // of a part of an operation only a bound is known
        sm_count: device.sm_count.filter(|_| !layout.split_tensors),
        pool: device.pool,
    };
    layout.devices.iter().enumerate().map(cuda).collect()
}

/// The devices in order, or all as one, the CPU last.
fn backends(devices: &[Cuda], as_one: bool) -> Vec<Backend> {
    let mut backends: Vec<Backend> = match as_one {
        // memory shared out is none of another device's
        true => vec![Backend::Meta(
            devices
                .iter()
                .map(|&cuda| Cuda { index: 0, ..cuda })
                .collect(),
        )],
        false => devices.iter().copied().map(Backend::Cuda).collect(),
    };
    backends.push(Backend::Cpu);
    backends
}
