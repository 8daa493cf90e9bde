//! Calibration with a shared libllama, here one that computes nothing (`libllama.c`).

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::stand_in::Part;
use crate::{Answer, CONTEXT, MODULES, Stage, answer, fixture};

/// The library, made by the C compiler that the C interface's tests need as well.
fn library(stage: &Stage) -> String {
    let path = stage.path("libllama.so");
    let source = fixture("../tests/calibrate/libllama.c");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let made = Command::new(compiler)
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
        .args([&path, &source])
        .arg("-ldl")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&made.stderr).into_owned();
    assert!(made.status.success(), "{errors}");
    path.to_str().unwrap().to_string()
}

fn run(stage: &Stage, library: &str, part: &Part, more: &[&str], fault: &str) -> (Answer, String) {
    let of = |bytes: &[u64; 5]| bytes.map(|b| b.to_string()).join(":");
    let bytes: Vec<String> = part.devices.iter().map(of).collect();
    let seen = stage.path("seen");
    let _ = fs::remove_file(&seen);
    let mut run = stage.calibrate(&["--engine", library]);
    run.args(more)
        .env("STAND_IN_BYTES", bytes.join(","))
        .env("STAND_IN_SEEN", &seen)
        .env("STAND_IN_FAULT", fault);
    let run = answer(&mut run);
    (run, fs::read_to_string(&seen).unwrap_or_default())
}

#[test]
fn a_library_is_loaded_and_measured() {
    let stage = Stage::new();
    let library = library(&stage);
    let part = stage.part(&[]);
    let report = stage.path("report.json");
    let flags = ["--report", report.to_str().unwrap()];
    let (answer, seen) = run(&stage, &library, &part, &flags, "");
    assert_eq!(
        (answer.code, answer.err.as_str()),
        (Some(0), ""),
        "{}",
        answer.out
    );
    for words in [
        "libllama, planned for llama.cpp v0.5.0 (CUDA 13)",
        "a prompt of 2048 tokens",
        "buffers as predicted; measured of its processes",
        "learned: CUDA takes",
    ] {
        assert!(answer.out.contains(words), "{words}: {}", answer.out);
    }
    let json = fs::read_to_string(&report).unwrap();
    let json: Value = serde_json::from_str(&json).unwrap();
    let devices = json[0]["comparison"]["devices"].as_array().unwrap();
    assert_eq!(devices.len(), 2);
    for device in devices {
        assert_eq!(device["residual_bytes"], CONTEXT + MODULES);
        // the whole prompt that the pool is planned for
        let of_smaller = |key: &str| device["predicted"][key].as_u64().unwrap();
        let smaller = of_smaller("pool_bytes") - of_smaller("pool_own_bytes");
        assert_eq!(device["pool_short_bytes"], smaller);
    }
    let folder = stage.folder.path().file_name().unwrap().to_str().unwrap();
    let expected = format!(
        "backends {folder}\n\
         model ngl=99 sm=1 mg=0 lm=-1 repack=1 host=1 devices=0,1, ts=1,1,0,\n\
         context c=2048 b=2048 ub=512 np=1 outputs=1,1 fa=0 types=1,1 kv=1 op=1 swa=0 unified=0 embeddings=0 pooling=-1\n\
         decode 2048 tokens, 0 to 2047 of sequences 0 to 0, 1 outputs\n\
         decode 1 tokens, 2045 to 2045 of sequences 0 to 0, 1 outputs\n\
         decode 1 tokens, 2046 to 2046 of sequences 0 to 0, 1 outputs\n\
         decode 1 tokens, 2047 to 2047 of sequences 0 to 0, 1 outputs\n"
    );
    assert_eq!(seen, expected);
    stage.assert_empty("after a run");
}

#[test]
fn what_is_planned_is_asked_of_a_library() {
    let stage = Stage::new();
    let library = library(&stage);
    let check = |flags: &str, words: &[&str]| {
        let more: Vec<&str> = flags.split(' ').collect();
        let part = stage.part(&more);
        let (answer, seen) = run(&stage, &library, &part, &more, "");
        assert!(
            answer.out.contains("buffers as predicted"),
            "{flags}: {}{}",
            answer.out,
            answer.err
        );
        for word in words {
            assert!(seen.contains(word), "{flags}: {word}: {seen}");
        }
    };
    check(
        "-np 3 -kvu -c 3072 -b 600 -ub 300 -ctk q8_0 -ctv q8_0 -fa on",
        &[
            "c=3072 b=600 ub=300 np=3 outputs=3,1 fa=1 types=8,8",
            "unified=1",
            "decode 600 tokens, 0 to 199 of sequences 0 to 2, 3 outputs",
            "decode 72 tokens, 1000 to 1023 of sequences 0 to 2, 3 outputs",
        ],
    );
    check(
        "-ngl 20 -nkvo --no-op-offload --no-host --no-repack --no-mmap -ot attn_v=CPU,attn_k=CUDA1 --swa-full",
        &[
            "ngl=20 sm=1 mg=0 lm=0 repack=0 host=0",
            " attn_v=99 attn_k=2\n",
            "kv=0 op=0 swa=1",
        ],
    );
}

#[test]
fn what_is_no_library_of_the_modelled_build_is_told_and_gone() {
    let stage = Stage::new();
    let library = library(&stage);
    let part = stage.part(&[]);
    let check = |library: &str, more: &[&str], fault: &str, words: &str| {
        let (answer, _) = run(&stage, library, &part, more, fault);
        assert_eq!(
            answer.code,
            Some(1),
            "{words}: {}{}",
            answer.out,
            answer.err
        );
        assert!(answer.out.contains(words), "{words}: {}", answer.out);
        stage.assert_empty(words);
        assert!(!stage.path("overhead.json").exists());
    };
    let other = "give a llama-server as --engine";
    check(&library, &[], "version", "(it is 0.6.0)");
    check(&library, &[], "version", other);
    check(
        &library,
        &[],
        "defaults",
        "its parameters have other defaults",
    );
    check(
        &library,
        &[],
        "longer",
        "its parameters have another length",
    );
    check(
        &library,
        &[],
        "shorter",
        "its parameters have another length",
    );
    check(&library, &[], "model", "the model cannot be loaded");
    check(
        &library,
        &[],
        "decode",
        "tokens 0 to 2048 cannot be computed (llama_decode: -3)",
    );
    check("/no/such/libllama.so", &[], "", "No such file");
    let text = stage.path("libtext.so");
    fs::write(&text, "no library").unwrap();
    check(text.to_str().unwrap(), &[], "", "file too short");
    let cuda = stage.path("libcuda.so.1");
    fs::copy(stage.gpus.folder().join("libcuda.so.1"), &cuda).unwrap();
    check(cuda.to_str().unwrap(), &[], "", "it has no llama_version");
}
