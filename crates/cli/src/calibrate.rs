//! `estimate calibrate MODEL..`: plans, and what the cards say of them.

mod files;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ArgMatches;
use serde::Serialize;
use vramfit::devices::{
    CUBLAS_BYTES, Machine, Note, ProbedDevice, Profiles, ROUNDING_BYTES, format_bytes,
};
use vramfit::report::one_line;
use vramfit::{ComputeCapability, Device, Probe};
use vramfit_calibrate::{
    Allocation, Card, Comparison, EngineKind, Expected, Options, Plan, allocate, allocation_text,
    comparison_text, learn, measure,
};

use crate::estimate::{flags_beside, message, plan};
use crate::exit::Exit;
use crate::inputs::inputs;
use crate::low::LowArgs;
use crate::printer::Printer;
use crate::settings::Settings;
use crate::{env, probe};

/// How long an engine may take, unless said.
const TIME_LIMIT_S: u64 = 900;
/// How long the driver may take for buffers of our own.
const ALLOCATE_TIME: Duration = Duration::from_secs(120);

/// What was asked for, beside the plan's own flags.
struct Request {
    allocate: bool,
    program: Option<PathBuf>,
    kind: Option<EngineKind>,
    time: Duration,
    report: Option<PathBuf>,
    rows: Option<PathBuf>,
    learns: bool,
}

/// A model's line of JSON.
#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    planned: &'a Expected,
    allocation: Option<&'a Allocation>,
    comparison: Option<&'a Comparison>,
    error: Option<String>,
}

/// What came of all models.
#[derive(Default)]
struct Results {
    text: String,
    documents: Vec<serde_json::Value>,
    comparisons: Vec<Comparison>,
    all_right: bool,
}

impl Request {
    fn new(matches: &ArgMatches, low: &LowArgs) -> Result<Request, String> {
        let file = |id: &str| matches.get_one::<PathBuf>(id).cloned();
        let seconds = matches.get_one::<u64>("time-limit").copied();
        let request = Request {
            allocate: matches.get_flag("allocate"),
            program: low.value("engine").map(|said| PathBuf::from(&said.text)),
            kind: match matches.get_one::<String>("engine-kind").map(String::as_str) {
                Some("oracle") => Some(EngineKind::Oracle),
                Some("libllama") => Some(EngineKind::Libllama),
                Some(_) => Some(EngineKind::LlamaServer),
                None => None,
            },
            time: Duration::from_secs(seconds.unwrap_or(TIME_LIMIT_S)),
            report: file("report"),
            rows: file("rows"),
            learns: !matches.get_flag("no-learn"),
        };
        if !request.allocate && request.program.is_none() {
            return Err(
                "calibrate: say how: --engine PATH runs a llama-server and measures it, --allocate \
                 takes the planned buffers by itself"
                    .to_string(),
            );
        }
        // What runs counts its outputs itself: its compute buffer would never be the planned one.
        if request.program.is_some() && low.value("n-outputs").is_some() {
            return Err(
                "calibrate: --n-outputs is for users of the library, and what runs here counts its outputs itself: \
                 leave it out, or take the planned buffers with --allocate alone"
                    .to_string(),
            );
        }
        Ok(request)
    }
}

/// Plans each model, takes its buffers or runs the engine, and learns what CUDA itself takes.
pub fn run(matches: &ArgMatches) -> Result<Exit, String> {
    let mut low = LowArgs::new(matches, &env)?;
    // Here the file is made.
    if let Some((_, has_to_be_there)) = &mut low.profiles {
        *has_to_be_there = false;
    }
    if low.models.is_empty() {
        return Err("no model given; `estimate calibrate MODEL --engine PATH`".to_string());
    }
    let request = Request::new(matches, &low)?;
    let mut printer = Printer::new(&low, &env)?;
    let timeout = probe::timeout(&low)?;
    let machine = machine(None, timeout)?;
    let settings = Settings::new(&low)?;
    let bench = Bench::new(&settings, machine, timeout)?;
    let profiles = match (&low.profiles, request.learns && request.program.is_some()) {
        (Some((path, _)), true) => Some(path.as_path()),
        (None, true) => {
            return Err(
                "no place for what is learned; name a file (--profile FILE) or say --no-learn"
                    .to_string(),
            );
        }
        _ => None,
    };
    // A damaged file, or a place that nothing can be put in, is told before an hour of measuring.
    if let Some(path) = profiles {
        Profiles::read_if_there(path).map_err(|e| e.to_string())?;
        files::can_be_written(path, "--profile FILE, or --no-learn")?;
    }
    files::can_all_be_written(&request, profiles)?;
    let mut results = Results {
        all_right: true,
        ..Results::default()
    };
    let models = inputs(&low.models)?.models;
    for path in &models {
        let done = one(
            path,
            &settings,
            &request,
            &bench,
            &mut results,
            &mut printer,
        );
        // One model that cannot be planned for does not lose what was measured of the others.
        match done {
            Err(error) if models.len() > 1 => not_planned(&error, &mut results, &mut printer)?,
            done => done?,
        }
    }
    // Before anything is learned, and that whatever comes of it: what was measured is kept.
    let written = files::write_out(&request, &results);
    if let Some(path) = profiles {
        let text = learned(&results.comparisons, path)?;
        if !printer.json {
            printer.print(&text)?;
        }
        results.text += &text;
    }
    written?;
    if let Some(path) = &request.report
        && (profiles.is_some() || !files::is_file(path))
    {
        files::write_report(path, &results)?;
    }
    Ok(match results.all_right {
        true => Exit::Fits,
        false => Exit::DoesNotFit,
    })
}

/// A model's line where it could not be planned for.
fn not_planned(error: &str, results: &mut Results, printer: &mut Printer) -> Result<(), String> {
    let text = format!("{}\n\n", one_line(error));
    let document = serde_json::json!({"schema": "vramfit-calibration/1", "error": error});
    match printer.json {
        true => printer.json(&document, true)?,
        false => printer.print(&text)?,
    }
    results.text += &text;
    results.documents.push(document);
    results.all_right = false;
    Ok(())
}

/// Where it is measured.
struct Bench {
    machine: Machine,
    /// In CUDA's order, which is the plan's.
    cards: Vec<Card>,
    /// `CUDA_VISIBLE_DEVICES` for whatever runs there, where `--gpus` picks some of this machine's GPUs.
    visible: Option<String>,
}

/// This machine's GPUs, or those of `CUDA_VISIBLE_DEVICES`.
fn machine(visible: Option<&str>, timeout: Duration) -> Result<Machine, String> {
    let mut probe = probe::child(timeout, false)?;
    if let Some(list) = visible {
        probe = probe.env("CUDA_VISIBLE_DEVICES", list);
    }
    let machine = probe.machine();
    machine.map_err(|error| format!("calibrate measures this machine's GPUs: {}", error.cause()))
}

impl Bench {
    /// On `whole`, or on those of its GPUs that `--gpus` picks.
    fn new(settings: &Settings, whole: Machine, timeout: Duration) -> Result<Bench, String> {
        let picked = settings.gpus.notes.iter().find_map(|note| match note {
            Note::Picked { visible } => Some(visible.clone()),
            _ => None,
        });
        let machine = match &picked {
            Some(list) => machine(Some(list), timeout)?,
            None => whole,
        };
        Ok(Bench {
            cards: cards(settings, &machine)?,
            machine,
            visible: picked,
        })
    }
}

/// The cards that are planned for.
fn cards(settings: &Settings, machine: &Machine) -> Result<Vec<Card>, String> {
    let (planned, found) = (settings.gpus.devices.len(), machine.devices.len());
    if planned > found {
        return Err(format!(
            "--gpus names {planned} devices, and this machine has {found}"
        ));
    }
    for (planned, found) in settings.gpus.devices.iter().zip(&machine.devices) {
        is_same_kind(planned, found)?;
    }
    let card = |d: &ProbedDevice| Card {
        name: d.name.clone(),
        uuid: d.uuid.clone(),
        pci_id: d.pci_id.clone(),
    };
    Ok(machine.devices.iter().take(planned).map(card).collect())
}

/// A plan for another kind of card says nothing of this one: kernels, and so memory, go by what is compared here. Free
/// memory may be another, which is what `--gpus` is for.
fn is_same_kind(planned: &Device, found: &ProbedDevice) -> Result<(), String> {
    let index = found.cuda_index;
    let refuse = |planned_as: String, found_as: String| {
        Err(format!(
            "--gpus: CUDA{index} is planned as {} with {planned_as}, and this machine's is {} with {found_as}; calibrate \
             plans for the cards that are here (leave --gpus out)",
            one_line(&planned.name),
            one_line(&found.name)
        ))
    };
    let capability = |c: ComputeCapability| format!("compute capability {c}");
    if planned.compute_capability != found.compute_capability {
        return refuse(
            capability(planned.compute_capability),
            capability(found.compute_capability),
        );
    }
    match (planned.sm_count, found.sm_count) {
        (Some(a), Some(b)) if a != b => refuse(
            format!("{a} multiprocessors"),
            format!("{b} multiprocessors"),
        ),
        _ => Ok(()),
    }
}

fn one(
    path: &Path,
    settings: &Settings,
    request: &Request,
    bench: &Bench,
    results: &mut Results,
    printer: &mut Printer,
) -> Result<(), String> {
    let planned = plan(path, settings).map_err(|error| message(path, &error))?;
    let shown = path.to_string_lossy();
    let planned = Plan {
        path: &shown,
        model: &planned.model,
        placement: &planned.placement,
        devices: &settings.gpus.devices,
        beside: &flags_beside(settings, &planned.draft_flags),
    };
    let mut expected = Expected::new(&planned).map_err(|error| message(path, &error))?;
    for (planned, found) in expected.devices.iter_mut().zip(&bench.machine.devices) {
        planned.pool_is_legacy = found.virtual_memory == Some(false);
    }
    let mut text = String::new();
    let mut errors = Vec::new();
    let mut allocation = None;
    if request.allocate {
        let time = request.time.min(ALLOCATE_TIME);
        match allocate(&expected, bench.visible.as_deref(), time) {
            Ok(found) => {
                text += &allocation_text(&expected, &found);
                results.all_right &= found.fits;
                allocation = Some(found);
            }
            Err(error) => errors.push(error.to_string()),
        }
    }
    let mut comparison = None;
    if let Some(program) = &request.program {
        match compare(program, &expected, request, bench) {
            Ok(found) => {
                text += &comparison_text(&found);
                results.all_right &= found.is_right();
                comparison = Some(found);
            }
            Err(error) => errors.push(error),
        }
    }
    for error in &errors {
        text += &format!("{}: {}\n", one_line(&shown), one_line(error));
        results.all_right = false;
    }
    text.push('\n');
    let document = Document {
        schema: "vramfit-calibration/1",
        planned: &expected,
        allocation: allocation.as_ref(),
        comparison: comparison.as_ref(),
        error: (!errors.is_empty()).then(|| errors.join("; ")),
    };
    match printer.json {
        true => printer.json(&document, true)?,
        false => printer.print(&text)?,
    }
    let document = serde_json::to_value(&document).map_err(|e| e.to_string())?;
    results.documents.push(document);
    results.comparisons.extend(comparison);
    results.text += &text;
    Ok(())
}

/// Runs the engine, and holds what NVML shows against the plan.
fn compare(
    program: &Path,
    expected: &Expected,
    request: &Request,
    bench: &Bench,
) -> Result<Comparison, String> {
    let options = Options {
        program: program.to_path_buf(),
        kind: request.kind.unwrap_or(EngineKind::of(program)),
        time: request.time,
        cards: bench.cards.clone(),
        visible: bench.visible.clone(),
    };
    let measurement = measure(expected, &options).map_err(|error| error.to_string())?;
    let driver = bench.machine.driver.as_deref().unwrap_or("unknown");
    Ok(Comparison::new(
        expected,
        &measurement,
        &bench.cards,
        driver,
    ))
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Puts what is left over into the file of profiles, and says so.
fn learned(comparisons: &[Comparison], path: &Path) -> Result<String, String> {
    let (profiles, refusals) = learn(comparisons);
    let mut text = String::new();
    for refusal in &refusals {
        text += &format!("{refusal}\n");
    }
    if profiles.is_empty() {
        return Ok(text);
    }
    let mut learned = Vec::new();
    let all = Profiles::update(path, |all| {
        for profile in &profiles {
            match all.learn(profile.clone()) {
                Ok(()) => learned.push(profile),
                Err(why) => {
                    text += &format!("nothing is learned from {}: {why}\n", profile.card);
                }
            }
        }
    });
    let all = all.map_err(|error| error.to_string())?;
    for seen in learned {
        let now = all.known_as(seen).unwrap_or(seen);
        text += &format!(
            "learned: CUDA takes {:.2} to {:.2} MiB on {}{}, driver {}, {} ({} measured; plans add up to {} for each \
             buffer, which the driver rounds up), in {}\n",
            mib(now.low_bytes),
            mib(now.high_bytes),
            now.card,
            match now.with_cublas {
                true => String::new(),
                false => format!(
                    " without cuBLAS, for which plans add {}",
                    format_bytes(CUBLAS_BYTES)
                ),
            },
            now.driver,
            now.build,
            now.runs,
            format_bytes(ROUNDING_BYTES),
            path.display()
        );
    }
    Ok(text)
}
