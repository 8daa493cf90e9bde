//! Known architectures treated as unknown: weights as exact as before, caches and compute buffers never below what the
//! real llama.cpp took.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types
)] // tests read files and may panic

mod common;

use common::bound::held;
use common::table::TABLES;
use common::truth::{self, Row, Status};
use std::collections::BTreeMap;
use vramfit_arch::Model;
use vramfit_gguf::Header;

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
        for memory in held(row, model) {
            let (engine, bound) = (memory.engine, memory.bound);
            checked += 1;
            n_exact += memory.are_weights_exact as usize;
            if engine[0] > 0 && engine[2] > 0 {
                ratios.push(bound[2] as f64 / engine[2] as f64);
            }
            if !memory.holds() {
                wrong.push(format!(
                    "{} | {} | {}\n  engine {engine:?}\n  bound  {bound:?}",
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
