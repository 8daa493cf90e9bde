//! `(Model, RunConfig, [Device], Policy) -> Placement`: proposes layouts, lets the estimate score
//! them, and says why the others were not taken.
//!
//! `fit` scores one candidate, `sheet` knows what each layer adds, `relax` finds the best split by
//! what is known, `split` has it estimated until it is right, `search` goes through the options in
//! the order that people want them, `engine` does what llama.cpp does by itself, `fixes` looks for
//! settings that would have fitted, `flags` and `answer` write the result down.

mod answer;
mod attention;
mod buffers;
mod device;
mod draft;
mod engine;
mod fit;
mod fixes;
mod flags;
mod notes;
mod placement;
mod policy;
mod relax;
mod rounding;
mod search;
mod sheet;
mod split;
mod subsets;
mod tensor;
mod words;

pub use buffers::{Owner, PlannedBuffer, in_order, with_draft};
pub use device::{Allowance, Device};
pub use draft::DraftPlan;
pub use placement::{
    Certainty, DevicePlacement, DraftPlacement, Fix, Placement, Rejected, Shortfall, Verdict,
};
pub use policy::{
    LayoutMode, Override, OverrideTarget, Pinned, Policy, Prefer, ProjectorPlan, ProjectorShare,
    SplitMode, WithoutFlashAttention,
};

pub use fit::EXPERTS;
use fit::Problem;
use std::borrow::Cow;
use std::cell::Cell;
use vramfit_arch::Model;
use vramfit_estimate::{EngineProfile, Error, RunConfig};

/// GPUs that llama.cpp can use at once: its scheduler takes 16 backends (`GGML_SCHED_MAX_BACKENDS`),
/// and the CPU is one of them.
pub const MAX_DEVICES: usize = 15;

/// Finds a placement. [`Error`] where llama.cpp refuses the settings whatever the layout.
pub fn plan(
    model: &Model,
    run: &RunConfig,
    devices: &[Device],
    policy: &Policy,
    profile: &EngineProfile,
) -> Result<Placement, Error> {
    let settled = |run: &RunConfig, policy: &Policy| settled(model, run, devices, policy, profile);
    attention::plan(run, devices, policy, settled)
}

/// As [`plan`], whichever GPUs flash attention is on.
fn settled(
    model: &Model,
    run: &RunConfig,
    devices: &[Device],
    policy: &Policy,
    profile: &EngineProfile,
) -> Result<Placement, Error> {
    let calls = Cell::new(0);
    let (mut loaded, mut beside) = (Cow::Borrowed(model), None);
    if let Some(draft) = &policy.draft {
        loaded = draft.kind.loaded(model);
        beside = Some(
            draft
                .config()
                .target_run(run, &loaded, draft.model.as_deref()),
        );
    }
    let (model, run) = (&*loaded, beside.as_ref().unwrap_or(run));
    // to the scheduler those of `-sm tensor` are one
    let shares_out = policy.pinned.split_mode == Some(SplitMode::Tensor);
    let most = MAX_DEVICES + usize::from(shares_out);
    let seen = &devices[..devices.len().min(most)];
    let roomy = rounding::with_room(model, run, policy, seen);
    let problem = Problem {
        model,
        run,
        devices: &roomy,
        policy,
        profile,
        calls: &calls,
    };
    let mut placement = match policy.mode {
        _ if policy.pinned.split_mode == Some(SplitMode::Tensor) => tensor::plan(&problem)?,
        LayoutMode::Best => search::plan(&problem)?,
        LayoutMode::Engine => engine::plan(&problem)?,
    };
    notes::explain(&problem, &mut placement);
    let unseen = devices.iter().enumerate().skip(seen.len());
    let unseen = unseen.map(|(index, device)| DevicePlacement::unused(index, device.free_bytes));
    placement.devices.extend(unseen);
    if devices.len() > seen.len() {
        placement.notes.push(format!(
            "only CUDA0 to CUDA{} were looked at: llama.cpp takes {most} GPUs and the CPU, and aborts with more",
            most - 1
        ));
    }
    placement.n_estimates = calls.get();
    Ok(placement)
}
