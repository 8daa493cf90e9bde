//! A placement as llama-server's arguments.

use crate::fit::{HostExperts, NO_COPIES, Problem, Scored};
use crate::{Override, OverrideTarget, SplitMode};
use vramfit_arch::CpuRepack;
use vramfit_estimate::{FlashAttention, RunConfig};
use vramfit_ggml::Type;

/// Collects arguments.
#[derive(Default)]
struct Args(Vec<String>);

impl Args {
    fn value(&mut self, flag: &str, value: impl ToString) {
        self.0.extend([flag.to_string(), value.to_string()]);
    }

    fn switch(&mut self, flag: &str, given: bool) {
        if given {
            self.0.push(flag.to_string());
        }
    }
}

/// Arguments for llama-server, behind `-m MODEL`, that reproduce `scored`.
pub(crate) fn flags(problem: &Problem, scored: &Scored) -> Vec<String> {
    let mut args = Args::default();
    run_flags(&mut args, problem);
    layout_flags(&mut args, problem, scored);
    override_flags(&mut args, problem, scored);
    // Nothing is left for llama.cpp to change.
    args.value("--fit", "off");
    args.0
}

fn run_flags(args: &mut Args, problem: &Problem) {
    let run: &RunConfig = problem.run;
    let n_ctx_train = problem.model.hparams.n_ctx_train;
    args.value(
        "-c",
        if run.n_ctx == 0 {
            n_ctx_train
        } else {
            i64::from(run.n_ctx)
        },
    );
    args.value("-b", run.n_batch);
    args.value("-ub", run.n_ubatch);
    args.value("-np", run.n_seq_max.max(1));
    args.switch("-kvu", run.kv_unified);
    args.switch("-no-kvu", !run.kv_unified && run.n_seq_max > 1);
    args.value("-fa", flash_attention(run.flash_attention));
    let cache = [("-ctk", run.type_k), ("-ctv", run.type_v)];
    for (flag, ty) in cache.into_iter().filter(|(_, ty)| *ty != Type::F16) {
        args.value(flag, ty.name());
    }
    args.switch("-nkvo", !run.offload_kqv);
    args.switch("--swa-full", run.swa_full);
    if !run.use_mmap {
        args.value("-lm", "none");
    }
    args.switch("--no-host", !run.pinned_host);
    args.switch("--no-repack", run.cpu_repack == CpuRepack::Off);
    args.switch("--no-op-offload", !run.op_offload);
    args.switch("--embeddings", run.embeddings);
    if let Some(pooling) = run.pooling {
        args.value("--pooling", pooling.name());
    }
}

/// As `-fa` takes it.
pub(crate) fn flash_attention(setting: FlashAttention) -> &'static str {
    match setting {
        FlashAttention::Auto => "auto",
        FlashAttention::On => "on",
        FlashAttention::Off => "off",
    }
}

fn layout_flags(args: &mut Args, problem: &Problem, scored: &Scored) {
    let candidate = &scored.candidate;
    let n = problem.n_placements();
    if candidate.listed.is_empty() {
        args.value("-ngl", 0);
        args.value("-dev", "none");
        return;
    }
    args.value("-ngl", candidate.n_gpu_layers.map_or(n as u64, u64::from));
    let devices: Vec<String> = candidate
        .listed
        .iter()
        .map(|d| format!("CUDA{d}"))
        .collect();
    args.value("-dev", devices.join(","));
    let pinned = &problem.policy.pinned;
    if scored.layout.split_tensors {
        args.value("-sm", "tensor");
    } else if let Some(main) = candidate.main {
        args.value("-sm", "none");
        args.value("-mg", main);
    } else if candidate.listed.len() > 1 || pinned.split_mode == Some(SplitMode::Layer) {
        args.value("-sm", "layer");
        if let Some(main) = pinned.main_gpu {
            args.value("-mg", main);
        }
    }
    let shares = shares_of(problem, scored);
    if !shares.is_empty() {
        let shares: Vec<String> = shares.iter().map(f32::to_string).collect();
        args.value("-ts", shares.join(","));
    }
}

/// What `-ts` says, for the model and for a draft beside it; empty where it is not given.
pub(crate) fn shares_of(problem: &Problem, scored: &Scored) -> Vec<f32> {
    match problem.policy.pinned.shares() {
        Some(given) => given.to_vec(),
        None if scored.layout.split_tensors => Vec::new(),
        None if scored.candidate.used().len() > 1 => shares(scored),
        None => Vec::new(),
    }
}

/// The counts of layers: whole numbers that llama.cpp turns into just these counts.
fn shares(scored: &Scored) -> Vec<f32> {
    let counts = (0..scored.layout.devices.len()).map(|i| scored.breakdown.layers_on(i).len());
    let counts: Vec<f32> = counts.map(|c| c as f32).collect();
    if counts.iter().all(|&c| c == 0.0) {
        Vec::new()
    } else {
        counts
    }
}

fn override_flags(args: &mut Args, problem: &Problem, scored: &Scored) {
    let pinned = &problem.policy.pinned;
    let (before, behind) = pinned.around_experts();
    let experts = args_of_experts(problem, scored);
    let tensor_overrides = |args: &mut Args, given: &[Override], more: Option<String>| {
        let entries: Vec<String> = given.iter().map(override_entry).chain(more).collect();
        if !entries.is_empty() {
            args.value("-ot", entries.join(","));
        }
    };
    let no_copies = scored
        .candidate
        .no_copies
        .then(|| format!("{NO_COPIES}=CPU"));
    if experts.0.is_empty() {
        tensor_overrides(args, &pinned.overrides, no_copies);
        return;
    }
    tensor_overrides(args, before, None);
    args.0.extend(experts.0);
    tensor_overrides(args, behind, no_copies);
}

/// `-cmoe` and `-ncmoe`, given or found.
fn args_of_experts(problem: &Problem, scored: &Scored) -> Args {
    let pinned = &problem.policy.pinned;
    let mut args = Args::default();
    let experts = scored.candidate.host_experts;
    args.switch("-cmoe", pinned.cpu_moe || experts == HostExperts::All);
    let searched = match experts {
        HostExperts::First(n) => Some(n as u32),
        _ => None,
    };
    if let Some(n) = pinned.n_cpu_moe.max(searched) {
        args.value("-ncmoe", n);
    }
    args
}

fn override_entry(o: &Override) -> String {
    match o.target {
        OverrideTarget::Host => format!("{}=CPU", o.pattern.as_str()),
        OverrideTarget::Device(d) => format!("{}=CUDA{d}", o.pattern.as_str()),
    }
}
