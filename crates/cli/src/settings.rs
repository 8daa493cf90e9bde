//! What is made of the flags: llama.cpp's settings, a policy, GPUs.

use std::str::FromStr;

use vramfit::arch::CpuRepack;
use vramfit::devices::{Host, Profiles};
use vramfit::ollama::Variables;
use vramfit::{
    Device, DraftFile, ENGINE, EngineProfile, FlashAttention, GpuList, LayoutMode, Outputs, Policy,
    Pooling, Prefer, RunConfig, Type,
};

use crate::adapters::AdapterFiles;
use crate::draft;
use crate::flags::{FLAGS, Flag, Group};
use crate::low::{LowArgs, Said, truth};
use crate::placement;
use crate::probe;
use crate::projector::ProjectorFile;

/// Everything but the models.
pub struct Settings {
    /// Whose memory: the build of llama.cpp.
    pub engine: &'static EngineProfile,
    /// llama.cpp's settings.
    pub run: RunConfig,
    /// Of the placement.
    pub policy: Policy,
    /// The GPUs.
    pub gpus: GpuList,
    /// How the list of GPUs was understood.
    pub gpu_lines: Vec<String>,
    /// What a reader should know, whatever the model.
    pub notes: Vec<String>,
    /// The model's name, where it is of Ollama's store.
    pub from_ollama: Option<String>,
    /// Files with a vision tower among the model's tensors, as Ollama has them, are taken for their parts.
    pub takes_towers: bool,
    /// `-c` was given.
    pub ctx_given: bool,
    /// Adapters and control vectors.
    pub adapters: AdapterFiles,
    /// A multimodal projector.
    pub projector: Option<ProjectorFile>,
    /// A draft.
    pub draft: Option<DraftFile>,
}

/// The number of slots that llama-server takes by itself.
const AUTO_PARALLEL: u32 = 4;

impl Settings {
    /// The error is one line and names the flag or variable at fault.
    pub fn new(low: &LowArgs) -> Result<Settings, String> {
        Settings::of(low, &ENGINE)
    }

    /// As [`new`](Settings::new), of a build of llama.cpp.
    pub fn of(low: &LowArgs, engine: &'static EngineProfile) -> Result<Settings, String> {
        let run = run(low)?;
        let mut gpus = probe::gpus(low)?;
        let driver = gpus.driver().map(str::to_owned);
        let host = Host {
            driver: driver.as_deref(),
            build: engine.name,
        };
        profiles(low)?.apply(&mut gpus.devices, &host);
        let policy = Policy {
            mode: match text_of(low, "layout", &["best", "engine"])? {
                Some("engine") => LayoutMode::Engine,
                _ => LayoutMode::Best,
            },
            prefer: prefer(low)?,
            pinned: placement::pinned(low, gpus.devices.len())?,
            projector: None,
            draft: None,
            without_flash_attention: match low.value("flash-attn") {
                Some(_) => None,
                None => vramfit::without_flash_attention(&gpus.devices),
            },
        };
        let projector = ProjectorFile::new(low, gpus.devices.len())?;
        let draft = draft::draft_file(low, gpus.devices.len())?;
        let mut notes: Vec<String> = gpus.notes.iter().map(ToString::to_string).collect();
        notes.extend(not_repeated(low));
        if run.outputs != Outputs::PerSequence {
            notes.push(
                "--n-outputs is for users of the library: llama-server always reserves one a sequence"
                    .to_string(),
            );
        }
        let mut gpu_lines: Vec<String> = gpus.entries.iter().map(|e| e.description()).collect();
        if gpus.devices.is_empty() {
            gpu_lines.push("none: no GPU, everything on the host".to_string());
        }
        let is_older = *engine != ENGINE;
        if is_older {
            check_kepler(&gpus)?;
            notes.push(older_note(engine));
        }
        Ok(Settings {
            engine,
            run,
            policy,
            gpu_lines,
            notes,
            gpus,
            from_ollama: None,
            takes_towers: false,
            ctx_given: low.value("ctx-size").is_some(),
            adapters: AdapterFiles::new(low)?,
            projector,
            draft,
        })
    }
}

/// What is known of builds before v0.5.0 is what Tesla K80s showed.
fn check_kepler(gpus: &GpuList) -> Result<(), String> {
    let known = |d: &&Device| d.compute_capability.0 < 500;
    match gpus.devices.iter().find(|d| !known(d)) {
        None => Ok(()),
        Some(other) => Err(format!(
            "--engine llama.cpp-2025 is held against measured Tesla K80s (Kepler) alone, and {} is another kind of card; \
             leave it out for {}",
            other.name, ENGINE.name
        )),
    }
}

fn older_note(engine: &EngineProfile) -> String {
    format!(
        "{}: the code of {}, with compute buffers as builds before pull request 17232 took them, larger on every GPU \
         but the first; modelled, within 8 MiB of what nvidia-smi showed of two models on Tesla K80s",
        engine.name, ENGINE.name
    )
}

/// What calibrations have learned; a file that somebody named has to be there.
pub fn profiles(low: &LowArgs) -> Result<Profiles, String> {
    let found = match &low.profiles {
        None => Ok(None),
        Some((path, true)) => Profiles::read(path).map(Some),
        Some((path, false)) => Profiles::read_if_there(path),
    };
    let found = found.map_err(|e| e.to_string())?;
    Ok(found.unwrap_or_default())
}

impl Settings {
    /// Leaves free and spreads as Ollama's variables ask, where llama.cpp is placed.
    pub fn obey(&mut self, variables: &Variables) {
        let devices = &mut self.gpus.devices;
        if let Some(bytes) = variables.gpu_overhead.filter(|&n| n > 0) {
            for gpu in &mut *devices {
                gpu.free_bytes = gpu.free_bytes.saturating_sub(bytes);
            }
            let mib = bytes >> 20;
            self.notes.push(format!(
                "OLLAMA_GPU_OVERHEAD: {mib} MiB of each GPU are left free"
            ));
        }
        let pinned = &mut self.policy.pinned;
        let is_placed = pinned.tensor_split.is_some()
            || pinned.split_mode.is_some()
            || pinned.devices.is_some();
        if variables.sched_spread == Some(true) && !is_placed && devices.len() > 1 {
            let share = |gpu: &vramfit::Device| (gpu.free_bytes >> 20) as f32;
            pinned.tensor_split = Some(devices.iter().map(share).collect());
            self.notes.push(
                "OLLAMA_SCHED_SPREAD: the layers go over all GPUs, by what is free".to_string(),
            );
        }
    }
}

/// Flags that have no say in memory are not in the command that is printed.
fn not_repeated(low: &LowArgs) -> Option<String> {
    let ignored = FLAGS.iter().filter(|flag| flag.group == Group::Ignored);
    // The command has its own, as it leaves nothing to fit.
    let ids: Vec<&str> = ignored.map(Flag::id).filter(|id| *id != "fit").collect();
    let said = low.said(&ids);
    (!said.is_empty()).then(|| {
        format!(
            "no say in memory, and so not in the command: {}",
            said.join(", ")
        )
    })
}

/// A number.
pub fn number<T: FromStr>(said: &Said, what: &str) -> Result<T, String> {
    let text = said.text.trim();
    text.parse()
        .map_err(|_| format!("{}: '{}' is not {what}", said.by, said.text))
}

fn count(low: &LowArgs, id: &str) -> Result<Option<u32>, String> {
    let said = low.value(id);
    said.map(|said| number(said, "a whole number from 0 to 4294967295"))
        .transpose()
}

/// One of `choices`, which clap has checked for flags, not for variables.
pub fn text_of<'a>(
    low: &'a LowArgs,
    id: &str,
    choices: &[&str],
) -> Result<Option<&'a str>, String> {
    let Some(said) = low.value(id) else {
        return Ok(None);
    };
    if choices.contains(&said.text.as_str()) {
        return Ok(Some(&said.text));
    }
    let choices = choices.join(", ");
    Err(format!(
        "{}: '{}' is not one of {choices}",
        said.by, said.text
    ))
}

fn run(low: &LowArgs) -> Result<RunConfig, String> {
    let mut run = RunConfig::default();
    let numbers = [
        ("ctx-size", &mut run.n_ctx),
        ("batch-size", &mut run.n_batch),
        ("ubatch-size", &mut run.n_ubatch),
    ];
    for (id, slot) in numbers {
        if let Some(n) = count(low, id)? {
            *slot = n;
        }
    }
    parallel(low, &mut run)?;
    if let Some(said) = low.value("flash-attn") {
        run.flash_attention = match (said.text.as_str(), truth(&said.text)) {
            (_, Some(true)) => FlashAttention::On,
            (_, Some(false)) => FlashAttention::Off,
            ("auto" | "-1", _) => FlashAttention::Auto,
            _ => {
                let (by, text) = (said.by, &said.text);
                return Err(format!("{by}: '{text}' is not one of on, off, auto"));
            }
        };
    }
    for (id, slot) in [
        ("cache-type-k", &mut run.type_k),
        ("cache-type-v", &mut run.type_v),
    ] {
        let names = vramfit::estimate::CACHE_TYPES.map(Type::name);
        if let Some(name) = text_of(low, id, &names)? {
            *slot = Type::from_name(name).unwrap_or(*slot);
        }
    }
    run.offload_kqv = low.switch("kv-offload").unwrap_or(run.offload_kqv);
    run.op_offload = low.switch("op-offload").unwrap_or(run.op_offload);
    run.swa_full = low.is_on("swa-full");
    run.pinned_host = !low.is_on("no-host");
    run.use_mmap = mmap(low)?;
    if low.switch("repack") == Some(false) {
        run.cpu_repack = CpuRepack::Off;
    }
    run.embeddings = low.is_on("embeddings") || low.is_on("reranking");
    run.pooling = match text_of(low, "pooling", &["none", "mean", "cls", "last", "rank"])? {
        Some("none") => Some(Pooling::None),
        Some("mean") => Some(Pooling::Mean),
        Some("cls") => Some(Pooling::Cls),
        Some("last") => Some(Pooling::Last),
        Some("rank") => Some(Pooling::Rank),
        _ if low.is_on("reranking") => Some(Pooling::Rank),
        _ => None,
    };
    run.outputs = match count(low, "n-outputs")? {
        None => Outputs::PerSequence,
        Some(0) => Outputs::EveryToken,
        Some(n) => Outputs::AtMost(n),
    };
    Ok(run)
}

fn parallel(low: &LowArgs, run: &mut RunConfig) -> Result<(), String> {
    if let Some(said) = low.value("parallel") {
        let n: i64 = number(said, "a whole number")?;
        run.n_seq_max = match n {
            0 => {
                return Err(format!(
                    "{}: 0 sequences can do nothing; give 1 or more",
                    said.by
                ));
            }
            ..0 => AUTO_PARALLEL,
            n => u32::try_from(n).unwrap_or(u32::MAX),
        };
        run.kv_unified = n < 0;
    }
    run.kv_unified = low.switch("kv-unified").unwrap_or(run.kv_unified);
    Ok(())
}

/// By flag or variable, the newer name first.
fn mmap(low: &LowArgs) -> Result<bool, String> {
    const MODES: [&str; 6] = ["auto", "none", "mmap", "mlock", "mmap+mlock", "dio"];
    Ok(
        match (text_of(low, "load-mode", &MODES)?, low.switch("mmap")) {
            (Some(mode), _) => ["auto", "mmap", "mmap+mlock"].contains(&mode),
            (None, mmap) => mmap.unwrap_or(true),
        },
    )
}

fn prefer(low: &LowArgs) -> Result<Prefer, String> {
    let choices = ["most-free", "first", "last", "tightest"];
    Ok(match text_of(low, "prefer", &choices)? {
        Some("first") => Prefer::First,
        Some("last") => Prefer::Last,
        Some("tightest") => Prefer::Tightest,
        _ => Prefer::MostFree,
    })
}
