//! Inputs of a graph: token ids, positions, masks and where the caches are written.

use super::LlmGraph;
use crate::Error;
use crate::names::{Global, Part};
use crate::role::LentTensor;
use vramfit_ggml::{Flags, Label, TensorId, Type};

/// What attention over one kind of cache reads beside it.
#[derive(Clone, Copy)]
pub(super) struct AttnInput {
    pub k_idxs: TensorId,
    pub v_idxs: TensorId,
    pub mask: TensorId,
    /// Hadamard matrices that spread outliers before a cache is quantised.
    pub k_rot: Option<TensorId>,
    pub v_rot: Option<TensorId>,
    pub n_kv: i64,
}

/// Side of the smallest Hadamard matrix, the one that V uses.
const MIN_ROTATION: i64 = 64;

impl LlmGraph<'_> {
    /// Token embeddings and every input of the graph (`build_inp_embd` and its likes).
    /// `scaled`: multiplied by a constant right away, as Gemma does.
    pub fn embed(&mut self, scaled: bool) -> TensorId {
        let (n_tokens, n_embd) = (self.n_tokens, self.hp.n_embd);
        let table = if self.model.embeds_by_output() {
            self.output_copy()
        } else {
            self.input_weight(Global::TokenEmbd)
        };
        let table = self.required(Global::TokenEmbd, table);
        let tokens = self.input("inp_tokens", Type::I32, [n_tokens, 1, 1, 1]);
        self.tokens = Some(tokens);
        let width = n_embd.saturating_mul(1 + self.hp.n_deepstack);
        let embd = self.input("inp_embd", Type::F32, [width, n_tokens, 1, 1]);
        let mut cur = self.get_rows(table, tokens);
        for lora in 0..self.cp.adapters.loras.len() {
            if let Some([a, b]) = self.lora_pair(lora, table) {
                let rows = self.get_rows(a, tokens);
                let added = self.mul_mat(b, rows);
                let added = self.scale(added);
                cur = self.add(cur, added);
            }
        }
        if width != n_embd {
            cur = self.pad_to(cur, width);
        }
        self.expand(cur);
        self.expand(embd);
        if width != n_embd {
            let row = self[cur].nb[1];
            cur = self.view_2d(cur, [n_embd, n_tokens], row);
        }
        self.input_embd = Some(cur);
        if self.hp.scales_embeddings {
            if !self[cur].is_contiguous() {
                cur = self.cont(cur);
            }
            cur = self.scale(cur);
        }
        if scaled {
            cur = self.scale(cur);
        }
        self.expand(cur);
        self.name_step(cur, "inp_embd");
        self.build_inputs();
        cur
    }

    /// Token ids and their rows in the embedding table.
    pub fn token_rows(&mut self) -> (TensorId, TensorId) {
        let n_tokens = self.n_tokens;
        let table = self.input_weight(Global::TokenEmbd);
        let table = self.required(Global::TokenEmbd, table);
        let tokens = self.input("inp_tokens", Type::I32, [n_tokens, 1, 1, 1]);
        (tokens, self.get_rows(table, tokens))
    }

    /// [`token_rows`](Self::token_rows), of the target's table where the file has none.
    pub fn token_rows_of_target(&mut self) -> (TensorId, TensorId) {
        let own = self.model.global_tensor(Global::TokenEmbd, Part::Weight);
        if own.is_some() {
            return self.token_rows();
        }
        let table = self.table_of_target();
        let n_tokens = self.n_tokens;
        let tokens = self.input("inp_tokens", Type::I32, [n_tokens, 1, 1, 1]);
        (tokens, self.get_rows(table, tokens))
    }

    /// The target's token embeddings.
    pub fn table_of_target(&mut self) -> TensorId {
        let lent = self.cp.role.target.as_ref().and_then(|t| t.token_embd);
        self.borrow("token_embd", "token embeddings", lent)
    }

    /// The target's output matrix and its scale, where the file has none.
    pub fn output_of_target(&mut self) -> Option<(TensorId, Option<TensorId>)> {
        if self
            .model
            .global_tensor(Global::Output, Part::Weight)
            .is_some()
        {
            return None;
        }
        let target = self.cp.role.target.as_ref();
        let (lent, scale) = (
            target.and_then(|t| t.output),
            target.and_then(|t| t.output_scale),
        );
        let w = self.borrow("output", "an output matrix", lent);
        let scale = scale.map(|lent| self.borrow("output_s", "a scale", Some(lent)));
        Some((w, scale))
    }

    /// A tensor of the target.
    pub(super) fn borrow(
        &mut self,
        name: &'static str,
        what: &'static str,
        lent: Option<LentTensor>,
    ) -> TensorId {
        let Some(lent) = lent else {
            return self.fail_with(Error::NeedsTarget { what });
        };
        let t = self.placed(Label::Step(name), lent.ty, lent.ne, lent.buffer);
        self[t].flags.insert(Flags::WEIGHT);
        t
    }

    /// Every input of the graph but the tokens.
    pub fn build_inputs(&mut self) {
        let n_tokens = self.n_tokens;
        let n_pos = n_tokens * self.hp.n_pos_per_embd;
        self.pos = Some(self.input("inp_pos", Type::I32, [n_pos, 1, 1, 1]));
        if self.hp.has_memory {
            self.build_attn_inputs();
        }
        if self.hp.ssm.is_some() {
            self.build_state_ids();
        }
        let n_outputs = self.n_outputs;
        self.out_ids = Some(self.input("inp_out_ids", Type::I32, [n_outputs, 1, 1, 1]));
    }

    /// A temperature a token for its queries, where the model has one (`build_inp_attn_scale`).
    pub fn attn_temperature(&mut self) -> Option<TensorId> {
        let n_tokens = self.n_tokens;
        let has_one = self.hp.attn_temperature;
        has_one.then(|| self.input("inp_attn_scale", Type::F32, [1, 1, n_tokens, 1]))
    }

    fn build_attn_inputs(&mut self) {
        self.attn_inputs[0] = Some(self.attn_input(false));
        if self.hp.has_swa_layers {
            self.attn_inputs[1] = Some(self.attn_input(true));
        }
    }

    fn attn_input(&mut self, swa: bool) -> AttnInput {
        let (hp, cp, n_tokens) = (self.hp, self.cp, self.n_tokens);
        let lent = cp.role.target.as_ref().and_then(|t| t.caches.as_ref());
        let n_cells = match lent {
            Some(caches) if swa => caches.window[0].ne[1],
            Some(caches) => caches.full[0].ne[1],
            None if swa => cp.n_ctx_swa(hp.n_swa),
            None => cp.n_ctx_seq,
        };
        let n_kv = self.n_read(n_cells);
        let n_stream = self.n_stream();
        let n_v = if cp.v_trans {
            n_tokens * hp.n_embd_v_gqa_max()
        } else {
            n_tokens
        };
        let k_idxs = self.input("attn_inp_k_idxs", Type::I64, [n_tokens, 1, 1, 1]);
        let v_idxs = self.input("attn_inp_v_idxs", Type::I64, [n_v, 1, 1, 1]);
        let ty = if cp.flash_attn { Type::F16 } else { Type::F32 };
        let mask = self.input(
            "attn_inp_kq_mask",
            ty,
            [n_kv, n_tokens / n_stream, 1, n_stream],
        );
        let (k_rot, v_rot) = self.rotations(swa);
        AttnInput {
            k_idxs,
            v_idxs,
            mask,
            k_rot,
            v_rot,
            n_kv,
        }
    }

    /// The Hadamard matrices of one cache: when it is quantised and heads are multiples of 64.
    fn rotations(&mut self, swa: bool) -> (Option<TensorId>, Option<TensorId>) {
        let (hp, cp) = (self.hp, self.cp);
        let lent = cp.role.target.as_ref().and_then(|t| t.caches.as_ref());
        let (type_k, type_v) = lent.map_or((cp.type_k, cp.type_v), |caches| {
            (caches.full[0].ty, caches.full[1].ty)
        });
        let in_cache = |l: &&crate::hparams::LayerHparams| !hp.has_swa_layers || l.is_swa == swa;
        let Some(layer) = hp.layers.iter().find(in_cache) else {
            return (None, None);
        };
        let rotates = |ty: Type, n: i64| ty.is_quantized() && n > 0 && n % MIN_ROTATION == 0;
        let head_k = layer.n_embd_head_k;
        let k = rotates(type_k, head_k).then(|| {
            let mut n = MIN_ROTATION;
            while head_k % (2 * n) == 0 {
                n *= 2;
            }
            self.input("attn_inp_k_rot", Type::F32, [n, n, 1, 1])
        });
        let v = (rotates(type_v, layer.n_embd_head_v) && hp.mla.is_none()).then(|| {
            self.input(
                "attn_inp_v_rot",
                Type::F32,
                [MIN_ROTATION, MIN_ROTATION, 1, 1],
            )
        });
        (k, v)
    }

    /// Which states are read: all, those of the batch, and the others, which may move.
    fn build_state_ids(&mut self) {
        let (n_states, n_seqs) = (self.cp.n_seq_max, self.n_seqs);
        let all = self.input("inp_s_copy", Type::I32, [n_states, 1, 1, 1]);
        let main = self.view_1d(all, n_seqs);
        let extra = self.view_1d(all, n_states - n_seqs);
        self.state_ids = Some([all, main, extra]);
    }
}
