//! MiniMax-M3: Q and K normalised a head, experts with limits behind dense layers, and attention to
//! blocks that an indexer chooses.

use super::Architecture;
use super::llama::pre_norm_layer;
use crate::Result;
use crate::graph::{Ffn, LlmGraph, MoeOptions};
use crate::hparams::{Hparams, limits};
use crate::keys::Keys;
use crate::names::Kind;
use vramfit_ggml::TensorId;

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[Architecture::new("minimax-m3", graph)
    .whole()
    .constants(&["expert_weights_scale"])
    .reads(hparams)
    .large_graph()];

fn hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    keys.require("attention.indexer.block_size", limits::CONTEXT)?;
    let n_dense = keys.int("leading_dense_block_count", limits::LAYERS)?;
    let n_dense = n_dense.unwrap_or(0) as usize;
    hp.set_indexer(keys, |il| il >= n_dense)?;
    if let Some(indexer) = &mut hp.indexer {
        indexer.caches_values = true;
    }
    Ok(())
}

fn graph(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let options = MoeOptions {
        activation: Ffn::SwigluOai,
        ..MoeOptions::of_file(&g.hp.moe)
    };
    g.layers(x, |g, x, il| {
        let attention = |g: &mut LlmGraph<'_>, n| attention(g, n, il);
        let ffn = |g: &mut LlmGraph<'_>, n| {
            if g.has(il, Kind::FfnGateInp) {
                g.ffn_or_moe(n, options, il)
            } else {
                g.ffn(n, Ffn::SwigluOai, il)
            }
        };
        pre_norm_layer(g, x, il, attention, ffn)
    });
}

fn attention(g: &mut LlmGraph<'_>, n: TensorId, il: usize) -> TensorId {
    let qkv = g.qkv(n, il);
    let qkv = g.qk_norm(qkv, il);
    let qkv = g.rotate_qk(qkv, None);
    if !g.hp.layers[il].has_indexer || !g.attends_by_blocks() {
        return g.attention(qkv, il);
    }
    let index = index_qk(g, n, il);
    let cur = g.attend_blocks(qkv, index, il);
    g.linear(cur, Kind::AttnOutput, il)
}

/// Q and K of the indexer.
fn index_qk(g: &mut LlmGraph<'_>, n: TensorId, il: usize) -> [TensorId; 2] {
    let (n_tokens, indexer) = (g.n_tokens, g.hp.indexer);
    let (head, n_head) = indexer.map_or((1, 1), |i| (i.head, i.n_head));
    let of = [
        (Kind::IndexerQProj, Kind::IndexerQNorm, n_head),
        (Kind::IndexerKProj, Kind::IndexerKNorm, 1),
    ];
    of.map(|(matrix, norm, n_head)| {
        let cur = g.linear(n, matrix, il);
        let cur = g.reshape(cur, [head, n_head, n_tokens, 1]);
        let cur = g.norm(cur, norm, il);
        g.rotate(cur, None)
    })
}
