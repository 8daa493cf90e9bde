//! Granite, dense, with experts, with Mamba 2 layers or with sliding windows, and MiniCPM: what a
//! layer adds is scaled.

use super::{Architecture, mamba};
use crate::Result;
use crate::graph::{Ffn, LlmGraph, MoeOptions};
use crate::hparams::Hparams;
use crate::keys::Keys;
use crate::names::Kind;
use std::collections::BTreeSet;

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    Architecture::new("granite", graph).constants(&[
        "embedding_scale",
        "logit_scale",
        "residual_scale",
    ]),
    Architecture::new("granite_swa", graph)
        .constants(&["embedding_scale", "logit_scale", "residual_scale"])
        .reads(swa_hparams),
    Architecture::new("granitehybrid", graph)
        .whole()
        .constants(&["embedding_scale", "logit_scale", "residual_scale"])
        .reads(mamba::hybrid_hparams),
    Architecture::new("granitemoe", graph).constants(&[
        "embedding_scale",
        "logit_scale",
        "residual_scale",
    ]),
    Architecture::new("minicpm", graph)
        .constants(&["embedding_scale", "logit_scale", "residual_scale"])
        .reads(minicpm_hparams),
];

/// Scales are there unless the file turns them off.
fn minicpm_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    let stays_on = |key| keys.float(key).map(|scale| scale != Some(0.0));
    hp.scales_embeddings = stays_on("embedding_scale")?;
    hp.scales_residual = stays_on("residual_scale")?;
    hp.scales_logits = true;
    hp.no_rope = false;
    Ok(())
}

fn swa_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.lacks_n_ff_exp = true;
    hp.scales_logits = true;
    hp.no_rope = false;
    hp.set_swa(keys, Hparams::window(keys)?, 0)?;
    set_deepstack(keys, hp)?;
    let pattern = keys.array("attention.rope_pattern", hp.n_layer(), 1)?;
    for (layer, rotates) in hp.layers.iter_mut().zip(pattern.into_iter().flatten()) {
        layer.has_rope = rotates != 0;
    }
    Ok(())
}

/// Which slice of an image's embedding is added before each layer; -1 for none. The first layer has
/// one as it is.
fn set_deepstack(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    let mapping = keys.array("deepstack_mapping", hp.n_layer(), -1)?;
    let Some(mapping) = mapping else {
        return Ok(());
    };
    let slices: BTreeSet<i64> = mapping.iter().copied().filter(|&i| i >= 0).collect();
    hp.n_deepstack = slices.len() as i64;
    for (layer, slice) in hp.layers.iter_mut().zip(mapping.into_iter().skip(1)) {
        layer.adds_input = slice >= 0;
    }
    Ok(())
}

pub(super) fn graph(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    // Where the shared experts have no gate, it is in one matrix with up.
    let options = MoeOptions {
        activation: Ffn::SwigluFused,
        ..MoeOptions::softmax(true)
    };
    g.layers(x, |g, x, il| {
        let n = g.norm(x, Kind::AttnNorm, il);
        let cur = if g.hp.layers[il].is_recurrent {
            g.mamba2(n, il)
        } else {
            let factors = g.rope_factors(il);
            let mut qkv = g.qkv(n, il);
            if !g.hp.no_rope && g.hp.layers[il].has_rope {
                qkv = g.rotate_qk(qkv, factors);
            }
            g.attention(qkv, il)
        };
        let mut cur = g.last_rows(il, cur);
        let residual = g.last_rows(il, x);
        if g.hp.scales_residual {
            cur = g.scale(cur);
        }
        let h = g.add(cur, residual);
        let n = g.norm(h, Kind::FfnNorm, il);
        let mut cur = g.ffn_or_moe(n, options, il);
        if g.hp.scales_residual {
            cur = g.scale(cur);
        }
        g.add(cur, h)
    });
}
