//! What llama-server allocates on the GPUs, buffer by buffer and in its order.

use crate::Placement;
use std::borrow::Cow;
use vramfit_arch::Model;
use vramfit_estimate::{BufferGroup, BufferUse, EngineProfile, Error, MemoryBytes, RunConfig};

/// Whose a buffer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// The model.
    Model,
    /// The draft beside it.
    Draft,
    /// The multimodal projector.
    Projector,
}

/// One allocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct PlannedBuffer {
    /// Index into the GPUs given; `CUDA<index>`.
    pub device: usize,
    /// Whose.
    pub owner: Owner,
    /// What for.
    pub used_for: BufferUse,
    /// How much.
    pub bytes: u64,
}

/// `groups` one by one, on the GPUs `devices` of the layout. llama.cpp goes through weights and caches by the names of their
/// buffer types, so CUDA10 comes before CUDA2; through compute buffers by its list of devices, and through
/// adapters by where its buffer types lie in memory.
pub fn in_order(groups: &[BufferGroup], devices: &[usize], owner: Owner) -> Vec<PlannedBuffer> {
    let mut buffers = Vec::new();
    for group in groups {
        let shares = devices
            .iter()
            .copied()
            .zip(group.device_bytes.iter().copied());
        let mut shares: Vec<(usize, u64)> = shares.filter(|&(_, bytes)| bytes > 0).collect();
        match group.used_for {
            BufferUse::Weights | BufferUse::Cache => {
                shares.sort_by_key(|&(device, _)| format!("CUDA{device}"));
            }
            BufferUse::Lora | BufferUse::ControlVector => shares.sort_unstable(),
            BufferUse::Compute => (),
        }
        buffers.extend(shares.into_iter().map(|(device, bytes)| PlannedBuffer {
            device,
            owner,
            used_for: group.used_for,
            bytes,
        }));
    }
    buffers
}

/// The draft's buffers behind the model's. Where the draft reads states of the model's layers, the model's graphs are
/// then reserved again and its compute buffers all taken anew.
pub fn with_draft(
    model: Vec<PlannedBuffer>,
    draft: Vec<PlannedBuffer>,
    model_run: &RunConfig,
) -> Vec<PlannedBuffer> {
    let is_reserved_again = !model_run.role.tapped.is_empty();
    let is_last = |b: &PlannedBuffer| is_reserved_again && b.used_for == BufferUse::Compute;
    let (last, mut buffers): (Vec<_>, Vec<_>) = model.into_iter().partition(is_last);
    buffers.extend(draft);
    buffers.extend(last);
    buffers
}

impl Placement {
    /// The model that was placed, as llama.cpp loads it for the draft beside it.
    pub fn loaded<'a>(&self, model: &'a Model) -> Cow<'a, Model> {
        match &self.draft {
            Some(beside) => beside.kind.loaded(model),
            None => Cow::Borrowed(model),
        }
    }

    /// What llama-server allocates on the GPUs: the model's buffers, the draft's ([`with_draft`]), then the projector's. `model` is
    /// the one that was placed.
    pub fn buffers(
        &self,
        model: &Model,
        profile: &EngineProfile,
    ) -> Result<Vec<PlannedBuffer>, Error> {
        let model = self.loaded(model);
        let groups = self
            .breakdown
            .buffers(&model, &self.run, &self.layout, profile)?;
        let mut buffers = in_order(&groups, &self.layout_devices, Owner::Model);
        if let Some(beside) = &self.draft {
            let own = beside.model.as_deref().unwrap_or(&model);
            let groups = beside
                .breakdown
                .buffers(own, &beside.run, &beside.layout, profile)?;
            let draft = in_order(&groups, &beside.devices, Owner::Draft);
            buffers = with_draft(buffers, draft, &self.run);
        }
        for placed in &self.devices {
            let MemoryBytes { model, compute, .. } = placed.projector;
            let parts = [(BufferUse::Weights, model), (BufferUse::Compute, compute)];
            let parts = parts.into_iter().filter(|&(_, bytes)| bytes > 0);
            buffers.extend(parts.map(|(used_for, bytes)| PlannedBuffer {
                device: placed.device,
                owner: Owner::Projector,
                used_for,
                bytes,
            }));
        }
        Ok(buffers)
    }
}
