//! DeepSeek-V2 and V3: multi-head latent attention, fine-grained experts.

use super::Architecture;
use super::llama::pre_norm_layer;
use crate::graph::{LlmGraph, MoeOptions, Qkv, Scale, floats};
use crate::names::Kind;
use vramfit_ggml::TensorId;

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[Architecture::new("deepseek2", graph)
    .whole()
    .constants(&["expert_weights_scale"])
    .leaves_scales(&[Scale::Output])
    .predicts(mtp)
    .unadapted(&[super::LATENT])
    .output_unadapted()];

pub(super) fn graph(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let temperature = g.attn_temperature();
    g.layers(x, |g, x, il| layer(g, x, temperature, il));
}

fn layer(g: &mut LlmGraph<'_>, x: TensorId, temperature: Option<TensorId>, il: usize) -> TensorId {
    let options = MoeOptions::of_file(&g.hp.moe);
    let attention = |g: &mut LlmGraph<'_>, n| latent_attention(g, n, temperature, il);
    let ffn = |g: &mut LlmGraph<'_>, n| g.ffn_or_moe(n, options, il);
    pre_norm_layer(g, x, il, attention, ffn)
}

/// Also of those whose main layers choose cells: the last one attends to all.
pub(super) fn mtp(g: &mut LlmGraph<'_>) {
    let (x, il) = g.mtp_input();
    let options = MoeOptions::of_file(&g.hp.moe);
    let attention = |g: &mut LlmGraph<'_>, n| {
        let low = low_rank_q(g, n, il);
        let q = g.linear(low, Kind::AttnQB, il);
        let qkv = latent_qkv(g, n, q, il);
        let v_b = g.weight(il, Kind::AttnVB);
        g.attention_mla(qkv, v_b, il)
    };
    let ffn = |g: &mut LlmGraph<'_>, n| g.ffn_or_moe(n, options, il);
    let x = pre_norm_layer(g, x, il, attention, ffn);
    g.mtp_head(x, il);
}

fn latent_attention(
    g: &mut LlmGraph<'_>,
    n: TensorId,
    temperature: Option<TensorId>,
    il: usize,
) -> TensorId {
    let (n_head, n_tokens) = (g.hp.layers[il].n_head, g.n_tokens);
    let mut q = if g.has(il, Kind::AttnQ) {
        g.linear(n, Kind::AttnQ, il)
    } else {
        let low = low_rank_q(g, n, il);
        g.linear(low, Kind::AttnQB, il)
    };
    if let Some(mla) = g.hp.mla {
        q = g.reshape(q, [mla.key_length, n_head, n_tokens, 1]);
    }
    let mut qkv = latent_qkv(g, n, q, il);
    if let Some(temperature) = temperature {
        qkv[0] = g.mul(qkv[0], temperature);
    }
    let v_b = g.weight(il, Kind::AttnVB);
    g.attention_mla(qkv, v_b, il)
}

/// The compressed Q.
pub(super) fn low_rank_q(g: &mut LlmGraph<'_>, n: TensorId, il: usize) -> TensorId {
    let a = g.linear(n, Kind::AttnQA, il);
    g.norm(a, Kind::AttnQANorm, il)
}

/// Q is taken through K's up-projection, so that the cache holds the compressed K alone.
pub(super) fn latent_qkv(g: &mut LlmGraph<'_>, n: TensorId, q: TensorId, il: usize) -> Qkv {
    let Some(mla) = g.hp.mla_of(il) else {
        return [g.weight(il, Kind::AttnKB); 3]; // a file from before MLA: `attn_k_b` is missing
    };
    let (n_head, n_tokens) = (g.hp.layers[il].n_head, g.n_tokens);
    let nope = mla.key_length - mla.n_rot;
    let kv = g.linear(n, Kind::AttnKvAMqa, il);
    let row = g[kv].nb[1];
    let compressed = g.view_2d(kv, [mla.kv_lora_rank, n_tokens], row);
    let k_pe = g.view_3d(kv, [mla.n_rot, 1, n_tokens], [row, row]);
    let k_pe = if g.has(il, Kind::AttnKNorm) {
        g.norm(k_pe, Kind::AttnKNorm, il)
    } else {
        k_pe
    };
    let k_pe = g.rotate(k_pe, None);
    let compressed = g.norm(compressed, Kind::AttnKvANorm, il);

    let heads = [floats(mla.key_length), floats(mla.key_length * n_head)];
    let q_nope = g.view_3d(q, [nope, n_head, n_tokens], heads);
    let q_pe = g.view_3d(q, [mla.n_rot, n_head, n_tokens], heads);
    let q_pe = g.rotate(q_pe, None);
    let q_nope = g.permute(q_nope, [0, 2, 1, 3]);
    let k_b = g.weight(il, Kind::AttnKB);
    let absorbed = g.mul_mat(k_b, q_nope);
    let absorbed = g.permute(absorbed, [0, 2, 1, 3]);
    let q = g.concat(absorbed, q_pe, 0);
    let v = g.reshape(compressed, [mla.kv_lora_rank, 1, n_tokens, 1]);
    let k = g.concat(v, k_pe, 0);
    [q, k, v]
}
