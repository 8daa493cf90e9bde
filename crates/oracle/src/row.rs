//! The engine's JSON as one compact row.

use std::fmt::Write as _;

use serde_json::Value;

use crate::case::Case;

/// The columns of a truth table, after the tab-separated `#` header.
pub const COLUMNS: &str = "model\tgpus\tflags\tstatus\tn_ctx\tn_ctx_seq\tn_batch\tn_ubatch\tflash_attn\tsched_copies\tlayer_device\tmemory\tgraph";

/// All GPUs with `-sm tensor`, as the engine calls them.
const META: &str = "Meta()";

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It loaded.
    Loaded,
    /// llama.cpp would not.
    Refused,
    /// No answer: not used as truth.
    Crashed,
}

/// A row, and whether vgpu counted the very bytes that the engine reports.
pub struct Row {
    /// How it ended.
    pub outcome: Outcome,
    /// The columns from `status` on.
    pub tail: String,
    /// `cuda_malloc_equals_breakdown`.
    pub counted_equal: bool,
}

impl Row {
    /// A row without numbers.
    pub fn without_numbers(outcome: Outcome, reason: &str) -> Self {
        let word = if outcome == Outcome::Refused {
            "refused"
        } else {
            "crashed"
        };
        let reason = reason.replace(['\t', '\n'], " ");
        Self {
            outcome,
            tail: format!("{word}: {}{}", reason.trim(), "\t-".repeat(9)),
            counted_equal: true,
        }
    }

    /// The row of one answer of the oracle.
    pub fn of(json: &Value) -> Self {
        Self::read(json, false)
    }

    /// The same, with what adapters take on each GPU as a fourth number: the breakdown does not count it.
    pub fn with_adapters(json: &Value) -> Self {
        Self::read(json, true)
    }

    fn read(json: &Value, adapters: bool) -> Self {
        if let Some(error) = json["error"].as_str() {
            let reason = reason_of(error, json["log_tail"].as_str().unwrap_or(""));
            let host_is_full = reason.contains("failed to allocate CPU")
                || reason.contains("failed to allocate CUDA_Host");
            let refused = error != "crashed" && !host_is_full && json["log_tail"].is_string();
            return Self::without_numbers(
                if refused {
                    Outcome::Refused
                } else {
                    Outcome::Crashed
                },
                &reason,
            );
        }
        let result = &json["result"];
        let context = &result["ctx"];
        let number = |key: &str| {
            context[key]
                .as_u64()
                .map_or_else(|| "-".to_owned(), |n| n.to_string())
        };
        let flash = match context["flash_attn"].as_str() {
            Some("on") => "1",
            Some("off") => "0",
            _ => "-", // no layer has attention, so that auto was never resolved
        };
        let columns = [
            "ok".to_owned(),
            number("n_ctx"),
            number("n_ctx_seq"),
            number("n_batch"),
            number("n_ubatch"),
            flash.to_owned(),
            number("sched_copies"),
            layers(&result["layer_device"]),
            memory(result, adapters),
            graph(context["graph"].as_str().unwrap_or("")),
        ];
        let equal = result["cuda_malloc_equals_breakdown"].as_bool() == Some(true);
        // with -sm tensor the engine reports the largest part alone
        let is_shared_out = result["devices"][0]["device"] == META;
        let counted_equal = adapters || equal || is_shared_out;
        Self {
            outcome: Outcome::Loaded,
            tail: columns.join("\t"),
            counted_equal,
        }
    }

    /// The whole line.
    pub fn line(&self, case: &Case) -> String {
        format!("{}\t{}", case.key(), self.tail)
    }
}

/// `host*3 CUDA0*20 CUDA1*10`; the last layer is the output layer.
fn layers(list: &Value) -> String {
    let mut runs: Vec<(&str, usize)> = Vec::new();
    for device in list
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        let device = match device {
            "CPU" => "host",
            META => "Meta",
            device => device,
        };
        match runs.last_mut() {
            Some((last, n)) if *last == device => *n += 1,
            _ => runs.push((device, 1)),
        }
    }
    let texts: Vec<String> = runs
        .iter()
        .map(|(device, n)| format!("{device}*{n}"))
        .collect();
    or_dash(texts.join(" "))
}

/// `CUDA0=model/context/compute .. host=../../..`, then what the CPU holds in buffers that are not host ones (CPU_REPACK).
fn memory(result: &Value, adapters: bool) -> String {
    let bytes = |row: &Value| {
        ["model", "context", "compute"]
            .map(|key| row[key].as_u64().unwrap_or(0).to_string())
            .join("/")
    };
    let mut texts = Vec::new();
    for device in result["devices"].as_array().into_iter().flatten() {
        let name = device["device"].as_str().unwrap_or("?");
        if name == META {
            // its context is the sum of the largest part of each buffer, on whatever GPU
            texts.push(format!("Meta={}/{}", device["model"], device["compute"]));
            for count in result["cuda_malloc"].as_array().into_iter().flatten() {
                texts.push(format!("CUDA{}:{}", count["gpu"], count["bytes"]));
            }
            continue;
        }
        let mut text = format!("{name}={}", bytes(device));
        if let (true, Some(gpu)) = (adapters, name.strip_prefix("CUDA")) {
            let gpu: Option<u64> = gpu.parse().ok();
            let counts = result["cuda_malloc"].as_array().into_iter().flatten();
            let mut counts = counts.filter(|count| count["gpu"].as_u64() == gpu);
            let bytes = counts.next().and_then(|count| count["bytes"].as_u64());
            let sum = device["sum"].as_u64().unwrap_or(0);
            let _ = write!(text, "/{}", bytes.unwrap_or(0).saturating_sub(sum));
        }
        texts.push(text);
    }
    for buffer in result["breakdown"].as_array().into_iter().flatten() {
        if buffer["device"].as_str() == Some("CPU") {
            texts.push(format!(
                "{}={}",
                buffer["buft"].as_str().unwrap_or("?"),
                bytes(buffer)
            ));
        }
    }
    or_dash(texts.join(" "))
}

/// `nodes/splits` of the prompt pass, then of the generation pass: `998/160 998/3`.
fn graph(text: &str) -> String {
    let pair = |key: &str| -> Option<(u32, u32)> {
        let after = text.split_once(&format!("{key} = "))?.1;
        let value = after.split(',').next()?;
        let mut numbers = value.split(" / ").map(|n| n.trim().parse().ok());
        let first = numbers.next()??;
        Some((first, numbers.next().flatten().unwrap_or(first)))
    };
    match (pair("nodes"), pair("splits")) {
        (Some((pp, tg)), Some((pp_splits, tg_splits))) => {
            format!("{pp}/{pp_splits} {tg}/{tg_splits}")
        }
        _ => "-".to_owned(),
    }
}

fn or_dash(text: String) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text
    }
}

/// The line of the log that says why, without the function's name where that can be told apart.
fn reason_of(error: &str, log: &str) -> String {
    const TELLING: [&str; 14] = [
        "requires",
        "not supported",
        "does not support",
        "unsupported",
        "failed to allocate",
        "out of memory",
        "invalid",
        "cannot",
        "exceeds",
        "must be",
        "unable",
        "incompatible",
        "error loading model",
        "assert",
    ];
    let lines: Vec<&str> = log
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let telling = lines
        .iter()
        .find(|line| TELLING.iter().any(|word| line.contains(word)));
    let line = telling
        .or(lines.last())
        .copied()
        .unwrap_or(error)
        .trim_start_matches('.');
    let line = line
        .split_once(": ")
        .filter(|(function, _)| !function.contains(' '))
        .map_or(line, |(_, words)| words);
    line.chars().take(160).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn runs_of_layers_are_counted() {
        assert_eq!(
            layers(&json!(["CPU", "CUDA0", "CUDA0", "CUDA1"])),
            "host*1 CUDA0*2 CUDA1*1"
        );
        assert_eq!(layers(&json!([])), "-");
    }

    #[test]
    fn both_forms_of_the_graph_line_are_read() {
        assert_eq!(
            graph(
                "graph (pp bs=512, tg bs=1): nodes = 998 / 998, splits = 160 / 3, input objects = 4 / 4"
            ),
            "998/160 998/3"
        );
        assert_eq!(
            graph("graph: nodes = 998, splits = 1, input objects = 4"),
            "998/1 998/1"
        );
        assert_eq!(graph(""), "-");
    }
}
