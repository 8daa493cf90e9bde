//! What a reader should know about a placement, in sentences.

use crate::fit::{NO_COPIES, Problem};
use crate::words::{count, names, size};
use crate::{DevicePlacement, LayoutMode, Placement, Verdict};
use vramfit_estimate::{Bounded, FlashAttention};
use vramfit_ggml::cuda::PoolKind;

/// Adds the notes.
pub(crate) fn explain(problem: &Problem, placement: &mut Placement) {
    let mut notes = Vec::new();
    notes.extend(unknown(problem, placement));
    notes.extend(why_not(problem, placement));
    notes.extend(host_part(placement));
    notes.extend(copies(placement));
    notes.extend(flash_attention(problem, placement));
    notes.extend(build(problem, placement));
    notes.extend(numbering(problem, placement));
    notes.extend(shared_out(placement));
    notes.extend(legacy_pool(problem, placement));
    notes.extend(engine_split(problem, placement));
    placement.notes.extend(notes);
}

/// The architecture is not known: what is a bound, and what that means for the answer.
fn unknown(problem: &Problem, placement: &Placement) -> Option<String> {
    let bounded = placement.breakdown.bounded;
    let figures = match bounded {
        Bounded::Nothing => return None,
        Bounded::AllButWeights => "weights are exact, caches and compute buffers upper bounds",
        Bounded::Everything => "all figures are upper bounds",
    };
    Some(format!(
        "architecture '{}' is not known: {figures}, judged by the keys and tensors that known architectures use; \
         it may need far less. {} does not load it, and whether another build does is not known",
        problem.model.architecture_name, problem.profile.name
    ))
}

/// What the figure of a pool that keeps single buffers is of.
fn legacy_pool(problem: &Problem, placement: &Placement) -> Option<String> {
    let both = placement.devices.iter().zip(problem.devices);
    let legacy =
        both.filter(|(of, device)| of.runtime_bytes > 0 && device.pool == PoolKind::Legacy);
    let legacy: Vec<usize> = legacy.map(|(of, _)| of.device).collect();
    if legacy.is_empty() {
        return None;
    }
    let runtime = |device| {
        let at = placement.layout_devices.iter().position(|&d| d == device);
        at.and_then(|at| placement.breakdown.runtime.get(at))
    };
    let is_full = |of: &&DevicePlacement| {
        of.headroom_bytes == 0 && runtime(of.device).is_some_and(|r| r.sum() > of.runtime_bytes)
    };
    let full: Vec<usize> = placement
        .devices
        .iter()
        .filter(is_full)
        .map(|of| of.device)
        .collect();
    let full = match full.is_empty() {
        true => String::new(),
        false => format!(
            ", as on {}, which it fills: nothing else has room there",
            names(&full)
        ),
    };
    Some(format!(
        "no virtual memory management on {}: ggml-cuda's legacy kind of pool keeps single buffers, so that what it takes \
         depends on the order of what is computed. Shown is the most of some orders of prompts of many lengths, the context \
         full at last; others may leave more. Where memory runs out, what is kept goes back to the driver{full}",
        names(&legacy)
    ))
}

/// What `-sm tensor` costs, and what of it is no byte of the engine's own counting.
fn shared_out(placement: &Placement) -> Option<String> {
    let b = &placement.breakdown;
    let reduce = b.runtime.iter().map(|r| r.reduce_bytes).max();
    let has_layers = b.layers.iter().any(Option::is_some);
    let reduce = reduce.filter(|_| b.split_tensors && b.devices.len() > 1 && has_layers)?;
    Some(format!(
        "-sm tensor: every GPU has a part of each layer and of its cache, and a compute buffer as large as one GPU would \
         need alone; {} of the runtime memory are for adding up their results",
        size(reduce)
    ))
}

/// What the context has to do with the first choice not being taken.
fn why_not(problem: &Problem, placement: &Placement) -> Option<String> {
    let first = placement.rejected.first()?;
    if first.shortfalls.is_empty() {
        return None;
    }
    let context: u64 = placement.breakdown.devices.iter().map(|m| m.context).sum();
    let context = context + placement.host.context;
    let weights: u64 = problem.model.tensors.iter().map(|t| t.n_bytes).sum();
    let n_ctx = placement.breakdown.params.n_ctx;
    if !problem.model.hparams.has_memory {
        return None;
    }
    let mut text = format!(
        "with {n_ctx} tokens the cache takes {} beside {} of weights",
        size(context),
        size(weights)
    );
    let smaller = first
        .fixes
        .iter()
        .find(|f| f.flags.first().is_some_and(|f| f == "-c"));
    if let Some(n) = smaller.and_then(|f| f.flags.get(1)) {
        text += &format!("; {} would do with up to {n} tokens", first.option);
    }
    Some(text)
}

fn host_part(placement: &Placement) -> Option<String> {
    let n = placement.host_layers.len();
    let total = placement.breakdown.layers.len();
    if placement.verdict == Verdict::Fits || n == 0 {
        return None;
    }
    Some(format!(
        "{} of {total} on GPUs; the host keeps {}, with {} of weights and {} of cache",
        total - n,
        if n == total {
            "all".to_string()
        } else {
            format!("the first {n}")
        },
        size(placement.host.model),
        size(placement.host.context)
    ))
}

fn copies(placement: &Placement) -> Option<String> {
    let flag = format!("{NO_COPIES}=CPU");
    let is_off = placement
        .flags
        .iter()
        .any(|f| f.split(',').any(|entry| entry == flag));
    is_off.then(|| {
        format!(
            "everything fits only without llama.cpp's four pipeline copies: `-ot {flag}` matches no \
             tensor and turns them off"
        )
    })
}

/// `auto` is settled by the placement.
fn flash_attention(problem: &Problem, placement: &Placement) -> Option<String> {
    let is_auto = problem.run.flash_attention == FlashAttention::Auto;
    let is_off = !placement.breakdown.params.flash_attn;
    let is_known = !placement.breakdown.bounded.is_bound();
    (is_known && is_auto && is_off && !placement.layout_devices.is_empty())
        .then(|| "`-fa auto` comes to off with this placement".to_string())
}

/// A GPU that this build of the engine has no kernels for: its code would take these bytes, but
/// the build that runs there is another.
fn build(problem: &Problem, placement: &Placement) -> Option<String> {
    let capabilities = placement
        .layout_devices
        .iter()
        .map(|&d| problem.devices[d].compute_capability);
    let lacking = capabilities
        .filter(|&c| problem.profile.compiled_for(c).is_none())
        .min()?;
    let attention = if placement.breakdown.params.flash_attn {
        ", flash attention included (-fa off if the build that runs there has none)"
    } else {
        ""
    };
    Some(format!(
        "{} has no kernels for compute capability {lacking}: these are the bytes its code would take \
         there{attention}",
        problem.profile.name
    ))
}

/// Names depend on how CUDA numbers GPUs.
fn numbering(problem: &Problem, placement: &Placement) -> Option<String> {
    let used = &placement.layout_devices;
    let differ = problem.devices.windows(2).any(|d| {
        (d[0].compute_capability, d[0].total_bytes) != (d[1].compute_capability, d[1].total_bytes)
    });
    (differ && !used.is_empty()).then(|| {
        format!(
            "{} as listed here: CUDA puts the fastest first unless CUDA_DEVICE_ORDER=PCI_BUS_ID is set",
            names(used)
        )
    })
}

fn engine_split(problem: &Problem, placement: &Placement) -> Option<String> {
    let several = placement.layout_devices.len() > 1;
    let is_free = problem.policy.pinned.shares().is_none() && !placement.breakdown.split_tensors;
    let is_engine = problem.policy.mode == LayoutMode::Engine;
    (is_engine && several && is_free).then(|| {
        format!(
            "llama.cpp splits by free memory over {}",
            count(placement.layout_devices.len(), "GPU")
        )
    })
}
