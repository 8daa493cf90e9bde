//! `--engine ollama-classic`.

use std::path::Path;

use vramfit::classic::{
    CacheType, Decision, Facts, Gpu, Rules, Settings as ClassicSettings, Version, schedule,
    tower_bytes,
};
use vramfit::report::{Estimate, LayoutWord, Subject, Sure, VerdictWord, estimate_text};
use vramfit::{ENGINE, Error, FlashAttention, Header, Model, RunConfig, classic_placement};

use crate::estimate::message;
use crate::exit::Exit;
use crate::low::LowArgs;
use crate::ollama::Ollama;
use crate::printer::Printer;
use crate::settings::Settings;

/// Older than this, Ollama has no build but its fork's.
const OLDEST: u32 = 500;

/// A model as both sides read it.
pub struct Subjects {
    /// What the estimator reads.
    pub facts: Facts,
    /// The language model, as llama.cpp would load it.
    pub model: Model,
    /// Bytes of the vision tower in the file, its projection included.
    pub tower_bytes: u64,
    /// The tower as llama.cpp would have it.
    pub tower: Option<vramfit::Projector>,
}

impl Subjects {
    /// Reads the model at `path`. The error is one line.
    pub fn open(path: &Path, ollama: &Ollama) -> Result<Subjects, String> {
        let open = |path: &Path| Header::open(path).map_err(|error| error.to_string());
        let at = |error: &dyn std::fmt::Display| {
            format!(
                "{}: {error}",
                vramfit::report::one_line(&path.to_string_lossy())
            )
        };
        let header = open(path)?;
        if header.architecture() == Some("clip") {
            let path = path.to_owned();
            return Err(Error::Projector { path }.to_string());
        }
        let stored = ollama.model.iter();
        let projectors = stored.flat_map(|model| &model.projectors);
        let projectors: Vec<Header> = projectors
            .map(|path| open(path))
            .collect::<Result<_, _>>()?;
        let facts = Facts::read(&header, &projectors).map_err(|error| at(&error))?;
        let tower_bytes = tower_bytes(&header);
        let model = vramfit::language_model(path, &header).map_err(|error| error.to_string())?;
        let tower = vramfit::tower(path, &header).map_err(|error| error.to_string())?;
        Ok(Subjects {
            facts,
            model,
            tower,
            tower_bytes,
        })
    }
}

/// What the scheduler is asked.
pub struct Question {
    /// Each request's settings.
    pub settings: ClassicSettings,
    /// Requests at once, where that is said.
    pub parallel: Option<u64>,
    /// `OLLAMA_SCHED_SPREAD`.
    pub spread: bool,
    /// Whose rules.
    pub version: Version,
    /// Free on each GPU as Ollama sees it.
    pub free: Vec<u64>,
}

impl Question {
    /// From the flags, GPUs and variables.
    pub fn new(low: &LowArgs, settings: &Settings, ollama: &Ollama, model: &Subjects) -> Question {
        let gpus = &settings.gpus.devices;
        let run = &settings.run;
        let said = low
            .value("parallel")
            .and_then(|said| said.text.trim().parse::<u64>().ok());
        let parallel = said.filter(|&n| n > 0);
        let n_ctx = match run.n_ctx {
            0 => u64::try_from(model.model.hparams.n_ctx_train).unwrap_or(0),
            n => n.into(),
        };
        let version = match gpus.iter().any(|gpu| gpu.compute_capability.0 < OLDEST) {
            true => Version::K80Fork,
            false => Version::Upstream,
        };
        let n_layers = model.facts.n_layer() as u64 + 1;
        let num_gpu = settings.policy.pinned.n_gpu_layers.map(u64::from);
        let free = gpus.iter().map(|gpu| {
            let context = vramfit::devices::context(gpu.compute_capability, gpu.sm_count);
            gpu.free_bytes.saturating_sub(context.bytes)
        });
        Question {
            settings: ClassicSettings {
                context: n_ctx / parallel.unwrap_or(1),
                batch: low
                    .value("ubatch-size")
                    .map_or(512, |_| run.n_ubatch.into()),
                // As many as there are, or more, are all.
                num_gpu: num_gpu.filter(|&n| n < n_layers),
                cache_type: CacheType::from_name(run.type_k.name()),
                // The fork's CUDA code has no fused attention.
                flash_attention: run.flash_attention == FlashAttention::On
                    && version == Version::Upstream,
                overhead_bytes: ollama.variables.gpu_overhead.unwrap_or(0),
                ..ClassicSettings::default()
            },
            parallel,
            spread: ollama.variables.sched_spread.unwrap_or(false),
            version,
            free: free.collect(),
        }
    }

    /// The rules, mended or not.
    pub fn rules(&self, fixed: bool) -> Rules {
        Rules {
            version: self.version,
            fixed,
        }
    }

    /// The scheduler's answer.
    pub fn decide(&self, facts: &Facts, parallel: Option<u64>, fixed: bool) -> Decision {
        let gpus: Vec<Gpu> = self.free.iter().map(|&free| Gpu::cuda(free)).collect();
        let rules = self.rules(fixed);
        schedule(facts, &gpus, &self.settings, parallel, self.spread, &rules)
    }
}

/// Estimates and prints. The error is one line.
pub fn run(
    low: &LowArgs,
    path: &Path,
    settings: &Settings,
    ollama: &Ollama,
    printer: &mut Printer,
) -> Result<Exit, String> {
    let subjects = Subjects::open(path, ollama)?;
    let question = Question::new(low, settings, ollama, &subjects);
    let fixed = low.is_on("fixed");
    let decision = question.decide(&subjects.facts, question.parallel, fixed);
    let estimate = document(
        path, settings, ollama, &subjects, &question, &decision, fixed,
    )
    .map_err(|error| message(path, &error))?;
    match printer.json {
        true => printer.json(&estimate, false)?,
        false => printer.print(&estimate_text(&estimate, &printer.style))?,
    }
    Ok(match estimate.verdict {
        VerdictWord::Fits => Exit::Fits,
        _ => Exit::DoesNotFit,
    })
}

fn document(
    path: &Path,
    settings: &Settings,
    ollama: &Ollama,
    subjects: &Subjects,
    question: &Question,
    decision: &Decision,
    fixed: bool,
) -> Result<Estimate, Error> {
    let gpus = &settings.gpus.devices;
    // A frame for settings that have no say here: what llama.cpp would not take must not stop it.
    let mut run = RunConfig::default();
    run.n_ctx = settings.run.n_ctx;
    let rules = question.rules(fixed);
    let placement = classic_placement(
        &subjects.model,
        &run,
        gpus,
        &question.free,
        decision,
        &rules,
    )?;
    let mut notes = settings.notes.clone();
    notes.extend(ollama.notes.iter().cloned());
    notes.extend(free_note(gpus, &question.free));
    let subject = Subject {
        path,
        model: &subjects.model,
        devices: gpus,
        policy: &settings.policy,
        engine: &ENGINE,
        gpus: &settings.gpu_lines,
        notes: &notes,
        adapters: &[],
    };
    let mut estimate = Estimate::new(&subject, &placement);
    estimate.engine = format!(
        "{}{}",
        rules.version.name(),
        if fixed { ", fixed" } else { "" }
    );
    estimate.command = vec![];
    estimate.run.layout = LayoutWord::Best;
    estimate.run.n_gpu_layers = decision.taken.estimate.layers_offload;
    estimate.run.type_k = decision.taken.estimate.load.cache_type.name().to_string();
    estimate.run.type_v = estimate.run.type_k.clone();
    for (index, device) in estimate.devices.iter_mut().enumerate() {
        device.overhead_source = None;
        if let Some(&free) = question.free.get(index) {
            device.free_bytes = Some(free);
        }
        let sure = &mut device.certainty;
        (sure.model, sure.context) = (Sure::Modelled, Sure::Modelled);
        (sure.compute, sure.runtime) = (Sure::Modelled, Sure::Modelled);
    }
    Ok(estimate)
}

/// Why less is free than the driver says.
pub fn free_note(gpus: &[vramfit::Device], free: &[u64]) -> Option<String> {
    let missing = |(gpu, free): (&vramfit::Device, &u64)| gpu.free_bytes.saturating_sub(*free);
    let most = gpus
        .iter()
        .zip(free)
        .map(missing)
        .max()
        .filter(|&n| n > 0)?;
    Some(format!(
        "Ollama asks what is free from inside a CUDA context, and so sees up to {} MiB less",
        most >> 20
    ))
}
