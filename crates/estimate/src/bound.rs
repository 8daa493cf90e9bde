//! What an architecture that is not known takes at most: caches for every matrix that may feed one, and compute
//! buffers in which no two results of a layer share memory.
//!
//! The bounds rest on what models do with the matrices they have: each is applied to every token of the batch
//! once, and a few results of its size surround it. tests/bound.rs holds them against every known architecture,
//! treated as unknown.

use crate::simulate::{Context, Needs};
use crate::{Bounded, Pass};
use std::collections::BTreeSet;
use vramfit_arch::hparams::LayerHparams;
use vramfit_arch::{Global, Kind, ModelTensor, Name, Part, Unknown, Use};
use vramfit_ggml::cuda::{AnyOrder, Batches, PoolKind, PoolUse};
use vramfit_ggml::{Backend, BufferType, Flags, Graph, Op, Type};

/// Results of a matrix's size around its product: the product itself, a bias, a norm, what it is
/// reordered or activated into.
const RESULTS_PER_MATRIX: u64 = 5;
/// Results of the residual stream's width in a layer, beside those of its matrices.
const RESULTS_PER_LAYER: u64 = 16;
/// Matrices of scores alive at once: as computed, masked or capped, as weights.
const SCORES: u64 = 2;
/// Results of the inner width around a scan or a delta rule over the batch.
const RESULTS_PER_SCAN: u64 = 48;
/// Weights that one split may take in (`GGML_SCHED_MAX_SPLIT_INPUTS`).
const SPLIT_INPUTS: usize = 30;
/// Buffers of the pool that an operation of attention holds at once: operands, result, pointers.
const BUFFERS_OF_ATTENTION: usize = 5;
/// Rows of the few tokens whose logits are wanted, as any kernel takes them, bytes.
const ROWS_OF_OUTPUTS: u64 = 1 << 20;
/// And a scan over chunks.
const BUFFERS_OF_SCAN: usize = 7;
const FLOAT: u64 = Type::F32.type_size();

/// Sizes that all parts of the bound are made of.
struct Shape {
    n_tokens: u64,
    n_outputs: u64,
    n_seqs: u64,
    n_kv: u64,
    /// Width of the residual stream, or streams.
    n_stream: u64,
}

fn count(n: i64) -> u64 {
    n.max(0) as u64
}

fn product<const N: usize>(factors: [u64; N]) -> u64 {
    factors.iter().fold(1, |p: u64, &n| p.saturating_mul(n))
}

fn sum(terms: impl IntoIterator<Item = u64>) -> u64 {
    terms.into_iter().fold(0, u64::saturating_add)
}

impl Context<'_> {
    /// What is a bound of this model.
    pub(crate) fn bounded(&self) -> Bounded {
        let mut indices = 0..self.model.tensors.len();
        match self.model.is_known() {
            true => Bounded::Nothing,
            false if indices.any(|i| self.model.has_two_homes(i)) => Bounded::Everything,
            false => Bounded::AllButWeights,
        }
    }

    fn unknown(&self) -> Unknown {
        self.model.hparams.unknown.unwrap_or_default()
    }

    fn shape(&self) -> Shape {
        let [prompt, generation] = Pass::ALL.map(|pass| self.batch(pass));
        let (n_streams, n_embd) = (self.unknown().n_streams, self.model.hparams.n_embd);
        Shape {
            n_tokens: count(prompt.n_tokens.max(generation.n_tokens)),
            n_outputs: count(prompt.n_outputs.max(generation.n_outputs)),
            n_seqs: count(self.params.n_seq_max),
            n_kv: count(self.params.n_ctx),
            n_stream: count(n_streams.max(1).saturating_mul(n_embd)),
        }
    }

    fn layers(&self) -> std::ops::Range<usize> {
        0..self.model.hparams.n_layer()
    }

    /// Experts a token, of the layer that has the most.
    fn n_expert_used(&self) -> u64 {
        let layers = self.model.hparams.layers.iter();
        layers
            .map(|l| count(l.n_expert_used))
            .max()
            .unwrap_or(0)
            .max(1)
    }

    /// Elements that layer `il` caches a token.
    fn cached_row(&self, il: usize) -> u64 {
        let hp = &self.model.hparams;
        let heads =
            |layer: &LayerHparams| layer.n_embd_k_gqa().saturating_add(hp.n_embd_v_gqa_max());
        let heads = hp.layers.get(il).map_or(0, heads);
        let sources = self
            .model
            .unknown_layer(il)
            .filter(|t| may_be_cached(hp.n_embd, t));
        let projected = sum(sources.map(|t| count(t.ne[1])));
        count(heads).max(projected)
    }

    /// Bytes of the caches and states of layer `il`.
    pub(crate) fn cache_bound(&self, il: usize) -> u64 {
        let shape = self.shape();
        let widest = [self.params.type_k, self.params.type_v, Type::F16];
        let row = self.cached_row(il).next_multiple_of(256);
        let row = widest.iter().map(|ty| ty.row_size(row)).max().unwrap_or(0);
        let state = product([count(self.unknown().n_state), shape.n_seqs, FLOAT]);
        product([row, shape.n_kv]).saturating_add(state)
    }

    /// What each backend takes for compute buffers and while it computes.
    pub(crate) fn bound(&self) -> Vec<Needs> {
        let shape = self.shape();
        let layers = self.layers().map(|il| self.layer_bound(il, &shape));
        let layer = layers.max().unwrap_or(0);
        let compute_bytes = sum([
            self.inputs_bound(&shape),
            layer,
            self.output_bound(&shape),
            self.moved_weights_bound(),
            self.fallback_bound(&shape),
            self.host_matrices_bound(&shape),
        ]);
        let products = self.products(&shape);
        let of_backend = |backend| Needs {
            compute_bytes,
            pool: self.pool_bound(backend, &products, &shape),
        };
        self.backends.iter().map(of_backend).collect()
    }

    /// Inputs and what crosses from one device to the next, each in all copies.
    fn inputs_bound(&self, shape: &Shape) -> u64 {
        let masks = product([2, shape.n_kv, shape.n_tokens, FLOAT]);
        let width = count(self.model.hparams.n_embd_v_gqa_max()).max(16);
        let places = product([2, shape.n_tokens, width, Type::I64.type_size()]);
        let streams = product([8, shape.n_stream, shape.n_tokens, FLOAT]);
        let bias = match self.unknown().has_score_bias {
            true => sum(self.layers().map(|il| self.attention_bound(il, shape))),
            false => 0,
        };
        let inputs = sum([masks, places, streams, bias, 4 << 20]);
        product([self.n_copies as u64, inputs])
    }

    /// All results of one layer.
    fn layer_bound(&self, il: usize, shape: &Shape) -> u64 {
        let n_used = self.n_expert_used();
        let applied = |t: &ModelTensor| match t.role {
            Name::Layer(_, kind, _) if kind.used_by() == Use::MulMatId => {
                product([count(t.ne[1]), n_used])
            }
            _ if t.ne[1] > 1 => product([count(t.ne[1]), count(t.ne[2]).max(1)]),
            _ => 0,
        };
        let widths = sum(self.model.unknown_layer(il).map(applied));
        let stream = product([RESULTS_PER_LAYER + n_used, shape.n_stream]);
        let per_token = sum([
            product([RESULTS_PER_MATRIX, widths]),
            stream,
            self.scan_width(),
        ]);
        let state = product([6, count(self.unknown().n_state), shape.n_seqs, FLOAT]);
        sum([
            product([per_token, shape.n_tokens, FLOAT]),
            self.attention_bound(il, shape),
            state,
        ])
    }

    fn scan_width(&self) -> u64 {
        let inner = self.model.hparams.ssm.map_or(0, |ssm| count(ssm.d_inner));
        product([RESULTS_PER_SCAN, inner])
    }

    /// Scores, since an architecture may do without flash attention whatever is asked, and keys and values once more as
    /// floats.
    fn attention_bound(&self, il: usize, shape: &Shape) -> u64 {
        let layer = self.model.hparams.layers.get(il);
        let n_head = layer.map_or(0, |l| count(l.n_head));
        let indexer = product([2, count(self.unknown().n_indexer_head)]);
        let scores = product([
            (SCORES * n_head).saturating_add(indexer),
            shape.n_kv,
            shape.n_tokens,
            FLOAT,
        ]);
        let again = product([2, self.cached_row(il), shape.n_kv, FLOAT]);
        scores.saturating_add(again)
    }

    /// Attention that some device has no kernel for goes to the host, and that to the cache of another layer may
    /// be on another device. With pipelined devices all its operands cross in copies that live as long as the graph.
    fn fallback_bound(&self, shape: &Shape) -> u64 {
        let has_kernels = !self.params.flash_attn || self.attention_runs_everywhere(shape);
        if self.n_copies == 1 || (has_kernels && !self.unknown().shares_caches) {
            return 0;
        }
        let of_layer = |il: usize| {
            let heads = self.model.hparams.layers.get(il);
            let width = heads.map_or(0, |l| {
                l.n_head
                    .saturating_mul(l.n_embd_head_k.max(l.n_embd_head_v))
            });
            let operands = product([3, count(width), shape.n_tokens, FLOAT]);
            self.cache_bound(il).saturating_add(operands)
        };
        let layers = sum(self.layers().map(of_layer));
        product([self.n_copies as u64, layers])
    }

    /// Matrices that no device can read are on the host, among layers on devices: with pipelined devices what goes in and
    /// out of them crosses in copies that live as long as the graph.
    fn host_matrices_bound(&self, shape: &Shape) -> u64 {
        if self.n_copies == 1 {
            return 0;
        }
        let crosses = |i: &usize| {
            let tensor = &self.model.tensors[*i];
            let home = tensor.role.layer().map(|il| self.weights.layer(il));
            tensor.ne[1] > 1 && home.is_some_and(|home| self.weights.buffer(*i, home) != home)
        };
        let width = |i: usize| {
            let ne = self.model.tensors[i].ne;
            count(ne[0]).saturating_add(count(ne[1]))
        };
        let widths = sum((0..self.model.tensors.len()).filter(crosses).map(width));
        product([self.n_copies as u64, widths, shape.n_tokens, FLOAT])
    }

    /// Every device has a flash attention kernel for every layer's heads.
    fn attention_runs_everywhere(&self, shape: &Shape) -> bool {
        let runs = |layer: &LayerHparams| {
            let (n, n_kv) = (shape.n_tokens as i64, self.params.n_ctx_seq);
            let mut g = Graph::with_capacity(8);
            let head = |d, n, h| [d, n, h, 1];
            let q = g.new_tensor(
                Op::None,
                Type::F32,
                head(layer.n_embd_head_k, n, layer.n_head),
                &[],
            );
            let k = g.new_tensor(
                Op::None,
                self.params.type_k,
                head(layer.n_embd_head_k, n_kv, layer.n_head_kv),
                &[],
            );
            let v = g.new_tensor(
                Op::None,
                self.params.type_v,
                head(layer.n_embd_head_v, n_kv, layer.n_head_kv),
                &[],
            );
            let mask = g.new_tensor(Op::None, Type::F16, [n_kv, n, 1, 1], &[]);
            let node = g.flash_attn([q, k, v], mask, None);
            g.error().is_none() && self.backends.iter().all(|b| b.supports_op(&g, node))
        };
        let mut layers = self.model.hparams.layers.iter().filter(|l| l.n_head_kv > 0);
        layers.all(runs)
    }

    fn output_bound(&self, shape: &Shape) -> u64 {
        let n_vocab = self.model.hparams.n_vocab;
        let rows = self
            .model
            .global_tensor(Global::Output, Part::Weight)
            .map(|i| self.model.tensors[i].ne[1]);
        let logits = product([
            3,
            count(rows.unwrap_or(n_vocab).max(n_vocab)),
            shape.n_outputs,
            FLOAT,
        ]);
        logits.saturating_add(product([4, shape.n_stream, shape.n_tokens, FLOAT]))
    }

    /// Weights on the host that a device computes with, a split's worth. Tables that are looked up by row stay.
    fn moved_weights_bound(&self) -> u64 {
        if !self.params.op_offload || self.backends.len() == 1 {
            return 0;
        }
        let loaded = self.weights.loaded(self.model);
        // The embedding again is an output matrix.
        let is_table = |i: usize| match self.model.tensors[loaded[i].tensor].role {
            Name::Global(g, _) if g.used_by() == Use::GetRows => {
                i == 0 || loaded[i - 1].tensor != loaded[i].tensor
            }
            _ => false,
        };
        let on_host =
            (0..loaded.len()).filter(|&i| loaded[i].buffer == BufferType::HOST && !is_table(i));
        let mut sizes: Vec<u64> = on_host
            .map(|i| self.model.tensors[loaded[i].tensor].n_bytes)
            .collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        sum(sizes.into_iter().take(SPLIT_INPUTS))
    }

    /// What a scan over chunks of 256 tokens (Mamba 2) takes from the pool.
    fn scan_pool_bound(&self, shape: &Shape) -> u64 {
        const CHUNK: u64 = 256;
        let Some(ssm) = self.model.hparams.ssm else {
            return 0;
        };
        let [n_head, n_group] = [ssm.dt_rank, ssm.n_group].map(|n| count(n).max(1));
        let per_head = sum([product([6 * CHUNK, count(ssm.d_state)]), 2 * CHUNK * CHUNK]);
        let chunk = sum([
            product([4 * CHUNK * CHUNK, n_group]),
            product([2 * CHUNK, count(ssm.d_inner)]),
            product([n_head, per_head]),
        ]);
        let steps = product([8, shape.n_tokens, n_head]);
        steps.saturating_add(product([shape.n_seqs, chunk]))
    }

    /// The matrix whose product takes most from the pool of `backend`, beside attention's scores.
    fn pool_bound(&self, backend: &Backend, products: &Graph, shape: &Shape) -> PoolUse {
        let Backend::Cuda(cuda) = backend else {
            return PoolUse::default();
        };
        let layers = self.layers().map(|il| self.attention_bound(il, shape));
        let attention = layers.max().unwrap_or(0);
        let scan = self.scan_pool_bound(shape);
        let (bytes, least_bytes) = match cuda.pool {
            PoolKind::Vmm => {
                let matmul = cuda.pool_use_of(products, &products.nodes, Batches::UpToOwn);
                let matmul = matmul.bytes;
                let bytes = sum([matmul, attention, scan]);
                (bytes, bytes)
            }
            PoolKind::Legacy => {
                let mut asked = AnyOrder::default();
                let single = self.products(&Shape {
                    n_tokens: shape.n_seqs,
                    ..*shape
                });
                for cuda in cuda.with_each_sm_count() {
                    for products in [products, &single] {
                        asked.compute(&cuda, products, products.nodes.iter().copied());
                    }
                }
                asked.hold_at_once(match scan {
                    0 => BUFFERS_OF_ATTENTION,
                    _ => BUFFERS_OF_SCAN,
                });
                let any = attention.max(scan).max(ROWS_OF_OUTPUTS);
                (asked.bytes(any), asked.least(any))
            }
        };
        PoolUse {
            bytes,
            kind: cuda.pool,
            own_bytes: bytes,
            filled_bytes: bytes,
            least_bytes,
            uses_cublas: true,
            is_bound: true,
            peak: None,
        }
    }

    /// Every kind of matrix in the model times the batch, as a matrix, as experts, and summed in f32.
    fn products(&self, shape: &Shape) -> Graph {
        let matrices = self.model.tensors.iter().filter(|t| t.ne[1] > 1);
        let kinds: BTreeSet<_> = matrices.map(|t| (t.ty, t.ne)).collect();
        let mut g = Graph::with_capacity(8 * kinds.len());
        let [n_tokens, n_used] = [shape.n_tokens, self.n_expert_used()].map(|n| n as i64);
        let ids = g.new_tensor(Op::None, Type::I32, [n_used, n_tokens, 1, 1], &[]);
        for (ty, ne) in kinds {
            let w = g.new_tensor(Op::None, ty, ne, &[]);
            let x = g.new_tensor(Op::None, Type::F32, [ne[0], n_tokens, ne[2], ne[3]], &[]);
            let mut all = vec![g.mul_mat(w, x), g.mul_mat(w, x)];
            g[all[1]].flags.insert(Flags::PREC_F32);
            if ne[2] > 1 {
                let x = g.new_tensor(Op::None, Type::F32, [ne[0], n_used, n_tokens, 1], &[]);
                all.push(g.mul_mat_id(w, x, ids));
            }
            all.into_iter().for_each(|product| g.expand(product));
        }
        g
    }
}

/// Whether the product with `tensor` may go to a cache: keys, values, what both are made of, and whatever has a name
/// that nobody knows.
fn may_be_cached(n_embd: i64, tensor: &ModelTensor) -> bool {
    let reads_stream = tensor.ne[0] == n_embd && tensor.ne[1] > 1 && tensor.ne[2] == 1;
    reads_stream
        && match tensor.role {
            Name::Layer(_, Kind::AttnK | Kind::AttnV | Kind::AttnQkv, _) => true,
            Name::Layer(_, kind, _) => {
                let sources = ["attn_kv", "attn_compressor", "indexer"];
                sources.iter().any(|source| kind.name().starts_with(source))
            }
            Name::Other(layer) => layer.is_some(),
            Name::Global(..) => false,
        }
}
