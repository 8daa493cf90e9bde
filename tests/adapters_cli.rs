//! `estimate --lora` and `--control-vector`, through the real binary.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // tests read files and may panic
#![allow(dead_code)] // of the shared module a part

#[path = "common/adapters.rs"]
mod adapters;

use adapters::Rule;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use vramfit_arch::Model;
use vramfit_ggml::Type;
use vramfit_gguf::{Header, Writer};

const LLAMA: &str = "llama-3.2-1b.Q4_K_M.gguf";
const QWEN: &str = "qwen3-8b.Q4_K_M.gguf";

fn fixture(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../fixtures/gguf/{model}"))
}

/// An adapter of the small Llama.
fn adapter(folder: &Path) -> PathBuf {
    let model = Model::load(&Header::open(fixture(LLAMA)).unwrap()).unwrap();
    let rule = Rule::read("rank=16,type=f16,targets=attn").unwrap();
    let path = folder.join("adapter.gguf");
    std::fs::write(&path, rule.header(&model)).unwrap();
    path
}

fn estimate(model: &str, lora: &Path, flags: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_estimate"));
    command.env_clear().arg(fixture(model)).arg("--lora");
    let command = command.arg(lora).args(flags);
    command.args(["--gpus", "k80"]).output().unwrap()
}

#[test]
fn json_says_what_adapters_take() {
    let folder = tempfile::tempdir().unwrap();
    let answer = estimate(LLAMA, &adapter(folder.path()), &["--json", "-ngl", "99"]);
    let json: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
    let text = String::from_utf8_lossy(&answer.stderr);
    assert!(answer.status.success(), "{text}");
    let devices = json["devices"].as_array().unwrap();
    let bytes: u64 = devices
        .iter()
        .filter_map(|device| device["adapter_bytes"].as_u64())
        .sum();
    // Q and the output matrix 2048 x 2048, K and V 2048 x 512; 16 layers, rank 16, f16.
    assert_eq!(bytes, 16 * 16 * 2 * (2 * (2048 + 2048) + 2 * (2048 + 512)));
}

/// llama-server loads them in the order of its command line, whichever flag names them.
#[test]
fn adapters_stay_in_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = adapter(folder.path());
    let scaled = format!("{}:0.5", path.display());
    let again = format!("{0},{0}", path.display());
    let flags = ["--lora-scaled", &scaled, "--lora", &again, "--json"];
    let answer = estimate(LLAMA, &path, &flags);
    let json: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
    let words = json["command"].as_array().unwrap().iter();
    let words: Vec<&str> = words.filter_map(serde_json::Value::as_str).collect();
    let at = words.iter().position(|word| *word == "--lora").unwrap();
    let first = path.to_str().unwrap();
    let expected = ["--lora", first, "--lora-scaled", &scaled, "--lora", &again];
    assert_eq!(words[at..at + 6], expected);
}

#[test]
fn an_adapter_of_another_model_is_one_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let answer = estimate(QWEN, &adapter(folder.path()), &[]);
    let text = String::from_utf8_lossy(&answer.stderr);
    assert_eq!(answer.status.code(), Some(2), "{text}");
    assert!(answer.stdout.is_empty());
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    for word in ["adapter.gguf", "llama", "qwen3"] {
        assert!(text.contains(word), "{text}");
    }
}

/// A control vector of `n` directions of the small Llama's width.
fn control_vector(folder: &Path, n: usize) -> PathBuf {
    let mut writer = Writer::new();
    writer.key("general.architecture", "controlvector").unwrap();
    for il in 1..=n {
        writer.tensor(&format!("direction.{il}"), Type::F32, &[2048]);
    }
    let path = folder.join("vector.gguf");
    std::fs::write(&path, writer.finish().unwrap()).unwrap();
    path
}

fn controlled(vector: &Path, flags: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_estimate"));
    let command = command.env_clear().arg(fixture(LLAMA));
    let command = command.arg("--control-vector").arg(vector).args(flags);
    command.args(["--gpus", "k80"]).output().unwrap()
}

#[test]
fn a_control_vector_is_kept_for_every_layer_and_added_behind_a_range() {
    let folder = tempfile::tempdir().unwrap();
    let vector = control_vector(folder.path(), 15);
    let range = ["--control-vector-layer-range", "3", "9"];
    for flags in [&range[..], &[]] {
        let answer = controlled(&vector, &[flags, &["--json", "-ngl", "99"]].concat());
        let json: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
        // llama_adapter_cvec::init: a row of n_embd floats a layer, none for the first
        assert_eq!(json["devices"][0]["adapter_bytes"], 15 * 2048 * 4);
        let shown = json["command"].to_string();
        assert_eq!(shown.contains(range[0]), !flags.is_empty(), "{shown}");
    }
    let check = |flags: &[&str], vector: &Path, code: i32, word: &str| {
        let answer = controlled(vector, flags);
        let text = String::from_utf8_lossy(&answer.stderr);
        assert_eq!(answer.status.code(), Some(code), "{text}");
        assert!(text.contains(word), "{text}");
    };
    check(
        &["--control-vector-layer-range", "3"],
        &vector,
        2,
        "--control-vector-layer-range",
    );
    check(
        &["--control-vector-layer-range", "a", "9"],
        &vector,
        2,
        "'a' is no layer",
    );
    let empty = control_vector(folder.path(), 0);
    check(&[], &empty, 2, "no control vector");
}
