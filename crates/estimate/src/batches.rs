//! Which batches llama.cpp reserves for, and which run.

use crate::breakdown::Pass;
use crate::simulate::Context;
use vramfit_arch::{Batch, Pooling};

impl Context<'_> {
    /// The largest batch, or one token a sequence.
    pub fn batch(&self, pass: Pass) -> Batch {
        let p = &self.params;
        let n_seqs = p.n_seq_max;
        match pass {
            Pass::Prompt => {
                let n_tokens = self.n_tokens_most();
                let n_outputs = n_tokens.min(p.n_outputs_max);
                Batch {
                    n_tokens: (n_tokens + n_seqs - 1) / n_seqs * n_seqs,
                    n_outputs,
                    n_seqs,
                    n_filled: Batch::FULL,
                }
            }
            Pass::Generation => Batch::generation(n_seqs),
        }
    }

    /// Tokens of the largest batch.
    pub fn n_tokens_most(&self) -> i64 {
        self.params.n_ctx.min(self.params.n_ubatch)
    }

    /// The largest batch of one sequence, where llama.cpp reserves for that as well.
    pub fn prompt_of_one(&self) -> Option<Batch> {
        let has_several = self.params.n_seq_max > 1;
        let is_asked = self.model.architecture.reserves_one_sequence && has_several;
        is_asked.then(|| self.alone(self.n_tokens_most()))
    }

    /// A batch of one sequence.
    fn alone(&self, n_tokens: i64) -> Batch {
        Batch {
            n_tokens,
            n_outputs: n_tokens.min(self.params.n_outputs_max),
            n_seqs: 1,
            n_filled: Batch::FULL,
        }
    }

    /// What runs, and so decides what pools hold: all sequences side by side, and one alone.
    pub fn pool_batches(&self) -> Vec<(Pass, Batch)> {
        let mut batches = match self.takes_turns() {
            true => Vec::new(),
            // some of the sequences together may have as many tokens as are reserved for
            false => Pass::ALL.map(|pass| (pass, self.batch(pass))).to_vec(),
        };
        batches.extend(self.lone_batches());
        batches
    }

    /// Batches of one sequence, where there may be several and their graph is another.
    fn lone_batches(&self) -> Vec<(Pass, Batch)> {
        let p = &self.params;
        let is_alike = p.pooling == Pooling::None && !self.splits_by_sequence();
        if p.n_seq_max <= 1 || is_alike {
            return Vec::new();
        }
        let n_ctx = match self.model.hparams.has_memory {
            true => p.n_ctx_seq,
            false => p.n_ctx,
        };
        vec![
            (Pass::Prompt, self.alone(n_ctx.min(p.n_ubatch))),
            (Pass::Generation, Batch::generation(1)),
        ]
    }

    /// A batch has as many tokens of each of its sequences: caches, states or compressed cells are a sequence's own, or
    /// each drafts a block.
    pub fn splits_by_sequence(&self) -> bool {
        let hp = &self.model.hparams;
        let is_apart = hp.compressor.is_some() || hp.block_size > 0;
        !self.params.kv_unified || self.has_states() || is_apart
    }

    /// Sequences are computed one after the other, never side by side: states take turns where every token has an
    /// output (`split_seq`).
    pub fn takes_turns(&self) -> bool {
        let p = &self.params;
        p.n_seq_max > 1 && self.has_states() && self.all_outputs()
    }

    /// Every token of a batch has an output.
    pub fn all_outputs(&self) -> bool {
        let p = &self.params;
        p.n_outputs_max >= self.n_tokens_most().max(1).min(p.n_batch)
    }

    /// Whether layers keep a state of each sequence.
    pub fn has_states(&self) -> bool {
        let mut layers = self.model.hparams.layers.iter();
        layers.any(|layer| layer.is_recurrent)
    }
}
