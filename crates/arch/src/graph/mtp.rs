//! Graphs of layers for multi-token prediction (`graph_mtp`): what the model made of a token is joined with
//! the next token, goes through one more layer, and gives the token after that.

use super::LlmGraph;
use crate::names::{Global, Kind, Part};
use vramfit_ggml::{TensorId, Type};

impl LlmGraph<'_> {
    /// Token and state joined: what the first layer for multi-token prediction reads, and which that is.
    pub fn mtp_input(&mut self) -> (TensorId, usize) {
        let (il, n_tokens, n_embd) = (self.hp.n_layer(), self.n_tokens, self.hp.n_embd);
        if il >= self.hp.layers.len() {
            let missing = self.missing(Kind::NextnEhProj.file_name(il, Part::Weight));
            return (missing, 0);
        }
        let table = match self.optional(il, Kind::NextnEmbedTokens, Part::Weight) {
            None => self.input_weight(Global::TokenEmbd),
            own => own,
        };
        let table = self.required(Global::TokenEmbd, table);
        let tokens = self.input("inp_tokens", Type::I32, [n_tokens, 1, 1, 1]);
        let state = self.input("mtp_h_input", Type::F32, [n_embd, n_tokens, 1, 1]);
        let embd = self.get_rows(table, tokens);
        self.build_inputs();
        let state = self.norm(state, Kind::NextnHnorm, il);
        let embd = self.norm(embd, Kind::NextnEnorm, il);
        let both = self.concat(embd, state, 0);
        (self.linear(both, Kind::NextnEhProj, il), il)
    }

    /// The layer's own norm and head, or the model's, over the tokens with wanted logits.
    pub fn mtp_head(&mut self, x: TensorId, il: usize) {
        let x = self.mtp_norm(x, il);
        let x = self.output_rows(x);
        self.mtp_logits(x, il);
    }

    /// [`mtp_head`](Self::mtp_head) where the states that go on are those of tokens with wanted logits, not normalised.
    pub fn mtp_head_of_rows(&mut self, x: TensorId, il: usize) {
        let x = self.output_rows(x);
        self.mark_output(x);
        let x = self.mtp_final_norm(x, il);
        self.mtp_logits(x, il);
    }

    /// The norm, whose result the next step reads.
    pub fn mtp_norm(&mut self, x: TensorId, il: usize) -> TensorId {
        let x = self.mtp_final_norm(x, il);
        self.mark_output(x);
        self.name_step(x, "h_nextn");
        x
    }

    fn mtp_final_norm(&mut self, x: TensorId, il: usize) -> TensorId {
        let kinds = [Kind::NextnSharedHeadNorm, Kind::LayerOutNorm];
        let own = kinds.map(|kind| self.optional(il, kind, Part::Weight));
        let w = match own.into_iter().flatten().next() {
            None => self.output_weight(Global::OutputNorm, Part::Weight),
            own => own,
        };
        self.norm_with(x, w, None, None)
    }

    /// The logits, the result of the graph.
    pub fn mtp_logits(&mut self, x: TensorId, il: usize) {
        let logits = match self.optional(il, Kind::NextnSharedHeadHead, Part::Weight) {
            Some(w) => {
                let scale = self.optional(il, Kind::NextnSharedHeadHead, Part::Scale);
                self.adapted_scaled(w, x, None, scale)
            }
            None => self.mtp_shared_logits(x),
        };
        let logits = match self.hp.scales_logits {
            true => self.scale(logits),
            false => logits,
        };
        self.name_step(logits, "result_output");
        self.set_logits(logits);
    }

    fn mtp_shared_logits(&mut self, x: TensorId) -> TensorId {
        let w = self.output_matrix();
        let scale = self.output_scale();
        self.adapted_scaled(w, x, None, scale)
    }
}
