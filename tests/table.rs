//! The README's table of architectures and the figures in its words are what the truth tables say.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types
)] // tests read files and may panic

mod common;

use common::figures::{self, claims};
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

#[test]
fn the_readme_has_the_figures_of_today() {
    let readme = std::fs::read_to_string(common::fixture("../README.md")).unwrap();
    let with_todays = figures::replaced(&readme, &claims()).unwrap();
    let lines = readme.lines().zip(with_todays.lines());
    let behind: Vec<_> = lines.filter(|(is, should)| is != should).collect();
    assert!(
        behind.is_empty(),
        "README.md is behind: cargo run --release -p vramfit-oracle -- table\n{behind:#?}"
    );
}

#[test]
fn every_figure_of_the_readme_has_a_table_behind_it() {
    let readme = std::fs::read_to_string(common::fixture("../README.md")).unwrap();
    let unfounded = figures::unfounded(&readme, &claims());
    assert!(
        unfounded.is_empty(),
        "a claim or a setting of tests/common/figures.rs each: {unfounded:?}"
    );
}
