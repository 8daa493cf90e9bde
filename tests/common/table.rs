//! The README's table: every architecture of the engine's build, and how many cases stand behind it.

use super::fixture;
use super::truth::{self, Row, Status, memories};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use vramfit_arch::Model;
use vramfit_gguf::Header;

/// Truth tables of the engine's build.
pub const TABLES: [&str; 2] = [
    "truth/llama.cpp-v0.5.0-cuda13.tsv",
    "truth/made-llama.cpp-v0.5.0-cuda13.tsv",
];
/// Its architectures, one a line; behind a tab what it says where it cannot load one by itself.
const NAMES: &str = "architectures-llama.cpp-v0.5.0.txt";
const BEGIN: &str =
    "<!-- architectures: made by `cargo run --release -p vramfit-oracle -- table` -->\n";
const END: &str = "<!-- end of architectures -->\n";

/// Figures of one architecture.
#[derive(Default)]
struct Line {
    models: BTreeSet<String>,
    n_loads: usize,
    n_refusals: usize,
    /// Loads whose weights, caches and compute buffers are exact in every memory.
    exact: [usize; 3],
    /// Refusals for the engine's own reason.
    n_agreed: usize,
}

impl Line {
    fn add(&mut self, row: &Row, model: &Model) {
        self.models.insert(row.model.clone());
        let got = row.estimate(model);
        if row.status == Status::Refused {
            self.n_refusals += 1;
            self.n_agreed += row.agrees(&got) as usize;
            return;
        }
        self.n_loads += 1;
        let (Some(engine), Some(ours)) = (memories(&row.expected), memories(&got)) else {
            return;
        };
        for (i, exact) in self.exact.iter_mut().enumerate() {
            let same = |(name, bytes): (&&str, &[u64; 3])| {
                ours.get(*name).is_some_and(|o| o[i] == bytes[i])
            };
            *exact += (ours.len() == engine.len() && engine.iter().all(same)) as usize;
        }
    }

    fn write(&self, name: &str, text: &mut String) {
        let sure = |exact: usize| match self.n_loads - exact {
            0 if self.n_loads == 0 => "no case".to_string(),
            0 => "exact".to_string(),
            n => format!("{n} differ"),
        };
        let [model, context, compute] = self.exact.map(sure);
        let refusals = match self.n_refusals - self.n_agreed {
            0 => self.n_refusals.to_string(),
            n => format!("{} ({n} differ)", self.n_refusals),
        };
        let (n_models, n_loads) = (self.models.len(), self.n_loads);
        let _ = writeln!(
            text,
            "| {name} | {model} | {context} | {compute} | {n_models} | {n_loads} | {refusals} |"
        );
    }
}

/// The table, from the truth tables as they are.
pub fn table() -> String {
    let names = std::fs::read_to_string(fixture(NAMES)).unwrap();
    let names = names.lines().filter(|l| !l.starts_with('#'));
    let mut lines: BTreeMap<&str, (Line, Option<&str>)> = BTreeMap::new();
    for name in names {
        let (name, why) = name
            .split_once('\t')
            .map_or((name, None), |(n, w)| (n, Some(w)));
        lines.insert(name, (Line::default(), why));
    }
    let mut models: BTreeMap<String, Model> = BTreeMap::new();
    for row in TABLES.into_iter().flat_map(truth::rows) {
        if row.status == Status::Crashed {
            continue;
        }
        let model = models.entry(row.model.clone()).or_insert_with(|| {
            let header = Header::open(fixture(&format!("gguf/{}", row.model))).unwrap();
            Model::load(&header).unwrap()
        });
        lines
            .get_mut(model.architecture_name.as_str())
            .unwrap()
            .0
            .add(&row, model);
    }
    let mut text = format!(
        "{BEGIN}| architecture | weights | caches | compute | models | loads | refusals |\n|---|---|---|---|--:|--:|--:|\n"
    );
    for (name, (line, why)) in &lines {
        match why {
            Some(why) if line.n_loads == 0 => {
                let _ = writeln!(text, "| {name} | {why} | | | | | |");
            }
            _ => line.write(name, &mut text),
        }
    }
    let total = |of: fn(&Line) -> usize| lines.values().map(|(line, _)| of(line)).sum::<usize>();
    let _ = writeln!(
        text,
        "| **{} architectures** | | | | {} | {} | {} |\n{END}",
        lines.len(),
        total(|l| l.models.len()),
        total(|l| l.n_loads),
        total(|l| l.n_refusals)
    );
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// `readme` with `table` in place of the one in it.
pub fn replaced(readme: &str, table: &str) -> Option<String> {
    let (before, rest) = readme.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{table}{after}"))
}
