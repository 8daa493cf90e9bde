//! Attention and feed-forward side by side: both read the normalised stream, both are added to it.

use super::Architecture;
use super::llama::pre_norm_layer;
use crate::Result;
use crate::graph::{Ffn, LlmGraph};
use crate::hparams::Hparams;
use crate::keys::Keys;
use crate::names::Kind;

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    Architecture::new("gptneox", gptneox)
        .reads(gptneox_hparams)
        .layer_norm(),
    Architecture::new("phi2", phi2).layer_norm(),
    Architecture::new("plamo", plamo),
    Architecture::new("stablelm", stablelm).layer_norm(),
];

fn gptneox_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.parallel_residual = keys.flag("use_parallel_residual")?.unwrap_or(false);
    Ok(())
}

/// GPT-NeoX, Pythia: a norm each, unless the two blocks follow each other.
fn gptneox(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let ffn = |g: &mut LlmGraph<'_>, n| g.ffn(n, Ffn::Gelu, il);
        if !g.hp.parallel_residual {
            return pre_norm_layer(g, x, il, |g, n| g.rotated_attention(n, None, il), ffn);
        }
        let n = g.norm(x, Kind::AttnNorm, il);
        let attn = g.rotated_attention(n, None, il);
        let attn = g.last_rows(il, attn);
        let residual = g.last_rows(il, x);
        let n = g.norm(residual, Kind::FfnNorm, il);
        let cur = ffn(g, n);
        let cur = g.add(cur, residual);
        g.add(cur, attn)
    });
}

/// Phi-2: Q scaled by itself.
fn phi2(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let n = g.norm(x, Kind::AttnNorm, il);
        let qkv = g.qkv(n, il);
        let [q, k, v] = g.rotate_qk(qkv, None);
        let q = g.scale(q);
        let attn = g.attention([q, k, v], il);
        let [attn, residual, n] = [attn, x, n].map(|t| g.last_rows(il, t));
        let cur = g.ffn(n, Ffn::Gelu, il);
        let cur = g.add(attn, cur);
        g.add(cur, residual)
    });
}

/// PLaMo.
fn plamo(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let n = g.norm(x, Kind::AttnNorm, il);
        let attn = g.rotated_attention(n, None, il);
        let [attn, n, residual] = [attn, n, x].map(|t| g.last_rows(il, t));
        let cur = g.ffn(n, Ffn::Silu, il);
        let cur = g.add(cur, attn);
        g.add(cur, residual)
    });
}

/// StableLM: side by side where there is no norm in between (StableLM 2 12B).
fn stablelm(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let n = g.norm(x, Kind::AttnNorm, il);
        let attn = g.rotated_attention(n, None, il);
        let [attn, residual, n] = [attn, x, n].map(|t| g.last_rows(il, t));
        let h = g.add(attn, residual);
        let n = if g.has(il, Kind::FfnNorm) {
            g.norm(h, Kind::FfnNorm, il)
        } else {
            n
        };
        let cur = g.ffn(n, Ffn::Silu, il);
        g.add(cur, h)
    });
}
