//! What ggml-cuda took while it computed, in real decodes on imaginary GPUs, against the model.
//! `cargo run -p vramfit-oracle -- pool` makes the table, with `--kind legacy` that of the other kind of pool.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types
)] // tests read files and may panic

mod common;

use common::figures::{LEGACY_ABOVE, LEGACY_ABOVE_MIB};
use common::truth::{Row, Status};
use std::collections::BTreeMap;
use vramfit_arch::Model;
use vramfit_estimate::{Breakdown, EngineProfile, Runtime};
use vramfit_ggml::cuda::PoolKind;
use vramfit_gguf::Header;

/// Rows of a table, and figures of those that ran: a table cut short must not pass.
struct Table {
    file: &'static str,
    kind: PoolKind,
    least_rows: usize,
    least_checked: usize,
}

const VMM: Table = Table {
    file: "truth/pool-llama.cpp-v0.5.0-cuda13.tsv",
    kind: PoolKind::Vmm,
    least_rows: 2_000,
    least_checked: 1_900,
};
const LEGACY: Table = Table {
    file: "truth/pool-legacy-llama.cpp-v0.5.0-cuda13.tsv",
    kind: PoolKind::Legacy,
    ..VMM
};

/// The engine had no room left for the token behind the prompt, whose attention takes a buffer more.
const WITHOUT_GENERATION: [&str; 1] = [
    "deepseek-v2-lite.Q4_K_M.gguf\t7.5*40,8.0*108\t-c 2048 -b 512 -ub 64 -fa on --embeddings --decode 2048",
];

type Load = fn(&Header) -> vramfit_arch::Result<Model>;

fn load(file: &str, by: Load) -> Model {
    let header = Header::open(common::fixture(&format!("gguf/{file}"))).unwrap();
    by(&header).unwrap()
}

/// What was measured of a GPU: pool and workspace, or both together.
#[derive(Clone, Copy)]
enum Measured {
    Apart([u64; 2]),
    Together(u64),
}

impl Measured {
    fn read(text: &str) -> Measured {
        match text.split_once('/') {
            Some((pool, workspace)) => {
                Measured::Apart([pool, workspace].map(|n| n.parse().unwrap()))
            }
            None => Measured::Together(text.parse().unwrap()),
        }
    }
}

/// A row of the table as a case that `common` understands, the SM counts, and what was measured.
fn read(line: &str) -> (Row, Vec<u32>, Option<Vec<Measured>>) {
    let columns: Vec<&str> = line.split('\t').collect();
    let [model, gpus, flags, runtime] = columns[..] else {
        panic!("four columns: {line}");
    };
    let gpus: Vec<(&str, &str)> = gpus
        .split(',')
        .map(|g| g.split_once('*').unwrap())
        .collect();
    let capabilities: Vec<String> = gpus
        .iter()
        .map(|(cc, _)| format!("{}:{cc}", 1u64 << 42))
        .collect();
    let measured =
        (!runtime.starts_with("crashed")).then(|| runtime.split(' ').map(Measured::read).collect());
    let row = Row {
        model: model.to_string(),
        gpus: capabilities.join(","),
        flags: flags.to_string(),
        status: Status::Ok,
        expected: String::new(),
    };
    (
        row,
        gpus.iter().map(|(_, sms)| sms.parse().unwrap()).collect(),
        measured,
    )
}

fn predict(row: &Row, kind: PoolKind, sms: &[Option<u32>], model: &Model) -> Vec<Runtime> {
    let (run, mut layout) = row.settings(&row.devices(), model).unwrap();
    for (device, &n) in layout.devices.iter_mut().zip(sms) {
        device.sm_count = n;
        device.pool = kind;
    }
    let profile = EngineProfile::LLAMA_CPP_V0_5_0;
    let breakdown = Breakdown::estimate(model, &run, &layout, &profile).unwrap();
    breakdown.runtime
}

#[derive(Default)]
struct Tally {
    rows: usize,
    checked: usize,
    above: Vec<String>,
    /// The most that a figure is above.
    above_bytes: u64,
    wrong: Vec<String>,
}

/// Every figure of the table: equal, unless the model says that its own is a bound; with
/// `sms_known` false, or models read as if unknown, all may be. None is ever below. `every`: one row of so many.
fn tally(table: &Table, sms_known: bool, by: Load, every: usize) -> Tally {
    let text = std::fs::read_to_string(common::fixture(table.file)).unwrap();
    let mut models = BTreeMap::new();
    let mut tally = Tally::default();
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        tally.rows += 1;
        if tally.rows % every != 0 {
            continue;
        }
        let (row, sms, measured) = read(line);
        let Some(measured) = measured else { continue };
        let model = models
            .entry(row.model.clone())
            .or_insert_with(|| load(&row.model, by));
        let sms: Vec<Option<u32>> = sms.iter().map(|&n| sms_known.then_some(n)).collect();
        let predicted = predict(&row, table.kind, &sms, model);
        assert_eq!(predicted.len(), measured.len());
        for (i, (r, measured)) in predicted.iter().zip(measured).enumerate() {
            tally.checked += 1;
            let text = || {
                format!(
                    "{line}: of CUDA{i} predicted {}/{} bound {}",
                    r.pool_bytes, r.workspace_bytes, r.is_bound
                )
            };
            let pairs = match measured {
                Measured::Apart([pool, workspace]) => {
                    vec![(r.pool_bytes, pool), (r.workspace_bytes, workspace)]
                }
                Measured::Together(both) => vec![(r.pool_bytes + r.workspace_bytes, both)],
            };
            let is_below = pairs.iter().any(|(ours, theirs)| ours < theirs);
            let is_above = pairs.iter().any(|(ours, theirs)| ours > theirs);
            // whether cuBLAS is used does not depend on the card's multiprocessors
            let workspace_differs = match measured {
                Measured::Apart([_, n]) => model.is_known() && r.workspace_bytes != n,
                Measured::Together(_) => false,
            };
            let may_be_above = r.is_bound
                || (table.kind == PoolKind::Legacy
                    && WITHOUT_GENERATION.iter().any(|row| line.starts_with(row)));
            if is_below || workspace_differs || (is_above && !may_be_above) {
                tally.wrong.push(text());
            } else if is_above {
                let by = pairs.iter().map(|(ours, theirs)| ours - theirs);
                tally.above_bytes = tally.above_bytes.max(by.max().unwrap());
                tally.above.push(text());
            }
        }
    }
    if let Ok(path) = std::env::var("VRAMFIT_POOL_DIFFERENCES") {
        let all = [&tally.wrong[..], &tally.above].concat();
        let file = format!("{path}.{:?}.{sms_known}", table.kind);
        std::fs::write(file, all.join("\n")).unwrap();
    }
    assert!(tally.rows >= table.least_rows, "only {} rows", tally.rows);
    assert!(
        tally.checked >= table.least_checked / every,
        "only {} figures",
        tally.checked
    );
    let some: Vec<&String> = tally.wrong.iter().take(5).collect();
    let (n, of) = (tally.wrong.len(), tally.checked);
    assert!(
        tally.wrong.is_empty(),
        "{n} of {of} figures differ, e.g.\n{some:#?}"
    );
    tally
}

#[test]
fn every_figure_is_equal() {
    let tally = tally(&VMM, true, Model::load, 1);
    assert!(
        tally.above.is_empty(),
        "{:#?}",
        &tally.above[..5.min(tally.above.len())]
    );
}

/// Of the legacy kind, too, but where the figure is of experts that no kernel chose, or the engine had
/// no room for the token behind the prompt.
#[test]
fn every_figure_of_a_legacy_pool_is_equal() {
    let tally = tally(&LEGACY, true, Model::load, 1);
    let by_experts = |row: &&String| row.starts_with("llama-4-scout.Q4_K_M.gguf\t3.7*13");
    let others: Vec<&String> = tally.above.iter().filter(|row| !by_experts(row)).collect();
    assert!(others.len() <= WITHOUT_GENERATION.len(), "{others:#?}");
    // the README says so
    assert_eq!(tally.above.len() as u64, LEGACY_ABOVE);
    let above_mib = tally.above_bytes as f64 / f64::from(1 << 20);
    assert!(above_mib <= LEGACY_ABOVE_MIB, "{above_mib}");
}

#[test]
fn no_figure_is_below_where_the_multiprocessors_are_not_known() {
    tally(&VMM, false, Model::load, 1);
    // Each number of them is a pool of its own: VRAMFIT_POOL_EVERY=1 takes every row.
    let every = std::env::var("VRAMFIT_POOL_EVERY").map_or(3, |n| n.parse().unwrap());
    tally(&LEGACY, false, Model::load, every);
}

#[test]
fn no_figure_is_below_where_the_architecture_is_not_known() {
    for table in [&VMM, &LEGACY] {
        let tally = tally(table, true, Model::load_as_unknown, 1);
        println!("{} of {} above", tally.above.len(), tally.checked);
    }
}

/// `-sm tensor`: every GPU computes a part of each operation, of which only a bound is known. What the
/// engine took by `cudaMalloc` beside its buffers (workspace, what results are added up through) is in it, too.
#[test]
fn no_figure_of_shared_out_tensors_is_below() {
    const TABLE: &str = "truth/pool-tensor-llama.cpp-v0.5.0-cuda13.tsv";
    let text = std::fs::read_to_string(common::fixture(TABLE)).unwrap();
    let (mut checked, mut equal, mut wrong, mut above) = (0, 0, Vec::new(), Vec::new());
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        if line.contains("\trefused") || line.contains("\tcrashed") {
            continue;
        }
        let (row, sms, measured) = read(line);
        let model = load(&row.model, Model::load);
        let (run, mut layout) = row.settings(&row.devices(), &model).unwrap();
        for (device, &n) in layout.devices.iter_mut().zip(&sms) {
            device.sm_count = Some(n);
        }
        let profile = EngineProfile::LLAMA_CPP_V0_5_0;
        let breakdown = Breakdown::estimate(&model, &run, &layout, &profile).unwrap();
        let gpus = breakdown.devices.iter().zip(&breakdown.runtime);
        for ((buffers, runtime), measured) in gpus.zip(measured.unwrap()) {
            let Measured::Apart([pool, malloc]) = measured else {
                panic!("two figures: {line}");
            };
            let predicted = buffers.sum() + runtime.workspace_bytes + runtime.reduce_bytes;
            checked += 1;
            equal += usize::from(runtime.pool_bytes == pool && predicted == malloc);
            above.push((runtime.pool_bytes + predicted).saturating_sub(pool + malloc) >> 20);
            if runtime.pool_bytes < pool || predicted < malloc {
                wrong.push(format!(
                    "{line}: predicted {}/{predicted}",
                    runtime.pool_bytes
                ));
            }
        }
    }
    above.sort_unstable();
    let [median, most] = [above.len() / 2, above.len() - 1].map(|i| above[i]);
    println!("{equal} of {checked} equal, {median} MiB above in the median, {most} at most");
    let some: Vec<&String> = wrong.iter().take(5).collect();
    assert!(
        wrong.is_empty(),
        "{} of {checked} are below, e.g.\n{some:#?}",
        wrong.len()
    );
    // the README's words
    assert_eq!((checked, equal, median), (285, 39, 8));
}
