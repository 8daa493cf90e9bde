//! The buffers that the real llama.cpp took on every GPU, one by one and in its order: what `estimate calibrate --allocate`
//! takes by itself. `cargo run -p vramfit-oracle -- allocations` makes the table.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types
)] // tests read files and may panic

mod common;

use common::truth::{Row, Status};
use vramfit_arch::Model;
use vramfit_estimate::{Breakdown, EngineProfile};
use vramfit_gguf::Header;
use vramfit_plan::{Owner, in_order};

/// Loads in the table.
const ROWS: usize = 1219;

fn ours(row: &Row) -> String {
    let path = common::fixture(&format!("gguf/{}", row.model));
    let model = Model::load(&Header::open(path).unwrap()).unwrap();
    let devices = row.devices();
    let (run, layout) = row.settings(&devices, &model).unwrap();
    let profile = EngineProfile::LLAMA_CPP_V0_5_0;
    let breakdown = Breakdown::estimate(&model, &run, &layout, &profile).unwrap();
    let groups = breakdown.buffers(&model, &run, &layout, &profile).unwrap();
    let indices: Vec<usize> = devices.iter().map(|d| d.index).collect();
    let list = in_order(&groups, &indices, Owner::Model);
    // Parts add up to the figures that are exact.
    for (at, device) in indices.iter().enumerate() {
        let own = list.iter().filter(|b| b.device == *device);
        let sum: u64 = own.map(|b| b.bytes).sum();
        assert_eq!(sum, breakdown.devices[at].sum(), "{}", row.model);
    }
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
        let got = ours(&row);
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
