//! Pre-norm transformers that differ in rotation, normalisation and activation only, each named by
//! whoever trained it.

use super::Architecture;
use super::llama::pre_norm_layer;
use crate::Result;
use crate::graph::{Ffn, LlmGraph, Qkv, Scale};
use crate::hparams::Hparams;
use crate::keys::Keys;
use crate::names::Kind;
use vramfit_ggml::TensorId;

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    Architecture::new("apertus", apertus),
    Architecture::new("arcee", relu_sqr),
    Architecture::new("baichuan", baichuan).reads(baichuan_hparams),
    Architecture::new("chatglm", chatglm),
    Architecture::new("deci", deci),
    Architecture::new("exaone", silu),
    Architecture::new("internlm2", silu),
    Architecture::new("jais", silu_unrotated)
        .reads(alibi_of_file)
        .layer_norm(),
    Architecture::new("jais2", relu_sqr).layer_norm().f32_sums(),
    Architecture::new("nemotron", relu_sqr).layer_norm(),
    Architecture::new("olmo", silu)
        .reads(clamp_of_file)
        .layer_norm(),
    Architecture::new("openelm", openelm).leaves_scales(&[Scale::Qkv]),
    Architecture::new("orion", silu).layer_norm(),
    Architecture::new("pockettts", gelu).layer_norm(),
    Architecture::new("qwen", silu),
    Architecture::new("refact", silu_unrotated)
        .reads(alibi)
        .no_block_biases(),
    Architecture::new("xverse", silu),
];

/// All layers over the stream `x`, Q and K rotated or not, and the head.
pub(super) fn stack(g: &mut LlmGraph<'_>, x: TensorId, rotated: bool, ffn: Ffn) {
    g.layers(x, |g, x, il| {
        let attention = |g: &mut LlmGraph<'_>, n| {
            let mut qkv = g.qkv(n, il);
            if rotated {
                let factors = g.rope_factors(il);
                qkv = g.rotate_qk(qkv, factors);
            }
            g.attention(qkv, il)
        };
        pre_norm_layer(g, x, il, attention, |g, n| g.ffn(n, ffn, il))
    });
}

/// OLMo without weights in its norms, EXAONE, InternLM 2, Orion, Qwen 1, XVERSE.
fn silu(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    stack(g, x, true, Ffn::Silu);
}

/// Jais, Refact: linear biases instead of rotation.
fn silu_unrotated(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    stack(g, x, false, Ffn::Silu);
}

/// The language model of Pocket TTS, whose logits nobody reads.
fn gelu(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    stack(g, x, true, Ffn::Gelu);
}

/// Arcee, Jais 2, Nemotron.
fn relu_sqr(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    stack(g, x, true, Ffn::ReluSqr);
}

/// ChatGLM 3 and GLM-4 in its first form: gate and up in one matrix.
fn chatglm(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    stack(g, x, true, Ffn::SwigluFused);
}

/// Baichuan: the 7B rotates, the 13B has linear biases.
fn baichuan(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    stack(g, x, g.hp.n_layer() == 32, Ffn::Silu);
}

fn baichuan_hparams(_: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.alibi = hp.n_layer() == 40;
    Ok(())
}

pub(super) fn alibi(_: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.alibi = true;
    Ok(())
}

fn alibi_of_file(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.set_alibi(keys)
}

fn clamp_of_file(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.set_clamp(keys)
}

/// Apertus: Q and K normalised a head, xIELU.
fn apertus(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let attention = |g: &mut LlmGraph<'_>, n| {
            let factors = g.rope_factors(il);
            let [q, k, v] = g.qkv(n, il);
            let [q, k] = [(q, Kind::AttnQNorm), (k, Kind::AttnKNorm)].map(|(t, kind)| {
                let w = g.weight(il, kind);
                g.norm_with(t, Some(w), None, Some(il)) // biases of these norms are not read
            });
            let qkv = g.rotate_qk([q, k, v], factors);
            g.attention(qkv, il)
        };
        pre_norm_layer(g, x, il, attention, |g, n| g.ffn(n, Ffn::Xielu, il))
    });
}

/// OpenELM: heads differ a layer, Q and K normalised a head.
fn openelm(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let n = g.norm(x, Kind::AttnNorm, il);
        let qkv = openelm_qkv(g, n, il);
        let qkv = g.qk_norm(qkv, il);
        let qkv = g.rotate_qk(qkv, None);
        let cur = g.attention(qkv, il);
        let residual = g.last_rows(il, x);
        let cur = g.last_rows(il, cur);
        let h = g.add(residual, cur);
        let n = g.norm(h, Kind::FfnNorm, il);
        let cur = g.ffn(n, Ffn::Silu, il);
        g.add(cur, h)
    });
}

/// Views of heads, not of rows.
fn openelm_qkv(g: &mut LlmGraph<'_>, n: TensorId, il: usize) -> Qkv {
    let (layer, n_tokens) = (g.hp.layers[il], g.n_tokens);
    let (head, n_kv) = (layer.n_embd_head_k, layer.n_head_kv);
    let all = g.linear(n, Kind::AttnQkv, il);
    let heads = g.reshape(all, [head, layer.n_head + 2 * n_kv, n_tokens, 1]);
    let nb = g[heads].nb;
    [layer.n_head, n_kv, n_kv].map(|n| g.view_3d(heads, [head, n, n_tokens], [nb[1], nb[2]]))
}

/// Llama-Nemotron: layers that a search has thinned out.
fn deci(g: &mut LlmGraph<'_>) {
    let mut x = g.embed(false);
    for il in 0..g.hp.n_layer() {
        // Without a feed-forward block, attention is computed and nothing is added to the stream.
        if let Some(added) = deci_layer(g, x, il) {
            x = g.control(added, il);
        }
    }
    let embd = g.final_norm(x);
    g.lm_head(embd, embd);
}

/// One matrix may stand in for attention, or nothing at all.
fn deci_layer(g: &mut LlmGraph<'_>, x: TensorId, il: usize) -> Option<TensorId> {
    let attends = g.hp.layers[il].n_head > 0;
    let mut cur = x;
    if attends {
        cur = g.norm(x, Kind::AttnNorm, il);
        cur = deci_attention(g, cur, il);
    }
    if !g.has(il, Kind::FfnUp) {
        return None;
    }
    let mut h = g.last_rows(il, cur);
    if attends {
        let residual = g.last_rows(il, x);
        h = g.add(h, residual);
    }
    let n = g.norm(h, Kind::FfnNorm, il);
    let cur = g.ffn(n, Ffn::Silu, il);
    Some(g.add(cur, h))
}

fn deci_attention(g: &mut LlmGraph<'_>, n: TensorId, il: usize) -> TensorId {
    if g.hp.layers[il].n_head_kv == 0 {
        let w = g.weight(il, Kind::AttnOutput);
        return g.adapted(w, n, None);
    }
    let factors = g.rope_factors(il);
    g.rotated_attention(n, factors, il)
}
