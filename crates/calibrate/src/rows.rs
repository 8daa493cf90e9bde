//! Measured rows as data: what `fixtures/measured` keeps.

use crate::Comparison;

const HEADING: &str = "# card\tdriver\tbuild\tmodel\tflags\tdevice\tbuffers\tpool\tmeasured\tby\n";

/// A line for every card that was used, bytes; with a heading.
pub fn rows(comparisons: &[Comparison]) -> String {
    let mut text = HEADING.to_string();
    for c in comparisons {
        let model = c.model.rsplit('/').next().unwrap_or(&c.model);
        for d in c.devices.iter().filter(|d| d.predicted.is_used) {
            let Some(seen) = d.measured else {
                continue;
            };
            let said = d.said.map_or(d.predicted.buffers(), |s| {
                s.model_bytes
                    .saturating_add(s.context_bytes)
                    .saturating_add(s.compute_bytes)
                    .saturating_add(d.predicted.projector.model_bytes)
                    .saturating_add(d.predicted.projector.compute_bytes)
            });
            let pool = d.predicted.runtime_bytes().saturating_sub(d.idle_bytes);
            let by = serde_json::to_string(&seen.by).unwrap_or_default();
            let cells = [
                d.card.clone(),
                c.driver.clone(),
                c.build.clone(),
                model.to_string(),
                c.flags.join(" "),
                d.id.clone(),
                said.to_string(),
                pool.to_string(),
                seen.peak_bytes.to_string(),
                by.trim_matches('"').to_string(),
            ];
            text += &cells.map(|cell| cell.replace(['\t', '\n'], " ")).join("\t");
            text.push('\n');
        }
    }
    text
}
