//! Known architectures treated as unknown: weights as exact as before, caches and compute buffers never below what the
//! real llama.cpp took.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types
)] // tests read files and may panic

mod common;

use common::table::TABLES;
use common::truth::{self, Row, Status};
use std::collections::BTreeMap;
use vramfit_arch::Model;
use vramfit_estimate::{Breakdown, EngineProfile, MemoryBytes};
use vramfit_gguf::Header;

/// `CUDA0=model/context/compute` and the like of a row: by device, the host last.
fn measured(row: &Row, n_devices: usize) -> Vec<[u64; 3]> {
    let mut all = vec![[0; 3]; n_devices + 1];
    let devices = row.devices();
    for word in row.expected.split(' ') {
        let Some((name, numbers)) = word.split_once('=') else {
            continue;
        };
        let numbers: Vec<u64> = numbers.split('/').map(|n| n.parse().unwrap()).collect();
        let at = match name {
            "host" => n_devices,
            "CPU_REPACK" => continue,
            _ => devices
                .iter()
                .position(|d| format!("CUDA{}", d.index) == name)
                .unwrap(),
        };
        all[at] = numbers.try_into().unwrap();
    }
    all
}

#[test]
fn bounds_hold_for_every_known_architecture() {
    let rows: Vec<Row> = TABLES.into_iter().flat_map(truth::rows).collect();
    let mut models = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut checked = 0;
    let mut ratios = Vec::new();
    for row in rows.iter().filter(|r| r.status == Status::Ok) {
        let model = models.entry(&row.model).or_insert_with(|| {
            let header = Header::open(common::fixture(&format!("gguf/{}", row.model))).unwrap();
            Model::load_as_unknown(&header).unwrap()
        });
        let devices = row.devices();
        let (run, layout) = row.settings(&devices, model).unwrap();
        let b =
            Breakdown::estimate(model, &run, &layout, &EngineProfile::LLAMA_CPP_V0_5_0).unwrap();
        assert!(b.bounded.is_bound());
        let truth = measured(row, b.devices.len());
        for (of, truth) in b.devices.iter().chain([&b.host]).zip(&truth) {
            let &MemoryBytes {
                model,
                context,
                compute,
                ..
            } = of;
            checked += 1;
            if truth[0] > 0 && truth[2] > 0 {
                ratios.push(compute as f64 / truth[2] as f64);
            }
            if model < truth[0] || context < truth[1] || compute < truth[2] {
                wrong.push(format!(
                    "{} | {} | {}\n  engine {truth:?}\n  bound  [{model}, {context}, {compute}]",
                    row.model, row.gpus, row.flags
                ));
            }
        }
    }
    ratios.sort_by(f64::total_cmp);
    let quantile = |q: f64| ratios[((ratios.len() - 1) as f64 * q) as usize];
    let [lowest, median, most] = [0.0, 0.5, 0.9].map(quantile);
    println!(
        "{checked} memories; compute bound / truth {lowest:.2} to {median:.1} (median), {most:.0} (90 %)"
    );
    let some: Vec<&String> = wrong.iter().take(5).collect();
    assert!(
        wrong.is_empty(),
        "{} of {checked} are below, e.g.\n{some:#?}",
        wrong.len()
    );
}
