//! The C interface through C: programs of `tests/capi`, compiled by the machine's own compiler against the header and
//! the libraries.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use vramfit::report::{Estimate, Style, Sure, VerdictWord, estimate_text};
use vramfit::{ComputeCapability, GpuList, Host, Journal, LoadRequest, Settings, Volatile};

/// Flags of a compiler that lets nothing pass.
const STRICT: [&str; 6] = [
    "-std=c11",
    "-D_POSIX_C_SOURCE=200809L",
    "-Wall",
    "-Wextra",
    "-Wpedantic",
    "-Werror",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn model(name: &str) -> PathBuf {
    root().join("fixtures/gguf").join(name)
}

fn header_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("include/vramfit.h")
}

/// Where cargo leaves the libraries for this test.
fn libraries() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program.parent().unwrap().to_owned()
}

#[derive(Clone, Copy)]
enum Linked {
    Static,
    Shared,
}

/// Compiles a program of tests/capi into `folder`.
fn compiled(name: &str, linked: Linked, folder: &Path) -> PathBuf {
    let libraries = libraries();
    let program = folder.join(name.trim_end_matches(".c"));
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut command = Command::new(compiler);
    command.args(STRICT).arg("-g").arg("-I");
    command.arg(header_path().parent().unwrap());
    command.arg(root().join("tests/capi").join(name));
    command.arg("-o").arg(&program);
    match linked {
        Linked::Static => command.arg(libraries.join("libvramfit_c.a")),
        Linked::Shared => command
            .arg(libraries.join("libvramfit_c.so"))
            .arg(format!("-Wl,-rpath,{}", libraries.to_str().unwrap())),
    };
    let output = command.args(["-pthread", "-ldl", "-lm"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{name}: {said}");
    program
}

/// What a program prints; it has to end well and say nothing else.
fn run(program: &Path, arguments: &[&Path]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{program:?}: {said}{text}");
    assert_eq!(said, "", "{program:?}");
    text
}

#[test]
fn the_header_is_that_of_the_code() {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("cbindgen.toml");
    let made = cbindgen::Builder::new()
        .with_config(cbindgen::Config::from_file(config).unwrap())
        .with_crate(env!("CARGO_MANIFEST_DIR"))
        .generate()
        .unwrap();
    let mut text = Vec::new();
    made.write(&mut text);
    let text = String::from_utf8(text).unwrap();
    if std::env::var_os("VRAMFIT_WRITE_HEADER").is_some() {
        fs::write(header_path(), &text).unwrap();
    }
    let kept = fs::read_to_string(header_path()).unwrap_or_default();
    assert_eq!(
        kept, text,
        "write it anew with VRAMFIT_WRITE_HEADER=1 cargo test -p vramfit-capi"
    );
}

#[test]
fn the_header_is_cplusplus_too() {
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let mut command = Command::new(compiler);
    command.args([
        "-std=c++17",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fsyntax-only",
        "-x",
        "c++",
    ]);
    let output = command.arg(header_path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
}

/// The lines of one placement, as `print_placement` prints them.
fn placement_lines(estimate: &Estimate) -> Vec<String> {
    let verdict = match estimate.verdict {
        VerdictWord::Fits => 0,
        VerdictWord::Partial => 1,
        VerdictWord::DoesNotFit => 2,
    };
    let mut lines = vec![format!("verdict {verdict}")];
    for device in &estimate.devices {
        let sure = |sure: Sure| match sure {
            Sure::Exact => 0,
            Sure::Modelled => 1,
            Sure::Bound => 2,
        };
        let of = &device.certainty;
        let (id, is_gpu) = (&device.id, device.free_bytes.is_some());
        let overhead = if is_gpu { Sure::Modelled } else { Sure::Exact };
        let terms = [
            (of.model, device.model_bytes),
            (of.model, device.adapter_bytes),
            (of.context, device.context_bytes),
            (of.compute, device.compute_bytes),
            (
                of.model,
                device.projector_bytes - device.projector_compute_bytes,
            ),
            (of.compute, device.projector_compute_bytes),
            (
                of.model,
                device.draft_bytes - device.draft_context_bytes - device.draft_compute_bytes,
            ),
            (of.context, device.draft_context_bytes),
            (of.compute, device.draft_compute_bytes),
            (of.runtime, device.runtime_bytes),
            (overhead, device.overhead_bytes),
        ];
        for (kind, (certainty, bytes)) in terms.into_iter().enumerate() {
            lines.push(format!("{id} term {kind} {} {bytes}", sure(certainty)));
        }
        let all = device.required_bytes;
        let left = device.headroom_bytes.unwrap_or(0);
        let layers = device.layers.iter().map(|il| format!(" {il}"));
        let layers: String = layers.collect();
        lines.push(format!(
            "{id} sum {all} required {all} headroom {left} layers{layers}"
        ));
    }
    let words = estimate.command.iter();
    lines.extend(words.map(|word| format!("word {word}")));
    lines.push(format!("json {}", serde_json::to_string(estimate).unwrap()));
    lines
}

/// The loader prints what the library says in Rust.
fn check_loader(program: &Path, name: &str, gpus: &str, settings: &str, journal: Option<&Path>) {
    let path = model(name);
    let arguments = [path.as_path(), Path::new(gpus), Path::new(settings)];
    let printed = run(
        program,
        &[&arguments[..], &Vec::from_iter(journal)].concat(),
    );

    let opened = vramfit::open(&path).unwrap();
    let gpus = vramfit::gpu_list(gpus).unwrap();
    let settings = Settings::from_json(settings).unwrap();
    let answer = vramfit::answer(&path, &opened, &gpus, &settings).unwrap();
    let mut expected = vec![format!(
        "model {} {} {} {}",
        opened.architecture_name,
        opened.name.as_deref().unwrap_or_default(),
        opened.hparams.n_layer_all,
        opened.file_bytes
    )];
    expected.extend(placement_lines(&answer.estimate));
    let explanation = vramfit::explanation(&path, &opened, &answer.placement).unwrap();
    let explanation = serde_json::to_string(&explanation).unwrap();
    let text = estimate_text(&answer.estimate, &Style::default());
    let texts = [
        format!("text begins: {}", &text[..5]),
        "explanation begins: CUDA0".to_string(),
        format!("explanation {explanation}"),
    ];
    expected.extend(texts.clone());

    let host = Host::open(Volatile, "gpu-box", gpus).unwrap();
    let load = LoadRequest::new("the model", "loader.c")
        .leased(60_000)
        .staying();
    let resolved = settings.resolve(&opened, host.gpus()).unwrap();
    let reserved = host.reserve(&opened, &resolved.run, &resolved.policy, &load, 1000);
    let reserved = reserved.unwrap();
    for share in &reserved.grant.shares {
        let (gpu, bytes) = (share.gpu.gpu(), share.bytes);
        expected.push(format!("reserved {gpu} {bytes} leaving 0"));
    }
    let now = host.gpus_for(&reserved.grant);
    let document = vramfit::document(&path, &opened, &now, &resolved, &reserved.placement);
    expected.extend(placement_lines(&document));
    host.commit(reserved.id(), &reserved.grant.shares, 2000)
        .unwrap();
    host.ledger().begin_request(reserved.id(), 3000).unwrap();
    host.ledger().end_request(reserved.id(), 4000).unwrap();
    host.renew(reserved.id(), 5000).unwrap();
    let state = host.ledger().state().unwrap();
    let reservations: Vec<_> = state.reservations().collect();
    let state = json!({ "gpus": state.gpus(), "reservations": reservations });
    expected.push(format!("state {state}"));
    let twice = "unknown reservation #0: never made here, released, or its lease ran out; adopt what is still loaded";
    expected.push(format!("released twice: {twice}"));
    expected.push("violations 0".to_string());
    expected.extend(texts);

    let printed: Vec<&str> = printed.lines().collect();
    for (i, line) in expected.iter().enumerate() {
        assert_eq!(printed.get(i), Some(&line.as_str()), "{name}, line {i}");
    }
    assert_eq!(printed.len(), expected.len(), "{name}");
}

#[test]
fn a_loader_in_c_sees_what_rust_sees() {
    let folder = tempfile::tempdir().unwrap();
    let program = compiled("loader.c", Linked::Static, folder.path());
    check_loader(&program, "gemma-3-12b.Q4_K_M.gguf", "k80x2", "{}", None);
    check_loader(
        &program,
        "llama-3.1-70b.Q4_K_M.gguf",
        "h100,rtx3090",
        r#"{"n_ctx": 16384, "type_k": "q8_0", "type_v": "q8_0"}"#,
        None,
    );
    check_loader(
        &program,
        "llama-3.1-70b.Q4_K_M.gguf",
        "2xrtx3090",
        r#"{"n_ctx": 2048}"#,
        None,
    );
    check_loader(
        &program,
        "made/qwen35moe-mtp.gguf",
        "h100",
        r#"{"draft": {"type": "draft-mtp"}}"#,
        None,
    );
}

#[test]
fn the_shared_library_keeps_a_journal() {
    let folder = tempfile::tempdir().unwrap();
    let program = compiled("loader.c", Linked::Shared, folder.path());
    let journal = folder.path().join("ledger.redb");
    let settings = r#"{"n_ctx": 1024, "n_seq_max": 2}"#;
    check_loader(
        &program,
        "qwen3-8b.Q4_K_M.gguf",
        "rtx3060",
        settings,
        Some(&journal),
    );

    let journal = Journal::open(&journal).unwrap();
    let gpus = vramfit::gpu_list("rtx3060").unwrap();
    let host = Host::open(journal, "gpu-box", gpus).unwrap();
    let state = host.ledger().state().unwrap();
    assert!(state.seq() >= 6, "{}", state.seq());
    assert_eq!(state.reservations().count(), 0);
}

#[test]
fn careless_callers_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let not_a_model = folder.path().join("not-a-model.gguf");
    fs::write(&not_a_model, "GGUF, but no header").unwrap();
    let program = compiled("errors.c", Linked::Static, folder.path());
    let model = model("qwen3-8b.Q4_K_M.gguf");
    assert_eq!(run(&program, &[&model, &not_a_model]), "0 failures\n");
}

#[test]
fn threads_share_a_host() {
    let folder = tempfile::tempdir().unwrap();
    let program = compiled("threads.c", Linked::Static, folder.path());
    let model = model("qwen3-8b.Q4_K_M.gguf");
    let printed = run(&program, &[&model, Path::new("8"), Path::new("25")]);
    let words: Vec<&str> = printed.split_whitespace().collect();
    let number = |name: &str| -> u64 {
        let at = words.iter().position(|word| *word == name).unwrap();
        words[at + 1].parse().unwrap()
    };
    assert_eq!(number("reserved") + number("full"), 200, "{printed}");
    assert!(number("reserved") > 0 && number("failed") == 0, "{printed}");
    // All of it is free again; what the driver keeps of a shared GPU is not the models'.
    let mut gpus = GpuList::default();
    let mib = 1 << 20;
    for (name, total, free, capability) in [
        ("NVIDIA GeForce RTX 3060", 11906, 11906, (8, 6)),
        ("", 8192, 8000, (7, 5)),
    ] {
        let capability = ComputeCapability::new(capability.0, capability.1);
        gpus.add(name, total * mib, free * mib, capability).unwrap();
    }
    let host = Host::open(Volatile, "gpu-box", gpus).unwrap();
    let free: Vec<u64> = host.gpus().devices.iter().map(|d| d.free_bytes).collect();
    let printed: Vec<&str> = words[words.len() - 2..].to_vec();
    assert_eq!(printed, [free[0].to_string(), free[1].to_string()]);
}

#[cfg(unix)]
#[test]
fn forked_children_plan_too_and_reserve_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let program = compiled("forks.c", Linked::Static, folder.path());
    let model = model("qwen3-8b.Q4_K_M.gguf");
    let journal = folder.path().join("ledger.redb");
    assert_eq!(run(&program, &[&model, &journal]), "0 failures\n");
}

#[test]
fn the_example_of_the_readme_runs() {
    let folder = tempfile::tempdir().unwrap();
    let program = compiled("readme.c", Linked::Static, folder.path());
    fs::copy(
        model("gemma-3-12b.Q4_K_M.gguf"),
        folder.path().join("model.gguf"),
    )
    .unwrap();
    let output = Command::new(&program)
        .current_dir(folder.path())
        .output()
        .unwrap();
    let path = model("gemma-3-12b.Q4_K_M.gguf");
    let settings = Settings::from_json(r#"{"n_ctx": 8192}"#).unwrap();
    let opened = vramfit::open(&path).unwrap();
    let gpus = vramfit::gpu_list("k80x2").unwrap();
    let answer = vramfit::answer(&path, &opened, &gpus, &settings).unwrap();
    let bytes = answer.placement.devices[0].required_bytes;
    let expected = format!("CUDA0 takes {bytes} bytes\n");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
}

/// The lines of the first code block in `language`, without indentation.
fn shown(text: &str, language: &str) -> Vec<String> {
    let block = text.split(&format!("```{language}\n")).nth(1).unwrap();
    let block = block.split("```").next().unwrap();
    block.lines().map(|line| line.trim().to_string()).collect()
}

#[test]
fn the_readme_shows_what_is_tested() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let section = readme.split("### From Go, Python and C").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let of_go = fs::read_to_string(root().join("bindings/go/README.md")).unwrap();
    for (text, language, path) in [
        (section, "python", "bindings/python/README.md"),
        (section, "go", "bindings/go/example_test.go"),
        (section, "c", "tests/capi/readme.c"),
        (&of_go, "go", "bindings/go/example_test.go"),
    ] {
        let shown = shown(text, language);
        let tested = fs::read_to_string(root().join(path)).unwrap();
        let tested: Vec<String> = tested.lines().map(|line| line.trim().to_string()).collect();
        let is_there = tested.windows(shown.len()).any(|lines| lines == shown);
        assert!(!shown.is_empty() && is_there, "{path} has not: {shown:#?}");
    }
}
