//! The batches of prompts that fill a context.

use crate::simulate::Context;
use vramfit_arch::Batch;

/// Batches of `n_batch` that a model without attention is played through: its graphs do not change.
const ROUNDS: i64 = 4;

/// Prompts side by side, and a token of each behind them.
#[derive(Clone, Copy)]
pub(super) struct Prompts {
    n_seqs: i64,
    /// Tokens of all sequences.
    pub n_all: i64,
    /// Which they are a multiple of.
    each: i64,
    /// Tokens that are handed over at once, and of these computed at once.
    n_batch: i64,
    pub n_ubatch: i64,
    /// Caches that they fill.
    pub n_streams: i64,
    /// Every token has an output.
    all_outputs: bool,
    /// Otherwise, of a batch's last tokens.
    n_outputs: i64,
}

/// No more than `n_tokens`, as many of each.
fn whole(n_tokens: i64, each: i64) -> i64 {
    (n_tokens - n_tokens % each).max(each)
}

impl Prompts {
    /// The same with `n_all` tokens at most.
    pub fn of_length(self, n_all: i64) -> Self {
        Prompts {
            n_all: whole(n_all.min(self.n_all), self.each),
            ..self
        }
    }

    /// The batches, in order.
    pub fn batches(self) -> impl Iterator<Item = Batch> {
        let mut n_done = 0;
        std::iter::from_fn(move || {
            let left = self.n_all - n_done;
            if left <= 0 {
                return None;
            }
            let to_end = left.min(self.n_batch - n_done % self.n_batch);
            let n_tokens = self.n_ubatch.min(to_end).max(1);
            n_done += n_tokens;
            Some(self.batch(n_tokens, n_tokens == to_end, n_done / self.n_streams))
        })
    }

    fn batch(self, n_tokens: i64, ends: bool, n_filled: i64) -> Batch {
        let n_outputs = match (self.all_outputs, ends) {
            (true, _) => n_tokens,
            (false, true) => self.n_seqs.min(n_tokens).min(self.n_outputs),
            (false, false) => 0,
        };
        Batch {
            n_tokens,
            n_outputs,
            n_seqs: self.n_seqs,
            n_filled,
        }
    }

    /// A token of each sequence, behind the prompts.
    pub fn generation(self) -> Batch {
        Batch::generation(self.n_seqs)
    }

    /// Some batches of all shapes while the context is empty.
    pub fn first(self) -> Vec<Batch> {
        self.shapes(1)
    }

    /// And when it is full; what lies in between has shapes in between.
    pub fn last(self) -> Vec<Batch> {
        self.shapes(Batch::FULL)
    }

    fn shapes(self, n_filled: i64) -> Vec<Batch> {
        let rest = |n_tokens: i64| n_tokens % self.n_ubatch;
        let rests = [rest(self.n_batch), rest(self.n_all % self.n_batch)];
        let sizes = [self.n_ubatch.min(self.n_all)].into_iter().chain(rests);
        let sizes = sizes.filter(|&n| n > 0);
        let batch = |n| [true, false].map(|ends| self.batch(n, ends, n_filled));
        sizes.flat_map(batch).collect()
    }
}

impl Context<'_> {
    /// What fills the context: one sequence alone, twice as many side by side, and so on to all of them.
    pub(super) fn prompts(&self) -> Vec<Prompts> {
        let all = self.params.n_seq_max.max(1);
        let doubled = std::iter::successors(Some(1i64), |n| n.checked_mul(2));
        let some = doubled.take_while(|&n| n < all).chain([all]);
        some.map(|n_seqs| self.prompts_of(n_seqs)).collect()
    }

    fn prompts_of(&self, n_seqs: i64) -> Prompts {
        let p = &self.params;
        let n_tokens = self.n_tokens_most().max(1);
        let all_outputs = self.all_outputs();
        // states take one sequence after the other where every token has an output (`split_seq`), else as many tokens of
        // each (`split_equal`); without them tokens of one cache come as they are (`split_simple`)
        let takes_turns = self.has_states() && all_outputs;
        let (at_once, each) = match (takes_turns, self.splits_by_sequence()) {
            (true, _) => (1, 1),
            (false, true) => (n_seqs, n_seqs),
            (false, false) => (n_seqs, 1),
        };
        let whole = |n_tokens: i64| whole(n_tokens, each);
        let n_batch = match takes_turns {
            true => p.n_batch.div_euclid(n_seqs).max(1),
            false => whole(p.n_batch.max(n_tokens)),
        };
        let n_ubatch = whole(n_tokens.min(n_batch));
        let n_streams = if p.kv_unified { 1 } else { at_once };
        // what has no memory takes a whole text at once
        let n_all = match self.model.hparams.has_memory {
            true => whole(p.n_ctx_seq.saturating_mul(n_streams)),
            false => n_ubatch,
        };
        let rounds = n_batch.saturating_mul(ROUNDS);
        let n_all = match self.attends() {
            false if n_all > rounds => rounds.saturating_add(n_all % n_batch),
            _ => n_all,
        };
        Prompts {
            n_seqs: at_once,
            n_all,
            each,
            n_batch,
            n_ubatch,
            n_streams,
            all_outputs,
            n_outputs: p.n_outputs_max,
        }
    }

    /// Whether its graphs change with what is in the context.
    pub(super) fn attends(&self) -> bool {
        // layers with both have heads of K as well
        let mut layers = self.model.hparams.layers.iter();
        layers.any(|l| !l.is_recurrent || l.n_head_kv > 0)
    }
}
