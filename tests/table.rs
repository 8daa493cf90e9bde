//! The README's table of architectures is what the truth tables say.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types
)] // tests read files and may panic

mod common;

use common::table::{replaced, table};

#[test]
fn the_readme_has_the_table_of_today() {
    let readme = std::fs::read_to_string(common::fixture("../README.md")).unwrap();
    let with_todays = replaced(&readme, &table()).unwrap();
    assert!(
        readme == with_todays,
        "README.md is behind: cargo run --release -p vramfit-oracle -- table"
    );
}
