//! Every row of the truth tables: what the real llama.cpp took on each device and the host, byte
//! for byte. `cargo run -p vramfit-oracle -- truth` makes the tables.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types
)] // tests read files and may panic

mod common;

use common::truth::{self, Row, Status};
use std::collections::BTreeMap;
use std::fmt::Write;
use vramfit_arch::Model;
use vramfit_estimate::{Breakdown, EngineProfile, Error};
use vramfit_gguf::Header;

/// Rows that ran and rows that were refused: a table cut short must not pass.
const ROWS: [usize; 2] = [7_699, 860];

/// The engine's reason for a refusal, and what ours says of the same.
const REASONS: [(&str, &str); 2] = [
    (
        "quantized V cache requires flash_attn",
        "needs flash attention",
    ),
    (
        "model does not support different K",
        "keeps K and V in one cache",
    ),
];

fn model<'m>(models: &'m mut BTreeMap<String, Model>, file: &str) -> &'m Model {
    models.entry(file.to_string()).or_insert_with(|| {
        let header = Header::open(common::fixture(&format!("gguf/{file}"))).unwrap();
        Model::load(&header).unwrap()
    })
}

/// What vramfit says, written as the table writes it.
fn estimate(row: &Row, model: &Model) -> String {
    let devices = row.devices();
    let (run, layout) = match row.settings(&devices, model) {
        Ok(settings) => settings,
        Err(error) => return format!("refused: {error}"),
    };
    let breakdown = Breakdown::estimate(model, &run, &layout, &EngineProfile::LLAMA_CPP_V0_5_0);
    let b = match breakdown {
        Ok(b) => b,
        Err(Error::Refused(refusal)) => return format!("refused: {refusal}"),
        Err(error) => return format!("error: {error}"),
    };
    let p = &b.params;
    let mut text = format!(
        "n_ctx {} {} n_batch {} {} fa {} copies {} layers",
        p.n_ctx, p.n_ctx_seq, p.n_batch, p.n_ubatch, p.flash_attn as u8, b.pipeline_copies
    );
    for (device, n) in truth::runs(&b.layers) {
        let name = device.map_or("host".to_string(), |d| format!("CUDA{}", devices[d].index));
        let _ = write!(text, " {name}*{n}");
    }
    for (device, m) in devices.iter().zip(&b.devices) {
        let _ = write!(
            text,
            " CUDA{}={}/{}/{}",
            device.index, m.model, m.context, m.compute
        );
    }
    let _ = write!(
        text,
        " host={}/{}/{}",
        b.host.model, b.host.context, b.host.compute
    );
    if b.host_repacked_bytes > 0 {
        let _ = write!(text, " CPU_REPACK={}/0/0", b.host_repacked_bytes);
    }
    let [pp, tg] = b.passes;
    let _ = write!(
        text,
        " {}/{} {}/{}",
        pp.n_nodes, pp.n_splits, tg.n_nodes, tg.n_splits
    );
    text
}

#[test]
fn every_row_is_exact() {
    let rows = truth::rows("truth/llama.cpp-v0.5.0-cuda13.tsv");
    let count = |status| rows.iter().filter(|r| r.status == status).count();
    assert_eq!([Status::Ok, Status::Refused].map(count), ROWS);
    let mut models = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut checked = 0;
    for row in rows.iter().filter(|r| r.status != Status::Crashed) {
        let got = estimate(row, model(&mut models, &row.model));
        let right = match row.status {
            Status::Refused => REASONS
                .iter()
                .any(|(theirs, ours)| row.expected.contains(theirs) && got.contains(ours)),
            _ => got == row.expected,
        };
        checked += 1;
        if !right {
            wrong.push(format!(
                "{} | {} | {}\n  engine {}\n  ours   {got}",
                row.model, row.gpus, row.flags, row.expected
            ));
        }
    }
    if let Ok(path) = std::env::var("VRAMFIT_TRUTH_DIFFERENCES") {
        std::fs::write(path, wrong.join("\n")).unwrap();
    }
    let some: Vec<&String> = wrong.iter().take(5).collect();
    assert!(
        wrong.is_empty(),
        "{} of {checked} rows differ, e.g.\n{some:#?}",
        wrong.len()
    );
}
