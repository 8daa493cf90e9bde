//! `oracle diff --mutate`: models that nobody made. A spec is changed by chance; where the engine loads the result,
//! its graphs and some random cases are compared. Of a difference the smallest set of changes is printed as a spec.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::change::{Change, changed, changes};
use super::check::Worker;
use super::subject::Subject;
use super::{Request, bases, found, nodes};
use crate::case::Gpu;
use crate::error::{Context, Error, Result};
use crate::grid::Cases;
use crate::kit::Engine;
use crate::random::Random;
use crate::settings::Settings;
use crate::synth::Spec;

/// Random cases of a mutant.
const CASES: usize = 6;

#[derive(Default)]
struct Counts {
    rounds: AtomicU64,
    equal: AtomicUsize,
    not_loaded: AtomicUsize,
    bounded: AtomicUsize,
    cases: AtomicUsize,
    differences: AtomicUsize,
}

/// Rounds until stopped; 1 where anything differs. `--cases` is of each mutant.
pub fn run(request: &Request, engine: &Engine, folder: &Path) -> Result<i32> {
    let named: Vec<String> = request
        .models
        .iter()
        .map(|name| name.display().to_string())
        .collect();
    let names = if named.is_empty() {
        bases::names()?
    } else {
        named
    };
    let (counts, started) = (Counts::default(), Instant::now());
    let limit = request
        .minutes
        .map(|minutes| Duration::from_secs(minutes * 60));
    let work = |number: usize| -> Result<()> {
        let mut mutants = Mutants {
            worker: Worker::start(engine, folder, number)?,
            folder,
            number,
            cases: request.cases.unwrap_or(CASES),
            counts: &counts,
        };
        while limit.is_none_or(|limit| started.elapsed() < limit) {
            let round = counts.rounds.fetch_add(1, Relaxed);
            if request.rounds.is_some_and(|rounds| round >= rounds) {
                counts.rounds.fetch_sub(1, Relaxed);
                return Ok(());
            }
            let Some(name) = names.get((round % names.len() as u64) as usize) else {
                return Ok(());
            };
            mutants.round(name, request.seed.wrapping_add(round))?;
            if round % 200 == 199 {
                eprintln!("{}", counts.text(started));
            }
        }
        Ok(())
    };
    let work = &work;
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..request.workers)
            .map(|i| scope.spawn(move || work(i)))
            .collect();
        let died = || Err(Error::new("a worker died"));
        threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|_| died()))
            .collect()
    });
    results.into_iter().collect::<Result<()>>()?;
    println!("{}; seed {}", counts.text(started), request.seed);
    Ok(i32::from(counts.differences.load(Relaxed) > 0))
}

impl Counts {
    fn text(&self, started: Instant) -> String {
        format!(
            "{} mutants: {} equal, {} not loaded by the engine, {} within bounds, of architectures not known; {} cases; {} differences; {:.0} s",
            self.rounds.load(Relaxed),
            self.equal.load(Relaxed),
            self.not_loaded.load(Relaxed),
            self.bounded.load(Relaxed),
            self.cases.load(Relaxed),
            self.differences.load(Relaxed),
            started.elapsed().as_secs_f64()
        )
    }
}

/// What a mutant showed.
enum Shown {
    NotLoaded,
    /// Our bounds hold; the architecture is not known.
    Bounded,
    Equal,
    /// The sort of difference, and its report.
    Differs(&'static str, String),
}

struct Mutants<'a> {
    worker: Worker<'a>,
    folder: &'a Path,
    number: usize,
    cases: usize,
    counts: &'a Counts,
}

impl Mutants<'_> {
    fn round(&mut self, name: &str, seed: u64) -> Result<()> {
        let base = bases::base(name, self.folder)?;
        let mut random = Random::new(seed, name);
        let mut list = changes(&mut random, &base.spec, &base.tensors);
        let shown = self.show(&changed(&base.spec, &list), seed)?;
        let count = match &shown {
            Shown::Differs(..) => &self.counts.differences,
            Shown::NotLoaded => &self.counts.not_loaded,
            Shown::Bounded => &self.counts.bounded,
            Shown::Equal => &self.counts.equal,
        };
        count.fetch_add(1, Relaxed);
        let Shown::Differs(sort, mut report) = shown else {
            return Ok(());
        };
        let mut i = 0;
        while i < list.len() {
            let mut fewer = list.clone();
            fewer.remove(i);
            match self.show(&changed(&base.spec, &fewer), seed)? {
                Shown::Differs(same, text) if same == sort => (list, report) = (fewer, text),
                _ => i += 1,
            }
        }
        let all: Vec<String> = list.iter().map(Change::to_string).collect();
        let mut spec = changed(&base.spec, &list);
        spec.source = format!("{name}, mutated: {}", all.join("; "));
        let mut text = format!(
            "DIFFERENCE diff --mutate {name} --rounds 1 --seed {seed}: {}\n",
            all.join("; ")
        );
        let _ = write!(text, "{report}  spec:\n{}", bases::text(&spec));
        println!("{text}");
        Ok(())
    }

    /// Makes the model and compares until something differs.
    fn show(&mut self, spec: &Spec, seed: u64) -> Result<Shown> {
        let Ok(bytes) = spec.bytes(self.folder) else {
            return Ok(Shown::NotLoaded);
        };
        let header = self.folder.join(format!("mutant-{}.header", self.number));
        std::fs::write(&header, bytes).context(header.display())?;
        let file = format!("mutant-{}.gguf", self.number);
        let shown = "fixtures/gguf/made/mutant.gguf".to_owned();
        let Ok(subject) =
            Subject::new(&header, self.folder, file, shown, vramfit_arch::Model::load)
        else {
            return Ok(Shown::NotLoaded);
        };
        let Ok(facts) = self.worker.probe(&subject.entry) else {
            return Ok(Shown::NotLoaded);
        };
        for flash_attn in ["on", "off"] {
            if subject.bounded().is_some() {
                break;
            }
            let gpu = Gpu {
                total_bytes: 80 << 30,
                compute_capability: "8.6".to_owned(),
            };
            let mut settings = Settings::plain(vec![gpu; 2]);
            settings.flash_attn = flash_attn;
            let case = settings.case(&facts);
            let (sort, graphs) = match &subject.model {
                Ok(model) => ("nodes", nodes::report(&mut self.worker, &case, model)?),
                Err(_) => ("model", Some(String::new())),
            };
            if let Some(graphs) = graphs {
                let report = found::with_figures(&mut self.worker, &subject, &case, &graphs)?;
                return Ok(Shown::Differs(sort, report));
            }
        }
        let mut cases = Cases::new(facts.clone(), seed).without_core();
        for _ in 0..self.cases {
            let (settings, case) = cases.next_case();
            let verdict = self.worker.compare(&subject, &case)?;
            self.counts.cases.fetch_add(1, Relaxed);
            if verdict.differs() {
                let worker = &mut self.worker;
                let report =
                    found::minimised(worker, &subject, &facts, (settings, &case), verdict)?;
                return Ok(Shown::Differs("figures", report));
            }
        }
        Ok(if subject.is_known() {
            Shown::Equal
        } else {
            Shown::Bounded
        })
    }
}
