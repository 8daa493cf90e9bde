//! One case: the engine's answer held against ours.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::show;
use super::subject::Subject;
use crate::case::Case;
use crate::common::{bound, truth};
use crate::error::Result;
use crate::kit::{Engine, Jobs};
use crate::models::{self, Entry, Model};
use crate::row::{Outcome, Row};
use crate::truth::answer;

const JOB_LIMIT: Duration = Duration::from_secs(120);

/// A process of the engine, and where its files lie.
pub struct Worker<'e> {
    engine: &'e Engine,
    jobs: Jobs,
    folder: PathBuf,
    number: usize,
}

/// Both answers.
pub struct Verdict {
    /// The engine's.
    pub row: Row,
    /// Ours, as the table would write it.
    pub ours: String,
    agrees: bool,
}

impl Verdict {
    /// A run that crashed says nothing.
    pub fn differs(&self) -> bool {
        self.row.outcome != Outcome::Crashed && !self.agrees
    }

    /// What sort of difference: a smaller case has to show the same.
    pub fn kind(&self) -> (Outcome, String) {
        let word = self.ours.split_once(':').map_or("", |(word, _)| word);
        (self.row.outcome, word.to_owned())
    }
}

/// The case as a row of the truth table.
pub fn truth_row(case: &Case, row: &Row) -> truth::Row {
    truth::row(&row.line(case))
}

impl<'e> Worker<'e> {
    /// Starts the engine.
    pub fn start(engine: &'e Engine, folder: &Path, number: usize) -> Result<Self> {
        Ok(Self {
            engine,
            jobs: engine.start_jobs()?,
            folder: folder.to_owned(),
            number,
        })
    }

    /// What the engine says about a model.
    pub fn probe(&mut self, entry: &Entry) -> Result<Model> {
        models::probe_one(&mut self.jobs, entry, &self.folder)
    }

    /// The engine's answer.
    pub fn ask(&mut self, case: &Case) -> Result<Row> {
        let line = case.job_line(&self.folder.display().to_string());
        answer(self.engine, &mut self.jobs, &line, JOB_LIMIT)
    }

    /// The engine's answer, and the table of its graphs where it loads.
    pub fn ask_graph(&mut self, case: &Case) -> Result<(Row, Option<String>)> {
        let table = self.folder.join(format!("graph-{}.tsv", self.number));
        let _ = std::fs::remove_file(&table);
        let folder = self.folder.display().to_string();
        let line = format!("{} --graph '{}'", case.job_line(&folder), table.display());
        let row = answer(self.engine, &mut self.jobs, &line, JOB_LIMIT)?;
        Ok((row, std::fs::read_to_string(&table).ok()))
    }

    /// Both answers.
    pub fn compare(&mut self, subject: &Subject, case: &Case) -> Result<Verdict> {
        let row = self.ask(case)?;
        let truth = truth_row(case, &row);
        let ours = match row.outcome {
            Outcome::Crashed => String::new(),
            _ => subject.estimate(&truth),
        };
        let agrees = match subject.bounded() {
            // what only this architecture is refused for, nobody can know
            Some(_) if row.outcome == Outcome::Refused => true,
            Some(model) => {
                show::settles_alike(&truth.expected, &ours)
                    && bound::held(&truth, model).iter().all(bound::Held::holds)
            }
            None => truth.agrees(&ours),
        };
        Ok(Verdict { row, ours, agrees })
    }
}
