//! Ollama's old estimates and its store, through the real binary.
#![allow(clippy::unwrap_used)]

#[path = "common/command.rs"]
mod command;
#[path = "common/schema.rs"]
mod schema;

#[path = "ollama/store.rs"]
mod store;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use command::{Answer, answer};
use serde_json::Value;
use vramfit_gguf::{Header, Writer};

fn gemma(size: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/gguf/ollama");
    folder.join(format!("gemma3-{size}.gguf"))
}

fn projector() -> PathBuf {
    gemma("4b").with_file_name("../mmproj/gemma3.gguf")
}

fn call(arguments: &str, model: &str, env: &[(&str, &str)]) -> Answer {
    let mut command = Command::new(env!("CARGO_BIN_EXE_estimate"));
    let words = arguments.split_whitespace();
    let words = words.map(|word| if word == "MODEL" { model } else { word });
    command.env_clear().args(words).envs(env.iter().copied());
    answer(&mut command)
}

fn json(arguments: &str, model: &str, env: &[(&str, &str)]) -> Value {
    let answer = call(&format!("{arguments} --json"), model, env);
    assert_eq!(answer.err, "", "{arguments}");
    serde_json::from_str(&answer.out).unwrap()
}

fn layers(side: &Value) -> Vec<u64> {
    let devices = side["devices"].as_array().unwrap();
    devices
        .iter()
        .map(|d| d["n_layers"].as_u64().unwrap())
        .collect()
}

/// The terms of each device add up to all of it.
fn sums_are_right(said: &Value) {
    let sides = said["sides"].as_array().unwrap();
    for device in sides
        .iter()
        .flat_map(|side| side["devices"].as_array().unwrap())
    {
        let terms = device["terms"].as_array().unwrap();
        let sum: u64 = terms.iter().map(|t| t["bytes"].as_u64().unwrap()).sum();
        assert_eq!(sum, device["required_bytes"].as_u64().unwrap(), "{device}");
    }
}

#[test]
fn compare_names_the_graph_that_splits_gemma_over_two_dies() {
    let path = gemma("12b");
    let path = path.to_str().unwrap();
    let said = json("compare MODEL --gpus k80x2", path, &[]);
    let sides = said["sides"].as_array().unwrap();
    assert_eq!(layers(&sides[0]), [1, 48]);
    assert_eq!(layers(&sides[1]), [49, 0]);
    assert_eq!(layers(&sides[2]), [49, 0]);
    assert_eq!(sides[2]["exact"], true);
    // `oracle --mmproj` of this tower, written to a file of its own: 1 Tesla K80, -fa off.
    let terms = sides[2]["devices"][0]["terms"].as_array().unwrap();
    let bytes = |name: &str| {
        let term = terms.iter().find(|term| term["name"] == name);
        term.unwrap()["bytes"].as_u64().unwrap()
    };
    assert_eq!(bytes("projector weights"), 843_384_960);
    assert_eq!(bytes("projector graph"), 1_186_988_032);
    let part = said["differences"][0].as_str().unwrap();
    assert!(part.contains("1307.0 MiB against 519.5 MiB"), "{part}");
    let notes = said["notes"].to_string();
    assert!(notes.contains("refuses this file as it is"), "{notes}");

    let schema = call("schema compare", "", &[]).out;
    let schema: Value = serde_json::from_str(&schema).unwrap();
    assert_eq!(schema::violations(&schema, &said), Vec::<String>::new());
    sums_are_right(&said);
    let text = call("compare MODEL --gpus k80x2", path, &[]);
    assert_eq!(text.code, 0);
    assert!(text.out.contains("Where they part"));
}

#[test]
fn all_three_split_27b_and_agree_where_there_is_room() {
    let path = gemma("27b");
    let path = path.to_str().unwrap();
    let said = json("compare MODEL --gpus k80x2", path, &[]);
    for side in said["sides"].as_array().unwrap() {
        assert!(layers(side).iter().all(|&n| n > 0), "{side}");
    }
    let path = gemma("4b");
    let said = json("compare MODEL --gpus rtx3090", path.to_str().unwrap(), &[]);
    let part = said["differences"][0].as_str().unwrap();
    assert!(part.contains("agree on CUDA0 alone"), "{part}");
}

#[test]
fn the_classic_engine_is_an_estimate_like_any_other() {
    let path = gemma("12b");
    let path = path.to_str().unwrap();
    let said = json("MODEL --gpus k80x2 --engine ollama-classic", path, &[]);
    let schema: Value = serde_json::from_str(&call("schema", "", &[]).out).unwrap();
    assert_eq!(schema::violations(&schema, &said), Vec::<String>::new());
    assert!(
        said["engine"].as_str().unwrap().starts_with("ollama37"),
        "{said}"
    );
    assert_eq!(said["verdict"], "fits");
    assert_eq!(said["devices"][0]["layers"], serde_json::json!([48]));
    assert_eq!(said["devices"][0]["certainty"]["model"], "modelled");
    let notes = said["notes"].to_string();
    assert!(
        notes.contains("[3.3 GiB 8.6 GiB]") && notes.contains("layer buffer"),
        "{notes}"
    );

    let fixed = json(
        "MODEL --gpus k80x2 --engine ollama-classic --fixed",
        path,
        &[],
    );
    assert_eq!(fixed["devices"][1]["required_bytes"], 0);
    // Cards that Ollama itself supports are its own to place.
    let said = json(
        "MODEL --gpus rtx3060,rtx3060 --engine ollama-classic -np 1",
        path,
        &[],
    );
    assert!(
        said["engine"]
            .as_str()
            .unwrap()
            .starts_with("Ollama, April 2025")
    );

    let refused = call("MODEL --gpus k80 --fixed", path, &[]);
    assert_eq!(refused.code, 2);
    assert!(refused.err.contains("--fixed: only"), "{}", refused.err);
    // llama.cpp refuses Ollama's file, and so does the estimate for llama.cpp.
    let refused = call("MODEL --gpus k80", path, &[]);
    assert!(
        refused.err.contains("does not belong to architecture"),
        "{}",
        refused.err
    );
}

/// The fork's log before it changed its rules, and after it took them back: 25,24 and [7.7 GiB 5.3 GiB].
#[test]
fn rules_are_chosen_by_hand_too() {
    let path = gemma("12b");
    let path = path.to_str().unwrap();
    let classic = "MODEL --gpus k80x2 --engine ollama-classic";
    let said = json(classic, path, &[]);
    let notes = said["notes"].to_string();
    assert!(notes.contains("29 and 30 October 2025"), "{notes}");
    assert!(!notes.contains("no published build"), "{notes}");
    let rules = format!("{classic} --ollama-rules upstream -np 1");
    let said = json(&rules, path, &[]);
    let notes = said["notes"].to_string();
    assert!(notes.contains("[7.7 GiB 5.3 GiB]"), "{notes}");
    assert!(notes.contains("--tensor-split 25,24"), "{notes}");
    let rules = "compare MODEL --gpus rtx3060,rtx3060 --ollama-rules ollama37";
    let said = json(rules, path, &[]);
    assert!(said["notes"].to_string().contains("ollama37"), "{said}");
    let fused = json(&format!("{classic} -fa on -ctk q8_0"), path, &[]);
    assert_eq!(fused["run"]["type_k"], "f16");
    let notes = fused["notes"].to_string();
    assert!(notes.contains("ollama37 has no flash attention"), "{notes}");
    for (line, expected) in [
        (
            "MODEL --gpus k80 --ollama-rules upstream",
            "--ollama-rules: only",
        ),
        (
            "compare MODEL --gpus k80 --fixed",
            "compare shows both forms",
        ),
        (
            "MODEL --gpus k80 --ollama-rules mine",
            "invalid value 'mine'",
        ),
    ] {
        let refused = call(line, path, &[]);
        assert_eq!(refused.code, 2, "{line}");
        assert!(refused.err.contains(expected), "{}", refused.err);
    }
}

/// `num_gpu` 0, fewer layers than there are, and more: see `more_layers_than_there_are_spread_over_all_gpus`.
#[test]
fn layers_by_number_are_obeyed_as_ollama_does() {
    let path = gemma("4b");
    let path = path.to_str().unwrap();
    let check = |n: &str, code: i32, verdict: &str, split: [usize; 2]| {
        let line = format!("MODEL --gpus rtx4090,rtx4090 --engine ollama-classic -ngl {n}");
        assert_eq!(call(&line, path, &[]).code, code, "{n}");
        let said = json(&line, path, &[]);
        assert_eq!(said["verdict"], verdict, "{n}");
        let layers = |i: usize| said["devices"][i]["layers"].as_array().unwrap().len();
        assert_eq!([layers(0), layers(1)], split, "{n}");
        said["notes"].to_string()
    };
    check("0", 0, "fits", [0, 0]);
    check("10", 1, "partial", [10, 0]);
    check("35", 0, "fits", [35, 0]);
    check("all", 0, "fits", [35, 0]);
    let notes = check("999", 0, "fits", [18, 17]);
    assert!(notes.contains("never finds a full fit"), "{notes}");
    let said = json("compare MODEL --gpus rtx4090 -ngl 0", path, &[]);
    for side in said["sides"].as_array().unwrap() {
        assert_eq!(side["verdict"], "fits", "{side}");
    }
    assert_eq!(said["differences"].as_array().unwrap().len(), 1, "{said}");
    let line = "MODEL --gpus 4GiB:cc=8.6 --engine ollama-classic -np 1 -ngl 20";
    let notes = json(line, path, &[])["notes"].to_string();
    assert!(notes.contains("num_gpu 20 all the same"), "{notes}");
}

#[test]
fn both_sides_count_a_projector_that_is_named() {
    let path = gemma("4b").with_file_name("../llama-3.1-8b.Q4_K_M.gguf");
    let projector = path.with_file_name("mmproj/llava-1.5.gguf");
    let line = format!(
        "compare MODEL --gpus rtx3060 --mmproj {}",
        projector.display()
    );
    let said = json(&line, path.to_str().unwrap(), &[]);
    let weights = |side: usize| {
        let terms = said["sides"][side]["devices"][0]["terms"].as_array();
        let named = |term: &&Value| term["name"] == "projector weights";
        terms.unwrap().iter().find(named).unwrap()["bytes"].clone()
    };
    // `n_bytes` of all its tensors; llama.cpp pads none of them here.
    assert_eq!(weights(0), weights(2));
    assert!(weights(0).as_u64() > Some(0), "{said}");
    let draft = path.with_file_name("llama-3.2-1b.Q4_K_M.gguf");
    let line = format!("{line} -md {}", draft.display());
    let said = json(&line, path.to_str().unwrap(), &[]);
    sums_are_right(&said);
    let rest = said["differences"][1].as_str().unwrap();
    assert!(rest.contains("the draft model, 0.0 MiB against"), "{rest}");
}

/// Gemma 3 4b with its tower, by another architecture's name.
fn renamed(architecture: &str, folder: &Path) -> PathBuf {
    let header = Header::open(gemma("4b")).unwrap();
    let mut writer = Writer::with_format(header.version(), header.byte_order());
    for (key, value) in header.keys() {
        match (key, key.strip_prefix("gemma3.")) {
            ("general.architecture", _) => writer.key(key, architecture).unwrap(),
            (_, Some(rest)) => writer.copy_key(&format!("{architecture}.{rest}"), value),
            _ => writer.copy_key(key, value),
        };
    }
    for t in header.tensors() {
        writer.tensor(&t.name, t.ty, &t.ne[..t.n_dims as usize]);
    }
    let path = folder.join(format!("{architecture}.gguf"));
    fs::write(&path, writer.finish().unwrap()).unwrap();
    path
}

#[test]
fn what_is_not_exact_is_not_called_so() {
    let folder = tempfile::tempdir().unwrap();
    for (architecture, expected) in [
        ("mllama", "is not known, so llama.cpp"),
        ("mistral3", "Ollama's form of this tower is not known"),
    ] {
        let path = renamed(architecture, folder.path());
        let said = json("compare MODEL --gpus rtx4090", path.to_str().unwrap(), &[]);
        assert_eq!(said["sides"][2]["exact"], false, "{architecture}");
        let notes = said["notes"].to_string();
        assert!(notes.contains(expected), "{notes}");
    }
}

/// Where the graph of a full offload is the larger one, and where memory is held back.
#[test]
fn what_is_said_of_the_graph_holds() {
    let part = |line: &str, path: &Path, env: &[(&str, &str)]| {
        let said = json(line, path.to_str().unwrap(), env);
        said["differences"][0].as_str().unwrap().to_string()
    };
    let mixtral = gemma("4b").with_file_name("../mixtral-8x7b.Q4_K_M.gguf");
    let line = "compare MODEL --gpus 10888MiB:cc=8.6 -ub 4096";
    let said = part(line, &mixtral, &[]);
    assert!(!said.contains("which fits"), "{said}");
    assert!(said.contains("in part against"), "{said}");

    let env = [("OLLAMA_GPU_OVERHEAD", "1073741824")];
    let line = "compare MODEL --gpus 12500MiB:cc=8.6";
    let said = part(line, &gemma("12b"), &env);
    assert!(said.contains("1024.0 MiB of it held back"), "{said}");
    assert!(said.contains("leaves layers on the host"), "{said}");
}

#[test]
fn what_has_no_say_is_told() {
    let path = gemma("4b");
    let path = path.to_str().unwrap();
    let said = json(
        "MODEL --gpus rtx4090 --engine ollama-classic -ts 1 -ot x=CPU -nkvo",
        path,
        &[],
    );
    let notes = said["notes"].to_string();
    assert!(notes.contains("--no-kv-offload, -ts, -ot"), "{notes}");
    let types = |ty: &str, fused: &str| {
        let env = [
            ("OLLAMA_KV_CACHE_TYPE", ty),
            ("OLLAMA_FLASH_ATTENTION", fused),
        ];
        let said = json("MODEL --gpus rtx4090 --engine ollama-classic", path, &env);
        assert_eq!(said["run"]["type_k"], "f16", "{ty}");
        said["notes"].to_string()
    };
    assert!(types("q8_0", "0").contains("no say without flash attention"));
    let env = [
        ("OLLAMA_KV_CACHE_TYPE", "q8_0"),
        ("OLLAMA_FLASH_ATTENTION", "1"),
    ];
    let line = "MODEL --gpus rtx4090 --engine ollama-classic";
    let notes = json(line, path, &env)["notes"].to_string();
    assert!(!notes.contains("without a say"), "{notes}");
    let notes = json(&format!("{line} -fa on -ctv q8_0"), path, &[])["notes"].to_string();
    assert!(
        notes.contains("one type for the whole cache: f16"),
        "{notes}"
    );
    assert!(types("q5_1", "1").contains("Ollama takes f16, q8_0 and q4_0"));
    let one = json("compare MODEL --gpus rtx4090", path, &[]);
    assert!(one["notes"].to_string().contains("from 0.6.7 on"), "{one}");
    assert!(one["notes"].to_string().contains("-np 4"), "{one}");
}

#[test]
fn the_host_alone_and_projectors() {
    let path = gemma("4b");
    let path = path.to_str().unwrap();
    let host = call("MODEL --gpus none --engine ollama-classic", path, &[]);
    assert_eq!(host.code, 0, "{}{}", host.out, host.err);
    let said = json("compare MODEL --gpus none", path, &[]);
    assert!(
        said["differences"][0]
            .as_str()
            .unwrap()
            .contains("no GPU was given")
    );
    let projector = projector();
    for task in [
        "compare MODEL --gpus k80",
        "MODEL --gpus k80 --engine ollama-classic",
    ] {
        let refused = call(task, projector.to_str().unwrap(), &[]);
        assert_eq!(refused.code, 2);
        assert!(
            refused.err.contains("a projector (mmproj)"),
            "{}",
            refused.err
        );
    }
    // Several models are a line each, the projector's says what it is.
    let folder = format!("{path} {} --engine ollama-classic", projector.display());
    let lines = call(&format!("{folder} --gpus k80 --json"), "", &[]);
    let lines: Vec<Value> = (lines.out.lines())
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[0]["engine"].as_str().unwrap().starts_with("ollama37"));
    assert!(
        lines[1]["error"].to_string().contains("(mmproj)"),
        "{lines:?}"
    );
    let refused = call(&format!("compare {path} {path} --gpus k80"), "", &[]);
    assert!(
        refused.err.contains("one model at a time"),
        "{}",
        refused.err
    );
}
