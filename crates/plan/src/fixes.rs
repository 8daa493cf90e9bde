//! Settings with which an option that falls short would have fitted: the nearest value of each,
//! proved by the exact estimate.

use crate::Fix;
use crate::engine::score_fixed;
use crate::fit::{Candidate, Problem, Scored};
use crate::relax::Wanted;
use crate::split::Splitter;
use vramfit_estimate::{Error, RunConfig};
use vramfit_ggml::Type;

/// An option that fell short.
#[derive(Clone, Debug)]
pub(crate) enum OnGpus {
    /// Just this candidate.
    Fixed,
    /// Any split over these GPUs.
    Split(Vec<usize>, Wanted),
}

/// What would help a fixed candidate.
pub(crate) fn of_fixed(problem: &Problem, candidate: &Candidate) -> Result<Vec<Fix>, Error> {
    let scored = problem.score(candidate.clone())?;
    find(problem, &OnGpus::Fixed, &scored)
}

/// What would help `option`, which takes what `scored` says.
pub(crate) fn find(problem: &Problem, option: &OnGpus, scored: &Scored) -> Result<Vec<Fix>, Error> {
    if is_hopeless(problem, option, scored) {
        return Ok(vec![fix(
            &[],
            "no setting helps: the weights alone are too large beside what CUDA itself takes"
                .to_string(),
        )]);
    }
    let search = Fixes {
        problem,
        option,
        scored,
    };
    let mut fixes = Vec::new();
    fixes.extend(search.context()?);
    fixes.extend(search.cache_type()?);
    fixes.extend(search.micro_batch()?);
    fixes.extend(search.sequences()?);
    if fixes.is_empty() {
        fixes.extend(search.everything()?);
    }
    if fixes.is_empty() {
        let text = "no smaller context, KV type, micro-batch or number of sequences is enough";
        fixes.push(fix(&[], text.to_string()));
    }
    Ok(fixes)
}

/// Weights alone do not fit: no setting helps.
fn is_hopeless(problem: &Problem, option: &OnGpus, scored: &Scored) -> bool {
    let used = scored.candidate.used();
    let room = |d: &usize| {
        let device = problem.devices.get(*d);
        device.map_or(0, |d| d.free_bytes.saturating_sub(d.overhead.bytes))
    };
    let pairs = used.iter().zip(&scored.breakdown.devices);
    match option {
        OnGpus::Fixed => pairs.into_iter().any(|(d, m)| m.model > room(d)),
        OnGpus::Split(..) => {
            let needed: u64 = scored.breakdown.devices.iter().map(|m| m.model).sum();
            needed > used.iter().map(room).fold(0, u64::saturating_add)
        }
    }
}

struct Fixes<'a> {
    problem: &'a Problem<'a>,
    option: &'a OnGpus,
    scored: &'a Scored,
}

impl Fixes<'_> {
    /// Whether the option fits with `run`; not where llama.cpp refuses it, or what it takes is not known.
    fn fits(&self, run: &RunConfig) -> Result<bool, Error> {
        match self.fits_unless_refused(run) {
            Err(Error::Refused(_) | Error::NotModelled(_)) => Ok(false),
            fits => fits,
        }
    }

    fn fits_unless_refused(&self, run: &RunConfig) -> Result<bool, Error> {
        let problem = self.problem.with_run(run);
        // The same split first: often it does.
        let same = score_fixed(&problem, self.scored.candidate.clone())?;
        if same.fits() {
            return Ok(true);
        }
        match self.option {
            OnGpus::Fixed => Ok(false),
            OnGpus::Split(listed, wanted) => {
                let mut splitter = Splitter::new(&problem)?;
                splitter.learn(&same);
                splitter.has_split(listed, *wanted)
            }
        }
    }

    /// Whether it would with this change.
    fn fits_with(&self, change: impl FnOnce(&mut RunConfig)) -> Result<bool, Error> {
        let mut run = self.problem.run.clone();
        change(&mut run);
        self.fits(&run)
    }

    /// The largest of `values` (ascending) that fits, if the smallest does. `guess` is tried first.
    fn largest(
        &self,
        values: &[u32],
        guess: usize,
        change: impl Fn(&mut RunConfig, u32),
    ) -> Result<Option<u32>, Error> {
        let fits = |i: usize| self.fits_with(|run| change(run, values[i]));
        let (mut low, mut high) = (None, values.len());
        let mut next = guess.min(values.len().saturating_sub(1));
        while low.map_or(0, |l| l + 1) < high {
            if fits(next)? {
                low = Some(next);
                next += 1; // the guess is good: most often the next value does not fit
            } else {
                high = next;
                next = next.saturating_sub(1);
            }
            let first = low.map_or(0, |l| l + 1);
            if high - first.min(high) > 2 && low.is_some() {
                next = first.midpoint(high);
            } else if low.is_none() && high > 2 && next + 1 == high {
                next = high / 2;
            }
            next = next.clamp(first, high.saturating_sub(1).max(first));
        }
        Ok(low.map(|i| values[i]))
    }

    fn context(&self) -> Result<Option<Fix>, Error> {
        let asked = match self.problem.run.n_ctx {
            0 => u32::try_from(self.problem.model.hparams.n_ctx_train).unwrap_or(u32::MAX),
            n => n,
        };
        let values = context_sizes(asked);
        if values.is_empty() {
            return Ok(None);
        }
        let guess = self.context_guess(asked);
        let place = values
            .partition_point(|&v| u64::from(v) <= guess)
            .saturating_sub(1);
        let best = self.largest(&values, place, |run, n| run.n_ctx = n)?;
        Ok(best.map(|n| {
            fix(
                &["-c", &n.to_string()],
                format!("a context of {n} tokens instead of {asked}"),
            )
        }))
    }

    /// Where the cache shrinks with the context, it has to shrink by what is missing.
    fn context_guess(&self, asked: u32) -> u64 {
        let b = &self.scored.breakdown;
        let cache: u64 = b.devices.iter().map(|m| m.context).sum();
        let missing = self.scored.missing_bytes();
        let kept = cache.saturating_sub(missing) as f64 / cache.max(1) as f64;
        (f64::from(asked) * kept) as u64
    }

    fn cache_type(&self) -> Result<Option<Fix>, Error> {
        let run = self.problem.run;
        for ty in [Type::Q8_0, Type::Q4_0] {
            let smaller = |old: Type| bits(ty) < bits(old);
            for both in [true, false] {
                let k = if smaller(run.type_k) { ty } else { run.type_k };
                let v = if both && smaller(run.type_v) {
                    ty
                } else {
                    run.type_v
                };
                if (k, v) == (run.type_k, run.type_v) || (both && v == run.type_v) {
                    continue;
                }
                let fits = self.fits_with(|run| (run.type_k, run.type_v) = (k, v))?;
                if fits {
                    let mut flags = vec!["-ctk", k.name()];
                    if v != run.type_v {
                        flags.extend(["-ctv", v.name()]);
                    }
                    let text = format!("a KV cache of {} instead of {}", ty.name(), run.type_k);
                    return Ok(Some(fix(&flags, text)));
                }
            }
        }
        Ok(None)
    }

    fn micro_batch(&self) -> Result<Option<Fix>, Error> {
        let now = self.scored.breakdown.params.n_ubatch;
        for n in [1024, 512, 256, 128, 64] {
            if i64::from(n) < now && self.fits_with(|run| run.n_ubatch = n)? {
                let text = format!("a micro-batch of {n} tokens instead of {now}");
                return Ok(Some(fix(&["-ub", &n.to_string()], text)));
            }
        }
        Ok(None)
    }

    fn sequences(&self) -> Result<Option<Fix>, Error> {
        let now = self.problem.run.n_seq_max;
        let values: Vec<u32> = (1..now).collect();
        if values.is_empty() {
            return Ok(None);
        }
        let best = self.largest(&values, values.len() / 2, |run, n| run.n_seq_max = n)?;
        Ok(best.map(|n| {
            let text = format!(
                "{} instead of {now}",
                crate::words::count(n as usize, "sequence")
            );
            fix(&["-np", &n.to_string()], text)
        }))
    }

    /// No single setting helps: a smaller cache type and micro-batch, and the largest context then.
    fn everything(&self) -> Result<Option<Fix>, Error> {
        let small = |run: &mut RunConfig| {
            (run.type_k, run.type_v) = (Type::Q8_0, Type::Q8_0);
            run.n_ubatch = 128;
        };
        let asked = self.scored.breakdown.params.n_ctx as u32;
        let values = context_sizes(asked.saturating_add(1));
        let best = self.largest(&values, values.len() / 2, |run, n| {
            small(run);
            run.n_ctx = n;
        })?;
        Ok(best.map(|n| {
            let text = format!("q8_0 KV cache, micro-batch 128 and a context of {n} tokens");
            let n = n.to_string();
            fix(
                &["-ctk", "q8_0", "-ctv", "q8_0", "-ub", "128", "-c", &n],
                text,
            )
        }))
    }
}

fn fix(flags: &[&str], text: String) -> Fix {
    let flags = flags.iter().map(|&f| f.to_string()).collect();
    Fix { flags, text }
}

/// Round sizes below `asked`: llama.cpp's steps of 256, of 1024 above 4096.
fn context_sizes(asked: u32) -> Vec<u32> {
    let fine = (256..=4096).step_by(256);
    let coarse = (5120..asked.max(5120)).step_by(1024);
    fine.chain(coarse).filter(|&n| n < asked).collect()
}

fn bits(ty: Type) -> u64 {
    ty.type_size() * 8 * 64 / ty.block_size()
}
