//! What ggml-cuda took while it computed, in real decodes on imaginary GPUs, against the model.
//! `cargo run -p vramfit-oracle -- pool` makes the table.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types
)] // tests read files and may panic

mod common;

use common::truth::{Row, Status};
use std::collections::BTreeMap;
use vramfit_arch::Model;
use vramfit_estimate::{Breakdown, EngineProfile, Runtime};
use vramfit_gguf::Header;

const TABLE: &str = "truth/pool-llama.cpp-v0.5.0-cuda13.tsv";
/// Rows of the table, and those that ran: a table cut short must not pass.
const LEAST_ROWS: usize = 2_000;
const LEAST_CHECKED: usize = 1_900;

type Load = fn(&Header) -> vramfit_arch::Result<Model>;

fn load(file: &str, by: Load) -> Model {
    let header = Header::open(common::fixture(&format!("gguf/{file}"))).unwrap();
    by(&header).unwrap()
}

/// A row of the table as a case that `common` understands, the SM counts, and what was measured:
/// pool and workspace of each GPU.
fn read(line: &str) -> (Row, Vec<u32>, Option<Vec<[u64; 2]>>) {
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
    let pair = |text: &str| {
        let (pool, workspace) = text.split_once('/').unwrap();
        [pool.parse().unwrap(), workspace.parse().unwrap()]
    };
    let measured =
        (!runtime.starts_with("crashed")).then(|| runtime.split(' ').map(pair).collect());
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

fn predict(row: &Row, sms: &[Option<u32>], model: &Model) -> Vec<Runtime> {
    let (run, mut layout) = row.settings(&row.devices(), model).unwrap();
    for (device, &n) in layout.devices.iter_mut().zip(sms) {
        device.sm_count = n;
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
    wrong: Vec<String>,
}

/// Every figure of the table: equal, unless the model says that its own is a bound; with
/// `sms_known` false, or models read as if unknown, all may be. None is ever below.
fn tally(sms_known: bool, by: Load) -> Tally {
    let text = std::fs::read_to_string(common::fixture(TABLE)).unwrap();
    let mut models = BTreeMap::new();
    let mut tally = Tally::default();
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        tally.rows += 1;
        let (row, sms, measured) = read(line);
        let Some(measured) = measured else { continue };
        let model = models
            .entry(row.model.clone())
            .or_insert_with(|| load(&row.model, by));
        let sms: Vec<Option<u32>> = sms.iter().map(|&n| sms_known.then_some(n)).collect();
        let predicted = predict(&row, &sms, model);
        assert_eq!(predicted.len(), measured.len());
        for (r, [pool, workspace]) in predicted.iter().zip(measured) {
            tally.checked += 1;
            let text = || {
                format!(
                    "{line}: predicted {}/{} bound {}",
                    r.pool_bytes, r.workspace_bytes, r.is_bound
                )
            };
            let is_below = r.workspace_bytes < workspace || r.pool_bytes < pool;
            let is_above = r.workspace_bytes > workspace || r.pool_bytes > pool;
            // whether cuBLAS is used does not depend on the card's multiprocessors
            let workspace_differs = model.is_known() && r.workspace_bytes != workspace;
            if is_below || workspace_differs || (is_above && !r.is_bound) {
                tally.wrong.push(text());
            } else if is_above {
                tally.above.push(text());
            }
        }
    }
    if let Ok(path) = std::env::var("VRAMFIT_POOL_DIFFERENCES") {
        let all = [&tally.wrong[..], &tally.above].concat();
        std::fs::write(format!("{path}.{sms_known}"), all.join("\n")).unwrap();
    }
    assert!(tally.rows >= LEAST_ROWS, "only {} rows", tally.rows);
    assert!(
        tally.checked >= LEAST_CHECKED,
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
    let tally = tally(true, Model::load);
    assert!(
        tally.above.is_empty(),
        "{:#?}",
        &tally.above[..5.min(tally.above.len())]
    );
}

#[test]
fn no_figure_is_below_where_the_multiprocessors_are_not_known() {
    tally(false, Model::load);
}

#[test]
fn no_figure_is_below_where_the_architecture_is_not_known() {
    let tally = tally(true, Model::load_as_unknown);
    println!("{} of {} above", tally.above.len(), tally.checked);
}
