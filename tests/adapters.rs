//! LoRA adapters and control vectors: what the real llama.cpp took with them, byte for byte, and their own bytes.
//! `cargo run -p vramfit-oracle -- adapters` makes the table.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types
)] // tests read files and may panic

mod common;

use common::truth::{self, Status};
use std::collections::BTreeMap;
use vramfit_arch::Model;
use vramfit_gguf::Header;

/// A table cut short must not pass.
const ROWS: usize = 460;

#[test]
fn every_row_is_exact() {
    let rows = truth::rows("truth/adapters-llama.cpp-v0.5.0.tsv");
    assert_eq!(rows.len(), ROWS);
    assert!(rows.iter().all(|row| row.status == Status::Ok));
    let mut models: BTreeMap<&str, Model> = BTreeMap::new();
    let mut wrong = Vec::new();
    for row in &rows {
        let model = models.entry(&row.model).or_insert_with(|| {
            let header = Header::open(common::fixture(&format!("gguf/{}", row.model))).unwrap();
            Model::load(&header).unwrap()
        });
        let got = row.estimate(model);
        if !row.agrees(&got) {
            let (gpus, flags, expected) = (&row.gpus, &row.flags, &row.expected);
            let case = format!("{} | {gpus} | {flags}", row.model);
            wrong.push(format!("{case}\n  engine {expected}\n  ours   {got}"));
        }
    }
    let n = wrong.len();
    assert!(n == 0, "{n} of {ROWS} rows differ:\n{}", wrong.join("\n"));
}
