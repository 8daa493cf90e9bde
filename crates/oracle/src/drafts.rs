//! `oracle drafts`: targets with a draft beside them, engine against estimate, and their table.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use vramfit_arch::Model;
use vramfit_estimate::{Pass, RowKind};
use vramfit_gguf::Header;

use crate::case::{Case, Gpu};
use crate::common::drafts::{COLUMNS, Pair, pair};
use crate::common::graphs::{around, engine_tables, first_difference, our_table};
use crate::error::{Context, Result};
use crate::graphs::shortened;
use crate::kit::{Answer, Engine, Jobs};
use crate::models::{fixtures, make_one_sparse};
use crate::random::Random;
use crate::row::{Outcome, Row};

/// The pairs that the table is made of.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pairs {
    pair: Vec<Named>,
}

/// A target, its draft (none: its own layers for multi-token prediction), and how it drafts.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// The target's file.
    pub target: String,
    /// The draft's.
    pub draft: Option<String>,
    /// `--spec-type`.
    #[serde(rename = "type")]
    pub kind: String,
    /// With `-sm tensor`.
    #[serde(default)]
    pub shared_out: bool,
}

impl Named {
    /// What its cases are drawn by.
    fn key(&self) -> String {
        let split = if self.shared_out { " tensor" } else { "" };
        let (target, draft, kind) = (&self.target, &self.draft, &self.kind);
        format!("{target} {draft:?} {kind}{split}")
    }
}

/// What `oracle drafts` was asked for.
pub struct Request {
    /// Cases a pair.
    pub per_pair: usize,
    /// Other cases.
    pub seed: u64,
    /// Only pairs of these files.
    pub only: Vec<String>,
    /// The table, if one is wanted.
    pub out: Option<PathBuf>,
}

/// Runs the cases and writes the table; 1 where anything differs.
pub fn make(request: &Request) -> Result<i32> {
    let mut pairs = pairs()?;
    let is_named = |file: &str| request.only.iter().any(|name| file.contains(name.as_str()));
    if !request.only.is_empty() {
        pairs.retain(|p| is_named(&p.target) || p.draft.as_deref().is_some_and(is_named));
    }
    let folder = tempfile::tempdir().context("a temporary folder")?;
    let mut jobs = Engine.start_jobs()?;
    let mut table = String::new();
    let (mut n, mut other, mut differ) = (0, 0, 0);
    for named in &pairs {
        for file in [Some(&named.target), named.draft.as_ref()]
            .into_iter()
            .flatten()
        {
            sparse(file, folder.path())?;
        }
        let mut random = Random::new(request.seed, &named.key());
        for i in 0..request.per_pair {
            let case = case(named, &mut random, i);
            let Some(line) = ask(&mut jobs, &case, named, folder.path())? else {
                other += 1;
                continue;
            };
            n += 1;
            if let Some(text) = difference(&line, named, folder.path())? {
                differ += 1;
                println!("DIFFERENCE {}\n{text}", command(&case, named));
            }
            let _ = writeln!(table, "{line}");
        }
    }
    println!(
        "{} pairs, {n} loads, {other} more refused or crashed, {differ} differ",
        pairs.len()
    );
    if let Some(out) = &request.out {
        let header = format!(
            "# engine: llama.cpp v0.5.0, CUDA 13 build, real loads on imaginary GPUs (crates/oracle/kit)\n\
             # made by: cargo run -p vramfit-oracle -- drafts --per-pair {} --seed {}\n\
             # target and draft in one process, as llama-server sets them up; each context's columns as in\n\
             #   llama.cpp-v0.5.0-cuda13.tsv from status on. draft -: a second context on the target, its weights not again.\n\
             # {COLUMNS}\n",
            request.per_pair, request.seed
        );
        std::fs::write(out, header + &table).context(out.display())?;
        println!("{}", out.display());
    }
    Ok(i32::from(differ > 0))
}

/// The pairs of `fixtures/specs/drafts/pairs.toml`.
pub fn pairs() -> Result<Vec<Named>> {
    let path = fixtures().join("specs/drafts/pairs.toml");
    let text = std::fs::read_to_string(&path).context(path.display())?;
    Ok(toml::from_str::<Pairs>(&text).context(path.display())?.pair)
}

/// Makes a file of `fixtures/gguf` loadable, in `folder`.
pub fn sparse(file: &str, folder: &Path) -> Result<()> {
    let (from, to) = (fixtures().join("gguf").join(file), folder.join(file));
    if to.exists() {
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent).context(parent.display())?;
    }
    let bytes = Header::open(&from).context(from.display())?.file_bytes();
    make_one_sparse(&from, &to, bytes)
}

/// The `i`-th case of a pair: the first are plain, the others by chance. The GPUs hold everything, as what the target
/// leaves free decides where the draft goes.
fn case(named: &Named, random: &mut Random, i: usize) -> Case {
    let gpu = |gib: u64, cc: &str| Gpu {
        total_bytes: gib << 30,
        compute_capability: cc.to_owned(),
    };
    let n_gpus = match i {
        0 => 1,
        1 => 2,
        _ => random.weighted(&[(1, 35), (2, 35), (3, 15), (4, 15)]),
    };
    let cc = random.pick(&["6.1", "7.5", "8.6", "8.9", "9.0", "12.0"]);
    let gpus = (0..n_gpus)
        .map(|_| gpu(random.pick(&[48, 64, 80, 96]), cc))
        .collect();
    let mut flags = String::from("-ngl 99 -c 4096 -fa on -np 2");
    if i > 1 {
        flags = by_chance(named, random, n_gpus);
    }
    if named.shared_out {
        flags += " -sm tensor";
    }
    let n_seqs: u32 = flags
        .split_once("-np ")
        .and_then(|(_, rest)| rest.split(' ').next()?.parse().ok())
        .unwrap_or(1);
    let n_draft = if i > 1 {
        random.weighted(&[(3, 50), (1, 10), (5, 20), (15, 20)])
    } else {
        3
    };
    if n_draft != 3 {
        let _ = write!(flags, " --spec-draft-n-max {n_draft}");
    }
    let _ = write!(
        flags,
        " --n-outputs {} --spec-type {}",
        n_seqs * (1 + n_draft),
        named.kind
    );
    Case {
        model: named.target.clone(),
        gpus,
        flags,
    }
}

fn by_chance(named: &Named, random: &mut Random, n_gpus: usize) -> String {
    let layers = random.weighted(&[(99, 60), (10, 20), (3, 10), (0, 10)]);
    let n_ctx = if layers == 99 {
        random.pick(&[2048, 8192, 16384])
    } else {
        2048
    };
    let mut flags = format!("-ngl {layers} -c {n_ctx}");
    let mut add = |words: &str| {
        flags.push(' ');
        flags += words;
    };
    if random.chance(30) {
        let n = random.pick(&[64, 128, 256, 1024]);
        add(&format!("-ub {n}"));
    }
    let fa = match named.shared_out {
        false => random.weighted(&[("on", 50), ("auto", 30), ("off", 20)]),
        true => random.weighted(&[("on", 60), ("auto", 40)]),
    };
    add(&format!("-fa {fa}"));
    let n_seqs = random.weighted(&[(1, 35), (2, 25), (4, 40)]);
    add(&format!("-np {n_seqs}"));
    if n_seqs > 1 && random.chance(50) {
        add("--kv-unified 1");
    }
    if n_gpus > 1 && random.chance(40) {
        let shares: Vec<String> = (0..n_gpus)
            .map(|_| random.below(5).max(1).to_string())
            .collect();
        add(&format!("-ts {}", shares.join(",")));
    }
    for (flag, percent) in [
        ("-nkvo", 6),
        ("--no-op-offload", 5),
        ("--no-mmap", 5),
        ("--swa-full 1", 10),
    ] {
        if random.chance(percent) {
            add(flag);
        }
    }
    if named.draft.is_some() {
        if random.chance(30) {
            let n = random.pick(&[0, 1, 5]);
            add(&format!("-ngld {n}"));
        }
        if n_gpus > 1 && random.chance(25) && named.kind == "draft-simple" {
            let n = random.below(n_gpus as u64);
            let also = (n + 1) % n_gpus as u64;
            match named.shared_out && random.chance(50) {
                true => add(&format!("-devd CUDA{n},CUDA{also}")),
                false => add(&format!("-devd CUDA{n}")),
            }
        }
    }
    if fa == "on" && random.chance(20) {
        add("-ctkd q8_0 -ctvd q8_0");
    }
    if named.kind != "draft-simple" && random.chance(20) {
        add("--no-spec-draft-backend-sampling");
    }
    flags
}

fn command(case: &Case, named: &Named) -> String {
    let mut line = case.command(&case.model);
    if let Some(draft) = &named.draft {
        let _ = write!(line, " -md {draft}");
    }
    line
}

fn job_line(case: &Case, named: &Named, folder: &Path) -> String {
    let folder = folder.display();
    let mut line = case.job_line(&folder.to_string());
    if let Some(draft) = &named.draft {
        let _ = write!(line, " -md '{folder}/{draft}'");
    }
    line
}

/// The line of the table; nothing where the engine did not load.
fn ask(jobs: &mut Jobs, case: &Case, named: &Named, folder: &Path) -> Result<Option<String>> {
    let graphs = format!(
        " --graph '{0}/t.tsv' --graph-draft '{0}/d.tsv'",
        folder.display()
    );
    let line = job_line(case, named, folder) + &graphs;
    let json = match jobs.ask(&line, Duration::from_secs(120)) {
        Answer::Json(json) => json,
        Answer::Lost(why) => {
            eprintln!("{}: {why}", command(case, named));
            *jobs = Engine.start_jobs()?;
            return Ok(None);
        }
    };
    let rows = [
        without_draft(&json["result"]),
        draft_on(&json["result"]["draft"], &case.flags),
    ]
    .map(row_of);
    if let Some(error) = json["error"].as_str() {
        let why = Row::of(&json).tail;
        eprintln!(
            "{}: {error}: {why} {}",
            command(case, named),
            jobs.last_words()
        );
        return Ok(None);
    }
    // with -sm tensor the engine reports the largest part alone, and the table has what each GPU was asked for
    let is_shared_out = case.flags.contains("-sm tensor");
    if !is_shared_out && json["result"]["cuda_malloc_equals_breakdown"] != true {
        eprintln!(
            "{}: cudaMalloc was asked for other sizes",
            command(case, named)
        );
        return Ok(None);
    }
    let [target, draft] = rows;
    if draft.outcome != Outcome::Loaded {
        return Ok(None);
    }
    let file = named.draft.as_deref().unwrap_or("-");
    let key = case.key();
    let (model, rest) = key.split_once('\t').context("a case")?;
    Ok(Some(format!(
        "{model}\t{file}\t{rest}\t{}\t{}",
        target.tail, draft.tail
    )))
}

/// The target alone: what GPUs were asked for without what they were for the draft.
fn without_draft(result: &Value) -> Value {
    let mut alone = result.clone();
    let counts = alone["cuda_malloc"].as_array_mut();
    for (i, count) in counts.into_iter().flatten().enumerate() {
        let of_draft = result["draft"]["cuda_malloc"][i]["bytes"].as_u64();
        let bytes = count["bytes"].as_u64().unwrap_or(0);
        count["bytes"] = json!(bytes.saturating_sub(of_draft.unwrap_or(0)));
    }
    alone
}

/// The draft with the counts of its own GPUs alone (`-devd`).
fn draft_on(draft: &Value, flags: &str) -> Value {
    let mut draft = draft.clone();
    let mut words = flags.split(' ').skip_while(|word| *word != "-devd");
    let listed = words.nth(1);
    if let (Some(listed), Some(counts)) = (listed, draft["cuda_malloc"].as_array_mut()) {
        let on = |count: &Value| {
            listed
                .split(',')
                .any(|d| d == format!("CUDA{}", count["gpu"]))
        };
        counts.retain(on);
    }
    draft
}

fn row_of(result: Value) -> Row {
    Row::of(&json!({ "result": result }))
}

fn load(file: &str) -> Result<Model> {
    let path = fixtures().join("gguf").join(file);
    Model::load(&Header::open(&path).context(path.display())?).context(path.display())
}

/// Where vramfit says otherwise: figures, and the first node that differs.
fn difference(line: &str, named: &Named, folder: &Path) -> Result<Option<String>> {
    let pair = pair(line);
    let target = pair.loaded(load(&named.target)?);
    let draft = match &named.draft {
        Some(file) => Some(pair.loaded(load(file)?)),
        None => None,
    };
    let got = pair.estimate(&target, draft.as_ref());
    let mut text = String::new();
    let expected = [&pair.target.expected, &pair.expected];
    for (i, file) in ["t.tsv", "d.tsv"].into_iter().enumerate() {
        if *expected[i] != got[i] {
            let _ = writeln!(text, "  engine {}\n  ours   {}", expected[i], got[i]);
        }
        let engine = std::fs::read_to_string(folder.join(file)).context(file)?;
        let engine = engine_tables(&shortened(&engine)?);
        for (pass, engine) in Pass::ALL.into_iter().zip(&engine) {
            text += &nodes(&pair, &target, draft.as_ref(), pass, i, engine);
        }
    }
    Ok(Some(text).filter(|text| !text.is_empty()))
}

fn nodes(
    pair: &Pair,
    target: &Model,
    draft: Option<&Model>,
    pass: Pass,
    which: usize,
    engine: &crate::common::graphs::Table,
) -> String {
    let mut ours = match pair.node_lists(target, draft, pass) {
        Ok(lists) => our_table(&lists[which]),
        Err(error) => return format!("  graphs: ours: {error}\n"),
    };
    // What waits for copies of weights alone has no sources with numbers.
    let mut engine = engine.clone();
    for table in [&mut engine, &mut ours] {
        table.retain(|key, line| {
            key.0 != RowKind::Dependency || line.sources.contains(|c: char| c.is_ascii_digit())
        });
    }
    let engine = &engine;
    match first_difference(engine, &ours) {
        Some(at) => format!(
            "  {} {pass:?}, first row that differs:\n{}",
            ["target", "draft"][which],
            around(engine, &ours, at, 3)
        ),
        None => String::new(),
    }
}
