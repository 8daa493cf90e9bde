//! What llama.cpp does by itself with the flags that the user gave.

use crate::answer::{placement, refused};
use crate::fit::{Candidate, Problem, Scored};
use crate::{Placement, SplitMode, fixes, words};
use vramfit_estimate::Error;

/// The candidate that the pinned flags make, everything else as llama.cpp defaults it with
/// `--fit off`: all layers, split by free memory. `Err` says why there is none.
pub(crate) fn candidate(problem: &Problem) -> Result<Candidate, String> {
    let pinned = &problem.policy.pinned;
    let listed = pool(problem)?;
    let main = match pinned.split_mode {
        Some(SplitMode::None) if !listed.is_empty() => {
            Some(main_gpu(problem, &listed)?.unwrap_or(0))
        }
        _ => None,
    };
    let mut candidate = Candidate {
        listed,
        main,
        n_gpu_layers: pinned.n_gpu_layers,
        ..Candidate::default()
    };
    candidate.split = match pinned.shares() {
        Some(shares) => shares.to_vec(),
        None => free_shares(problem, &candidate.used()),
    };
    Ok(candidate)
}

/// The GPUs that may be used: those of `-dev`, else all.
pub(crate) fn pool(problem: &Problem) -> Result<Vec<usize>, String> {
    let n = problem.devices.len();
    let Some(listed) = &problem.policy.pinned.devices else {
        return Ok((0..n).collect());
    };
    for (i, &d) in listed.iter().enumerate() {
        if d >= n {
            return Err(format!(
                "-dev names CUDA{d}, but the GPUs given are 0 to {}",
                n as i64 - 1
            ));
        }
        if listed[..i].contains(&d) {
            return Err(format!("-dev names CUDA{d} twice"));
        }
    }
    Ok(listed.clone())
}

/// `-mg`, if given: a place in `listed`.
pub(crate) fn main_gpu(problem: &Problem, listed: &[usize]) -> Result<Option<usize>, String> {
    match problem.policy.pinned.main_gpu {
        Some(main) if main >= listed.len() => Err(format!(
            "-mg {main} is not among the {}",
            words::count(listed.len(), "GPU")
        )),
        main => Ok(main),
    }
}

/// The default split: by free memory, as given.
fn free_shares(problem: &Problem, used: &[usize]) -> Vec<f32> {
    let devices = used.iter().filter_map(|&d| problem.devices.get(d));
    devices.map(|d| d.free_bytes as f32).collect()
}

/// Scores a layout that leaves nothing to search. llama.cpp gives up its pipeline copies where the
/// compute buffers do not fit with them.
pub(crate) fn score_fixed(problem: &Problem, candidate: Candidate) -> Result<Scored, Error> {
    let scored = problem.score(candidate)?;
    if scored.fits() || !problem.pipelines(&scored) {
        return Ok(scored);
    }
    let without = Candidate {
        no_copies: true,
        ..scored.candidate.clone()
    };
    let without = problem.score(without)?;
    Ok(if without.fits() { without } else { scored })
}

/// Engine mode.
pub(crate) fn plan(problem: &Problem) -> Result<Placement, Error> {
    let candidate = match candidate(problem) {
        Ok(candidate) => candidate,
        Err(why) => return refused(problem, "the flags as given".to_string(), why),
    };
    let scored = score_fixed(problem, candidate)?;
    let retried = scored.candidate.no_copies;
    let fits = scored.fits();
    let mut rejected = words::rejected(problem, &scored, None);
    if !fits {
        rejected.fixes = fixes::of_fixed(problem, &scored.candidate)?;
    }
    let mut placement = placement(problem, scored)?;
    if !fits {
        placement.rejected.push(rejected);
    }
    if retried {
        placement.notes.push(
            "llama.cpp tries pipeline copies first, logs a failed allocation and goes on without; \
             the flags here do not try"
                .to_string(),
        );
    }
    Ok(placement)
}
