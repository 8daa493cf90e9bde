//! The buffers that the real llama.cpp took on every GPU, one by one and in its order: what `estimate calibrate --allocate`
//! takes by itself. `cargo run -p vramfit-oracle -- allocations` makes the table.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types
)] // tests read files and may panic

mod common;

use common::drafts::Pair;
use common::truth::{Gpu, Row, Status};
use vramfit_arch::Model;
use vramfit_estimate::{Breakdown, EngineProfile, Layout, RunConfig};
use vramfit_gguf::Header;
use vramfit_plan::{Owner, PlannedBuffer, in_order, with_draft};

/// Loads in the table.
const ROWS: usize = 1289;

const PROFILE: EngineProfile = EngineProfile::LLAMA_CPP_V0_5_0;

fn load(file: &str) -> Model {
    let path = common::fixture(&format!("gguf/{file}"));
    Model::load(&Header::open(path).unwrap()).unwrap()
}

/// What one context takes, its parts adding up to the figures that are exact.
fn of_context(
    model: &Model,
    breakdown: &Breakdown,
    run: &RunConfig,
    layout: &Layout,
    (gpus, owner): (&[Gpu], Owner),
) -> Vec<PlannedBuffer> {
    let groups = breakdown.buffers(model, run, layout, &PROFILE).unwrap();
    let indices: Vec<usize> = gpus.iter().map(|d| d.index).collect();
    let list = in_order(&groups, &indices, owner);
    for (at, device) in indices.iter().enumerate() {
        let own = list.iter().filter(|b| b.device == *device);
        let sum: u64 = own.map(|b| b.bytes).sum();
        assert_eq!(
            sum,
            breakdown.devices[at].sum(),
            "{}",
            model.architecture_name
        );
    }
    list
}

fn alone(row: &Row) -> Vec<PlannedBuffer> {
    let model = load(&row.model);
    let devices = row.devices();
    let (run, layout) = row.settings(&devices, &model).unwrap();
    let breakdown = Breakdown::estimate(&model, &run, &layout, &PROFILE).unwrap();
    of_context(&model, &breakdown, &run, &layout, (&devices, Owner::Model))
}

fn with_its_draft(pair: &Pair) -> Vec<PlannedBuffer> {
    let target = pair.loaded(load(&pair.target.model));
    let draft = pair.draft.as_ref().map(|file| pair.loaded(load(file)));
    let own = draft.as_ref().unwrap_or(&target);
    let (settings, layout) = pair.contexts(&target, draft.as_ref()).unwrap();
    let [gpus, own_gpus] = pair.devices();
    let taken = Breakdown::estimate(&target, &settings.target, &layout, &PROFILE).unwrap();
    let gpus = (&*gpus, Owner::Model);
    let first = of_context(&target, &taken, &settings.target, &layout, gpus);
    let taken = settings.estimate_draft(own, draft.is_some(), &PROFILE);
    let gpus = (&*own_gpus, Owner::Draft);
    let layout = &settings.draft_layout;
    let second = of_context(own, &taken.unwrap(), &settings.draft, layout, gpus);
    with_draft(first, second, &settings.target)
}

fn ours(mut row: Row) -> String {
    let list = if row.has("--spec-type") {
        let draft = row.flag("-md").map(str::to_string);
        if let Some((before, _)) = row.flags.split_once(" -md ") {
            row.flags = before.to_string();
        }
        with_its_draft(&Pair {
            target: row,
            draft,
            expected: String::new(),
        })
    } else {
        alone(&row)
    };
    let texts = list.iter().map(|b| format!("{}:{}", b.device, b.bytes));
    texts.collect::<Vec<_>>().join(" ")
}

#[test]
fn buffers_are_the_engines_one_by_one() {
    let path = common::fixture("truth/allocations-llama.cpp-v0.5.0.tsv");
    let text = std::fs::read_to_string(path).unwrap();
    let mut wrong = Vec::new();
    let mut n = 0;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let columns: Vec<&str> = line.split('\t').collect();
        let &[model, gpus, flags, expected] = columns.as_slice() else {
            panic!("{line}");
        };
        let row = Row {
            model: model.to_string(),
            gpus: gpus.to_string(),
            flags: flags.to_string(),
            status: Status::Ok,
            expected: expected.to_string(),
        };
        let got = ours(row);
        n += 1;
        if got != expected {
            wrong.push(format!(
                "{model} | {flags}\n  engine {expected}\n  ours   {got}"
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {n}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert_eq!(n, ROWS);
}
