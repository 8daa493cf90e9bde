//! One estimate: verdict, table, flags, why not otherwise, notes.

use crate::document::{DeviceReport, Estimate, LayoutWord, RejectedReport, VerdictWord};
use crate::style::{Ink, Style};
use crate::text::devices::devices;
use crate::text::numbers::{count, mib, size};
use crate::text::wrap::{command_line, fill, one_line, words};

/// More rejected options than these are left to JSON.
const REJECTED_SHOWN: usize = 6;

/// The whole text; ends in a line feed.
pub fn estimate_text(estimate: &Estimate, style: &Style) -> String {
    let mut text = verdict(estimate, style);
    text.push('\n');
    text += &subject(estimate, style);
    text.push('\n');
    text += &devices(estimate, style);
    if !estimate.command.is_empty() && estimate.verdict != VerdictWord::DoesNotFit {
        text.push('\n');
        text += &command_line(&estimate.command, "", style.width);
    }
    if !estimate.rejected.is_empty() {
        text.push('\n');
        text += &(style.paint(Ink::Strong, "Why not otherwise") + "\n");
        for rejected in estimate.rejected.iter().take(REJECTED_SHOWN) {
            text += &not_taken(rejected, style);
        }
        let more = estimate.rejected.len().saturating_sub(REJECTED_SHOWN);
        if more > 0 {
            text += &format!("- {more} more with --json\n");
        }
    }
    let notes = notes(estimate);
    if !notes.is_empty() {
        text.push('\n');
        text += &(style.paint(Ink::Strong, "Notes") + "\n");
        for note in notes {
            text += &words(&one_line(&note), "- ", "  ", style.width);
        }
    }
    text
}

/// The answer, its first word in colour.
fn verdict(estimate: &Estimate, style: &Style) -> String {
    let (word, ink, mut rest) = sentence(estimate);
    if is_another_build(estimate) {
        rest += &format!("; {}", estimate.engine);
    }
    let text = words(&format!("{word}{rest}"), "", "", style.width);
    match text.strip_prefix(word) {
        Some(tail) => style.paint(ink, word) + tail,
        None => text,
    }
}

/// A build of llama.cpp that is not the one that all figures are of unless they say otherwise.
fn is_another_build(estimate: &Estimate) -> bool {
    let usual = vramfit_estimate::EngineProfile::LLAMA_CPP_V0_5_0.name;
    estimate.engine.starts_with("llama.cpp ") && estimate.engine != usual
}

fn sentence(estimate: &Estimate) -> (&'static str, Ink, String) {
    match (estimate.verdict, estimate.is_bound()) {
        (VerdictWord::Fits, _) => ("Fits:", Ink::Good, fits(estimate)),
        (VerdictWord::Partial, false) => ("Fits in part:", Ink::Warning, partial(estimate)),
        (VerdictWord::DoesNotFit, false) => ("Does not fit:", Ink::Bad, misfit(estimate)),
        // by upper bounds only what fits is certain
        (VerdictWord::Partial, true) => ("Sure to fit in part:", Ink::Warning, partial(estimate)),
        (VerdictWord::DoesNotFit, true) => ("May not fit:", Ink::Bad, misfit(estimate)),
    }
}

fn with_layers(estimate: &Estimate) -> Vec<&DeviceReport> {
    let used = |d: &&DeviceReport| !d.layers.is_empty();
    estimate.gpu_devices().filter(used).collect()
}

/// `CUDA0`, `CUDA0 and CUDA2`, `CUDA1 to CUDA7`, `CUDA0, CUDA2 to CUDA4 and CUDA6`.
fn ids<'a>(devices: impl IntoIterator<Item = &'a DeviceReport>) -> String {
    let devices: Vec<&DeviceReport> = devices.into_iter().collect();
    let number = |id: &str| {
        id.trim_start_matches(char::is_alphabetic)
            .parse::<u32>()
            .ok()
    };
    let next = |a: &&DeviceReport, b: &&DeviceReport| match (number(&a.id), number(&b.id)) {
        (Some(a), Some(b)) => a.checked_add(1) == Some(b),
        _ => false,
    };
    let mut parts: Vec<String> = Vec::new();
    for run in devices.chunk_by(next) {
        match run {
            [first, _, .., last] => parts.push(format!("{} to {}", first.id, last.id)),
            few => parts.extend(few.iter().map(|d| d.id.clone())),
        }
    }
    match parts.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} and {last}", others.join(", ")),
        _ => parts.concat(),
    }
}

fn fits(estimate: &Estimate) -> String {
    let used = with_layers(estimate);
    if used.is_empty() {
        return " everything in host memory, as asked".to_string();
    }
    let least = used.iter().filter_map(|d| d.headroom_bytes).min();
    let spare = size(least.unwrap_or(0).max(0) as u64);
    let unused: Vec<&DeviceReport> = estimate.gpu_devices().filter(|d| !d.is_used()).collect();
    let on_host = estimate
        .devices
        .iter()
        .any(|d| d.total_bytes.is_none() && !d.layers.is_empty());
    let n_gpu = estimate.run.n_gpu_layers;
    let layers = match on_host {
        true => format!("{n_gpu} of {} layers", estimate.n_layers()),
        false => format!("all {} layers", estimate.n_layers()),
    };
    let whose = if used.len() > 1 {
        " on the fullest"
    } else {
        ""
    };
    let mut text = format!(" {layers} on {}, {spare} to spare{whose}", ids(used));
    if !unused.is_empty() {
        let verb = if unused.len() == 1 { "stays" } else { "stay" };
        text += &format!("; {} {verb} empty", ids(unused));
    }
    text
}

fn partial(estimate: &Estimate) -> String {
    let n = estimate.run.n_gpu_layers;
    let all = estimate.n_layers();
    if n == 0 {
        return format!(" no layer on a GPU, all {all} on the host");
    }
    let where_ = ids(with_layers(estimate));
    if n == all {
        return format!(" all {all} layers on {where_}, some of their tensors on the host");
    }
    format!(
        " {n} of {all} layers on {where_}, {} on the host",
        all.saturating_sub(n)
    )
}

fn misfit(estimate: &Estimate) -> String {
    let short: Vec<String> = estimate
        .gpu_devices()
        .filter_map(|d| {
            let missing = d.headroom_bytes.filter(|&b| b < 0)?.unsigned_abs();
            Some(format!("{} is short of {}", d.id, size(missing)))
        })
        .collect();
    match (short.is_empty(), estimate.is_bound()) {
        (true, false) => " no layer has room on any GPU".to_string(),
        (true, true) => " no layer is sure to have room on any GPU".to_string(),
        (false, false) => format!(" {}", short.join(", ")),
        (false, true) => format!(" by upper bounds, {}", short.join(", ")),
    }
}

/// What it is about: the model, the settings, the GPUs.
fn subject(estimate: &Estimate, style: &Style) -> String {
    let (model, run) = (&estimate.model, &estimate.run);
    let file = model.path.rsplit(['/', '\\']).next().unwrap_or(&model.path);
    let file = model.store_name.as_deref().unwrap_or(file);
    let model = [
        one_line(file),
        model.architecture.clone(),
        format!("{} blocks", model.n_layer),
        format!("{} parameters", count(model.n_params)),
        size(model.file_bytes),
    ];
    let sequences = match run.n_seq_max {
        1 => "1 sequence".to_string(),
        n => format!("{n} sequences of {}", run.n_ctx_seq),
    };
    let mut settings = vec![
        format!("n_ctx {}", run.n_ctx),
        sequences,
        format!("batch {}/{}", run.n_batch, run.n_ubatch),
        format!("KV {}", kv_types(&run.type_k, &run.type_v)),
        format!("flash attention {}", on_off(run.flash_attention)),
    ];
    let also = [
        (run.kv_unified && run.n_seq_max > 1, "unified KV"),
        (run.swa_full, "full-size SWA cache"),
        (!run.offload_kqv, "KV on the host"),
        (!run.op_offload, "no op offload"),
        (!run.mmap, "no mmap"),
        (run.embeddings, "embeddings"),
        (run.pipeline_copies > 1, "pipelined"),
        (run.layout == LayoutWord::Engine, "llama.cpp's own layout"),
    ];
    let also = also.into_iter().filter(|(is, _)| *is);
    settings.extend(also.map(|(_, word)| word.to_string()));
    let lines = |pieces: &[String], indent: &str| {
        let text = fill(pieces, " · ", "", indent, style.width);
        let faint = |line: &str| style.paint(Ink::Faint, line) + "\n";
        text.lines().map(faint).collect::<String>()
    };
    let mut text = lines(&model, "  ");
    text += &lines(&settings, "  ");
    for gpus in &estimate.gpus {
        text += &lines(&[one_line(gpus)], "  ");
    }
    text
}

fn kv_types(k: &str, v: &str) -> String {
    if k == v {
        k.to_string()
    } else {
        format!("{k}/{v}")
    }
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

fn not_taken(rejected: &RejectedReport, style: &Style) -> String {
    let short = rejected.shortfalls.iter().map(|s| {
        format!(
            "{} is short of {} ({} of {} MiB)",
            s.device,
            size(s.missing_bytes),
            mib(s.required_bytes, 0),
            mib(s.free_bytes, 0)
        )
    });
    let why: Vec<String> = rejected.reason.iter().cloned().chain(short).collect();
    let text = format!("{}: {}", rejected.option, why.join("; "));
    let mut text = words(&one_line(&text), "- ", "  ", style.width);
    for fix in &rejected.fixes {
        let flags = fix.flags.join(" ");
        let fix = match flags.is_empty() {
            true => fix.text.clone(),
            false => format!("{flags}: {}", fix.text),
        };
        text += &words(&one_line(&fix), "  → ", "    ", style.width);
    }
    text
}

/// The notes, what the CPU re-orders, and where CUDA's figures come from.
fn notes(estimate: &Estimate) -> Vec<String> {
    let mut notes = estimate.notes.clone();
    let mut sources: Vec<(&str, Vec<&DeviceReport>)> = Vec::new();
    for device in estimate.gpu_devices() {
        let Some(source) = device.overhead_source.as_deref() else {
            continue;
        };
        match sources.iter_mut().find(|(s, _)| *s == source) {
            Some((_, devices)) => devices.push(device),
            None => sources.push((source, vec![device])),
        }
    }
    let repacked = estimate.devices.iter().find(|d| d.repacked_bytes > 0);
    notes.extend(repacked.map(|host| {
        format!(
            "beside the mapped file the CPU keeps a re-ordered copy of {} of weights; --no-repack \
             turns that off",
            size(host.repacked_bytes)
        )
    }));
    for (source, devices) in sources {
        let most = |bytes: fn(&DeviceReport) -> u64| devices.iter().map(|d| bytes(d)).max();
        let high = most(|d| d.overhead_bytes).unwrap_or(0);
        let low = devices.iter().map(|d| d.overhead_low_bytes).min();
        let own = match low.filter(|&low| low < high) {
            Some(low) => format!("{} to {}", size(low), size(high)),
            None => size(high),
        };
        let pool = size(most(|d| d.runtime_bytes).unwrap_or(0));
        notes.push(format!(
            "CUDA on {}: {own} of its own ({source}), up to {pool} of runtime pool while it computes",
            ids(devices.iter().copied())
        ));
    }
    notes
}
