//! The options in the order that people want them: one GPU, the fewest GPUs, experts on the host,
//! as many layers as fit, the host.

use crate::answer::{placement, refused};
use crate::engine;
use crate::fit::{Candidate, HostExperts, Problem, Scored, layout_device};
use crate::fixes::{self, OnGpus};
use crate::relax::{Trust, Wanted};
use crate::sheet::required_devices;
use crate::split::{Outcome, Splitter};
use crate::subsets;
use crate::words;
use crate::{Placement, Prefer, Rejected, SplitMode};
use vramfit_estimate::{Error, Refusal};

/// Finds the best placement that obeys what is pinned.
pub(crate) fn plan(problem: &Problem) -> Result<Placement, Error> {
    let flags = || "the flags as given".to_string();
    let pool = match engine::pool(problem) {
        Ok(pool) => pool,
        Err(why) => return refused(problem, flags(), why),
    };
    if pool.is_empty() {
        return placement(problem, problem.score_host()?);
    }
    let must = required_devices(problem);
    if let Some(d) = must.iter().find(|d| !pool.contains(d)) {
        let device = format!("CUDA{d}");
        return Err(Refusal::OverrideDevice { device }.into());
    }
    let is_single = problem.policy.pinned.split_mode == Some(SplitMode::None);
    let main = match engine::main_gpu(problem, &pool) {
        Err(why) if is_single => return refused(problem, flags(), why),
        main => main.ok().flatten(),
    };
    let search = Search {
        problem,
        splitter: Splitter::new(problem)?,
        singles: singles(problem, &pool, main, &must),
        pool,
        must,
        rejected: Vec::new(),
        nearest: None,
    };
    search.run()
}

/// GPUs that may be used alone, the preferred first.
fn singles(problem: &Problem, pool: &[usize], main: Option<usize>, must: &[usize]) -> Vec<usize> {
    let pinned = &problem.policy.pinned;
    let several = pinned.devices.as_ref().is_some_and(|d| d.len() > 1);
    let all = pinned.split_mode == Some(SplitMode::Layer) && several;
    let allowed = |d: &usize| {
        let is_main = main.is_none_or(|m| pool.get(m) == Some(d));
        !all && is_main && must.iter().all(|x| x == d)
    };
    let order = subsets::by_preference(problem, pool);
    order.into_iter().filter(allowed).collect()
}

struct Search<'a> {
    problem: &'a Problem<'a>,
    splitter: Splitter<'a>,
    /// GPUs that may be used.
    pool: Vec<usize>,
    /// Those that may be used alone, the preferred first.
    singles: Vec<usize>,
    /// Those that have to be.
    must: Vec<usize>,
    rejected: Vec<Rejected>,
    /// Of the options that fall short, the one that misses the least.
    nearest: Option<Scored>,
}

impl Search<'_> {
    fn run(mut self) -> Result<Placement, Error> {
        let pinned = &self.problem.policy.pinned;
        let found = if pinned.shares().is_some() {
            self.pinned_split()?
        } else {
            self.by_wish()?
        };
        let scored = match found {
            Some(scored) => scored,
            None if pinned.n_gpu_layers.is_none() => self.host_only()?,
            None => match self.nearest.take() {
                Some(scored) => scored,
                None => self.problem.score(engine_candidate(self.problem))?,
            },
        };
        let mut placement = placement(self.problem, scored)?;
        placement.rejected = self.rejected;
        Ok(placement)
    }

    fn by_wish(&mut self) -> Result<Option<Scored>, Error> {
        if let Some(one) = self.one_gpu()? {
            return Ok(Some(one));
        }
        if let Some(several) = self.fewest_gpus()? {
            return Ok(Some(several));
        }
        if self.problem.policy.pinned.n_gpu_layers.is_some() {
            return Ok(None);
        }
        if let Some(scored) = self.experts_on_host()? {
            return Ok(Some(scored));
        }
        self.most_layers()
    }

    /// Layers that are to be on GPUs.
    fn wanted_layers(&self) -> usize {
        let n = self.problem.n_placements();
        let pinned = self.problem.policy.pinned.n_gpu_layers;
        pinned.map_or(n, |ngl| n.min(ngl as usize))
    }

    fn all_layers(&self, k: usize) -> Wanted {
        let n = self.wanted_layers();
        let is_pinned = self.problem.policy.pinned.devices.is_some();
        Wanted {
            layers: (n, n),
            allow_empty: is_pinned || k > n,
            host_experts: HostExperts::None,
            no_copies: false,
            any: false,
        }
    }

    /// Notes an option that falls short; the first of its kind with what would help.
    fn reject(&mut self, scored: Scored, fixes_for: Option<OnGpus>) -> Result<(), Error> {
        let mut rejected = words::rejected(self.problem, &scored, None);
        if let Some(option) = fixes_for {
            rejected.fixes = fixes::find(self.problem, &option, &scored)?;
        }
        self.rejected.push(rejected);
        let missing = |s: &Scored| s.missing_bytes();
        if self
            .nearest
            .as_ref()
            .is_none_or(|n| missing(&scored) < missing(n))
        {
            self.nearest = Some(scored);
        }
        Ok(())
    }

    /// The preferred GPU that holds everything.
    fn one_gpu(&mut self) -> Result<Option<Scored>, Error> {
        let mut fitting: Vec<Scored> = Vec::new();
        let mut short: Vec<Scored> = Vec::new();
        let pinned_ngl = self.problem.policy.pinned.n_gpu_layers;
        for device in self.singles.clone() {
            let mut candidate = self.problem.on(&[device]);
            let n = self.problem.n_placements() as u32;
            candidate.n_gpu_layers = Some(pinned_ngl.unwrap_or(n));
            let kind = |d: usize| self.problem.devices.get(d).map(layout_device);
            let alike = |s: &&Scored| {
                s.candidate
                    .used()
                    .first()
                    .is_some_and(|&d| kind(d) == kind(device))
            };
            let known = fitting.iter().chain(&short).find(alike);
            let scored = match known {
                Some(s) => self
                    .problem
                    .judge(candidate, s.layout.clone(), s.breakdown.clone())?,
                None => self.splitter.score(candidate)?,
            };
            let list = if scored.fits() {
                &mut fitting
            } else {
                &mut short
            };
            list.push(scored);
            if !fitting.is_empty() && self.problem.policy.prefer != Prefer::Tightest {
                break;
            }
        }
        if self.problem.policy.prefer == Prefer::Tightest {
            fitting.sort_by_key(|s| s.headroom_bytes(self.problem));
            short.reverse();
        }
        let chosen = fitting.into_iter().next();
        self.reject_singles(short, chosen.is_some())?;
        Ok(chosen)
    }

    /// One of each sort is enough; what would help is said for the first.
    fn reject_singles(&mut self, short: Vec<Scored>, chosen: bool) -> Result<(), Error> {
        let mut seen: Vec<(u64, u64)> = Vec::new();
        for scored in short {
            let Some(s) = scored.shortfalls.first() else {
                continue;
            };
            let key = (s.required_bytes, s.free_bytes);
            if seen.contains(&key) {
                continue;
            }
            let first = seen.is_empty() && !chosen;
            seen.push(key);
            let option = first.then_some(OnGpus::Fixed);
            self.reject(scored, option)?;
        }
        Ok(())
    }

    /// The fewest GPUs that hold everything between them; with pipeline copies if they fit.
    fn fewest_gpus(&mut self) -> Result<Option<Scored>, Error> {
        let pinned = &self.problem.policy.pinned;
        let n = self.pool.len();
        if pinned.split_mode == Some(SplitMode::None) || n < 2 {
            return Ok(None);
        }
        let order = subsets::by_preference(self.problem, &self.pool);
        let needed = self.needed_bytes();
        let mut nearest = None;
        let sizes = if pinned.devices.is_some() {
            n..=n
        } else {
            2..=n
        };
        for k in sizes {
            let mut sets = subsets::of_size(self.problem, &order, k, &self.must, needed);
            if pinned.devices.is_some() {
                sets = vec![self.pool.clone()]; // in the user's order
            }
            if k == n && sets.is_empty() {
                sets = vec![self.pool.clone()]; // to say by how much
            }
            for no_copies in [false, true] {
                if no_copies && !self.can_drop_copies() {
                    continue;
                }
                for set in &sets {
                    let wanted = Wanted {
                        no_copies,
                        ..self.all_layers(k)
                    };
                    let outcome = self.splitter.find(set, wanted)?;
                    if outcome.fit.is_some() {
                        if let Some((scored, option)) = nearest {
                            self.reject(scored, Some(option))?;
                        }
                        return Ok(outcome.fit);
                    }
                    keep_nearest(&mut nearest, outcome, set, wanted);
                }
            }
        }
        if let Some((scored, option)) = nearest {
            self.reject(scored, Some(option))?;
        }
        Ok(None)
    }

    /// Weights and cache of the wanted layers.
    fn needed_bytes(&self) -> u64 {
        let n = self.problem.n_placements();
        let sums = self.splitter.sheet.sums(HostExperts::None);
        sums.bytes(n - self.wanted_layers(), n)
    }

    /// Whether llama.cpp would pipeline, and an override would stop it.
    fn can_drop_copies(&self) -> bool {
        let full = self.wanted_layers() == self.problem.n_placements();
        full && self.problem.run.offload_kqv
            && !self.problem.pins_overrides()
            && !self
                .problem
                .model
                .tensors
                .iter()
                .any(|t| t.name.contains(crate::fit::NO_COPIES))
    }

    /// Lists of GPUs over which a part of the model may be split: all, and all but the first so
    /// many, since the first one has work for the host's layers to do beside its own.
    fn lists(&self) -> Vec<Vec<usize>> {
        let pinned = &self.problem.policy.pinned;
        if pinned.split_mode == Some(SplitMode::None) {
            return self.singles.iter().map(|&d| vec![d]).collect();
        }
        if pinned.devices.is_some() {
            let alone = self.singles.iter().map(|&d| vec![d]);
            return [self.pool.clone()].into_iter().chain(alone).collect();
        }
        let has_room = |&d: &usize| {
            let needed = self.splitter.sheet.fixed(d);
            let device = self.problem.devices.get(d);
            device.is_some_and(|x| x.free_bytes > x.overhead.bytes.saturating_add(needed))
        };
        let usable: Vec<usize> = self.pool.iter().copied().filter(has_room).collect();
        let suffixes = (0..usable.len()).map(|i| usable[i..].to_vec());
        suffixes
            .filter(|list| self.must.iter().all(|d| list.contains(d)))
            .collect()
    }

    /// All layers on GPUs, the experts of as few layers as possible on the host.
    fn experts_on_host(&mut self) -> Result<Option<Scored>, Error> {
        let pinned = &self.problem.policy.pinned;
        let is_pinned = pinned.cpu_moe || pinned.n_cpu_moe.is_some();
        if is_pinned || !self.splitter.sheet.has_experts() {
            return Ok(None);
        }
        let mut best: Option<Scored> = None;
        let mut nearest = None;
        for list in self.lists() {
            let wanted = Wanted {
                allow_empty: true,
                ..self.all_layers(list.len())
            };
            let most = best.as_ref().map(host_expert_layers);
            let mut outcome = self.splitter.find_experts(&list, wanted, most)?;
            if let Some(fit) = outcome.fit.take() {
                best = Some(self.without_empty(fit, wanted)?);
            }
            if nearest.is_none() {
                nearest = outcome.nearest;
            }
        }
        if let (None, Some(scored)) = (&best, nearest) {
            self.reject(scored, None)?;
        }
        Ok(best)
    }

    /// As many layers as fit; for experts, with and without them on the host.
    fn most_layers(&mut self) -> Result<Option<Scored>, Error> {
        let has_experts = self.splitter.sheet.has_experts();
        let mut choices = vec![HostExperts::None];
        if has_experts && !self.problem.pins_overrides() {
            choices.push(HostExperts::All);
        }
        let n = self.problem.n_placements();
        let mut best: Option<Scored> = None;
        for host_experts in choices {
            for list in self.lists() {
                let least = best.as_ref().map_or(1, |b| b.n_layers() + 1);
                let wanted = Wanted {
                    layers: (least, n - 1),
                    allow_empty: true,
                    host_experts,
                    no_copies: false,
                    any: false,
                };
                if least > n - 1 || self.splitter.proposal(&list, wanted, Trust::Near).is_none() {
                    continue;
                }
                if let Some(fit) = self.splitter.find(&list, wanted)?.fit {
                    best = Some(self.without_empty(fit, wanted)?);
                }
            }
        }
        Ok(best)
    }

    /// The same without the GPUs that hold nothing, where that fits too.
    fn without_empty(&mut self, fit: Scored, wanted: Wanted) -> Result<Scored, Error> {
        let used = fit.candidate.used();
        let is_needed = |&(i, d): &(usize, &usize)| {
            !fit.breakdown.layers_on(i).is_empty() || self.must.contains(d)
        };
        let kept: Vec<usize> = used
            .iter()
            .enumerate()
            .filter(is_needed)
            .map(|(_, &d)| d)
            .collect();
        let is_pinned = self.problem.policy.pinned.devices.is_some();
        if kept.len() == used.len() || kept.is_empty() || (is_pinned && kept.len() > 1) {
            return Ok(fit);
        }
        let wanted = Wanted {
            layers: (fit.n_layers(), wanted.layers.1),
            host_experts: fit.candidate.host_experts,
            ..wanted
        };
        Ok(self.splitter.find(&kept, wanted)?.fit.unwrap_or(fit))
    }

    /// `-ts` is given: only the number of layers is left to choose.
    fn pinned_split(&mut self) -> Result<Option<Scored>, Error> {
        let candidate = engine_candidate(self.problem);
        let scored = engine::score_fixed(self.problem, candidate.clone())?;
        if scored.fits() {
            return Ok(Some(scored));
        }
        let is_pinned = self.problem.policy.pinned.n_gpu_layers.is_some();
        self.reject(scored, Some(OnGpus::Fixed))?;
        if is_pinned {
            return Ok(None);
        }
        for n in (1..self.problem.n_placements()).rev() {
            let candidate = Candidate {
                n_gpu_layers: Some(n as u32),
                ..candidate.clone()
            };
            if !self.splitter.weights_fit(&candidate)? {
                continue;
            }
            let scored = self.splitter.score(candidate)?;
            if scored.fits() {
                return Ok(Some(scored));
            }
        }
        Ok(None)
    }

    /// No layer on a GPU: the first GPU still helps with large batches, if its buffers fit.
    fn host_only(&mut self) -> Result<Scored, Error> {
        let mut last = None;
        for device in self.singles.clone() {
            let candidate = Candidate {
                n_gpu_layers: Some(0),
                ..self.problem.on(&[device])
            };
            let scored = self.problem.score(candidate)?;
            if scored.fits() && self.problem.run.op_offload {
                return Ok(scored);
            }
            last = Some(scored);
        }
        match last {
            Some(scored) if self.problem.policy.pinned.devices.is_some() => Ok(scored),
            _ => self.problem.score_host(),
        }
    }
}

fn engine_candidate(problem: &Problem) -> Candidate {
    engine::candidate(problem).unwrap_or_default()
}

fn host_expert_layers(scored: &Scored) -> usize {
    match scored.candidate.host_experts {
        HostExperts::First(n) => n,
        _ => 0,
    }
}

fn keep_nearest(
    nearest: &mut Option<(Scored, OnGpus)>,
    outcome: Outcome,
    set: &[usize],
    wanted: Wanted,
) {
    let Some(scored) = outcome.nearest else {
        return;
    };
    let is_nearer = nearest
        .as_ref()
        .is_none_or(|(n, _)| scored.missing_bytes() < n.missing_bytes());
    if is_nearer {
        *nearest = Some((scored, OnGpus::Split(set.to_vec(), wanted)));
    }
}
