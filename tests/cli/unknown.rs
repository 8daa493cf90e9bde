//! Architectures that are not known: bounds, and what has none.

use std::fs;
use std::path::{Path, PathBuf};

use vramfit_arch::Model;
use vramfit_gguf::Header;

use crate::adapters::Rule;
use crate::command::answer;
use crate::{estimate, fixture, refused};

/// A file of `folder`: a model under a name that nobody has heard of, as long as its own.
fn unknown(folder: &Path, model: &str, known: &str, name: &str) -> PathBuf {
    let mut bytes = fs::read(fixture(&format!("gguf/{model}"))).unwrap();
    for at in 0..=bytes.len() - known.len() {
        if bytes[at..].starts_with(known.as_bytes()) {
            bytes[at..at + name.len()].copy_from_slice(name.as_bytes());
        }
    }
    let path = folder.join(format!("{name}.gguf"));
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn an_architecture_that_is_not_known_has_bounds_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = unknown(folder.path(), "llama-3.2-1b.Q4_K_M.gguf", "llama", "lxama");
    let on = |what: &Path, gpus: &str| {
        let what = what.to_str().unwrap();
        answer(estimate(&[what, "--gpus", gpus]).env("COLUMNS", "200"))
    };
    let fits = on(&path, "k80");
    assert_eq!(fits.code, 0, "{}", fits.err);
    assert!(fits.out.starts_with("Fits: all 17 layers"), "{}", fits.out);
    let note = "architecture 'lxama' is not known: all figures are upper bounds";
    assert!(fits.out.contains(note), "{}", fits.out);
    let words: Vec<&str> = fits
        .out
        .lines()
        .nth(7)
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(words, ["bound"; 4], "{}", fits.out);
    // nobody can say that it does not
    let may = on(&path, "1500MiB");
    assert_eq!(may.code, 1, "{}", may.out);
    assert!(
        may.out.starts_with("May not fit: no layer is sure"),
        "{}",
        may.out
    );
    fs::copy(
        fixture("gguf/gemma-3-4b.Q4_K_M.gguf"),
        folder.path().join("known.gguf"),
    )
    .unwrap();
    let folder = on(folder.path(), "k80");
    let of = |name: &str| folder.out.lines().find(|l| l.ends_with(name)).unwrap();
    assert!(of("lxama.gguf").contains(" ≤3"), "{}", folder.out);
    assert!(!of("known.gguf").contains('≤'), "{}", folder.out);
}

#[test]
fn what_has_no_bound_is_no_refusal_of_llama_cpp() {
    const OURS: &str = "vramfit cannot size this, though llama.cpp may start with it: ";
    let folder = tempfile::tempdir().unwrap();
    let path = unknown(folder.path(), "llama-3.2-1b.Q4_K_M.gguf", "llama", "lxama");
    let model = Model::load(&Header::open(&path).unwrap()).unwrap();
    let adapter = folder.path().join("adapter");
    let rule = Rule::read("rank=16,type=f16,targets=attn").unwrap();
    fs::write(&adapter, rule.header(&model)).unwrap();
    let adapter = ["--lora", adapter.to_str().unwrap()];
    for (flags, words) in [
        (
            &adapter[..],
            "adapters and control vectors of architecture 'lxama', which is not known: leave them out",
        ),
        (
            &["-sm", "tensor"],
            "-sm tensor of architecture 'lxama', which is not known: use -sm layer",
        ),
    ] {
        let said = answer(estimate(&[path.to_str().unwrap(), "--gpus", "rtx3090x2"]).args(flags));
        refused(&said, &format!("{OURS}{words}"));
    }
}

#[test]
fn layers_for_prediction_of_an_unknown_architecture_are_no_refusal_of_llama_cpp() {
    let folder = tempfile::tempdir().unwrap();
    let path = unknown(folder.path(), "made/mimo2-mtp.gguf", "mimo2", "mimo9");
    let path = path.to_str().unwrap();
    let said = answer(&mut estimate(&[
        path,
        "--gpus",
        "rtx3090",
        "--spec-type",
        "draft-mtp",
    ]));
    refused(
        &said,
        "by layers of architecture 'mimo9', whose graph is not known: choose another --spec-type",
    );
    let small = fixture("gguf/llama-3.2-1b.Q4_K_M.gguf");
    let flags = ["--gpus", "rtx3090", "--spec-type", "draft-mtp"];
    let said = answer(estimate(&[small.to_str().unwrap()]).args(flags));
    refused(
        &said,
        "llama.cpp refuses this: this model has no layers for multi-token prediction",
    );
}

#[test]
fn an_override_to_one_of_many_gpus_is_an_abort_of_llama_cpp() {
    let small = fixture("gguf/qwen2.5-0.5b.Q4_K_M.gguf");
    let flags = "--gpus rtx3090x2 -sm tensor -fa on -ot ffn_down=CUDA0";
    let said = answer(estimate(&[small.to_str().unwrap()]).args(flags.split_whitespace()));
    refused(
        &said,
        "llama.cpp refuses this: llama.cpp would abort: with -sm tensor an override",
    );
}

#[test]
fn names_that_the_engine_knows_and_cannot_load_are_refused_in_its_words() {
    let names = fs::read_to_string(fixture("architectures-llama.cpp-v0.5.0.txt")).unwrap();
    let words = names.lines().find_map(|line| line.strip_prefix("gptj\t"));
    let words = words.unwrap().trim_matches('"');
    let folder = tempfile::tempdir().unwrap();
    let path = unknown(folder.path(), "gpt2.Q4_K_M.gguf", "gpt2", "gptj");
    for flags in [&["--gpus", "k80"][..], &["--json", "--gpus", "k80"]] {
        let said = answer(estimate(&[path.to_str().unwrap()]).args(flags));
        refused(&said, &format!("{words}: 'gptj'"));
    }
    // of a name that it does not know the next build may load a model
    let path = unknown(folder.path(), "gpt2.Q4_K_M.gguf", "gpt2", "gptx");
    let said = answer(&mut estimate(&[path.to_str().unwrap(), "--gpus", "k80"]));
    assert_eq!(said.code, 0, "{}", said.err);
    let text = said.out.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        text.contains("llama.cpp v0.5.0 (CUDA 13) does not load it"),
        "{text}"
    );
}
