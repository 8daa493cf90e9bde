//! Placements: what the issue asks for, brute force over all splits of small cases, and the fit test
//! and the flags checked by code that shares nothing with the search.

#![allow(clippy::unwrap_used)] // also in what the tests share

mod common;

#[path = "plan/any.rs"]
mod any;
#[path = "plan/attention.rs"]
mod attention;
#[path = "plan/brute.rs"]
mod brute;
#[path = "plan/given.rs"]
mod given;

use common::truth::{Row, Status};
use proptest::prelude::*;
use regex::Regex;
use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex};
use vramfit_arch::{Model, TensorOverride};
use vramfit_estimate::{
    Breakdown, EngineProfile, Error, FlashAttention, Layout, LayoutDevice, RunConfig,
};
use vramfit_ggml::cuda::PoolKind;
use vramfit_ggml::{BufferType, ComputeCapability, Type};
use vramfit_gguf::Header;
use vramfit_plan::{
    Allowance, Device, LayoutMode, Override, OverrideTarget, Placement, Policy, Prefer, SplitMode,
    Verdict, plan,
};

const PROFILE: EngineProfile = EngineProfile::LLAMA_CPP_V0_5_0;
const MIB: u64 = 1 << 20;
/// CUDA's own memory on every GPU here: measured on a K80.
const OVERHEAD: u64 = 169 * MIB;
const K80: (u64, &str) = (11_441, "3.7");

fn model(name: &str) -> &'static Model {
    static MODELS: LazyLock<Mutex<BTreeMap<String, &'static Model>>> =
        LazyLock::new(Mutex::default);
    let mut models = MODELS.lock().unwrap();
    models.entry(name.to_string()).or_insert_with(|| {
        let header = Header::open(common::fixture(&format!("gguf/{name}.gguf"))).unwrap();
        Box::leak(Box::new(Model::load(&header).unwrap()))
    })
}

fn device(free_bytes: u64, cc: &str) -> Device {
    Device {
        name: format!("GPU with {free_bytes} bytes"),
        total_bytes: free_bytes,
        free_bytes,
        compute_capability: cc.parse().unwrap(),
        sm_count: None,
        integrated: false,
        pool: Default::default(),
        overhead: Allowance::new(OVERHEAD, "K80"),
    }
}

fn devices(gpus: &[(u64, &str)]) -> Vec<Device> {
    gpus.iter()
        .map(|&(mib, cc)| device(mib * MIB, cc))
        .collect()
}

fn run(n_ctx: u32) -> RunConfig {
    let mut run = RunConfig::default();
    run.n_ctx = n_ctx;
    run
}

/// A situation: model, GPUs (MiB, compute capability), settings, policy.
struct Case<'a> {
    model: &'a str,
    gpus: &'a [(u64, &'a str)],
    run: RunConfig,
    policy: Policy,
}

impl<'a> Case<'a> {
    fn new(model: &'a str, gpus: &'a [(u64, &'a str)], n_ctx: u32) -> Case<'a> {
        Case {
            model,
            gpus,
            run: run(n_ctx),
            policy: Policy::default(),
        }
    }

    fn with(mut self, change: impl FnOnce(&mut Policy)) -> Case<'a> {
        change(&mut self.policy);
        self
    }

    fn plan(&self) -> Placement {
        let (model, devices) = (model(self.model), devices(self.gpus));
        let placement = plan(model, &self.run, &devices, &self.policy, &PROFILE).unwrap();
        verify(model, &devices, &placement);
        placement
    }
}

fn layers(placement: &Placement) -> Vec<usize> {
    placement.devices.iter().map(|d| d.layers.len()).collect()
}

fn flags(placement: &Placement) -> String {
    placement.flags.join(" ")
}

/// What a case must come to: the verdict, layers a GPU, and what the flags say.
fn check(case: &Case, verdict: Verdict, counts: &[usize], text: &str) -> Placement {
    let placement = case.plan();
    let got = (placement.verdict, layers(&placement));
    let all = flags(&placement);
    assert_eq!(
        got,
        (verdict, counts.to_vec()),
        "{}: {all}\n{:#?}",
        case.model,
        placement.rejected
    );
    assert!(all.contains(text), "{}: no '{text}' in '{all}'", case.model);
    placement
}

/// From scratch: the bytes of the layout, the fit test on every GPU, and the flags read back as
/// the truth tables' flags are.
fn verify(model: &Model, devices: &[Device], placement: &Placement) {
    let b = Breakdown::estimate(model, &placement.run, &placement.layout, &PROFILE).unwrap();
    assert_eq!(b, placement.breakdown);
    assert_eq!(placement.devices.len(), devices.len());
    for (i, (d, given)) in placement.devices.iter().zip(devices).enumerate() {
        assert_eq!(d.device, i);
        let at = placement.layout_devices.iter().position(|&u| u == i);
        let needed = at.map_or(0, |at| {
            b.devices[at].sum() + b.runtime[at].sum() + given.overhead.bytes
        });
        assert_eq!(d.required_bytes, needed);
        assert_eq!(d.headroom_bytes, given.free_bytes as i64 - needed as i64);
        let on_it = |&il: &usize| at.is_some() && b.layers[il] == at;
        let expected: Vec<usize> = (0..b.layers.len()).filter(on_it).collect();
        assert_eq!(d.layers, expected);
        if placement.verdict != Verdict::DoesNotFit {
            assert!(needed <= given.free_bytes, "{}", flags(placement));
        }
    }
    let n_host = b.layers.iter().filter(|l| l.is_none()).count();
    assert_eq!(placement.host_layers.len(), n_host);
    flags_reproduce(model, devices, placement);
}

/// Reads the flags as those of a truth table's row.
fn flags_reproduce(model: &Model, devices: &[Device], placement: &Placement) {
    let flags = flags(placement)
        .replace(" -no-kvu", " --kv-unified 0")
        .replace(" -kvu", " --kv-unified 1")
        .replace(" -cmoe", " --cpu-moe")
        .replace(" -ncmoe", " --n-cpu-moe");
    let gpu = |d: &Device| {
        let usable = d.free_bytes.saturating_sub(d.overhead.bytes);
        format!("{usable}:{}", d.compute_capability)
    };
    let gpus: Vec<String> = devices.iter().map(gpu).collect();
    let row = Row {
        model: String::new(),
        gpus: if gpus.is_empty() {
            "-".to_string()
        } else {
            gpus.join(",")
        },
        flags,
        status: Status::Ok,
        expected: String::new(),
    };
    let used = row.devices();
    let (mut run, layout) = row.settings(&used, model).unwrap();
    run.outputs = placement.run.outputs;
    let b = Breakdown::estimate(model, &run, &layout, &PROFILE).unwrap();
    let indices: Vec<usize> = used.iter().map(|g| g.index).collect();
    assert_eq!(indices, placement.layout_devices, "{}", row.flags);
    assert_eq!(b.devices, placement.breakdown.devices, "{}", row.flags);
    assert_eq!(b.host, placement.breakdown.host, "{}", row.flags);
    assert_eq!(b.layers, placement.breakdown.layers, "{}", row.flags);
}

#[test]
fn one_k80_die_holds_gemma() {
    // 48 blocks and the output layer are 49 placements
    for (model, n) in [("gemma-3-12b.Q4_K_M", 49), ("gemma-3-4b.Q4_K_M", 35)] {
        let case = Case::new(model, &[K80, K80], 4096);
        let placement = check(&case, Verdict::Fits, &[n, 0], "-dev CUDA0");
        assert_eq!(placement.devices[1].required_bytes, 0);
        assert!(placement.rejected.is_empty());
    }
}

#[test]
fn a_70b_on_a_k80_is_partial_and_says_by_how_much() {
    let placement = Case::new("llama-3.1-70b.Q4_K_M", &[K80, K80], 4096).plan();
    assert_eq!(placement.verdict, Verdict::Partial);
    let [a, b] = layers(&placement)[..] else {
        panic!()
    };
    assert!(a > 0 && b > 0 && a + b < 81);
    // Q4_K_M of 80 layers on 2 x 11441 MiB: 39.6 GiB of weights cannot fit, so both are short
    let all_on = |n: usize| {
        let of = |r: &&vramfit_plan::Rejected| r.shortfalls.len() == n;
        placement.rejected.iter().find(of).unwrap()
    };
    assert_eq!(all_on(1).option, "all 81 layers on CUDA0 alone");
    assert!(all_on(1).shortfalls[0].missing_bytes() > 28 * 1024 * MIB);
    let missing: u64 = all_on(2).shortfalls.iter().map(|s| s.missing_bytes()).sum();
    assert!(missing > 17 * 1024 * MIB, "{missing}");
}

#[test]
fn a_longer_context_changes_the_answer_and_says_why() {
    let case = Case::new("gemma-3-12b.Q4_K_M", &[K80, K80], 131_072);
    let placement = case.plan();
    assert_eq!(placement.verdict, Verdict::Fits);
    let [a, b] = layers(&placement)[..] else {
        panic!()
    };
    assert!(a > 0 && b > 0 && a + b == 49);
    let rejected = &placement.rejected[0];
    assert_eq!(rejected.option, "all 49 layers on CUDA0 alone");
    assert_eq!(rejected.shortfalls.len(), 1);
    assert!(placement.notes[0].contains("131072 tokens the cache takes"));
    // The fix is the largest context of its kind that one die holds.
    let fix = &rejected.fixes[0];
    assert_eq!(fix.flags[0], "-c");
    let n: u32 = fix.flags[1].parse().unwrap();
    for (n_ctx, counts) in [(n, [49, 0]), (n + 1024, [0, 0])] {
        let got = layers(&Case::new("gemma-3-12b.Q4_K_M", &[K80, K80], n_ctx).plan());
        assert_eq!(got[0] == 49, counts[0] == 49, "{n_ctx}");
    }
}

#[test]
fn fixes_hold() {
    let mut checked = 0;
    for (model, mib, n_ctx, n_seq) in [
        ("gemma-3-12b.Q4_K_M", 9_000, 65_536, 1),
        ("qwen2.5-7b.Q4_K_M", 5_000, 16_384, 4),
        ("llama-3.1-8b.Q4_K_M", 5_000, 8_192, 1),
        ("jamba-v0.1.Q4_K_M", 30_400, 4_096, 64),
    ] {
        let mut case = Case::new(model, &[], n_ctx);
        let gpus = [(mib, "8.6")];
        case.gpus = &gpus;
        case.run.n_seq_max = n_seq;
        let placement = case.plan();
        for fix in placement.rejected.iter().flat_map(|r| &r.fixes) {
            if fix.flags.is_empty() {
                continue; // says that nothing helps
            }
            let mut fixed = Case::new(model, &gpus, n_ctx);
            fixed.run = case.run.clone();
            for pair in fix.flags.chunks(2) {
                let (flag, value) = (pair[0].as_str(), pair[1].as_str());
                let run = &mut fixed.run;
                match flag {
                    "-c" => run.n_ctx = value.parse().unwrap(),
                    "-ub" => run.n_ubatch = value.parse().unwrap(),
                    "-np" => run.n_seq_max = value.parse().unwrap(),
                    "-ctk" => run.type_k = Type::from_name(value).unwrap(),
                    "-ctv" => run.type_v = Type::from_name(value).unwrap(),
                    _ => panic!("{flag}"),
                }
            }
            assert_eq!(fixed.plan().verdict, Verdict::Fits, "{model} {fix:?}");
            checked += 1;
        }
    }
    assert!(checked >= 4, "{checked}");
}

#[test]
fn one_gpu_is_preferred_as_asked() {
    // about 5.5 GiB are needed
    let gpus = [
        (8_192, "8.6"),
        (4_096, "8.6"),
        (24_576, "8.6"),
        (24_576, "8.6"),
        (12_288, "8.6"),
    ];
    for (prefer, chosen) in [
        (Prefer::MostFree, 2),
        (Prefer::First, 0),
        (Prefer::Last, 4),
        (Prefer::Tightest, 0),
    ] {
        let case =
            Case::new("llama-3.1-8b.Q4_K_M", &gpus, 4096).with(|policy| policy.prefer = prefer);
        let mut counts = [0; 5];
        counts[chosen] = 33;
        check(
            &case,
            Verdict::Fits,
            &counts,
            &format!("-dev CUDA{chosen} "),
        );
    }
}

#[test]
fn the_fewest_gpus_are_taken() {
    // 39.6 GiB of weights: two of 24 GiB do, three are not needed
    let (small, large) = ((12_288, "8.6"), (24_576, "8.6"));
    let gpus = [small, large, small, large, small];
    let case = Case::new("llama-3.1-70b.Q4_K_M", &gpus, 4096);
    let placement = case.plan();
    assert_eq!(placement.verdict, Verdict::Fits);
    assert_eq!(placement.layout_devices, [1, 3]);
    assert_eq!(layers(&placement).iter().sum::<usize>(), 81);
}

#[test]
fn the_engine_splits_by_free_memory() {
    // 33 placements, 2 : 1 of what CUDA leaves free
    let gpus = [(2 * 8_000 + 169, "8.6"), (8_000 + 169, "8.6")];
    let engine = |p: &mut Policy| p.mode = LayoutMode::Engine;
    let case = Case::new("llama-3.1-8b.Q4_K_M", &gpus, 4096).with(engine);
    check(&case, Verdict::Fits, &[22, 11], "-ts 22,11");
    // all layers, whatever happens
    let case = Case::new("llama-3.1-70b.Q4_K_M", &[K80, K80], 4096).with(engine);
    let placement = check(&case, Verdict::DoesNotFit, &[41, 40], "-ngl 81");
    assert_eq!(placement.rejected[0].shortfalls.len(), 2);
}

/// The engine itself, `oracle run llama-3.1-8b.Q4_K_M.gguf -ngl 99 -c 8192 -ub 512 -fa off --n-outputs 1 --real --decode 8192`: with
/// plenty of memory its legacy pool keeps 2,408,810,752 bytes, and on an 8 GiB GPU (`7.5:sms=28:vmm=0`), which has no room for
/// them beside 6,282,541,440 bytes of buffers, it decodes every token: what is kept goes back to the driver.
#[test]
fn a_legacy_pool_keeps_no_more_than_there_is_room_for() {
    let with = |free_bytes: u64| {
        let mut gpu = device(free_bytes + OVERHEAD, "7.5");
        (gpu.sm_count, gpu.pool) = (Some(28), PoolKind::Legacy);
        let mut run = run(8192);
        run.flash_attention = FlashAttention::Off;
        let model = model("llama-3.1-8b.Q4_K_M");
        plan(model, &run, &[gpu], &Policy::default(), &PROFILE).unwrap()
    };
    let plenty = with(64 << 30);
    assert_eq!(plenty.devices[0].memory.sum(), 6_282_541_440);
    assert!(plenty.devices[0].runtime_bytes >= 2_408_810_752);
    let full = with(8 << 30);
    assert_eq!(
        (full.verdict, full.devices[0].layers.len()),
        (Verdict::Fits, 33)
    );
    assert_eq!(full.devices[0].required_bytes, (8 << 30) + OVERHEAD);
    let says = |placement: &Placement| placement.notes.iter().any(|n| n.contains("which it fills"));
    assert_eq!((says(&plenty), says(&full)), (false, true));
    // less than two of its largest buffers
    let least = plenty.breakdown.runtime[0].pool_least_bytes;
    let short = with(6_282_541_440 + least);
    assert_ne!(
        (short.verdict, short.devices[0].layers.len()),
        (Verdict::Fits, 33)
    );
}

#[test]
fn without_gpus_everything_is_on_the_host() {
    let case = Case::new("qwen2.5-0.5b.Q4_K_M", &[], 4096);
    let placement = check(&case, Verdict::Fits, &[], "-dev none");
    assert_eq!(placement.host_layers.len(), 25);
    // with one that is too small for anything it is not what was asked for
    let case = Case::new("llama-3.1-8b.Q4_K_M", &[(180, "8.6")], 4096);
    check(&case, Verdict::DoesNotFit, &[0], "-dev none");
}

fn to_host(pattern: &str) -> TensorOverride {
    TensorOverride {
        pattern: Regex::new(pattern).unwrap(),
        buffer: BufferType::HOST,
    }
}

#[test]
fn pipeline_copies_are_given_up_before_layers_are() {
    let model = model("llama-3.1-8b.Q4_K_M");
    let layout = |counts: [f32; 2], copies: bool| {
        let mut layout = Layout {
            devices: vec![LayoutDevice::new(ComputeCapability::new(8, 6)); 2],
            n_gpu_layers: Some(33),
            tensor_split: counts.to_vec(),
            overrides: Vec::new(),
            ..Layout::default()
        };
        if !copies {
            layout.overrides = vec![to_host("matches nothing")];
        }
        Breakdown::estimate(model, &run(4096), &layout, &PROFILE).unwrap()
    };
    // Just enough for some split without copies; then no split with copies can do.
    let (with, without) = (layout([17.0, 16.0], true), layout([17.0, 16.0], false));
    let needed = |b: &Breakdown, i: usize| b.devices[i].sum() + b.runtime[i].sum() + OVERHEAD;
    assert!(needed(&with, 0) > needed(&without, 0) && needed(&with, 1) > needed(&without, 1));
    let gpus = [0, 1].map(|i| device(needed(&without, i), "8.6"));
    let placement = plan(model, &run(4096), &gpus, &Policy::default(), &PROFILE).unwrap();
    verify(model, &gpus, &placement);
    assert_eq!(placement.verdict, Verdict::Fits);
    assert!(flags(&placement).contains("-ot no_pipeline_copies=CPU"));
    assert!(
        placement
            .notes
            .iter()
            .any(|n| n.contains("pipeline copies"))
    );
}
