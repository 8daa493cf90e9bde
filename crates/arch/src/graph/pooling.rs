//! Embeddings of sequences from those of tokens, scores of rerankers (`build_pooling`), and the dense
//! layers of sentence transformers (`build_dense_out`).

use super::LlmGraph;
use crate::names::{Global, Part};
use crate::params::Pooling;
use vramfit_ggml::{TensorId, Type, Unary};

/// How a reranker scores a sequence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RankHead {
    /// From one token, with a tanh.
    Tanh,
    /// From the mean of all tokens, with a GELU (ModernBERT).
    MeanGelu,
    /// As the first, and a softmax over the classes (Qwen 3).
    Softmax,
}

impl LlmGraph<'_> {
    /// What is read where embeddings are wanted.
    pub(super) fn pool(&mut self) {
        let Some(embd) = self.embd.filter(|_| self.cp.embeddings) else {
            return;
        };
        let pooled = match self.cp.pooling {
            Pooling::None => embd,
            Pooling::Mean => self.mean_token(embd),
            Pooling::Cls | Pooling::Last => self.one_token(embd),
            Pooling::Rank => self.rank(embd),
        };
        self.expand(pooled);
        let out = self.dense_out(pooled);
        self.set_output(out);
    }

    fn mean_token(&mut self, embd: TensorId) -> TensorId {
        let (n_tokens, n_seqs) = (self.n_tokens, self.n_seqs);
        let mean = self.input("mean", Type::F32, [n_tokens, n_seqs, 1, 1]);
        let t = self.transpose(embd);
        let t = self.cont(t);
        self.mul_mat(t, mean)
    }

    fn one_token(&mut self, embd: TensorId) -> TensorId {
        let n_seqs = self.n_seqs;
        let ids = self.input("cls", Type::I32, [n_seqs, 1, 1, 1]);
        self.get_rows(embd, ids)
    }

    fn rank(&mut self, embd: TensorId) -> TensorId {
        let head = self.model.architecture.rank_head;
        let mut cur = if head == RankHead::MeanGelu {
            self.mean_token(embd)
        } else {
            self.one_token(embd)
        };
        if let Some(projected) = self.optional_linear(cur, Global::Cls) {
            let activation = if head == RankHead::MeanGelu {
                Unary::Gelu
            } else {
                Unary::Tanh
            };
            cur = self.unary(activation, projected);
            if let Some(w) = self.output_weight(Global::ClsNorm, Part::Weight) {
                cur = self.norm_with(cur, Some(w), None, None);
            }
        }
        cur = self.optional_linear(cur, Global::ClsOutput).unwrap_or(cur);
        if head == RankHead::Softmax {
            cur = self.soft_max(cur, None, None);
        }
        cur
    }

    fn dense_out(&mut self, pooled: TensorId) -> TensorId {
        [Global::Dense2, Global::Dense3]
            .into_iter()
            .fold(pooled, |cur, dense| {
                self.optional_linear(cur, dense).unwrap_or(cur)
            })
    }

    /// `W x + b` by a matrix of the output layer, if the model has it.
    fn optional_linear(&mut self, x: TensorId, global: Global) -> Option<TensorId> {
        let w = self.output_weight(global, Part::Weight)?;
        let cur = self.mul_mat(w, x);
        Some(match self.output_weight(global, Part::Bias) {
            Some(b) => self.add(cur, b),
            None => cur,
        })
    }
}
