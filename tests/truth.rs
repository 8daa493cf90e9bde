//! Every row of the truth tables: what the real llama.cpp took on each device and the host, byte
//! for byte. `cargo run -p vramfit-oracle -- truth` makes the tables.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types
)] // tests read files and may panic

mod common;

use common::table::TABLES;
use common::truth::{self, Status};
use std::collections::BTreeMap;
use vramfit_arch::Model;
use vramfit_gguf::Header;

/// Rows that ran and rows that were refused, of real models and of made ones: a table cut short must not pass.
const ROWS: [[usize; 2]; 2] = [[7_699, 860], [8_313, 390]];

fn model<'m>(models: &'m mut BTreeMap<String, Model>, file: &str) -> &'m Model {
    models.entry(file.to_string()).or_insert_with(|| {
        let header = Header::open(common::fixture(&format!("gguf/{file}"))).unwrap();
        Model::load(&header).unwrap()
    })
}

#[test]
fn every_row_is_exact() {
    let tables = TABLES.map(truth::rows);
    for (rows, expected) in tables.iter().zip(ROWS) {
        let count = |status| rows.iter().filter(|r| r.status == status).count();
        assert_eq!([Status::Ok, Status::Refused].map(count), expected);
    }
    let rows: Vec<_> = tables.iter().flatten().collect();
    let mut models = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut checked = 0;
    for row in rows.iter().filter(|r| r.status != Status::Crashed) {
        let got = row.estimate(model(&mut models, &row.model));
        checked += 1;
        if !row.agrees(&got) {
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
