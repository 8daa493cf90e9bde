//! BERT and Nomic BERT: encoders, norms behind each block, no KV cache, no logits.

use super::Architecture;
use crate::Result;
use crate::graph::{Ffn, LlmGraph};
use crate::hparams::Hparams;
use crate::keys::Keys;
use crate::names::{Global, Kind, Part};
use vramfit_ggml::TensorId;

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    Architecture::new("bert", graph)
        .reads(hparams)
        .layer_norm()
        .no_lm_head(),
    Architecture::new("nomic-bert", nomic)
        .reads(hparams)
        .layer_norm()
        .no_lm_head(),
];

pub(super) fn hparams(_: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.has_memory = false;
    Ok(())
}

/// Learned positions.
pub(super) fn graph(g: &mut LlmGraph<'_>) {
    let x = embed_types(g);
    let table = g.input_weight(Global::PositionEmbd);
    let table = g.required(Global::PositionEmbd, table);
    let Some(pos) = g.pos else { return };
    let positions = g.get_rows(table, pos);
    let x = g.add(positions, x);
    encoder(g, x, false, Ffn::Gelu);
}

/// Rotated positions, a gate on the feed-forward block.
pub(super) fn nomic(g: &mut LlmGraph<'_>) {
    let x = embed_types(g);
    encoder(g, x, true, Ffn::Silu);
}

/// Token embeddings and that of the first token type.
fn embed_types(g: &mut LlmGraph<'_>) -> TensorId {
    let x = g.embed(false);
    let Some(types) = g.input_weight(Global::TokenTypes) else {
        return x;
    };
    let n_embd = g.hp.n_embd;
    let first = g.view_1d(types, n_embd);
    g.add(x, first)
}

fn encoder(g: &mut LlmGraph<'_>, x: TensorId, rotated: bool, ffn: Ffn) {
    let w = g.global_of_layer(Global::TokenEmbdNorm, Part::Weight, 0);
    let b = g.global_of_layer(Global::TokenEmbdNorm, Part::Bias, 0);
    let mut x = g.norm_with(x, w, b, Some(0));
    for il in 0..g.hp.n_layer() {
        let mut qkv = g.qkv(x, il);
        if rotated {
            qkv = g.rotate_qk(qkv, None);
        }
        let cur = g.attention_no_cache(qkv, il);
        let cur = g.last_rows(il, cur);
        let residual = g.last_rows(il, x);
        let h = g.add(cur, residual);
        let h = g.norm(h, Kind::AttnOutputNorm, il);
        let cur = g.ffn(h, ffn, il);
        let cur = g.add(cur, h);
        x = g.norm(cur, Kind::LayerOutNorm, il);
    }
    g.set_output(x);
    g.set_embeddings(x);
}
