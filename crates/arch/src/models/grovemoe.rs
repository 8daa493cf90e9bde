//! GroveMoE: neighbouring experts share a small one, which works on what they return.

use super::Architecture;
use super::llama::pre_norm_layer;
use crate::graph::{Bank, LlmGraph, MoeOptions};
use crate::names::Kind;
use vramfit_ggml::{TensorId, Type, Unary};

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[Architecture::new("grovemoe", graph)];

const SHARED: Bank = Bank {
    up: Kind::FfnUpChexps,
    gate: Kind::FfnGateChexps,
    down: Kind::FfnDownChexps,
};

fn graph(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let options = MoeOptions::softmax(true);
    g.layers(x, |g, x, il| {
        let attention = |g: &mut LlmGraph<'_>, n| g.rotated_attention(n, None, il);
        let ffn = |g: &mut LlmGraph<'_>, n| {
            let logits = g.linear(n, Kind::FfnGateInp, il);
            let n_expert = g[logits].ne[0];
            let route = choose(g, logits, n_expert, il);
            let cur = g.experts(n, route, Bank::ROUTED, options, il);
            let first = g.weight(il, SHARED.up);
            let n_shared = g[first].ne[2];
            let route = choose(g, logits, n_shared, il);
            let shared = g.experts(cur, route, SHARED, options, il);
            let shared = g.scale(shared);
            g.add(cur, shared)
        };
        pre_norm_layer(g, x, il, attention, ffn)
    });
}

/// Experts by their sigmoid and weights by their softmax. Where fewer than all are there, the
/// number of a chosen one is divided by how many share it.
fn choose(g: &mut LlmGraph<'_>, logits: TensorId, n_there: i64, il: usize) -> (TensorId, TensorId) {
    let [n_expert, n_tokens, ..] = g[logits].ne;
    let n_used = g.hp.layers[il].n_expert_used.min(n_there);
    let scores = g.unary(Unary::Sigmoid, logits);
    let mut ids = g.argsort_top_k(scores, n_used);
    if n_there != n_expert {
        let numbers = g.cast(ids, Type::F32);
        let numbers = g.scale(numbers);
        ids = g.cast(numbers, Type::I32);
    }
    let probs = g.soft_max(logits, None, None);
    let probs = g.reshape(probs, [1, n_expert, n_tokens, 1]);
    let weights = g.get_rows(probs, ids);
    let weights = g.norm_weights(weights);
    g.expand(weights);
    (ids, weights)
}
