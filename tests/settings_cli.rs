//! Settings in JSON come to what the command line comes to: one document, whoever asked for it.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // tests read files and may panic
#![allow(dead_code)] // of the shared module a part

#[path = "common/adapters.rs"]
mod adapters;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use vramfit::{Settings, Type, gguf::Writer};

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures")
        .join(path)
}

/// `estimate MODEL FLAGS --json`, or its error.
fn by_flags(model: &Path, gpus: &str, flags: &[&str]) -> Result<Value, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_estimate"));
    command.env_clear().arg(model).args(["--gpus", gpus]);
    let output = command.args(flags).arg("--json").output().unwrap();
    match output.stdout.is_empty() {
        false => {
            // The one note that names the key by which it was asked for.
            let text = String::from_utf8(output.stdout).unwrap();
            let text = text.replace("--n-outputs is", "n_outputs is");
            Ok(serde_json::from_str(&text).unwrap())
        }
        true => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

fn by_settings(model: &Path, gpus: &str, settings: &Value) -> Result<Value, vramfit::Error> {
    let settings = Settings::from_json(&settings.to_string())?;
    let gpus = vramfit::gpu_list(gpus)?;
    let answer = vramfit::answer(model, &vramfit::open(model)?, &gpus, &settings)?;
    let text = serde_json::to_string(&answer.estimate).unwrap();
    Ok(serde_json::from_str(&text).unwrap())
}

#[test]
fn flags_and_settings_are_the_same_document() {
    const GEMMA: &str = "gguf/gemma-3-12b.Q4_K_M.gguf";
    const MOE: &str = "gguf/qwen3-30b-a3b.Q4_K_M.gguf";
    const SMALL: &str = "gguf/llama-3.1-8b.Q4_K_M.gguf";
    let check = |model: &str, gpus: &str, flags: &str, settings: Value| {
        let path = fixture(model);
        let flags: Vec<&str> = flags.split_whitespace().collect();
        let expected = by_flags(&path, gpus, &flags).unwrap();
        let seen = by_settings(&path, gpus, &settings).unwrap();
        assert_eq!(seen, expected, "{flags:?} {settings}");
    };
    check(GEMMA, "k80x2", "", json!({}));
    check(
        GEMMA,
        "k80x2",
        "-fa auto",
        json!({"flash_attention": "auto"}),
    );
    check(GEMMA, "none", "-c 0", json!({"n_ctx": 0}));
    check(
        GEMMA,
        "2xrtx3060:free=9GiB",
        "-c 32768 -b 1024 -ub 256 -np 4 -fa on -ctk q8_0 -ctv q4_0 --swa-full --kv-unified",
        json!({
            "n_ctx": 32768, "n_batch": 1024, "n_ubatch": 256, "n_seq_max": 4, "flash_attention": true,
            "type_k": "q8_0", "type_v": "Q4_0", "swa_full": true, "kv_unified": true,
        }),
    );
    check(
        SMALL,
        "24GiB,8GiB:cc=7.5",
        "-ngl 20 -ts 3,1 -nkvo --no-op-offload --no-mmap --no-host -nr",
        json!({
            "n_gpu_layers": 20, "tensor_split": [3.0, 1.0], "offload_kqv": false, "op_offload": false,
            "mmap": false, "no_host": true, "repack": false,
        }),
    );
    check(
        SMALL,
        "rtx3090x3",
        "-ngl all -dev CUDA2,CUDA0 -sm none -mg 1 --layout engine",
        json!({
            "n_gpu_layers": "all", "devices": ["CUDA2", "CUDA0"], "split_mode": "none", "main_gpu": 1,
            "layout": "engine",
        }),
    );
    check(
        SMALL,
        "rtx3090,rtx3060",
        "--prefer tightest --embeddings --pooling mean --n-outputs 0",
        json!({"prefer": "tightest", "embeddings": true, "pooling": "mean", "n_outputs": 0}),
    );
    check(
        MOE,
        "rtx3060",
        "-ot ffn_up_exps=CPU,attn_q=CUDA0 -c 1024",
        json!({
            "overrides": [
                {"pattern": "ffn_up_exps", "buffer": "CPU"}, {"pattern": "attn_q", "buffer": "CUDA0"},
            ],
            "n_ctx": 1024,
        }),
    );
    check(MOE, "rtx3060", "-ncmoe 30", json!({"n_cpu_moe": 30}));
    check(MOE, "rtx3060", "-cmoe", json!({"cpu_moe": true}));
    let projector = fixture("gguf/mmproj/gemma3.gguf");
    let projector = projector.to_str().unwrap();
    check(
        "gguf/gemma-3-4b.Q4_K_M.gguf",
        "2xrtx3060",
        &format!("--mmproj {projector} --mmproj-device CUDA1"),
        json!({"mmproj": {"path": projector, "device": "CUDA1"}}),
    );
    check(
        "gguf/gemma-3-4b.Q4_K_M.gguf",
        "2xrtx3060",
        &format!("--mmproj {projector} --no-mmproj-offload"),
        json!({"mmproj": {"path": projector, "offload": false}}),
    );
}

#[test]
fn files_beside_the_model_are_the_same_too() {
    let folder = tempfile::tempdir().unwrap();
    let model = fixture("gguf/llama-3.2-1b.Q4_K_M.gguf");
    let rule = adapters::Rule::read("rank=16,type=f16,targets=attn").unwrap();
    let lora = folder.path().join("adapter.gguf");
    std::fs::write(&lora, rule.header(&vramfit::open(&model).unwrap())).unwrap();
    let vector = folder.path().join("vector.gguf");
    let mut writer = Writer::new();
    writer.key("general.architecture", "controlvector").unwrap();
    for il in 1..=15 {
        writer.tensor(&format!("direction.{il}"), Type::F32, &[2048]);
    }
    std::fs::write(&vector, writer.finish().unwrap()).unwrap();
    let (lora, vector) = (lora.to_str().unwrap(), vector.to_str().unwrap());
    let check = |flags: &[&str], settings: Value| {
        let expected = by_flags(&model, "k80", flags).unwrap();
        let seen = by_settings(&model, "k80", &settings).unwrap();
        assert_eq!(seen, expected, "{flags:?}");
        assert!(seen["devices"][0]["adapter_bytes"].as_u64() > Some(0));
    };
    check(&["--lora", lora], json!({"loras": [{"path": lora}]}));
    check(
        &[
            "--lora-scaled",
            &format!("{lora}:0"),
            "--lora-init-without-apply",
        ],
        json!({"loras": [{"path": lora, "scale": 0.0}], "lora_init_without_apply": true}),
    );
    check(
        &[
            "--control-vector",
            vector,
            "--control-vector-layer-range",
            "3",
            "9",
        ],
        json!({"control_vectors": [{"path": vector}], "control_vector_layer_range": [3, 9]}),
    );
}

#[test]
fn what_is_wrong_is_said_with_its_key() {
    let check = |settings: Value, expected: &str| {
        let error = by_settings(&fixture("gguf/gpt2.F16.gguf"), "k80x2", &settings).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(expected), "{settings}: {error}");
        assert!(!error.contains('\n'), "{error}");
    };
    check(
        json!({"ctx": 1}),
        "unknown field `ctx`, expected one of `n_ctx`",
    );
    check(
        json!({"n_ctx": -1}),
        "invalid value: integer `-1`, expected u32",
    );
    check(json!({"n_seq_max": 0}), "n_seq_max: 0 sequences");
    check(
        json!({"flash_attention": "yes"}),
        "expected on, off or auto",
    );
    check(
        json!({"type_k": "q6_K"}),
        "no cache can be of type 'q6_K'; there are f32",
    );
    check(
        json!({"n_gpu_layers": -1}),
        "expected a number of layers, all or auto",
    );
    check(
        json!({"devices": ["CUDA2"]}),
        "devices: CUDA2 is none of the 2 GPUs given",
    );
    check(
        json!({"devices": ["CUDA1", "CUDA1"]}),
        "devices: CUDA1 is named twice",
    );
    check(
        json!({"devices": ["cuda0"]}),
        "expected a GPU such as CUDA0",
    );
    check(
        json!({"split_mode": "none", "main_gpu": 2}),
        "main_gpu: 2 is not below 2",
    );
    check(
        json!({"tensor_split": [-1.0, 1.0]}),
        "tensor_split: is not a list of shares",
    );
    check(
        json!({"overrides": [{"pattern": "(", "buffer": "CPU"}]}),
        "overrides: '(' is not a regular expression: unclosed group",
    );
    check(
        json!({"overrides": [{"pattern": "a", "buffer": "GPU"}]}),
        "neither CPU nor a GPU",
    );
    check(json!({"loras": [{"path": "none.gguf"}]}), "none.gguf: ");
    check(
        json!({"type_v": "q8_0", "flash_attention": "off"}),
        "llama.cpp refuses this",
    );
}

#[test]
fn settings_are_read_as_they_were_written() {
    let text = json!({
        "n_ctx": 1, "flash_attention": "off", "type_k": "q8_0", "n_gpu_layers": "all", "devices": ["CUDA1"],
        "loras": [{"path": "a.gguf", "scale": 0.5}], "mmproj": {"path": "p.gguf"}, "pooling": "cls",
    });
    let settings = Settings::from_json(&text.to_string()).unwrap();
    assert_eq!(serde_json::to_value(&settings).unwrap(), text);
    assert_eq!(Settings::from_json("").unwrap(), Settings::default());
    assert_eq!(
        serde_json::to_value(Settings::default()).unwrap(),
        json!({})
    );
}
