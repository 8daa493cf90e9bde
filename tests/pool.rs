//! What ggml-cuda took while it computed, in real decodes on imaginary GPUs, against the model.
//! `cargo run -p vramfit-oracle -- pool` makes the table, with `--kind legacy` that of the other kind of pool.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types
)] // tests read files and may panic

mod common;

use common::figures::{
    HISTORIES_MORE, HISTORIES_PER_CENT, HISTORIES_STARVED, LEGACY_ABOVE, LEGACY_ABOVE_MIB,
    LEGACY_BOUNDS, VMM_ABOVE,
};
use common::pools::{Measured, figures};
use common::truth::{Row, Status};
use std::collections::BTreeMap;
use vramfit_arch::Model;
use vramfit_estimate::{Breakdown, EngineProfile, Runtime};
use vramfit_ggml::cuda::{POOL_GRANULARITY, PoolKind};
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

const HISTORIES: Table = Table {
    file: "truth/pool-histories-llama.cpp-v0.5.0-cuda13.tsv",
    kind: PoolKind::Legacy,
    least_rows: 270,
    least_checked: 250,
};

/// The engine had no room left for the token behind the prompt, which takes a buffer more.
const WITHOUT_GENERATION: [&str; 5] = [
    "deepseek-v2-lite.Q4_K_M.gguf\t7.5*40,8.0*108\t-c 2048 -b 512 -ub 64 -fa on --embeddings --decode 2048",
    "made/bitnet-tq2.gguf\t9.0*132\t-c 2048 -b 2048 -ub 512 -np 2 --kv-unified 1 -fa on",
    "made/chameleon.gguf\t8.6*28\t-c 3072 -b 2048 -ub 2048 -np 3 --kv-unified 0 -fa on",
    "made/hy_v4-full.gguf\t7.5*40\t-c 2048 -b 2048 -ub 64 -np 2 --kv-unified 0 -fa on",
    "made/mpt-full.gguf\t8.6*28\t-c 3072 -b 2048 -ub 2048 -np 3 --kv-unified 0 -fa on",
];
/// Caches that are compressed or chosen from, whose legacy pools have a bound.
const BOUNDED: [&str; 2] = ["made/deepseek4", "made/minimax-m3"];

type Load = fn(&Header) -> vramfit_arch::Result<Model>;

fn load(file: &str, by: Load) -> Model {
    let header = Header::open(common::fixture(&format!("gguf/{file}"))).unwrap();
    by(&header).unwrap()
}

/// A row of the table as a case that `common` understands, and the SM counts.
fn read(line: &str) -> (Row, Vec<u32>) {
    let columns: Vec<&str> = line.split('\t').collect();
    let [model, gpus, flags, _] = columns[..] else {
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
    /// Figures above the engine's, and by how much, bytes.
    above: Vec<(String, u64)>,
    wrong: Vec<String>,
}

/// Every figure of the table: equal, unless the model says that its own is a bound or, of batches up to a size, the
/// engine was not asked for the one that takes most: then by no more than a granule of the pool. With
/// `sms_known` false, or models read as if unknown, all may be. None is ever below. `every`: one row of so many.
fn tally(table: &Table, sms_known: bool, by: Load, every: usize) -> Tally {
    let text = std::fs::read_to_string(common::fixture(table.file)).unwrap();
    let mut models = BTreeMap::new();
    let mut tally = Tally::default();
    for (line, measured) in figures(&text) {
        tally.rows += 1;
        if tally.rows % every != 0 {
            continue;
        }
        let (row, sms) = read(line);
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
                    "{line}: of CUDA{i} at most {measured:?}, predicted {}/{} bound {}",
                    r.pool_bytes, r.workspace_bytes, r.is_bound
                )
            };
            let pairs = match measured {
                Measured::Apart([pool, workspace]) => {
                    vec![(r.pool_bytes, pool), (r.workspace_bytes, workspace)]
                }
                // prompts that fill the context, in an empty pool
                Measured::Together(both) => vec![(r.pool_filled_bytes + r.workspace_bytes, both)],
            };
            let is_below = pairs.iter().any(|(ours, theirs)| ours < theirs);
            let is_above = pairs.iter().any(|(ours, theirs)| ours > theirs);
            // whether cuBLAS is used does not depend on the card's multiprocessors
            let workspace_differs = match measured {
                Measured::Apart([_, n]) => model.is_known() && r.workspace_bytes != n,
                Measured::Together(_) => false,
            };
            let above = pairs
                .iter()
                .map(|(ours, theirs)| ours.saturating_sub(*theirs));
            let above = above.max().unwrap();
            let may_be_above = r.is_bound
                || (table.kind == PoolKind::Vmm && row.flags.contains("--decode-each"))
                || (table.kind == PoolKind::Legacy
                    && WITHOUT_GENERATION.iter().any(|row| line.starts_with(row)));
            if is_below || workspace_differs || (is_above && !may_be_above) {
                tally.wrong.push(text());
            } else if is_above {
                tally.above.push((text(), above));
            }
        }
    }
    if let Ok(path) = std::env::var("VRAMFIT_POOL_DIFFERENCES") {
        let above = tally.above.iter().map(|(text, _)| text);
        let all = tally.wrong.iter().chain(above);
        let all: Vec<&str> = all.map(String::as_str).collect();
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
    let further = tally.above.iter().find(|(_, by)| *by > POOL_GRANULARITY);
    assert_eq!(further, None);
    // the README says so
    assert_eq!(tally.above.len() as u64, VMM_ABOVE);
}

/// Of the legacy kind, too, but where the figure is a bound: of experts that no kernel chose, or of caches that are
/// compressed or chosen from; or where the engine had no room for the token behind the prompt.
#[test]
fn every_figure_of_a_legacy_pool_is_equal() {
    let tally = tally(&LEGACY, true, Model::load, 1);
    let is_bounded = |row: &str| BOUNDED.iter().any(|model| row.starts_with(model));
    let [bounds, others]: [Vec<_>; 2] = [true, false].map(|bounded| {
        let above = tally.above.iter();
        let all = above.filter(|(row, _)| is_bounded(row) == bounded);
        all.collect()
    });
    let by_experts = |row: &str| row.starts_with("llama-4-scout.Q4_K_M.gguf\t3.7*13");
    let n_others = others.iter().filter(|(row, _)| !by_experts(row)).count();
    assert!(n_others <= WITHOUT_GENERATION.len(), "{others:#?}");
    // the README says so
    let counts = [others.len(), bounds.len()].map(|n| n as u64);
    assert_eq!(counts, [LEGACY_ABOVE, LEGACY_BOUNDS]);
    let most = others.iter().map(|(_, by)| *by).max().unwrap();
    let above_mib = most as f64 / f64::from(1 << 20);
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
    for (line, measured) in figures(&text) {
        let Some(measured) = measured else { continue };
        let (row, sms) = read(line);
        let model = load(&row.model, Model::load);
        let (run, mut layout) = row.settings(&row.devices(), &model).unwrap();
        for (device, &n) in layout.devices.iter_mut().zip(&sms) {
            device.sm_count = Some(n);
        }
        let profile = EngineProfile::LLAMA_CPP_V0_5_0;
        let breakdown = Breakdown::estimate(&model, &run, &layout, &profile).unwrap();
        let gpus = breakdown.devices.iter().zip(&breakdown.runtime);
        for ((buffers, runtime), measured) in gpus.zip(measured) {
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

/// Prompts of random lengths in legacy pools: what is shown is the most of some histories, and others leave more; what a pool
/// cannot do without is with a part of 64 of what it keeps, as finely as the engine was asked.
#[test]
fn few_histories_leave_more_in_a_legacy_pool() {
    let text = common::fixture(HISTORIES.file);
    let text = std::fs::read_to_string(text).unwrap();
    let mut checked = 0u64;
    let (mut more, mut starved) = (Vec::new(), Vec::new());
    for (line, measured) in figures(&text) {
        let (row, sms) = read(line);
        let Some(measured) = measured else { continue };
        let model = load(&row.model, Model::load);
        let sms: Vec<Option<u32>> = sms.iter().copied().map(Some).collect();
        let predicted = predict(&row, HISTORIES.kind, &sms, &model);
        let ([r], [Measured::Apart([kept, least])]) = (&predicted[..], &measured[..]) else {
            panic!("one GPU, two figures: {line}");
        };
        checked += 1;
        let shown = r.pool_bytes + r.workspace_bytes;
        if *kept > shown {
            let per_cent = 100 * (kept - shown) / shown.max(1);
            more.push((per_cent, format!("{line}: {shown}")));
        }
        let needed = r.pool_least_bytes + r.workspace_bytes;
        // with a part less it did not
        if *least > needed + kept / 64 + 1 {
            starved.push((
                100 * (least - needed) / needed.max(1),
                format!("{line}: {needed}"),
            ));
        }
    }
    more.sort_unstable();
    starved.sort_unstable();
    println!("{checked}: {more:#?} {starved:#?}");
    assert!(checked as usize >= HISTORIES.least_checked);
    // the README says so
    let most = |of: &[(u64, String)]| of.last().map_or(0, |(per_cent, _)| 1 + per_cent);
    let counts = [more.len(), starved.len()].map(|n| n as u64);
    assert_eq!(counts, [HISTORIES_MORE, HISTORIES_STARVED]);
    assert_eq!([most(&more), most(&starved)], HISTORIES_PER_CENT);
}

/// A batch that is played has to be one that runs: a draft's blocks are as long for each sequence.
#[test]
fn drafts_of_blocks_have_a_figure_with_either_kind() {
    for model in ["made/dflash-post.gguf", "made/dflash-dspark.gguf"] {
        let loaded = load(model, Model::load);
        for (n_seqs, kind) in [3, 4]
            .into_iter()
            .flat_map(|n| [PoolKind::Vmm, PoolKind::Legacy].map(|kind| (n, kind)))
        {
            let row = Row {
                model: model.to_string(),
                gpus: format!("{}:9.0", 1u64 << 42),
                flags: format!("-c 4096 -b 512 -ub 33 -np {n_seqs} --kv-unified 1 -fa off"),
                status: Status::Ok,
                expected: String::new(),
            };
            let runtime = predict(&row, kind, &[Some(132)], &loaded);
            assert!(runtime.iter().all(|r| r.pool_bytes > 0), "{model} {n_seqs}");
        }
    }
}
