//! The graphs of one case, node by node.

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use vramfit_arch::Model;
use vramfit_estimate::{EngineProfile, NodeRow, Pass, RowKind, node_list};

use super::check::{Worker, truth_row};
use crate::case::Case;
use crate::common::graphs::{around, engine_tables, first_difference, our_table};
use crate::common::truth;
use crate::error::Result;
use crate::graphs::shortened;
use crate::row::Outcome;

/// Where both passes' node lists part; nothing if they do not, or if there is no list of the engine's.
pub fn report(worker: &mut Worker<'_>, case: &Case, model: &Model) -> Result<Option<String>> {
    let (row, Some(text)) = worker.ask_graph(case)? else {
        return Ok(None);
    };
    if row.outcome == Outcome::Crashed {
        return Ok(None);
    }
    let engine = engine_tables(&shortened(&text)?);
    let truth = truth_row(case, &row);
    let mut text = String::new();
    for (pass, engine) in Pass::ALL.into_iter().zip(&engine) {
        let rows = catch_unwind(AssertUnwindSafe(|| rows(&truth, model, pass)))
            .unwrap_or(Err("panic: see above".to_owned()));
        let ours = match rows {
            Ok(rows) => our_table(&rows),
            Err(error) => {
                let _ = writeln!(text, "  graphs: ours: {error}");
                break;
            }
        };
        if let Some(at) = first_difference(engine, &ours) {
            let what = match at.0 {
                RowKind::Node => "the first node that differs",
                RowKind::Leaf => "nodes are equal; the first leaf that differs",
                RowKind::Split => {
                    "nodes are equal; the first split that differs (nodes, inputs, backend)"
                }
                RowKind::Dependency => {
                    "nodes and splits are equal; the first dependency that differs"
                }
            };
            let rows = around(engine, &ours, at, 3);
            let _ = write!(text, "  {pass:?}, {what}:\n{rows}");
        }
    }
    Ok(Some(text).filter(|text| !text.is_empty()))
}

/// Our rows, with devices called as the machine calls them.
fn rows(row: &truth::Row, model: &Model, pass: Pass) -> std::result::Result<Vec<NodeRow>, String> {
    let devices = row.devices();
    let (run, layout) = row.settings(&devices, model)?;
    let profile = EngineProfile::LLAMA_CPP_V0_5_0;
    let rows = node_list(model, &run, &layout, &profile, pass);
    let mut rows = rows.map_err(|error| error.to_string())?;
    for row in &mut rows {
        let number = row
            .backend
            .strip_prefix("CUDA")
            .and_then(|i| i.parse().ok());
        if let Some(gpu) = number.and_then(|i: usize| devices.get(i)) {
            row.backend = format!("CUDA{}", gpu.index);
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::graphs::Table;

    /// A prompt pass in the compact form: leafs, then a split of nodes.
    fn table(rows: &[&str]) -> Table {
        let rows: Vec<String> = rows
            .iter()
            .map(|row| format!("pp\t{}", row.replace(' ', "\t")))
            .collect();
        let [prompt, _] = engine_tables(&rows.join("\n"));
        prompt
    }

    const LEAF: &str = "leaf  NONE w f32 8,1,1,1 held - - CPU";
    const NODE: &str = "node n0 SQR x f32 8,1,1,1 - - l0 CPU";
    const NEXT: &str = "node n1 SQRT x f32 8,1,1,1 - - n0 CPU";
    const SPLIT: &str = "split s0 - n0..n1 - - - - - CPU";

    #[test]
    fn equal_lists_have_no_difference() {
        let one = table(&[LEAF, NODE, NEXT, SPLIT]);
        assert_eq!(first_difference(&one, &one), None);
    }

    #[test]
    fn a_leaf_more_is_no_difference_of_the_nodes_that_follow() {
        let engine = table(&[LEAF, NODE, NEXT, SPLIT]);
        let moved = table(&[
            "leaf l0 NONE i i32 8,1,1,1 input - - CPU",
            "leaf l1 NONE w f32 8,1,1,1 held - - CPU",
            &NODE.replace("l0", "l1"),
            NEXT,
            SPLIT,
        ]);
        assert_eq!(first_difference(&engine, &moved), Some((RowKind::Leaf, 0)));
    }

    #[test]
    fn the_first_node_that_differs_comes_before_splits_and_is_shown_on_both_sides() {
        let engine = table(&[LEAF, NODE, NEXT, SPLIT]);
        let ours = table(&[
            LEAF,
            NODE,
            &NEXT.replace("SQRT", "EXP"),
            &SPLIT.replace("CPU", "CUDA0"),
        ]);
        let at = first_difference(&engine, &ours);
        assert_eq!(at, Some((RowKind::Node, 1)));
        let text = around(&engine, &ours, (RowKind::Node, 1), 3);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(
            text.contains("engine n1") && text.contains("ours   n1"),
            "{text}"
        );
        let shorter = table(&[LEAF, NODE, SPLIT]);
        assert_eq!(
            first_difference(&engine, &shorter),
            Some((RowKind::Node, 1))
        );
        let split = table(&[LEAF, NODE, NEXT, &SPLIT.replace("CPU", "CUDA0")]);
        assert_eq!(first_difference(&engine, &split), Some((RowKind::Split, 0)));
    }
}
