//! What a multimodal projector takes beside the model (`tools/mtmd/clip.cpp`): every tower has weights, a scheduler
//! and a compute buffer of its own, all on one device.

use crate::legacy::Player;
use crate::simulate::runtime_of;
use crate::{EngineProfile, Error, FlashAttention, LayoutDevice, MemoryBytes, NodeRow, Runtime};
use vramfit_arch::clip::{Modality, Projector, Tower};
use vramfit_ggml::cuda::{Batches, Cuda, PoolKind, PoolUse, Steps};
use vramfit_ggml::{
    Backend, BackendId, BufferType, Graph, Op, Schedule, Scheduler, Unwatched, reserve,
};

/// Where and how a projector runs.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct ProjectorConfig {
    /// Its device; `None` for the CPU (`--no-mmproj-offload`).
    pub device: Option<LayoutDevice>,
    /// As for the model.
    pub flash_attention: FlashAttention,
}

/// What one tower takes.
#[derive(Clone, Copy, PartialEq, Debug)]
#[non_exhaustive]
pub struct TowerUse {
    /// What it reads.
    pub modality: Modality,
    /// On its device, if it has one.
    pub device: MemoryBytes,
    /// In host memory.
    pub host: MemoryBytes,
    /// What llama-server's fit counts for the device: weights without the padding behind each tensor.
    pub counted_bytes: u64,
    /// While it computes.
    pub runtime: Runtime,
    /// Whether it uses flash attention.
    pub flash_attn: bool,
    /// Its type is not known: weights are those of the whole file, the compute buffer is a guess.
    pub is_guess: bool,
}

/// What each tower of `projector` takes, warmed up as llama.cpp does it.
pub fn projector_use(
    projector: &Projector,
    config: &ProjectorConfig,
    profile: &EngineProfile,
) -> Result<Vec<TowerUse>, Error> {
    let towers = projector.towers.iter();
    towers
        .map(|tower| TowerRun::new(tower, config, profile).measure())
        .collect()
}

/// The graph that each tower is reserved with, row by row.
pub fn projector_node_list(
    tower: &Tower,
    config: &ProjectorConfig,
    profile: &EngineProfile,
) -> Result<Vec<NodeRow>, Error> {
    let run = TowerRun::new(tower, config, profile);
    let flash_attn = run.measure()?.flash_attn;
    let mut graph = tower.graph(run.home(), flash_attn)?;
    Ok(crate::node_list::rows(&mut graph, &run.scheduler()))
}

struct TowerRun<'a> {
    tower: &'a Tower,
    backends: Vec<Backend>,
    flash_attention: FlashAttention,
}

/// What one graph takes, by backend.
struct Reserved {
    bytes: Vec<u64>,
    pool: PoolUse,
    /// An attention in one operation is not on the tower's own backend.
    misplaced: bool,
}

impl<'a> TowerRun<'a> {
    fn new(tower: &'a Tower, config: &ProjectorConfig, profile: &EngineProfile) -> TowerRun<'a> {
        let cuda = config.device.map(|device| {
            Backend::Cuda(Cuda {
                index: 0,
                compute_capability: device.compute_capability,
                compiled: profile.compiled_for(device.compute_capability),
                integrated: device.integrated,
                sm_count: device.sm_count,
                pool: device.pool,
            })
        });
        TowerRun {
            tower,
            backends: cuda.into_iter().chain([Backend::Cpu]).collect(),
            flash_attention: config.flash_attention,
        }
    }

    fn home(&self) -> BufferType {
        self.backends[0].buffer_type()
    }

    fn scheduler(&self) -> Scheduler<'_> {
        Scheduler {
            backends: &self.backends,
            n_copies: 1,
            op_offload: true,
        }
    }

    fn measure(&self) -> Result<TowerUse, Error> {
        let home = &self.backends[0];
        let tensors = &self.tower.tensors;
        let placed = tensors
            .iter()
            .map(|t| home.placed_size(t.ty, t.ne, t.n_bytes));
        let weights = placed.fold(0, u64::saturating_add);
        let n_bytes = tensors
            .iter()
            .fold(0, |sum: u64, t| sum.saturating_add(t.n_bytes));
        let is_known = self.tower.is_known();
        let is_warmed_up = self.tower.is_warmed_up();
        let mut flash_attn = match (is_known, is_warmed_up) {
            (false, _) => false,
            (true, true) => self.flash_attention != FlashAttention::Off,
            // nothing has been tried yet
            (true, false) => self.flash_attention == FlashAttention::On,
        };
        let mut reserved = match (is_known, is_warmed_up) {
            (true, true) => self.reserve(flash_attn)?,
            (true, false) => self.nothing(),
            (false, _) => self.guess(),
        };
        if reserved.misplaced && self.flash_attention == FlashAttention::Auto {
            flash_attn = false;
            // Buffers of the first try stay where they are the larger ones.
            let second = self.reserve(false)?;
            for (most, bytes) in reserved.bytes.iter_mut().zip(second.bytes) {
                *most = bytes.max(*most);
            }
            reserved.pool = second.pool;
        }
        let memory = |model: u64, compute: u64| MemoryBytes {
            model,
            compute,
            ..MemoryBytes::default()
        };
        let (device, host) = match reserved.bytes[..] {
            [device, host] => (memory(weights, device), memory(0, host)),
            _ => (MemoryBytes::default(), memory(weights, reserved.bytes[0])),
        };
        Ok(TowerUse {
            modality: self.tower.modality,
            device,
            host,
            counted_bytes: n_bytes.saturating_add(device.compute),
            runtime: match home {
                Backend::Cuda(cuda) => runtime_of(cuda, &reserved.pool),
                _ => Runtime::default(),
            },
            flash_attn,
            is_guess: !is_known,
        })
    }

    fn reserve(&self, flash_attn: bool) -> Result<Reserved, Error> {
        let mut graph = self.tower.graph(self.home(), flash_attn)?;
        let schedule = self.scheduler().split(&mut graph);
        let bytes = reserve(&graph, &schedule, &self.backends, &mut Unwatched);
        let reserved = Reserved {
            misplaced: self.has_misplaced(&graph),
            pool: match &self.backends[0] {
                Backend::Cuda(cuda) => pool_use(cuda, &graph, &schedule),
                _ => PoolUse::default(),
            },
            bytes,
        };
        graph.recycle();
        Ok(reserved)
    }

    /// No buffer at all.
    fn nothing(&self) -> Reserved {
        Reserved {
            bytes: vec![0; self.backends.len()],
            pool: PoolUse::default(),
            misplaced: false,
        }
    }

    /// The buffer of a plain transformer as wide as this one, without flash attention.
    fn guess(&self) -> Reserved {
        let hp = &self.tower.hparams;
        let wide = |n: i64| n.max(0) as u64;
        let patches = hp.warmup.map(|side| wide(side / hp.patch_size.max(1)));
        let rows = match self.tower.modality {
            Modality::Vision => patches[0].saturating_mul(patches[1]),
            Modality::Audio | Modality::Speech => patches[0],
        };
        let row = wide(hp.n_embd)
            .saturating_mul(8)
            .saturating_add(wide(hp.n_ff).saturating_mul(2))
            .saturating_add(wide(hp.n_head).saturating_mul(2).saturating_mul(rows));
        let bytes = row.saturating_mul(rows).saturating_mul(4);
        Reserved {
            bytes: self
                .backends
                .iter()
                .map(|b| if *b == self.backends[0] { bytes } else { 0 })
                .collect(),
            pool: PoolUse::default(),
            misplaced: false,
        }
    }

    fn has_misplaced(&self, graph: &Graph) -> bool {
        graph
            .nodes
            .iter()
            .any(|&t| graph[t].op == Op::FlashAttnExt && !self.backends[0].supports_op(graph, t))
    }
}

/// What the pool holds behind one picture.
fn pool_use(cuda: &Cuda, graph: &Graph, schedule: &Schedule) -> PoolUse {
    let held = cuda.pool_use(graph, schedule, BackendId(0), Batches::Own);
    if cuda.pool == PoolKind::Vmm {
        return held;
    }
    let mut player = Player::new((*cuda, BackendId(0)));
    let steps = Steps::default().of(graph, schedule, BackendId(0));
    player.learn(graph, &steps);
    PoolUse {
        uses_cublas: held.uses_cublas,
        is_bound: held.is_bound,
        peak: held.peak,
        ..player.play(&[0])
    }
}
