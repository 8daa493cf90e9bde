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

/// The folders as the README lists them: all that there are, each behind those it stands on.
#[test]
fn each_crate_stands_on_those_above_it() {
    let root = common::fixture("..");
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let list = readme.split("\ncrates/\n").nth(1).unwrap();
    let lines = list.lines().take_while(|line| line.starts_with("  "));
    let listed: Vec<&str> = lines
        .map(|line| line.trim().split('/').next().unwrap())
        .collect();
    let mut found: Vec<String> = std::fs::read_dir(root.join("crates"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    let mut sorted = listed.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, found);
    for (at, name) in listed.iter().enumerate() {
        let manifest = root.join("crates").join(name).join("Cargo.toml");
        let text = std::fs::read_to_string(manifest).unwrap();
        let dependencies = text.split("\n[").filter(|section| {
            let head = section.split(']').next().unwrap_or_default();
            head.ends_with("dependencies") && !head.ends_with("dev-dependencies")
        });
        for line in dependencies.flat_map(str::lines) {
            let Some(other) = line.strip_prefix("vramfit") else {
                continue;
            };
            let other = other.trim_start_matches('-');
            let other = other.split(['.', ' ', '=']).next().unwrap();
            let other = if other.is_empty() { "vramfit" } else { other };
            assert!(listed[..at].contains(&other), "{name} stands on {other}");
        }
    }
}
