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
use vramfit_estimate::{Bounded, Breakdown, EngineProfile, MemoryBytes};
use vramfit_gguf::Header;

/// What the engine took, by device, the host last.
fn measured(row: &Row) -> Vec<[u64; 3]> {
    let memories = truth::memories(&row.expected).unwrap();
    let devices = row.devices();
    let names = devices.iter().map(|d| format!("CUDA{}", d.index));
    let names = names.chain(["host".to_string()]);
    let of = |name: String| memories.get(name.as_str()).copied();
    names.map(|name| of(name).unwrap_or_default()).collect()
}

#[test]
fn bounds_hold_for_every_known_architecture() {
    let rows: Vec<Row> = TABLES.into_iter().flat_map(truth::rows).collect();
    let mut models = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut checked = 0;
    let mut ratios = Vec::new();
    let mut n_exact = 0;
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
        let truth = measured(row);
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
            let are_weights_exact = b.bounded == Bounded::AllButWeights;
            n_exact += are_weights_exact as usize;
            let is_wrong = are_weights_exact && model != truth[0];
            if is_wrong || model < truth[0] || context < truth[1] || compute < truth[2] {
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
        "{checked} memories, the weights of {n_exact} promised exact; compute bound / truth {lowest:.2} to {median:.1} (median), {most:.0} (90 %)"
    );
    assert!(n_exact > 0 && n_exact < checked);
    let some: Vec<&String> = wrong.iter().take(5).collect();
    assert!(
        wrong.is_empty(),
        "{} of {checked} are below, e.g.\n{some:#?}",
        wrong.len()
    );
}
