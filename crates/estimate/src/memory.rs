//! What lies in each memory before anything is computed: weights, adapters, caches; and what `-sm tensor` makes of them.

use crate::breakdown::{MemoryBytes, Pass};
use crate::simulate::Context;
use crate::{Error, FlashAttention, Layout, NotModelled, Refusal, RunConfig};
use vramfit_arch::cache::{MEMORY_PARTS, cache_tensors, memory_part};
use vramfit_arch::{Model, Slicer, TensorSplit};
use vramfit_ggml::{Backend, BufferType, ComputeCapability, Type, align, contiguous_strides};

/// What llama.cpp says to `-sm tensor`, and what is not known of it.
pub(crate) fn check_tensor_split(
    model: &Model,
    run: &RunConfig,
    layout: &Layout,
) -> Result<(), Error> {
    if layout.devices.is_empty() {
        return Err(Refusal::TensorSplitWithoutDevice.into());
    }
    let architecture = || model.architecture_name.clone();
    if !model.is_known() {
        return Err(NotModelled::TensorSplitOfUnknown {
            architecture: architecture(),
        }
        .into());
    }
    if model.architecture.tensor_split == TensorSplit::Refused {
        return Err(Refusal::TensorSplitArchitecture {
            architecture: architecture(),
        }
        .into());
    }
    match run.flash_attention {
        FlashAttention::Off => Err(Refusal::TensorSplitWithoutFlashAttention.into()),
        _ => Ok(()),
    }
}

impl Context<'_> {
    /// With `-sm tensor` devices add up their results in steps, through copies as large as the largest result, that of
    /// the experts where there are any; two devices from compute capability 7.0 on have a pipeline of fixed size beside
    /// (`ggml_cuda_ar_pipeline`).
    pub(crate) fn reduce_bytes(&self) -> u64 {
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

    pub(crate) fn add_weights(
        &self,
        memory: &mut [MemoryBytes],
        repacked: &mut u64,
    ) -> Result<(), Error> {
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
    pub(crate) fn add_adapters(&self, memory: &mut [MemoryBytes]) {
        for part in self.adapter_parts(memory.len()) {
            for (memory, bytes) in memory.iter_mut().zip(part) {
                memory.adapters = memory.adapters.saturating_add(bytes);
            }
        }
    }

    /// What each adapter takes in each of `n_memories`, the control vector last.
    pub(crate) fn adapter_parts(&self, n_memories: usize) -> Vec<Vec<u64>> {
        let adapters = &self.params.adapters;
        let put = |part: &mut [u64], buffer: BufferType, ty, ne, n_bytes| {
            let size = self.backend_of(buffer).placed_size(ty, ne, n_bytes);
            // whole on every device where tensors are shared out
            let places = match self.slicer {
                Some(_) if buffer != BufferType::HOST => 1..n_memories,
                _ => buffer.index()..buffer.index().saturating_add(1),
            };
            for bytes in part.get_mut(places).unwrap_or_default() {
                *bytes = bytes.saturating_add(size);
            }
        };
        let mut parts = Vec::new();
        let loaded = self.weights.loaded(self.model);
        for lora in adapters.loras.iter() {
            let mut part = vec![0; n_memories];
            for (target, pair) in &lora.pairs {
                let Ok(at) = loaded.binary_search_by_key(target, |l| l.tensor) else {
                    continue;
                };
                pair.iter()
                    .for_each(|t| put(&mut part, loaded[at].buffer, t.ty, t.ne, t.n_bytes));
            }
            parts.push(part);
        }
        if adapters.control_vector.is_some() {
            let mut part = vec![0; n_memories];
            let n_embd = self.model.hparams.n_embd;
            let n_bytes = Type::F32.row_size(n_embd.max(0) as u64);
            for il in 1..self.model.hparams.n_layer() {
                put(
                    &mut part,
                    self.layers[il],
                    Type::F32,
                    [n_embd, 1, 1, 1],
                    n_bytes,
                );
            }
            parts.push(part);
        }
        parts
    }

    pub(crate) fn cache_home(&self, il: usize) -> BufferType {
        if self.params.offload_kqv {
            self.layers[il]
        } else {
            BufferType::HOST
        }
    }

    /// A memory with caches has to have something in them.
    pub(crate) fn check_caches(&self) -> Result<(), Refusal> {
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

    pub(crate) fn add_cache(&self, memory: &mut [MemoryBytes]) -> Result<(), Error> {
        if self.model.is_known() {
            for part in self.cache_parts(memory.len())? {
                for (memory, own) in memory.iter_mut().zip(part) {
                    memory.context = memory.context.saturating_add(own.context);
                }
            }
            return Ok(());
        }
        for il in 0..self.model.hparams.layers.len() {
            let context = &mut memory[self.cache_home(il).index()].context;
            *context = context.saturating_add(self.cache_bound(il));
        }
        Ok(())
    }

    /// What each part of the memory of a known model takes in each of `n_memories`, in the order in which llama.cpp makes
    /// the parts.
    pub(crate) fn cache_parts(&self, n_memories: usize) -> Result<Vec<Vec<MemoryBytes>>, Error> {
        let mut parts = vec![vec![MemoryBytes::default(); n_memories]; MEMORY_PARTS];
        let hp = &self.model.hparams;
        for il in 0..hp.layers.len() {
            let home = self.cache_home(il);
            for t in cache_tensors(hp, &self.params, il) {
                let slices = |slicer: &Slicer<'_>| slicer.cache(il, &t);
                let tensor = (t.ty, t.ne, t.n_bytes());
                let part = &mut parts[memory_part(hp, il, t.kind)];
                self.put(part, home, tensor, slices, |m| &mut m.context)?;
            }
        }
        Ok(parts)
    }
}
