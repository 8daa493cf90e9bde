//! Qwen2-VL and Qwen3-VL: Qwen with positions in three dimensions, and with images that have an
//! embedding for each of the first layers.

use super::{Architecture, qwen};
use crate::Result;
use crate::graph::{LlmGraph, MoeOptions, RankHead};
use crate::hparams::{Hparams, limits};
use crate::keys::Keys;
use crate::names::{Global, Part};

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    Architecture::new("paddleocr", qwen::graph).reads(hparams),
    Architecture::new("qwen2vl", qwen::graph)
        .reads(hparams)
        .no_output_bias(),
    Architecture::new("qwen3tts", tts)
        .whole()
        .reads(deepstack_hparams),
    Architecture::new("qwen3vl", tts)
        .reads(deepstack_hparams)
        .ranks_by(RankHead::Softmax),
    Architecture::new("qwen3vlmoe", qwen::graph).reads(deepstack_hparams),
];

fn hparams(_: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.n_pos_per_embd = 4;
    Ok(())
}

/// Behind each of the first `n_deepstack_layers` layers a slice of the input is added.
fn deepstack_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    let n = keys.int("n_deepstack_layers", limits::LAYERS)?;
    hp.n_deepstack = n.unwrap_or(0);
    for layer in hp.layers.iter_mut().take(hp.n_deepstack as usize) {
        layer.adds_input = true;
    }
    hparams(keys, hp)
}

/// Qwen3-TTS: logits of sound only, minus infinity in front for every token of text.
fn tts(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let layer = |g: &mut LlmGraph<'_>, x, il| qwen::layer(g, x, MoeOptions::softmax(true), il);
    let embd = g.layers_and_norm(x, layer);
    let (n_vocab, n_rows) = (g.hp.n_vocab, g.n_output_rows());
    if n_rows >= n_vocab {
        return g.lm_head(embd, embd);
    }
    g.set_embeddings(embd);
    let logits = g.logits(embd);
    let n = g[logits].ne[1];
    let norm = g.output_weight(Global::OutputNorm, Part::Weight);
    let norm = g.required(Global::OutputNorm, norm);
    let one = g.view_1d(norm, 1);
    let one = g.scale(one);
    let text = g.repeat(one, [n_vocab - n_rows, n, 1, 1]);
    let logits = g.concat(text, logits, 0);
    g.set_output(logits);
}
