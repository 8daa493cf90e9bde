//! Ollama's settings and its store.

use super::*;

#[test]
fn variables_set_the_defaults_and_flags_go_first() {
    let path = gemma("4b");
    let path = path.to_str().unwrap();
    let check = |flags: &str, env: &[(&str, &str)], key: &str, expected: &str| {
        let arguments = format!("MODEL --gpus rtx4090 --engine ollama-classic {flags}");
        let said = json(&arguments, path, env);
        assert_eq!(said["run"][key].to_string(), expected, "{flags} {env:?}");
    };
    let context = ("OLLAMA_CONTEXT_LENGTH", "8192");
    check("-np 1", &[context], "n_ctx", "8192");
    check("-np 1 -c 2048", &[context], "n_ctx", "2048");
    check(
        "",
        &[context, ("OLLAMA_NUM_PARALLEL", "2")],
        "n_ctx",
        "16384",
    );
    check("", &[("OLLAMA_NUM_PARALLEL", "2")], "n_seq_max", "2");
    // The context is that of one request, whoever says how many there are.
    check("-np 4", &[context], "n_ctx", "32768");
    check("-np 2 -c 4096", &[context], "n_ctx", "4096");
    check("", &[("OLLAMA_NUM_PARALLEL", "2")], "n_ctx", "8192");
    // Four requests are tried first.
    check("", &[], "n_seq_max", "4");
    let small = [
        ("OLLAMA_FLASH_ATTENTION", "1"),
        ("OLLAMA_KV_CACHE_TYPE", "q8_0"),
    ];
    check("", &small, "type_k", "\"q8_0\"");
    check("", &small[1..], "type_k", "\"f16\"");
    let spread = |env: &[(&str, &str)]| {
        let arguments = "MODEL --gpus rtx3060,rtx3060 --engine ollama-classic -np 1";
        json(arguments, path, env)["devices"][1]["layers"]
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!(spread(&[]), 0);
    assert_eq!(spread(&[("OLLAMA_SCHED_SPREAD", "1")]), 17);
    let overhead = format!("{}", 20u64 << 30);
    check(
        "-np 1",
        &[("OLLAMA_GPU_OVERHEAD", &overhead)],
        "n_gpu_layers",
        "0",
    );
    let wrong = call(
        "MODEL --gpus k80 --engine ollama-classic",
        path,
        &[("OLLAMA_NUM_PARALLEL", "some")],
    );
    assert!(
        wrong.err.contains("OLLAMA_NUM_PARALLEL: 'some'"),
        "{}",
        wrong.err
    );
}

/// A store whose `gemma3:12b` is the fixture.
fn store(params: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let library = folder
        .path()
        .join("manifests/registry.ollama.ai/library/gemma3");
    let blobs = folder.path().join("blobs");
    fs::create_dir_all(&library).unwrap();
    fs::create_dir_all(&blobs).unwrap();
    let blob = |letter: &str| letter.repeat(64);
    fs::copy(gemma("12b"), blobs.join(format!("sha256-{}", blob("a")))).unwrap();
    fs::write(blobs.join(format!("sha256-{}", blob("b"))), params).unwrap();
    let layer = |kind: &str, letter: &str| {
        let kind = format!("application/vnd.ollama.image.{kind}");
        format!(
            r#"{{"mediaType":"{kind}","digest":"sha256:{}","size":1}}"#,
            blob(letter)
        )
    };
    let layers = [layer("model", "a"), layer("params", "b")].join(",");
    let manifest = format!(r#"{{"schemaVersion":2,"layers":[{layers}]}}"#);
    fs::write(library.join("12b"), manifest).unwrap();
    fs::write(library.join("broken"), "{").unwrap();
    fs::copy(projector(), blobs.join(format!("sha256-{}", blob("c")))).unwrap();
    let projector = layer("model", "c");
    let manifest = format!(r#"{{"schemaVersion":2,"layers":[{projector}]}}"#);
    fs::write(library.join("projector"), manifest).unwrap();
    folder
}

#[test]
fn models_of_the_store_are_inputs() {
    let store = store(r#"{"num_ctx": 2048, "num_batch": 256, "stop": ["x"]}"#);
    let root = store.path().to_str().unwrap();
    let env = [("OLLAMA_MODELS", root)];
    let classic = "ollama:gemma3:12b --gpus k80x2 --engine ollama-classic";
    let said = json(classic, "", &env);
    assert_eq!(said["run"]["n_ctx"], 2048);
    assert_eq!(said["run"]["n_batch"], 256);
    let said = json(&format!("{classic} -c 4096 -ub 512"), "", &env);
    assert!(said["notes"].to_string().contains("[3.3 GiB 8.6 GiB]"));
    let said = json("compare ollama:gemma3:12b --gpus k80x2 -c 4096", "", &env);
    assert_eq!(layers(&said["sides"][1]), [49, 0]);
    let two = [env[0], ("OLLAMA_NUM_PARALLEL", "2")];
    let notes = json(classic, "", &two)["notes"].to_string();
    let expected = "num_ctx (Modelfile) 2048 for each request";
    assert!(notes.contains(expected), "{notes}");
    // For llama.cpp: its language model, with a note that says so.
    let said = json("ollama:gemma3:12b --gpus k80x2", "", &env);
    assert_eq!(
        (&said["verdict"], &said["run"]["n_ctx"]),
        (&"fits".into(), &2048.into())
    );
    assert!(
        said["notes"]
            .to_string()
            .contains("refuses this file as it is"),
        "{said}"
    );

    assert_eq!(said["model"]["store_name"], "gemma3:12b");
    let none = serde_json::json!([]);
    assert_eq!(said["command"], none, "llama-server would refuse it");
    let text = call("compare ollama:gemma3:12b --gpus k80x2", "", &env).out;
    assert!(text.starts_with("gemma3:12b · gemma3"), "{text}");
    let header = store.path().join("header.gguf");
    let strip = format!("strip ollama:gemma3:12b -o {}", header.display());
    assert_eq!(call(&strip, "", &env).code, 0);
    assert!(header.is_file());
    // What is left free and spread there is so here.
    let plan = |more: (&'static str, &'static str)| {
        let env = [env[0], more];
        json("ollama:gemma3:12b --gpus rtx4090,rtx4090", "", &env)
    };
    let free = |said: &Value| said["devices"][0]["free_bytes"].as_u64().unwrap();
    let (all, less) = (plan(("X", "")), plan(("OLLAMA_GPU_OVERHEAD", "1073741824")));
    assert_eq!(free(&all) - free(&less), 1 << 30);
    assert_eq!(all["devices"][1]["layers"], serde_json::json!([]));
    let spread = plan(("OLLAMA_SCHED_SPREAD", "1"));
    assert_ne!(spread["devices"][1]["layers"], serde_json::json!([]));
    assert_eq!(spread["verdict"], "fits");

    let refused = |name: &str, expected: &str| {
        let answer = call(&format!("{name} --gpus k80x2"), "", &env);
        assert_eq!(answer.code, 2, "{name}: {}", answer.out);
        assert_eq!(answer.err.lines().count(), 1, "{}", answer.err);
        assert!(answer.err.contains(expected), "{}", answer.err);
    };
    refused("ollama:gemma3:27b", "not in the store");
    refused("ollama:gemma3:broken", "a broken manifest");
    refused("ollama:../x", "not a model's name");
    refused("ollama:gemma3:projector", "a projector (mmproj), not");
    refused(
        "ollama:gemma3:12b ollama:gemma3:27b",
        "name one model at a time",
    );
    fs::remove_file(
        store
            .path()
            .join(format!("blobs/sha256-{}", "a".repeat(64))),
    )
    .unwrap();
    refused("ollama:gemma3:12b", "its model is missing from the store");
}
