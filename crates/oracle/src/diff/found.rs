//! A difference as it is told.

use super::check::{Verdict, Worker, truth_row};
use super::subject::Subject;
use super::{minimise, nodes, show};
use crate::case::{Case, gpus_text};
use crate::error::Result;
use crate::models;
use crate::row::{Outcome, Row};
use crate::settings::Settings;

/// The smallest case of the same sort, both sides, and where the graphs part.
pub fn minimised(
    worker: &mut Worker<'_>,
    subject: &Subject,
    facts: &models::Model,
    (settings, case): (Settings, &Case),
    found: Verdict,
) -> Result<String> {
    let kind = found.kind();
    let mut smallest = (case.clone(), found);
    let mut failed = None;
    minimise::minimise(settings, |candidate| {
        let case = candidate.clone().case(facts);
        match worker.compare(subject, &case) {
            Ok(verdict) if verdict.differs() && verdict.kind() == kind => {
                smallest = (case, verdict);
                true
            }
            Ok(_) => false,
            Err(error) => {
                failed = Some(error);
                false
            }
        }
    });
    if let Some(error) = failed {
        return Err(error);
    }
    let (small, verdict) = smallest;
    let graphs = match &subject.model {
        Ok(model) if model.is_known() && verdict.row.outcome == Outcome::Loaded => {
            let equal = || "  graphs: nodes, splits, inputs and dependencies are equal\n".into();
            nodes::report(worker, &small, model)?.unwrap_or_else(equal)
        }
        _ => String::new(),
    };
    let gpus = gpus_text(&case.gpus);
    let more = format!("  found with {gpus} {}\n{graphs}", case.flags);
    Ok(text(subject, &small, &verdict.row, &verdict.ours, &more))
}

/// A difference of node lists, with the figures of both sides.
pub fn with_figures(
    worker: &mut Worker<'_>,
    subject: &Subject,
    case: &Case,
    graphs: &str,
) -> Result<String> {
    let row = worker.ask(case)?;
    let ours = subject.estimate(&truth_row(case, &row));
    Ok(text(subject, case, &row, &ours, graphs))
}

fn text(subject: &Subject, case: &Case, row: &Row, ours: &str, more: &str) -> String {
    let engine = truth_row(case, row).expected;
    format!(
        "  {}\n{}{more}",
        case.command(&subject.shown),
        show::side_by_side(&engine, ours)
    )
}
