//! What Ollama's classic scheduler decides, in the types that llama.cpp's placements have.

use vramfit_classic::human::{human, list};
use vramfit_classic::{Attempt, Decision, Rules, Share};
use vramfit_plan::{Device, DevicePlacement, Placement, Policy, Rejected, Shortfall, Verdict};

use crate::{Error, MemoryBytes, Model, RunConfig};

const MIB: f64 = (1u64 << 20) as f64;

/// Whether the whole model is on GPUs, a part of it, or nothing. Nothing is as asked where there is no GPU, or
/// where `num_gpu` is 0.
pub fn classic_verdict(decision: &Decision, n_gpus: usize) -> Verdict {
    let estimate = &decision.taken.estimate;
    match estimate.layers_offload {
        0 if n_gpus == 0 || estimate.layers_requested == Some(0) => Verdict::Fits,
        0 => Verdict::DoesNotFit,
        n if n >= estimate.layers_model => Verdict::Fits,
        _ => Verdict::Partial,
    }
}

/// `decision` as a placement: its weights, cache and graphs are [`MemoryBytes`], what is held back
/// on every GPU is `overhead_bytes`, the layer that serves as a buffer `runtime_bytes`. Nothing of it is
/// exact. The notes name every term, and the figures as Ollama's log does. `model` and `run` are those of
/// the same model under llama.cpp: its settings are the frame.
pub fn classic_placement(
    model: &Model,
    run: &RunConfig,
    gpus: &[Device],
    free: &[u64],
    decision: &Decision,
    rules: &Rules,
) -> Result<Placement, Error> {
    let mut placement = crate::plan(model, run, &[], &Policy::default())?;
    let taken = &decision.taken;
    let share = |gpu: usize| {
        let at = taken.gpus.iter().position(|&g| g == gpu)?;
        taken.estimate.shares.get(at)
    };
    placement.verdict = classic_verdict(decision, gpus.len());
    let devices = (0..gpus.len()).map(|gpu| {
        let free = free.get(gpu).copied().unwrap_or(0);
        device(gpu, free, share(gpu).cloned().unwrap_or_default())
    });
    placement.devices = devices.collect();
    let placed = |il: usize| {
        placement
            .devices
            .iter()
            .position(|d| d.layers.contains(&il))
    };
    let n_layers = taken.estimate.layers_model as usize;
    let layers: Vec<Option<usize>> = (0..n_layers).map(placed).collect();
    let on_host = layers.iter().enumerate().filter(|(_, d)| d.is_none());
    placement.host_layers = on_host.map(|(il, _)| il).collect();
    placement.host = host(&taken.estimate, &placement.devices);
    let has_tower = placement.devices.iter().any(|d| d.projector.model > 0);
    if !has_tower {
        placement.projector_host.model = taken.estimate.projector.weights_bytes;
    }
    let b = &mut placement.breakdown;
    let load = &taken.estimate.load;
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    b.params.n_ctx = signed(load.context);
    b.params.n_ctx_seq = signed(load.context / load.parallel.max(1));
    b.params.n_batch = signed(load.batch);
    b.params.n_ubatch = signed(load.batch);
    b.params.n_seq_max = signed(load.parallel);
    b.params.flash_attn = load.flash_attention;
    b.layers = layers;
    b.host_repacked_bytes = 0;
    b.host = placement.host;
    b.devices = placement.devices.iter().map(|d| d.memory).collect();
    b.runtime = vec![Default::default(); gpus.len()];
    placement.layout_devices = (0..gpus.len()).collect();
    placement.flags.clear();
    placement.rejected = rejected(&decision.rejected, gpus.len(), free);
    placement.notes = notes(decision, free, rules);
    Ok(placement)
}

fn device(gpu: usize, free: u64, share: Share) -> DevicePlacement {
    // A GPU that was charged without getting a layer is not used in the end.
    let is_used = !share.layers.is_empty();
    let share = if is_used { share } else { Share::default() };
    let mut placement = DevicePlacement::unused(gpu, free);
    placement.memory = MemoryBytes {
        model: share.repeating.saturating_add(share.output),
        context: share.kv,
        compute: share.graph,
        adapters: 0,
    };
    placement.projector = MemoryBytes {
        model: share.projector_weights,
        compute: share.projector_graph,
        ..MemoryBytes::default()
    };
    placement.runtime_bytes = share.layer_buffer;
    placement.overhead_bytes = share.minimum;
    placement.required_bytes = share.sum();
    let required = placement.required_bytes;
    placement.headroom_bytes = placement.headroom_bytes.saturating_sub_unsigned(required);
    placement.layers = share.layers;
    placement
}

/// What no GPU has.
fn host(estimate: &vramfit_classic::Estimate, devices: &[DevicePlacement]) -> MemoryBytes {
    let sum = |of: fn(&MemoryBytes) -> u64| {
        let devices = devices.iter().map(|d| of(&d.memory));
        devices.fold(0u64, u64::saturating_add)
    };
    let weights = estimate.repeating.saturating_add(estimate.nonrepeating);
    MemoryBytes {
        model: weights.saturating_sub(sum(|m| m.model)),
        context: estimate.kv.saturating_sub(sum(|m| m.context)),
        ..MemoryBytes::default()
    }
}

fn ids(gpus: &[usize]) -> String {
    let ids: Vec<String> = gpus.iter().map(|gpu| format!("CUDA{gpu}")).collect();
    ids.join(" and ")
}

fn rejected(attempts: &[Attempt], n_gpus: usize, free: &[u64]) -> Vec<Rejected> {
    let option = |attempt: &Attempt| {
        let estimate = &attempt.estimate;
        let parallel = match estimate.load.parallel {
            1 => String::new(),
            n => format!(", {n} requests at once"),
        };
        let all = estimate.layers_model;
        let wanted = match estimate.layers_requested {
            Some(n) => format!("{n} layers"),
            None => format!("all {all} layers"),
        };
        let short = match attempt.gpus.as_slice() {
            // What it was tested for is what it would take in part, plus all that is left over.
            &[gpu] => Some(Shortfall {
                device: gpu,
                required_bytes: estimate.required_full,
                free_bytes: free.get(gpu).copied().unwrap_or(0),
            }),
            _ => None,
        };
        let short = short.filter(|s| s.missing_bytes() > 0);
        let reason = short.is_none().then(|| {
            let n = match estimate.layers_offload {
                n if n >= all => format!("all {n} that the model has"),
                n => n.to_string(),
            };
            format!("{n} have room, of {} in all", human(estimate.required_full))
        });
        let option = format!("{wanted} on {}{parallel}", ids(&attempt.gpus));
        Rejected::new(option, short.into_iter().collect(), reason)
    };
    let sensible = |attempt: &&Attempt| attempt.gpus.iter().all(|&gpu| gpu < n_gpus);
    attempts.iter().filter(sensible).map(option).collect()
}

/// Every term, and the line of the log.
fn notes(decision: &Decision, free: &[u64], rules: &Rules) -> Vec<String> {
    let (gpus, estimate) = (&decision.taken.gpus, &decision.taken.estimate);
    let fixed = if rules.fixed {
        ", with the graph's fault mended"
    } else {
        ""
    };
    let mut notes = vec![format!(
        "the estimate and the rules of {}{fixed}: formulas, not the bytes of any engine",
        rules.version.name()
    )];
    for (gpu, share) in gpus.iter().zip(&estimate.shares) {
        if share.layers.is_empty() {
            continue;
        }
        let terms = share.terms().into_iter().filter(|(_, bytes)| *bytes > 0);
        let terms: Vec<String> = terms
            .map(|(name, bytes)| format!("{name} {:.1}", bytes as f64 / MIB))
            .collect();
        notes.push(format!("CUDA{gpu}, MiB: {}", terms.join(", ")));
    }
    notes.extend(handed_on(estimate));
    notes.push(log(
        estimate,
        gpus.iter().filter_map(|&gpu| free.get(gpu).copied()),
    ));
    notes
}

/// What Ollama's runner makes of it.
fn handed_on(estimate: &vramfit_classic::Estimate) -> Vec<String> {
    let mut notes = Vec::new();
    let used = estimate.shares.iter().filter(|s| !s.layers.is_empty());
    if used.count() > 1 {
        notes.push(format!(
            "which layers go where is the estimate's own account: the runner is given their numbers \
             (--tensor-split {}) and lays them out in order",
            estimate.split()
        ));
    }
    let found = estimate.layers_offload;
    let asked = estimate.layers_requested.unwrap_or(0);
    if asked > found && asked <= estimate.layers_model {
        notes.push(format!(
            "the runner is given num_gpu {asked} all the same, though {found} are found to have room"
        ));
    }
    notes
}

fn log(estimate: &vramfit_classic::Estimate, free: impl Iterator<Item = u64>) -> String {
    let requested = match estimate.layers_requested {
        Some(n) => n.to_string(),
        None => "-1".to_string(),
    };
    let weights = estimate.repeating.saturating_add(estimate.nonrepeating);
    let mut log = format!(
        "in its log: layers.requested={requested} layers.model={} layers.offload={} layers.split=\"{}\" \
         memory.available=\"{}\" memory.required.full=\"{}\" memory.required.partial=\"{}\" \
         memory.required.kv=\"{}\" memory.required.allocations=\"{}\" memory.weights.total=\"{}\" \
         memory.weights.repeating=\"{}\" memory.weights.nonrepeating=\"{}\" memory.graph.full=\"{}\" \
         memory.graph.partial=\"{}\"",
        estimate.layers_model,
        estimate.layers_offload,
        estimate.split(),
        list(free),
        human(estimate.required_full),
        human(estimate.required_partial),
        human(estimate.kv),
        list(estimate.shares.iter().map(Share::sum)),
        human(weights),
        human(estimate.repeating),
        human(estimate.nonrepeating),
        human(estimate.graph.full),
        human(estimate.graph.partial),
    );
    let projector = estimate.projector;
    if projector.weights_bytes > 0 {
        log += &format!(
            " projector.weights=\"{}\" projector.graph=\"{}\"",
            human(projector.weights_bytes),
            human(projector.graph_bytes)
        );
    }
    log
}
