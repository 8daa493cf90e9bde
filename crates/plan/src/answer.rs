//! From a scored candidate to the answer.

use crate::fit::{Problem, Scored, runtime_bytes};
use crate::{
    Certainty, Device, DevicePlacement, DraftPlacement, Placement, ProjectorShare, Rejected,
    Verdict, flags,
};
use vramfit_estimate::Error;
use vramfit_ggml::BufferType;

/// The answer that `scored` is, with nothing rejected and nothing to note yet.
pub(crate) fn placement(problem: &Problem, scored: Scored) -> Result<Placement, Error> {
    let layout_devices = scored.candidate.used();
    let flags = flags::flags(problem, &scored);
    let verdict = verdict(problem, &scored)?;
    let host_layers = |(il, d): (usize, &Option<usize>)| d.is_none().then_some(il);
    let b = &scored.breakdown;
    let listed = &scored.candidate.listed;
    let projector = problem.policy.projector.as_ref();
    let share = |i: usize| projector.and_then(|p| p.on(listed, i));
    let place = |(i, device)| device_placement(&scored, &layout_devices, i, device, share(i));
    let devices = problem.devices.iter().enumerate().map(place).collect();
    let of_projector = projector.map(|p| match p.gpu(listed).and_then(share) {
        Some(share) => share.host,
        None => p.host.host,
    });
    Ok(Placement {
        verdict,
        devices,
        projector_host: of_projector.unwrap_or_default(),
        host: b.host,
        host_layers: b
            .layers
            .iter()
            .enumerate()
            .filter_map(host_layers)
            .collect(),
        run: problem.run.clone(),
        draft: scored
            .draft
            .zip(problem.policy.draft.as_ref())
            .map(|(d, plan)| DraftPlacement {
                model: plan.model.clone(),
                breakdown: d.breakdown,
                devices: d.devices,
                kind: plan.kind,
                run: d.run,
                layout: d.layout,
            }),
        layout: scored.layout,
        breakdown: scored.breakdown,
        layout_devices,
        flags,
        rejected: Vec::new(),
        notes: Vec::new(),
        n_estimates: 0,
    })
}

fn device_placement(
    scored: &Scored,
    used: &[usize],
    index: usize,
    device: &Device,
    projector: Option<&ProjectorShare>,
) -> DevicePlacement {
    let mut placement = DevicePlacement::unused(index, device.free_bytes);
    let at = used.iter().position(|&d| d == index);
    let draft = scored.draft.as_ref().and_then(|d| d.on(index));
    if at.is_none() && projector.is_none() && draft.is_none() {
        return placement;
    }
    if let Some(at) = at {
        placement.layers = scored.breakdown.layers_on(at);
        let memory = scored.breakdown.devices.get(at);
        placement.memory = memory.copied().unwrap_or_default();
    }
    let runtime = at.and_then(|at| scored.breakdown.runtime.get(at));
    let mut is_bound = runtime.is_some_and(|r| r.is_bound);
    let mut beside_bytes = 0u64;
    if let Some(share) = projector {
        placement.projector = share.gpu;
        placement.projector_is_guess = share.is_guess;
        beside_bytes = beside_bytes.saturating_add(share.runtime_bytes);
        is_bound |= share.runtime_is_bound;
    }
    if let Some((memory, runtime)) = draft {
        placement.draft = memory;
        beside_bytes = beside_bytes.saturating_add(runtime.sum());
        is_bound |= runtime.is_bound;
    }
    if is_bound {
        placement.runtime_certainty = Certainty::Bound;
    }
    placement.overhead_bytes = device.overhead.bytes;
    let others = [&placement.memory, &placement.projector, &placement.draft];
    let others = others.into_iter().map(|memory| memory.sum());
    let others = others.fold(device.overhead.bytes, u64::saturating_add);
    let others = others.saturating_add(beside_bytes);
    let own_bytes = runtime.map_or(0, |r| runtime_bytes(device, r, others));
    placement.runtime_bytes = beside_bytes.saturating_add(own_bytes);
    let required = others.saturating_add(own_bytes);
    placement.required_bytes = required;
    placement.headroom_bytes = placement.headroom_bytes.saturating_sub_unsigned(required);
    placement
}

fn verdict(problem: &Problem, scored: &Scored) -> Result<Verdict, Error> {
    let pinned = &problem.policy.pinned;
    let host_is_meant = problem.devices.is_empty()
        || pinned.devices.as_ref().is_some_and(Vec::is_empty)
        || pinned.n_gpu_layers == Some(0);
    let n_layers = scored.n_layers();
    Ok(if !scored.fits() {
        Verdict::DoesNotFit
    } else if n_layers == 0 && host_is_meant {
        Verdict::Fits
    } else if n_layers == 0 {
        Verdict::DoesNotFit
    } else if n_layers < problem.n_placements() || keeps_tensors_back(problem, scored)? {
        Verdict::Partial
    } else {
        Verdict::Fits
    })
}

/// Whether an override keeps tensors of a layer on the host.
fn keeps_tensors_back(problem: &Problem, scored: &Scored) -> Result<bool, Error> {
    let used = scored.candidate.used();
    let overrides = problem.overrides(&scored.candidate, &used)?;
    let is_kept = |t: &vramfit_arch::ModelTensor| {
        let of_layer = t.role.layer().is_some();
        let first = || overrides.iter().find(|o| o.pattern.is_match(&t.name));
        of_layer && first().is_some_and(|o| o.buffer == BufferType::HOST)
    };
    Ok(!overrides.is_empty() && problem.model.tensors.iter().any(is_kept))
}

/// An option that llama.cpp would refuse: everything on the host, and why.
pub(crate) fn refused(problem: &Problem, option: String, why: String) -> Result<Placement, Error> {
    let scored = problem.score_host()?;
    let mut placement = placement(problem, scored)?;
    placement.verdict = Verdict::DoesNotFit;
    let rejected = Rejected::new(option, Vec::new(), Some(why));
    placement.rejected.push(rejected);
    Ok(placement)
}
