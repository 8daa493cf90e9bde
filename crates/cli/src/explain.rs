//! `estimate explain MODEL..`

use std::path::Path;

use vramfit::report::{Explanation, Failure, explanation_text, one_line};

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

/// Explains one model after the other; a bad file does not stop the rest.
pub fn run(
    inputs: &Inputs,
    settings: &Settings,
    all: bool,
    printer: &mut Printer,
) -> Result<Exit, String> {
    let most = if all { usize::MAX } else { SHOWN };
    let mut n_failed = 0;
    for (i, path) in inputs.models.iter().enumerate() {
        let outcome = document(path, settings).map_err(|error| message(path, &error));
        if let (Err(error), false) = (&outcome, inputs.many) {
            return Err(error.clone());
        }
        n_failed += usize::from(outcome.is_err());
        if printer.json {
            match outcome {
                Ok(explanation) => printer.json(&explanation, inputs.many)?,
                Err(error) => printer.json(&Failure::new(path.to_string_lossy(), error), true)?,
            }
            continue;
        }
        if inputs.many {
            let gap = if i > 0 { "\n" } else { "" };
            printer.print(&format!("{gap}{}\n\n", one_line(&path.to_string_lossy())))?;
        }
        match outcome {
            Ok(explanation) => {
                printer.print(&explanation_text(&explanation, most, &printer.style))?;
            }
            Err(error) => printer.print(&format!("{}\n", one_line(&error)))?,
        }
    }
    match n_failed {
        0 => Ok(Exit::Fits),
        n => Err(format!(
            "{n} of {} models could not be explained; their lines say why",
            inputs.models.len()
        )),
    }
}
