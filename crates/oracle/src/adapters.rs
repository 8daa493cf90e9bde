//! `oracle adapters`: random cases with LoRA adapters and control vectors, engine against estimate, and their table.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use vramfit_arch::Model;
use vramfit_ggml::Type;
use vramfit_gguf::Header;

use crate::common::adapters::{Rule, Targets};
use crate::diff::check::Worker;
use crate::diff::found;
use crate::diff::subject::{self, Subject};
use crate::error::{Context, Error, Result};
use crate::grid::Cases;
use crate::kit::Engine;
use crate::models::make_sized;
use crate::random::Random;
use crate::row::{COLUMNS, Outcome};
use crate::settings::Settings;

/// The engine reads an adapter, so that larger ones cost time: they leave out layers.
const ADAPTER_BYTES: u64 = 48 << 20;

/// What `oracle adapters` was asked for.
pub struct Request {
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
        write_table(request, report.lines)?;
    }
    Ok(i32::from(differences > 0))
}

fn lock(report: &Mutex<Report>) -> std::sync::MutexGuard<'_, Report> {
    report.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One real model an architecture and all made ones, where their graph is known.
fn subjects(request: &Request, folder: &Path) -> Result<Vec<Subject>> {
    let named: Vec<PathBuf> = request.model.iter().cloned().collect();
    let mut all = subject::all(&named, folder)?;
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
    while n < request.per_model && tries.next().is_some() {
        let settings = adapted(&mut random, stream.next_case().0, model, subject, folder)?;
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

/// The same settings with adapters, whose files are made.
fn adapted(
    random: &mut Random,
    mut settings: Settings,
    model: &Model,
    subject: &Subject,
    folder: &Path,
) -> Result<Settings> {
    let n_layer = u64::from(subject.entry.n_layer);
    let (n_lora, has_vector) = random.weighted(&[
        ((1, false), 45),
        ((1, true), 25),
        ((0, true), 20),
        ((2, false), 10),
    ]);
    if n_lora > 0 {
        let rule = rule(random, model)?;
        make_adapter(&rule, model, &folder.join(&subject.entry.file))?;
        // Two of one rule: in which order llama.cpp applies several depends on where they lie in memory.
        for _ in 0..n_lora {
            settings = settings.with(&format!("--lora {rule}"));
        }
    }
    if has_vector {
        let first = 1 + random.below(n_layer.div_ceil(2));
        let last = first + random.below(n_layer);
        settings = settings.with(&format!("--control-vector {first},{last}"));
    }
    Ok(settings)
}

fn rule(random: &mut Random, model: &Model) -> Result<Rule> {
    let mut rule = Rule {
        rank: random.pick(&[8, 16, 64]),
        ty: random.pick(&[Type::F16, Type::F32]),
        targets: random.weighted(&[
            (Targets::Attention, 30),
            (Targets::Layers, 40),
            (Targets::All, 30),
        ]),
        every: random.weighted(&[(1, 75), (2, 15), (3, 10)]),
    };
    while bytes(&rule, model)? > ADAPTER_BYTES {
        if rule.every <= model.hparams.n_layer() {
            rule.every *= 2;
        } else if rule.rank > 1 {
            rule.rank /= 2;
        } else {
            rule.targets = Targets::Attention;
            break;
        }
    }
    Ok(rule)
}

fn bytes(rule: &Rule, model: &Model) -> Result<u64> {
    let header = Header::parse(rule.header(model)).context("an adapter")?;
    Ok(header.file_bytes())
}

/// Writes an adapter where a case of `model_path` looks for it: a header with a hole behind it.
pub fn make_adapter(rule: &Rule, model: &Model, model_path: &Path) -> Result<PathBuf> {
    let path = PathBuf::from(format!("{}.{rule}", model_path.display()));
    make_sized(&rule.header(model), &path, bytes(rule, model)?)?;
    Ok(path)
}

fn write_table(request: &Request, mut lines: Vec<(usize, String)>) -> Result<()> {
    lines.sort();
    let mut text = format!(
        "# engine: llama.cpp v0.5.0, CUDA 13 build, real loads on imaginary GPUs (crates/oracle/kit)\n\
         # made by: cargo run -p vramfit-oracle -- adapters --per-model {} --seed {}\n\
         # Columns as in llama.cpp-v0.5.0-cuda13.tsv. flags: --lora RULE, an adapter that tests/common/adapters.rs makes;\n\
         #   --control-vector FIRST,LAST, of zeros for these layers. memory of a GPU: model/context/compute/adapters.\n\
         # {COLUMNS}\n",
        request.per_model, request.seed
    );
    for (_, line) in lines {
        let _ = writeln!(text, "{line}");
    }
    std::fs::write(&request.out, text).context(request.out.display())?;
    println!("{}", request.out.display());
    Ok(())
}
