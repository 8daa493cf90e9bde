//! Why requests for reservations were answered as they were: the last ones are kept, so that whoever runs the
//! server can see what a client was told.

use crate::api::{DecisionList, DecisionReport, GpuSums, LookedAt};
use crate::problem::Problem;
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use vramfit::ledger::{Decision, State};
use vramfit::{Grant, LoadRequest};

/// Decisions that are kept; one has an option a GPU, or a few more.
pub const KEPT: usize = 256;

/// The last decisions.
#[derive(Debug, Default)]
pub struct Decisions(Mutex<Numbered>);

#[derive(Debug, Default)]
struct Numbered {
    /// How many there were.
    last: u64,
    kept: VecDeque<DecisionReport>,
}

/// Which of them are asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Page {
    /// Those with smaller numbers.
    pub before: u64,
    /// At most so many.
    pub limit: usize,
}

impl Page {
    /// Of a query: `before=17&limit=20`, both where wanted.
    pub fn read(query: &str) -> Result<Page, Problem> {
        let mut page = Page {
            before: u64::MAX,
            limit: KEPT,
        };
        let mut given = BTreeSet::new();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            let number = || value.parse().ok().filter(|&number: &u64| number > 0);
            let wrong = |most: &str| Problem::bad(format!("{key}: '{value}': give 1 to {most}"));
            match &*key {
                "before" => page.before = number().ok_or_else(|| wrong(&u64::MAX.to_string()))?,
                "limit" => {
                    let limit = number().and_then(|limit| usize::try_from(limit).ok());
                    let limit = limit.filter(|&limit| limit <= KEPT);
                    page.limit = limit.ok_or_else(|| wrong(&KEPT.to_string()))?;
                }
                _ => return Err(Problem::bad(format!("{key}: there are before and limit"))),
            }
            if !given.insert(key.clone()) {
                return Err(Problem::bad(format!("{key}: give it once")));
            }
        }
        Ok(page)
    }
}

impl Decisions {
    fn all(&self) -> MutexGuard<'_, Numbered> {
        // Whole after every step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The latest first.
    pub fn page(&self, page: Page) -> DecisionList {
        let all = self.all();
        let kept = all.kept.iter().rev();
        let mut older = kept.filter(|one| one.number < page.before);
        let decisions: Vec<_> = older.by_ref().take(page.limit).cloned().collect();
        let is_more = older.next().is_some();
        let last = decisions.last().map(|one| one.number);
        DecisionList {
            decisions,
            next: last.filter(|_| is_more),
        }
    }

    fn keep(&self, mut decision: DecisionReport) {
        let mut all = self.all();
        all.last = all.last.saturating_add(1);
        decision.number = all.last;
        if all.kept.len() == KEPT {
            all.kept.pop_front();
        }
        all.kept.push_back(decision);
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
            number: 0,
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
            number: 0,
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
