//! `estimate MODEL..`

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;
use vramfit::report::{
    CertaintyWords, Estimate, Failure, Subject, Sure, VerdictWord, estimate_text, summary_heading,
    summary_line,
};
use vramfit::{ENGINE, Error, FlashAttention, Header, Model, Placement, classic};

use crate::exit::Exit;
use crate::inputs::Inputs;
use crate::printer::Printer;
use crate::settings::Settings;

/// From this many models on, progress is shown.
const PROGRESS_FROM: usize = 16;

/// A model and where it goes.
pub struct Planned {
    /// The model.
    pub model: Model,
    /// Where it goes.
    pub placement: Placement,
    /// llama-server's flags for a draft.
    pub draft_flags: Vec<String>,
    /// What to say of the files beside the model, and of a tower in its own.
    pub notes: Vec<String>,
    /// The tower in the model's own file, which llama.cpp does not take.
    pub tower: InFile,
}

/// A vision tower in the model's own file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InFile {
    /// There is none.
    Nothing,
    /// It is counted as `--mmproj` would count it.
    Counted,
    /// It is not counted.
    Unknown,
}

/// Reads and places one model.
pub fn plan(path: &Path, settings: &Settings) -> Result<Planned, Error> {
    let header = Header::open(path)?;
    // What Ollama's store holds is for Ollama's engine.
    let tower_bytes = match settings.takes_towers {
        true => classic::tower_bytes(&header),
        false => 0,
    };
    let model = match tower_bytes {
        0 => vramfit::model(path, &header)?,
        _ => vramfit::language_model(path, &header)?,
    };
    let gpus = &settings.gpus.devices;
    let mut run = settings.run.clone();
    run.adapters = settings.adapters.load(&model)?;
    let mut policy = settings.policy.clone();
    let (mut notes, mut in_file) = (Vec::new(), InFile::Nothing);
    if tower_bytes > 0 {
        let tower = vramfit::tower(path, &header)?;
        notes.push(tower_note(tower.is_some(), tower_bytes));
        in_file = InFile::Unknown;
        if let Some(tower) = tower {
            in_file = InFile::Counted;
            policy.projector = Some(vramfit::projector_plan(&tower, run.flash_attention, gpus)?);
            if let Some(without) = &mut policy.without_flash_attention {
                let off = vramfit::projector_plan(&tower, FlashAttention::Off, gpus)?;
                without.projector = Some(off);
            }
        }
    }
    if let Some(file) = &settings.projector {
        let projector = file.read()?;
        let plan = |attention| file.plan(&projector, attention, gpus);
        policy.projector = Some(plan(run.flash_attention)?);
        if let Some(without) = &mut policy.without_flash_attention {
            without.projector = Some(plan(FlashAttention::Off)?);
        }
        notes.extend(vramfit::projector_notes(&projector));
    }
    let mut draft_flags = Vec::new();
    if let Some(file) = &settings.draft {
        let draft = file.resolve(&model, &settings.gpus)?;
        run.role.n_draft = draft.n_verified;
        policy.draft = draft.plan;
        draft_flags = draft.flags;
        notes.extend(draft.notes);
    }
    let placement = vramfit::plan_for(settings.engine, &model, &run, gpus, &policy)?;
    Ok(Planned {
        model,
        placement,
        draft_flags,
        notes,
        tower: in_file,
    })
}

/// What to say of Ollama's own models with a vision tower in the same file.
fn tower_note(is_counted: bool, tower_bytes: u64) -> String {
    let engine = ENGINE.name;
    if is_counted {
        return format!(
            "{engine} refuses this file as it is (Ollama's own engine reads it): it asks for keys that Ollama leaves \
             out and knows no vision tower among a model's tensors. Its bytes here are those of the language model \
             and its tower as --mmproj would count it"
        );
    }
    let mib = tower_bytes as f64 / f64::from(1 << 20);
    format!(
        "{engine} refuses this file as it is: it knows no vision tower among a model's tensors. Its bytes here are \
         those of the language model alone: Ollama's form of this tower is not known, whose weights are {mib:.1} \
         MiB more, and a compute buffer beside them"
    )
}

/// What becomes of the model at `path`.
pub fn document(path: &Path, settings: &Settings) -> Result<Estimate, Error> {
    let Planned {
        model,
        mut placement,
        draft_flags,
        notes: about,
        tower,
        ..
    } = plan(path, settings)?;
    placement.notes.extend(about);
    let mut notes = settings.notes.clone();
    if !settings.ctx_given {
        let n = model.hparams.n_ctx_train;
        notes.insert(
            0,
            format!(
                "n_ctx 4096 is estimate's default; llama-server without -c takes the model's {n}"
            ),
        );
    }
    let is_v0_5_0 = *settings.engine == ENGINE;
    notes.extend(older_takes_more(&placement, settings).filter(|_| is_v0_5_0));
    let flags = flags_beside(settings, &draft_flags);
    let subject = Subject {
        path,
        model: &model,
        devices: &settings.gpus.devices,
        policy: &settings.policy,
        engine: settings.engine,
        gpus: &settings.gpu_lines,
        notes: &notes,
        adapters: &flags,
    };
    let mut estimate = Estimate::new(&subject, &placement);
    estimate.model.store_name.clone_from(&settings.from_ollama);
    if !is_v0_5_0 {
        for device in &mut estimate.devices {
            modelled(&mut device.certainty);
        }
    }
    if tower != InFile::Nothing {
        // llama-server would not take the file.
        estimate.command.clear();
    }
    Ok(estimate)
}

/// No figure of such a build was ever compared with the build itself.
fn modelled(sure: &mut CertaintyWords) {
    let parts = [
        &mut sure.model,
        &mut sure.context,
        &mut sure.compute,
        &mut sure.runtime,
    ];
    for part in parts {
        *part = (*part).max(Sure::Modelled);
    }
}

/// What runs on Kepler is often a build of some age.
fn older_takes_more(placement: &Placement, settings: &Settings) -> Option<String> {
    let used = &placement.layout_devices;
    let is_kepler = |&d: &usize| {
        let device = settings.gpus.devices.get(d);
        device.is_some_and(|d| d.compute_capability.0 < 500)
    };
    (used.len() > 1 && used.iter().all(is_kepler)).then(|| {
        "llama.cpp before 13 November 2025 takes larger compute buffers on all GPUs but the first: --engine llama.cpp-2025"
            .to_string()
    })
}

/// llama-server's flags for the files beside the model.
pub fn flags_beside(settings: &Settings, draft_flags: &[String]) -> Vec<String> {
    let mut flags = settings.adapters.flags.clone();
    flags.extend(settings.projector.iter().flat_map(|p| p.flags.clone()));
    flags.extend_from_slice(draft_flags);
    flags
}

/// An engine's answer about the model at a path.
pub type Engine<'a> = dyn Fn(&Path) -> Result<Estimate, Error> + Sync + 'a;

/// Asks `engine` and prints. The error, for one model alone, is one line.
pub fn run(
    inputs: &Inputs,
    n_gpus: usize,
    engine: &Engine,
    printer: &mut Printer,
) -> Result<Exit, String> {
    if !inputs.many
        && let [path] = inputs.models.as_slice()
    {
        let estimate = engine(path).map_err(|error| message(path, &error))?;
        if printer.json {
            printer.json(&estimate, false)?;
        } else {
            printer.print(&estimate_text(&estimate, &printer.style))?;
        }
        return Ok(exit_of(&estimate));
    }
    many(&inputs.models, n_gpus, engine, printer)
}

fn exit_of(estimate: &Estimate) -> Exit {
    match estimate.verdict {
        VerdictWord::Fits => Exit::Fits,
        _ => Exit::DoesNotFit,
    }
}

/// The error with its file, which refusals do not know.
pub fn message(path: &Path, error: &Error) -> String {
    match error {
        Error::Plan(error) => {
            let path = vramfit::report::one_line(&path.to_string_lossy());
            format!("{path}: {error}")
        }
        Error::Settings { what, why } => format!("{}: {why}", flag_of(what)),
        error => error.to_string(),
    }
}

/// The flag that a setting's key stands for.
fn flag_of(key: &str) -> &str {
    match key {
        "draft" => "-md",
        "draft.type" => "--spec-type",
        "draft.devices" => "-devd",
        key => key,
    }
}

/// One line each; a bad file does not stop the rest.
fn many(
    paths: &[PathBuf],
    n_gpus: usize,
    engine: &Engine,
    printer: &mut Printer,
) -> Result<Exit, String> {
    let progress = Progress::new(paths.len());
    let outcomes: Vec<Result<Estimate, Error>> = paths
        .par_iter()
        .map(|path| {
            let outcome = engine(path);
            progress.one_more();
            outcome
        })
        .collect();
    progress.clear();
    if !printer.json {
        printer.print(&summary_heading(n_gpus, &printer.style))?;
    }
    let (mut exit, mut n_failed) = (Exit::Fits, 0);
    for (path, outcome) in paths.iter().zip(&outcomes) {
        let name = name(path);
        match outcome {
            Ok(estimate) => exit = exit.max(exit_of(estimate)),
            Err(Error::Projector { .. }) => {}
            Err(_) => n_failed += 1,
        }
        match (outcome, printer.json) {
            (Ok(estimate), true) => printer.json(estimate, true)?,
            (Ok(estimate), false) => {
                printer.print(&summary_line(&name, Ok(estimate), &printer.style))?;
            }
            (Err(error), true) => {
                let failure = Failure::new(path.to_string_lossy(), message(path, error));
                printer.json(&failure, true)?;
            }
            (Err(error), false) => {
                let error = message(path, error);
                printer.print(&summary_line(&name, Err(&error), &printer.style))?;
            }
        }
    }
    match n_failed {
        0 => Ok(exit),
        n => Err(format!(
            "{n} of {} models could not be estimated; their lines say why",
            paths.len()
        )),
    }
}

fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

/// A count on a terminal's standard error.
struct Progress {
    done: AtomicUsize,
    all: usize,
    is_shown: bool,
}

impl Progress {
    fn new(all: usize) -> Progress {
        Progress {
            done: AtomicUsize::new(0),
            all,
            is_shown: all >= PROGRESS_FROM && io::stderr().is_terminal(),
        }
    }

    fn one_more(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        if self.is_shown {
            let text = format!("\r{done} of {} models", self.all);
            // Progress that cannot be shown is no failure.
            let _ = io::stderr().write_all(text.as_bytes());
        }
    }

    fn clear(&self) {
        if self.is_shown {
            let _ = io::stderr().write_all(b"\r\x1b[K");
        }
    }
}
