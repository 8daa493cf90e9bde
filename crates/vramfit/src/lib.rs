//! To the byte: what a GGUF model takes on each GPU under llama.cpp, and where every layer should
//! go, before anything is loaded.
//!
//! From a path to a placement in three calls:
//!
//! ```
//! use vramfit::{Policy, RunConfig, Verdict};
//!
//! let model = vramfit::open("../../fixtures/gguf/gemma-3-12b.Q4_K_M.gguf")?;
//! let gpus = vramfit::gpus("k80x2")?;
//! let placement = vramfit::plan(&model, &RunConfig::default(), &gpus, &Policy::default())?;
//!
//! assert_eq!(placement.verdict, Verdict::Fits);
//! assert_eq!(placement.devices[0].layers.len(), 49); // 48 blocks and the output layer
//! assert_eq!(placement.devices[1].required_bytes, 0);
//! println!("llama-server -m model.gguf {}", placement.flags.join(" "));
//! # Ok::<(), vramfit::Error>(())
//! ```
//!
//! Only the header is read, so this takes milliseconds, and works on header-only files (`estimate strip`)
//! as well. Settings are llama.cpp's own:
//!
//! ```
//! # let model = vramfit::open("../../fixtures/gguf/gemma-3-12b.Q4_K_M.gguf")?;
//! # let gpus = vramfit::gpus("k80x2")?;
//! use vramfit::{FlashAttention, RunConfig, Type};
//!
//! let run = RunConfig::builder()
//!     .n_ctx(32768)
//!     .flash_attention(FlashAttention::On)
//!     .cache_types(Type::Q8_0)
//!     .build();
//! let placement = vramfit::plan(&model, &run, &gpus, &vramfit::Policy::default())?;
//! for gpu in &placement.devices {
//!     println!("CUDA{}: {} bytes", gpu.device, gpu.required_bytes);
//! }
//! # Ok::<(), vramfit::Error>(())
//! ```
//!
//! A server with several models keeps a ledger. [`Host::reserve`] plans on what is free by the ledger and
//! reserves what the placement takes in one step, so that no byte is promised twice. Times are milliseconds since 1970,
//! as leases outlive a process:
//!
//! ```
//! use vramfit::{Host, LoadRequest, Policy, RunConfig, Volatile};
//!
//! let host = Host::open(Volatile, "gpu-box", vramfit::gpu_list("h100x2")?)?; // or Journal::open(path)?
//! # let in_a_file = |path: &str| -> Result<_, vramfit::Error> {
//! #     Host::open(vramfit::Journal::open(path)?, "gpu-box", vramfit::gpu_list("h100x2")?)
//! # };
//! # assert!(in_a_file("/nowhere/at/all").is_err());
//! let model = vramfit::open("../../fixtures/gguf/qwen3-8b.Q4_K_M.gguf")?;
//!
//! // llama-server never unloads by itself, unless it is called with --sleep-idle-seconds: it stays.
//! let load = LoadRequest::new("qwen3:8b", "loader-1").leased(60_000).staying();
//! let (run, policy, now_ms) = (RunConfig::default(), Policy::default(), 0);
//! let reserved = host.reserve(&model, &run, &policy, &load, now_ms)?;
//! println!("llama-server -m model.gguf {}", reserved.placement.flags.join(" "));
//!
//! host.commit(reserved.id(), &reserved.grant.shares, now_ms + 5_000)?; // or what the engine says it took
//! host.renew(reserved.id(), now_ms + 30_000)?;
//! host.ledger().expire(now_ms + 30_000)?; // from a timer: of holders that have died
//! host.release(reserved.id())?;
//! # Ok::<(), vramfit::Error>(())
//! ```
//!
//! Programs that speak JSON have [`Settings`] for what goes in and [`report::Estimate`] for what comes out
//! ([`answer`]).
//!
//! What is exact and what is modelled is told apart everywhere: [`DevicePlacement::memory`] holds
//! llama.cpp's own buffers, to the byte; `runtime_bytes` and `overhead_bytes` beside it are a model
//! of what CUDA takes. The crates underneath are there as [`gguf`], [`arch`], [`estimate`] and so on.

// The README's examples compile.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

mod answer;
mod classic_placement;
mod evictions;
mod host;
mod reserve;
pub mod settings;
mod status;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

pub use vramfit_arch as arch;
pub use vramfit_classic as classic;
pub use vramfit_devices as devices;
pub use vramfit_estimate as estimate;
pub use vramfit_ggml as ggml;
pub use vramfit_gguf as gguf;
pub use vramfit_ledger as ledger;
pub use vramfit_ollama as ollama;
pub use vramfit_plan as planner;
pub use vramfit_report as report;

pub use answer::{Answer, answer, document, explanation};
pub use classic_placement::{classic_placement, classic_verdict};
pub use host::{Host, LoadRequest, Reserved};
pub use settings::{AdapterFile, DraftFile, MmprojFile, Resolved, Settings, TensorOverride};
pub use status::Status;
pub use vramfit_arch::clip::{ImageTokens, Projector};
pub use vramfit_arch::{Model, Pooling};
pub use vramfit_devices::{ChildProbe, GpuList, Gpus, Machine, NoProbe, Probe, answer_probe};
pub use vramfit_estimate::{
    Breakdown, DraftKind, EngineProfile, FlashAttention, Layout, MemoryBytes, Outputs, Peak,
    ProjectorConfig, Refusal, RunConfig, RunConfigBuilder, SpeculativeConfig, SpeculativeUse,
};
pub use vramfit_ggml::{ComputeCapability, Type};
pub use vramfit_gguf::Header;
pub use vramfit_ledger::{Grant, Journal, Ledger, ReservationId, Share, Stale, Volatile};
pub use vramfit_plan::{
    Allowance, Certainty, Device, DevicePlacement, DraftPlacement, DraftPlan, Fix, LayoutMode,
    Override, OverrideTarget, Pinned, Placement, Policy, Prefer, ProjectorPlan, ProjectorShare,
    Rejected, Shortfall, SplitMode, Verdict, WithoutFlashAttention,
};

/// The engine build that [`plan`] and [`explain`] speak of.
pub const ENGINE: EngineProfile = EngineProfile::LLAMA_CPP_V0_5_0;

/// Why there is no answer. Every variant displays on one line and says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read, or is no GGUF.
    #[error(transparent)]
    Open(#[from] gguf::OpenError),
    /// The file is sound, but no model that can be sized.
    #[error("{}: {source}", report::one_line(&path.to_string_lossy()))]
    Model {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: arch::Error,
    },
    /// The file holds what belongs to another model: a projector for images or sound.
    #[error(
        "{}: a projector (mmproj), not a model of its own; name the model that it belongs to",
        report::one_line(&path.to_string_lossy())
    )]
    Projector {
        /// The file.
        path: PathBuf,
    },
    /// Ollama's estimator has nothing to go by.
    #[error("{}: {source}", report::one_line(&path.to_string_lossy()))]
    Classic {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: classic::Error,
    },
    /// The list of GPUs cannot be read.
    #[error("--gpus: {0}")]
    Gpus(#[from] devices::GpusError),
    /// A GPU cannot be as described.
    #[error(transparent)]
    Gpu(#[from] devices::GpuError),
    /// This machine's GPUs cannot be found.
    #[error(transparent)]
    Probe(#[from] devices::ProbeError),
    /// What calibrations have learned cannot be read.
    #[error(transparent)]
    Profiles(#[from] devices::ProfilesError),
    /// No layout can be computed, llama.cpp refuses the settings, or vramfit has no rule for them.
    #[error(transparent)]
    Plan(#[from] estimate::Error),
    /// A setting is not one that there is, or cannot be for these GPUs.
    #[error("{what}: {why}")]
    Settings {
        /// Which.
        what: &'static str,
        /// What is wrong with it, and what would do.
        why: String,
    },
    /// Not on these GPUs even if nothing else were on them: the placement says why not, and what would help.
    #[error("{model} does not fit on these GPUs even if they were empty{}", first_rejected(.placement))]
    NeverFits {
        /// What was to be loaded.
        model: String,
        /// The nearest there is.
        placement: Box<Placement>,
    },
    /// Nothing of the model goes on a GPU, so there is nothing to reserve.
    #[error("{model} takes no GPU with these settings: there is nothing to reserve")]
    NoGpu {
        /// What was to be loaded.
        model: String,
    },
    /// A list that has to have one value for each of the host's GPUs, and has fewer or more.
    #[error("{given} {what} for {gpus} GPUs: give one for each, in the GPUs' order")]
    Count {
        /// Of what.
        what: &'static str,
        /// How many there are.
        given: usize,
        /// How many GPUs there are.
        gpus: usize,
    },
    /// The ledger has refused.
    #[error("{0}{next}", next = status::next_step(.0))]
    Ledger(ledger::Error),
}

impl From<ledger::Error> for Error {
    fn from(error: ledger::Error) -> Error {
        Error::Ledger(error)
    }
}

impl From<ledger::StoreError> for Error {
    fn from(error: ledger::StoreError) -> Error {
        Error::Ledger(error.into())
    }
}

/// [`Error::Count`] where a list is not as long as that of the GPUs: a value that is missing would be
/// a GPU that nobody knows, or one whose memory is promised without a look.
fn one_each(what: &'static str, given: usize, gpus: usize) -> Result<(), Error> {
    match given == gpus {
        true => Ok(()),
        false => Err(Error::Count { what, given, gpus }),
    }
}

/// The first option that was not taken and the first thing that would help, as the end of a sentence.
fn first_rejected(placement: &Placement) -> String {
    let first = placement.rejected.first();
    first.map_or(String::new(), |rejected| {
        let fix = rejected.fixes.first().map_or(String::new(), |fix| {
            let text = &fix.text;
            match fix.flags.is_empty() {
                true => format!("; {text}"),
                false => format!("; {text} would do ({})", fix.flags.join(" ")),
            }
        });
        let short = rejected.shortfalls.first().map(|s| {
            let missing = s.missing_bytes();
            format!(
                ": {} lacks {missing} bytes on CUDA{}",
                rejected.option, s.device
            )
        });
        let why = || rejected.reason.as_ref().map(|why| format!(": {why}"));
        short.or_else(why).unwrap_or_default() + &fix
    })
}

impl Error {
    /// Whether the same call may succeed later, with nothing else changed: others start, leave, or are
    /// released.
    pub fn can_retry(&self) -> bool {
        use ledger::Error::{FullNow, FullPending, StalePlan, Waits};
        let Error::Ledger(error) = self else {
            return false;
        };
        matches!(
            error,
            FullNow(_) | FullPending { .. } | StalePlan { .. } | Waits { .. }
        )
    }
}

/// Reads the model at `path`: one file, or any part of a split model.
pub fn open(path: impl AsRef<Path>) -> Result<Model, Error> {
    let path = path.as_ref();
    model(path, &Header::open(path)?)
}

/// The model of `header`, read from `path`.
pub fn model(path: impl AsRef<Path>, header: &Header) -> Result<Model, Error> {
    let path = path.as_ref();
    if header.architecture() == Some("clip") {
        return Err(Error::Projector {
            path: path.to_owned(),
        });
    }
    Model::load(header).map_err(|source| Error::Model {
        path: path.to_owned(),
        source,
    })
}

/// The language model of `header`, read from `path`: the whole of it, or for Ollama's own models, which
/// have a vision tower in the same file, what llama.cpp would load without it.
pub fn language_model(path: impl AsRef<Path>, header: &Header) -> Result<Model, Error> {
    let path = path.as_ref();
    if classic::tower_bytes(header) == 0 {
        return model(path, header);
    }
    let language = classic::without_tower(header).map_err(|source| gguf::OpenError::Malformed {
        path: path.to_owned(),
        source,
    })?;
    model(path, &language)
}

/// The vision tower in a model's own file, as llama.cpp would take it from a projector; `None` without one
/// that it knows.
pub fn tower(path: impl AsRef<Path>, header: &Header) -> Result<Option<Projector>, Error> {
    let path = path.as_ref();
    let Some(tower) = classic::tower_alone(header) else {
        return Ok(None);
    };
    let tower = tower.map_err(|source| gguf::OpenError::Malformed {
        path: path.to_owned(),
        source,
    })?;
    let projector = Projector::load(&tower, ImageTokens::default());
    projector.map(Some).map_err(|source| Error::Model {
        path: path.to_owned(),
        source,
    })
}

/// Reads the LoRA adapter at `path`, which has to be one of `model`.
pub fn lora(path: impl AsRef<Path>, model: &Model) -> Result<arch::Lora, Error> {
    beside(path.as_ref(), |header| arch::Lora::load(header, model))
}

/// Reads the control vector at `path`: the layers that it is for.
pub fn control_vector(path: impl AsRef<Path>, model: &Model) -> Result<[usize; 2], Error> {
    beside(path.as_ref(), |header| arch::control_vector(header, model))
}

fn beside<T>(path: &Path, read: impl Fn(&Header) -> arch::Result<T>) -> Result<T, Error> {
    read(&Header::open(path)?).map_err(|source| Error::Model {
        path: path.to_owned(),
        source,
    })
}

/// Reads the multimodal projector at `path` (`--mmproj`).
pub fn projector(path: impl AsRef<Path>, tokens: ImageTokens) -> Result<Projector, Error> {
    beside(path.as_ref(), |header| Projector::load(header, tokens))
}

/// What a reader of an answer with `projector` should know of it, a sentence each.
pub fn projector_notes(projector: &Projector) -> Vec<String> {
    let mut notes = vec![
        "the projector's weights and compute buffer are among those of its device; the buffer is the one that \
         llama-server reserves at the start, and grows with an image that is larger than that"
            .to_string(),
    ];
    for tower in &projector.towers {
        let name = &tower.type_name;
        if !tower.is_known() {
            notes.push(format!(
                "projectors of type '{name}' are not known: the weights are those of the whole file, the compute \
                 buffer is a guess"
            ));
        } else if !tower.is_warmed_up() {
            notes.push(format!(
                "speech output of type '{name}' has weights alone at the start; the buffer that it takes when it \
                 first speaks is not counted"
            ));
        }
    }
    notes
}

/// Which of `gpus` no published build of llama.cpp computes flash attention on (Kepler's): for
/// [`Policy::without_flash_attention`](planner::Policy), where nobody says `-fa`. None where there is no such GPU.
pub fn without_flash_attention(gpus: &[Device]) -> Option<WithoutFlashAttention> {
    let lacks = |gpu: &Device| !devices::flash_attention(gpu.compute_capability).available();
    let all = gpus.iter().enumerate();
    let devices: Vec<usize> = all.filter_map(|(d, gpu)| lacks(gpu).then_some(d)).collect();
    let is_any = !devices.is_empty();
    is_any.then_some(WithoutFlashAttention {
        devices,
        projector: None,
    })
}

/// What `projector` takes on each of `gpus`, and without one: for [`Policy::projector`].
pub fn projector_plan(
    projector: &Projector,
    flash_attention: FlashAttention,
    gpus: &[Device],
) -> Result<ProjectorPlan, Error> {
    let share = |device: Option<&Device>| {
        let config = ProjectorConfig {
            device: device.map(|d| estimate::LayoutDevice {
                compute_capability: d.compute_capability,
                integrated: d.integrated,
                sm_count: d.sm_count,
                pool: d.pool,
            }),
            flash_attention,
        };
        let towers = estimate::projector_use(projector, &config, &ENGINE)?;
        let mut share = ProjectorShare::default();
        for tower in &towers {
            for (all, one) in [
                (&mut share.gpu, tower.device),
                (&mut share.host, tower.host),
            ] {
                all.model = all.model.saturating_add(one.model);
                all.compute = all.compute.saturating_add(one.compute);
            }
            let runtime = tower.runtime.sum();
            share.runtime_bytes = share.runtime_bytes.saturating_add(runtime);
            share.runtime_is_bound |= tower.runtime.is_bound;
            share.is_guess |= tower.is_guess;
        }
        Ok::<_, Error>(share)
    };
    Ok(ProjectorPlan {
        gpus: gpus
            .iter()
            .map(|d| share(Some(d)))
            .collect::<Result<_, _>>()?,
        host: share(None)?,
        ..ProjectorPlan::default()
    })
}

/// The GPUs of a `--gpus` text: `k80x2`, `24GiB`, `rtx3060:free=9GiB`, `none`. For `auto` a probe is
/// needed: see [`probed_gpus`].
pub fn gpus(text: &str) -> Result<Vec<Device>, Error> {
    Ok(gpu_list(text)?.devices)
}

/// As [`gpus`], with what was assumed of them.
pub fn gpu_list(text: &str) -> Result<GpuList, Error> {
    Ok(text.parse::<Gpus>()?.resolve(&NoProbe)?)
}

/// As [`gpu_list`], where `auto`, or `auto:0,2` for some of them, is what `probe` finds on this machine:
///
/// ```no_run
/// vramfit::answer_probe(); // first of all in `main`, see `devices::ChildProbe`
/// let gpus = vramfit::probed_gpus("auto", &vramfit::ChildProbe::this_program()?)?;
/// println!("{} bytes free on CUDA0", gpus.devices[0].free_bytes);
/// # Ok::<(), vramfit::Error>(())
/// ```
///
/// What `estimate calibrate` has learned of the cards is taken from where it is kept, as [`with_profiles`] says.
pub fn probed_gpus(text: &str, probe: &dyn Probe) -> Result<GpuList, Error> {
    let list = text.parse::<Gpus>()?.resolve(probe)?;
    with_profiles(list, &|name| std::env::var_os(name))
}

/// `list` with what `estimate calibrate` has learned of its cards in place of shipped figures. The file is the one that
/// `VRAMFIT_PROFILES` in `env` names (none, where that is empty), else `vramfit/overhead.json` in the user's data
/// folder; where there is none the list stays as it is.
pub fn with_profiles(
    mut list: GpuList,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> Result<GpuList, Error> {
    let path = devices::profiles_path(None, env);
    let learned = match &path {
        Some((path, _)) => devices::Profiles::read_if_there(path)?,
        None => None,
    };
    if let Some(learned) = learned {
        let driver = list.driver().map(str::to_owned);
        let host = devices::Host {
            driver: driver.as_deref(),
            build: ENGINE.name,
        };
        learned.apply(&mut list.devices, &host);
    }
    Ok(list)
}

/// Finds a placement of `model` on `gpus`.
pub fn plan(
    model: &Model,
    run: &RunConfig,
    gpus: &[Device],
    policy: &Policy,
) -> Result<Placement, Error> {
    plan_for(&ENGINE, model, run, gpus, policy)
}

/// As [`plan`], of another build than [`ENGINE`]. What is known of it is what its profile says.
pub fn plan_for(
    engine: &EngineProfile,
    model: &Model,
    run: &RunConfig,
    gpus: &[Device],
    policy: &Policy,
) -> Result<Placement, Error> {
    Ok(planner::plan(model, run, gpus, policy, engine)?)
}

/// Which tensors make the compute buffers of a placement as large as they are.
pub fn explain(model: &Model, placement: &Placement) -> Result<Vec<Peak>, Error> {
    Ok(Peak::explain(
        &placement.loaded(model),
        &placement.run,
        &placement.layout,
        &ENGINE,
    )?)
}

/// Which operation makes the runtime pool of each device as large as it is: modelled.
pub fn explain_pools(
    model: &Model,
    placement: &Placement,
) -> Result<Vec<estimate::PoolPeak>, Error> {
    Ok(estimate::PoolPeak::explain(
        &placement.loaded(model),
        &placement.run,
        &placement.layout,
        &ENGINE,
    )?)
}
