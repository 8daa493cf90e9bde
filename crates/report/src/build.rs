//! A placement made into a document.

use std::path::Path;

use vramfit_arch::Model;
use vramfit_estimate::{Bounded, EngineProfile, MemoryBytes};
use vramfit_ggml::BufferType;
use vramfit_plan::{
    Certainty, Device, DevicePlacement, LayoutMode, Placement, Policy, Prefer, Rejected, SplitMode,
    Verdict,
};

use crate::document::{
    CertaintyWords, DeviceReport, Estimate, FixReport, LayoutWord, ModelReport, OverrideReport,
    PreferWord, RejectedReport, RunReport, ShortfallReport, SplitWord, Sure, VerdictWord,
};
use crate::schema::SCHEMA_ESTIMATE;

/// What a placement is about: everything that the placement itself does not hold.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The model's file, as the user named it.
    pub path: &'a Path,
    /// The model.
    pub model: &'a Model,
    /// The GPUs that were given.
    pub devices: &'a [Device],
    /// What the user wanted.
    pub policy: &'a Policy,
    /// The engine's build.
    pub engine: &'a EngineProfile,
    /// How the list of GPUs was understood, a line each.
    pub gpus: &'a [String],
    /// What a reader should know beside the placement's own notes; shown before them.
    pub notes: &'a [String],
    /// llama-server's flags for files beside the model: adapters, control vectors, a projector.
    pub adapters: &'a [String],
}

impl ModelReport {
    pub(crate) fn new(path: &Path, model: &Model) -> ModelReport {
        ModelReport {
            path: path.to_string_lossy().into_owned(),
            store_name: None,
            architecture: model.architecture_name.clone(),
            name: model.name.clone(),
            n_layer: model.hparams.n_layer_all as u64,
            n_params: model.n_params,
            file_bytes: model.file_bytes,
        }
    }
}

impl Estimate {
    /// The document of `placement`.
    pub fn new(subject: &Subject, placement: &Placement) -> Estimate {
        let path = subject.path.to_string_lossy().into_owned();
        let command = ["llama-server", "-m", &path];
        let command = command
            .into_iter()
            .map(str::to_string)
            .chain(subject.adapters.iter().cloned());
        let bounded = placement.breakdown.bounded;
        let gpus = placement
            .devices
            .iter()
            .map(|d| gpu(subject.devices, d, bounded));
        let notes = subject.notes.iter().chain(&placement.notes);
        Estimate {
            schema: SCHEMA_ESTIMATE.to_string(),
            engine: subject.engine.name.to_string(),
            model: ModelReport::new(subject.path, subject.model),
            gpus: subject.gpus.to_vec(),
            run: run(subject.policy, placement),
            verdict: match placement.verdict {
                Verdict::Fits => VerdictWord::Fits,
                Verdict::Partial => VerdictWord::Partial,
                Verdict::DoesNotFit => VerdictWord::DoesNotFit,
            },
            devices: gpus.chain([host(subject.policy, placement)]).collect(),
            command: command.chain(placement.flags.iter().cloned()).collect(),
            rejected: placement.rejected.iter().map(Into::into).collect(),
            notes: notes.cloned().collect(),
        }
    }
}

fn words(runtime: Certainty, bounded: Bounded) -> CertaintyWords {
    let sure = |limit: Bounded| match bounded >= limit {
        true => Sure::Bound,
        false => Sure::Exact,
    };
    CertaintyWords {
        model: sure(Bounded::Everything),
        context: sure(Bounded::AllButWeights),
        compute: sure(Bounded::AllButWeights),
        runtime: match runtime {
            Certainty::Exact => Sure::Exact,
            Certainty::Modelled => Sure::Modelled,
            Certainty::Bound => Sure::Bound,
        },
    }
}

/// With a projector of a type that is not known: weights at most those of its file, compute as a plain transformer's.
fn guess(certainty: &mut CertaintyWords) {
    certainty.model = Sure::Bound;
    certainty.compute = certainty.compute.max(Sure::Modelled);
}

fn indices(layers: &[usize]) -> Vec<u64> {
    layers.iter().map(|&il| il as u64).collect()
}

fn cuda(index: usize) -> String {
    format!("CUDA{index}")
}

fn gpu(devices: &[Device], placed: &DevicePlacement, bounded: Bounded) -> DeviceReport {
    let device = devices.get(placed.device);
    let total = device.map_or(0, |d| d.total_bytes);
    let source = device.filter(|_| placed.overhead_bytes > 0);
    let mut certainty = words(placed.runtime_certainty, bounded);
    if placed.projector_is_guess {
        guess(&mut certainty);
    }
    DeviceReport {
        id: cuda(placed.device),
        name: device.map_or_else(String::new, |d| d.name.clone()),
        total_bytes: Some(total),
        free_bytes: Some(device.map_or(0, |d| d.free_bytes)),
        layers: indices(&placed.layers),
        model_bytes: placed.memory.model,
        adapter_bytes: placed.memory.adapters,
        context_bytes: placed.memory.context,
        compute_bytes: placed.memory.compute,
        projector_bytes: placed.projector.sum(),
        projector_compute_bytes: placed.projector.compute,
        draft_bytes: placed.draft.sum(),
        draft_context_bytes: placed.draft.context,
        draft_compute_bytes: placed.draft.compute,
        runtime_bytes: placed.runtime_bytes,
        overhead_bytes: placed.overhead_bytes,
        overhead_low_bytes: source.map_or(0, |d| d.overhead.low_bytes),
        overhead_source: source.map(|d| d.overhead.source.clone()),
        repacked_bytes: 0,
        required_bytes: placed.required_bytes,
        headroom_bytes: Some(placed.headroom_bytes),
        certainty,
    }
}

fn host(policy: &Policy, placement: &Placement) -> DeviceReport {
    let mut certainty = words(Certainty::Exact, placement.breakdown.bounded);
    let guesses = policy.projector.as_ref().is_some_and(|p| p.host.is_guess);
    if guesses && placement.projector_host.sum() > 0 {
        guess(&mut certainty);
    }
    let of_draft = placement.draft.as_ref();
    let draft = of_draft.map_or(MemoryBytes::default(), |d| d.breakdown.host);
    let draft_repacked = of_draft.map_or(0, |d| d.breakdown.host_repacked_bytes);
    let MemoryBytes {
        model,
        context,
        compute,
        adapters,
    } = placement.host;
    DeviceReport {
        id: "host".to_string(),
        name: "host memory".to_string(),
        total_bytes: None,
        free_bytes: None,
        layers: indices(&placement.host_layers),
        model_bytes: model,
        adapter_bytes: adapters,
        context_bytes: context,
        compute_bytes: compute,
        projector_bytes: placement.projector_host.sum(),
        projector_compute_bytes: placement.projector_host.compute,
        draft_bytes: draft.sum(),
        draft_context_bytes: draft.context,
        draft_compute_bytes: draft.compute,
        runtime_bytes: 0,
        overhead_bytes: 0,
        overhead_low_bytes: 0,
        overhead_source: None,
        repacked_bytes: placement
            .breakdown
            .host_repacked_bytes
            .saturating_add(draft_repacked),
        required_bytes: (placement.host.sum())
            .saturating_add(placement.projector_host.sum())
            .saturating_add(draft.sum()),
        headroom_bytes: None,
        certainty,
    }
}

fn run(policy: &Policy, placement: &Placement) -> RunReport {
    let p = &placement.breakdown.params;
    let flag = |name: &str| {
        let at = placement.flags.iter().position(|f| f == name)?;
        placement.flags.get(at + 1).map(String::as_str)
    };
    let pinned = &policy.pinned;
    let one_gpu = flag("-sm") == Some("none") || pinned.split_mode == Some(SplitMode::None);
    let main_gpu = flag("-mg").and_then(|mg| mg.parse().ok());
    let overrides = &placement.layout.overrides;
    RunReport {
        n_ctx: p.n_ctx,
        n_ctx_seq: p.n_ctx_seq,
        n_batch: p.n_batch,
        n_ubatch: p.n_ubatch,
        n_seq_max: p.n_seq_max,
        n_outputs: p.n_outputs_max,
        flash_attention: p.flash_attn,
        type_k: p.type_k.to_string(),
        type_v: p.type_v.to_string(),
        n_gpu_layers: placement.breakdown.layers.iter().flatten().count() as u64,
        pipeline_copies: placement.breakdown.pipeline_copies,
        kv_unified: p.kv_unified,
        swa_full: p.swa_full,
        offload_kqv: p.offload_kqv,
        op_offload: p.op_offload,
        mmap: placement.run.use_mmap,
        embeddings: p.embeddings,
        pooling: p.pooling.name().to_string(),
        tensor_split: placement.layout.tensor_split.clone(),
        split_mode: match one_gpu {
            true => SplitWord::None,
            false if placement.layout.split_tensors => SplitWord::Tensor,
            false => SplitWord::Layer,
        },
        main_gpu: main_gpu.unwrap_or(pinned.main_gpu.unwrap_or(0) as u64),
        overrides: overrides
            .iter()
            .map(|o| OverrideReport {
                pattern: o.pattern.as_str().to_string(),
                buffer: buffer(placement, o.buffer),
            })
            .collect(),
        layout: match policy.mode {
            LayoutMode::Best => LayoutWord::Best,
            LayoutMode::Engine => LayoutWord::Engine,
        },
        prefer: match policy.prefer {
            Prefer::MostFree => PreferWord::MostFree,
            Prefer::First => PreferWord::First,
            Prefer::Last => PreferWord::Last,
            Prefer::Tightest => PreferWord::Tightest,
        },
    }
}

fn buffer(placement: &Placement, buffer: BufferType) -> String {
    let Some(index) = buffer.device_index() else {
        return "CPU".to_string();
    };
    cuda(
        placement
            .layout_devices
            .get(index)
            .copied()
            .unwrap_or(index),
    )
}

impl From<&Rejected> for RejectedReport {
    fn from(rejected: &Rejected) -> RejectedReport {
        RejectedReport {
            option: rejected.option.clone(),
            shortfalls: rejected
                .shortfalls
                .iter()
                .map(|s| ShortfallReport {
                    device: cuda(s.device),
                    required_bytes: s.required_bytes,
                    free_bytes: s.free_bytes,
                    missing_bytes: s.missing_bytes(),
                })
                .collect(),
            reason: rejected.reason.clone(),
            fixes: rejected
                .fixes
                .iter()
                .map(|fix| FixReport {
                    flags: fix.flags.clone(),
                    text: fix.text.clone(),
                })
                .collect(),
        }
    }
}
