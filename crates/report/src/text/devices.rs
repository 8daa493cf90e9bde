//! The table: a row a device and one for the host, with a bar to look at.

use crate::document::{DeviceReport, Estimate, Sure};
use crate::style::{Ink, Style};
use crate::text::bar::{bar, legend};
use crate::text::numbers::{layers, mib, signed_mib};
use crate::text::wrap::{cut, fill, one_line};

const COLUMNS: usize = 9;
const HEADINGS: [&str; COLUMNS] = [
    "MiB", "layers", "weights", "KV", "compute", "CUDA", "total", "free", "headroom",
];
/// Narrowest and widest bar, cells.
const BAR: (usize, usize) = (12, 40);
const NONE: &str = "-";

type Row = [String; COLUMNS];

/// What has a row: a device, or neighbours of one kind that all stay empty.
struct Entry<'a> {
    device: &'a DeviceReport,
    /// `CUDA0`, `CUDA1-7`
    id: String,
    n: usize,
}

impl<'a> Entry<'a> {
    fn of(neighbours: &'a [DeviceReport]) -> Option<Self> {
        let (device, last) = (neighbours.first()?, neighbours.last()?);
        let n = neighbours.len();
        let last = last.id.trim_start_matches(char::is_alphabetic);
        let id = match n {
            1 => device.id.clone(),
            _ => format!("{}-{last}", device.id),
        };
        Some(Self { device, id, n })
    }
}

fn entries(estimate: &Estimate) -> Vec<Entry<'_>> {
    let empty = |d: &DeviceReport| d.total_bytes.is_some() && !d.is_used();
    let size = |d: &DeviceReport| (d.total_bytes, d.free_bytes);
    let alike = |a: &DeviceReport, b: &DeviceReport| {
        empty(a) && empty(b) && a.name == b.name && size(a) == size(b)
    };
    estimate
        .devices
        .chunk_by(alike)
        .filter_map(Entry::of)
        .collect()
}

/// The table in as many decimals as fit, else a list.
pub(crate) fn devices(estimate: &Estimate, style: &Style) -> String {
    let entries = entries(estimate);
    let text = (0..=2)
        .rev()
        .map(|decimals| rows(&entries, decimals))
        .map(|rows| (widths(&rows), rows))
        .find(|(widths, _)| width(widths, 1) <= style.width)
        .map(|(widths, rows)| table(estimate, &entries, &rows, &widths, style));
    let mut text = text.unwrap_or_else(|| list(estimate, &entries, style));
    let legend = legend(estimate.gpu_devices(), style);
    if !legend.is_empty() {
        let indent = " ".repeat(bar_indent(&entries, style));
        text += &fill(&legend, "  ", &indent, &indent, style.width);
    }
    text
}

fn rows(entries: &[Entry<'_>], decimals: usize) -> Vec<Row> {
    let row = |entry: &Entry<'_>| -> Row {
        let d = entry.device;
        let cell = |bytes: u64| match bytes {
            0 => NONE.to_string(),
            _ => mib(bytes, decimals),
        };
        [
            entry.id.clone(),
            match d.layers.len() {
                0 => NONE.to_string(),
                n => n.to_string(),
            },
            cell(d.weight_bytes()),
            cell(d.all_context_bytes()),
            cell(d.all_compute_bytes()),
            cell(d.cuda_bytes()),
            cell(d.required_bytes),
            d.free_bytes
                .map_or_else(|| NONE.to_string(), |b| mib(b, decimals)),
            d.headroom_bytes
                .map_or_else(|| NONE.to_string(), |b| signed_mib(b, decimals)),
        ]
    };
    entries.iter().map(row).collect()
}

/// How sure the columns are, the least sure device speaking for all.
fn certainty(estimate: &Estimate) -> Row {
    let least = |of: fn(&DeviceReport) -> Sure| {
        let used = estimate.devices.iter().filter(|d| d.is_used());
        sure(used.map(of).max().unwrap_or(Sure::Exact)).to_string()
    };
    let cuda = estimate.gpu_devices().any(DeviceReport::is_used);
    let runtime = match cuda {
        true => least(|d| d.certainty.runtime),
        false => String::new(),
    };
    let mut row = Row::default();
    row[2] = least(|d| d.certainty.model);
    row[3] = least(|d| d.certainty.context);
    row[4] = least(|d| d.certainty.compute);
    row[5] = runtime;
    row
}

fn sure(sure: Sure) -> &'static str {
    match sure {
        Sure::Exact => "exact",
        Sure::Modelled => "modelled",
        Sure::Bound => "bound",
    }
}

fn widths(rows: &[Row]) -> [usize; COLUMNS] {
    let mut widths = HEADINGS.map(str::len);
    widths[5] = "modelled".len();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.len().max(*width);
        }
    }
    widths
}

/// Of a line, with so many columns between two cells.
fn width(widths: &[usize; COLUMNS], gap: usize) -> usize {
    widths.iter().sum::<usize>() + gap * (COLUMNS - 1)
}

fn table(
    estimate: &Estimate,
    entries: &[Entry<'_>],
    rows: &[Row],
    widths: &[usize; COLUMNS],
    style: &Style,
) -> String {
    let headings = HEADINGS.map(str::to_string);
    let gap = if width(widths, 2) <= style.width {
        2
    } else {
        1
    };
    let line = |row: &Row| line(row, widths, gap);
    let mut text = style.paint(Ink::Faint, &line(&headings)) + "\n";
    text += &(style.paint(Ink::Faint, &line(&certainty(estimate))) + "\n");
    let indent = bar_indent(entries, style);
    let cells = bar_cells(estimate, entries, style);
    for (row, entry) in rows.iter().zip(entries) {
        let (line, device) = (line(row), entry.device);
        let short = device.headroom_bytes.is_some_and(|b| b < 0);
        let ink = match (short, device.is_used()) {
            (true, _) => Ink::Bad,
            (false, true) => Ink::Plain,
            (false, false) => Ink::Faint,
        };
        text += &(style.paint(ink, &line) + "\n");
        text += &picture(estimate, entry, (indent, cells), style);
    }
    text
}

fn line(row: &Row, widths: &[usize; COLUMNS], gap: usize) -> String {
    let mut line = format!("{:<width$}", row[0], width = widths[0]);
    for (cell, width) in row.iter().zip(widths).skip(1) {
        line += &format!("{:gap$}{cell:>width$}", "");
    }
    line.trim_end().to_string()
}

fn bar_indent(entries: &[Entry<'_>], style: &Style) -> usize {
    let id = entries.iter().map(|entry| entry.id.len()).max();
    if style.width < 60 {
        2
    } else {
        id.unwrap_or(0) + 2
    }
}

/// Cells of every bar: what names and layers leave.
fn bar_cells(estimate: &Estimate, entries: &[Entry<'_>], style: &Style) -> usize {
    let gpus = entries.iter().filter(|e| e.device.free_bytes.is_some());
    let lengths = gpus.map(|entry| caption(estimate, entry).chars().count());
    let caption = lengths.max().unwrap_or(0);
    let taken = bar_indent(entries, style) + caption + 8;
    style.width.saturating_sub(taken).clamp(BAR.0, BAR.1)
}

fn caption(estimate: &Estimate, entry: &Entry<'_>) -> String {
    let device = entry.device;
    let name = one_line(&device.name);
    let name = match entry.n {
        1 => name,
        n => format!("{n} x {name}"),
    };
    let what = match (device.is_used(), device.layers.is_empty()) {
        (false, _) => "not used".to_string(),
        (true, true) => "no layers".to_string(),
        (true, false) => layers(&device.layers, estimate.model.n_layer),
    };
    format!("{name}, {what}")
}

/// The line under a row. The host has no bar, since nothing is known of its size.
fn picture(
    estimate: &Estimate,
    entry: &Entry<'_>,
    (indent, cells): (usize, usize),
    style: &Style,
) -> String {
    let device = entry.device;
    let Some(total) = device.total_bytes else {
        let layers = layers(&device.layers, estimate.model.n_layer);
        if layers.is_empty() {
            return String::new();
        }
        let layers = cut(&layers, style.width - indent);
        return format!("{:indent$}{}\n", "", style.paint(Ink::Faint, &layers));
    };
    let in_use = total.saturating_sub(device.free_bytes.unwrap_or(total));
    let taken = u128::from(in_use) + u128::from(device.required_bytes);
    let percent = taken * 100 / u128::from(total.max(1));
    let room = style.width.saturating_sub(indent + cells + 7);
    let caption = cut(&caption(estimate, entry), room);
    format!(
        "{:indent$}{} {percent:>4}%  {}\n",
        "",
        bar(device, cells, style),
        style.paint(Ink::Faint, &caption),
    )
}

/// For narrow terminals: a few lines a device.
fn list(estimate: &Estimate, entries: &[Entry<'_>], style: &Style) -> String {
    let (rows, sure) = (rows(entries, 2), certainty(estimate));
    let width = rows.iter().flatten().map(String::len).max().unwrap_or(0);
    let cells = style.width.saturating_sub(10).clamp(BAR.0, BAR.1);
    let mut text = String::new();
    for (row, entry) in rows.iter().zip(entries) {
        let (device, name) = (entry.device, one_line(&entry.device.name));
        text += &format!(
            "{}  {}\n",
            style.paint(Ink::Strong, &row[0]),
            cut(&name, style.width - 9)
        );
        let layers = layers(&device.layers, estimate.model.n_layer);
        if !layers.is_empty() {
            text += &format!("  {}\n", cut(&layers, style.width - 2));
        }
        for column in 2..COLUMNS {
            if row[column] == NONE {
                continue;
            }
            let short = column == 8 && device.headroom_bytes.is_some_and(|b| b < 0);
            let ink = if short { Ink::Bad } else { Ink::Plain };
            let line = format!(
                "  {:<8} {:>width$} MiB {}",
                HEADINGS[column], row[column], sure[column]
            );
            text += &(style.paint(ink, line.trim_end()) + "\n");
        }
        if device.total_bytes.is_some() {
            text += &format!("  {}\n", bar(device, cells, style));
        }
    }
    text
}
