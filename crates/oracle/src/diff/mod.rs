//! `oracle diff`: random settings on random devices, the real engine against our estimate, until stopped.
//!
//! Every difference is made as small as it gets and printed with the first node where the graphs part.

mod bases;
mod change;
pub mod check;
pub mod found;
mod minimise;
mod mutate;
mod nodes;
mod show;
pub mod subject;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vramfit_arch::Model;

use crate::case::{Case, Gpu};
use crate::error::{Context, Error, Result};
use crate::grid::Cases;
use crate::kit::Engine;
use crate::row::Outcome;
use crate::settings::Settings;
use check::{Verdict, Worker};
use subject::Subject;

/// Differences of one model that are minimised; the rest are counted.
const MINIMISED: usize = 5;
/// Cases of one model in a row.
const CHUNK: usize = 8;

/// What `oracle diff` was asked for.
#[derive(Debug, Default, PartialEq)]
pub struct Request {
    models: Vec<PathBuf>,
    cases: Option<usize>,
    minutes: Option<u64>,
    seed: u64,
    workers: usize,
    graph_only: bool,
    as_unknown: bool,
    mutate: bool,
    rounds: Option<u64>,
}

impl Request {
    /// Reads the command's arguments.
    pub fn of(args: &[&str]) -> Result<Self> {
        let mut request = Self {
            workers: 2,
            ..Self::default()
        };
        let mut words = args.iter();
        while let Some(&word) = words.next() {
            let mut number = || -> Result<u64> {
                let text = words.next().context(word)?;
                text.parse().context(format!("{word} {text}"))
            };
            match word {
                "--cases" => request.cases = Some(number()? as usize),
                "--seed" => request.seed = number()?,
                "--workers" => request.workers = number()?.max(1) as usize,
                "--minutes" => request.minutes = Some(number()?),
                "--graph" => request.graph_only = true,
                "--as-unknown" => request.as_unknown = true,
                "--rounds" => request.rounds = Some(number()?),
                "--mutate" => request.mutate = true,
                _ if word.starts_with('-') => {
                    return Err(Error::new(format!("cannot read {word}")));
                }
                _ => request.models.push(word.into()),
            }
        }
        if request.as_unknown && request.mutate {
            return Err(Error::new(
                "--as-unknown goes with models that are there, not with --mutate",
            ));
        }
        Ok(request)
    }
}

/// Runs until done or stopped; 1 where anything differs.
pub fn run(request: &Request) -> Result<i32> {
    let folder = tempfile::tempdir().context("a temporary folder")?;
    let engine = Engine;
    if request.mutate {
        return mutate::run(request, &engine, folder.path());
    }
    let load: subject::Load = match request.as_unknown {
        true => Model::load_as_unknown,
        false => Model::load,
    };
    let subjects = subject::all(&request.models, folder.path(), load)?;
    let session = Session {
        request,
        engine: &engine,
        folder: folder.path(),
        subjects: &subjects,
        started: Instant::now(),
        state: Mutex::new(State::new(subjects.len())),
    };
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let n = request.workers;
        let threads: Vec<_> = (0..n)
            .map(|i| {
                let session = &session;
                scope.spawn(move || session.work(i))
            })
            .collect();
        let died = || Err(Error::new("a worker died"));
        let ends = threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|_| died()));
        ends.collect()
    });
    results.into_iter().collect::<Result<()>>()?;
    Ok(session.summary())
}

/// What came of one model.
#[derive(Clone, Debug, Default)]
struct Tally {
    cases: usize,
    refused: usize,
    crashed: usize,
    /// Node lists and cases.
    differences: usize,
    /// Why there are no cases: the engine does not load it, or we do not.
    left_out: Option<String>,
}

/// What the workers share.
struct State {
    tallies: Vec<Tally>,
    streams: Vec<Option<Cases>>,
    begun: usize,
    /// Models whose node lists are being compared.
    beginning: usize,
    at: usize,
    /// Commands of the differences that were printed.
    printed: BTreeSet<String>,
    told: Instant,
}

impl State {
    fn new(n: usize) -> Self {
        Self {
            tallies: vec![Tally::default(); n],
            streams: (0..n).map(|_| None).collect(),
            begun: 0,
            beginning: 0,
            at: 0,
            printed: BTreeSet::new(),
            told: Instant::now(),
        }
    }
}

/// What a worker does next.
enum Work {
    /// Both node lists of a model, before anything else.
    Begin(usize),
    Case(usize, Box<(Settings, Case)>),
    /// Another worker still begins what will have cases.
    Wait,
}

struct Session<'a> {
    request: &'a Request,
    engine: &'a Engine,
    folder: &'a Path,
    subjects: &'a [Subject],
    started: Instant,
    state: Mutex<State>,
}

impl Session<'_> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, number: usize) -> Result<()> {
        let mut worker = Worker::start(self.engine, self.folder, number)?;
        while let Some(work) = self.next() {
            match work {
                Work::Begin(i) => {
                    let result = self.begin(&mut worker, i);
                    self.lock().beginning -= 1;
                    result?;
                }
                Work::Wait => std::thread::sleep(Duration::from_millis(20)),
                Work::Case(i, case) => self.case(&mut worker, i, *case)?,
            }
        }
        Ok(())
    }

    /// First every model's node lists, then cases, a few of each model in turn.
    fn next(&self) -> Option<Work> {
        let minutes = self.request.minutes.unwrap_or(u64::MAX / 60);
        if self.started.elapsed() >= Duration::from_secs(minutes * 60) {
            return None;
        }
        let mut state = self.lock();
        let state = &mut *state;
        if state.begun < self.subjects.len() {
            state.begun += 1;
            state.beginning += 1;
            return Some(Work::Begin(state.begun - 1));
        }
        if self.request.graph_only {
            return None;
        }
        let wanted = self.request.cases.unwrap_or(usize::MAX);
        for _ in 0..=self.subjects.len() {
            let i = state.at % self.subjects.len();
            let tally = &mut state.tallies[i];
            match &mut state.streams[i] {
                Some(stream) if tally.cases < wanted => {
                    tally.cases += 1;
                    if tally.cases.is_multiple_of(CHUNK) {
                        state.at += 1;
                    }
                    return Some(Work::Case(i, Box::new(stream.next_case())));
                }
                _ => state.at += 1,
            }
        }
        (state.beginning > 0).then_some(Work::Wait)
    }

    /// The node lists with flash attention and without; then the model's cases may come.
    fn begin(&self, worker: &mut Worker<'_>, i: usize) -> Result<()> {
        let subject = &self.subjects[i];
        if let Err(error) = &subject.model {
            self.lock().tallies[i].left_out = Some(format!("ours: {error}"));
            // Among all fixtures a line in the summary will do; somebody who asks for a model wants the figures.
            if self.request.models.is_empty() {
                return Ok(());
            }
        }
        let known = match worker.probe(&subject.entry) {
            Ok(known) => known,
            Err(error) => {
                let reason = format!("not loaded by the engine: {error}");
                self.lock().tallies[i].left_out = Some(reason);
                return Ok(());
            }
        };
        for flash_attn in ["on", "off"] {
            let gpu = Gpu {
                total_bytes: 80 << 30,
                compute_capability: "8.6".to_owned(),
            };
            let mut settings = Settings::plain(vec![gpu; 2]);
            settings.flash_attn = flash_attn;
            let case = settings.case(&known);
            let report = match &subject.model {
                Ok(model) if model.is_known() => nodes::report(worker, &case, model)?,
                Ok(_) if self.request.models.is_empty() => None,
                Ok(_) => Some("  ours are bounds: the architecture is not known\n".to_owned()),
                Err(_) => Some(String::new()),
            };
            let Some(report) = report else { continue };
            self.lock().tallies[i].differences += usize::from(subject.is_known());
            let report = found::with_figures(worker, subject, &case, &report)?;
            println!("DIFFERENCE {}\n{report}", subject.shown);
            if subject.model.is_err() {
                return Ok(());
            }
            if !subject.is_known() {
                break;
            }
        }
        self.lock().streams[i] = Some(Cases::new(known, self.request.seed));
        Ok(())
    }

    fn case(
        &self,
        worker: &mut Worker<'_>,
        i: usize,
        (settings, case): (Settings, Case),
    ) -> Result<()> {
        let subject = &self.subjects[i];
        let verdict = worker.compare(subject, &case)?;
        let minimised = {
            let mut state = self.lock();
            let tally = &mut state.tallies[i];
            tally.refused += usize::from(verdict.row.outcome == Outcome::Refused);
            tally.crashed += usize::from(verdict.row.outcome == Outcome::Crashed);
            tally.differences += usize::from(verdict.differs());
            let minimised = verdict.differs() && tally.differences <= MINIMISED;
            self.tell(&mut state);
            minimised
        };
        if minimised {
            self.minimise(worker, i, settings, &case, verdict)?;
        }
        Ok(())
    }

    fn minimise(
        &self,
        worker: &mut Worker<'_>,
        i: usize,
        settings: Settings,
        case: &Case,
        found: Verdict,
    ) -> Result<()> {
        let subject = &self.subjects[i];
        let Some(facts) = self.lock().streams[i].as_ref().map(|s| s.model().clone()) else {
            return Ok(());
        };
        let report = found::minimised(worker, subject, &facts, (settings, case), found)?;
        // Many cases come down to the same smallest one.
        let smallest = report.lines().next().unwrap_or_default().to_owned();
        if self.lock().printed.insert(smallest) {
            println!(
                "DIFFERENCE {} seed {}\n{report}",
                subject.shown, self.request.seed
            );
        }
        Ok(())
    }

    /// A line of progress every half minute.
    fn tell(&self, state: &mut State) {
        if state.told.elapsed() >= Duration::from_secs(30) {
            state.told = Instant::now();
            let sum = |f: fn(&Tally) -> usize| state.tallies.iter().map(f).sum::<usize>();
            eprintln!(
                "{} cases, {} differ, {:.0} s",
                sum(|t| t.cases),
                sum(|t| t.differences),
                self.started.elapsed().as_secs_f64()
            );
        }
    }

    fn summary(&self) -> i32 {
        let state = self.lock();
        let mut all = Tally::default();
        for (subject, tally) in self.subjects.iter().zip(&state.tallies) {
            all.cases += tally.cases;
            all.refused += tally.refused;
            all.crashed += tally.crashed;
            all.differences += tally.differences;
            if let Some(reason) = &tally.left_out {
                println!("{}: {reason}", subject.shown);
            } else if tally.differences > 0 {
                let (n, cases) = (tally.differences, tally.cases);
                println!(
                    "{}: {n} differences in 4 node lists and {cases} cases",
                    subject.shown
                );
            }
        }
        let is_in = |tally: &Tally| tally.left_out.is_none();
        let left_out = state.tallies.iter().filter(|t| !is_in(t)).count();
        let both = self.subjects.iter().zip(&state.tallies);
        let by_bounds = both.filter(|(s, tally)| s.bounded().is_some() && is_in(tally));
        let bounded = by_bounds.count();
        let seconds = self.started.elapsed().as_secs_f64();
        println!(
            "{} models compared, {bounded} of them by bounds, {left_out} left out; {} cases: {} refused, {} crashed (no truth); {} differences; seed {}, {seconds:.0} s, {:.1} cases/s",
            state.begun - left_out,
            all.cases,
            all.refused,
            all.crashed,
            all.differences,
            self.request.seed,
            all.cases as f64 / seconds
        );
        i32::from(all.differences + left_out > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_and_unknown_ones_refused() {
        let request = Request::of(&["a.gguf", "--cases", "7", "--graph", "b.gguf"]).unwrap();
        assert_eq!(request.models, [Path::new("a.gguf"), Path::new("b.gguf")]);
        assert_eq!((request.cases, request.graph_only), (Some(7), true));
        assert!(Request::of(&["--as-unknown"]).unwrap().as_unknown);
        assert!(Request::of(&["--as-unknown", "--mutate"]).is_err());
        assert!(Request::of(&["--case", "7"]).is_err());
        assert!(Request::of(&["--cases"]).is_err());
    }
}
