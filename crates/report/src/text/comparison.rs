//! A comparison: devices by engine, then terms by engine, then in words.

use crate::comparison::{Comparison, SideReport};
use crate::document::VerdictWord;
use crate::style::{Ink, Style};
use crate::text::numbers::mib;
use crate::text::wrap::{one_line, words};

/// The whole text; ends in a line feed.
pub fn comparison_text(comparison: &Comparison, style: &Style) -> String {
    let path = &comparison.path;
    let file = path.rsplit(['/', '\\']).next().unwrap_or(path);
    let file = comparison.store_name.as_deref().unwrap_or(file);
    let about = format!(
        "{} · {} · n_ctx {}, {} at once · {}",
        one_line(file),
        comparison.architecture,
        comparison.n_ctx,
        comparison.parallel,
        comparison.gpus.join(" · ")
    );
    let mut text = style.paint(Ink::Faint, &words(&about, "", "  ", style.width));
    text.push('\n');
    text += &table(&by_device(comparison), style);
    text.push('\n');
    text += &table(&by_term(comparison), style);
    let lists = [
        ("Where they part", &comparison.differences),
        ("Notes", &comparison.notes),
    ];
    for (heading, lines) in lists {
        if !lines.is_empty() {
            text += &format!("\n{}\n", style.paint(Ink::Strong, heading));
        }
        for line in lines {
            text += &words(&one_line(line), "- ", "  ", style.width);
        }
    }
    text
}

fn verdict(side: &SideReport) -> &'static str {
    match side.verdict {
        VerdictWord::Fits => "fits",
        VerdictWord::Partial => "in part",
        VerdictWord::DoesNotFit => "does not fit",
    }
}

fn cell(bytes: u64) -> String {
    match bytes {
        0 => "-".to_string(),
        _ => mib(bytes, 1),
    }
}

/// A row an engine.
fn by_device(comparison: &Comparison) -> Vec<Vec<String>> {
    let ids = comparison.sides.first().map(|side| &side.devices);
    let ids = ids.into_iter().flatten().map(|d| d.id.clone());
    let mut rows = vec![vec!["MiB".to_string()]];
    if let Some(heading) = rows.first_mut() {
        heading.extend(ids);
        heading.extend(["layers".to_string(), "verdict".to_string()]);
    }
    for side in &comparison.sides {
        let mut row = vec![side.engine.clone()];
        row.extend(side.devices.iter().map(|d| cell(d.required_bytes)));
        row.extend([side.split(), verdict(side).to_string()]);
        rows.push(row);
    }
    rows
}

/// A row a term, in the order in which the engines name them.
fn by_term(comparison: &Comparison) -> Vec<Vec<String>> {
    let mut names: Vec<&str> = Vec::new();
    for side in &comparison.sides {
        for term in side.devices.iter().flat_map(|d| &d.terms) {
            if !names.contains(&term.name.as_str()) {
                names.push(&term.name);
            }
        }
    }
    let mut heading = vec!["MiB on all GPUs".to_string()];
    heading.extend(comparison.sides.iter().map(|side| side.engine.clone()));
    let row = |name: &str, of: &dyn Fn(&SideReport) -> u64| {
        let mut row = vec![name.to_string()];
        row.extend(comparison.sides.iter().map(|side| cell(of(side))));
        row
    };
    let mut rows = vec![heading];
    let terms = names.iter().map(|name| row(name, &|side| side.term(name)));
    // A term that no engine has here says nothing.
    let said = |row: &Vec<String>| row.iter().skip(1).any(|cell| cell != "-");
    rows.extend(terms.filter(said));
    rows.push(row("in all", &SideReport::required_bytes));
    rows
}

/// The first column to the left, the others to the right; headings faint.
fn table(rows: &[Vec<String>], style: &Style) -> String {
    let n = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..n).map(width).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            line += &match column {
                0 => format!("{cell:<width$}"),
                _ => format!("  {cell:>width$}"),
            };
        }
        let ink = if index == 0 { Ink::Faint } else { Ink::Plain };
        text += &(style.paint(ink, line.trim_end()) + "\n");
    }
    text
}
