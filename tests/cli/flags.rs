//! Flags and the environment are llama.cpp's.

use super::*;

/// The flags that are printed, given back, lead to the same place.
#[test]
fn the_command_can_be_pasted_back() {
    for (model, flags) in CASES {
        let first = json_of(model, flags);
        let gpus = flags.split(' ').nth(1).unwrap();
        let command: Vec<&str> = first["command"]
            .as_array()
            .unwrap()
            .iter()
            .map(|word| word.as_str().unwrap())
            .collect();
        assert_eq!(command[..2], ["llama-server", "-m"]);
        let again = answer(estimate(&command[1..]).args(["--gpus", gpus, "--json"]));
        let again: Value = serde_json::from_str(&again.out)
            .unwrap_or_else(|error| panic!("{command:?}: {error}: {}", again.err));
        assert_eq!(
            first["devices"], again["devices"],
            "{model} {flags}\n{command:?}"
        );
        assert_eq!(first["run"]["n_ctx"], again["run"]["n_ctx"]);
    }
}

#[test]
fn tensors_are_shared_out_where_asked() {
    let json = json_of(LLAMA_70B, "--gpus rtx3090x2 -sm tensor");
    assert_eq!(
        (&json["verdict"], &json["run"]["split_mode"]),
        (&json!("fits"), &json!("tensor"))
    );
    for device in json["devices"].as_array().unwrap().iter().take(2) {
        assert_eq!(device["layers"].as_array().unwrap().len(), 81);
        assert_eq!(device["certainty"]["runtime"], "bound");
    }
    let command = json["command"].as_array().unwrap();
    let at = command.iter().position(|word| word == "-sm").unwrap();
    assert_eq!(command[at + 1], "tensor");
    assert!(!command.contains(&json!("-ts")));
    // as many layers as have room
    let json = json_of(LLAMA_70B, "--gpus rtx3060x2 -sm tensor");
    assert_eq!(json["verdict"], "partial");
    assert!(json["devices"][0]["headroom_bytes"].as_i64().unwrap() >= 0);
    refused(
        &run(LLAMA_70B, "--gpus k80x2 -sm tensor"),
        "-sm tensor needs flash attention",
    );
    let mamba = run("gguf/mamba-2.8b.Q4_K_M.gguf", "--gpus rtx3090x2 -sm tensor");
    refused(&mamba, "does not share out the tensors of 'mamba'");
}

#[test]
fn the_environment_is_llama_cpps() {
    let path = fixture(GEMMA);
    let with = |variables: &[(&str, &str)], flags: &[&str]| -> Value {
        let mut command = estimate(flags);
        command.args(["--gpus", "k80x2", "--json"]);
        command.envs(variables.iter().copied());
        let answer = answer(command.env("LLAMA_ARG_MODEL", &path));
        serde_json::from_str(&answer.out).unwrap_or_else(|_| panic!("{}", answer.err))
    };
    let run = &with(
        &[
            ("LLAMA_ARG_CTX_SIZE", "8192"),
            ("LLAMA_ARG_FLASH_ATTN", "off"),
            ("LLAMA_ARG_CACHE_TYPE_K", "q8_0"),
            ("LLAMA_ARG_N_GPU_LAYERS", "all"),
            ("LLAMA_ARG_NO_KV_OFFLOAD", "1"),
            ("LLAMA_ARG_MMAP", "0"),
            ("LLAMA_ARG_SWA_FULL", "true"),
            ("LLAMA_ARG_UBATCH", "128"),
        ],
        &["-ub", "256"],
    )["run"];
    assert_eq!(run["n_ctx"], 8192);
    assert_eq!(run["flash_attention"], false);
    assert_eq!(run["type_k"], "q8_0");
    assert_eq!(run["n_gpu_layers"], 49);
    assert_eq!(run["offload_kqv"], false);
    assert_eq!(run["mmap"], false);
    assert_eq!(run["swa_full"], true);
    assert_eq!(run["n_ubatch"], 256, "the command line goes first");

    let mut wrong = estimate(&[path.to_str().unwrap(), "--gpus", "k80"]);
    let wrong = answer(wrong.env("LLAMA_ARG_SPLIT_MODE", "diagonal"));
    refused(&wrong, "LLAMA_ARG_SPLIT_MODE: 'diagonal' is not one of");
}

#[test]
fn aliases_mean_the_same() {
    let check = |one: &str, other: &str| {
        let [one, other] =
            [one, other].map(|flags| json_of(GEMMA, &format!("--gpus k80x2 {flags}")));
        assert_eq!(one, other);
    };
    check(
        "-c 8192 -ngl 40 -fa on -ctk q8_0 -nkvo -np 2",
        "--ctx-size 8192 --gpu-layers 40 --flash-attn 1 --cache-type-k q8_0 --no-kv-offload --parallel 2",
    );
    check("-ngl=40 -c=8192", "--n-gpu-layers=40 --ctx-size=8192");
    check("-np -1", "-np 4 -kvu");
    check("-lm none", "--no-mmap");
    check("-c 1 -c 8192", "-c 8192");
    let of = |flags: &str| json_of(GEMMA, &format!("--gpus k80x2 {flags}"));
    let mut pasted = of("-fit off -t 8 --host 0.0.0.0 -lv 4 --metrics -nocb -n 128 --temp 0.7");
    let mut plain = of("");
    let [notes, plain_notes] = [&mut pasted, &mut plain].map(|json| json["notes"].take());
    assert_eq!(pasted, plain);
    let notes = notes.as_array().unwrap();
    let note = "no say in memory, and so not in the command: -t, --host, --metrics, --no-cont-batching, -lv, -n, --temp";
    assert!(notes.contains(&note.into()), "{notes:?}");
    assert_eq!(notes.len(), plain_notes.as_array().unwrap().len() + 1);
    let path = fixture(GEMMA);
    let by_flag = answer(&mut estimate(&[
        "-m",
        path.to_str().unwrap(),
        "--gpus",
        "k80",
    ]));
    assert_eq!(by_flag.out, run(GEMMA, "--gpus k80").out);
}

/// A draft and a projector have the model's `-fa`, wherever they are; without anything on a K80 it decides nothing.
#[test]
fn flash_attention_is_off_with_anything_on_a_gpu_without() {
    let check = |model: &str, flags: &str, off: bool| {
        let out = run(model, flags).out;
        assert_eq!(out.contains("-fa off"), off, "{flags}: {out}");
        let is_noted = out.contains("no published build has flash attention");
        assert_eq!(is_noted, off, "{flags}: {out}");
    };
    let file = |name: &str| fixture(name).to_str().unwrap().to_string();
    let llama = "gguf/llama-3.1-8b.Q4_K_M.gguf";
    let draft = format!(
        "--gpus k80,rtx3090 -md {}",
        file("gguf/llama-3.2-1b.Q4_K_M.gguf")
    );
    check(llama, &format!("{draft} -devd CUDA0"), true);
    check(llama, &format!("{draft} -devd CUDA1"), false);
    let tower = file("gguf/mmproj/gemma3.gguf");
    let tower = format!("--gpus k80,rtx3090 --mmproj {tower} --mmproj-device");
    check(
        "gguf/gemma-3-4b.Q4_K_M.gguf",
        &format!("{tower} CUDA0"),
        true,
    );
    check(
        "gguf/gemma-3-4b.Q4_K_M.gguf",
        &format!("{tower} CUDA1"),
        false,
    );
    check(llama, "--gpus k80 -dev none", false);
    check(llama, "--gpus k80", true);
}
