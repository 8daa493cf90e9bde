//! `estimate explain MODEL..`

use std::path::Path;

use vramfit::report::{Explanation, explanation_text, one_line};

use crate::estimate::{Planned, message, plan};
use crate::exit::Exit;
use crate::inputs::Inputs;
use crate::printer::Printer;
use crate::settings::Settings;

/// Tensors of a peak that are shown.
const SHOWN: usize = 12;

fn document(path: &Path, settings: &Settings) -> Result<Explanation, vramfit::Error> {
    let Planned {
        model, placement, ..
    } = plan(path, settings)?;
    vramfit::explanation(path, &model, &placement)
}

/// Explains one model after the other; the first error ends it.
pub fn run(
    inputs: &Inputs,
    settings: &Settings,
    all: bool,
    printer: &mut Printer,
) -> Result<Exit, String> {
    let most = if all { usize::MAX } else { SHOWN };
    for (i, path) in inputs.models.iter().enumerate() {
        let explanation = document(path, settings).map_err(|error| message(path, &error))?;
        if printer.json {
            printer.json(&explanation, inputs.many)?;
            continue;
        }
        if inputs.many {
            let gap = if i > 0 { "\n" } else { "" };
            printer.print(&format!("{gap}{}\n\n", one_line(&path.to_string_lossy())))?;
        }
        printer.print(&explanation_text(&explanation, most, &printer.style))?;
    }
    Ok(Exit::Fits)
}
