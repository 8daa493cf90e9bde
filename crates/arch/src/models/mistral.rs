//! Mistral 3 and 4: Llama and DeepSeek-V2 with a temperature on long contexts.

use super::{Architecture, deepseek, llama};
use crate::Result;
use crate::graph::Scale;
use crate::hparams::Hparams;
use crate::keys::Keys;

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    Architecture::new("mistral3", llama::llama)
        .scales(&[Scale::Dense, Scale::Experts])
        .reads(hparams),
    Architecture::new("mistral4", deepseek::graph)
        .whole()
        .constants(&["expert_weights_scale"])
        .leaves_scales(&[Scale::Output])
        .unadapted(&[super::LATENT])
        .output_unadapted()
        .reads(hparams)
        .f32_experts(),
];

fn hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.attn_temperature = keys.is_set("attention.temperature_scale")?;
    Ok(())
}
