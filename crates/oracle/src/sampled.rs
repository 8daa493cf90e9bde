//! `oracle adapters` and `oracle tensor-split`: random cases of one kind, engine against estimate, and their table.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use vramfit_arch::Model;

use crate::adapters;
use crate::diff::check::Worker;
use crate::diff::found;
use crate::diff::subject::{self, Subject};
use crate::error::{Context, Error, Result};
use crate::grid::Cases;
use crate::kit::Engine;
use crate::random::Random;
use crate::row::{COLUMNS, Outcome};
use crate::settings::Settings;
use crate::tensor_split;

/// What the cases have that others do not.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// LoRA adapters and control vectors.
    Adapters,
    /// `-sm tensor`.
    TensorSplit,
}

impl Kind {
    fn command(self) -> &'static str {
        match self {
            Kind::Adapters => "adapters",
            Kind::TensorSplit => "tensor-split",
        }
    }

    /// What its table has that the others do not, in lines of a comment.
    fn legend(self) -> &'static str {
        match self {
            Kind::Adapters => {
                "flags: --lora RULE, an adapter that tests/common/adapters.rs makes;\n\
                 #   --control-vector FIRST,LAST, of zeros for these layers. memory of a GPU: model/context/compute/adapters.\n"
            }
            Kind::TensorSplit => {
                "memory: Meta, the largest model/compute of any\n\
                 #   GPU, as the engine reports them; then what each GPU was asked for by cudaMalloc in all.\n"
            }
        }
    }

    /// Whether a refusal is of this kind's own; one a model is in the table.
    fn refuses(self, reason: &str) -> bool {
        self == Kind::TensorSplit && reason.contains("SPLIT_MODE_TENSOR")
    }

    fn settings(
        self,
        random: &mut Random,
        settings: Settings,
        model: &Model,
        subject: &Subject,
        folder: &Path,
    ) -> Result<Settings> {
        match self {
            Kind::Adapters => adapters::adapted(random, settings, model, subject, folder),
            Kind::TensorSplit => Ok(tensor_split::shared_out(random, settings)),
        }
    }
}

/// What was asked for.
pub struct Request {
    /// Which cases.
    pub kind: Kind,
    /// Cases a model.
    pub per_model: usize,
    /// Other cases.
    pub seed: u64,
    /// Processes at once.
    pub workers: usize,
    /// One model by name, none: one real model an architecture and all made ones.
    pub model: Option<PathBuf>,
    /// The table; not written for one model.
    pub out: PathBuf,
}

/// What came of the cases.
#[derive(Default)]
struct Report {
    /// Lines of the table, by the number of the model.
    lines: Vec<(usize, String)>,
    crashed: usize,
    differences: usize,
    error: Option<Error>,
}

/// Runs the cases and writes the table; 1 where anything differs.
pub fn make(request: &Request) -> Result<i32> {
    let folder = tempfile::tempdir().context("a temporary folder")?;
    let subjects = subjects(request, folder.path())?;
    let (next, report) = (AtomicUsize::new(0), Mutex::new(Report::default()));
    let work = |number| -> Result<()> {
        let mut worker = Worker::start(&Engine, folder.path(), number)?;
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(subject) = subjects.get(i) else {
                return Ok(());
            };
            cases(request, &mut worker, subject, i, folder.path(), &report)?;
        }
    };
    std::thread::scope(|scope| {
        for number in 0..request.workers.max(1) {
            let (work, report) = (&work, &report);
            scope.spawn(move || {
                if let Err(error) = work(number) {
                    lock(report).error = Some(error);
                }
            });
        }
    });
    let report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (n, crashed, differences) = (report.lines.len(), report.crashed, report.differences);
    println!(
        "{} models, {n} cases, {crashed} more crashed (no truth), {differences} differences",
        subjects.len()
    );
    if let Some(error) = report.error {
        return Err(error);
    }
    if request.model.is_none() {
        write_table(request, report.lines, crashed)?;
    }
    Ok(i32::from(differences > 0))
}

fn lock(report: &Mutex<Report>) -> std::sync::MutexGuard<'_, Report> {
    report.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One real model an architecture and all made ones, where their graph is known.
fn subjects(request: &Request, folder: &Path) -> Result<Vec<Subject>> {
    let named: Vec<PathBuf> = request.model.iter().cloned().collect();
    let mut all = subject::all(&named, folder, vramfit_arch::Model::load)?;
    let mut seen = BTreeSet::new();
    all.retain(|s| {
        s.is_known()
            && (!named.is_empty()
                || s.entry.file.contains('/')
                || seen.insert(s.entry.arch.clone()))
    });
    Ok(all)
}

fn cases(
    request: &Request,
    worker: &mut Worker<'_>,
    subject: &Subject,
    number: usize,
    folder: &Path,
    report: &Mutex<Report>,
) -> Result<()> {
    let Ok(model) = &subject.model else {
        return Ok(());
    };
    let facts = match worker.probe(&subject.entry) {
        Ok(facts) => facts,
        Err(error) => {
            eprintln!("{}: not loaded by the engine: {error}", subject.shown);
            return Ok(());
        }
    };
    let seed = request.seed.wrapping_add(1 << 32);
    let mut random = Random::new(seed, &subject.entry.file);
    let mut stream = Cases::new(facts.clone(), seed).without_core();
    let (mut n, mut tries) = (0, 0..8 * request.per_model);
    let mut refused = false;
    while n < request.per_model && tries.next().is_some() {
        let settings = stream.next_case().0;
        let settings = request
            .kind
            .settings(&mut random, settings, model, subject, folder)?;
        let case = settings.clone().case(&facts);
        let verdict = worker.compare(subject, &case)?;
        match verdict.row.outcome {
            Outcome::Crashed => {
                eprintln!(
                    "{}: {}",
                    case.key(),
                    verdict.row.tail.trim_end_matches("\t-")
                );
                lock(report).crashed += 1;
            }
            Outcome::Loaded => {
                n += 1;
                let line = verdict.row.line(&case);
                lock(report).lines.push((number, line));
            }
            Outcome::Refused if request.kind.refuses(&verdict.row.tail) => {
                if !std::mem::replace(&mut refused, true) {
                    let line = verdict.row.line(&case);
                    lock(report).lines.push((number, line));
                }
            }
            Outcome::Refused => {} // for its settings: other tables know
        }
        if verdict.differs() {
            lock(report).differences += 1;
            let text = found::minimised(worker, subject, &facts, (settings, &case), verdict)?;
            println!("DIFFERENCE {}\n{text}", subject.shown);
        }
    }
    Ok(())
}

fn write_table(request: &Request, mut lines: Vec<(usize, String)>, crashed: usize) -> Result<()> {
    lines.sort();
    let mut text = format!(
        "# engine: llama.cpp v0.5.0, CUDA 13 build, real loads on imaginary GPUs (crates/oracle/kit)\n\
         # made by: cargo run -p vramfit-oracle -- {} --per-model {} --seed {}\n\
         # Columns as in llama.cpp-v0.5.0-cuda13.tsv. {}\
         # {crashed} more cases crashed in the engine: no truth.\n\
         # {COLUMNS}\n",
        request.kind.command(),
        request.per_model,
        request.seed,
        request.kind.legend()
    );
    for (_, line) in lines {
        let _ = writeln!(text, "{line}");
    }
    std::fs::write(&request.out, text).context(request.out.display())?;
    println!("{}", request.out.display());
    Ok(())
}
