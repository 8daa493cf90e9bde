//! The small commands: strip, gpus, schema, completions, man.

use std::path::Path;

use clap::ArgMatches;
use vramfit::Header;
use vramfit::devices::{COLUMNS, list_cards};
use vramfit::gguf::{Length, StripOptions, strip_file};
use vramfit::report::{SchemaOf, one_line, schema};

use crate::command::command;
use crate::exit::Exit;
use crate::printer::Printer;

/// `estimate strip MODEL -o FILE`
pub fn strip(model: &Path, output: &Path, keep_tokens: bool) -> Result<Exit, String> {
    let header = Header::open(model).map_err(|error| error.to_string())?;
    let options = StripOptions { keep_tokens };
    let bytes = strip_file(&header, options, Length::Header, output);
    let bytes = bytes.map_err(|error| error.to_string())?;
    let output = one_line(&output.to_string_lossy());
    let of = header.file_bytes();
    Printer::plain().print(&format!("{output}: {bytes} bytes, for a model of {of}\n"))?;
    Ok(Exit::Fits)
}

/// `estimate gpus [FILTER]`
pub fn gpus(filter: &str) -> Result<Exit, String> {
    let cards = list_cards(filter);
    if cards.is_empty() {
        return Err(format!(
            "no GPU in the catalogue has '{}' in its name; any card can be given by its size, as in \
             --gpus 24GiB:cc=8.6",
            one_line(filter)
        ));
    }
    let mut printer = Printer::plain();
    let rows: Vec<_> = cards.iter().map(|card| card.row()).collect();
    let headings = COLUMNS.map(str::to_string);
    let table = || std::iter::once(&headings).chain(&rows);
    let mut widths = [0; COLUMNS.len()];
    for row in table() {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    // Columns that the terminal has no room for are left out, the last first.
    let mut shown = COLUMNS.len();
    while shown > 3
        && widths.iter().take(shown).sum::<usize>() + 2 * (shown - 1) > printer.style.width
    {
        shown -= 1;
    }
    let mut text = String::new();
    for row in table() {
        let cells = row.iter().zip(widths).take(shown).enumerate();
        let line: Vec<String> = cells
            .map(|(i, (cell, width))| match (2..6).contains(&i) {
                true => format!("{cell:>width$}"),
                false => format!("{cell:<width$}"),
            })
            .collect();
        text += line.join("  ").trim_end();
        text.push('\n');
    }
    printer.print(&text)?;
    Ok(Exit::Fits)
}

/// `estimate schema [OF]`
pub fn print_schema(of: &str) -> Result<Exit, String> {
    let of = match of {
        "explain" => SchemaOf::Explain,
        "compare" => SchemaOf::Compare,
        "error" => SchemaOf::Error,
        _ => SchemaOf::Estimate,
    };
    Printer::plain().json(&schema(of), false)?;
    Ok(Exit::Fits)
}

/// `estimate completions SHELL`
pub fn completions(matches: &ArgMatches) -> Result<Exit, String> {
    let mut text = Vec::new();
    if let Some(shell) = matches.get_one::<clap_complete::Shell>("SHELL") {
        clap_complete::generate(*shell, &mut command(), "estimate", &mut text);
    }
    Printer::plain().bytes(&text)?;
    Ok(Exit::Fits)
}

/// `estimate man`
pub fn man() -> Result<Exit, String> {
    let mut text = Vec::new();
    let page = clap_mangen::Man::new(command());
    page.render(&mut text)
        .map_err(|error| format!("man page: {error}"))?;
    Printer::plain().bytes(&text)?;
    Ok(Exit::Fits)
}
