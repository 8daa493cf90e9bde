//! How options and sizes are put into words.

use crate::Rejected;
use crate::fit::{HostExperts, Problem, Scored};

/// `CUDA0, CUDA2`.
pub(crate) fn names(devices: &[usize]) -> String {
    let names: Vec<String> = devices.iter().map(|d| format!("CUDA{d}")).collect();
    names.join(", ")
}

/// `1.25 GiB` or `12.5 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    const MIB: f64 = 1_048_576.0;
    let mib = bytes as f64 / MIB;
    if mib >= 1024.0 {
        format!("{:.2} GiB", mib / 1024.0)
    } else {
        format!("{mib:.1} MiB")
    }
}

/// `1 layer`, `2 layers`.
pub(crate) fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// What a scored candidate is.
pub(crate) fn option(problem: &Problem, scored: &Scored) -> String {
    let n = problem.n_placements();
    let on_gpus = scored.n_layers();
    let used = scored.candidate.used();
    let layers = if on_gpus == n {
        format!("all {}", count(n, "layer"))
    } else {
        format!("{on_gpus} of {}", count(n, "layer"))
    };
    let place = match used.as_slice() {
        [] => "the host".to_string(),
        [one] => format!("CUDA{one} alone"),
        _ => names(&used),
    };
    let experts = match scored.candidate.host_experts {
        HostExperts::None => String::new(),
        HostExperts::First(1) => ", experts of the first layer on the host".to_string(),
        HostExperts::First(n) => format!(", experts of the first {n} layers on the host"),
        HostExperts::All => ", all experts on the host".to_string(),
    };
    let copies = if scored.candidate.no_copies {
        ", without pipeline copies"
    } else {
        ""
    };
    format!("{layers} on {place}{experts}{copies}")
}

/// A scored candidate that was not taken. Where it would have fitted, `reason` says why not.
pub(crate) fn rejected(problem: &Problem, scored: &Scored, reason: Option<String>) -> Rejected {
    Rejected::new(option(problem, scored), scored.shortfalls.clone(), reason)
}
