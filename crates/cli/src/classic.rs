//! `--engine ollama-classic`.

use std::path::{Path, PathBuf};

use vramfit::classic::{
    CacheType, Decision, Facts, Gpu, Rules, Settings as ClassicSettings, Version, schedule,
};
use vramfit::report::{Estimate, LayoutWord, Subject, Sure};
use vramfit::{ENGINE, Error, FlashAttention, Header, Model, RunConfig, classic_placement};

use crate::low::LowArgs;
use crate::ollama::{NUM_BATCH, Ollama, STORED_PROJECTOR};
use crate::settings::Settings;

/// Older than this, Ollama has no build but its fork's.
const OLDEST: u32 = 500;

/// Flags of llama.cpp for which Ollama has no word.
const WITHOUT_SAY: [&str; 16] = [
    "kv-offload",
    "swa-full",
    "lora",
    "lora-scaled",
    "control-vector",
    "control-vector-scaled",
    "mmproj-offload",
    "spec-draft-model",
    "spec-type",
    "tensor-split",
    "split-mode",
    "main-gpu",
    "device",
    "override-tensor",
    "cpu-moe",
    "n-cpu-moe",
];

/// A model as both sides read it.
pub struct Subjects {
    /// What the estimator reads.
    pub facts: Facts,
    /// The language model, as llama.cpp would load it.
    pub model: Model,
}

impl Subjects {
    /// Reads the model at `path` and its projectors: that of `--mmproj`, else those of the store.
    pub fn open(path: &Path, low: &LowArgs, ollama: &Ollama) -> Result<Subjects, Error> {
        let header = Header::open(path)?;
        let model = vramfit::language_model(path, &header)?;
        let projectors = projectors(low, ollama).into_iter().map(Header::open);
        let projectors: Vec<Header> = projectors.collect::<Result<_, _>>()?;
        let facts = Facts::read(&header, &projectors).map_err(|source| Error::Classic {
            path: path.to_owned(),
            source,
        })?;
        Ok(Subjects { facts, model })
    }
}

fn projectors<'a>(low: &'a LowArgs, ollama: &'a Ollama) -> Vec<&'a Path> {
    match low.value("mmproj") {
        Some(said) if said.by != STORED_PROJECTOR => vec![Path::new(&said.text)],
        _ => {
            let stored = ollama.model.iter().flat_map(|model| &model.projectors);
            stored.map(PathBuf::as_path).collect()
        }
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
    /// What of the flags and variables is taken otherwise than one may think.
    pub notes: Vec<String>,
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
        let mut notes = Vec::new();
        let version = version(low, gpus, &mut notes);
        if !settings.ctx_given && version == Version::Upstream {
            notes.push(
                "4096 tokens of context are Ollama's default from 0.6.7 on; it was 2048 before"
                    .to_string(),
            );
        }
        let free = gpus.iter().map(|gpu| {
            let context = vramfit::devices::context(gpu.compute_capability, gpu.sm_count);
            gpu.free_bytes.saturating_sub(context.bytes)
        });
        let is_fused = run.flash_attention == FlashAttention::On;
        if is_fused && version == Version::K80Fork {
            notes.push("ollama37 has no flash attention, so its cache is f16".to_string());
        }
        let num_gpu = num_gpu(low);
        let n_layers = model.facts.n_layer() as u64 + 1;
        if let Some(n) = num_gpu.filter(|&n| n > n_layers) {
            notes.push(format!(
                "Ollama looks for room for {n} layers and the model has {n_layers}, so it never finds a full fit, and \
                 takes all GPUs"
            ));
        }
        if run.type_v != run.type_k {
            let ty = run.type_k.name();
            notes.push(format!("Ollama has one type for the whole cache: {ty}"));
        }
        let silent = low.said(&WITHOUT_SAY);
        if !silent.is_empty() {
            notes.push(format!(
                "without a say in Ollama's estimate: {}",
                silent.join(", ")
            ));
        }
        Question {
            settings: ClassicSettings {
                context: n_ctx / parallel.unwrap_or(1),
                batch: num_batch(low, run),
                num_gpu,
                cache_type: CacheType::from_name(run.type_k.name()),
                flash_attention: is_fused && version == Version::Upstream,
                overhead_bytes: ollama.variables.gpu_overhead.unwrap_or(0),
                ..ClassicSettings::default()
            },
            parallel,
            spread: ollama.variables.sched_spread.unwrap_or(false),
            version,
            free: free.collect(),
            notes,
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

/// Whose rules hold: as asked, else the fork's where a GPU is too old for any other build.
fn version(low: &LowArgs, gpus: &[vramfit::Device], notes: &mut Vec<String>) -> Version {
    let said = low.value("ollama-rules").map(|said| said.text.as_str());
    match said {
        Some("upstream") => Version::Upstream,
        Some("ollama37") => Version::K80Fork,
        _ if gpus.iter().any(|gpu| gpu.compute_capability.0 < OLDEST) => {
            notes.push(
                "those rules of ollama37 were in force on 29 and 30 October 2025; its builds before and after hand \
                 out layers in turn (--ollama-rules upstream -np 1), later ones with graphs multiplied by 3.5 or 2.5, which \
                 is not modelled"
                    .to_string(),
            );
            Version::K80Fork
        }
        _ => Version::Upstream,
    }
}

/// Layers by number; `all` and `auto` leave it to Ollama, as numbers below 0 do.
fn num_gpu(low: &LowArgs) -> Option<u64> {
    low.value("n-gpu-layers")?.text.trim().parse().ok()
}

/// Ollama knows one size of batch, llama.cpp two: the smaller one that was said, by a flag before the Modelfile.
fn num_batch(low: &LowArgs, run: &RunConfig) -> u64 {
    let sizes = [("batch-size", run.n_batch), ("ubatch-size", run.n_ubatch)];
    let said = |by_modelfile: bool| {
        let said = sizes.iter().filter(|(id, _)| {
            let by = low.value(id).map(|said| said.by == NUM_BATCH);
            by == Some(by_modelfile)
        });
        said.map(|(_, n)| u64::from(*n)).min()
    };
    said(false)
        .or_else(|| said(true))
        .unwrap_or(ClassicSettings::default().batch)
}

/// What Ollama decides about the model at `path`.
pub fn document(
    path: &Path,
    low: &LowArgs,
    settings: &Settings,
    ollama: &Ollama,
) -> Result<Estimate, Error> {
    let subjects = Subjects::open(path, low, ollama)?;
    let question = Question::new(low, settings, ollama, &subjects);
    let fixed = low.is_on("fixed");
    let decision = question.decide(&subjects.facts, question.parallel, fixed);
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
        &decision,
        &rules,
    )?;
    let notes = settings.notes.iter().chain(&question.notes);
    let mut notes: Vec<String> = notes.chain(&ollama.notes).cloned().collect();
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
    estimate.model.store_name.clone_from(&settings.from_ollama);
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
