//! `-sm tensor`: what the real llama.cpp took on every GPU, byte for byte.
//! `cargo run -p vramfit-oracle -- tensor-split` makes the table.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types
)] // tests read files and may panic

mod common;

#[test]
fn every_row_is_exact() {
    common::truth::check("truth/tensor-split-llama.cpp-v0.5.0.tsv", 593);
}
