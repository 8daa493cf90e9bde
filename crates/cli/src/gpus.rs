//! `estimate gpus`: the GPUs of this machine, and those that `--gpus` knows by name.

use clap::ArgMatches;
use schemars::JsonSchema;
use serde::Serialize;
use vramfit::Probe;
use vramfit::devices::{
    COLUMNS, Card, DEFAULT_TIMEOUT, Machine, ProbedDevice, find_card, list_cards,
};
use vramfit::report::{one_line, words};

use crate::exit::Exit;
use crate::printer::Printer;
use crate::probe;

/// `schema` of [`Gpus`].
const SCHEMA_GPUS: &str = "vramfit.gpus/1";
const MIB: u64 = 1 << 20;

/// What `estimate gpus --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(title = "Gpus")]
pub struct Gpus {
    /// Name and version of this document's layout: `vramfit.gpus/1`.
    schema: String,
    /// The GPUs of this machine; null where they were not asked for or cannot be found.
    machine: Option<Machine>,
    /// Why they cannot be found.
    problem: Option<String>,
    /// The cards that `--gpus` knows by name.
    catalogue: Vec<CardReport>,
}

/// A card of the catalogue.
#[derive(Debug, Serialize, JsonSchema)]
struct CardReport {
    /// What `--gpus` takes.
    key: String,
    /// As the driver calls it.
    name: String,
    /// All memory of one device as `nvidia-smi` shows it, bytes.
    total_bytes: u64,
    /// The smallest total that CUDA has been seen to show, bytes.
    cuda_total_bytes: Option<u64>,
    /// As `8.6`.
    compute_capability: String,
    /// Streaming multiprocessors of one device.
    sm_count: Option<u32>,
    /// Devices on one physical board.
    dies_per_board: u32,
    /// As `Ampere`.
    generation: String,
    /// Shares the host's memory.
    integrated: bool,
    /// Where `total_bytes` is from: nvidia-smi, cuda or nominal.
    source: String,
}

impl CardReport {
    fn new(card: &Card) -> CardReport {
        CardReport {
            key: card.key.to_string(),
            name: card.name.to_string(),
            total_bytes: card.total_bytes,
            cuda_total_bytes: card.cuda_total_bytes,
            compute_capability: card.compute_capability.to_string(),
            sm_count: card.sm_count,
            dies_per_board: card.dies_per_board,
            generation: card.architecture.to_string(),
            integrated: card.integrated,
            source: card.source.to_string(),
        }
    }
}

/// `estimate gpus [FILTER]`
pub fn run(matches: &ArgMatches) -> Result<Exit, String> {
    let filter = matches.get_one::<String>("FILTER").map(String::as_str);
    let here_only = matches.get_flag("here");
    let timeout = match matches.get_one::<String>("probe-timeout") {
        Some(text) => probe::read_timeout(text)?,
        None => DEFAULT_TIMEOUT,
    };
    // Somebody who looks for a name does not mean this machine.
    let found = match filter.is_none() && !matches.get_flag("catalogue") {
        true => {
            let probe = probe::child(timeout, matches.get_flag("probe-context"))?;
            Some(probe.machine().map_err(|error| error.cause()))
        }
        false => None,
    };
    if here_only && let Some(Err(problem)) = &found {
        return Err(problem.clone());
    }
    let cards = match here_only {
        true => Vec::new(),
        false => list_cards(filter.unwrap_or_default()),
    };
    if cards.is_empty() && !here_only {
        return Err(format!(
            "no GPU in the catalogue has '{}' in its name; any card can be given by its size, as in \
             --gpus 24GiB:cc=8.6",
            one_line(filter.unwrap_or_default())
        ));
    }
    let mut printer = Printer::plain();
    match matches.get_flag("json") {
        true => printer.json(&document(found, &cards), false)?,
        false => printer.print(&text(found, &cards, printer.style.width))?,
    }
    Ok(Exit::Fits)
}

fn document(found: Option<Result<Machine, String>>, cards: &[&Card]) -> Gpus {
    let (machine, problem) = match found {
        Some(Ok(machine)) => (Some(machine), None),
        Some(Err(problem)) => (None, Some(problem)),
        None => (None, None),
    };
    Gpus {
        schema: SCHEMA_GPUS.to_string(),
        machine,
        problem,
        catalogue: cards.iter().map(|card| CardReport::new(card)).collect(),
    }
}

fn text(found: Option<Result<Machine, String>>, cards: &[&Card], width: usize) -> String {
    let mut text = String::new();
    // A terminal's width, or as good as none for a file: sentences are kept readable.
    let lines = width.min(100);
    match &found {
        Some(Ok(machine)) => text += &machine_text(machine, width, lines),
        Some(Err(problem)) => {
            text += &words(&format!("This machine: {problem}"), "", "  ", lines);
        }
        None => {}
    }
    if found.is_some() && !cards.is_empty() {
        text += "\nThe catalogue, for --gpus on any machine:\n";
    }
    if !cards.is_empty() {
        let rows: Vec<Vec<String>> = cards.iter().map(|card| card.row().to_vec()).collect();
        text += &table(&COLUMNS, &rows, 2..6, width);
    }
    text
}

const MACHINE_COLUMNS: [&str; 9] = [
    "gpu", "name", "MiB", "free", "used", "cc", "SMs", "pci", "uuid",
];

fn machine_text(machine: &Machine, width: usize, lines: usize) -> String {
    let n = machine.devices.len();
    let mut heading = format!("This machine: {n} {}", if n == 1 { "GPU" } else { "GPUs" });
    for (what, version) in [("driver", &machine.driver), ("CUDA", &machine.cuda)] {
        if let Some(version) = version {
            heading += &format!(" · {what} {version}");
        }
    }
    let rows: Vec<Vec<String>> = machine.devices.iter().map(row).collect();
    let mut text = format!(
        "{heading}\n\n{}",
        table(&MACHINE_COLUMNS, &rows, 2..7, width)
    );
    let mut notes: Vec<String> = machine.devices.iter().filter_map(users).collect();
    notes.extend(machine.devices.iter().filter_map(unknown_card));
    notes.extend(machine.note_texts());
    if !notes.is_empty() {
        text.push('\n');
    }
    for note in notes {
        text += &words(&one_line(&note), "- ", "  ", lines);
    }
    text
}

fn row(device: &ProbedDevice) -> Vec<String> {
    let mib = |bytes: u64| (bytes / MIB).to_string();
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_string());
    let line = |text: &Option<String>| or_dash(text.as_deref().map(one_line));
    vec![
        format!("CUDA{}", device.cuda_index),
        one_line(&device.name),
        mib(device.total_bytes),
        or_dash(device.free.map(|free| mib(free.bytes))),
        or_dash(device.used_bytes.map(mib)),
        device.compute_capability.to_string(),
        or_dash(device.sm_count.map(|sms| sms.to_string())),
        line(&device.pci_id),
        line(&device.uuid),
    ]
}

/// Who takes memory on a device, the most first.
fn users(device: &ProbedDevice) -> Option<String> {
    const MOST: usize = 8;
    let mut processes = device.processes.clone().filter(|list| !list.is_empty())?;
    processes.sort_by_key(|process| (std::cmp::Reverse(process.used_bytes), process.pid));
    let shown = processes.iter().take(MOST).map(|process| {
        let used = match process.used_bytes {
            Some(bytes) => format!("{} MiB", bytes / MIB),
            None => "not known how much".to_string(),
        };
        format!("{} ({used})", process.pid)
    });
    let mut text = format!(
        "CUDA{}: taken by process {}",
        device.cuda_index,
        shown.collect::<Vec<_>>().join(", ")
    );
    if processes.len() > MOST {
        text += &format!(" and {} more", processes.len() - MOST);
    }
    Some(text)
}

/// A card whose row somebody may want to add.
fn unknown_card(device: &ProbedDevice) -> Option<String> {
    (find_card(&device.name).is_err() && !device.is_mig).then(|| {
        format!(
            "CUDA{}: the catalogue has no '{}', which is no matter here",
            device.cuda_index, device.name
        )
    })
}

/// Rows under their headings; `numbers` are the columns that end flush. Columns that the terminal has no room for
/// are left out, the last first.
fn table(
    headings: &[&str],
    rows: &[Vec<String>],
    numbers: std::ops::Range<usize>,
    width: usize,
) -> String {
    let headings: Vec<String> = headings.iter().map(ToString::to_string).collect();
    let all = || std::iter::once(&headings).chain(rows);
    let mut widths = vec![0; headings.len()];
    for row in all() {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut shown = headings.len();
    while shown > 3 && widths.iter().take(shown).sum::<usize>() + 2 * (shown - 1) > width {
        shown -= 1;
    }
    let mut text = String::new();
    for row in all() {
        let cells = row.iter().zip(&widths).take(shown).enumerate();
        let line: Vec<String> = cells
            .map(|(i, (cell, &width))| match numbers.contains(&i) {
                true => format!("{cell:>width$}"),
                false => format!("{cell:<width$}"),
            })
            .collect();
        text += line.join("  ").trim_end();
        text.push('\n');
    }
    text
}
