//! `--engine llama.cpp-2025` on the command line, against what nvidia-smi showed on Tesla K80s: `fixtures/measured/k80.tsv`.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types
)] // tests read files and may panic

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const MIB: u64 = 1 << 20;
const OLDER: [&str; 2] = ["--engine", "llama.cpp-2025"];

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures")
        .join(path)
}

fn estimate(model: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_estimate"));
    let command = command.env_clear().arg(fixture(model)).args(arguments);
    command.output().unwrap()
}

struct Row {
    model: String,
    flags: String,
    measured: Vec<u64>,
}

impl Row {
    fn all() -> Vec<Row> {
        let text = std::fs::read_to_string(fixture("measured/k80.tsv")).unwrap();
        let row = |line: &str| {
            let columns: Vec<&str> = line.split('\t').collect();
            let dies = columns[2..].iter().filter(|mib| **mib != "-");
            Row {
                model: columns[0].to_string(),
                flags: columns[1].to_string(),
                measured: dies.map(|mib| mib.parse::<u64>().unwrap() * MIB).collect(),
            }
        };
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(row).collect()
    }

    /// What the command line says of each die, and the document.
    fn predicted(&self, more: &[&str]) -> (Vec<u64>, Value) {
        let gpus = format!("k80x{}", self.measured.len());
        let mut arguments = vec![
            "--gpus",
            &gpus,
            "--layout",
            "engine",
            "--n-outputs",
            "0",
            "--json",
        ];
        if self.measured.len() > 1 {
            arguments.extend(["-ts", "1,1"]);
        }
        arguments.extend(self.flags.split(' '));
        arguments.extend(more);
        let output = estimate(&self.model, &arguments);
        assert!(output.stderr.is_empty(), "{output:?}");
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        let devices = json["devices"].as_array().unwrap();
        let dies = devices[..self.measured.len()].iter();
        let required = dies.map(|d| d["required_bytes"].as_u64().unwrap());
        (required.collect(), json)
    }
}

#[test]
fn every_row_is_within_8_mib_a_die() {
    let mut dies = 0;
    for row in Row::all() {
        let (predicted, json) = row.predicted(&OLDER);
        for (predicted, measured) in predicted.into_iter().zip(&row.measured) {
            let shown = (predicted / MIB, measured / MIB);
            println!(
                "{} {}: predicted and measured {shown:?} MiB",
                row.model, row.flags
            );
            assert!(
                predicted >= *measured,
                "{} {}: {shown:?}",
                row.model,
                row.flags
            );
            assert!(
                predicted - measured <= 8 * MIB,
                "{} {}: {shown:?}",
                row.model,
                row.flags
            );
            dies += 1;
        }
        assert_eq!(
            json["engine"],
            "llama.cpp before 13 November 2025 (CUDA 11.4)"
        );
        assert_eq!(json["devices"][0]["certainty"]["compute"], "modelled");
    }
    assert_eq!(dies, 12);
}

/// v0.5.0 takes less on a second die: 2 tensors of 512 x 5120 floats, for each of 4 batches in flight, are one.
#[test]
fn the_builds_differ_by_what_crosses_to_the_second_die() {
    let copies = 4 * 512 * 5120 * 4;
    for row in Row::all() {
        let (older, _) = row.predicted(&OLDER);
        let (newer, json) = row.predicted(&[]);
        let differences: Vec<u64> = older.iter().zip(&newer).map(|(a, b)| a - b).collect();
        let expected = [0, copies];
        assert_eq!(differences, expected[..row.measured.len()], "{}", row.flags);
        let notes = json["notes"].to_string();
        let is_told = notes.contains("--engine llama.cpp-2025");
        assert_eq!(is_told, row.measured.len() > 1, "{notes}");
    }
}

#[test]
fn its_name_stands_in_the_verdict_and_other_cards_are_refused() {
    let model = "measured/qwen2.5-14b.Q4_K_M.gguf";
    let output = estimate(
        model,
        &["--gpus", "k80x2", "-ts", "1,1", OLDER[0], OLDER[1]],
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let verdict = text.split("\n\n").next().unwrap();
    let words: Vec<&str> = verdict.split_whitespace().collect();
    let name = "; llama.cpp before 13 November 2025 (CUDA 11.4)";
    assert!(words.join(" ").ends_with(name), "{text}");

    let check = |arguments: &[&str], words: &str| {
        let output = estimate(model, arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(
            error.contains(words) && error.lines().count() == 1,
            "{error}"
        );
    };
    check(
        &["--gpus", "k80,rtx3090", OLDER[0], OLDER[1]],
        "RTX 3090 is another kind of card",
    );
    check(
        &["--gpus", "k80", "--engine", "llama.cpp-2024"],
        "llama.cpp-2025",
    );
}
