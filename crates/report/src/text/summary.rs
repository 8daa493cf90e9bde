//! One line a model, when there are several.

use crate::document::{Estimate, VerdictWord};
use crate::style::{Ink, Style};
use crate::text::numbers::mib;
use crate::text::wrap::{cut, one_line};

const VERDICT: usize = 12;
const LAYERS: usize = 8;
const TOTAL: usize = 9;

/// The heading over [`summary_line`]s of `n_gpus` GPUs.
pub fn summary_heading(n_gpus: usize, style: &Style) -> String {
    let mut line = format!("{:<VERDICT$} {:>LAYERS$}", "MiB", "layers");
    for i in 0..shown_gpus(n_gpus, style) {
        line += &format!(" {:>TOTAL$}", format!("CUDA{i}"));
    }
    line += &format!(" {:>TOTAL$}", "host");
    style.paint(Ink::Faint, &format!("{line}  model")) + "\n"
}

/// Columns that leave some room for the model's name.
fn shown_gpus(n_gpus: usize, style: &Style) -> usize {
    let room = style
        .width
        .saturating_sub(VERDICT + LAYERS + TOTAL + 2 + 20);
    n_gpus.min(room / (TOTAL + 1))
}

/// Verdict, layers on GPUs, total of each GPU and of the host (`≤` where it is a bound), name.
pub fn summary_line(name: &str, outcome: Result<&Estimate, &str>, style: &Style) -> String {
    let name = one_line(name);
    let estimate = match outcome {
        Ok(estimate) => estimate,
        Err(error) => {
            let word = style.paint(Ink::Bad, &format!("{:<VERDICT$}", "error"));
            let error = one_line(error);
            return match error.contains(&name) {
                true => format!("{word} {error}\n"),
                false => format!("{word} {name}: {error}\n"),
            };
        }
    };
    let (word, ink) = match (estimate.verdict, estimate.is_bound()) {
        (VerdictWord::Fits, _) => ("fits", Ink::Good),
        (VerdictWord::Partial, _) => ("partial", Ink::Warning),
        (VerdictWord::DoesNotFit, false) => ("does not fit", Ink::Bad),
        (VerdictWord::DoesNotFit, true) => ("may not fit", Ink::Bad),
    };
    let layers = format!("{}/{}", estimate.run.n_gpu_layers, estimate.n_layers());
    let mut line = format!(" {layers:>LAYERS$}");
    let gpus = estimate.gpu_devices();
    let shown = gpus.take(shown_gpus(estimate.gpu_devices().count(), style));
    let host = estimate.devices.iter().filter(|d| d.free_bytes.is_none());
    for device in shown.chain(host) {
        let total = match device.required_bytes {
            0 => "-".to_string(),
            bytes if estimate.is_bound() => format!("≤{}", mib(bytes, 1)),
            bytes => mib(bytes, 1),
        };
        line += &format!(" {total:>TOTAL$}");
    }
    let room = style.width.saturating_sub(VERDICT + line.len() + 2).max(12);
    let word = style.paint(ink, &format!("{word:<VERDICT$}"));
    format!("{word}{line}  {}\n", cut(&name, room))
}
