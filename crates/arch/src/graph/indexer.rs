//! DeepSeek sparse attention: a small attention of its own, the lightning indexer, chooses the
//! cells of the cache that each token attends to.

use super::LlmGraph;
use crate::cache::CacheKind;
use crate::hparams::Indexer;
use crate::names::Kind;
use vramfit_ggml::{Op, TensorId, Type};

/// What the indexer reads beside its cache.
#[derive(Clone, Copy)]
pub(super) struct IndexInput {
    k_idxs: TensorId,
    mask: TensorId,
    /// A Hadamard matrix as wide as a head.
    rot: TensorId,
    n_kv: i64,
}

impl LlmGraph<'_> {
    pub(super) fn indexer(&mut self) -> Indexer {
        match self.hp.indexer {
            Some(indexer) => indexer,
            None => {
                self.missing("attention.indexer.head_count".to_string());
                Indexer {
                    n_head: 1,
                    head: 1,
                    top_k: 1,
                    block: None,
                    caches_values: false,
                }
            }
        }
    }

    /// The cache and the mask of the indexer, shared by its layers.
    fn index_input(&mut self, head: i64) -> IndexInput {
        if let Some(input) = self.index_input {
            return input;
        }
        let n_kv = self.n_read(self.cp.n_ctx_seq);
        let (n_tokens, n_stream) = (self.n_tokens, self.n_stream());
        let mut n = 64;
        while head > 0 && head % (2 * n) == 0 {
            n *= 2;
        }
        let mask = [n_kv, n_tokens / n_stream.max(1), 1, n_stream];
        let input = IndexInput {
            k_idxs: self.input("attn_inp_k_idxs", Type::I64, [n_tokens, 1, 1, 1]),
            mask: self.input("attn_inp_kq_mask", Type::F16, mask),
            rot: self.input("attn_inp_k_rot", Type::F32, [n, n, 1, 1]),
            n_kv,
        };
        *self.index_input.insert(input)
    }

    /// The cells that the indexer of layer `il` chooses, `[top_k, tokens, 1, streams]`. Its Q is
    /// made of `q_low`, the compressed Q of the layer, K and the weights of its heads of `x`.
    /// `rotated`: Q and K are multiplied by a Hadamard matrix.
    pub fn choose_cells(
        &mut self,
        x: TensorId,
        q_low: TensorId,
        rotated: bool,
        il: usize,
    ) -> TensorId {
        let Indexer {
            n_head,
            head,
            top_k,
            ..
        } = self.indexer();
        let (input, n_tokens) = (self.index_input(head), self.n_tokens);
        let q = self.linear(q_low, Kind::IndexerAttnQB, il);
        let q = self.reshape(q, [head, n_head, n_tokens, 1]);
        let mut q = self.rotate(q, None);
        let k = self.linear(x, Kind::IndexerAttnK, il);
        let k = self.layer_norm(k, Kind::IndexerKNorm, il);
        let k = self.reshape(k, [head, 1, n_tokens, 1]);
        let mut k = self.rotate(k, None);
        if rotated {
            q = self.mul_mat(input.rot, q);
            k = self.mul_mat(input.rot, k);
        }
        let cache = self.cache(il, CacheKind::Index);
        self.store_rows(k, cache, input.k_idxs);
        let weights = self.linear(x, Kind::IndexerProj, il);
        let k = self.index_keys(cache, input.n_kv);
        let scores = self.index_scores([q, k, weights], input.mask, il);
        let n = top_k.min(self[scores].ne[0]);
        let chosen = self.top_k(scores, n);
        self.cont(chosen)
    }

    /// K of all cells of the indexer's cache: one head.
    pub fn index_keys(&mut self, cache: TensorId, n_kv: i64) -> TensorId {
        let (ne, nb) = (self[cache].ne, self[cache].nb);
        let n_stream = ne[2].min(self.n_seqs);
        self.view_4d(cache, [ne[0], 1, n_kv, n_stream], [nb[1], nb[1], nb[2]])
    }

    /// How well each cell answers each token: `[n_kv, tokens, 1, streams]`.
    fn index_scores(
        &mut self,
        [q, k, weights]: [TensorId; 3],
        mask: TensorId,
        il: usize,
    ) -> TensorId {
        let n_stream = self[k].ne[3];
        let q = self.heads_by_stream(q, n_stream);
        let weights = self.weights_by_stream(weights, n_stream);
        let weights = self.scale(weights);
        let scores = self.lightning_indexer([q, k, weights, mask]);
        self.name_layer(scores, "indexer_score", il);
        scores
    }

    /// Q of an indexer, `[head, n_head, tokens]`, taken apart into streams.
    pub fn heads_by_stream(&mut self, q: TensorId, n_stream: i64) -> TensorId {
        let (n, ne, nb) = (n_stream.max(1), self[q].ne, self[q].nb);
        let heads = [ne[0], ne[1], ne[2] / n, n];
        self.view_4d(q, heads, [nb[1], nb[2], nb[3] / n as u64])
    }

    /// Weights of an indexer's heads, `[n_head, tokens]`, taken apart into streams.
    pub fn weights_by_stream(&mut self, weights: TensorId, n_stream: i64) -> TensorId {
        let (n, ne, nb) = (n_stream.max(1), self[weights].ne, self[weights].nb);
        let strides = [nb[1], nb[2] / n as u64, nb[3] / n as u64];
        self.view_4d(weights, [ne[0], ne[1] / n, ne[2], n], strides)
    }

    /// `mask` with every cell but the `chosen` ones of each token masked; `ty` is what opens them.
    pub fn mask_others(&mut self, mask: TensorId, chosen: TensorId, ty: Type) -> TensorId {
        let all = self.map(Op::Fill, mask);
        let (ne, nb) = (self[all].ne, self[all].nb);
        let cells = self.view_4d(all, [1, ne[0], ne[1], ne[3]], [nb[0], nb[1], nb[2]]);
        let (ne, nb) = (self[chosen].ne, self[chosen].nb);
        let streams = nb[3].saturating_mul(ne[3].max(0) as u64);
        let chosen = self.view_4d(chosen, [ne[0], ne[1], ne[3], 1], [nb[1], nb[2], streams]);
        let zeros = self.new_tensor(Op::None, ty, [1, ne[0], ne[1], ne[3]], &[]);
        let zeros = self.map(Op::Fill, zeros);
        let open = self.set_rows(cells, zeros, chosen);
        let (ne, nb) = (self[open].ne, self[open].nb);
        let open = self.view_4d(open, [ne[1], ne[2], 1, ne[3]], [nb[2], nb[3], nb[3]]);
        self.add(open, mask)
    }
}
