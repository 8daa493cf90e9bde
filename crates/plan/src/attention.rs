//! Flash attention where some GPUs' builds have none: off as soon as a layer, a draft or a projector is on one of them, so that it
//! is the placement that settles it.

use crate::{Device, LayoutMode, Placement, Policy, SplitMode, WithoutFlashAttention};
use vramfit_estimate::{Error, FlashAttention, RunConfig};

/// The placement that `settled` finds for a run and a policy that leave nothing open here.
pub(crate) fn plan(
    run: &RunConfig,
    devices: &[Device],
    policy: &Policy,
    settled: impl Fn(&RunConfig, &Policy) -> Result<Placement, Error>,
) -> Result<Placement, Error> {
    let is_auto = run.flash_attention == FlashAttention::Auto;
    let without = match &policy.without_flash_attention {
        Some(without) if is_auto && !without.devices.is_empty() => without,
        _ => return settled(run, policy),
    };
    let off = || {
        let (mut run, mut policy) = (run.clone(), policy.clone());
        run.flash_attention = FlashAttention::Off;
        policy.projector.clone_from(&without.projector);
        let mut placement = settled(&run, &policy)?;
        let gpu = name(devices, without);
        placement.notes.insert(0, note(gpu));
        Ok(placement)
    };
    let others = (0..devices.len()).filter(|d| !without.devices.contains(d));
    let others: Vec<usize> = others.collect();
    let in_words = |error| match error {
        Error::Refused(refusal) => Error::RefusedWithoutFlashAttention {
            gpu: name(devices, without).to_string(),
            refusal,
        },
        error => error,
    };
    // As if it could be on everywhere. Nothing is better than what that finds, if it leaves those GPUs alone.
    let auto = settled(run, policy)?;
    if !has_bytes_on(&auto, without) {
        return Ok(auto);
    }
    let off = off();
    let leaves_open = !others.is_empty() && leaves_devices_open(policy);
    let on = leaves_open.then(|| {
        let mut policy = policy.clone();
        policy.pinned.devices = Some(others);
        settled(run, &policy)
    });
    // A draft or a projector may be on one of them all the same.
    let on = on
        .and_then(Result::ok)
        .filter(|on| !has_bytes_on(on, without));
    let found = [Some(&auto), off.as_ref().ok(), on.as_ref()];
    let n_estimates = found.into_iter().flatten().map(|p| p.n_estimates).sum();
    let mut best = match (off, on) {
        (Ok(off), Some(on)) if is_better(&off, &on, &auto, without) => off,
        (_, Some(on)) => on,
        (off, None) => off.map_err(in_words)?,
    };
    best.n_estimates = n_estimates;
    Ok(best)
}

/// Layers of the model, or a draft or a projector, which have the same `-fa`.
fn has_bytes_on(placement: &Placement, without: &WithoutFlashAttention) -> bool {
    let all = without.devices.iter();
    let mut on = all.filter_map(|&d| placement.devices.get(d));
    on.any(|d| !d.layers.is_empty() || d.draft.sum() > 0 || d.projector.sum() > 0)
}

/// Whether the GPUs without may be left out for the others.
fn leaves_devices_open(policy: &Policy) -> bool {
    let pinned = &policy.pinned;
    let said = pinned.devices.is_some() || pinned.main_gpu.is_some() || pinned.shares().is_some();
    policy.mode == LayoutMode::Best && !said && pinned.split_mode != Some(SplitMode::Tensor)
}

/// `off`, with flash attention nowhere, against `on`, without the GPUs that have none. Among equals the policy has its own
/// opinion of which GPUs are to be taken, and `auto` shows it.
fn is_better(
    off: &Placement,
    on: &Placement,
    auto: &Placement,
    without: &WithoutFlashAttention,
) -> bool {
    let rank = |p: &Placement| (p.verdict as u8, p.host_layers.len(), p.layout_devices.len());
    let is_preferred = || off.layout_devices == auto.layout_devices;
    has_bytes_on(off, without) && (rank(off) < rank(on) || rank(off) == rank(on) && is_preferred())
}

fn name<'a>(devices: &'a [Device], without: &WithoutFlashAttention) -> &'a str {
    let mut found = without.devices.iter().filter_map(|&d| devices.get(d));
    found.next().map_or("", |device| device.name.as_str())
}

fn note(gpu: &str) -> String {
    format!(
        "no published build has flash attention for {gpu}, so it is taken as off; -fa auto asks what llama.cpp \
         v0.5.0's own code would do"
    )
}
