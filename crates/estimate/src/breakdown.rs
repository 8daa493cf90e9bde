//! What llama.cpp takes, device by device.

use vramfit_arch::ContextParams;

/// Bytes of llama.cpp's own buffers in one memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MemoryBytes {
    /// Weights.
    pub model: u64,
    /// KV cache and recurrent state.
    pub context: u64,
    /// Compute buffer.
    pub compute: u64,
    /// LoRA adapters and control vectors, which llama.cpp does not count among the weights.
    pub adapters: u64,
}

impl MemoryBytes {
    /// All of them.
    pub fn sum(&self) -> u64 {
        self.model
            .saturating_add(self.context)
            .saturating_add(self.compute)
            .saturating_add(self.adapters)
    }
}

/// What the CUDA backend takes on one device while it computes, beside llama.cpp's buffers.
/// Modelled, not proved to the byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Runtime {
    /// The pool of temporary buffers at its largest. Of the legacy kind: the most that it keeps behind some orders of
    /// prompts.
    pub pool_bytes: u64,
    /// Of the legacy kind: what it keeps where the first prompts fill the context. Else `pool_bytes`.
    pub pool_filled_bytes: u64,
    /// Of one that maps memory: what the largest batches take, where no smaller ones run that take more. Else `pool_bytes`.
    pub pool_own_bytes: u64,
    /// What it cannot do without: of the legacy kind it may be less, as what is kept goes back to the driver where
    /// memory runs out. Else `pool_bytes`.
    pub pool_least_bytes: u64,
    /// cuBLAS's workspace, once it is used.
    pub workspace_bytes: u64,
    /// With `-sm tensor`: buffers through which devices add up their results.
    pub reduce_bytes: u64,
    /// The figures are a bound, since something of the device is not known.
    pub is_bound: bool,
}

impl Runtime {
    /// All of it, where there is `room_bytes` for it.
    pub fn within(&self, room_bytes: u64) -> u64 {
        let spare = self.pool_bytes.saturating_sub(self.pool_least_bytes);
        let least = self.sum().saturating_sub(spare);
        self.sum().min(room_bytes.max(least))
    }

    /// All of it.
    pub fn sum(&self) -> u64 {
        self.pool_bytes
            .saturating_add(self.workspace_bytes)
            .saturating_add(self.reduce_bytes)
    }
}

/// The graphs that llama.cpp reserves compute buffers for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pass {
    /// The largest batch of a prompt.
    Prompt,
    /// One token a sequence.
    Generation,
}

impl Pass {
    /// Both.
    pub const ALL: [Pass; 2] = [Pass::Prompt, Pass::Generation];
}

/// Size of one pass's graph.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct PassStats {
    /// Operations.
    pub n_nodes: usize,
    /// Parts that run on one backend without a break.
    pub n_splits: usize,
}

/// Which figures are upper bounds, since the architecture is not known.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Bounded {
    /// None.
    #[default]
    Nothing,
    /// Caches, compute buffers and runtime. The passes are empty.
    AllButWeights,
    /// Weights, too: some names do not say where their tensors go.
    Everything,
}

impl Bounded {
    /// Whether caches, compute buffers and runtime are bounds.
    pub fn is_bound(self) -> bool {
        self != Bounded::Nothing
    }
}

/// Bytes in every memory, and the settings that llama.cpp settles on.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub struct Breakdown {
    /// The context as resolved.
    pub params: ContextParams,
    /// Copies of every input: 4 when layers are pipelined over devices, else 1.
    pub pipeline_copies: u32,
    /// A device each, in the layout's order.
    pub devices: Vec<MemoryBytes>,
    /// While it computes: a device each.
    pub runtime: Vec<Runtime>,
    /// Host memory, pinned or not. Weights are the mapped part of the file.
    pub host: MemoryBytes,
    /// Weights that ggml-cpu re-orders in a buffer beside the mapped file (`CPU_REPACK`), which
    /// llama.cpp does not count among the host's. 0 when a GPU is used.
    pub host_repacked_bytes: u64,
    /// Device of each layer (`None` for the host); the output layer is the last. With `split_tensors` the first device
    /// stands for all.
    pub layers: Vec<Option<usize>>,
    /// `-sm tensor`: every layer that is on devices is on all of them.
    pub split_tensors: bool,
    /// Prompt and generation.
    pub passes: [PassStats; 2],
    /// What is only an upper bound.
    pub bounded: Bounded,
}

impl Breakdown {
    /// Layers on device `device`, output layer included.
    pub fn layers_on(&self, device: usize) -> Vec<usize> {
        let device = match self.split_tensors {
            true => 0,
            false => device,
        };
        let on = |(il, d): (usize, &Option<usize>)| (*d == Some(device)).then_some(il);
        self.layers.iter().enumerate().filter_map(on).collect()
    }
}
