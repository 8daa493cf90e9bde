//! The scheduler: which GPUs are tried, in which order, with how many requests at once.

use crate::estimate::{Estimate, Rules, Settings, Version, estimate};
use crate::{Facts, Gpu, Library};

/// How many requests at once are tried where nothing is asked for, the first that fits.
pub fn automatic_parallel(version: Version) -> &'static [u64] {
    match version {
        Version::Upstream => &[4, 1],
        Version::K80Fork => &[1],
    }
}

/// GPUs that were tried together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attempt {
    /// Indices into the list of GPUs, in the order of `estimate`'s shares.
    pub gpus: Vec<usize>,
    /// What they were found to take.
    pub estimate: Estimate,
}

/// How it ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// All that was asked for is on GPUs.
    Full,
    /// Some layers are.
    Partial,
    /// None is.
    Host,
}

/// What the scheduler does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decision {
    /// How it ends.
    pub outcome: Outcome,
    /// The GPUs it takes and what goes there; none with no GPU.
    pub taken: Attempt,
    /// What was tried before and did not fit, in order.
    pub rejected: Vec<Attempt>,
}

/// Places the first model of a server on `gpus`, the driver's order. `parallel` is what
/// `OLLAMA_NUM_PARALLEL` says, `spread` what `OLLAMA_SCHED_SPREAD` does. More layers than the model has
/// (`num_gpu` 999) are never a full fit: all GPUs are taken then, one request at a time.
pub fn schedule(
    model: &Facts,
    gpus: &[Gpu],
    settings: &Settings,
    parallel: Option<u64>,
    spread: bool,
    rules: &Rules,
) -> Decision {
    // Such models are given one request at a time, whatever is asked for.
    let parallel = match model.is_pooled || model.architecture == "mllama" {
        true => Some(1),
        false => parallel,
    };
    let requests = parallel.map_or(automatic_parallel(rules.version).to_vec(), |n| vec![n]);
    let attempt = |indices: &[usize], parallel: u64| {
        let settings = Settings {
            parallel,
            ..*settings
        };
        let gpus: Vec<Gpu> = (indices.iter())
            .filter_map(|&i| gpus.get(i).copied())
            .collect();
        Attempt {
            gpus: indices.to_vec(),
            estimate: estimate(model, &gpus, &settings, rules),
        }
    };
    let on_host = || {
        // No GPU's room is asked for, so the first number is taken.
        let parallel = requests.first().copied().unwrap_or(1);
        Decision {
            outcome: Outcome::Host,
            taken: attempt(&[], parallel),
            rejected: Vec::new(),
        }
    };
    if gpus.is_empty() || settings.num_gpu == Some(0) {
        return on_host();
    }
    let groups = by_library(gpus);
    let mut rejected = Vec::new();
    for group in &groups {
        for (set, parallel) in sets(group, &requests, spread, rules.version) {
            let attempt = attempt(&set, parallel);
            if attempt.estimate.fits() {
                return Decision {
                    outcome: Outcome::Full,
                    taken: attempt,
                    rejected,
                };
            }
            rejected.push(attempt);
        }
    }
    // Nothing fits whole: the kind of which GPUs take most, in the driver's order, one request at a time.
    let parallel = parallel.unwrap_or(1);
    let whole = groups.iter().map(|group| {
        let mut group = group.clone();
        group.sort_unstable();
        attempt(&group, parallel)
    });
    let taken = |attempt: &Attempt| match attempt.estimate.layers_offload {
        0 => 0,
        _ => attempt.estimate.required_partial,
    };
    // Of equals the first, as a search for something larger finds it.
    let Some(taken) = whole.rev().max_by_key(taken) else {
        return on_host();
    };
    let estimate = &taken.estimate;
    Decision {
        outcome: match estimate.layers_offload {
            0 => Outcome::Host,
            n if n >= estimate.layers_model => Outcome::Full,
            _ => Outcome::Partial,
        },
        taken,
        rejected,
    }
}

/// What is tried of a group, in order. April 2025: each GPU alone, with all numbers of requests, then
/// all of them together. Later, and so in the fork: ever more of them.
fn sets(
    group: &[usize],
    requests: &[u64],
    spread: bool,
    version: Version,
) -> Vec<(Vec<usize>, u64)> {
    let singles = || group.iter().map(|&gpu| vec![gpu]).collect::<Vec<_>>();
    let prefixes = || (1..=group.len()).filter_map(|n| Some(group.get(..n)?.to_vec()));
    let stages: Vec<Vec<Vec<usize>>> = match (spread, version) {
        (true, _) => vec![vec![group.to_vec()]],
        (false, Version::Upstream) => vec![singles(), vec![group.to_vec()]],
        (false, Version::K80Fork) => prefixes().map(|set| vec![set]).collect(),
    };
    let mut sets = Vec::new();
    for stage in stages {
        for &n in requests {
            for set in &stage {
                // One GPU alone is all of them together.
                let set = (set.clone(), n);
                if !sets.contains(&set) {
                    sets.push(set);
                }
            }
        }
    }
    sets
}

/// Groups of one kind, the most free GPU first.
fn by_library(gpus: &[Gpu]) -> Vec<Vec<usize>> {
    let mut groups: Vec<(Library, Vec<usize>)> = Vec::new();
    for (index, gpu) in gpus.iter().enumerate() {
        match groups
            .iter_mut()
            .find(|(library, _)| *library == gpu.library)
        {
            Some((_, group)) => group.push(index),
            None => groups.push((gpu.library, vec![index])),
        }
    }
    let free = |&index: &usize| gpus.get(index).map_or(0, |gpu| gpu.free_bytes);
    let sorted = groups.into_iter().map(|(_, mut group)| {
        group.sort_by_key(|index| std::cmp::Reverse(free(index)));
        group
    });
    sorted.collect()
}
