//! MiniCPM3 and PLM: latent attention expanded before it is cached.

use super::Architecture;
use super::llama::pre_norm_layer;
use crate::graph::{Ffn, LlmGraph, Scale};
use crate::names::Kind;
use vramfit_ggml::{TensorId, Type};

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    Architecture::new("minicpm3", minicpm3)
        .whole()
        .unadapted(&[super::LATENT]),
    Architecture::new("plm", plm)
        .leaves_scales(&[Scale::Qkv])
        .unadapted(&[super::LATENT]),
];

/// MiniCPM3: streams scaled throughout.
fn minicpm3(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let x = g.scale(x);
    let embd = g.layers_and_norm(x, |g, x, il| {
        let factors = g.rope_factors(il);
        let n = g.norm(x, Kind::AttnNorm, il);
        let qkv = latent_qkv(g, n, factors, il);
        let cur = g.attention(qkv, il);
        let cur = g.last_rows(il, cur);
        let residual = g.last_rows(il, x);
        let cur = g.scale(cur);
        let h = g.add(cur, residual);
        let n = g.norm(h, Kind::FfnNorm, il);
        let cur = g.ffn(n, Ffn::Silu, il);
        let cur = g.scale(cur);
        g.add(cur, h)
    });
    let scaled = g.scale(embd);
    g.lm_head(embd, scaled);
}

/// PLM. Its V has lost its heads, which llama.cpp can only cache transposed: without flash attention.
fn plm(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let attention = |g: &mut LlmGraph<'_>, n| {
            let [q, k, v] = latent_qkv(g, n, None, il);
            let ne = g[v].ne;
            let row = g[v].nb[2];
            let v = g.view_2d(v, [ne[0] * ne[1], ne[2]], row);
            g.attention([q, k, v], il)
        };
        let ffn = |g: &mut LlmGraph<'_>, n| g.ffn(n, Ffn::ReluSqr, il);
        pre_norm_layer(g, x, il, attention, ffn)
    });
}

/// Q, by way of a smaller vector or straight; K and V expanded from one compressed vector.
fn latent_qkv(
    g: &mut LlmGraph<'_>,
    n: TensorId,
    factors: Option<TensorId>,
    il: usize,
) -> [TensorId; 3] {
    let (shape, n_tokens) = (g.hp.layers[il], g.n_tokens);
    let (n_head, head_v) = (shape.n_head, shape.n_embd_head_v);
    let (Some(n_rot), Some(rank)) = (g.hp.n_rot, g.hp.kv_lora_rank) else {
        return [g.weight(il, Kind::AttnKvB); 3];
    };
    let nope = shape.n_embd_head_k - n_rot;
    let q = if g.has(il, Kind::AttnQ) {
        g.linear(n, Kind::AttnQ, il)
    } else {
        let a = g.linear(n, Kind::AttnQA, il);
        let a = g.norm(a, Kind::AttnQANorm, il);
        g.linear(a, Kind::AttnQB, il)
    };
    let q = g.reshape(q, [shape.n_embd_head_k, n_head, n_tokens, 1]);
    let kv = g.linear(n, Kind::AttnKvAMqa, il);
    let row = g[kv].nb[1];
    let compressed = g.view_2d(kv, [rank, n_tokens], row);
    let k_pe = g.view_3d(kv, [n_rot, 1, n_tokens], [row, row]);
    let compressed = g.norm(compressed, Kind::AttnKvANorm, il);
    let kv = g.linear(compressed, Kind::AttnKvB, il);
    let head = Type::F32.row_size((nope + head_v).max(0) as u64);
    let strides = [head, head * n_head as u64];
    let k_nope = g.view_3d(kv, [nope, n_head, n_tokens], strides);
    let v = g.view_3d(kv, [head_v, n_head, n_tokens], strides);
    let v = g.cont(v);
    let q = g.rotate(q, factors);
    let k_pe = g.rotate(k_pe, factors);
    let k_pe = g.repeat(k_pe, [n_rot, n_head, n_tokens, 1]);
    let k = g.concat(k_nope, k_pe, 0);
    [q, k, v]
}
