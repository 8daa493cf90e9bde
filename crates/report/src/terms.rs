//! What a device holds, term by term.

use crate::document::{DeviceReport, Sure};

/// What bytes are for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum TermKind {
    /// The model's weights.
    Weights,
    /// LoRA adapters and control vectors.
    Adapters,
    /// KV cache and recurrent state.
    Context,
    /// The compute buffer.
    Compute,
    /// A multimodal projector's weights.
    ProjectorWeights,
    /// A multimodal projector's own compute buffers.
    ProjectorCompute,
    /// A draft model's weights.
    DraftWeights,
    /// A draft's cache.
    DraftContext,
    /// A draft's own compute buffers.
    DraftCompute,
    /// CUDA's pool of temporary buffers and cuBLAS's workspace.
    Runtime,
    /// CUDA's context, and what the driver keeps where that is not known.
    Overhead,
}

impl TermKind {
    /// In one word, such as `draft_weights`.
    pub fn word(self) -> &'static str {
        match self {
            TermKind::Weights => "weights",
            TermKind::Adapters => "adapters",
            TermKind::Context => "context",
            TermKind::Compute => "compute",
            TermKind::ProjectorWeights => "projector_weights",
            TermKind::ProjectorCompute => "projector_compute",
            TermKind::DraftWeights => "draft_weights",
            TermKind::DraftContext => "draft_context",
            TermKind::DraftCompute => "draft_compute",
            TermKind::Runtime => "runtime",
            TermKind::Overhead => "overhead",
        }
    }
}

impl Sure {
    /// In one word.
    pub fn word(self) -> &'static str {
        match self {
            Sure::Exact => "exact",
            Sure::Modelled => "modelled",
            Sure::Bound => "bound",
        }
    }
}

/// Bytes of one kind on one device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct DeviceTerm {
    /// What for.
    pub kind: TermKind,
    /// How sure.
    pub certainty: Sure,
    /// How many.
    pub bytes: u64,
}

impl DeviceReport {
    /// All terms, those of no bytes too. Their sum is `required_bytes`.
    pub fn terms(&self) -> Vec<DeviceTerm> {
        let sure = self.certainty;
        let projector_weights = self
            .projector_bytes
            .saturating_sub(self.projector_compute_bytes);
        let draft_weights = self
            .draft_bytes
            .saturating_sub(self.draft_context_bytes)
            .saturating_sub(self.draft_compute_bytes);
        // A model, also where the pool beside it is a bound.
        let overhead = sure.runtime.min(Sure::Modelled);
        let terms = [
            (TermKind::Weights, sure.model, self.model_bytes),
            (TermKind::Adapters, sure.model, self.adapter_bytes),
            (TermKind::Context, sure.context, self.context_bytes),
            (TermKind::Compute, sure.compute, self.compute_bytes),
            (TermKind::ProjectorWeights, sure.model, projector_weights),
            (
                TermKind::ProjectorCompute,
                sure.compute,
                self.projector_compute_bytes,
            ),
            (TermKind::DraftWeights, sure.model, draft_weights),
            (
                TermKind::DraftContext,
                sure.context,
                self.draft_context_bytes,
            ),
            (
                TermKind::DraftCompute,
                sure.compute,
                self.draft_compute_bytes,
            ),
            (TermKind::Runtime, sure.runtime, self.runtime_bytes),
            (TermKind::Overhead, overhead, self.overhead_bytes),
        ];
        let term = |(kind, certainty, bytes)| DeviceTerm {
            kind,
            certainty,
            bytes,
        };
        terms.into_iter().map(term).collect()
    }
}
