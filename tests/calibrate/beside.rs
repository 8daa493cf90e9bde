//! Calibration with files beside the model, and on some of the machine's GPUs.

use std::path::PathBuf;

use serde_json::Value;
use vramfit_ggml::Type;
use vramfit_gguf::Writer;

use crate::{CONTEXT, FLAGS, MIB, MODEL, MODULES, Stage, answer, fixture};

const DRAFT: &str = "gguf/qwen2.5-0.5b.Q8_0.gguf";
const PROJECTOR: &str = "gguf/mmproj/gemma3.gguf";

fn path(name: &str) -> String {
    fixture(name).to_str().unwrap().to_string()
}

/// An adapter for the model's output of attention, in every layer.
fn adapter(stage: &Stage) -> PathBuf {
    let mut writer = Writer::new();
    for (key, value) in [
        ("general.architecture", "qwen2"),
        ("general.type", "adapter"),
        ("adapter.type", "lora"),
    ] {
        writer.key(key, value).unwrap();
    }
    writer.key("adapter.lora.alpha", 16.0f32).unwrap();
    for il in 0..24 {
        for half in ["lora_a", "lora_b"] {
            let ne = if half == "lora_a" {
                [896, 16]
            } else {
                [16, 896]
            };
            writer.tensor(
                &format!("blk.{il}.attn_output.weight.{half}"),
                Type::F16,
                &ne,
            );
        }
    }
    let path = stage.path("adapter.gguf");
    std::fs::write(&path, writer.finish().unwrap()).unwrap();
    path
}

fn of(device: &Value, keys: &[&str]) -> u64 {
    keys.iter()
        .map(|key| device[format!("{key}_bytes")].as_u64().unwrap())
        .sum()
}

/// Every buffer of everything is taken, one by one: NVML then shows of the process what the plan says, and a bare context.
#[test]
fn all_that_is_planned_is_taken() {
    let stage = Stage::new();
    let lora = adapter(&stage);
    let check = |model: &str, flags: &[&str], kinds: &[&str]| {
        let mut flags = flags.to_vec();
        flags.extend(FLAGS.split(' '));
        let plan = stage.plan(model, &flags);
        let model = path(model);
        let mut run = stage.command(&["calibrate", &model, "--allocate", "--json"]);
        let run = answer(run.args(&flags));
        assert_eq!((run.code, run.err.as_str()), (Some(0), ""), "{}", run.out);
        let json: Value = serde_json::from_str(&run.out).unwrap();
        let planned = plan["devices"].as_array().unwrap();
        let found = json["allocation"]["devices"].as_array().unwrap();
        assert_eq!(found.len(), 2);
        for (planned, found) in planned.iter().zip(found) {
            let required = of(planned, &["required"]) - of(planned, &["overhead"]);
            assert_eq!(
                of(found, &["nvml_process"]),
                required + CONTEXT,
                "{planned}"
            );
        }
        let steps = json["allocation"]["steps"].as_array().unwrap();
        let text = |step: &Value, key: &str| step["step"][key].as_str().unwrap().to_string();
        let first = steps.iter().filter(|s| s["step"]["device"] == 0);
        let order: Vec<String> = first
            .map(|s| format!("{} {}", text(s, "of"), text(s, "what")))
            .collect();
        assert_eq!(order, kinds);
    };
    let own = [
        "model weights",
        "model cache",
        "model compute",
        "model workspace",
        "model pool",
    ];
    check(MODEL, &[], &own);
    let lora = lora.to_str().unwrap();
    let with = [&own[..1], &["model adapter"], &own[1..]].concat();
    check(MODEL, &["--lora", lora], &with);
    // full and sliding windows have caches of their own
    let with = [&own[..1], &["model cache"], &own[1..]].concat();
    let gemma = "gguf/gemma-3-4b.Q4_K_M.gguf";
    check(gemma, &[], &with);
    let beside = ["projector weights", "projector compute"];
    let with = [
        &own[..1],
        &["model cache"],
        &own[1..3],
        &beside,
        &own[3..],
        &["projector pool"],
    ];
    check(gemma, &["--mmproj", &path(PROJECTOR)], &with.concat());
    let draft = path(DRAFT);
    let beside = ["draft weights", "draft cache", "draft compute"];
    let with = [&own[..3], &beside, &own[3..], &["draft pool"]].concat();
    check(
        MODEL,
        &["-md", &draft, "--spec-type", "draft-simple"],
        &with,
    );
}

/// The engine gets the flags of all files, and what it takes and says is held against all of it; nothing is learned, for
/// CUDA's own is a model's by itself.
#[test]
fn drafts_and_projectors_are_compared_and_nothing_is_learned() {
    let stage = Stage::new();
    let (draft, projector) = (path(DRAFT), path(PROJECTOR));
    let flags = [
        "-md",
        &*draft,
        "--spec-type",
        "draft-simple",
        "--mmproj",
        &*projector,
    ];
    let all: Vec<&str> = flags.into_iter().chain(FLAGS.split(' ')).collect();
    let plan = stage.plan(MODEL, &all);
    let without = [&flags[..4], &all[6..]].concat();
    let without = stage.plan(MODEL, &without);
    let devices = &plan["devices"].as_array().unwrap()[..2];
    let kinds = ["model", "context", "compute"];
    let engine = |name: &str, missing: u64| {
        stage.engine(name, |part| {
            part.devices = devices
                .iter()
                .map(|d| {
                    let [model, context, compute] = kinds.map(|kind| of(d, &[kind]));
                    [model, context, compute, of(d, &["runtime"]), MODULES]
                })
                .collect();
            // no picture is sent
            part.devices[0][3] = of(&without["devices"][0], &["runtime"]);
            let draft_of = |d: &Value| {
                let kinds = ["draft", "draft_context", "draft_compute"];
                let [all, context, compute] = kinds.map(|kind| of(d, &[kind]));
                [all - context - compute, context, compute]
            };
            part.draft = devices.iter().map(draft_of).collect();
            part.draft[1][2] -= missing;
            part.projector = [
                of(&devices[0], &["projector"]),
                of(&devices[0], &["projector_compute"]),
            ];
            part.arguments = vec![format!("-md {draft}"), format!("--mmproj {projector}")];
        })
    };
    let run = |engine: &str| {
        let mut run = stage.calibrate(&["--engine", engine, "--json"]);
        let run = answer(run.args(flags));
        let json: Value = serde_json::from_str(&run.out).unwrap();
        let devices = json["comparison"]["devices"].as_array();
        (run, devices.cloned().unwrap_or_default())
    };
    let (answer, found) = run(&engine("all", 0));
    assert_eq!((answer.code, found.len()), (Some(0), 2), "{}", answer.out);
    for device in &found {
        assert_eq!(device["buffers_agree"], true, "{device}");
        assert_eq!(device["residual_bytes"], CONTEXT + MODULES, "{device}");
    }
    assert!(found[0]["idle_bytes"].as_u64().unwrap() > 0);
    assert!(!stage.path("overhead.json").exists());
    let (answer, found) = run(&engine("less", 5 * MIB));
    assert_eq!(answer.code, Some(1));
    assert_eq!(found[1]["buffers_agree"], false, "{}", found[1]);
}

/// The second of two GPUs: for whatever runs there it is the only one.
#[test]
fn some_of_the_gpus_are_measured() {
    let stage = Stage::new();
    let flags = ["-fa", "off", "-c", "2048", "-ngl", "99", "--gpus", "auto:1"];
    let plan = stage.plan(MODEL, &flags);
    let machine = answer(&mut stage.command(&["gpus", "--here", "--json"]));
    let machine: Value = serde_json::from_str(&machine.out).unwrap();
    let uuid = machine["machine"]["devices"][1]["uuid"].as_str().unwrap();
    let engine = stage.engine("llama-server", |part| {
        let device = &plan["devices"][0];
        let kinds = ["model", "context", "compute", "runtime"];
        let [a, b, c, d] = kinds.map(|kind| of(device, &[kind]));
        part.devices = vec![[a, b, c, d, MODULES]];
        part.visible = Some(uuid.to_string());
    });
    let model = path(MODEL);
    let mut run = stage.command(&["calibrate", &model, "--json", "--allocate"]);
    let run = answer(run.args(flags).args(["--engine", &engine]));
    assert_eq!(run.code, Some(0), "{} {}", run.out, run.err);
    let json: Value = serde_json::from_str(&run.out).unwrap();
    let found = &json["comparison"]["devices"][0];
    assert_eq!(found["residual_bytes"], CONTEXT + MODULES);
    assert_eq!(found["measured"]["by"], "process");
    assert_eq!(json["allocation"]["devices"][0]["uuid"], uuid);
    assert!(stage.path("overhead.json").exists());
}
