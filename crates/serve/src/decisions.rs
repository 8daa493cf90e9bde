//! Why requests for reservations were answered as they were: the last ones are kept, so that whoever runs the
//! server can see what a client was told.

use crate::api::{DecisionReport, GpuSums, LookedAt};
use crate::problem::Problem;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use vramfit::ledger::{Decision, State};
use vramfit::{Grant, LoadRequest};

/// Decisions that are kept; one has an option a GPU, or a few more.
const KEPT: usize = 256;

/// The last decisions.
#[derive(Debug, Default)]
pub struct Decisions(Mutex<VecDeque<DecisionReport>>);

impl Decisions {
    fn all(&self) -> MutexGuard<'_, VecDeque<DecisionReport>> {
        // Whole after every step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The latest first.
    pub fn latest(&self) -> Vec<DecisionReport> {
        self.all().iter().rev().cloned().collect()
    }

    fn keep(&self, decision: DecisionReport) {
        let mut all = self.all();
        if all.len() == KEPT {
            all.pop_front();
        }
        all.push_back(decision);
    }

    /// A reservation was made.
    pub fn granted(&self, load: &LoadRequest, grant: &Grant) {
        let Decision {
            at_ms,
            options,
            before,
            after,
            ..
        } = &grant.decision;
        self.keep(DecisionReport {
            at_ms: *at_ms,
            model: load.model.to_string(),
            holder: load.holder.to_string(),
            reservation: Some(grant.id.0),
            refused: None,
            detail: None,
            options: options.iter().map(LookedAt::from).collect(),
            rejected: Vec::new(),
            before: before.iter().map(GpuSums::from).collect(),
            after: after.iter().map(GpuSums::from).collect(),
        });
    }

    /// None was made; `state` is the ledger then, where the problem does not have it.
    pub fn refused(&self, load: &LoadRequest, at_ms: u64, problem: &Problem, state: &State) {
        let about = &problem.about;
        let before = match about.before.is_empty() {
            true => state.gpus().iter().map(GpuSums::from).collect(),
            false => about.before.clone(),
        };
        self.keep(DecisionReport {
            at_ms,
            model: load.model.to_string(),
            holder: load.holder.to_string(),
            reservation: None,
            refused: Some(problem.kind.clone()),
            detail: Some(problem.detail.clone()),
            options: about.options.clone(),
            rejected: about.rejected.clone(),
            after: before.clone(),
            before,
        });
    }
}
