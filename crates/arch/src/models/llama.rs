//! Llama and its near kin: norm, attention, norm, feed-forward, each added to the stream.

use super::Architecture;
use crate::Result;
use crate::graph::{Ffn, LlmGraph, MoeOptions, Scale};
use crate::hparams::{Gating, Hparams};
use crate::keys::Keys;
use crate::names::Kind;
use vramfit_ggml::{TensorId, Type};

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    Architecture::new("ernie4_5", ernie),
    Architecture::new("ernie4_5-moe", ernie),
    Architecture::new("hunyuan-dense", hunyuan).tapped(),
    Architecture::new("hunyuan-moe", hunyuan),
    Architecture::new("hunyuan_vl", hunyuan)
        .tapped()
        .reads(hunyuan_vl_hparams),
    Architecture::new("llama", llama)
        .tapped()
        .scales(&[Scale::Dense, Scale::Experts]),
    Architecture::new("llama-embed", llama_embed)
        .scales(&[Scale::Dense, Scale::Experts])
        .reads(llama_embed_hparams),
    Architecture::new("llama4", llama4).reads(llama4_hparams),
    Architecture::new("maincoder", hunyuan),
    Architecture::new("pangu-embedded", ernie),
    Architecture::new("phi3", phi3),
    Architecture::new("phimoe", phi3),
    Architecture::new("smollm3", smollm3),
];

/// `x + attention(norm(x))`, then `h + ffn(norm(h))`: the pre-norm transformer.
pub(super) fn pre_norm_layer(
    g: &mut LlmGraph<'_>,
    x: TensorId,
    il: usize,
    attention: impl FnOnce(&mut LlmGraph<'_>, TensorId) -> TensorId,
    ffn: impl FnOnce(&mut LlmGraph<'_>, TensorId) -> TensorId,
) -> TensorId {
    pre_norm_layer_named(g, x, il, Kind::FfnNorm, attention, ffn)
}

/// [`pre_norm_layer`], its second norm under another name.
pub(super) fn pre_norm_layer_named(
    g: &mut LlmGraph<'_>,
    x: TensorId,
    il: usize,
    ffn_norm: Kind,
    attention: impl FnOnce(&mut LlmGraph<'_>, TensorId) -> TensorId,
    ffn: impl FnOnce(&mut LlmGraph<'_>, TensorId) -> TensorId,
) -> TensorId {
    let n = g.norm(x, Kind::AttnNorm, il);
    let cur = attention(g, n);
    let cur = g.last_rows(il, cur);
    let residual = g.last_rows(il, x);
    let h = g.add(cur, residual);
    let n = g.norm(h, ffn_norm, il);
    let cur = ffn(g, n);
    g.add(cur, h)
}

/// Llama 1 to 3, Mistral, Mixtral.
pub(super) fn llama(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let temperature = g.attn_temperature();
    g.layers(x, |g, x, il| layer(g, x, temperature, il));
}

fn llama_embed_hparams(_: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.ignores_memory = true;
    Ok(())
}

/// Llama as an encoder.
fn llama_embed(g: &mut LlmGraph<'_>) {
    let mut x = g.embed(false);
    for il in 0..g.hp.n_layer() {
        x = layer(g, x, None, il);
        x = g.control(x, il);
    }
    let x = g.final_norm(x);
    g.end_in_embeddings(x);
}

/// One layer, queries multiplied by `temperature` where the model has one (Mistral 3).
pub(super) fn layer(
    g: &mut LlmGraph<'_>,
    x: TensorId,
    temperature: Option<TensorId>,
    il: usize,
) -> TensorId {
    let attention = |g: &mut LlmGraph<'_>, n| {
        let factors = g.rope_factors(il);
        let qkv = g.qkv(n, il);
        let [mut q, k, v] = g.rotate_qk(qkv, factors);
        if let Some(temperature) = temperature {
            q = g.mul(q, temperature);
        }
        g.attention([q, k, v], il)
    };
    let ffn = |g: &mut LlmGraph<'_>, n| g.ffn_or_moe(n, MoeOptions::softmax(true), il);
    pre_norm_layer(g, x, il, attention, ffn)
}

/// ERNIE 4.5: experts with a selection bias and shared ones beside them. openPangu: dense.
pub(super) fn ernie(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let attention = |g: &mut LlmGraph<'_>, n| g.rotated_attention(n, None, il);
        let ffn = |g: &mut LlmGraph<'_>, n| g.ffn_or_moe(n, MoeOptions::softmax(true), il);
        pre_norm_layer(g, x, il, attention, ffn)
    });
}

fn hunyuan_vl_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.set_mrope(keys)
}

/// Hunyuan, Maincoder: K, then Q, normalised behind the rotation.
pub(super) fn hunyuan(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let attention = |g: &mut LlmGraph<'_>, n| {
            let factors = g.rope_factors(il);
            let qkv = g.qkv(n, il);
            let [q, k, v] = g.rotate_qk(qkv, factors);
            let k = g.norm(k, Kind::AttnKNorm, il);
            let q = g.norm(q, Kind::AttnQNorm, il);
            g.attention([q, k, v], il)
        };
        let ffn = |g: &mut LlmGraph<'_>, n| g.ffn_or_moe(n, MoeOptions::softmax(true), il);
        pre_norm_layer(g, x, il, attention, ffn)
    });
}

/// SmolLM3: every fourth layer without rotation.
pub(super) fn smollm3(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let attention = |g: &mut LlmGraph<'_>, n| {
            let mut qkv = g.qkv(n, il);
            if (il + 1) % 4 != 0 {
                qkv = g.rotate_qk(qkv, None);
            }
            g.attention(qkv, il)
        };
        let ffn = |g: &mut LlmGraph<'_>, n| g.ffn(n, Ffn::Silu, il);
        pre_norm_layer(g, x, il, attention, ffn)
    });
}

/// Phi-3, Phi-3.5 with experts and Phi-4: Q scaled by itself, gate and up in one matrix.
pub(super) fn phi3(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let factors = g.rope_factors(il);
        let n = g.norm(x, Kind::AttnNorm, il);
        let qkv = g.qkv(n, il);
        let [q, k, v] = g.rotate_qk(qkv, factors);
        let q = g.scale(q);
        let cur = g.attention([q, k, v], il);
        let cur = g.last_rows(il, cur);
        let residual = g.last_rows(il, x);
        let h = g.add(cur, residual);
        let n = g.norm(h, Kind::FfnNorm, il);
        let cur = if g.has(il, Kind::FfnGateInp) {
            g.moe(n, MoeOptions::softmax(true), il)
        } else {
            g.ffn(n, Ffn::SwigluFused, il)
        };
        g.add(h, cur)
    });
}

pub(super) fn llama4_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    // A window of 0 turns chunked attention off; any other value stands for 8192.
    let window = keys.int("attention.sliding_window", i64::MAX)?;
    if window != Some(0) {
        hp.set_swa(keys, Some(8192), 4)?;
    }
    Ok(())
}

/// Llama 4: every fourth layer attends to everything, without rotation but with a temperature.
pub(super) fn llama4(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let n_tokens = g.n_tokens;
    let temperature = g.input("inp_attn_scale", Type::F32, [1, 1, n_tokens, 1]);
    let options = MoeOptions {
        gating: Gating::Sigmoid,
        weights_before: true,
        ..MoeOptions::softmax(false)
    };
    g.layers(x, |g, x, il| {
        let attention = |g: &mut LlmGraph<'_>, n| {
            let factors = g.rope_factors(il);
            let mut qkv = g.qkv(n, il);
            if (il + 1) % 4 != 0 || !g.hp.has_swa_layers {
                qkv = g.rotate_qk(qkv, factors);
                if g.hp.moe.is_none_or(|m| m.n_expert != 128) {
                    qkv = [g.rms(qkv[0]), g.rms(qkv[1]), qkv[2]];
                }
            } else {
                qkv[0] = g.mul(qkv[0], temperature);
            }
            g.attention(qkv, il)
        };
        let ffn = |g: &mut LlmGraph<'_>, n| g.ffn_or_moe(n, options, il);
        pre_norm_layer(g, x, il, attention, ffn)
    });
}
