//! T5: an encoder and a decoder that attends to its results, both with positions relative to each other
//! added to the scores. The context reserves the decoder's graph, where there is a decoder.

use super::Architecture;
use crate::Result;
use crate::graph::{Ffn, LlmGraph, Qkv};
use crate::hparams::Hparams;
use crate::keys::Keys;
use crate::names::{Global, Kind, Part};
use vramfit_ggml::{TensorId, Type};

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    Architecture::new("t5", decoder)
        .whole()
        .reads(decoder_hparams)
        .with_encoder(),
    Architecture::new("t5encoder", encoder)
        .reads(encoder_hparams)
        .with_encoder(),
];

fn decoder_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    // A layer past the encoder's has no device: llama.cpp does not load it.
    let n_layer = hp.n_layer();
    let n_layer_dec = keys.int("decoder_block_count", n_layer as i64)?;
    hp.n_layer_dec = n_layer_dec.map_or(n_layer, |n| n as usize);
    Ok(())
}

fn encoder_hparams(_: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.ignores_memory = true;
    Ok(())
}

/// Names of an attention block: norm, Q, K, V and output.
type Attention = [Kind; 5];
/// Names of a feed-forward block: norm, gate, up and down.
type FeedForward = [Kind; 4];

const ENC: Attention = [
    Kind::EncAttnNorm,
    Kind::EncAttnQ,
    Kind::EncAttnK,
    Kind::EncAttnV,
    Kind::EncAttnO,
];
const DEC: Attention = [
    Kind::DecAttnNorm,
    Kind::DecAttnQ,
    Kind::DecAttnK,
    Kind::DecAttnV,
    Kind::DecAttnO,
];
const CROSS: Attention = [
    Kind::DecCrossAttnNorm,
    Kind::DecCrossAttnQ,
    Kind::DecCrossAttnK,
    Kind::DecCrossAttnV,
    Kind::DecCrossAttnO,
];
const ENC_FFN: FeedForward = [
    Kind::EncFfnNorm,
    Kind::EncFfnGate,
    Kind::EncFfnUp,
    Kind::EncFfnDown,
];
const DEC_FFN: FeedForward = [
    Kind::DecFfnNorm,
    Kind::DecFfnGate,
    Kind::DecFfnUp,
    Kind::DecFfnDown,
];

fn encoder(g: &mut LlmGraph<'_>) {
    let mut x = g.embed(false);
    let n_tokens = g.n_tokens;
    let buckets = g.input("pos_bucket_enc", Type::I32, [n_tokens, n_tokens, 1, 1]);
    for il in 0..g.hp.n_layer() {
        let n = g.norm(x, ENC[0], il);
        let qkv = project(g, [n; 3], ENC, il);
        let bias = position_bias(g, buckets, Kind::EncAttnRelB, il);
        let mask = g.no_cache_mask(il);
        let cur = g.attend_batch(qkv, mask, Some(bias), il);
        let cur = g.linear(cur, ENC[4], il);
        let cur = g.last_rows(il, cur);
        let residual = g.last_rows(il, x);
        let h = g.add(cur, residual);
        x = feed_forward(g, h, ENC_FFN, il);
        x = g.control(x, il);
    }
    let x = output_norm(g, x, Global::EncOutputNorm);
    g.end_in_embeddings(x);
}

fn decoder(g: &mut LlmGraph<'_>) {
    let mut x = g.embed(false);
    let n_kv = g.n_read(g.cp.n_ctx_seq);
    let (n_tokens, n_enc) = (g.n_tokens, g.hp.n_ctx_train);
    let n_embd = g.hp.n_embd;
    let encoded = g.input("cross_embd", Type::F32, [n_embd, n_enc, 1, 1]);
    let buckets = g.input("pos_bucket_dec", Type::I32, [n_kv, n_tokens, 1, 1]);
    let mask = g.mask_over("cross_kq_mask", n_enc);
    for il in 0..g.hp.n_layer_dec {
        let n = g.norm(x, DEC[0], il);
        let qkv = project(g, [n; 3], DEC, il);
        let bias = position_bias(g, buckets, Kind::DecAttnRelB, il);
        let cur = g.attend_biased(qkv, Some(bias), il);
        let cur = g.linear(cur, DEC[4], il);
        let h = g.add(cur, x);

        let n = g.norm(h, CROSS[0], il);
        let qkv = project(g, [n, encoded, encoded], CROSS, il);
        let cur = g.attend_batch(qkv, mask, None, il);
        let cur = g.linear(cur, CROSS[4], il);
        let is_last = il + 1 == g.hp.n_layer_dec;
        let [cur, h] = [cur, h].map(|t| if is_last { g.output_rows(t) } else { t });
        let h = g.add(cur, h);
        x = feed_forward(g, h, DEC_FFN, il);
        x = g.control(x, il);
    }
    let x = output_norm(g, x, Global::DecOutputNorm);
    g.lm_head(x, x);
}

/// Q, K and V of their inputs, head by head.
fn project(g: &mut LlmGraph<'_>, inputs: [TensorId; 3], names: Attention, il: usize) -> Qkv {
    let layer = g.hp.layers[il];
    let n_heads = [layer.n_head, layer.n_head_kv, layer.n_head_kv];
    [0, 1, 2].map(|i| {
        let cur = g.linear(inputs[i], names[i + 1], il);
        let n = g[inputs[i]].ne[1];
        g.reshape(cur, [layer.n_embd_head_v, n_heads[i], n, 1])
    })
}

/// What the distance of two tokens adds to their scores (`build_pos_bias`). Layers without a table
/// of their own use the first one's.
fn position_bias(g: &mut LlmGraph<'_>, buckets: TensorId, kind: Kind, il: usize) -> TensorId {
    let table = g.weight(if g.has(il, kind) { il } else { 0 }, kind);
    let ne = g[buckets].ne;
    let flat = g.reshape(buckets, [ne[0].saturating_mul(ne[1]), 1, 1, 1]);
    let bias = g.get_rows(table, flat);
    let n_head = g[bias].ne[0];
    let bias = g.reshape(bias, [n_head, ne[0], ne[1], 1]);
    let bias = g.permute(bias, [2, 0, 1, 3]);
    g.cont(bias)
}

/// ReLU, or a gated GELU (Flan-T5).
fn feed_forward(g: &mut LlmGraph<'_>, h: TensorId, names: FeedForward, il: usize) -> TensorId {
    let [norm, gate, up, down] = names;
    let n = g.norm(h, norm, il);
    let up = g.linear(n, up, il);
    let (kind, gate) = if g.has(il, gate) {
        (Ffn::Gelu, Some(g.linear(n, gate, il)))
    } else {
        (Ffn::Relu, None)
    };
    let cur = g.activate(kind, gate, up);
    let cur = g.linear(cur, down, il);
    g.add(cur, h)
}

fn output_norm(g: &mut LlmGraph<'_>, x: TensorId, global: Global) -> TensorId {
    let w = g.output_weight(global, Part::Weight);
    let w = g.required(global, w);
    g.norm_with(x, Some(w), None, None)
}
