//! How much of the predicted pool a run has surely called for.
//!
//! A plan has the pool of the largest batch that may ever run: a full one, at the end of a full context. A calibration
//! runs some batches only, and what it took less than that must not be learned as if CUDA itself took less.

use crate::{Expected, Measurement};

/// Batches that surely ran, beside the one that the pool is planned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    /// Tokens times cells of the cache that they see, of the largest batch that ran.
    ran: u128,
    /// The same of the batch that is planned for.
    planned: u128,
}

impl Reached {
    /// Of the prompt of `measurement`; an error is why nothing is known of its largest batch.
    pub(crate) fn new(expected: &Expected, measurement: &Measurement) -> Result<Reached, String> {
        if expected.embeddings {
            return Err(
                "embeddings are of one batch, and the pool is planned for the largest of all"
                    .to_string(),
            );
        }
        if expected.n_seq > 1 {
            return Err(format!(
                "the context is for {} sequences, and which of their tokens are computed together is not known; \
                 calibrate with -np 1",
                expected.n_seq
            ));
        }
        let tokens = measurement.prompt_tokens;
        let most = expected.n_ctx_seq;
        let batch = expected.n_ubatch.min(most).max(1);
        if tokens < batch {
            return Err(format!(
                "a prompt of {tokens} tokens fills no batch of {batch}; calibrate with a smaller -ub or a larger -c"
            ));
        }
        // What the pool holds grows with a batch's tokens, with the cells, or with both: never faster than their product.
        let rest = tokens % batch;
        let area = |tokens: u64, cells: u64| u128::from(tokens) * u128::from(cells);
        Ok(Reached {
            ran: area(batch, tokens - rest).max(area(rest, tokens)),
            planned: area(batch, most).max(1),
        })
    }

    /// By how much the pool of this run may be smaller than `bytes`, which are planned.
    pub(crate) fn short_of(&self, bytes: u64) -> u64 {
        let missing = self.planned.saturating_sub(self.ran);
        let short = (u128::from(bytes) * missing).div_ceil(self.planned);
        u64::try_from(short).unwrap_or(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EngineKind;

    fn reached(n_seq: u64, embeddings: bool, prompt_tokens: u64) -> Result<Reached, String> {
        let expected = Expected {
            n_ctx_seq: 8192,
            n_ubatch: 512,
            n_seq,
            embeddings,
            ..Expected::default()
        };
        let measurement = Measurement {
            engine: EngineKind::LlamaServer,
            seen: Vec::new(),
            version: None,
            said: Vec::new(),
            prompt_tokens,
            seconds: 1,
        };
        Reached::new(&expected, &measurement)
    }

    #[test]
    fn a_full_prompt_calls_for_all_of_the_pool() {
        assert_eq!(reached(1, false, 8192).unwrap().short_of(272 << 20), 0);
    }

    /// The last batch is of 508 tokens of 512.
    #[test]
    fn a_shorter_last_batch_leaves_some() {
        let short = reached(1, false, 8188).unwrap().short_of(256 << 20);
        assert!((2 << 20..3 << 20).contains(&short), "{short}");
        // one batch of sixteen
        assert_eq!(reached(1, false, 512).unwrap().short_of(160), 150);
    }

    #[test]
    fn other_runs_tell_nothing_of_the_largest_batch() {
        let check = |found: Result<Reached, String>, words: &str| {
            let reason = found.unwrap_err();
            assert!(reason.contains(words), "{reason}");
        };
        check(reached(1, true, 512), "embeddings are of one batch");
        check(reached(3, false, 8192), "for 3 sequences");
        check(reached(1, false, 511), "fills no batch of 512");
    }
}
