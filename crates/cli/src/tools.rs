//! The small commands: strip, schema, completions, man.

use std::path::Path;

use clap::ArgMatches;
use vramfit::Header;
use vramfit::gguf::{Length, StripOptions, strip_file};
use vramfit::report::{SchemaOf, one_line, schema};

use crate::command::command;
use crate::exit::Exit;
use crate::gpus::Gpus;
use crate::printer::Printer;

/// `estimate strip MODEL -o FILE`
pub fn strip(model: &Path, output: &Path, keep_tokens: bool, full: bool) -> Result<Exit, String> {
    let header = Header::open(model).map_err(|error| error.to_string())?;
    let options = StripOptions { keep_tokens };
    let length = if full { Length::Full } else { Length::Header };
    let bytes = strip_file(&header, options, length, output);
    let bytes = bytes.map_err(|error| error.to_string())?;
    let output = one_line(&output.to_string_lossy());
    let of = header.file_bytes();
    let hole = if full { ", most of them a hole" } else { "" };
    Printer::plain().print(&format!(
        "{output}: {bytes} bytes{hole}, for a model of {of}\n"
    ))?;
    Ok(Exit::Fits)
}

/// `estimate schema [OF]`
pub fn print_schema(of: &str) -> Result<Exit, String> {
    let of = match of {
        "gpus" => {
            let schema = schemars::schema_for!(Gpus);
            Printer::plain().json(&schema, false)?;
            return Ok(Exit::Fits);
        }
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
