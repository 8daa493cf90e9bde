//! Targets with a draft beside them: what the real llama.cpp took for both in one process, byte for byte.
//! `cargo run -p vramfit-oracle -- drafts` makes the table.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types
)] // tests read files and may panic

mod common;

use common::drafts::{Pair, pair};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use vramfit_arch::Model;
use vramfit_estimate::{
    DraftKind, EngineProfile, Error, Layout, LayoutDevice, RunConfig, SpeculativeConfig,
    SpeculativeUse,
};
use vramfit_ggml::ComputeCapability;
use vramfit_gguf::Header;

/// A table cut short must not pass.
const ROWS: usize = 742;

fn load(file: &str) -> Model {
    let header = Header::open(common::fixture(&format!("gguf/{file}"))).unwrap();
    Model::load(&header).unwrap()
}

fn pairs() -> Vec<Pair> {
    let table = common::fixture("truth/drafts-llama.cpp-v0.5.0.tsv");
    let text = std::fs::read_to_string(table).unwrap();
    let lines = text.lines().filter(|l| !l.starts_with('#'));
    lines.map(pair).collect()
}

#[test]
fn every_row_is_exact() {
    let pairs = pairs();
    assert_eq!(pairs.len(), ROWS);
    let mut models: BTreeMap<String, Model> = BTreeMap::new();
    let mut wrong = Vec::new();
    for pair in &pairs {
        for file in [Some(&pair.target.model), pair.draft.as_ref()] {
            let Some(file) = file else { continue };
            models.entry(file.clone()).or_insert_with(|| load(file));
        }
        let target = pair.loaded(models[&pair.target.model].clone());
        let draft = pair.draft.as_ref();
        let draft = draft.map(|file| pair.loaded(models[file].clone()));
        let got = pair.estimate(&target, draft.as_ref());
        let expected = [&pair.target.expected, &pair.expected];
        for (expected, got) in expected.into_iter().zip(&got) {
            if expected != got {
                let key = pair.key();
                wrong.push(format!("{key}\n  engine {expected}\n  ours   {got}"));
            }
        }
    }
    let n = wrong.len();
    assert!(n == 0, "{n} of {ROWS} rows differ:\n{}", wrong.join("\n"));
}

/// Where the engine crashed or aborted, each time on one GPU and with these very files but for the two changes.
#[test]
fn what_ends_the_engine_is_refused() {
    let layout = Layout {
        devices: vec![LayoutDevice::new(ComputeCapability::new(9, 0))],
        ..Layout::host()
    };
    let why = |target: &Model, draft: Option<&Model>, kind| {
        let config = SpeculativeConfig::new(kind, &layout);
        let run = RunConfig::default();
        let profile = EngineProfile::LLAMA_CPP_V0_5_0;
        let used = SpeculativeUse::estimate(target, &run, &layout, draft, &config, &profile);
        used.unwrap_err().to_string()
    };
    let mtp = |model: &Model| why(model, None, DraftKind::Mtp);
    let wide = mtp(&load("made/deepseek4-mtp.gguf").with_mtp());
    assert!(wide.contains("as wide as the indexer's, 128"), "{wide}");
    let mut model = load("drafts/deepseek4.gguf").with_mtp();
    model.hparams.layers[4].compress_ratio = 4;
    let compressed = mtp(&model);
    assert!(compressed.contains("4 tokens to one"), "{compressed}");
    model.hparams.n_layer_all += 1;
    let two = mtp(&model);
    assert!(two.contains("this model has 2"), "{two}");
    let draft = load("drafts/eagle3-qwen4exp.gguf");
    let untapped = why(&load("made/kimi-k3.gguf"), Some(&draft), DraftKind::Eagle3);
    assert!(untapped.contains("would abort"), "{untapped}");
}

/// A library's caller is told when the layers that are to draft were not loaded: nothing would be counted for them.
#[test]
fn layers_that_draft_have_to_be_loaded() {
    let layout = Layout {
        devices: vec![LayoutDevice::new(ComputeCapability::new(9, 0))],
        ..Layout::host()
    };
    let profile = EngineProfile::LLAMA_CPP_V0_5_0;
    let run = RunConfig::default();
    let kind = DraftKind::Mtp;
    let config = SpeculativeConfig::new(kind, &layout);
    let estimate = |target: &Model, draft: Option<&Model>| {
        SpeculativeUse::estimate(target, &run, &layout, draft, &config, &profile)
    };
    let plain = load("drafts/qwen35.gguf");
    let loaded = kind.loaded(&plain);
    assert_eq!(estimate(&plain, None).unwrap_err(), Error::WithoutMtp);
    assert!(estimate(&loaded, None).is_ok());
    let own = load("drafts/qwen35-alone.gguf");
    for pair in [(&plain, kind.loaded(&own)), (&*loaded, Cow::Borrowed(&own))] {
        let error = estimate(pair.0, Some(&pair.1)).unwrap_err();
        assert_eq!(error, Error::WithoutMtp);
    }
    assert!(estimate(&loaded, Some(&kind.loaded(&own))).is_ok());
    assert!(matches!(DraftKind::Simple.loaded(&plain), Cow::Borrowed(_)));
}

/// Every kind of draft, one GPU to four, and layers on the host are among the rows.
#[test]
fn rows_are_of_every_kind() {
    let pairs = pairs();
    let kinds: BTreeSet<&str> = pairs
        .iter()
        .map(|p| p.target.flag("--spec-type").unwrap())
        .collect();
    assert_eq!(
        kinds.into_iter().collect::<Vec<_>>(),
        [
            "draft-dflash",
            "draft-dspark",
            "draft-eagle3",
            "draft-mtp",
            "draft-simple"
        ]
    );
    let gpus: BTreeSet<usize> = pairs.iter().map(|p| p.devices()[0].len()).collect();
    assert_eq!(gpus, BTreeSet::from([1, 2, 3, 4]));
    let is_shared = |p: &&Pair| p.target.flag("-sm") == Some("tensor");
    assert!(pairs.iter().filter(is_shared).count() > 200);
    let partial = |p: &&Pair| p.target.expected.contains("layers host*");
    assert!(pairs.iter().filter(partial).count() > 30);
}
