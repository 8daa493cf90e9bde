//! `-sm tensor`: every GPU has a part of each layer, so that only their number is left to search for.

use crate::answer::{placement, refused};
use crate::fit::{Candidate, Problem, Scored};
use crate::{LayoutMode, Placement, engine, fixes, words};
use vramfit_estimate::Error;

/// All layers over all GPUs that may be used, or as many as have room; as given, where `-ngl` is or the layout is
/// the engine's.
pub(crate) fn plan(problem: &Problem) -> Result<Placement, Error> {
    let pinned = &problem.policy.pinned;
    let listed = match engine::pool(problem) {
        Ok(pool) => pool,
        Err(why) => return refused(problem, "the flags as given".to_string(), why),
    };
    let with = |n_gpu_layers| {
        problem.score(Candidate {
            listed: listed.clone(),
            n_gpu_layers,
            split: pinned.shares().map(<[f32]>::to_vec).unwrap_or_default(),
            ..Candidate::default()
        })
    };
    let first = with(pinned.n_gpu_layers)?;
    if first.fits() {
        return placement(problem, first);
    }
    let mut rejected = words::rejected(problem, &first, None);
    rejected.fixes = fixes::of_fixed(problem, &first.candidate)?;
    let is_given = pinned.n_gpu_layers.is_some() || problem.policy.mode == LayoutMode::Engine;
    let found = match is_given {
        true => first,
        false => most_layers(problem, &with)?,
    };
    let mut placement = placement(problem, found)?;
    placement.rejected.push(rejected);
    Ok(placement)
}

/// The most layers that fit, by halving; on the host alone, where none do.
fn most_layers(
    problem: &Problem,
    with: &dyn Fn(Option<u32>) -> Result<Scored, Error>,
) -> Result<Scored, Error> {
    let (mut low, mut high) = (0, problem.n_placements() as u32);
    let mut best = None;
    while high - low > 1 {
        let n = low + (high - low) / 2;
        let scored = with(Some(n))?;
        if scored.fits() {
            (low, best) = (n, Some(scored));
        } else {
            high = n;
        }
    }
    best.map_or_else(|| problem.score_host(), Ok)
}
