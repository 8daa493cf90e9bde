//! Diffusion models: Llama's and Qwen's layers, but every token attends to the whole batch and no
//! memory is kept.

use super::{Architecture, llama, qwen};
use crate::Result;
use crate::graph::{LlmGraph, MoeOptions};
use crate::hparams::Hparams;
use crate::keys::Keys;

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    Architecture::new("dream", qwen::graph)
        .reads(hparams)
        .no_output_bias(),
    Architecture::new("llada", llama::ernie).reads(hparams),
    Architecture::new("llada-moe", llada_moe).reads(hparams),
    Architecture::new("rnd1", qwen::graph).reads(hparams),
];

fn hparams(_: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.has_memory = false;
    hp.is_causal = false;
    Ok(())
}

fn llada_moe(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        qwen::layer(g, x, MoeOptions::softmax(false), il)
    });
}
