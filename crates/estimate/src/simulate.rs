//! llama.cpp's reserve passes, replayed (`llama_context::sched_reserve`).

use crate::breakdown::{Breakdown, MemoryBytes, Pass, PassStats, Runtime};
use crate::{
    EngineProfile, Error, FlashAttention, Layout, LayoutDevice, Refusal, RunConfig, parallel,
};
use vramfit_arch::cache::{CacheKind, cache_tensor, cache_tensors};
use vramfit_arch::{
    Batch, BuiltGraph, ContextParams, CpuRepack, FusedOp, Lent, LentCaches, LentTensor, Model,
    Slicer, TensorOverride, TensorSplit, Unfused, WeightMap, build,
};
use vramfit_ggml::cuda::{Cuda, PoolUse};
use vramfit_ggml::{
    Backend, BackendId, BufferType, ComputeCapability, Observer, Schedule, Scheduler, Type,
    Unwatched, align, contiguous_strides, reserve,
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
    slicer: Option<Slicer<'a>>,
    /// The devices in order; the scheduler may see them as one.
    devices: Vec<Cuda>,
    pub n_copies: usize,
    keeps_pins: bool,
    use_mmap: bool,
    reads_lazily: bool,
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
        let [prompt, generation] = Pass::ALL.map(|pass| context.batch(pass));
        let (prompt, generation) = parallel::both(|| reserve(prompt), || reserve(generation));
        let ((mut needs, prompt), (other, generation)) = (prompt?, generation?);
        let of_one = context.prompt_of_one().map(reserve).transpose()?;
        for others in [Some(other), of_one.map(|(needs, _)| needs)]
            .into_iter()
            .flatten()
        {
            for (most, n) in needs.iter_mut().zip(others) {
                *most = most.max(n);
            }
        }
        let passes = [prompt, generation];
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
        let n = self.params.n_seq_max;
        let (built, schedule) = self.schedule(Batch {
            n_tokens: n,
            n_outputs: n,
            n_seqs: n,
        })?;
        let mut misplaced = Unfused::default();
        for &(op, node, il) in &built.fused {
            if schedule.backend_of(node) != Some(self.weights.backend(self.layers[il])) {
                misplaced.insert(op);
            }
        }
        built.graph.recycle();
        Ok(misplaced)
    }

    /// The largest batch, or one token a sequence.
    pub fn batch(&self, pass: Pass) -> Batch {
        let p = &self.params;
        let n_seqs = p.n_seq_max;
        match pass {
            Pass::Prompt => {
                let n_tokens = p.n_ctx.min(p.n_ubatch);
                let n_outputs = n_tokens.min(p.n_outputs_max);
                Batch {
                    n_tokens: (n_tokens + n_seqs - 1) / n_seqs * n_seqs,
                    n_outputs,
                    n_seqs,
                }
            }
            Pass::Generation => Batch {
                n_tokens: n_seqs,
                n_outputs: n_seqs,
                n_seqs,
            },
        }
    }

    /// The largest batch of one sequence, where llama.cpp reserves for that as well.
    pub fn prompt_of_one(&self) -> Option<Batch> {
        let p = &self.params;
        let is_asked = self.model.architecture.reserves_one_sequence && p.n_seq_max > 1;
        let n_tokens = p.n_ctx.min(p.n_ubatch);
        is_asked.then_some(Batch {
            n_tokens,
            n_outputs: n_tokens.min(p.n_outputs_max),
            n_seqs: 1,
        })
    }

    /// Builds the graph of `batch` and splits it over the backends.
    pub fn schedule(&self, batch: Batch) -> Result<(BuiltGraph, Schedule), Error> {
        let mut built = build(self.model, &self.params, &self.weights, batch)?;
        if !self.keeps_pins {
            built.graph.unpin();
        }
        let n_tensors = Model::graph_tensors(&built.graph);
        let room = self.model.max_graph_tensors(
            self.params.n_ctx.min(self.params.n_ubatch),
            &self.params.adapters,
        );
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
    fn reserve(
        &self,
        batch: Batch,
        observer: &mut impl Observer,
    ) -> Result<(Vec<Needs>, PassStats), Error> {
        let (built, schedule) = self.schedule(batch)?;
        let sizes = reserve(&built.graph, &schedule, &self.backends, observer);
        let mut needs = Vec::with_capacity(self.devices.len() + 1);
        for (backend, compute_bytes) in self.backends.iter().zip(sizes) {
            let id = self.backend_id(backend.buffer_type());
            let pool = |cuda: &Cuda| cuda.pool_use(&built.graph, &schedule, id);
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
        let stats = PassStats {
            n_nodes: built.graph.nodes.len(),
            n_splits: schedule.splits.len(),
        };
        built.graph.recycle();
        Ok((needs, stats))
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

    fn backend_of(&self, buffer: BufferType) -> &Backend {
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

    /// With `-sm tensor` devices add up their results in steps, through copies as large as the largest result, that of
    /// the experts where there are any; two devices from compute capability 7.0 on have a pipeline of fixed size beside
    /// (`ggml_cuda_ar_pipeline`).
    fn reduce_bytes(&self) -> u64 {
        const VOLTA: ComputeCapability = ComputeCapability::new(7, 0);
        const PIPELINE_BYTES: u64 = 32 << 20;
        let n = self.devices.len();
        if self.slicer.is_none() || n < 2 {
            return 0;
        }
        let has_pipeline = n == 2 && self.devices.iter().all(|d| d.compute_capability >= VOLTA);
        let layers = self.model.hparams.layers.iter();
        let n_used = layers.map(|l| l.n_expert_used).max().unwrap_or(0).max(1);
        let sizes = [
            self.model.hparams.n_embd,
            n_used,
            self.batch(Pass::Prompt).n_tokens,
        ];
        let result = sizes
            .iter()
            .fold(4u64, |n, &x| n.saturating_mul(x.max(0) as u64));
        let steps = u64::from(n.next_power_of_two().ilog2());
        let pipeline = if has_pipeline { PIPELINE_BYTES } else { 0 };
        steps.saturating_mul(result).saturating_add(pipeline)
    }

    /// Adds to `memory` what a tensor takes in `buffer`, on every device its part where tensors are shared out.
    fn put(
        &self,
        memory: &mut [MemoryBytes],
        buffer: BufferType,
        tensor: (Type, [i64; 4], u64),
        slices: impl FnOnce(&Slicer<'_>) -> Result<Vec<[i64; 4]>, vramfit_arch::Error>,
        field: fn(&mut MemoryBytes) -> &mut u64,
    ) -> Result<(), Error> {
        let (ty, ne, n_bytes) = tensor;
        let backend = self.backend_of(buffer);
        let mut add = |index: usize, ne, n_bytes| {
            let bytes = field(&mut memory[index]);
            *bytes = bytes.saturating_add(backend.placed_size(ty, ne, n_bytes));
        };
        match &self.slicer {
            Some(slicer) if buffer != BufferType::HOST => {
                // a part of nothing is padded all the same
                for (i, ne) in slices(slicer)?.into_iter().enumerate() {
                    add(
                        i + 1,
                        ne,
                        contiguous_strides(ty, ne)[3].saturating_mul(ne[3].max(0) as u64),
                    );
                }
            }
            _ => add(buffer.index(), ne, n_bytes),
        }
        Ok(())
    }

    fn add_weights(&self, memory: &mut [MemoryBytes], repacked: &mut u64) -> Result<(), Error> {
        let mut spans: Vec<Option<(u64, u64)>> = Vec::new();
        for loaded in self.weights.loaded(self.model) {
            let t = &self.model.tensors[loaded.tensor];
            if loaded.repacked {
                *repacked = repacked.saturating_add(align(t.n_bytes, Backend::Cpu.alignment()));
                continue;
            }
            let is_lazy = self.reads_lazily && self.model.is_read_lazily(t);
            if loaded.buffer == BufferType::HOST && (self.use_mmap || is_lazy) {
                let span = 2 * t.part as usize + usize::from(is_lazy);
                spans.resize(spans.len().max(span + 1), None);
                let end = t.offset + t.n_bytes;
                let (first, last) = spans[span].unwrap_or((t.offset, end));
                spans[span] = Some((first.min(t.offset), last.max(end)));
                continue;
            }
            let slices = |slicer: &Slicer<'_>| slicer.weight(loaded.tensor);
            let tensor = (t.ty, t.ne, t.n_bytes);
            self.put(memory, loaded.buffer, tensor, slices, |m| &mut m.model)?;
        }
        // Mapped weights: from the first to the last one on the host, whatever lies between; those
        // read lazily by themselves.
        memory[0].model += spans
            .iter()
            .flatten()
            .map(|(first, last)| last - first)
            .sum::<u64>();
        Ok(())
    }

    /// Each half of a pair lies with the weight that it adapts, re-ordered or not.
    fn add_adapters(&self, memory: &mut [MemoryBytes]) {
        let adapters = &self.params.adapters;
        if adapters.is_empty() {
            return;
        }
        let mut put = |buffer: BufferType, ty, ne, n_bytes| {
            let size = self.backend_of(buffer).placed_size(ty, ne, n_bytes);
            // whole on every device where tensors are shared out
            let places = match self.slicer {
                Some(_) if buffer != BufferType::HOST => 1..memory.len(),
                _ => buffer.index()..buffer.index() + 1,
            };
            for memory in &mut memory[places] {
                memory.adapters = memory.adapters.saturating_add(size);
            }
        };
        let loaded = self.weights.loaded(self.model);
        for (target, pair) in adapters.loras.iter().flat_map(|lora| &lora.pairs) {
            let Ok(at) = loaded.binary_search_by_key(target, |l| l.tensor) else {
                continue;
            };
            pair.iter()
                .for_each(|t| put(loaded[at].buffer, t.ty, t.ne, t.n_bytes));
        }
        if adapters.control_vector.is_some() {
            let n_embd = self.model.hparams.n_embd;
            let n_bytes = Type::F32.row_size(n_embd.max(0) as u64);
            for il in 1..self.model.hparams.n_layer() {
                put(self.layers[il], Type::F32, [n_embd, 1, 1, 1], n_bytes);
            }
        }
    }

    fn cache_home(&self, il: usize) -> BufferType {
        if self.params.offload_kqv {
            self.layers[il]
        } else {
            BufferType::HOST
        }
    }

    /// A memory with caches has to have something in them.
    fn check_caches(&self) -> Result<(), Refusal> {
        let mut sizes = vec![None; self.backends.len()];
        let n_layer = match self.model.is_known() {
            true => self.model.hparams.layers.len(),
            false => 0,
        };
        for il in 0..n_layer {
            let size = &mut sizes[self.cache_home(il).index()];
            for t in cache_tensors(&self.model.hparams, &self.params, il) {
                *size = Some(size.unwrap_or(0u64).saturating_add(t.n_bytes()));
            }
        }
        let device = match sizes.iter().position(|&size| size == Some(0)) {
            None => return Ok(()),
            Some(0) => "the host".to_string(),
            Some(i) => format!("device {}", i - 1),
        };
        Err(Refusal::EmptyCache { device })
    }

    fn add_cache(&self, memory: &mut [MemoryBytes]) -> Result<(), Error> {
        for il in 0..self.model.hparams.layers.len() {
            let home = self.cache_home(il);
            if !self.model.is_known() {
                let context = &mut memory[home.index()].context;
                *context = context.saturating_add(self.cache_bound(il));
                continue;
            }
            for t in cache_tensors(&self.model.hparams, &self.params, il) {
                let slices = |slicer: &Slicer<'_>| slicer.cache(il, &t);
                let tensor = (t.ty, t.ne, t.n_bytes());
                self.put(memory, home, tensor, slices, |m| &mut m.context)?;
            }
        }
        Ok(())
    }
}

pub(crate) fn runtime_of(cuda: &Cuda, pool: &PoolUse) -> Runtime {
    Runtime {
        pool_bytes: pool.pool_bytes(),
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

/// What llama.cpp says to `-sm tensor`.
fn check_tensor_split(model: &Model, run: &RunConfig, layout: &Layout) -> Result<(), Refusal> {
    if layout.devices.is_empty() {
        return Err(Refusal::TensorSplitWithoutDevice);
    }
    let architecture = || model.architecture_name.clone();
    if !model.is_known() {
        return Err(Refusal::TensorSplitOfUnknown {
            architecture: architecture(),
        });
    }
    if model.architecture.tensor_split == TensorSplit::Refused {
        return Err(Refusal::TensorSplitArchitecture {
            architecture: architecture(),
        });
    }
    match run.flash_attention {
        FlashAttention::Off => Err(Refusal::TensorSplitWithoutFlashAttention),
        _ => Ok(()),
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
