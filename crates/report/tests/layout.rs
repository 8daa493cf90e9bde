//! The text of one placement, made by hand, at several widths. The expected texts are written by hand
//! too, never taken from the output.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use vramfit_arch::Model;
use vramfit_estimate::{
    EngineProfile, Layout, LayoutDevice, MemoryBytes, PassStats, RunConfig, Runtime,
};
use vramfit_ggml::ComputeCapability;
use vramfit_plan::{
    Allowance, Device, DevicePlacement, Fix, Placement, Policy, Rejected, Shortfall, Verdict, plan,
};
use vramfit_report::{Estimate, Style, Subject, VerdictWord, estimate_text, summary_line};

const MIB: u64 = 1 << 20;

fn model() -> Model {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures/gguf/gemma-3-12b.Q4_K_M.gguf");
    Model::load(&vramfit_gguf::Header::open(path).unwrap()).unwrap()
}

fn card(free_mib: u64) -> Device {
    Device {
        name: "Card".to_string(),
        total_bytes: 4096 * MIB,
        free_bytes: free_mib * MIB,
        compute_capability: ComputeCapability(860),
        sm_count: Some(10),
        integrated: false,
        pool: Default::default(),
        overhead: Allowance::new(192 * MIB, "measured"),
    }
}

/// Everything on the first of two cards.
fn placement(model: &Model) -> Placement {
    let run = RunConfig::default();
    let memory = MemoryBytes {
        model: 2048 * MIB,
        context: 512 * MIB,
        compute: 256 * MIB,
        ..MemoryBytes::default()
    };
    let host = MemoryBytes {
        model: 128 * MIB,
        context: 0,
        compute: 16 * MIB + MIB / 2,
        ..MemoryBytes::default()
    };
    let mut used = DevicePlacement::unused(0, 4096 * MIB);
    used.layers = (0..=48).collect();
    used.memory = memory;
    used.runtime_bytes = 64 * MIB;
    used.overhead_bytes = 192 * MIB;
    used.required_bytes = 3072 * MIB;
    used.headroom_bytes = 1024 * MIB as i64;
    let mut rejected = Rejected::new(
        "all 49 layers on CUDA1 alone".to_string(),
        vec![Shortfall {
            device: 1,
            required_bytes: 3584 * MIB,
            free_bytes: 3072 * MIB,
        }],
        None,
    );
    rejected.fixes.push(Fix {
        flags: vec!["-c".to_string(), "2048".to_string()],
        text: "half the context".to_string(),
    });
    let flags = "-c 4096 -np 1 -ngl 49 -dev CUDA0 --fit off";
    // A real one's frame, every figure of which is replaced.
    let engine = EngineProfile::LLAMA_CPP_V0_5_0;
    let gpus = [card(65536), card(3072)];
    let mut placement = plan(model, &run, &gpus, &Policy::default(), &engine).unwrap();
    placement.verdict = Verdict::Fits;
    placement.devices = vec![used, DevicePlacement::unused(1, 3072 * MIB)];
    placement.host = host;
    placement.host_layers = Vec::new();
    placement.breakdown.pipeline_copies = 1;
    placement.breakdown.devices = vec![memory];
    placement.breakdown.runtime = vec![Runtime::default()];
    placement.breakdown.host = host;
    placement.breakdown.host_repacked_bytes = 0;
    placement.breakdown.layers = vec![Some(0); 49];
    placement.breakdown.passes = [PassStats::default(); 2];
    placement.layout = Layout {
        devices: vec![LayoutDevice {
            sm_count: Some(10),
            ..LayoutDevice::new(ComputeCapability(860))
        }],
        ..Layout::default()
    };
    placement.layout_devices = vec![0];
    placement.flags = flags.split(' ').map(str::to_string).collect();
    placement.rejected = vec![rejected];
    placement.notes = vec!["a note".to_string()];
    placement.n_estimates = 1;
    placement
}

fn estimate() -> Estimate {
    let model = model();
    let subject = Subject {
        path: Path::new("models/model.gguf"),
        model: &model,
        devices: &[card(4096), card(3072)],
        policy: &Policy::default(),
        engine: &EngineProfile::LLAMA_CPP_V0_5_0,
        gpus: &["two cards".to_string()],
        adapters: &[],
        notes: &["first".to_string()],
    };
    Estimate::new(&subject, &placement(&model))
}

fn check(estimate: &Estimate, width: usize, expected: &str) {
    let text = estimate_text(estimate, &Style::new(width, false));
    assert_eq!(text, expected, "at {width} columns:\n{text}");
    for line in text.lines() {
        assert!(line.chars().count() <= width, "{line}");
    }
}

#[test]
fn a_table_at_80_columns() {
    let expected = "\
Fits: all 49 layers on CUDA0, 1.00 GiB to spare; CUDA1 stays empty

model.gguf · gemma3 · 48 blocks · 11.77 B parameters · 6.79 GiB
n_ctx 4096 · 1 sequence · batch 2048/512 · KV f16 · flash attention on
two cards

MiB    layers  weights      KV  compute      CUDA    total     free  headroom
                 exact   exact    exact  modelled
CUDA0      49  2048.00  512.00   256.00    256.00  3072.00  4096.00   1024.00
       █████████████████████▓▓▓▓▓▒▒░░··········   75%  Card, layers 0-47, output
CUDA1       -        -       -        -         -        -  3072.00   3072.00
       ××××××××××······························   25%  Card, not used
host        -   128.00       -    16.50         -   144.50        -         -
       × in use already  █ weights  ▓ KV  ▒ compute  ░ CUDA  · free

llama-server -m models/model.gguf -c 4096 -np 1 -ngl 49 -dev CUDA0 --fit off

Why not otherwise
- all 49 layers on CUDA1 alone: CUDA1 is short of 512.00 MiB (3584 of 3072 MiB)
  → -c 2048: half the context

Notes
- first
- a note
- CUDA on CUDA0: 192.00 MiB of its own (measured), up to 64.00 MiB of runtime
  pool while it computes
";
    check(&estimate(), 80, expected);
}

#[test]
fn a_list_at_40_columns() {
    let expected = "\
Fits: all 49 layers on CUDA0, 1.00 GiB
to spare; CUDA1 stays empty

model.gguf · gemma3 · 48 blocks
  11.77 B parameters · 6.79 GiB
n_ctx 4096 · 1 sequence · batch 2048/512
  KV f16 · flash attention on
two cards

CUDA0  Card
  layers 0-47, output
  weights  2048.00 MiB exact
  KV        512.00 MiB exact
  compute   256.00 MiB exact
  CUDA      256.00 MiB modelled
  total    3072.00 MiB
  free     4096.00 MiB
  headroom 1024.00 MiB
  ████████████████▓▓▓▒░·······
CUDA1  Card
  free     3072.00 MiB
  headroom 3072.00 MiB
  ×××××××·······················
host  host memory
  weights   128.00 MiB exact
  compute    16.50 MiB exact
  total     144.50 MiB
  × in use already  █ weights  ▓ KV
  ▒ compute  ░ CUDA  · free

llama-server -m models/model.gguf \\
  -c 4096 -np 1 -ngl 49 -dev CUDA0 \\
  --fit off

Why not otherwise
- all 49 layers on CUDA1 alone: CUDA1 is
  short of 512.00 MiB (3584 of 3072 MiB)
  → -c 2048: half the context

Notes
- first
- a note
- CUDA on CUDA0: 192.00 MiB of its own
  (measured), up to 64.00 MiB of runtime
  pool while it computes
";
    // 30 cells: 15 weights and what the others leave, 3 KV, 1 compute, 1 CUDA, 7 free
    let expected = expected.replace(
        "  ████████████████▓▓▓▒░·······\n",
        &format!("  {}▓▓▓▒░·······\n", "█".repeat(18)),
    );
    check(&estimate(), 40, &expected);
}

#[test]
fn no_width_breaks_it() {
    let mut estimate = estimate();
    estimate.devices[0].headroom_bytes = Some(-1);
    estimate.devices[0].required_bytes = u64::MAX;
    estimate.devices[0].model_bytes = u64::MAX;
    estimate.devices[1].name = "a name that is far longer than any terminal is wide ".repeat(4);
    estimate.model.name = Some("\u{1b}[31mred\n".to_string());
    for verdict in [
        VerdictWord::Fits,
        VerdictWord::Partial,
        VerdictWord::DoesNotFit,
    ] {
        estimate.verdict = verdict;
        for width in 0..200 {
            let text = estimate_text(&estimate, &Style::new(width, false));
            assert!(text.ends_with('\n') && !text.contains('\u{1b}'));
        }
    }
}

#[test]
fn colours_are_all_that_colour_adds() {
    let estimate = estimate();
    let codes = regex::Regex::new("\u{1b}\\[[0-9;]*m").unwrap();
    for width in [40, 80] {
        let plain = estimate_text(&estimate, &Style::new(width, false));
        let color = estimate_text(&estimate, &Style::new(width, true));
        assert!(color.contains("\u{1b}["));
        assert_eq!(codes.replace_all(&color, ""), plain);
    }
}

#[test]
fn empty_gpus_of_one_kind_share_a_row() {
    let mut estimate = estimate();
    let host = estimate.devices.pop().unwrap();
    for i in 2..8 {
        let mut device = estimate.devices[1].clone();
        device.id = format!("CUDA{i}");
        estimate.devices.push(device);
    }
    estimate.devices.push(host);
    let text = estimate_text(&estimate, &Style::default());
    assert!(text.starts_with("Fits: all 49 layers on CUDA0"), "{text}");
    assert!(text.contains("; CUDA1 to CUDA7 stay empty"), "{text}");
    assert_eq!(text.matches("\nCUDA1-7 ").count(), 1, "{text}");
    assert!(text.contains("7 x "), "{text}");
    // one that has less free has a row of its own
    estimate.devices[4].free_bytes = Some(MIB);
    let text = estimate_text(&estimate, &Style::default());
    for id in ["CUDA1-3 ", "CUDA4 ", "CUDA5-7 "] {
        assert_eq!(text.matches(&format!("\n{id}")).count(), 1, "{text}");
    }
}

#[test]
fn one_line_a_model() {
    let style = Style::default();
    let line = summary_line("model.gguf", Ok(&estimate()), &style);
    assert_eq!(
        line,
        "fits            49/49    3072.0         -     144.5  model.gguf\n"
    );
    let line = summary_line("bad.gguf", Err("bad.gguf: cut\noff"), &style);
    assert_eq!(line, "error        bad.gguf: cut?off\n");
}

#[test]
fn json_holds_the_same_numbers() {
    let json = serde_json::to_value(estimate()).unwrap();
    assert_eq!(json["schema"], "vramfit.estimate/1");
    assert_eq!(json["verdict"], "fits");
    assert_eq!(json["model"]["n_layer"], 48);
    assert_eq!(json["run"]["n_gpu_layers"], 49);
    let device = &json["devices"][0];
    assert_eq!(device["required_bytes"], 3072 * MIB);
    assert_eq!(device["layers"][48], 48);
    assert_eq!(device["certainty"]["runtime"], "modelled");
    let host = &json["devices"][2];
    assert_eq!(host["id"], "host");
    assert!(host["free_bytes"].is_null() && host["headroom_bytes"].is_null());
    assert_eq!(json["command"][2], "models/model.gguf");
    assert_eq!(
        json["rejected"][0]["shortfalls"][0]["missing_bytes"],
        512 * MIB
    );
    assert_eq!(json["notes"], serde_json::json!(["first", "a note"]));
    let read: Estimate = serde_json::from_value(json).unwrap();
    assert_eq!(read, estimate());
}
