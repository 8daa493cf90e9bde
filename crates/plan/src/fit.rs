//! One option: which GPUs, how many layers on each, what stays on the host; scored by the exact
//! estimate against free memory.

use crate::draft::DraftUse;
use crate::{Device, DraftPlan, OverrideTarget, Policy, Shortfall, SplitMode};
use regex::Regex;
use std::cell::Cell;
use vramfit_arch::{Model, TensorOverride};
use vramfit_estimate::{
    Breakdown, EngineProfile, Error, Layout, LayoutDevice, Refusal, RunConfig, Runtime,
};
use vramfit_ggml::BufferType;

/// `LLM_FFN_EXPS_REGEX` of llama.cpp's common/common.h: what `-cmoe` keeps on the host, and `-ncmoe` behind `blk\.N`.
pub const EXPERTS: &str = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps";
/// A pattern that no tensor's name matches. Any override at all keeps llama.cpp from pipelining.
pub(crate) const NO_COPIES: &str = "no_pipeline_copies";

/// Experts that are kept on the host beyond what the user pinned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum HostExperts {
    #[default]
    None,
    /// `-ncmoe`: of the first so many layers.
    First(usize),
    /// `-cmoe`.
    All,
}

impl HostExperts {
    /// Whether those of layer `il` are.
    pub fn of_layer(self, il: usize) -> bool {
        match self {
            HostExperts::None => false,
            HostExperts::First(n) => il < n,
            HostExperts::All => true,
        }
    }
}

/// What llama.cpp is told.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Candidate {
    /// `-dev`: indices of the GPUs.
    pub listed: Vec<usize>,
    /// `-sm none -mg`: the one of `listed` that is used.
    pub main: Option<usize>,
    /// `-ngl`; all when not given.
    pub n_gpu_layers: Option<u32>,
    /// `-ts`.
    pub split: Vec<f32>,
    pub host_experts: HostExperts,
    /// Pipelining is turned off by an override that matches nothing.
    pub no_copies: bool,
}

impl Candidate {
    /// GPUs in use, in llama.cpp's order.
    pub fn used(&self) -> Vec<usize> {
        match self.main {
            Some(main) => self.listed.get(main).copied().into_iter().collect(),
            None => self.listed.clone(),
        }
    }
}

/// A candidate and what it takes.
#[derive(Clone, Debug)]
pub(crate) struct Scored {
    pub candidate: Candidate,
    pub layout: Layout,
    pub breakdown: Breakdown,
    /// What a draft takes beside it.
    pub draft: Option<DraftUse>,
    /// With all allowances, a GPU in use each.
    pub required: Vec<u64>,
    pub shortfalls: Vec<Shortfall>,
}

impl Scored {
    pub fn fits(&self) -> bool {
        self.shortfalls.is_empty()
    }

    /// Bytes that are missing, over all GPUs.
    pub fn missing_bytes(&self) -> u64 {
        self.shortfalls
            .iter()
            .map(Shortfall::missing_bytes)
            .fold(0, u64::saturating_add)
    }

    /// What the fullest GPU has left; below 0 what it misses.
    pub fn headroom_bytes(&self, problem: &Problem) -> i64 {
        let used = self.candidate.used();
        let left = |(d, &required): (&usize, &u64)| {
            let free = problem
                .devices
                .get(*d)
                .map_or(0, |d| i64::try_from(d.free_bytes).unwrap_or(i64::MAX));
            free.saturating_sub_unsigned(required)
        };
        used.iter().zip(&self.required).map(left).min().unwrap_or(0)
    }

    /// Layers on GPUs, the output layer included.
    pub fn n_layers(&self) -> usize {
        self.breakdown.layers.iter().flatten().count()
    }
}

/// Everything that is given.
#[derive(Clone, Copy)]
pub(crate) struct Problem<'a> {
    pub model: &'a Model,
    pub run: &'a RunConfig,
    pub devices: &'a [Device],
    pub policy: &'a Policy,
    pub profile: &'a EngineProfile,
    /// Estimates so far.
    pub calls: &'a Cell<usize>,
}

/// A GPU as the estimate sees it.
pub(crate) fn layout_device(device: &Device) -> LayoutDevice {
    LayoutDevice {
        compute_capability: device.compute_capability,
        integrated: device.integrated,
        sm_count: device.sm_count,
        pool: device.pool,
    }
}

/// What the model's runtime takes on a GPU in use where so much else is taken of it: a legacy pool keeps no more than there is
/// room for.
pub(crate) fn runtime_bytes(device: &Device, runtime: &Runtime, others: u64) -> u64 {
    runtime.within(device.free_bytes.saturating_sub(others))
}

fn regex(pattern: &str) -> Option<Regex> {
    Regex::new(pattern).ok()
}

/// Overrides of a draft on the GPUs `devices`.
pub(crate) fn draft_overrides(
    problem: &Problem,
    plan: &DraftPlan,
    devices: &[usize],
) -> Result<Vec<TensorOverride>, Error> {
    let mut overrides = problem.tensor_overrides(&plan.overrides, devices)?;
    let n_layer = plan.model.as_ref().map_or(0, |m| m.hparams.n_layer_all);
    let layers = (plan.n_cpu_moe as usize).min(n_layer);
    let all = plan.cpu_moe.then(|| EXPERTS.to_string());
    let some = (0..layers).map(|il| format!(r"blk\.{il}{EXPERTS}"));
    let buffer = BufferType::HOST;
    let to_host =
        |pattern: String| regex(&pattern).map(|pattern| TensorOverride { pattern, buffer });
    overrides.extend(all.into_iter().chain(some).filter_map(to_host));
    Ok(overrides)
}

impl<'a> Problem<'a> {
    /// Placements of the model: its layers and the output layer.
    pub fn n_placements(&self) -> usize {
        self.model.hparams.n_layer_all + 1
    }

    /// The same with other settings.
    pub fn with_run<'b>(&'b self, run: &'b RunConfig) -> Problem<'b> {
        Problem { run, ..*self }
    }

    /// What a projector takes on GPU `device` when the model may use those of `listed`, bytes.
    pub fn projector_bytes(&self, listed: &[usize], device: usize) -> u64 {
        let projector = self.policy.projector.as_ref();
        let share = projector.and_then(|p| p.on(listed, device));
        share.map_or(0, |s| s.gpu.sum().saturating_add(s.runtime_bytes))
    }

    /// Overrides as llama.cpp gets them, in the order of the flags, then what the search added.
    /// `used` are the GPUs by which targets are looked up.
    pub fn overrides(
        &self,
        candidate: &Candidate,
        used: &[usize],
    ) -> Result<Vec<TensorOverride>, Error> {
        let pinned = &self.policy.pinned;
        let (before, behind) = pinned.around_experts();
        let mut overrides = self.tensor_overrides(before, used)?;
        let mut to_host = |pattern: &str| {
            let buffer = BufferType::HOST;
            overrides.extend(regex(pattern).map(|pattern| TensorOverride { pattern, buffer }));
        };
        if pinned.cpu_moe || candidate.host_experts == HostExperts::All {
            to_host(EXPERTS);
        }
        let searched = match candidate.host_experts {
            HostExperts::First(n) => n,
            _ => 0,
        };
        // llama.cpp takes any number; layers that do not exist match nothing.
        let most = self.n_placements();
        let n = pinned
            .n_cpu_moe
            .map_or(searched, |n| (n as usize).max(searched));
        (0..n.min(most)).for_each(|il| to_host(&format!(r"blk\.{il}{EXPERTS}")));
        overrides.extend(self.tensor_overrides(behind, used)?);
        if candidate.no_copies {
            let buffer = BufferType::HOST;
            overrides.extend(regex(NO_COPIES).map(|pattern| TensorOverride { pattern, buffer }));
        }
        Ok(overrides)
    }

    /// Those of `-ot`, with targets looked up among `used`.
    fn tensor_overrides(
        &self,
        given: &[crate::Override],
        used: &[usize],
    ) -> Result<Vec<TensorOverride>, Error> {
        let one = |o: &crate::Override| {
            let buffer = match o.target {
                OverrideTarget::Host => BufferType::HOST,
                OverrideTarget::Device(d) => {
                    let place = used.iter().position(|&u| u == d);
                    BufferType::device(place.ok_or_else(|| Refusal::OverrideDevice {
                        device: format!("CUDA{d}"),
                    })?)
                }
            };
            let pattern = o.pattern.clone();
            Ok(TensorOverride { pattern, buffer })
        };
        given.iter().map(one).collect()
    }

    /// The candidate as the estimate sees it.
    pub fn layout(&self, candidate: &Candidate) -> Result<Layout, Error> {
        let used = candidate.used();
        let devices = used.iter().filter_map(|&d| self.devices.get(d));
        Ok(Layout {
            devices: devices.map(layout_device).collect(),
            n_gpu_layers: candidate.n_gpu_layers,
            tensor_split: candidate.split.clone(),
            overrides: self.overrides(candidate, &used)?,
            // the host alone is left to `-dev none`
            split_tensors: self.policy.pinned.split_mode == Some(SplitMode::Tensor)
                && (!used.is_empty() || candidate.n_gpu_layers != Some(0)),
        })
    }

    /// What the candidate takes, against what is free.
    pub fn score(&self, candidate: Candidate) -> Result<Scored, Error> {
        self.calls.set(self.calls.get() + 1);
        let layout = self.layout(&candidate)?;
        let breakdown = Breakdown::estimate(self.model, self.run, &layout, self.profile)?;
        self.judge(candidate, layout, breakdown)
    }

    /// Everything on the host; no GPU in use but those that overrides send tensors to.
    pub fn score_host(&self) -> Result<Scored, Error> {
        self.score(Candidate {
            listed: crate::sheet::required_devices(self),
            n_gpu_layers: Some(0),
            ..Candidate::default()
        })
    }

    /// The breakdown of a candidate's layout, against what is free.
    pub fn judge(
        &self,
        candidate: Candidate,
        layout: Layout,
        breakdown: Breakdown,
    ) -> Result<Scored, Error> {
        let mut scored = Scored {
            candidate,
            layout,
            breakdown,
            draft: None,
            required: Vec::new(),
            shortfalls: Vec::new(),
        };
        scored.draft = self.draft_use(&scored)?;
        self.hold_against_free(&mut scored);
        Ok(scored)
    }

    fn hold_against_free(&self, scored: &mut Scored) {
        let mut required = Vec::new();
        let mut shortfalls = Vec::new();
        let (candidate, breakdown) = (&scored.candidate, &scored.breakdown);
        let of_draft = |device| scored.draft.as_ref().map_or(0, |d| d.bytes(device));
        for (i, device) in candidate.used().into_iter().enumerate() {
            let (Some(d), Some(memory)) = (self.devices.get(device), breakdown.devices.get(i))
            else {
                continue;
            };
            let others = self
                .projector_bytes(&candidate.listed, device)
                .saturating_add(of_draft(device))
                .saturating_add(memory.sum())
                .saturating_add(d.overhead.bytes);
            let runtime = breakdown.runtime.get(i);
            let runtime = runtime.map_or(0, |r| runtime_bytes(d, r, others));
            let required_bytes = others.saturating_add(runtime);
            required.push(required_bytes);
            if required_bytes > d.free_bytes {
                let free_bytes = d.free_bytes;
                shortfalls.push(Shortfall {
                    device,
                    required_bytes,
                    free_bytes,
                });
            }
        }
        shortfalls.extend(self.shortfalls_beside(scored));
        (scored.required, scored.shortfalls) = (required, shortfalls);
    }

    /// GPUs that the model leaves alone may be too small for the projector or the draft.
    fn shortfalls_beside(&self, scored: &Scored) -> Vec<Shortfall> {
        let candidate = &scored.candidate;
        let projector = self.policy.projector.as_ref();
        let mut beside: Vec<usize> = Vec::new();
        beside.extend(projector.and_then(|p| p.gpu(&candidate.listed)));
        beside.extend(scored.draft.iter().flat_map(|d| d.devices.clone()));
        beside.sort_unstable();
        beside.dedup();
        beside.retain(|d| !candidate.used().contains(d));
        let short = |device: usize| {
            let d = self.devices.get(device)?;
            let of_draft = scored.draft.as_ref().map_or(0, |d| d.bytes(device));
            let bytes = self
                .projector_bytes(&candidate.listed, device)
                .saturating_add(of_draft);
            let required_bytes = bytes.saturating_add(d.overhead.bytes);
            (bytes > 0 && required_bytes > d.free_bytes).then_some(Shortfall {
                device,
                required_bytes,
                free_bytes: d.free_bytes,
            })
        };
        beside.into_iter().filter_map(short).collect()
    }

    /// A candidate on just these GPUs, listed as the pinned flags ask.
    pub fn on(&self, used: &[usize]) -> Candidate {
        let pinned = &self.policy.pinned;
        let all: Vec<usize> = (0..self.devices.len()).collect();
        let one_of = match &pinned.devices {
            Some(listed) if listed.len() > 1 => Some(listed),
            None if pinned.split_mode == Some(SplitMode::None) => Some(&all),
            _ => None,
        };
        let mut candidate = Candidate {
            listed: used.to_vec(),
            ..Candidate::default()
        };
        if let (&[one], Some(listed)) = (used, one_of) {
            candidate.main = listed.iter().position(|&d| d == one);
            candidate.listed.clone_from(listed);
        } else if pinned.split_mode == Some(SplitMode::None) {
            candidate.main = Some(0);
        }
        candidate
    }

    /// Whether llama.cpp would pipeline `candidate` over its GPUs with four copies of inputs.
    pub fn pipelines(&self, scored: &Scored) -> bool {
        scored.breakdown.pipeline_copies > 1 && !scored.candidate.no_copies
    }

    /// Tensors of experts, by name.
    pub fn experts_pattern(&self) -> Option<Regex> {
        self.model.hparams.moe.and_then(|_| regex(EXPERTS))
    }
}
