//! DeepSeek-V2 and V3: multi-head latent attention, fine-grained experts.

use super::Architecture;
use super::llama::pre_norm_layer;
use crate::graph::{LlmGraph, MoeOptions};
use crate::names::Kind;
use vramfit_ggml::TensorId;

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[Architecture::new("deepseek2", graph)];

pub(super) fn graph(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let temperature = g.attn_temperature();
    let options = MoeOptions::of_file(&g.hp.moe);
    g.layers(x, |g, x, il| {
        let attention = |g: &mut LlmGraph<'_>, n| latent_attention(g, n, temperature, il);
        let ffn = |g: &mut LlmGraph<'_>, n| g.ffn_or_moe(n, options, il);
        pre_norm_layer(g, x, il, attention, ffn)
    });
}

/// Q is taken through K's up-projection, so that the cache holds the compressed K alone.
fn latent_attention(
    g: &mut LlmGraph<'_>,
    n: TensorId,
    temperature: Option<TensorId>,
    il: usize,
) -> TensorId {
    let Some(mla) = g.hp.mla else {
        return g.weight(il, Kind::AttnKB); // a file from before MLA: `attn_k_b` is missing
    };
    let (n_head, n_tokens) = (g.hp.layers[il].n_head, g.n_tokens);
    let nope = mla.key_length - mla.n_rot;
    let q = if g.has(il, Kind::AttnQ) {
        g.linear(n, Kind::AttnQ, il)
    } else {
        let a = g.linear(n, Kind::AttnQA, il);
        let a = g.norm(a, Kind::AttnQANorm, il);
        g.linear(a, Kind::AttnQB, il)
    };
    let q = g.reshape(q, [mla.key_length, n_head, n_tokens, 1]);
    let kv = g.linear(n, Kind::AttnKvAMqa, il);
    let row = g[kv].nb[1];
    let compressed = g.view_2d(kv, [mla.kv_lora_rank, n_tokens], row);
    let k_pe = g.view_3d(kv, [mla.n_rot, 1, n_tokens], [row, row]);
    let k_pe = g.rotate(k_pe, None);
    let compressed = g.norm(compressed, Kind::AttnKvANorm, il);

    let nb = g[q].nb;
    let q_nope = g.view_3d(q, [nope, n_head, n_tokens], [nb[1], nb[2]]);
    let q_pe = g.view_3d(q, [mla.n_rot, n_head, n_tokens], [nb[1], nb[2]]);
    let q_pe = g.rotate(q_pe, None);
    let q_nope = g.permute(q_nope, [0, 2, 1, 3]);
    let k_b = g.weight(il, Kind::AttnKB);
    let absorbed = g.mul_mat(k_b, q_nope);
    let absorbed = g.permute(absorbed, [0, 2, 1, 3]);
    let mut q = g.concat(absorbed, q_pe, 0);
    if let Some(temperature) = temperature {
        q = g.mul(q, temperature);
    }
    let v = g.reshape(compressed, [mla.kv_lora_rank, 1, n_tokens, 1]);
    let k = g.concat(v, k_pe, 0);
    let v_b = g.weight(il, Kind::AttnVB);
    g.attention_mla([q, k, v], v_b, il)
}
