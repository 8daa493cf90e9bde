//! A draft beside the model: where it goes with each candidate, and what it takes there.

use crate::fit::{Problem, Scored, draft_overrides, layout_device};
use crate::{Override, flags};
use std::borrow::Cow;
use std::sync::Arc;
use vramfit_arch::Model;
use vramfit_estimate::{
    Breakdown, DraftKind, Error, Layout, MemoryBytes, Refusal, RunConfig, Runtime,
    SpeculativeConfig, SpeculativeUse,
};
use vramfit_ggml::Type;

/// Speculative decoding, as llama-server is told of it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DraftPlan {
    /// `-md`; without it the model's own layers for multi-token prediction draft, in a second context.
    pub model: Option<Arc<Model>>,
    /// `--spec-type`.
    pub kind: DraftKind,
    /// `--spec-draft-n-max`.
    pub n_draft: u32,
    /// Most tokens that any other way of drafting has the model check at once.
    pub n_verified: u32,
    /// Drafts are chosen on the device.
    pub device_sampling: bool,
    /// `-ctkd`.
    pub type_k: Type,
    /// `-ctvd`.
    pub type_v: Type,
    /// `-ngld`; `None` for all.
    pub n_gpu_layers: Option<u32>,
    /// `-devd`: indices into the list of GPUs; without it those of the model.
    pub devices: Option<Vec<usize>>,
    /// `-otd`.
    pub overrides: Vec<Override>,
    /// `-cmoed`.
    pub cpu_moe: bool,
    /// `-ncmoed`.
    pub n_cpu_moe: u32,
}

impl DraftPlan {
    /// llama-server's defaults. For multi-token prediction a file's layers for it are loaded.
    pub fn new(model: Option<Arc<Model>>, kind: DraftKind) -> DraftPlan {
        let model = model.map(|model| {
            let with_more = match kind.loaded(&model) {
                Cow::Owned(loaded) => Some(Arc::new(loaded)),
                Cow::Borrowed(_) => None,
            };
            with_more.unwrap_or(model)
        });
        DraftPlan {
            model,
            kind,
            n_draft: 3,
            n_verified: 0,
            device_sampling: true,
            type_k: Type::F16,
            type_v: Type::F16,
            n_gpu_layers: None,
            devices: None,
            overrides: Vec::new(),
            cpu_moe: false,
            n_cpu_moe: 0,
        }
    }

    /// For the estimate, but for the placement.
    pub(crate) fn config(&self) -> SpeculativeConfig {
        let mut config = SpeculativeConfig::new(self.kind, &Layout::host());
        config.n_draft = self.n_draft;
        config.n_verified = self.n_verified;
        config.device_sampling = self.device_sampling;
        (config.type_k, config.type_v) = (self.type_k, self.type_v);
        config
    }
}

/// What the draft takes with one candidate.
#[derive(Clone, Debug)]
pub(crate) struct DraftUse {
    pub breakdown: Breakdown,
    /// Indices of its GPUs.
    pub devices: Vec<usize>,
    /// What it was estimated for.
    pub run: RunConfig,
    /// The same.
    pub layout: Layout,
}

impl DraftUse {
    /// Its buffers on GPU `device`, and what it takes there while it computes.
    pub fn on(&self, device: usize) -> Option<(MemoryBytes, Runtime)> {
        let at = self.devices.iter().position(|&d| d == device)?;
        let memory = self.breakdown.devices.get(at).copied()?;
        let runtime = self.breakdown.runtime.get(at).copied().unwrap_or_default();
        (memory.sum() > 0).then_some((memory, runtime))
    }

    /// Bytes on GPU `device`.
    pub fn bytes(&self, device: usize) -> u64 {
        self.on(device)
            .map_or(0, |(m, r)| m.sum().saturating_add(r.sum()))
    }
}

impl Problem<'_> {
    /// What the draft takes when the model goes where `scored` says.
    pub fn draft_use(&self, scored: &Scored) -> Result<Option<DraftUse>, Error> {
        let Some(plan) = &self.policy.draft else {
            return Ok(None);
        };
        let used = scored.candidate.used();
        let mut config = plan.config();
        let devices = match (&plan.model, &plan.devices) {
            (Some(_), Some(own)) => own.clone(),
            _ => used.clone(),
        };
        config.devices = used
            .iter()
            .map(|d| devices.iter().position(|own| own == d))
            .collect();
        config.layout = self.draft_layout(plan, scored, &devices)?;
        let free = |&d: &usize| self.devices.get(d).map_or(0, |d| d.free_bytes);
        config.free_bytes = devices.iter().map(free).collect();
        let draft = plan.model.as_deref();
        let settings = SpeculativeUse::settings(
            self.model,
            self.run,
            &scored.layout,
            draft,
            &config,
            self.profile,
        )?;
        let own = draft.unwrap_or(self.model);
        Ok(Some(DraftUse {
            breakdown: settings.estimate_draft(own, draft.is_some(), self.profile)?,
            devices,
            run: settings.draft,
            layout: settings.draft_layout,
        }))
    }

    /// The draft's own flags, and the shares that the model is given: `-ts` is for both.
    fn draft_layout(
        &self,
        plan: &DraftPlan,
        scored: &Scored,
        devices: &[usize],
    ) -> Result<Layout, Error> {
        if let Some(d) = devices.iter().find(|&&d| d >= self.devices.len()) {
            let device = format!("CUDA{d}");
            return Err(Refusal::OverrideDevice { device }.into());
        }
        let seen = devices.iter().filter_map(|&d| self.devices.get(d));
        Ok(Layout {
            devices: seen.map(layout_device).collect(),
            n_gpu_layers: plan.n_gpu_layers,
            tensor_split: flags::shares_of(self, scored),
            overrides: draft_overrides(self, plan, devices)?,
            // one device of its own needs nothing shared out
            split_tensors: scored.layout.split_tensors
                && plan.devices.as_ref().is_none_or(|own| own.len() != 1),
        })
    }
}
