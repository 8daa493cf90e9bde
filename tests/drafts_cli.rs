//! `-md` and `--spec-type` through the program: the figures of the real engine, and the same by settings in JSON.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types
)] // tests read files and may panic

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures")
        .join(path)
}

/// What the program prints, or its error.
fn estimate(model: &str, args: &[&str]) -> Result<Value, String> {
    program(&[], model, args)
}

/// The same of a subcommand.
fn program(subcommand: &[&str], model: &str, args: &[&str]) -> Result<Value, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_estimate"));
    let model = fixture(&format!("gguf/{model}"));
    let command = command.env_clear().args(subcommand).arg(model).args(args);
    let output = command.arg("--json").output().unwrap();
    match output.stdout.is_empty() {
        false => Ok(serde_json::from_slice(&output.stdout).unwrap()),
        true => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

/// A row of the truth table with all layers on the GPUs, as the program is asked for it.
struct Case {
    line: String,
    target: String,
    gpus: Vec<String>,
    args: Vec<String>,
    /// The engine's figures: of the target, of the draft.
    figures: [String; 2],
}

impl Case {
    fn program(&self, subcommand: &[&str]) -> Value {
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        program(subcommand, &self.target, &args).unwrap()
    }
}

/// The first cases of every pair, and the same with `more`.
fn cases(more: &str) -> Vec<Case> {
    let table = fixture("truth/drafts-llama.cpp-v0.5.0.tsv");
    let text = std::fs::read_to_string(table).unwrap();
    let plain = format!("-ngl 99 -c 4096 -fa on -np 2 {more}");
    let case = |line: &str| {
        let columns: Vec<&str> = line.split('\t').collect();
        let [target, draft, gpus, flags, ..] = columns[..] else {
            return None;
        };
        let kind = flags.strip_prefix(&format!("{plain}--n-outputs 8 --spec-type "))?;
        let gpu = |text: &str| {
            let (bytes, cc) = text.split_once(':').unwrap();
            format!("{}GiB:cc={cc}", bytes.parse::<u64>().unwrap() >> 30)
        };
        let gpus: Vec<String> = gpus.split(',').map(gpu).collect();
        let listed = gpus.join(",");
        let mut args = vec!["--gpus", &listed];
        args.extend(plain.split_whitespace().chain(["--spec-type", kind]));
        let draft = fixture(&format!("gguf/{draft}"));
        if draft.is_file() {
            args.extend(["-md", draft.to_str().unwrap()]);
        }
        Some(Case {
            line: line.to_string(),
            target: target.to_string(),
            args: args.into_iter().map(str::to_string).collect(),
            gpus,
            figures: [columns[12], columns[22]].map(str::to_string),
        })
    };
    text.lines().filter_map(case).collect()
}

/// Those with one GPU.
fn on_one_gpu() -> Vec<Case> {
    let mut cases = cases("");
    cases.retain(|case| case.gpus.len() == 1);
    assert!(cases.len() >= 20, "{} pairs", cases.len());
    cases
}

/// `CUDA0=1/2/3` of one context's figures in the truth table.
fn figures(cell: &str, device: &str) -> [u64; 3] {
    let prefix = format!("{device}=");
    let word = cell.split(' ').find_map(|w| w.strip_prefix(&prefix));
    let numbers: Vec<u64> = word
        .unwrap()
        .split('/')
        .map(|n| n.parse().unwrap())
        .collect();
    numbers.try_into().unwrap()
}

/// The first case of every pair: all layers on one GPU.
#[test]
fn the_program_says_what_the_engine_took() {
    for case in on_one_gpu() {
        let json = case.program(&[]);
        let device = &json["devices"][0];
        let number = |key: &str| device[key].as_u64().unwrap();
        let own = ["model_bytes", "context_bytes", "compute_bytes"].map(number);
        assert_eq!(own, figures(&case.figures[0], "CUDA0"), "{}", case.line);
        let [weights, cache, compute] = figures(&case.figures[1], "CUDA0");
        let beside = ["draft_bytes", "draft_context_bytes", "draft_compute_bytes"].map(number);
        let all = [weights + cache + compute, cache, compute];
        assert_eq!(beside, all, "{}", case.line);
    }
}

/// The compute buffers that `explain` takes apart are those that the engine took, for either context.
#[test]
fn explain_has_the_buffers_of_both_contexts() {
    for case in on_one_gpu() {
        let json = case.program(&["explain"]);
        for (is_draft, expected) in [false, true].into_iter().zip(&case.figures) {
            let of_gpu = |entry: &&Value| entry["id"] == "CUDA0" && entry["is_draft"] == is_draft;
            let only = |key: &str| {
                let found: Vec<&Value> = json[key]
                    .as_array()
                    .unwrap()
                    .iter()
                    .filter(of_gpu)
                    .collect();
                assert_eq!(found.len(), 1, "{key} of {}", case.line);
                found[0].clone()
            };
            let [.., compute] = figures(expected, "CUDA0");
            assert_eq!(only("peaks")["compute_bytes"], compute, "{}", case.line);
            only("pools");
        }
    }
}

/// The same with `-sm tensor`: what each of one or two GPUs was asked for by either context.
#[test]
fn drafts_are_shared_out_as_the_engine_does() {
    let cases = cases("-sm tensor ");
    assert!(cases.len() >= 30, "{} cases", cases.len());
    for case in cases {
        let json = case.program(&[]);
        // two GPUs of compute capability 7.0 on have a pipeline each, which is no buffer of the engine's own counting
        let has_pipeline =
            case.gpus.len() == 2 && case.gpus.iter().all(|gpu| !gpu.ends_with("cc=6.1"));
        let pipeline = if has_pipeline { 32 << 20 } else { 0 };
        for i in 0..case.gpus.len() {
            let device = &json["devices"][i];
            let sum = |keys: &[&str]| -> u64 {
                let numbers = keys.iter().map(|key| device[key].as_u64().unwrap());
                numbers.sum::<u64>() + pipeline
            };
            let own = sum(&["model_bytes", "context_bytes", "compute_bytes"]);
            assert_eq!(own, asked_for(&case.figures[0], i), "{}", case.line);
            let beside = sum(&["draft_bytes"]);
            assert_eq!(beside, asked_for(&case.figures[1], i), "{}", case.line);
        }
    }
}

/// `CUDA0:1` of one context's figures in the truth table: all that a GPU was asked for.
fn asked_for(cell: &str, device: usize) -> u64 {
    let prefix = format!("CUDA{device}:");
    let word = cell.split(' ').find_map(|w| w.strip_prefix(&prefix));
    word.unwrap().parse().unwrap()
}

#[test]
fn a_draft_may_have_gpus_of_its_own() {
    let draft = fixture("gguf/llama-3.2-1b.Q4_K_M.gguf");
    let draft = draft.to_str().unwrap();
    let args = ["--gpus", "24GiB,8GiB", "-md", draft, "-devd", "CUDA1"];
    let json = estimate("llama-3.1-8b.Q4_K_M.gguf", &args).unwrap();
    let [first, second] = [0, 1].map(|i| &json["devices"][i]);
    assert_eq!(first["draft_bytes"], 0);
    assert_eq!(second["model_bytes"], 0);
    assert!(second["draft_bytes"].as_u64() > Some(799_862_912));
    let words: Vec<&str> = json["command"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let command = words.join(" ");
    assert!(
        command.contains("--spec-type draft-simple -devd CUDA1"),
        "{command}"
    );
}

#[test]
fn n_grams_raise_the_outputs_alone() {
    let args = ["--gpus", "24GiB", "--spec-type", "ngram-mod"];
    let json = estimate("llama-3.1-8b.Q4_K_M.gguf", &args).unwrap();
    assert_eq!(json["run"]["n_outputs"], 65); // ngram_mod.n_max is 64
    assert_eq!(json["devices"][0]["draft_bytes"], 0);
}

#[test]
fn what_cannot_be_is_said() {
    let eagle = fixture("gguf/drafts/eagle3.gguf");
    let eagle = eagle.to_str().unwrap();
    let check = |args: &[&str], expected: &str| {
        let args = [&["--gpus", "2x24GiB"], args].concat();
        let error = estimate("llama-3.1-8b.Q4_K_M.gguf", &args).unwrap_err();
        assert!(error.contains(expected), "{args:?}: {error}");
    };
    check(&["--spec-type", "draft-simple"], "needs a draft model");
    check(
        &["--spec-type", "draft-mtp"],
        "no layers for multi-token prediction",
    );
    check(
        &["--spec-type", "draft"],
        "--spec-type: 'draft' is none of draft-simple",
    );
    check(&["-md", eagle, "-devd", "CUDA1"], "leave out -devd");
    check(&["-md", eagle, "-devd", "CUDA2"], "no GPU of --gpus");
    let alone = estimate("drafts/eagle3.gguf", &["--gpus", "24GiB"]).unwrap_err();
    assert!(
        alone.contains("give the target as the model and this file with -md"),
        "{alone}"
    );
}

#[test]
fn flags_and_settings_are_the_same_document() {
    let draft = fixture("gguf/drafts/eagle3.gguf");
    let draft = draft.to_str().unwrap();
    let path = fixture("gguf/llama-3.1-8b.Q4_K_M.gguf");
    let check = |flags: &str, settings: Value| {
        let args: Vec<&str> = ["--gpus", "2x24GiB"]
            .into_iter()
            .chain(flags.split(' '))
            .collect();
        let expected = estimate("llama-3.1-8b.Q4_K_M.gguf", &args).unwrap();
        let settings = vramfit::Settings::from_json(&settings.to_string()).unwrap();
        let gpus = vramfit::gpu_list("2x24GiB").unwrap();
        let model = vramfit::open(&path).unwrap();
        let answer = vramfit::answer(&path, &model, &gpus, &settings).unwrap();
        let text = serde_json::to_string(&answer.estimate).unwrap();
        let seen: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(seen, expected, "{flags}");
    };
    check(&format!("-md {draft}"), json!({"draft": {"path": draft}}));
    check(
        &format!(
            "-md {draft} --spec-type draft-eagle3 --spec-draft-n-max 5 -ngld 1 -ctkd q8_0 -ctvd q8_0 -fa on \
             --no-spec-draft-backend-sampling -otd ffn=CPU -cmoed -ncmoed 1 -devd CUDA0,CUDA1"
        ),
        json!({"flash_attention": true, "draft": {
            "path": draft, "type": "draft-eagle3", "n_max": 5, "n_gpu_layers": 1, "type_k": "q8_0", "type_v": "q8_0",
            "backend_sampling": false, "overrides": [{"pattern": "ffn", "buffer": "CPU"}], "cpu_moe": true,
            "n_cpu_moe": 1, "devices": ["CUDA0", "CUDA1"],
        }}),
    );
    check(
        "--spec-type ngram-cache",
        json!({"draft": {"type": "ngram-cache"}}),
    );
}
