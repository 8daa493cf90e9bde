//! What may be learned from comparisons: what CUDA itself takes, and nothing else.

use std::collections::BTreeMap;
use std::fmt;

use vramfit::devices::{CONSISTENT_WITHIN_BYTES, Profile, UNNAMED_GPU};

use crate::{Beside, Comparison, DeviceComparison, MeasuredBy};

/// More than this is not a context, modules and a library's handles.
const MOST_BYTES: i64 = 4 << 30;

/// A figure that nothing is learned from, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The model's file, or the card.
    pub of: String,
    /// Why.
    pub reason: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nothing is learned from {}: {}", self.of, self.reason)
    }
}

/// A profile for each card, from the least to the most of what was left over, and what was not made use of. What the driver
/// rounds buffers up by belongs to the buffers of the model that was measured, not to CUDA's own; how much of it there was is
/// not known, so that each measurement is an interval: from what is left with every buffer rounded up, to what is left
/// with none.
pub fn learn(comparisons: &[Comparison]) -> (Vec<Profile>, Vec<Refusal>) {
    let mut refusals = Vec::new();
    let mut residuals: BTreeMap<(bool, [&str; 3]), Vec<[u64; 2]>> = BTreeMap::new();
    for comparison in comparisons {
        for device in comparison.devices.iter().filter(|d| d.predicted.is_used) {
            match residual(device).and_then(|bytes| of_right_run(comparison, bytes)) {
                Ok(bytes) => {
                    let key = [&*device.card, &*comparison.driver, &*comparison.ran];
                    let least = bytes.saturating_sub(device.predicted.rounding_bytes);
                    // What the pool was smaller by was CUDA's own.
                    let most = bytes.saturating_add(device.pool_short_bytes);
                    let with_cublas = device.predicted.workspace_bytes > 0;
                    let key = (with_cublas, key);
                    residuals.entry(key).or_default().push([least, most]);
                }
                Err(reason) => refusals.push(Refusal {
                    of: format!("{} on {}", comparison.model, device.id),
                    reason,
                }),
            }
        }
    }
    let mut profiles = Vec::new();
    for ((with_cublas, [card, driver, build]), bytes) in residuals {
        let low_bytes = bytes.iter().map(|&[low, _]| low).min().unwrap_or(0);
        let high_bytes = bytes.iter().map(|&[_, high]| high).max().unwrap_or(0);
        profiles.push(Profile {
            card: card.to_string(),
            driver: driver.to_string(),
            build: build.to_string(),
            with_cublas,
            low_bytes,
            high_bytes,
            runs: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
        });
    }
    (profiles, refusals)
}

/// Where one card took less than it can, no other's figure is to be trusted: something else ran than what was planned.
/// What is more than was predicted is what there is to learn.
fn of_right_run(comparison: &Comparison, bytes: u64) -> Result<u64, String> {
    let mut used = comparison.devices.iter().filter(|d| d.predicted.is_used);
    match used.any(|d| d.buffers_agree == Some(false) || d.is_too_little()) {
        false => Ok(bytes),
        true => Err("the run's totals are below the predicted interval".to_string()),
    }
}

fn residual(device: &DeviceComparison) -> Result<u64, String> {
    let (Some(residual), Some(seen)) = (device.residual_bytes, device.measured) else {
        return Err("NVML showed nothing of the engine there".to_string());
    };
    if device.card == UNNAMED_GPU {
        return Err("what the card is called is not known".to_string());
    }
    // Whatever others take at the same time would be learned as CUDA's own.
    let not_its_own = match seen.by {
        MeasuredBy::Process => None,
        MeasuredBy::NewProcess => Some(
            "the figure is of a process that is new there, which need not be the engine; measure where process ids are \
             the host's (docker run --pid=host)",
        ),
        MeasuredBy::Growth => Some(
            "the figure is what the card's memory in use grew by, and others may be in it; measure where NVML shows \
             each process's memory",
        ),
    };
    if let Some(reason) = not_its_own {
        return Err(reason.to_string());
    }
    if !seen.saw_the_end {
        return Err(
            "NVML stopped to show the engine's own memory before its prompt was computed, so that the figure is not of all of it"
                .to_string(),
        );
    }
    match device.buffers_agree {
        Some(true) => (),
        Some(false) => {
            return Err(
                "the engine's own buffers are not the predicted ones, so that the rest means nothing"
                    .to_string(),
            );
        }
        None => {
            return Err(
                "the engine's log names no buffers, so that what it takes beside them is not known"
                    .to_string(),
            );
        }
    }
    let predicted = &device.predicted;
    if predicted.draft != Beside::default() || predicted.projector != Beside::default() {
        return Err(
            "a draft or a projector is there, and CUDA's own is for a model by itself".to_string(),
        );
    }
    if device.idle_bytes > 0 {
        return Err("the engine only loaded, and computed nothing".to_string());
    }
    if predicted.buffers_are_bound || predicted.pool_is_bound {
        return Err("a bound is among the predicted terms".to_string());
    }
    if predicted.pool_is_legacy {
        return Err(
            "the device has no virtual memory management: what ggml-cuda's pool keeps there depends on the order of \
             all that was computed, so that the rest is not CUDA's own alone"
                .to_string(),
        );
    }
    if let Some(reason) = &device.unknown_batches {
        return Err(reason.clone());
    }
    if device.pool_short_bytes > CONSISTENT_WITHIN_BYTES {
        return Err(format!(
            "the prompt's batches may take {} MiB of pool less than the largest; calibrate with a smaller -c, or -fa on",
            device.pool_short_bytes >> 20
        ));
    }
    match residual {
        ..=0 => Err(format!(
            "less was measured than buffers and pool alone ({} MiB)",
            residual >> 20
        )),
        MOST_BYTES.. => Err(format!("{} MiB are left over", residual >> 20)),
        _ => Ok(residual.unsigned_abs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EngineKind, Expected, ExpectedDevice, MeasuredBy, Measurement, SaidBuffers, Seen};

    const MIB: u64 = 1 << 20;

    fn expected() -> Expected {
        let device = ExpectedDevice {
            name: "K80".to_string(),
            is_used: true,
            model_bytes: 4000 * MIB,
            context_bytes: 200 * MIB,
            compute_bytes: 272 * MIB,
            pool_bytes: 270 * MIB,
            pool_own_bytes: 270 * MIB,
            workspace_bytes: 4 * MIB,
            overhead_low_bytes: 100 * MIB,
            overhead_bytes: 200 * MIB,
            ..ExpectedDevice::default()
        };
        Expected {
            model: "m.gguf".to_string(),
            build: "b".to_string(),
            flags: Vec::new(),
            n_ctx_seq: 64,
            n_ctx_slot: 64,
            n_ubatch: 64,
            n_seq: 1,
            n_vocab: 10,
            devices: vec![device, ExpectedDevice::default()],
            ..Expected::default()
        }
    }

    /// As predicted.
    const SAID: Option<SaidBuffers> = Some(SaidBuffers {
        model_bytes: 4000 * MIB,
        context_bytes: 200 * MIB,
        compute_bytes: 272 * MIB,
        rounding_bytes: 0,
    });

    fn run(expected: &Expected, peak_mib: u64, said: Option<SaidBuffers>) -> Comparison {
        run_by(MeasuredBy::Process, expected, peak_mib, said)
    }

    fn run_by(
        by: MeasuredBy,
        expected: &Expected,
        peak_mib: u64,
        said: Option<SaidBuffers>,
    ) -> Comparison {
        run_of(64, by, expected, peak_mib, said)
    }

    fn run_of(
        prompt_tokens: u64,
        by: MeasuredBy,
        expected: &Expected,
        peak_mib: u64,
        said: Option<SaidBuffers>,
    ) -> Comparison {
        let seen = |mib: u64| Seen {
            by,
            peak_bytes: mib * MIB,
            last_bytes: mib * MIB,
            samples: 9,
            saw_the_end: true,
        };
        let measurement = Measurement {
            engine: EngineKind::LlamaServer,
            seen: vec![Some(seen(peak_mib)), Some(seen(93))],
            version: Some("0.5.0 (build 1, commit a)".to_string()),
            said: vec![said, None],
            prompt_tokens,
            seconds: 1,
        };
        Comparison::new(expected, &measurement, &[], "470")
    }

    #[test]
    fn the_rest_alone_is_learned() {
        let expected = expected();
        let comparisons = [4916, 4909, 4920].map(|mib| run(&expected, mib, SAID));
        assert!(comparisons.iter().all(Comparison::is_right));
        let (profiles, refusals) = learn(&comparisons);
        assert!(refusals.is_empty(), "{refusals:?}");
        let [only] = profiles.as_slice() else {
            panic!("{profiles:?}");
        };
        // 4746 MiB of the engine's own; the second card is not planned for
        let found = (only.low_bytes / MIB, only.high_bytes / MIB, only.runs);
        assert_eq!(found, (163, 174, 3));
        assert_eq!(
            (&*only.card, &*only.driver, &*only.build),
            ("K80", "470", vramfit::ENGINE.name)
        );
    }

    #[test]
    fn nothing_is_learned_from_what_does_not_add_up() {
        let check = |comparisons: &[Comparison], words: &str| {
            let (profiles, refusals) = learn(comparisons);
            assert!(profiles.is_empty(), "{profiles:?}");
            let [only] = refusals.as_slice() else {
                panic!("{refusals:?}");
            };
            assert!(only.to_string().contains(words), "{only}");
        };
        let good = expected();
        check(&[run(&good, 4746, SAID)], "less was measured");
        check(&[run(&good, 4700, SAID)], "less was measured");
        check(&[run(&good, 9999, SAID)], "5253 MiB are left over");
        let lie = SaidBuffers {
            model_bytes: 4001 * MIB,
            ..SAID.unwrap()
        };
        let disagrees = run(&good, 4916, Some(lie));
        assert!(!disagrees.is_right());
        check(&[disagrees], "not the predicted ones");
        check(&[run(&good, 4916, None)], "names no buffers");
        let by = |by| [run_by(by, &good, 4916, SAID)];
        check(&by(MeasuredBy::NewProcess), "which need not be the engine");
        check(&by(MeasuredBy::Growth), "others may be in it");
        let mut legacy = expected();
        legacy.devices[0].pool_is_legacy = true;
        check(&[run(&legacy, 4916, SAID)], "no virtual memory management");
        let mut bound = expected();
        bound.devices[0].pool_is_bound = true;
        check(&[run(&bound, 4916, SAID)], "a bound is among");
        let mut beside = expected();
        beside.devices[0].projector.compute_bytes = 3 * MIB;
        check(&[run(&beside, 4916, SAID)], "a draft or a projector");
        // 35 MiB, where a bare context takes 100
        check(&[run(&good, 4781, SAID)], "below the predicted interval");
        let mut unnamed = run(&good, 4916, SAID);
        unnamed.devices[0].card = UNNAMED_GPU.to_string();
        check(&[unnamed], "is not known");
    }

    /// A plan has to be mended where it is too low, above all.
    #[test]
    fn what_is_more_than_was_predicted_is_learned() {
        let good = expected();
        let all = [run(&good, 5110, SAID), run(&good, 4900, SAID)];
        assert!(!all[0].is_right());
        let (profiles, refusals) = learn(&all);
        assert!(refusals.is_empty(), "{refusals:?}");
        let found = [profiles[0].low_bytes, profiles[0].high_bytes];
        assert_eq!(found, [154 * MIB, 364 * MIB]);
    }

    /// Other runs of the engine may load it.
    #[test]
    fn a_run_without_cublas_is_learned_as_such() {
        let mut without = expected();
        without.devices[0].workspace_bytes = 0;
        let (profiles, _) = learn(&[run(&without, 4916, SAID), run(&expected(), 4920, SAID)]);
        let found: Vec<(bool, u64)> = profiles
            .iter()
            .map(|p| (p.with_cublas, p.high_bytes))
            .collect();
        assert_eq!(found, [(false, 174 * MIB), (true, 174 * MIB)]);
    }

    /// A smaller batch may take more of the pool, and need not run.
    #[test]
    fn what_only_smaller_batches_take_may_be_cudas_own() {
        let mut smaller = expected();
        smaller.devices[0].pool_own_bytes = 262 * MIB;
        let (profiles, refusals) = learn(&[run(&smaller, 4916, SAID)]);
        assert!(refusals.is_empty(), "{refusals:?}");
        let found = [profiles[0].low_bytes, profiles[0].high_bytes];
        assert_eq!(found, [170 * MIB, 178 * MIB]);
    }

    /// The pool is of the largest batch that may run: a run that need not reach it says little of CUDA's own.
    #[test]
    fn nothing_is_learned_where_the_largest_batch_need_not_run() {
        let check = |run: Comparison, words: &str| {
            assert!(run.is_right(), "{run:?}");
            let (profiles, refusals) = learn(&[run]);
            assert!(profiles.is_empty(), "{profiles:?}");
            assert!(refusals[0].to_string().contains(words), "{refusals:?}");
        };
        // 260 MiB of CUDA's own, and next to no pool
        let embeddings = Expected {
            embeddings: true,
            ..expected()
        };
        check(run(&embeddings, 4780, SAID), "embeddings");
        let several = Expected {
            n_seq: 3,
            ..expected()
        };
        check(run(&several, 4780, SAID), "-np 1");
        let good = expected();
        let short = |tokens| run_of(tokens, MeasuredBy::Process, &good, 4780, SAID);
        check(short(63), "fills no batch of 64");
        let long = Expected {
            n_ctx_seq: 128,
            ..expected()
        };
        let half = run_of(64, MeasuredBy::Process, &long, 4780, SAID);
        check(half, "135 MiB of pool less");
    }

    /// A profile is of the build that ran.
    #[test]
    fn another_build_is_not_learned_as_the_modelled_one() {
        let mut run = run(&expected(), 4916, SAID);
        run.ran = "llama.cpp 6500 (3d16b29c)".to_string();
        let (profiles, _) = learn(&[run]);
        assert_eq!(profiles[0].build, "llama.cpp 6500 (3d16b29c)");
    }

    /// What the pool may have been smaller by may be CUDA's own.
    #[test]
    fn a_prompt_that_ends_in_a_smaller_batch_leaves_an_interval() {
        let long = Expected {
            n_ctx_seq: 1024,
            ..expected()
        };
        let (profiles, refusals) = learn(&[run_of(1020, MeasuredBy::Process, &long, 4916, SAID)]);
        assert!(refusals.is_empty(), "{refusals:?}");
        // 60 tokens of 64 at 1020 cells, or 64 at 960: 270 MiB less a sixteenth
        assert_eq!(profiles[0].low_bytes, 170 * MIB);
        assert_eq!(profiles[0].high_bytes, 170 * MIB + 270 * MIB / 16);
    }
}
