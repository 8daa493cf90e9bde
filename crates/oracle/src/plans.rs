//! `oracle plans`: every plan of `estimate` is loaded by the real engine on GPUs with just the memory it was planned for.
//!
//! A plan must load, with the bytes it was said to take; a partial one must be the best: one more layer on any GPU must
//! not load. Beside it stands what llama.cpp's own `--fit` makes of the same case.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use crate::case::{Gpu, gpus_text};
use crate::error::{Context, Error, Result};
use crate::estimate::{self, Estimate, Program};
use crate::kit::Engine;
use crate::models::{self, Model};
use crate::plan_cases::{Situation, situations};

const COLUMNS: &str = "model\tgpus\tflags\tverdict\tplan\tlayers\tgpus_used\tloads\tbytes\tone_more\tfit_margin_0\tfit_margin_1024";

/// What `oracle plans` was asked for.
pub struct Request {
    /// Situations.
    pub n: usize,
    /// Processes at once.
    pub workers: usize,
    /// The binary, else the workspace's is built.
    pub estimate: Option<String>,
    /// The table.
    pub out: PathBuf,
}

/// Counts of one run.
#[derive(Default)]
struct Summary {
    n: usize,
    fits: usize,
    partial: usize,
    does_not_fit: usize,
    did_not_load: usize,
    other_bytes: usize,
    not_the_best: usize,
    fewer_than_fit: usize,
    more_than_fit: usize,
    errors: usize,
}

/// Runs all situations and writes the table. Returns the exit code: 1 if a plan does not hold.
pub fn run(request: &Request) -> Result<i32> {
    let program = Program::find(request.estimate.as_deref())?;
    let folder = tempfile::tempdir().context("a temporary folder")?;
    let entries = models::index(models::Set::Real)?;
    models::make_sparse(&entries, folder.path())?;
    let known = models::probe(&Engine, &entries, folder.path())?;
    let list = situations(&known, request.n);
    let rows = Mutex::new(vec![String::new(); list.len()]);
    let summary = Mutex::new(Summary::default());
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(situation) = list.get(i) else { return };
            let model = &known[situation.model];
            let trial = Trial {
                program: &program,
                path: folder.path().join(&model.entry.file),
                model,
                situation,
            };
            let tail = trial.run(&summary).unwrap_or_else(|error| {
                eprintln!("{}\t{}: {error}", model.entry.file, situation.flags);
                lock(&summary).errors += 1;
                format!("error: {}", error.to_string().replace(['\t', '\n'], " "))
            });
            lock(&rows)[i] = format!(
                "{}\t{}\t{}\t{tail}\n",
                model.entry.file,
                gpus_text(&situation.gpus),
                situation.flags
            );
            lock(&summary).n += 1;
            if i % 50 == 49 {
                eprintln!("{}/{}", i + 1, list.len());
            }
        }
    };
    std::thread::scope(|scope| (0..request.workers.max(1)).for_each(|_| drop(scope.spawn(work))));
    let summary = lock(&summary);
    write(&request.out, &lock(&rows), &summary, request.n)?;
    println!("{}", summary.text());
    let broken = summary.did_not_load + summary.other_bytes + summary.not_the_best + summary.errors;
    Ok(i32::from(broken > 0))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Summary {
    fn text(&self) -> String {
        format!(
            "{} situations: {} fit, {} partial, {} do not fit; plans that did not load: {}, with other bytes: {}, partial but one more layer loads: {}; \
             more layers on GPUs than llama.cpp's --fit --margin 0: {}, fewer: {}; errors: {}",
            self.n,
            self.fits,
            self.partial,
            self.does_not_fit,
            self.did_not_load,
            self.other_bytes,
            self.not_the_best,
            self.more_than_fit,
            self.fewer_than_fit,
            self.errors
        )
    }
}

fn write(out: &Path, rows: &[String], summary: &Summary, n: usize) -> Result<()> {
    let mut text = format!(
        "# engine: llama.cpp v0.5.0, CUDA 13 build; real loads, memory enforced: free memory less estimate's allowances\n\
         # made by: cargo run --release -p vramfit-oracle -- plans --n {n}\n\
         # layers: on GPUs, the output layer counts. bytes: are they the engine's. one_more: GPUs that could take one layer more.\n\
         # fit_margin_N: llama.cpp's own --fit with N MiB left free: layers/GPUs used/what it moved to the CPU besides, does it load.\n\
         # {}\n# {COLUMNS}\n",
        summary.text()
    );
    text.extend(rows.iter().map(String::as_str));
    if let Some(parent) = out.parent() {
        fs::create_dir_all(parent).context(parent.display())?;
    }
    fs::write(out, text).context(out.display())
}

/// One situation under way.
struct Trial<'a> {
    program: &'a Program,
    path: PathBuf,
    model: &'a Model,
    situation: &'a Situation,
}

/// A load that went well: layers by device, in the order of the GPUs.
struct Load {
    json: Value,
    layers: Vec<u64>,
}

impl Load {
    fn of(json: Value, n_gpus: usize) -> Self {
        let per = |i: usize| {
            json["result"]["layers_per_device"][format!("CUDA{i}")]
                .as_u64()
                .unwrap_or(0)
        };
        let layers = (0..n_gpus).map(per).collect();
        Self { json, layers }
    }

    fn on_gpus(&self) -> u64 {
        self.layers.iter().sum()
    }

    fn used(&self) -> usize {
        self.layers.iter().filter(|&&n| n > 0).count()
    }
}

impl Trial<'_> {
    fn gpus(&self) -> &[Gpu] {
        &self.situation.gpus
    }

    /// The columns from `verdict` on. A plan that leaves everything on the host has to load as well.
    fn run(&self, summary: &Mutex<Summary>) -> Result<String> {
        let argument = gpus_argument(self.gpus());
        let plan = self
            .program
            .ask(&self.path, &argument, &self.situation.flags)?;
        let vgpu = self.vgpu(&plan);
        // llama.cpp may use GPUs that the plan leaves alone: each gets its allowance.
        let all_gpus = self.vgpu_of(&[]).unwrap_or_else(|| vgpu.clone());
        let fits = [0, 1024].map(|margin| self.llama_fit(&all_gpus, margin));
        let fit_layers = fits[0].0;
        let (fit_texts, verdict) = (fits.map(|fit| fit.1).join("\t"), plan.verdict.as_str());
        match verdict {
            "fits" => lock(summary).fits += 1,
            "partial" => lock(summary).partial += 1,
            "does_not_fit" => lock(summary).does_not_fit += 1,
            other => return Err(Error::new(format!("verdict {other}"))),
        }
        if plan.command.is_empty() {
            return Ok(format!("{verdict}\t-\t0\t0\t-\t-\t-\t{fit_texts}"));
        }
        let flags = estimate::oracle_flags(&plan.command)?;
        let text = flags.join(" ");
        let load = match self.load(&vgpu, &flags) {
            Ok(load) => load,
            Err(reason) => {
                lock(summary).did_not_load += 1;
                eprintln!(
                    "{} {argument} {}: the plan does not load: {reason}",
                    self.model.entry.file, self.situation.flags
                );
                return Ok(format!(
                    "{verdict}\t{text}\t-\t-\tno: {reason}\t-\t-\t{fit_texts}"
                ));
            }
        };
        let differences = estimate::differences(&plan.bytes(), &estimate::engine_bytes(&load.json));
        let bytes = if differences.is_empty() {
            "same".to_owned()
        } else {
            differences.join("; ")
        };
        let better = if verdict == "partial" {
            self.one_more(&vgpu, &flags, &load)
        } else {
            Vec::new()
        };
        {
            let mut summary = lock(summary);
            summary.other_bytes += usize::from(!differences.is_empty());
            summary.not_the_best += usize::from(!better.is_empty());
            summary.more_than_fit +=
                usize::from(fit_layers.is_some_and(|layers| layers < load.on_gpus()));
            summary.fewer_than_fit +=
                usize::from(fit_layers.is_some_and(|layers| layers > load.on_gpus()));
        }
        let better = if better.is_empty() {
            "none".to_owned()
        } else {
            better.join(",")
        };
        Ok(format!(
            "{verdict}\t{text}\t{}\t{}\tyes\t{bytes}\t{better}\t{fit_texts}",
            load.on_gpus(),
            load.used()
        ))
    }

    /// The GPUs with the free memory of the plan less its allowances.
    fn vgpu(&self, plan: &Estimate) -> String {
        let mut text = String::new();
        for (i, gpu) in self.gpus().iter().enumerate() {
            let device = plan
                .devices
                .iter()
                .find(|device| device.id == format!("CUDA{i}"));
            let free = device
                .and_then(|device| device.free_bytes)
                .unwrap_or(gpu.total_bytes);
            let allowance = device.map_or(0, |device| {
                device.runtime_bytes.saturating_add(device.overhead_bytes)
            });
            let comma = if i > 0 { "," } else { "" };
            let _ = write!(
                text,
                "{comma}G{i}:{}:{}:free={}",
                gpu.total_bytes,
                gpu.compute_capability,
                free.saturating_sub(allowance)
            );
        }
        text
    }

    /// The GPUs with the free memory of another layout, less the allowances of that layout: a larger
    /// one may need a larger runtime pool, and a GPU that the plan leaves alone needs some as well.
    fn vgpu_of(&self, flags: &[String]) -> Option<String> {
        const LAYOUT: [&str; 8] = [
            "-ngl",
            "-ts",
            "-sm",
            "-mg",
            "-dev",
            "--n-cpu-moe",
            "-ot",
            "--cpu-moe",
        ];
        let mut text = format!("{} --layout engine", self.situation.flags);
        let mut words = flags.iter();
        while let Some(word) = words.next() {
            if !LAYOUT.contains(&word.as_str()) {
                continue;
            }
            let _ = write!(text, " {word}");
            if word != "--cpu-moe" {
                let _ = write!(text, " {}", words.next()?);
            }
        }
        let estimate = self
            .program
            .ask(&self.path, &gpus_argument(self.gpus()), &text)
            .ok()?;
        Some(self.vgpu(&estimate))
    }

    /// Whether another layout loads, with its own allowances.
    fn load_other(&self, vgpu: &str, flags: &[String]) -> std::result::Result<Load, String> {
        let own = self.vgpu_of(flags);
        self.load(own.as_deref().unwrap_or(vgpu), flags)
    }

    /// A real load with memory enforced; the reason if it fails.
    fn load(&self, vgpu: &str, flags: &[String]) -> std::result::Result<Load, String> {
        let mut words = flags.to_vec();
        words.push("--real".to_owned());
        let answer = Engine.ask(&[("VGPU", vgpu)], &self.path, &words);
        answer
            .map(|json| Load::of(json, self.gpus().len()))
            .map_err(|error| {
                let text = error.to_string().replace(['\t', '\n'], " ");
                // The engine's own reason; its log before that names files of this machine.
                let reason = text.split("error loading model: ").nth(1);
                let text = reason.map_or(text.as_str(), |r| r.split(" | ").next().unwrap_or(r));
                if text.contains("out of memory") || text.contains("failed to allocate") {
                    "out of memory".to_owned()
                } else {
                    text.to_owned()
                }
            })
    }

    /// The GPUs that could take a layer more than the plan gives them, the rest as it is; and, where experts stay on
    /// the CPU, whether those of one layer more could go to the GPUs.
    fn one_more(&self, vgpu: &str, flags: &[String], load: &Load) -> Vec<String> {
        let mut better = Vec::new();
        if let Some(at) = flags.iter().position(|flag| flag == "--n-cpu-moe") {
            let mut fewer = flags.to_vec();
            let n: u64 = fewer.get(at + 1).and_then(|n| n.parse().ok()).unwrap_or(0);
            if n > 0 {
                fewer[at + 1] = (n - 1).to_string();
                if self.load_other(vgpu, &fewer).is_ok() {
                    better.push("experts".to_owned());
                }
            }
        }
        better.extend(self.one_override_less(vgpu, flags, load));
        let all = u64::from(self.model.entry.n_layer) + 1;
        if load.on_gpus() >= all {
            return better;
        }
        let rest = without(flags, &["-ngl", "-ts", "-sm", "-mg", "-dev"]);
        for gpu in 0..load.layers.len() {
            let mut counts = load.layers.clone();
            counts[gpu] += 1;
            let layers: u64 = counts.iter().sum();
            let shares: Vec<String> = counts.iter().map(u64::to_string).collect();
            let mut words = rest.clone();
            words.extend([
                "-ngl".to_owned(),
                layers.to_string(),
                "-ts".to_owned(),
                shares.join(","),
            ]);
            // Without a share a GPU still costs its compute buffer: also with only those that have layers.
            let used: Vec<usize> = (0..counts.len()).filter(|&i| counts[i] > 0).collect();
            let names: Vec<String> = used.iter().map(|i| format!("CUDA{i}")).collect();
            let shares: Vec<String> = used.iter().map(|&i| counts[i].to_string()).collect();
            let mut only = rest.clone();
            only.extend([
                "-ngl".to_owned(),
                layers.to_string(),
                "-dev".to_owned(),
                names.join(","),
                "-ts".to_owned(),
                shares.join(","),
            ]);
            let tries = if used.len() == counts.len() {
                vec![words]
            } else {
                vec![words, only]
            };
            let loaded = tries.iter().any(|words| {
                self.load_other(vgpu, words)
                    .is_ok_and(|more| more.on_gpus() == layers)
            });
            if loaded {
                better.push(format!("CUDA{gpu}"));
            }
        }
        better
    }

    /// `-ot` entries that put tensors on the CPU, of the first and the last of them those that are not needed.
    fn one_override_less(&self, vgpu: &str, flags: &[String], load: &Load) -> Vec<String> {
        let Some(at) = flags.iter().position(|flag| flag == "-ot") else {
            return Vec::new();
        };
        let entries: Vec<&str> = flags
            .get(at + 1)
            .map_or_else(Vec::new, |list| list.split(',').collect());
        let on_cpu: Vec<usize> = (0..entries.len())
            .filter(|&i| entries[i].ends_with("=CPU"))
            .collect();
        let ends: BTreeSet<usize> = on_cpu
            .first()
            .into_iter()
            .chain(on_cpu.last())
            .copied()
            .collect();
        let mut better = Vec::new();
        for end in ends {
            let mut fewer = entries.clone();
            let entry = fewer.remove(end);
            let mut words = flags.to_vec();
            if fewer.is_empty() {
                words = without(flags, &["-ot"]);
            } else {
                words[at + 1] = fewer.join(",");
            }
            // An entry may match nothing (llama.cpp's own --fit writes one for the output layer): then it cannot help.
            if self
                .load_other(vgpu, &words)
                .is_ok_and(|other| weights_on_gpus(&other) > weights_on_gpus(load))
            {
                better.push(format!("without {entry}"));
            }
        }
        better
    }

    /// llama.cpp's own `--fit`: layers on GPUs if it loads, and the table's text.
    fn llama_fit(&self, vgpu: &str, margin_mib: u64) -> (Option<u64>, String) {
        let text = format!(
            "{} --server --fit --margin {margin_mib}",
            self.situation.flags
        );
        let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        match self.load(vgpu, &words) {
            Ok(load) => {
                let moved = load.json["fit"]["overrides"].as_array().map_or(0, Vec::len);
                let status = load.json["fit"]["status"].as_str().unwrap_or("?");
                let text = format!("{}/{}/{moved} {status}", load.on_gpus(), load.used());
                (Some(load.on_gpus()), text)
            }
            Err(reason) => (None, format!("does not load: {reason}")),
        }
    }
}

fn weights_on_gpus(load: &Load) -> u64 {
    let bytes = estimate::engine_bytes(&load.json);
    bytes
        .iter()
        .filter(|(name, _)| name.as_str() != "host")
        .map(|(_, [model, ..])| model)
        .sum()
}

/// `estimate --gpus`: one `11441MiB:cc=3.7` a GPU, with commas. The sizes of the situations are whole MiB.
fn gpus_argument(gpus: &[Gpu]) -> String {
    let one = |gpu: &Gpu| format!("{}MiB:cc={}", gpu.total_bytes >> 20, gpu.compute_capability);
    gpus.iter().map(one).collect::<Vec<_>>().join(",")
}

/// The flags without these and their values.
fn without(flags: &[String], names: &[&str]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut words = flags.iter();
    while let Some(word) = words.next() {
        if names.contains(&word.as_str()) {
            words.next();
        } else {
            kept.push(word.clone());
        }
    }
    kept
}
