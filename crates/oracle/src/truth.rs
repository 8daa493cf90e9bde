//! `oracle truth`: runs the grid through the real engine and writes the truth table.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::case::Case;
use crate::error::{Context, Error, Result};
use crate::grid;
use crate::kit::{Answer, Engine, Jobs};
use crate::models::{self, Entry, Set};
use crate::row::{COLUMNS, Outcome, Row};

const JOB_LIMIT: Duration = Duration::from_secs(120);

/// What `oracle truth` was asked for.
pub struct Request {
    /// Which models.
    pub set: Set,
    /// Random cases a model.
    pub n_random: usize,
    /// No more than this many cases a model (core first).
    pub per_model: usize,
    /// Processes at once.
    pub workers: usize,
    /// Keeps what is done, so that a sweep can go on after a stop.
    pub work: PathBuf,
    /// The table.
    pub out: PathBuf,
}

/// Commit of the engine, asked once: `0ad4a86`.
pub fn engine_commit(engine: &Engine, entries: &[Entry], folder: &Path) -> Result<String> {
    let smallest = entries
        .iter()
        .min_by_key(|entry| entry.file_bytes)
        .context("fixtures/gguf")?;
    let json = engine.ask(
        &[("VGPU", "G:1GiB:8.6")],
        &folder.join(&smallest.file),
        &["-c".to_owned(), "512".to_owned()],
    )?;
    json["engine"]["commit"]
        .as_str()
        .map(str::to_owned)
        .context("engine.commit")
}

/// Runs what is not done yet, then writes the table.
pub fn make(request: &Request) -> Result<()> {
    let started = Instant::now();
    let engine = Engine;
    let folder = tempfile::tempdir().context("a temporary folder")?;
    let entries = models::index(request.set)?;
    models::make_sparse(&entries, folder.path())?;
    let commit = engine_commit(&engine, &entries, folder.path())?;
    let known = models::probe(&engine, &entries, folder.path())?;
    let mut cases = Vec::new();
    for model in &known {
        let mut list = grid::cases(model, request.n_random);
        list.truncate(request.per_model);
        cases.extend(list);
    }
    fs::create_dir_all(&request.work).context(request.work.display())?;
    let journal = Journal::open(&request.work.join(format!("truth-{commit}.journal")))?;
    let todo: Vec<&Case> = cases.iter().filter(|case| !journal.has(case)).collect();
    eprintln!(
        "{} cases of {} models, {} to run",
        cases.len(),
        known.len(),
        todo.len()
    );
    sweep(&engine, &todo, folder.path(), request.workers, &journal)?;
    write_table(&cases, &journal.rows(), &commit, request)?;
    eprintln!(
        "{} in {:.0} s",
        request.out.display(),
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// What is done: one line a case, appended as it comes.
struct Journal {
    state: Mutex<(File, BTreeMap<String, String>)>,
}

impl Journal {
    fn open(path: &Path) -> Result<Self> {
        let mut rows = BTreeMap::new();
        if let Ok(file) = File::open(path) {
            for line in BufReader::new(file).lines().map_while(std::io::Result::ok) {
                let columns: Vec<&str> = line.splitn(4, '\t').collect();
                if columns.len() == 4 && columns[3].matches('\t').count() == 9 {
                    rows.insert(columns[..3].join("\t"), columns[3].to_owned());
                }
            }
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .context(path.display())?;
        Ok(Self {
            state: Mutex::new((file, rows)),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (File, BTreeMap<String, String>)> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn has(&self, case: &Case) -> bool {
        self.lock().1.contains_key(&case.key())
    }

    fn add(&self, case: &Case, row: &Row) -> Result<()> {
        let mut state = self.lock();
        writeln!(state.0, "{}", row.line(case)).context("journal")?;
        state.1.insert(case.key(), row.tail.clone());
        Ok(())
    }

    fn rows(&self) -> BTreeMap<String, String> {
        self.lock().1.clone()
    }
}

/// The row of one job line; a driver that is lost is started again.
pub fn answer(engine: &Engine, jobs: &mut Jobs, line: &str, limit: Duration) -> Result<Row> {
    Ok(match jobs.ask(line, limit) {
        Answer::Json(json) if json["error"] == "crashed" => {
            Row::without_numbers(Outcome::Crashed, &jobs.last_words())
        }
        Answer::Json(json) if line.contains(" --lora ") || line.contains(" --control-vector ") => {
            Row::with_adapters(&json)
        }
        Answer::Json(json) => Row::of(&json),
        Answer::Lost(reason) => {
            *jobs = engine.start_jobs()?;
            Row::without_numbers(Outcome::Crashed, &reason)
        }
    })
}

fn sweep(
    engine: &Engine,
    cases: &[&Case],
    folder: &Path,
    workers: usize,
    journal: &Journal,
) -> Result<()> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    let started = Instant::now();
    let folder = folder.display().to_string();
    let work = || -> Result<()> {
        let mut jobs = engine.start_jobs()?;
        loop {
            let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let Some(case) = cases.get(i) else {
                return Ok(());
            };
            let row = answer(engine, &mut jobs, &case.job_line(&folder), JOB_LIMIT)?;
            if row.outcome == Outcome::Crashed {
                eprintln!(
                    "{}: {}",
                    case.key(),
                    row.tail.split('\t').next().unwrap_or("")
                );
            }
            if !row.counted_equal {
                eprintln!("{}: cudaMalloc's bytes are not the breakdown's", case.key());
            }
            journal.add(case, &row)?;
            if i % 200 == 199 {
                eprintln!(
                    "{}/{} after {:.0} s",
                    i + 1,
                    cases.len(),
                    started.elapsed().as_secs_f64()
                );
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..workers.max(1) {
            scope.spawn(|| {
                if let Err(error) = work() {
                    *failed
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
                }
            });
        }
    });
    failed
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .map_or(Ok(()), Err)
}

fn write_table(
    cases: &[Case],
    rows: &BTreeMap<String, String>,
    commit: &str,
    request: &Request,
) -> Result<()> {
    let mut text = format!(
        "# engine: llama.cpp v0.5.0, commit {commit}, CUDA 13 build, real loads on imaginary GPUs (crates/oracle/kit)\n\
         # made by: cargo run --release -p vramfit-oracle -- truth {}--random {} --per-model {}\n\
         # gpus: TOTAL_BYTES:COMPUTE_CAPABILITY of CUDA0, CUDA1, ..; `-` for none. All of the memory is free, none is ever refused.\n\
         # flags: as crates/oracle/kit/README.md; not given: -b 2048 -ub 512 -np 1 --kv-unified 0 -ctk f16 -ctv f16 --swa-full 0,\n\
         #   --n-outputs 0 (the library's rule, n_batch). -ngl -1 = all. status: ok | refused: why | crashed: why (no truth).\n\
         # layer_device: runs; the last one is the output layer. memory: DEVICE=model/context/compute in bytes, host = all host buffers;\n\
         #   CPU_REPACK depends on the CPU that ran this. graph: nodes/splits of the prompt pass, then of the generation pass.\n\
         # {COLUMNS}\n",
        if request.set == Set::Made {
            "--models made "
        } else {
            ""
        },
        request.n_random,
        request.per_model
    );
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for case in cases {
        let key = case.key();
        let Some(tail) = rows.get(&key) else {
            return Err(Error::new(format!("no row for {key}")));
        };
        *counts
            .entry(tail.split(['\t', ':']).next().unwrap_or(""))
            .or_default() += 1;
        text += &format!("{key}\t{tail}\n");
    }
    if let Some(parent) = request.out.parent() {
        fs::create_dir_all(parent).context(parent.display())?;
    }
    fs::write(&request.out, text).context(request.out.display())?;
    eprintln!("{counts:?}");
    Ok(())
}
