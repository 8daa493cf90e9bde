//! Through the real binary: what people and programs see of `estimate`.
#![allow(clippy::unwrap_used)]

#[path = "common/adapters.rs"]
#[allow(dead_code)] // a part of it is needed here
mod adapters;
#[path = "common/command.rs"]
mod command;
#[path = "common/schema.rs"]
mod schema;

#[path = "cli/errors.rs"]
mod errors;
#[path = "cli/flags.rs"]
mod flags;
#[path = "cli/unknown.rs"]
mod unknown;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use command::{Answer, answer};
use serde_json::{Value, json};

const GEMMA: &str = "gguf/gemma-3-12b.Q4_K_M.gguf";
const LLAMA_70B: &str = "gguf/llama-3.1-70b.Q4_K_M.gguf";
const MOE: &str = "gguf/qwen3-30b-a3b.Q4_K_M.gguf";

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures")
        .join(path)
}

/// A call, without the environment of whoever runs the tests.
fn estimate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_estimate"));
    command.env_clear().args(arguments);
    command
}

/// `estimate fixtures/MODEL FLAGS`
fn run(model: &str, flags: &str) -> Answer {
    let path = fixture(model);
    answer(estimate(&[path.to_str().unwrap()]).args(flags.split_whitespace()))
}

fn json_of(model: &str, flags: &str) -> Value {
    let answer = run(model, &format!("{flags} --json"));
    assert!(answer.err.is_empty(), "{flags}: {}", answer.err);
    serde_json::from_str(&answer.out).unwrap()
}

/// Exit code 2, nothing printed, one line that says what is wrong.
fn refused(answer: &Answer, expected: &str) {
    assert_eq!(answer.code, 2, "{}{}", answer.out, answer.err);
    assert_eq!(answer.out, "");
    let lines: Vec<&str> = answer.err.lines().collect();
    assert_eq!(lines.len(), 1, "{}", answer.err);
    assert!(lines[0].starts_with("estimate: "), "{}", answer.err);
    assert!(lines[0].contains(expected), "{expected}: {}", answer.err);
}

#[test]
fn one_die_of_a_k80_is_enough_for_gemma() {
    let text = run(GEMMA, "--gpus k80x2");
    assert_eq!(text.code, 0, "{}", text.err);
    let first = text.out.lines().next().unwrap();
    assert!(first.starts_with("Fits: all 49 layers on CUDA0"), "{first}");
    assert!(text.out.contains("k80x2: 2 devices, one board"));
    let one_line = text.out.replace(" \\\n  ", " ");
    assert!(one_line.contains("llama-server -m "), "{one_line}");
    assert!(
        text.out
            .contains("llama-server without -c takes the model's")
    );

    let json = json_of(GEMMA, "--gpus k80x2");
    assert_eq!(json["verdict"], "fits");
    assert_eq!(json["model"]["n_layer"], 48);
    let ids: Vec<&str> = json["devices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| d["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["CUDA0", "CUDA1", "host"]);
    let layers: Vec<usize> = json["devices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| d["layers"].as_array().unwrap().len())
        .collect();
    assert_eq!(layers, [49, 0, 0]);
    assert_eq!(json["devices"][1]["required_bytes"], 0);
    for device in json["devices"].as_array().unwrap() {
        let bytes = |part: &str| device[format!("{part}_bytes")].as_i64().unwrap();
        let parts = ["model", "context", "compute", "runtime", "overhead"];
        let sum: i64 = parts.into_iter().map(bytes).sum();
        assert_eq!(sum, bytes("required"), "{device}");
        if device["id"] != "host" {
            assert_eq!(bytes("headroom"), bytes("free") - sum, "{device}");
        }
    }
}

#[test]
fn too_large_is_partial_and_exit_code_1() {
    let json = json_of(LLAMA_70B, "--gpus k80x2");
    assert_eq!(json["verdict"], "partial");
    assert_eq!(run(LLAMA_70B, "--gpus k80x2").code, 1);
    let on_host = json["devices"][2]["layers"].as_array().unwrap().len() as u64;
    assert_eq!(json["run"]["n_gpu_layers"].as_u64().unwrap() + on_host, 81);
    assert!(!json["rejected"].as_array().unwrap().is_empty());

    let asked = run(LLAMA_70B, "--gpus k80x2 -ngl all --json");
    assert_eq!(asked.code, 1);
    assert!(asked.out.contains("\"does_not_fit\""));
}

/// Settings that differ in kind.
const CASES: [(&str, &str); 14] = [
    (GEMMA, "--gpus k80x2"),
    (GEMMA, "--gpus k80x2 -c 0"),
    (GEMMA, "--gpus none"),
    (GEMMA, "--gpus rtx4090 --layout engine -ngl 10 -nkvo"),
    (
        GEMMA,
        "--gpus k80x2 -c 32768 -np 4 -kvu -ctk q8_0 -ctv q8_0 -fa on --swa-full",
    ),
    (GEMMA, "--gpus 24GiB,12GiB -ts 2,1 -ngl all"),
    (GEMMA, "--gpus k80x2 -dev CUDA1 -fa off -b 512 -ub 256"),
    (GEMMA, "--gpus rtx3060,rtx3060 --prefer last"),
    (LLAMA_70B, "--gpus k80x2,rtx4090"),
    (LLAMA_70B, "--gpus p40x2 --no-op-offload -np 2"),
    (MOE, "--gpus rtx3060"),
    (MOE, "--gpus rtx3060 -cmoe"),
    (MOE, "--gpus rtx3060:free=9GiB -ot ffn_.*_exps=CPU"),
    (
        "gguf/bge-base-en.F16.gguf",
        "--gpus k80 --embeddings --pooling cls",
    ),
];

#[test]
fn json_is_as_its_schema_says() {
    let schema = answer(&mut estimate(&["schema"])).out;
    let schema: Value = serde_json::from_str(&schema).unwrap();
    for (model, flags) in CASES {
        let json = json_of(model, flags);
        let violations = schema::violations(&schema, &json);
        assert_eq!(violations, Vec::<String>::new(), "{model} {flags}");
    }
    // and the checker is not blind
    let mut json = json_of(GEMMA, "--gpus k80");
    json["devices"][0]["model_bytes"] = json!(-1);
    json["verdict"] = json!("perhaps");
    json["new"] = json!(1);
    json["run"].as_object_mut().unwrap().remove("n_ctx");
    let violations = schema::violations(&schema, &json).join("\n");
    for expected in [
        "model_bytes: minimum",
        "$.verdict",
        "$: properties",
        "$.run: required",
    ] {
        assert!(violations.contains(expected), "{expected} in {violations}");
    }

    let explain = answer(&mut estimate(&["schema", "explain"])).out;
    let explain: Value = serde_json::from_str(&explain).unwrap();
    let path = fixture(GEMMA);
    let said =
        answer(estimate(&["explain", path.to_str().unwrap()]).args(["--gpus", "k80", "--json"]));
    let said: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(schema::violations(&explain, &said), Vec::<String>::new());
}

#[test]
fn a_projector_is_counted_on_its_gpu() {
    let projector = fixture("gguf/mmproj/gemma3.gguf");
    let flags = |more: &str| {
        format!(
            "--gpus rtx3060,rtx3060 --mmproj {} {more}",
            projector.display()
        )
    };
    let without = json_of(GEMMA, "--gpus rtx3060,rtx3060");
    let json = json_of(GEMMA, &flags(""));
    let gpu = &json["devices"][0];
    // what cudaMalloc was asked for: fixtures/truth/mmproj-llama.cpp-v0.5.0.tsv
    assert_eq!(gpu["projector_bytes"], 851_227_776 + 127_139_840);
    assert_eq!(gpu["projector_compute_bytes"], 127_139_840);
    assert_eq!(gpu["model_bytes"], without["devices"][0]["model_bytes"]);
    assert_eq!(json["devices"][2]["projector_bytes"], 9_633_792);
    let command = json["command"].as_array().unwrap();
    assert!(command.contains(&json!("--mmproj")));

    let other = json_of(GEMMA, &flags("--mmproj-device CUDA1"));
    assert_eq!(
        other["devices"][1]["projector_bytes"],
        gpu["projector_bytes"]
    );
    assert_eq!(other["devices"][0]["projector_bytes"], 0);
    let host = json_of(GEMMA, &flags("--no-mmproj-offload"));
    assert_eq!(host["devices"][0]["projector_bytes"], 0);
    assert!(host["devices"][2]["projector_bytes"].as_u64() > Some(800_000_000));

    // llama.cpp's handlers run in the order of the command line: the later one counts
    for (order, index, flag) in [
        (
            "--mmproj-device CUDA1 --no-mmproj-offload",
            2,
            "--no-mmproj-offload",
        ),
        (
            "--no-mmproj-offload --mmproj-device CUDA1",
            1,
            "--mmproj-device",
        ),
        ("--mmproj-device none --mmproj-offload", 0, "--mmproj"),
        (
            "--mmproj-offload --mmproj-device none",
            2,
            "--no-mmproj-offload",
        ),
    ] {
        let json = json_of(GEMMA, &flags(order));
        for device in 0..3 {
            let bytes = json["devices"][device]["projector_bytes"].as_u64();
            assert_eq!(bytes > Some(800_000_000), device == index, "{order}");
        }
        let command = json["command"].as_array().unwrap();
        assert!(command.contains(&json!(flag)), "{order}: {command:?}");
    }

    // too large for the GPU of the projector, though the model alone would fit
    let tight = format!(
        "--gpus 9GiB,512MiB -c 4096 --mmproj {}",
        projector.display()
    );
    let tight = run(GEMMA, &format!("{tight} --mmproj-device CUDA1"));
    assert_eq!(tight.code, 1, "{}", tight.out);
    refused(
        &run(GEMMA, &flags("--mmproj-device CUDA7")),
        "none of the GPUs",
    );
    let path = fixture(GEMMA);
    let wrong = run(GEMMA, &format!("--gpus none --mmproj {}", path.display()));
    refused(&wrong, "not of a multimodal projector");
}

#[test]
fn text_fits_the_terminal() {
    for (model, flags) in CASES {
        for width in [40, 60, 80, 132] {
            let text = run(model, &format!("{flags} --width {width}"));
            let words: Vec<&str> = text.out.split_whitespace().collect();
            let longest = words.iter().map(|word| word.chars().count()).max().unwrap();
            for line in text.out.lines() {
                // only a path or a list of shares may be wider
                let n = line.chars().count();
                assert!(n <= width.max(longest + 8), "{width}: {line}");
            }
        }
    }
}

#[test]
fn colour_is_only_where_it_is_wanted() {
    let has_codes = |answer: &Answer| answer.out.contains('\u{1b}');
    assert!(!has_codes(&run(GEMMA, "--gpus k80")));
    assert!(has_codes(&run(GEMMA, "--gpus k80 --color always")));
    let path = fixture(GEMMA);
    let mut command = estimate(&[path.to_str().unwrap(), "--gpus", "k80"]);
    assert!(!has_codes(&answer(command.env("NO_COLOR", "1"))));
    assert!(!has_codes(&run(GEMMA, "--gpus k80 --color always --json")));
}

#[test]
fn explain_lists_the_largest_tensors_first() {
    let path = fixture(GEMMA);
    let arguments = ["explain", path.to_str().unwrap(), "--gpus", "k80x2"];
    let text = answer(&mut estimate(&arguments));
    assert_eq!(text.code, 0, "{}", text.err);
    assert!(
        text.out.starts_with("CUDA0: compute buffer"),
        "{}",
        text.out
    );
    let json = answer(estimate(&arguments).arg("--json"));
    let json: Value = serde_json::from_str(&json.out).unwrap();
    let placed = json_of(GEMMA, "--gpus k80x2");
    let peak = &json["peaks"][0];
    assert_eq!(peak["id"], "CUDA0");
    assert_eq!(peak["compute_bytes"], placed["devices"][0]["compute_bytes"]);
    assert!(peak["unfragmented_bytes"].as_u64() <= peak["compute_bytes"].as_u64());
    // 226 MiB on a K80: a feed-forward matrix of Gemma 3 12B as f32, by cuBLAS in 4 MiB of its own
    let pool = &json["pools"][0];
    assert_eq!(
        (&pool["op"], &pool["is_bound"]),
        (&"MUL_MAT".into(), &false.into())
    );
    assert_eq!(
        pool["source"]["shape"],
        serde_json::json!([3840, 15_360, 1, 1])
    );
    assert_eq!(pool["op_bytes"], 15_360 * 3840 * 4);
    assert_eq!(pool["workspace_bytes"], 4 << 20);
    let runtime = pool["pool_bytes"].as_u64().unwrap() + (4 << 20);
    assert_eq!(runtime, placed["devices"][0]["runtime_bytes"]);
    let sizes: Vec<u64> = peak["alive"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tensor| tensor["bytes"].as_u64().unwrap())
        .collect();
    assert!(sizes.is_sorted_by(|a, b| a >= b) && !sizes.is_empty());
    assert!(sizes.iter().sum::<u64>() <= peak["unfragmented_bytes"].as_u64().unwrap());
}

#[test]
fn a_stripped_model_is_estimated_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("header.gguf");
    let (path, copy) = (fixture(GEMMA), copy.to_str().unwrap());
    let strip = answer(&mut estimate(&[
        "strip",
        path.to_str().unwrap(),
        "-o",
        copy,
    ]));
    assert_eq!(strip.code, 0, "{}", strip.err);
    let devices = |path: &str| -> Value {
        let json = answer(&mut estimate(&[path, "--gpus", "k80x2", "--json"])).out;
        serde_json::from_str::<Value>(&json).unwrap()["devices"].clone()
    };
    assert_eq!(devices(copy), devices(path.to_str().unwrap()));
    let over = answer(&mut estimate(&["strip", copy, "-o", copy]));
    refused(&over, "the model itself");
}

#[test]
fn the_small_commands_answer() {
    let check = |arguments: &[&str], expected: &str| {
        let answer = answer(&mut estimate(arguments));
        assert_eq!((answer.code, answer.err.as_str()), (0, ""), "{arguments:?}");
        assert!(
            answer.out.contains(expected),
            "{arguments:?}: {}",
            answer.out
        );
        assert!(answer.out.ends_with('\n'), "{arguments:?}");
    };
    check(&["--help"], "-ngl, --n-gpu-layers N");
    check(&["--help"], "LLAMA_ARG_CTX_SIZE");
    check(&["-h"], "Exit status");
    check(&["--version"], "llama.cpp v0.5.0");
    check(&["explain", "--help"], "--all");
    for command in ["explain", "compare", "calibrate"] {
        check(
            &[command, "--help"],
            &format!("Usage: estimate {command} MODEL"),
        );
        check(&[command, "--help"], "-ngl, --n-gpu-layers N");
    }
    check(&["calibrate", "--help"], "--engine PATH ");
    check(&["strip", "--help"], "--keep-tokens");
    check(&["gpus", "k80"], "Tesla K80");
    check(&["man"], ".TH estimate");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        check(&["completions", shell], "n-gpu-layers");
    }
    refused(&answer(&mut estimate(&["gpus", "radeon"])), "24GiB");
}

#[test]
fn the_readme_shows_what_is_printed() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let mut command = estimate(&[GEMMA_IN_REPOSITORY, "--gpus", "k80x2", "--width", "80"]);
    let out = answer(command.current_dir(root)).out;
    assert!(
        readme.contains(out.trim_end()),
        "the README's sample is not\n{out}"
    );
}

/// As the README's command names it.
const GEMMA_IN_REPOSITORY: &str = "fixtures/gguf/gemma-3-12b.Q4_K_M.gguf";
