//! LoRA adapters and control vectors: what the real llama.cpp took with them, byte for byte, and their own bytes.
//! `cargo run -p vramfit-oracle -- adapters` makes the table.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types
)] // tests read files and may panic

mod common;

#[test]
fn every_row_is_exact() {
    common::truth::check("truth/adapters-llama.cpp-v0.5.0.tsv", 460);
}
