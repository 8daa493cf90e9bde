//! The end of a graph: the last norm, the output matrix, and what is read behind it.

use super::LlmGraph;
use crate::names::{Global, Part};
use vramfit_ggml::{Flags, TensorId};

impl LlmGraph<'_> {
    /// The normalisation before the output matrix.
    pub fn final_norm(&mut self, x: TensorId) -> TensorId {
        let w = match self.output_weight(Global::OutputNorm, Part::Weight) {
            None => self.output_weight(Global::TokenEmbdNorm, Part::Weight),
            w => w,
        };
        let b = self.output_weight(Global::OutputNorm, Part::Bias);
        let cur = self.norm_with(x, w, b, None);
        self.graph.name_step(cur, "result_norm");
        cur
    }

    /// The output matrix over `x`; `embd` is what embeddings are taken from.
    pub fn lm_head(&mut self, embd: TensorId, x: TensorId) {
        self.set_embeddings(embd);
        if self.cp.embeddings && self.model.architecture.embeddings_skip_head {
            self.expand(x);
            return;
        }
        let logits = self.logits(x);
        self.graph.name_step(logits, "result_output");
        self.set_logits(logits);
    }

    /// The end of a graph: `logits` are its result.
    pub fn set_logits(&mut self, logits: TensorId) {
        self.set_output(logits);
        self.logits = Some(logits);
    }

    /// The output matrix over `x`, with the bias, scale and cap that the model has.
    pub fn logits(&mut self, x: TensorId) -> TensorId {
        let w = self.output_matrix();
        let mut cur = match self.model.architecture.output_is_unadapted {
            true => self.mul_mat(w, x),
            false => {
                let scale = self.output_scale();
                self.adapted_scaled(w, x, None, scale)
            }
        };
        let bias = self.output_weight(Global::Output, Part::Bias);
        if let Some(b) = bias.filter(|_| self.model.architecture.has_output_bias) {
            cur = self.add(cur, b);
        }
        self.scaled_and_capped(cur)
    }

    /// Logits with the scale and the cap that the model has.
    pub fn scaled_and_capped(&mut self, mut logits: TensorId) -> TensorId {
        if self.hp.scales_logits {
            logits = self.scale(logits);
        }
        if self.hp.final_softcap {
            logits = self.softcap(logits);
        }
        logits
    }

    /// `tanh(x / c) * c`.
    pub fn softcap(&mut self, x: TensorId) -> TensorId {
        let x = self.scale(x);
        let x = self.unary(vramfit_ggml::Unary::Tanh, x);
        self.scale(x)
    }

    /// Rows of the output matrix.
    pub fn n_output_rows(&self) -> i64 {
        let model = self.model;
        let index = model
            .global_tensor(Global::Output, Part::Weight)
            .or_else(|| model.global_tensor(Global::TokenEmbd, Part::Weight));
        index.map_or(self.hp.n_vocab, |i| model.tensors[i].ne[1])
    }

    /// The output matrix once more.
    pub(super) fn output_copy(&mut self) -> Option<TensorId> {
        let index = self.model.global_tensor(Global::Output, Part::Weight)?;
        let home = self.weights.output();
        let buffer = self.weights.graph_buffer(self.model, index, home, false);
        Some(self.new_weight(index, buffer))
    }

    pub(super) fn output_matrix(&mut self) -> TensorId {
        if let Some(w) = self.output_weight(Global::Output, Part::Weight) {
            return w;
        }
        if self.model.architecture.embd_is_output {
            let table = self.input_weight(Global::TokenEmbd);
            return self.required(Global::TokenEmbd, table);
        }
        let Some(index) = self.model.global_tensor(Global::TokenEmbd, Part::Weight) else {
            return self.missing("token_embd.weight".to_string());
        };
        let buffer = self
            .weights
            .graph_buffer(self.model, index, self.weights.output(), true);
        if self.model.architecture.makes_output_first {
            return self.new_weight(index, buffer); // never the embedding itself
        }
        self.placed_in(index, buffer)
    }

    /// `ggml_set_output`: read after the graph has run, and with it what it is a view of.
    pub fn mark_output(&mut self, t: TensorId) {
        let mut next = Some(t);
        while let Some(t) = next {
            self.graph[t].flags.insert(Flags::OUTPUT);
            next = self.graph[t].view_src();
        }
    }

    /// Marks what embeddings are taken from.
    pub fn set_embeddings(&mut self, embd: TensorId) {
        self.mark_output(embd);
        self.embd = Some(embd);
    }

    /// The end of an encoder: `embd` is the result, there are no logits.
    pub fn end_in_embeddings(&mut self, embd: TensorId) {
        self.set_embeddings(embd);
        self.set_output(embd);
    }

    /// Marks a result that is read after the graph has run.
    pub fn set_output(&mut self, t: TensorId) {
        self.expand(t);
        self.mark_output(t);
    }
}
