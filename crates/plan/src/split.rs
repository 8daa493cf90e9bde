//! The best split of one list of GPUs: asks [`Known`] for the best split that could fit, has it
//! estimated, learns, and asks again.
//!
//! Every round either ends the search or rules a split out, since what was seen for exactly that
//! split is held against it from then on. When a split fits, none with more layers could, by all
//! that was seen. What was seen for *similar* splits may be too much for another: so before a result
//! stands, one layer more is tried on each GPU in turn, then the next splits with less and less
//! trust ([`Trust`]).

use crate::fit::{Candidate, HostExperts, Problem, Scored};
use crate::relax::{Known, Trust, Wanted};
use crate::sheet::Sheet;
use vramfit_estimate::Error;

/// Most estimates for one list of GPUs.
const MOST_ESTIMATES: usize = 60;
/// Most estimates for a change of settings.
const MOST_TRIES: usize = 4;
/// Most estimates that only confirm a result.
const MOST_CONFIRMATIONS: usize = 20;

/// What a search ended with.
#[derive(Default)]
pub(crate) struct Outcome {
    /// The best that fits.
    pub fit: Option<Scored>,
    /// Of those that do not, the one that misses the least, over those with the most layers.
    pub nearest: Option<Scored>,
}

impl Outcome {
    fn keep_nearest(&mut self, scored: Scored) {
        let rank = |s: &Scored| (std::cmp::Reverse(s.n_layers()), s.missing_bytes());
        if self
            .nearest
            .as_ref()
            .is_none_or(|n| rank(&scored) < rank(n))
        {
            self.nearest = Some(scored);
        }
    }
}

/// A model, its additive bytes and what was seen of its compute buffers.
pub(crate) struct Splitter<'a> {
    pub problem: &'a Problem<'a>,
    pub sheet: Sheet,
    known: Known,
}

impl<'a> Splitter<'a> {
    pub fn new(problem: &'a Problem<'a>) -> Result<Splitter<'a>, Error> {
        Ok(Splitter {
            problem,
            sheet: Sheet::new(problem)?,
            known: Known::default(),
        })
    }

    /// Learns from an estimate made elsewhere.
    pub fn learn(&mut self, scored: &Scored) {
        self.known.learn(self.problem, &self.sheet, scored);
    }

    /// Whether some split fits: a few estimates, no confirmation.
    pub fn has_split(&mut self, listed: &[usize], wanted: Wanted) -> Result<bool, Error> {
        for _ in 0..MOST_TRIES {
            let Some(counts) = self.proposal(listed, wanted, Trust::Near) else {
                return Ok(false);
            };
            if self.score(self.candidate(listed, &counts, wanted))?.fits() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Scores a candidate and learns from it.
    pub fn score(&mut self, candidate: Candidate) -> Result<Scored, Error> {
        let scored = self.problem.score(candidate)?;
        self.known.learn(self.problem, &self.sheet, &scored);
        Ok(scored)
    }

    fn candidate(&self, listed: &[usize], counts: &[usize], wanted: Wanted) -> Candidate {
        let total: usize = counts.iter().sum();
        let pinned = self.problem.policy.pinned.n_gpu_layers;
        let several = listed.len() > 1;
        Candidate {
            n_gpu_layers: Some(pinned.unwrap_or(total as u32)),
            split: if several {
                counts.iter().map(|&c| c as f32).collect()
            } else {
                Vec::new()
            },
            host_experts: wanted.host_experts,
            no_copies: wanted.no_copies,
            ..self.problem.on(listed)
        }
    }

    /// The split with the most layers that could fit.
    pub fn proposal(&self, listed: &[usize], wanted: Wanted, trust: Trust) -> Option<Vec<usize>> {
        self.known
            .best_split(self.problem, &self.sheet, listed, wanted, trust)
    }

    /// The split with the most layers that fits.
    pub fn find(&mut self, listed: &[usize], wanted: Wanted) -> Result<Outcome, Error> {
        let mut outcome = Outcome::default();
        let mut range = wanted;
        for _ in 0..MOST_ESTIMATES {
            let Some(counts) = self.proposal(listed, range, Trust::Near) else {
                break;
            };
            let scored = self.score(self.candidate(listed, &counts, wanted))?;
            if scored.fits() {
                outcome.fit = Some(scored);
                break;
            }
            outcome.keep_nearest(scored);
        }
        let mut confirmations = MOST_CONFIRMATIONS;
        while confirmations > 0 {
            let more = outcome
                .fit
                .as_ref()
                .map_or(wanted.layers.0, |f| f.n_layers() + 1);
            if more > wanted.layers.1 {
                break;
            }
            range.layers.0 = more.max(wanted.layers.0);
            let Some(scored) = self.confirm(listed, range, &outcome, &mut confirmations)? else {
                break;
            };
            if scored.fits() {
                outcome.fit = Some(scored);
            } else {
                outcome.keep_nearest(scored);
            }
        }
        if outcome.fit.is_none() && outcome.nearest.is_none() {
            let range = Wanted {
                any: true,
                ..wanted
            };
            if let Some(counts) = self.proposal(listed, range, Trust::Near) {
                let scored = self.score(self.candidate(listed, &counts, wanted))?;
                outcome.keep_nearest(scored);
            }
        }
        Ok(outcome)
    }

    /// Tries one more split that trust alone ruled out.
    fn confirm(
        &mut self,
        listed: &[usize],
        range: Wanted,
        outcome: &Outcome,
        left: &mut usize,
    ) -> Result<Option<Scored>, Error> {
        if let Some(fit) = &outcome.fit
            && *left == MOST_CONFIRMATIONS
            && range.layers.0 <= range.layers.1
        {
            let counts: Vec<usize> = (0..listed.len())
                .map(|i| fit.breakdown.layers_on(i).len())
                .collect();
            for i in 0..listed.len() {
                let mut more = counts.clone();
                more[i] += 1;
                if !self.could_fit(listed, &more, range.host_experts) {
                    continue;
                }
                let scored = self.score(self.candidate(listed, &more, range))?;
                if scored.fits() {
                    return Ok(Some(scored));
                }
            }
        }
        *left -= 1;
        let least = self.proposal(listed, range, Trust::Least);
        match least.or_else(|| self.proposal(listed, range, Trust::Doubt)) {
            Some(counts) => self.score(self.candidate(listed, &counts, range)).map(Some),
            None => Ok(None),
        }
    }

    /// Whether weights and cache alone fit.
    fn could_fit(&self, listed: &[usize], counts: &[usize], experts: HostExperts) -> bool {
        let sums = self.sheet.sums(experts);
        let total: usize = counts.iter().sum();
        let Some(mut from) = self.sheet.n_placements().checked_sub(total) else {
            return false;
        };
        listed.iter().zip(counts).all(|(&device, &count)| {
            let Some(d) = self.problem.devices.get(device) else {
                return false;
            };
            let bytes = sums.bytes(from, from + count);
            from += count;
            let own = d.overhead.bytes.saturating_add(self.sheet.fixed(device));
            let own = own.saturating_add(self.problem.projector_bytes(listed, device));
            bytes.saturating_add(own) <= d.free_bytes
        })
    }

    /// Whether the weights and the cache of `candidate` fit.
    pub fn weights_fit(&self, candidate: &Candidate) -> Result<bool, Error> {
        let layout = self.problem.layout(candidate)?;
        let buffers = layout.layer_buffers(self.problem.model.hparams.n_layer_all);
        let used = candidate.used();
        let counts: Vec<usize> = (0..used.len())
            .map(|i| {
                buffers
                    .iter()
                    .filter(|b| b.device_index() == Some(i))
                    .count()
            })
            .collect();
        Ok(self.could_fit(&used, &counts, candidate.host_experts))
    }

    /// All layers with the experts of as few layers as possible on the host.
    /// `below`: only with fewer layers than that.
    pub fn find_experts(
        &mut self,
        listed: &[usize],
        wanted: Wanted,
        below: Option<usize>,
    ) -> Result<Outcome, Error> {
        let mut outcome = Outcome::default();
        let mut trust = Trust::Near;
        let mut left = MOST_ESTIMATES;
        let mut confirmations = MOST_CONFIRMATIONS;
        // The fewest layers that are known to be enough.
        let mut enough = below.unwrap_or(self.sheet.n_expert_layers() + 1);
        while left > 0 && confirmations > 0 {
            let Some((n, counts)) =
                self.fewest_experts(listed, wanted, enough.saturating_sub(1), trust)
            else {
                trust = match trust {
                    Trust::Near => Trust::Least,
                    Trust::Least => Trust::Doubt,
                    Trust::Doubt => break,
                };
                continue;
            };
            let host_experts = HostExperts::First(n);
            let wanted = Wanted {
                host_experts,
                ..wanted
            };
            let scored = self.score(self.candidate(listed, &counts, wanted))?;
            left -= 1;
            confirmations -= usize::from(trust != Trust::Near);
            if scored.fits() {
                enough = n;
                outcome.fit = Some(scored);
            } else {
                outcome.keep_nearest(scored);
            }
        }
        Ok(outcome)
    }

    /// The least number of layers, at most `most`, whose experts have to be on the host.
    fn fewest_experts(
        &self,
        listed: &[usize],
        wanted: Wanted,
        most: usize,
        trust: Trust,
    ) -> Option<(usize, Vec<usize>)> {
        let split = |n: usize| {
            let wanted = Wanted {
                host_experts: HostExperts::First(n),
                ..wanted
            };
            self.proposal(listed, wanted, trust)
        };
        // Additive bytes only fall with n; compute buffers may rise, so the ends are searched by steps.
        let (mut low, mut high) = (1, most);
        let mut best = None;
        while low <= high {
            let n = low.midpoint(high);
            match split(n) {
                Some(counts) => {
                    best = Some((n, counts));
                    high = n - 1;
                }
                None => low = n + 1,
            }
        }
        best
    }
}

impl Problem<'_> {
    /// Whether the user's own flags make overrides.
    pub fn pins_overrides(&self) -> bool {
        let pinned = &self.policy.pinned;
        !pinned.overrides.is_empty() || pinned.cpu_moe || pinned.n_cpu_moe.is_some_and(|n| n > 0)
    }
}
