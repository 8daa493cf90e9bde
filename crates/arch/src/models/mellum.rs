//! Mellum 2 and Maple: Qwen 3's layers with experts, windows on most of them.

use super::llama::pre_norm_layer;
use super::{Architecture, qwen};
use crate::Result;
use crate::graph::{Ffn, LlmGraph, MoeOptions, Scale};
use crate::hparams::Hparams;
use crate::keys::Keys;

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    Architecture::new("maple", maple).reads(maple_hparams),
    Architecture::new("mellum", qwen::graph)
        .scales(&[Scale::Experts])
        .reads(mellum_hparams),
];

fn mellum_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.set_swa(keys, Hparams::window(keys)?, 4)
}

fn maple_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    let limits = keys.floats("swiglu_clamp_exp", hp.n_layer())?;
    for (layer, limit) in hp.layers.iter_mut().zip(limits) {
        layer.clamps_experts = limit > 1e-6;
    }
    hp.set_swa(keys, Hparams::window(keys)?, 0)
}

/// Maple: only layers with a window rotate, experts may be clamped.
fn maple(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let shape = g.hp.layers[il];
        let activation = if shape.clamps_experts {
            Ffn::SwigluClamp
        } else {
            Ffn::Silu
        };
        let options = MoeOptions {
            activation,
            ..MoeOptions::softmax(true)
        };
        let attention = |g: &mut LlmGraph<'_>, n| {
            let qkv = g.qkv(n, il);
            let mut qkv = g.qk_norm(qkv, il);
            if shape.is_swa {
                qkv = g.rotate_qk(qkv, None);
            }
            g.attention(qkv, il)
        };
        let ffn = |g: &mut LlmGraph<'_>, n| g.moe(n, options, il);
        pre_norm_layer(g, x, il, attention, ffn)
    });
}
