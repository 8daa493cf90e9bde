//! Sampling on the device (`build_sampling`): the ten most likely tokens of each row of logits, as drafts
//! are chosen.

use super::LlmGraph;
use vramfit_ggml::TensorId;

/// Candidates a row that the drafting samplers keep.
const N_CANDIDATES: i64 = 10;

impl LlmGraph<'_> {
    /// A sampler for each sequence, over the rows of logits that it has in this batch.
    pub(super) fn sample(&mut self) {
        let per_seq = i64::from(self.cp.role.n_sampled);
        let Some(logits) = self.logits.filter(|_| per_seq > 0) else {
            return;
        };
        // One row more, so that a sequence without output has one to work on.
        let padded = self.pad_by(logits, [0, 1, 0, 0]);
        let per_seq = per_seq.min(self.n_seq_tokens());
        let mut first = 0;
        for _ in 0..self.cp.n_seq_max {
            let left = (self.n_outputs - first).clamp(0, per_seq);
            // A view's offset changes no size, so that any row stands for all.
            (0..left.max(1)).for_each(|_| self.most_likely(padded));
            first += left;
        }
    }

    fn most_likely(&mut self, logits: TensorId) {
        let n = self[logits].ne[0];
        let row = self.view_1d(logits, n);
        let row = self.reshape(row, [n, 1, 1, 1]);
        let best = self.top_k(row, N_CANDIDATES);
        let values = self.reshape(row, [1, n, 1, 1]);
        let values = self.get_rows(values, best);
        self.set_output(values);
        self.set_output(best);
    }
}
