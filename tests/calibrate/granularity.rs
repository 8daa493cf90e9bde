//! A driver that gives memory in pages of 2 MiB, as real ones do: what it rounds a model's buffers up by is the model's, and
//! what is learned of one model is right for the next.

use serde_json::Value;

use super::stand_in::{Part, script};
use super::{MIB, MODULES, Stage, answer, fixture};

const CARD: &str = "RTX 3090:24GiB:8.6:sms=82:context=260MiB";
const FLAGS: [&str; 6] = ["-fa", "off", "-c", "2048", "-ngl", "99"];
/// Of as many families, dense, with experts, with windows, recurrent and both.
const MODELS: [&str; 14] = [
    "qwen2.5-0.5b.Q4_K_M",
    "llama-3.2-1b.Q4_K_M",
    "gemma-3-4b.Q8_0",
    "gemma-2-9b.Q4_K_M",
    "phi-4.Q4_K_M",
    "qwen3-8b.Q4_K_M",
    "falcon-7b.Q4_K_M",
    "starcoder2-7b.Q4_K_M",
    "glm-4-9b.Q4_K_M",
    "granite-3.1-8b.Q4_K_M",
    "olmo2-7b.Q4_K_M",
    "smollm3-3b.Q4_K_M",
    "mamba-2.8b.Q4_K_M",
    "lfm2-1.2b.Q4_K_M",
];

struct Row {
    planned: u64,
    low: u64,
    high: u64,
    measured: u64,
}

fn bytes(of: &Value, key: &str) -> u64 {
    of[key].as_u64().unwrap_or_else(|| panic!("{key}: {of}"))
}

/// What is predicted of `model` with what the models before it taught, and what it takes.
fn calibrate(stage: &Stage, card: &str, name: &str) -> Row {
    let model = fixture(&format!("gguf/{name}.gguf"));
    let model = model.to_str().unwrap();
    let mut plan = stage.command_on(card, &[model, "--json"]);
    let plan = answer(plan.args(FLAGS));
    let plan: Value = serde_json::from_str(&plan.out).unwrap();
    let device = &plan["devices"][0];
    let of = |key: &str| bytes(device, &format!("{key}_bytes"));
    let part = Part {
        devices: vec![[
            of("model"),
            of("context"),
            of("compute"),
            of("runtime"),
            MODULES,
        ]],
        prompt: 2044,
        ..Part::default()
    };
    let engine = script(stage.folder.path(), "llama-server", &part);
    let arguments = ["calibrate", model, "--json", "--engine"];
    let mut run = stage.command_on(card, &arguments);
    let run = answer(run.arg(engine).args(FLAGS));
    assert_eq!(run.code, Some(0), "{name}: {}{}", run.out, run.err);
    let json: Value = serde_json::from_str(&run.out).unwrap();
    let device = &json["comparison"]["devices"][0];
    assert_eq!(device["buffers_agree"], true, "{name}");
    let measured = bytes(&device["measured"], "peak_bytes");
    let predicted = &device["predicted"];
    let own: u64 = ["model", "context", "compute", "pool", "workspace"]
        .map(|term| bytes(predicted, &format!("{term}_bytes")))
        .iter()
        .sum();
    Row {
        planned: of("required"),
        low: own + bytes(predicted, "overhead_low_bytes"),
        high: own + bytes(predicted, "overhead_bytes"),
        measured,
    }
}

#[test]
fn what_is_learned_of_one_model_is_never_too_little_for_another() {
    for granularity in ["2MiB", "1MiB", "64KiB", "1"] {
        let stage = Stage::new();
        let card = format!("{CARD}:granularity={granularity}");
        let all = if granularity == "2MiB" {
            &MODELS[..]
        } else {
            &MODELS[..4]
        };
        for (n, name) in all.iter().enumerate() {
            let row = calibrate(&stage, &card, name);
            if n == 0 {
                continue; // nothing is learned yet
            }
            let shown = |bytes: u64| bytes as f64 / MIB as f64;
            let interval = format!(
                "{name}, {granularity}: {:.2} to {:.2} MiB, planned {:.2}, measured {:.2}",
                shown(row.low),
                shown(row.high),
                shown(row.planned),
                shown(row.measured)
            );
            println!("{interval}");
            assert!(
                row.low <= row.measured && row.measured <= row.high,
                "{interval}"
            );
            assert!(row.measured <= row.planned, "{interval}");
            // four buffers and what was learned, less than 2 MiB each
            assert!(row.high - row.low < 16 * MIB, "{interval}");
            assert!(row.planned - row.measured < 24 * MIB, "{interval}");
        }
    }
}
