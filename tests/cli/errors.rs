//! What goes wrong is one line, and the next model is still looked at.

use super::*;

#[test]
fn malformed_files_are_refused_on_one_line() {
    let mut n = 0;
    for entry in fs::read_dir(fixture("malformed")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "gguf") {
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap();
        refused(
            &answer(estimate(&[path.to_str().unwrap()]).args(["--gpus", "k80"])),
            name,
        );
        n += 1;
    }
    assert!(n >= 90, "only {n} files");
    refused(
        &run("gguf/no-such-file.gguf", "--gpus k80"),
        "no-such-file.gguf",
    );
}

#[test]
fn errors_say_what_to_do() {
    let check = |flags: &str, expected: &str| refused(&run(GEMMA, flags), expected);
    // Also on a machine with GPUs.
    let hidden =
        answer(estimate(&[fixture(GEMMA).to_str().unwrap()]).env("CUDA_VISIBLE_DEVICES", ""));
    refused(&hidden, "name them instead: `--gpus k80x2`");
    check("--gpus k81", "did you mean k80");
    check(
        "--gpus k80 -fa off -ctv q8_0",
        "needs flash attention: use -fa on, or -ctv f16",
    );
    check("--gpus k80x2 -sm row", "does not support split buffers");
    check("--gpus k80x2 -dev CUDA2", "there are CUDA0 to CUDA1");
    check("--gpus k80 -c many", "-c: 'many' is not a whole number");
    check("--gpus k80 -c -5", "-c: '-5' is not a whole number");
    check("--gpus k80 -ctk q3_0", "invalid value 'q3_0'");
    check(
        "--gpus k80 --ctx-sise 5",
        "a similar argument exists: '--ctx-size'",
    );
    check("--gpus k80 -nglx 5", "unknown flag -nglx");
    check("--gpus k80 -ncffn 5", "not modelled here: leave it out");
    check(
        "--gpus k80 -hf org/model",
        "download the file and give its path",
    );
    check("--gpus 24G", "a card by its size is written 24GiB");
    check("--gpus 16000m", "a card by its size is written 16000MiB");
    check("--gpus k80 -ot exps=GPU", "neither CPU nor a GPU");
    check("--gpus k80 -ot (=CPU", "not a regular expression");
    check("--gpus k80 -np 0", "give 1 or more");
    check("--gpus k80 -np 300", "256");
    check("--gpus k80 explain", "comes first: `estimate explain");
    refused(&answer(&mut estimate(&[])), "no model given");
    // llama-server in the same shell would go by it
    let mut shell = estimate(&[fixture(GEMMA).to_str().unwrap(), "--gpus", "k80"]);
    refused(
        &answer(shell.env("LLAMA_ARG_N_CPU_FFN", "20")),
        "LLAMA_ARG_N_CPU_FFN: llama-server would go by it, and it is not modelled here: unset it",
    );
    // the file first, whatever GPUs there are
    let mut no_model = estimate(&["no-such-file.gguf"]);
    refused(
        &answer(no_model.env("CUDA_VISIBLE_DEVICES", "")),
        "no-such-file.gguf: No such file",
    );
    for (word, says) in [("help", "--gpus"), ("version", "for llama.cpp v0.5.0")] {
        let told = answer(&mut estimate(&[word]));
        assert!(told.code == 0 && told.out.contains(says), "{}", told.err);
    }
    refused(&answer(&mut estimate(&["strip", "x"])), "--output");
    let model = fixture(GEMMA);
    let nowhere = [
        "strip",
        model.to_str().unwrap(),
        "-o",
        "/no/such/folder/x.gguf",
    ];
    let nowhere = answer(&mut estimate(&nowhere));
    refused(
        &nowhere,
        "/no/such/folder/x.gguf: No such file or directory (os error 2)",
    );
    assert!(
        nowhere.err.trim_end().ends_with("(os error 2)"),
        "{}",
        nowhere.err
    );
}

#[test]
fn several_models_go_on_past_a_bad_one() {
    let paths = [
        fixture(GEMMA),
        fixture("malformed/ggjt.gguf"),
        fixture(LLAMA_70B),
    ];
    let paths: Vec<&str> = paths.iter().map(|path| path.to_str().unwrap()).collect();
    let text = answer(estimate(&paths).args(["--gpus", "k80x2"]));
    assert_eq!(text.code, 2);
    assert_eq!(text.err.lines().count(), 1, "{}", text.err);
    assert!(text.err.contains("1 of 3 models"), "{}", text.err);
    let lines: Vec<&str> = text.out.lines().skip(1).collect();
    let begins: Vec<&str> = lines.iter().map(|l| l.split(' ').next().unwrap()).collect();
    assert_eq!(begins, ["fits", "error", "partial"]);
    assert!(lines[1].contains("ggjt.gguf"), "{}", lines[1]);

    let json = answer(estimate(&paths).args(["--gpus", "k80x2", "--json"]));
    assert_eq!(json.code, 2);
    let schemas: Vec<Value> = json
        .out
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["schema"].clone())
        .collect();
    assert_eq!(
        schemas,
        [
            "vramfit.estimate/1",
            "vramfit.error/1",
            "vramfit.estimate/1"
        ]
    );

    let two = answer(estimate(&[paths[0], paths[2]]).args(["--gpus", "k80x2"]));
    assert_eq!((two.code, two.err.as_str()), (1, ""));
}

#[test]
fn a_folder_is_all_models_in_it() {
    let folder = tempfile::tempdir().unwrap();
    for model in [GEMMA, "gguf/qwen2.5-0.5b.Q8_0.gguf"] {
        let from = fixture(model);
        fs::copy(&from, folder.path().join(from.file_name().unwrap())).unwrap();
    }
    let mut projector = vramfit::gguf::Writer::new();
    projector.key("general.architecture", "clip").unwrap();
    fs::write(
        folder.path().join("mmproj.gguf"),
        projector.finish().unwrap(),
    )
    .unwrap();
    fs::write(folder.path().join("notes.txt"), "not a model").unwrap();

    let path = folder.path().to_str().unwrap();
    let text = answer(estimate(&[path]).args(["--gpus", "k80"]));
    assert_eq!((text.code, text.err.as_str()), (0, ""), "{}", text.out);
    assert_eq!(text.out.lines().count(), 4, "{}", text.out);
    assert!(text.out.contains("not a model of its own"), "{}", text.out);

    let alone = folder.path().join("mmproj.gguf");
    let alone = answer(estimate(&[alone.to_str().unwrap()]).args(["--gpus", "k80"]));
    refused(&alone, "not a model of its own");
    let empty = tempfile::tempdir().unwrap();
    let empty = answer(estimate(&[empty.path().to_str().unwrap()]).args(["--gpus", "k80"]));
    refused(&empty, "no *.gguf");
}

#[test]
fn nobody_has_to_read_to_the_end() {
    let path = fixture("gguf");
    for flags in [&["--json"][..], &[]] {
        let mut child = estimate(&[path.to_str().unwrap(), "--gpus", "k80x2"])
            .args(flags)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = [0; 1];
        child.stdout.take().unwrap().read_exact(&mut first).unwrap();
        let mut err = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut err)
            .unwrap();
        let code = child.wait().unwrap().code();
        assert_eq!((code, err.as_str()), (Some(1), ""));
    }
}

#[test]
fn explain_goes_on_after_a_bad_file() {
    let bad = fixture("gguf/no-such-file.gguf");
    let good = fixture(GEMMA);
    let paths = [bad.to_str().unwrap(), good.to_str().unwrap()];
    let both = || estimate(&["explain", paths[0], paths[1], "--gpus", "k80"]);
    let text = answer(&mut both());
    assert_eq!(text.code, 2, "{}", text.err);
    assert!(text.out.contains("CUDA0: compute buffer"), "{}", text.out);
    assert!(text.err.contains("1 of 2 models"), "{}", text.err);
    let json = answer(both().arg("--json"));
    let lines: Vec<&str> = json.out.lines().collect();
    assert_eq!(lines.len(), 2, "{}", json.out);
    assert!(lines[0].contains("no-such-file"), "{}", lines[0]);
    assert!(lines[1].contains("peaks"), "{}", lines[1]);
}
