//! Prompts of random lengths, one after the other, in legacy pools: what such a pool keeps behind all of them, and with how
//! little memory the engine computes them, since what is kept goes back to the driver where memory runs out.

use super::{Case, JOB_LIMIT, KINDS, Kind, buffers_after, runtime};
use crate::error::{Context, Result};
use crate::kit::{Answer, Engine, Jobs};
use crate::models::Entry;
use crate::random::Random;

/// Halvings of what may be needed.
const STEPS: u32 = 6;
const UBATCHES: [u64; 4] = [64, 100, 256, 512];

/// Two histories of each real model and one of each made one; models that read a text at once have no prompts in parts.
pub(super) fn cases(entries: &[Entry]) -> Vec<Case<'_>> {
    let entries = entries.iter().filter(|entry| !entry.is_embedding_model());
    let each = entries.flat_map(|entry| {
        let n = if entry.is_made() { 1 } else { 2 };
        (0..n).map(move |seed| case(entry, seed))
    });
    each.collect()
}

fn case(entry: &Entry, seed: u64) -> Case<'_> {
    let mut random = Random::new(seed, &entry.file);
    let (cc, sms) = random.pick(&KINDS);
    let n_ubatch = random.pick(&UBATCHES);
    let n_batch = random.pick(&[n_ubatch, 512, 2048]).max(n_ubatch);
    let n_seqs = random.weighted(&[(1u64, 2), (2, 1), (3, 1), (4, 1)]);
    let share = random.pick(&[512u64, 1024, 2048]);
    let is_unified = n_seqs > 1 && random.chance(40);
    // no CUDA kernel has these heads: attention would be computed on the CPU, for minutes
    let flash = match random.chance(50) && entry.arch != "minicpm3" {
        true => "on",
        false => "off",
    };
    let outputs = match random.chance(20) {
        true => "--embeddings".to_string(),
        false => format!("--n-outputs {n_seqs}"),
    };
    let mut prompts: Vec<[u64; 2]> = Vec::new();
    for _ in 0..=random.below(8) {
        let side_by_side = 1 + random.below(n_seqs);
        let most = match is_unified {
            true => share * n_seqs / side_by_side,
            false => share,
        };
        // short ones as often as long ones
        let most = most >> random.weighted(&[(0, 4), (1, 1), (2, 1), (4, 1), (6, 1)]);
        prompts.push([1 + random.below(most - 1), side_by_side]);
    }
    let [n_tokens, side_by_side] = prompts.pop().unwrap_or([1, 1]);
    let before: Vec<String> = prompts.iter().map(|[n, s]| format!("{n}x{s}")).collect();
    let before = match before.is_empty() {
        true => String::new(),
        false => format!(" --decode-before {}", before.join(",")),
    };
    let gpu = format!("{cc}*{}", random.pick(sms));
    let (n_ctx, unified) = (share * n_seqs, u8::from(is_unified));
    Case {
        entry,
        gpus: vec![gpu],
        flags: format!(
            "-c {n_ctx} -b {n_batch} -ub {n_ubatch} -np {n_seqs} --kv-unified {unified} -fa {flash} {outputs}{before} \
             --decode {n_tokens} --decode-seqs {side_by_side}"
        ),
        kind: Kind::Histories,
    }
}

/// `KEPT/LEAST`, bytes: what the answer says of plenty of memory, and a size (to a part of 64) that does beside the buffers.
pub(super) fn row(
    answer: &serde_json::Value,
    case: &Case<'_>,
    folder: &str,
    engine: &Engine,
    jobs: &mut Jobs,
) -> Result<String> {
    let kept: u64 = runtime(answer, Kind::Legacy)?.parse().context("bytes")?;
    let own = buffers_after(&answer["result"]["decode"], 0)?;
    let (mut too_little, mut enough) = (0, kept);
    for _ in 0..STEPS {
        let half = too_little + (enough - too_little) / 2;
        let line = case.job_line_within(folder, Some(own + half));
        let runs = match jobs.ask(&line, JOB_LIMIT) {
            Answer::Json(json) => json["result"]["decode"]["rc"] == 0,
            Answer::Lost(_) => {
                *jobs = engine.start_jobs()?;
                false
            }
        };
        match runs {
            true => enough = half,
            false => too_little = half,
        }
    }
    Ok(format!("{kept}/{enough}"))
}
