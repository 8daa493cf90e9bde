//! `oracle pool`: what ggml-cuda takes while it computes, counted in real decodes.

mod histories;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::error::{Context, Error, Result};
use crate::kit::{Answer, Engine};
use crate::models::{self, Entry};
use crate::truth::engine_commit;

const JOB_LIMIT: Duration = Duration::from_secs(180);
/// Tokens of a prompt, and of the context they fill, so that the last batch sees the whole cache.
const PROMPT: usize = 4096;
/// Tokens of a context that is filled one token at a time.
const SHORT_PROMPT: usize = 512;
/// Compute capability and SM counts of cards that have it; vgpu's own default comes first.
const KINDS: [(&str, &[u32]); 9] = [
    ("3.7", &[13]),
    ("6.1", &[20, 28]),
    ("7.0", &[80]),
    ("7.5", &[40, 68]),
    ("8.0", &[108]),
    ("8.6", &[82, 28, 46]),
    ("8.9", &[128, 24, 66]),
    ("9.0", &[132, 114]),
    ("12.0", &[170, 36, 84]),
];
const UBATCHES: [usize; 3] = [64, 512, 2048];
/// Tokens of each of several sequences.
const SHARE: usize = 1024;

/// How ggml-cuda keeps temporary buffers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// With virtual memory management.
    Vmm,
    /// With `cudaMalloc` alone.
    Legacy,
    /// The same behind prompts of random lengths.
    Histories,
    /// The VMM kind under `-sm tensor`, where every GPU computes a part of each operation.
    Tensor,
}

impl Kind {
    /// Its table below `fixtures/truth`.
    pub const fn table(self) -> &'static str {
        match self {
            Kind::Vmm => "pool-llama.cpp-v0.5.0-cuda13.tsv",
            Kind::Legacy => "pool-legacy-llama.cpp-v0.5.0-cuda13.tsv",
            Kind::Histories => "pool-histories-llama.cpp-v0.5.0-cuda13.tsv",
            Kind::Tensor => "pool-tensor-llama.cpp-v0.5.0-cuda13.tsv",
        }
    }

    /// What the table's head says of it.
    const fn words(self) -> [&'static str; 3] {
        match self {
            Kind::Vmm => [
                "pool",
                "the VMM kind of pool",
                "POOL/WORKSPACE bytes of each GPU behind the prompt: the VMM pool, and cudaMalloc beyond llama.cpp's own buffers",
            ],
            Kind::Legacy => [
                "pool --kind legacy",
                "no virtual memory management, so the legacy kind of pool",
                "bytes of each GPU behind the prompt by cudaMalloc beyond llama.cpp's own buffers: the pool with cuBLAS's workspace",
            ],
            Kind::Histories => [
                "pool --kind histories",
                "no virtual memory management, so the legacy kind of pool",
                "KEPT/LEAST bytes by cudaMalloc beyond llama.cpp's own buffers, behind all prompts: with plenty of memory, and with so \
                 little (to a part of 64) that what is kept goes back to the driver",
            ],
            Kind::Tensor => [
                "pool --kind tensor",
                "the VMM kind of pool",
                "POOL/MALLOC bytes of each GPU behind the prompt: the VMM pool, and all by cudaMalloc, llama.cpp's own buffers included",
            ],
        }
    }
}

/// What `oracle pool` was asked for.
pub struct Request {
    /// Of the GPUs.
    pub kind: Kind,
    /// Processes at once.
    pub workers: usize,
    /// The table.
    pub out: PathBuf,
    /// Rows that this table has are not measured again.
    pub known: Option<PathBuf>,
}

/// One decode.
struct Case<'a> {
    entry: &'a Entry,
    /// `CC*SMS` of each GPU.
    gpus: Vec<String>,
    flags: String,
    kind: Kind,
}

/// Runs every case and writes the table.
pub fn make(request: &Request) -> Result<()> {
    let engine = Engine;
    let folder = tempfile::tempdir().context("a temporary folder")?;
    let mut entries = models::index(models::Set::Real)?;
    if request.kind != Kind::Tensor {
        entries.extend(models::index(models::Set::Made)?);
    }
    models::make_sparse(&entries, folder.path())?;
    let commit = engine_commit(&engine, &entries, folder.path())?;
    let (kind, cases) = (request.kind, cases(&entries, request.kind));
    let known = match &request.known {
        Some(table) => known_rows(table)?,
        None => BTreeMap::new(),
    };
    let rows = sweep(&engine, &cases, &known, folder.path(), request.workers)?;
    let [command, pool, runtime] = kind.words();
    let mut text = format!(
        "# engine: llama.cpp v0.5.0, commit {commit}, CUDA 13 build, real loads and decodes on imaginary GPUs (crates/oracle/kit)\n\
         # made by: cargo run --release -p vramfit-oracle -- {command}\n\
         # gpus: COMPUTE_CAPABILITY*SMS of CUDA0, CUDA1, ..; each has 4 TiB, {pool} and the kit's shared memory and occupancy.\n\
         # flags: as crates/oracle/kit/README.md. --decode N: a prompt of N tokens. --embeddings: every token is an output, else the last alone.\n\
         # --decode-before NxS,..: earlier prompts in an empty memory, N tokens of each of S sequences.\n\
         # --decode-each K: then batches of every size. --decode-seqs N: sequences side by side; such rows that differ in that alone are one figure.\n\
         # runtime: {runtime}. What the buffers themselves have grown by is not in it.\n\
         # crashed: the engine stopped while it computed (experts chosen by a kernel that never ran are read back; more tokens than positions): no truth.\n\
         # model\tgpus\tflags\truntime\n"
    );
    let mut n_crashed = 0;
    for (case, row) in cases.iter().zip(&rows) {
        n_crashed += usize::from(row.starts_with("crashed") || row.starts_with("refused"));
        let _ = writeln!(text, "{}\t{row}", case.columns());
    }
    fs::write(&request.out, text).context(request.out.display())?;
    eprintln!("{} cases, {n_crashed} crashed", cases.len());
    Ok(())
}

/// For each model several sequences; for each real one also every compute capability with all batch sizes, pairs
/// of GPUs, and one token at a time. Flash attention, outputs and SM counts take turns.
fn cases(entries: &[Entry], kind: Kind) -> Vec<Case<'_>> {
    match kind {
        Kind::Tensor => return tensor_cases(entries),
        Kind::Histories => return histories::cases(entries),
        Kind::Vmm | Kind::Legacy => {}
    }
    let mut cases = Vec::new();
    for (m, entry) in entries.iter().enumerate() {
        if !entry.is_made() {
            cases.extend(single_cases(entry, m, kind));
        }
        cases.extend(sequence_cases(entry, m, kind));
    }
    cases
}

/// Of one sequence.
fn single_cases(entry: &Entry, m: usize, kind: Kind) -> Vec<Case<'_>> {
    let mut cases = Vec::new();
    let mut add = |gpus: Vec<String>, flags: String, n_ubatch| {
        // a pool that keeps single buffers would be another with every batch more
        let each = match kind {
            Kind::Vmm => format!(" --decode-each {}", each(n_ubatch, &gpus)),
            _ => String::new(),
        };
        cases.push(Case {
            entry,
            gpus,
            flags: flags + &each,
            kind,
        });
    };
    for (c, (cc, sms)) in KINDS.iter().enumerate() {
        let turn = m * KINDS.len() + c;
        let gpu = |i: usize| format!("{cc}*{}", sms[(m + i) % sms.len()]);
        for (i, n_ubatch) in UBATCHES.into_iter().enumerate() {
            let flags = flags(entry, n_ubatch, PROMPT, turn % 4);
            add(vec![gpu(i)], flags, n_ubatch);
        }
        add(vec![gpu(0)], flags(entry, 512, PROMPT, (turn + 2) % 4), 512);
        if turn.is_multiple_of(3) {
            let second = KINDS[(c + m % 2) % KINDS.len()];
            let gpus = vec![gpu(1), format!("{}*{}", second.0, second.1[0])];
            let n_ubatch = UBATCHES[m % 3];
            add(
                gpus,
                flags(entry, n_ubatch, PROMPT, (turn / 3) % 4),
                n_ubatch,
            );
        }
        if turn % 3 == 1 && !entry.is_embedding_model() {
            add(
                vec![gpu(0)],
                flags(entry, 1, SHORT_PROMPT, (turn / 3) % 4),
                1,
            );
        }
    }
    cases
}

/// Steps from a batch to the next smaller one. Tiles of attention without tensor cores are narrow.
fn each(n_ubatch: usize, gpus: &[String]) -> usize {
    let has_cores = gpus.iter().all(|gpu| !gpu.starts_with("7.0"));
    (n_ubatch / if has_cores { 16 } else { 64 }).max(8)
}

/// Of two to four sequences, in caches of their own and in a shared one: one alone, and all side by side.
fn sequence_cases(entry: &Entry, m: usize, kind: Kind) -> Vec<Case<'_>> {
    let mut cases = Vec::new();
    for (i, is_unified) in [false, true].into_iter().enumerate() {
        let turn = 2 * m + i;
        let (cc, sms) = KINDS[turn % KINDS.len()];
        let (n_seqs, n_ubatch) = (2 + (turn / 2) % 3, UBATCHES[turn % 3]);
        let flash = if turn % 4 < 2 { "on" } else { "off" };
        let n_ctx = n_seqs * SHARE;
        let outputs = match entry.is_embedding_model() || turn.is_multiple_of(5) {
            true => "--embeddings".to_string(),
            false => format!("--n-outputs {n_seqs}"),
        };
        // an encoder takes all texts at once
        let n_batch = match entry.is_embedding_model() {
            true => n_ubatch,
            false => 2048,
        };
        let gpus = vec![format!("{cc}*{}", sms[m % sms.len()])];
        // what a legacy pool keeps is that of one order, of which two are played
        let some = 1..=n_seqs;
        let some = some.filter(|&n| kind == Kind::Vmm || n == 1 || n == n_seqs);
        for side_by_side in some {
            let n_tokens = match (entry.is_embedding_model(), is_unified) {
                (true, _) => n_ubatch / side_by_side,
                (false, true) => n_ctx / side_by_side,
                (false, false) => SHARE,
            };
            let mut flags = format!(
                "-c {n_ctx} -b {n_batch} -ub {n_ubatch} -np {n_seqs} --kv-unified {} -fa {flash} {outputs}",
                u8::from(is_unified)
            );
            if kind == Kind::Vmm {
                flags += &format!(" --decode-each {}", each(n_ubatch, &gpus));
            }
            flags += &format!(" --decode {n_tokens} --decode-seqs {side_by_side}");
            cases.push(Case {
                entry,
                gpus: gpus.clone(),
                flags,
                kind,
            });
        }
    }
    cases
}

/// For each model three compute capabilities, one GPU to four of a kind, all batch sizes.
fn tensor_cases(entries: &[Entry]) -> Vec<Case<'_>> {
    let mut cases = Vec::new();
    for (m, entry) in entries.iter().enumerate() {
        for (i, n_ubatch) in UBATCHES.into_iter().enumerate() {
            let (cc, sms) = KINDS[(m + 4 * i) % KINDS.len()];
            let gpu = format!("{cc}*{}", sms[m % sms.len()]);
            // it needs flash attention
            let flags = flags(entry, n_ubatch, PROMPT, 2 * ((m + i) % 2));
            cases.push(Case {
                entry,
                gpus: vec![gpu; 1 + (m + 2 * i + 1) % 4],
                flags: format!("{flags} -sm tensor"),
                kind: Kind::Tensor,
            });
        }
    }
    cases
}

fn flags(entry: &Entry, n_ubatch: usize, prompt: usize, turn: usize) -> String {
    // No CUDA kernel has MiniCPM3's head sizes: attention would be computed on the CPU, for minutes.
    let flash = if turn.is_multiple_of(2) && entry.arch != "minicpm3" {
        "on"
    } else {
        "off"
    };
    if entry.is_embedding_model() {
        // It reads both ways, so it takes a whole text at once.
        return format!(
            "-c {prompt} -b {n_ubatch} -ub {n_ubatch} -fa {flash} --embeddings --decode {n_ubatch}"
        );
    }
    // Logits of every token take room on the host: half the prompt, small batches.
    let (outputs, n_tokens, n_batch) = if turn / 2 == 0 {
        ("--n-outputs 1", prompt, prompt / 2)
    } else {
        ("--embeddings", prompt / 2, prompt / 8)
    };
    let n_batch = n_batch.max(n_ubatch);
    format!("-c {n_tokens} -b {n_batch} -ub {n_ubatch} -fa {flash} {outputs} --decode {n_tokens}")
}

impl Case<'_> {
    /// Its row's columns but the last.
    fn columns(&self) -> String {
        let gpus = self.gpus.join(",");
        format!("{}\t{gpus}\t{}", self.entry.file, self.flags)
    }

    fn job_line(&self, folder: &str) -> String {
        self.job_line_within(folder, None)
    }

    /// Each GPU has so much memory, else plenty.
    fn job_line_within(&self, folder: &str, bytes: Option<u64>) -> String {
        let vmm = match self.kind {
            Kind::Vmm | Kind::Tensor => "",
            Kind::Legacy | Kind::Histories => ":vmm=0",
        };
        let (size, limit) = match bytes {
            Some(bytes) => (bytes.to_string(), ""),
            None => ("4TiB".to_string(), "VGPU_NO_OOM=1 "),
        };
        let gpus: Vec<String> = self
            .gpus
            .iter()
            .enumerate()
            .map(|(i, gpu)| format!("G{i}:{size}:{}{vmm}", gpu.replace('*', ":sms=")))
            .collect();
        format!(
            "{limit}VGPU={} '{folder}/{}' {} -ngl 99 --real",
            gpus.join(","),
            self.entry.file,
            self.flags
        )
    }
}

/// The last column of the rows of a table, by those before.
fn known_rows(path: &Path) -> Result<BTreeMap<String, String>> {
    let text = fs::read_to_string(path).context(path.display())?;
    let rows = text.lines().filter(|line| !line.starts_with('#'));
    let rows = rows.filter_map(|line| line.rsplit_once('\t'));
    Ok(rows
        .map(|(case, row)| (case.to_owned(), row.to_owned()))
        .collect())
}

/// The last column of each case's row.
fn sweep(
    engine: &Engine,
    cases: &[Case<'_>],
    known: &BTreeMap<String, String>,
    folder: &Path,
    workers: usize,
) -> Result<Vec<String>> {
    let folder = folder.display().to_string();
    let next = AtomicUsize::new(0);
    let rows = Mutex::new(vec![String::new(); cases.len()]);
    let keep = |i: usize, row: &str| {
        let mut rows = rows
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        rows[i] = row.to_owned();
    };
    let work = || -> Result<()> {
        let mut jobs = engine.start_jobs()?;
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(case) = cases.get(i) else {
                return Ok(());
            };
            if let Some(row) = known.get(&case.columns()) {
                keep(i, row);
                continue;
            }
            let row = match jobs.ask(&case.job_line(&folder), JOB_LIMIT) {
                Answer::Json(json) if json["error"] == "crashed" => {
                    format!("crashed: {}", jobs.last_words())
                }
                Answer::Json(json) if case.kind == Kind::Tensor && json["error"].is_string() => {
                    format!("refused: {}", json["error"])
                }
                Answer::Json(json) if case.kind == Kind::Histories => {
                    histories::row(&json, case, &folder, engine, &mut jobs)
                        .context(case.job_line(&folder))?
                }
                Answer::Json(json) => runtime(&json, case.kind).context(case.job_line(&folder))?,
                Answer::Lost(reason) => {
                    jobs = engine.start_jobs()?;
                    format!("crashed: {reason}")
                }
            };
            if i % 200 == 199 {
                eprintln!("{} of {}", i + 1, cases.len());
            }
            keep(i, &row.replace(['\t', '\n'], " "));
        }
    };
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers.max(1)).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .map(|t| {
                t.join()
                    .unwrap_or_else(|_| Err(Error::new("a worker died")))
            })
            .collect()
    });
    results.into_iter().collect::<Result<()>>()?;
    Ok(rows
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// `POOL/WORKSPACE` of each GPU, or of a legacy pool both in one.
fn runtime(json: &Value, kind: Kind) -> Result<String> {
    let result = &json["result"];
    let decode = &result["decode"];
    if decode["rc"] != 0 {
        return Err(Error::new(format!(
            "the prompt was not decoded: {} {}",
            json["error"], decode["rc"]
        )));
    }
    let gpus = decode["cuda"].as_array().context("decode.cuda")?;
    let one = |(i, gpu): (usize, &Value)| {
        let pool = gpu["pool_vmm"].as_u64().context("pool_vmm")?;
        let malloc = gpu["malloc"].as_u64().context("malloc")?;
        if kind == Kind::Tensor {
            return Ok(format!("{pool}/{malloc}"));
        }
        let own = buffers_after(decode, i)?;
        let workspace = malloc.checked_sub(own).context("malloc below the sum")?;
        match (kind, pool) {
            (Kind::Vmm | Kind::Tensor, _) => Ok(format!("{pool}/{workspace}")),
            (Kind::Legacy | Kind::Histories, 0) => Ok(workspace.to_string()),
            (Kind::Legacy | Kind::Histories, _) => Err(Error::new(
                "memory of a VMM pool where there should be none",
            )),
        }
    };
    let texts: Vec<String> = gpus.iter().enumerate().map(one).collect::<Result<_>>()?;
    Ok(texts.join(" "))
}

/// llama.cpp's own buffers on a GPU behind the prompt, bytes.
fn buffers_after(decode: &Value, gpu: usize) -> Result<u64> {
    let all = decode["breakdown_after"].as_array();
    let name = format!("CUDA{gpu}");
    let mut all = all.context("breakdown_after")?.iter();
    all.find(|of| of["buft"] == name.as_str())
        .map_or(Ok(0), |of| of["sum"].as_u64().context("sum"))
}
