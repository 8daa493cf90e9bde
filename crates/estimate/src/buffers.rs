//! The buffers that llama.cpp allocates one by one on the devices, in its order.

use crate::simulate::Context;
use crate::{Breakdown, EngineProfile, Error, Layout, Pass, RunConfig};
use std::collections::BTreeSet;
use vramfit_arch::Model;
use vramfit_arch::cache::{MEMORY_PARTS, cache_tensors, memory_part};
use vramfit_ggml::Unwatched;

/// What a buffer is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum BufferUse {
    /// All weights.
    Weights,
    /// One LoRA adapter.
    Lora,
    /// A part of the KV cache, or of the recurrent state.
    Cache,
    /// A control vector.
    ControlVector,
    /// Compute buffer.
    Compute,
}

/// Buffers that are made together, at most one a device.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct BufferGroup {
    /// What for.
    pub used_for: BufferUse,
    /// By device of the layout, bytes; 0 for no buffer.
    pub device_bytes: Vec<u64>,
}

/// How many of them there are on a device at most, whatever the layout: weights, the parts of the memory, adapters and a
/// compute buffer.
pub fn most_buffers(model: &Model, run: &RunConfig) -> usize {
    let hp = &model.hparams;
    let parts = match run.resolve(model) {
        Ok(params) => {
            let kinds = (0..hp.layers.len()).flat_map(|il| {
                cache_tensors(hp, &params, il).map(move |t| memory_part(hp, il, t.kind))
            });
            kinds.collect::<BTreeSet<usize>>().len()
        }
        Err(_) => MEMORY_PARTS,
    };
    let adapters = &run.adapters;
    let loras = adapters.loras.len();
    let vectors = usize::from(adapters.control_vector.is_some());
    // an architecture that is not known has its caches in one piece
    2usize
        .saturating_add(parts.max(1))
        .saturating_add(loras)
        .saturating_add(vectors)
}

impl Breakdown {
    /// The buffers behind the figures of the devices, one by one and in llama.cpp's order, for the settings that this
    /// was estimated for. CUDA's allocations have no upper limit, so that each is in one piece. Where
    /// the architecture is not known, caches are a bound in one piece.
    pub fn buffers(
        &self,
        model: &Model,
        run: &RunConfig,
        layout: &Layout,
        profile: &EngineProfile,
    ) -> Result<Vec<BufferGroup>, Error> {
        let of = |used_for, bytes: fn(&crate::MemoryBytes) -> u64| BufferGroup {
            used_for,
            device_bytes: self.devices.iter().map(bytes).collect(),
        };
        let context = Context::new(model, run, layout, profile)?;
        let n_memories = self.devices.len().saturating_add(1);
        let mut adapters = context.adapter_parts(n_memories);
        let control_vector = match context.params.adapters.control_vector {
            Some(_) => adapters.pop(),
            None => None,
        };
        // the host's comes first
        let on_devices = |used_for, part: Vec<u64>| BufferGroup {
            used_for,
            device_bytes: part.into_iter().skip(1).collect(),
        };
        let mut groups = vec![of(BufferUse::Weights, |m| m.model)];
        groups.extend(
            adapters
                .into_iter()
                .map(|part| on_devices(BufferUse::Lora, part)),
        );
        if model.is_known() {
            for part in context.cache_parts(n_memories)? {
                let bytes = part.iter().map(|m| m.context).collect();
                groups.push(on_devices(BufferUse::Cache, bytes));
            }
        } else {
            groups.push(of(BufferUse::Cache, |m| m.context));
        }
        // a control vector is given to a context that is there, whose compute buffers are then all taken anew
        groups.extend(control_vector.map(|part| on_devices(BufferUse::ControlVector, part)));
        groups.extend(self.compute_groups(&context)?);
        groups.retain(|group| group.device_bytes.iter().any(|&bytes| bytes > 0));
        Ok(groups)
    }

    /// Compute buffers: those of the prompt's graph, behind which come those that another graph needs larger, for they
    /// are given back and taken anew.
    fn compute_groups(&self, context: &Context<'_>) -> Result<Vec<BufferGroup>, Error> {
        let all: Vec<u64> = self.devices.iter().map(|m| m.compute).collect();
        let group = |device_bytes| BufferGroup {
            used_for: BufferUse::Compute,
            device_bytes,
        };
        if !context.model.is_known() || context.slicer.is_some() {
            return Ok(vec![group(all)]);
        }
        let batches = Pass::ALL.map(|pass| context.batch(pass));
        let mut sizes = vec![0; all.len()];
        let mut grown_by = vec![0; all.len()];
        for (n, batch) in batches
            .into_iter()
            .chain(context.prompt_of_one())
            .enumerate()
        {
            let (needs, _) = context.reserve(batch, &mut Unwatched)?;
            for ((size, by), needs) in sizes.iter_mut().zip(&mut grown_by).zip(needs) {
                if needs.compute_bytes > *size {
                    (*size, *by) = (needs.compute_bytes, n);
                }
            }
        }
        let of_pass = |n| {
            let shares = all.iter().zip(&grown_by);
            group(
                shares
                    .map(|(&bytes, &by)| if by == n { bytes } else { 0 })
                    .collect(),
            )
        };
        Ok((0..3).map(of_pass).collect())
    }
}
