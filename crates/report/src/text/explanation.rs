//! What makes the compute buffers as large as they are.

use crate::explanation::{AliveReport, Explanation, PassWord, PeakReport, PoolReport};
use crate::style::{Ink, Style};
use crate::text::numbers::mib;
use crate::text::wrap::{cut, one_line, words};

/// Smaller tensors would be shown as 0.00 MiB.
const LEAST_BYTES: u64 = (1 << 20) / 200;

/// The peaks of all devices, `most` tensors of each; [`usize::MAX`] for all, however small.
pub fn explanation_text(explanation: &Explanation, most: usize, style: &Style) -> String {
    let mut text = String::new();
    let peaks = explanation.peaks.iter().filter(|p| p.compute_bytes > 0);
    for (i, peak) in peaks.enumerate() {
        if i > 0 {
            text.push('\n');
        }
        text += &heading(peak, style);
        text += &table(peak, most, style);
    }
    if text.is_empty() {
        text += "no compute buffers\n";
    }
    if !explanation.pools.is_empty() {
        text.push('\n');
    }
    for pool in &explanation.pools {
        text += &runtime(pool, style);
    }
    text
}

/// The runtime pool, and the operation that sets it.
fn runtime(pool: &PoolReport, style: &Style) -> String {
    let sure = if pool.is_bound { "bound" } else { "modelled" };
    let kind = match pool.is_legacy {
        true => "legacy runtime pool, buffers kept one by one,",
        false => "runtime pool",
    };
    let mut text = format!(
        "{} {kind} {} MiB ({sure})",
        whose(&pool.id, pool.is_draft),
        mib(pool.pool_bytes, 2)
    );
    if let (Some(op), Some(at)) = (&pool.op, &pool.at) {
        let with = pool.source.as_ref().map(|source| {
            let name = one_line(&source.name);
            format!(" with {name}, {} {}", source.r#type, shape(&source.shape))
        });
        let set_by = if pool.is_legacy { "largest:" } else { "set by" };
        text += &format!(
            ", {set_by} {op} {}{} of {}, which holds {} MiB at once",
            one_line(at),
            with.unwrap_or_default(),
            pass_words(pool.pass),
            mib(pool.op_bytes, 2)
        );
    }
    if pool.is_legacy && pool.pool_least_bytes < pool.pool_bytes {
        text += &format!(
            "; {} MiB where the first prompts fill the context, and no less than {} MiB where memory runs out",
            mib(pool.pool_filled_bytes, 2),
            mib(pool.pool_least_bytes, 2)
        );
    }
    if pool.workspace_bytes > 0 {
        text += &format!("; cuBLAS workspace {} MiB", mib(pool.workspace_bytes, 2));
    }
    words(&format!("{text}."), "", "", style.width)
}

fn whose(id: &str, is_draft: bool) -> String {
    match is_draft {
        true => format!("{id}, draft:"),
        false => format!("{id}:"),
    }
}

fn pass_words(pass: PassWord) -> &'static str {
    match pass {
        PassWord::Prompt => "the largest prompt batch",
        PassWord::Generation => "one token a sequence",
    }
}

fn heading(peak: &PeakReport, style: &Style) -> String {
    let pass = pass_words(peak.pass);
    let gaps = peak.compute_bytes.saturating_sub(peak.unfragmented_bytes);
    let rest = format!(
        " compute buffer {} MiB, fullest at {} of {pass}. Without gaps between tensors it would be \
         {} MiB ({} less).",
        mib(peak.compute_bytes, 2),
        one_line(&peak.at),
        mib(peak.unfragmented_bytes, 2),
        mib(gaps, 2),
    );
    let id = whose(&peak.id, peak.is_draft);
    let text = words(&format!("{id}{rest}"), "", "", style.width);
    match text.strip_prefix(&id) {
        Some(tail) => style.paint(Ink::Strong, &id) + tail,
        None => text,
    }
}

fn table(peak: &PeakReport, most: usize, style: &Style) -> String {
    let large = peak.alive.iter().filter(|t| t.bytes >= LEAST_BYTES);
    let most = match most {
        usize::MAX => peak.alive.len(),
        most => most.min(large.count()),
    };
    let shown = peak.alive.iter().take(most);
    let op_width = shown.clone().map(|t| t.op.len()).max().unwrap_or(0);
    let mut text = String::new();
    if style.width >= 60 {
        let heading = format!(
            "{:>10} {:>6}  {:<op_width$}  {}",
            "MiB", "share", "op", "tensor"
        );
        text += &(style.paint(Ink::Faint, &heading) + "\n");
    }
    for tensor in shown {
        text += &row(peak, tensor, op_width, style);
    }
    let rest = peak.alive.iter().skip(most);
    let (n, bytes) = rest.fold((0, 0u64), |(n, sum), t| {
        (n + 1, sum.saturating_add(t.bytes))
    });
    if n > 0 {
        text += &format!("{:>10}         {n} more\n", mib(bytes, 2));
    }
    text
}

fn row(peak: &PeakReport, tensor: &AliveReport, op_width: usize, style: &Style) -> String {
    let share = tensor.bytes as f64 * 100.0 / peak.compute_bytes.max(1) as f64;
    let name = one_line(&tensor.name);
    let size = mib(tensor.bytes, 2);
    if style.width < 60 {
        return format!("{size:>9}  {}\n", cut(&name, style.width - 11));
    }
    let shape = shape(&tensor.shape);
    let line = format!(
        "{size:>10} {share:>5.1}%  {:<op_width$}  {name}  {} {shape}",
        tensor.op, tensor.r#type
    );
    cut(&line, style.width) + "\n"
}

/// Dimensions of one element at the end are left out.
fn shape(shape: &[i64; 4]) -> String {
    let n = shape
        .iter()
        .rposition(|&n| n != 1)
        .map_or(1, |last| last + 1);
    let sizes: Vec<String> = shape.iter().take(n).map(i64::to_string).collect();
    sizes.join("x")
}
