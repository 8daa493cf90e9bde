//! `estimate compare MODEL`: Ollama's classic estimate, its fixed form and llama.cpp's exact bytes.

use std::path::Path;

use vramfit::classic::{Attempt, Decision, automatic_parallel};
use vramfit::report::{
    Comparison, SideDevice, SideReport, Term, VerdictWord, comparison_text, one_line,
};
use vramfit::{Device, ENGINE, Verdict};

use crate::classic::{Question, Subjects, free_note};
use crate::estimate::{InFile, Planned, message, plan};
use crate::exit::Exit;
use crate::low::LowArgs;
use crate::ollama::Ollama;
use crate::printer::Printer;
use crate::settings::Settings;

/// Compares and prints. The error is one line.
pub fn run(
    low: &LowArgs,
    path: &Path,
    settings: Settings,
    ollama: &Ollama,
    printer: &mut Printer,
) -> Result<Exit, String> {
    let comparison = compare(low, path, settings, ollama)?;
    match printer.json {
        true => printer.json(&comparison, false)?,
        false => printer.print(&comparison_text(&comparison, &printer.style))?,
    }
    let all_fit = comparison
        .sides
        .iter()
        .all(|side| side.verdict == VerdictWord::Fits);
    Ok(if all_fit {
        Exit::Fits
    } else {
        Exit::DoesNotFit
    })
}

fn compare(
    low: &LowArgs,
    path: &Path,
    mut settings: Settings,
    ollama: &Ollama,
) -> Result<Comparison, String> {
    let subjects = Subjects::open(path, low, ollama).map_err(|error| error.to_string())?;
    let question = Question::new(low, &settings, ollama, &subjects);
    // Ollama reckons with its variables by itself, llama.cpp has to be told.
    settings.obey(&ollama.variables);
    // All three are asked for the same number of requests.
    let parallel = question.parallel.unwrap_or(1);
    let decide = |fixed| question.decide(&subjects.facts, Some(parallel), fixed);
    let (classic, fixed) = (decide(false), decide(true));
    let gpus = &settings.gpus.devices;
    let planned = plan(path, &settings).map_err(|error| message(path, &error))?;
    let exact = &planned.placement;

    let mut comparison =
        Comparison::new(&path.to_string_lossy(), &subjects.model.architecture_name);
    comparison.store_name.clone_from(&settings.from_ollama);
    comparison.gpus = settings.gpu_lines.clone();
    comparison.n_ctx = classic.taken.estimate.load.context;
    comparison.parallel = parallel;
    comparison.sides = vec![
        side("ollama-classic", &classic, &question.free),
        side("ollama-classic --fixed", &fixed, &question.free),
        llama_cpp_side(&planned, gpus),
    ];
    comparison.differences = differences(&comparison.sides, &classic, &fixed, &question);
    comparison.notes = vec![format!(
        "ollama-classic: the estimate and the rules of {}; --fixed: whether everything fits is tested with the \
         graph of a full offload",
        question.version.name()
    )];
    comparison.notes.extend(question.notes.iter().cloned());
    comparison.notes.extend(free_note(gpus, &question.free));
    let automatic = automatic_parallel(question.version);
    if question.parallel.is_none()
        && let [first, .., _] = automatic
    {
        comparison.notes.push(format!(
            "all sides are asked for one request at once; by itself Ollama tries {first} first (-np {first})"
        ));
    }
    if exact.breakdown.bounded.is_bound() {
        comparison.notes.push(format!(
            "architecture '{}' is not known, so {} has upper bounds here, not its bytes",
            subjects.model.architecture_name, ENGINE.name
        ));
    }
    let notes = settings
        .notes
        .iter()
        .chain(&planned.notes)
        .chain(&ollama.notes);
    comparison.notes.extend(notes.map(|note| one_line(note)));
    Ok(comparison)
}

fn side(engine: &str, decision: &Decision, free: &[u64]) -> SideReport {
    let Attempt { gpus, estimate } = &decision.taken;
    let device = |(gpu, &free_bytes): (usize, &u64)| {
        let at = gpus.iter().position(|&g| g == gpu);
        let share = at
            .and_then(|at| estimate.shares.get(at))
            .filter(|s| !s.layers.is_empty());
        let terms = share.map(|share| share.terms()).into_iter().flatten();
        SideDevice {
            id: format!("CUDA{gpu}"),
            free_bytes,
            n_layers: share.map_or(0, |share| share.layers.len() as u64),
            required_bytes: share.map_or(0, |share| share.sum()),
            terms: terms.map(|(name, bytes)| term(name, bytes)).collect(),
        }
    };
    SideReport {
        engine: engine.to_string(),
        verdict: word(vramfit::classic_verdict(decision, free.len())),
        exact: false,
        devices: free.iter().enumerate().map(device).collect(),
    }
}

fn word(verdict: Verdict) -> VerdictWord {
    match verdict {
        Verdict::Fits => VerdictWord::Fits,
        Verdict::Partial => VerdictWord::Partial,
        Verdict::DoesNotFit => VerdictWord::DoesNotFit,
    }
}

fn term(name: &str, bytes: u64) -> Term {
    Term {
        name: name.to_string(),
        bytes,
    }
}

fn llama_cpp_side(planned: &Planned, gpus: &[Device]) -> SideReport {
    let placement = &planned.placement;
    let is_whole = planned.tower != InFile::Unknown;
    let is_guess = placement.devices.iter().any(|d| d.projector_is_guess);
    let device = |d: &vramfit::DevicePlacement| SideDevice {
        id: format!("CUDA{}", d.device),
        free_bytes: gpus.get(d.device).map_or(0, |gpu| gpu.free_bytes),
        n_layers: d.layers.len() as u64,
        required_bytes: d.required_bytes,
        terms: vec![
            term("all weights", d.memory.model),
            term("adapters", d.memory.adapters),
            term("KV cache", d.memory.context),
            term("compute buffer", d.memory.compute),
            term("projector weights", d.projector.model),
            term("projector graph", d.projector.compute),
            term("draft model", d.draft.sum()),
            term("runtime pool", d.runtime_bytes),
            term("CUDA's own", d.overhead_bytes),
        ],
    };
    SideReport {
        engine: ENGINE.name.to_string(),
        verdict: word(placement.verdict),
        exact: is_whole && !is_guess && !placement.breakdown.bounded.is_bound(),
        devices: placement.devices.iter().map(device).collect(),
    }
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1u64 << 20) as f64)
}

/// Where a side is that has no layer on a GPU.
const NOWHERE: &str = "no GPU";

/// GPUs with layers, in words.
fn on(side: &SideReport) -> String {
    let used = side.devices.iter().filter(|d| d.n_layers > 0);
    let ids: Vec<&str> = used.map(|d| d.id.as_str()).collect();
    match ids.as_slice() {
        [] => NOWHERE.to_string(),
        [one] => format!("{one} alone"),
        [many @ .., last] => format!("{} and {last}", many.join(", ")),
    }
}

fn differences(
    sides: &[SideReport],
    classic: &Decision,
    fixed: &Decision,
    question: &Question,
) -> Vec<String> {
    let [a, b, exact] = sides else {
        return Vec::new();
    };
    if question.free.is_empty() {
        return vec!["no GPU was given, so there is nothing to place".to_string()];
    }
    if sides.iter().all(|side| on(side) == NOWHERE) {
        return vec!["they agree: nothing goes on a GPU".to_string()];
    }
    vec![
        by_the_graph(a, b, classic, fixed, question),
        by_the_rest(b, exact),
    ]
}

/// Between the estimate and its fixed form there is nothing but the graph.
fn by_the_graph(
    a: &SideReport,
    b: &SideReport,
    classic: &Decision,
    fixed: &Decision,
    question: &Question,
) -> String {
    let (t, f) = (
        fixed.taken.estimate.formula.partial,
        fixed.taken.estimate.formula.full,
    );
    if a == &(SideReport {
        engine: a.engine.clone(),
        ..b.clone()
    }) {
        return format!(
            "ollama-classic and its fixed form agree on {}: its two graph sizes, {} in part and {} in full, \
             change nothing here",
            on(a),
            mib(t),
            mib(f)
        );
    }
    let taken = &fixed.taken;
    let same = |attempt: &&Attempt| attempt.gpus == taken.gpus;
    let tried = classic.rejected.iter().find(same);
    match (tried, taken.gpus.as_slice()) {
        (Some(tried), &[gpu]) if taken.estimate.fully_loaded => {
            let graph = tried.estimate.graph;
            let full = taken.estimate.required_partial;
            let tested = full
                .saturating_sub(graph.full)
                .saturating_add(graph.partial.max(graph.full));
            let free = question.free.get(gpu).copied().unwrap_or(0);
            let free = match question.settings.overhead_bytes {
                0 => format!("{} free", mib(free)),
                held => format!("{} free and {} of it held back", mib(free), mib(held)),
            };
            let instead = match classic.taken.gpus == taken.gpus {
                true => "leaves layers on the host".to_string(),
                false => format!("puts layers on {} instead", on(a)),
            };
            format!(
                "CUDA{gpu} alone, {free}: ollama-classic tests whether everything fits with the graph of a partial \
                 offload, {}, comes to {}, and {instead}. A full offload has a graph of {}: {} in all, which fits. \
                 The term is the graph, {} against {}",
                mib(t),
                mib(tested),
                mib(f),
                mib(full),
                mib(t),
                mib(f)
            )
        }
        _ => format!(
            "ollama-classic splits {}, its fixed form {}: the term is the graph, {} in part against {} in full",
            a.split(),
            b.split(),
            mib(t),
            mib(f)
        ),
    }
}

/// What the formulas make of each part, against what it is.
fn by_the_rest(b: &SideReport, exact: &SideReport) -> String {
    let sum = |side: &SideReport, names: &[&str]| {
        names
            .iter()
            .fold(0u64, |sum, name| sum.saturating_add(side.term(name)))
    };
    let parts: [(&str, &[&str], &[&str]); 7] = [
        (
            "weights",
            &["repeating layers", "output layer"],
            &["all weights"],
        ),
        ("the KV cache", &["KV cache"], &["KV cache"]),
        ("the graph", &["graph"], &["compute buffer"]),
        (
            "what is held back for CUDA",
            &["minimum", "layer buffer"],
            &["runtime pool", "CUDA's own"],
        ),
        (
            "the vision tower",
            &["projector weights", "projector graph"],
            &["projector weights", "projector graph"],
        ),
        ("adapters", &[], &["adapters"]),
        ("the draft model", &[], &["draft model"]),
    ];
    let mut parts: Vec<(&str, u64, u64)> = (parts.into_iter())
        .map(|(name, ours, theirs)| (name, sum(b, ours), sum(exact, theirs)))
        // Less is no difference that anyone can see.
        .filter(|(_, ours, theirs)| ours.abs_diff(*theirs) >= 1 << 20)
        .collect();
    parts.sort_by_key(|(_, ours, theirs)| std::cmp::Reverse(ours.abs_diff(*theirs)));
    let told = parts
        .iter()
        .map(|(name, ours, theirs)| format!("{name}, {} against {}", mib(*ours), mib(*theirs)));
    let told: Vec<String> = told.collect();
    let where_ = match on(b) == on(exact) {
        true => format!("both on {}", on(b)),
        false => format!("on {} and on {}", on(b), on(exact)),
    };
    let terms = match told.as_slice() {
        [] => "No term differs by a MiB".to_string(),
        told => format!("By size the terms are: {}", told.join("; ")),
    };
    format!(
        "the fixed form comes to {}, {} to {}, {where_}. {terms}",
        mib(b.required_bytes()),
        exact.engine,
        mib(exact.required_bytes()),
    )
}
