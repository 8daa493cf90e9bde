//! Granite Speech's tower: a conformer whose frames see their chunk, then queries over windows of frames.

use super::conformer::{folded_norm, layer, over_time, swapped};
use super::graph::{NormKind, TowerGraph, plain};
use super::hparams::{Activation, MAX_QUERY, TowerHparams};
use super::kinds::{ProjectorKind, kind};
use super::qformer::{QueryBlock, query_block};
use crate::Result;
use crate::keys::Keys;
use vramfit_ggml::{TensorId, Type};

const LAYERS_OF_QFORMER: usize = 2;

pub(super) static KINDS: &[ProjectorKind] = &[kind(
    "granite_speech",
    granite,
    &[
        "a.input_projection.+",
        "a.enc_ctc_out.+",
        "a.enc_ctc_out_mid.+",
        "a.blk.*.attn_rel_pos_emb",
        "a.blk.*.ffn_norm.+",
        "a.blk.*.ffn_norm_1.+",
        "a.blk.*.ffn_up_1.+",
        "a.blk.*.ffn_down_1.+",
        "a.blk.*.norm_conv.+",
        "a.blk.*.conv_norm.+",
        "a.blk.*.conv_dw.weight",
        "a.blk.*.conv_pw1.+",
        "a.blk.*.conv_pw2.+",
        "a.proj_query",
        "a.proj_norm.+",
        "a.proj_linear.+",
        "a.proj_blk.#.self_attn_q.+",
        "a.proj_blk.#.self_attn_k.+",
        "a.proj_blk.#.self_attn_v.+",
        "a.proj_blk.#.self_attn_out.+",
        "a.proj_blk.#.self_attn_norm.+",
        "a.proj_blk.#.cross_attn_q.+",
        "a.proj_blk.#.cross_attn_k.+",
        "a.proj_blk.#.cross_attn_v.+",
        "a.proj_blk.#.cross_attn_out.+",
        "a.proj_blk.#.cross_attn_norm.+",
        "a.proj_blk.#.ffn_up.+",
        "a.proj_blk.#.ffn_down.+",
        "a.proj_blk.#.ffn_norm.+",
    ],
    granite_speech,
)];

fn granite(keys: &Keys<'_>, hp: &mut TowerHparams) -> Result<()> {
    const LARGEST_CHUNK: i64 = 8192;
    hp.chunk = keys.require("audio.chunk_size", LARGEST_CHUNK)?;
    hp.conv_kernel = keys.require("audio.conv_kernel_size", MAX_QUERY)?;
    keys.require("audio.max_pos_emb", MAX_QUERY)?;
    hp.qformer.window = keys.require("audio.projector.window_size", MAX_QUERY)?;
    hp.qformer.query = keys.require("audio.projector.downsample_rate", MAX_QUERY)?;
    hp.second.n_head = keys.require("audio.projector.head_count", MAX_QUERY)?;
    hp.second.n_layer = LAYERS_OF_QFORMER;
    Ok(())
}

fn granite_speech(b: &mut TowerGraph<'_>) -> TensorId {
    let (n_frames, chunk) = (b.hp.warmup[0], b.hp.chunk.max(1));
    let n_chunks = (n_frames + chunk - 1) / chunk;
    let distances = b.ids("attn_dists", chunk.saturating_mul(chunk));
    let mask = (n_frames % chunk > 0).then(|| {
        b.g.input("attn_mask", Type::F32, [chunk, chunk, 1, n_chunks])
    });
    let image = b.raw(1);
    let x = b.transposed(image);
    let mut x = b.linear(x, "a.input_projection");
    let mut stack = b.hp.is_feature_layer(0).then_some(x);
    let pad = b.hp.conv_kernel / 2;
    for il in 0..b.hp.n_layer {
        let attention = |b: &mut TowerGraph<'_>, x| granite_attention(b, x, distances, mask, il);
        let over = |b: &mut TowerGraph<'_>, x| {
            let x = over_time(b, x, pad, &format!("a.blk.{il}.conv_dw.weight"));
            folded_norm(b, x, &format!("a.blk.{il}.conv_norm"))
        };
        x = layer(b, x, il, false, attention, over);
        if b.hp.is_feature_layer(il + 1) {
            stack = Some(match stack {
                Some(before) => b.g.concat(before, x, 0),
                None => x,
            });
        }
        if il + 1 == b.hp.n_layer / 2 {
            let y = b.linear(x, "a.enc_ctc_out");
            let y = b.g.soft_max(y, None, None);
            let y = b.linear(y, "a.enc_ctc_out_mid");
            x = b.g.add(x, y);
        }
    }
    if let Some(before) = stack {
        x = b.g.concat(before, x, 0);
    }
    granite_queries(b, x)
}

/// Frames of a chunk see each other, positions by rows of a table (Shaw).
fn granite_attention(
    b: &mut TowerGraph<'_>,
    x: TensorId,
    distances: TensorId,
    mask: Option<TensorId>,
    il: usize,
) -> TensorId {
    let name = |kind: &str| format!("a.blk.{il}.{kind}");
    let (n, n_frames, chunk) = (b.hp.n_embd, b.hp.warmup[0], b.hp.chunk.max(1));
    let n_chunks = (n_frames + chunk - 1) / chunk;
    let n_padded = n_chunks.saturating_mul(chunk);
    let (d, n_head) = (b.hp.n_embd_head, b.hp.n_head);
    let x = match n_padded - n_frames {
        0 => x,
        pad => b.g.pad_by(x, [0, pad, 0, 0]),
    };
    let [q, k, v] = ["attn_q", "attn_k", "attn_v"].map(|kind| {
        let x = plain(b, &name(&format!("{kind}.weight")), x);
        b.g.reshape(x, [d, n_head, chunk, n_chunks])
    });
    let q_heads = swapped(b, q);
    let k = swapped(b, k);
    let k = b.g.cont(k);
    let content = b.g.mul_mat(k, q_heads);
    let table = b.need(&name("attn_rel_pos_emb"));
    let g = &mut b.g;
    let p = g.get_rows(table, distances);
    let p = g.reshape(p, [d, chunk, chunk, 1]);
    let p = g.reshape(p, [d, chunk, 1, chunk]);
    let q = g.permute(q, [0, 1, 3, 2]);
    let place = g.mul_mat(p, q);
    let place = g.permute(place, [0, 2, 3, 1]);
    let place = g.cont(place);
    let scores = g.add(content, place);
    let probs = g.soft_max(scores, mask, None);
    let v = g.permute(v, [1, 2, 0, 3]);
    let v = g.cont(v);
    let y = g.mul_mat(v, probs);
    let y = g.permute(y, [0, 2, 1, 3]);
    let mut y = g.cont_shape(y, [n, n_padded, 1, 1]);
    if n_frames < n_padded {
        let nb = g[y].nb[1];
        y = g.view_2d(y, [n, n_frames], nb);
    }
    b.linear(y, &name("attn_out"))
}

/// Queries look at windows of frames.
fn granite_queries(b: &mut TowerGraph<'_>, x: TensorId) -> TensorId {
    let (n, n_frames) = (b.hp.n_embd, b.hp.warmup[0]);
    let (window, rate) = (b.hp.qformer.window.max(1), b.hp.qformer.query.max(1));
    let n_query = window / rate;
    let n_windows = (n_frames + window - 1) / window;
    let wide = b.g[x].ne[0];
    let x = match n_windows.saturating_mul(window) - n_frames {
        0 => x,
        pad => b.g.pad_by(x, [0, pad, 0, 0]),
    };
    let windows = b.g.reshape(x, [wide, window, n_windows, 1]);
    let query = b.need("a.proj_query");
    let query = b.norm(query, NormKind::Layer, "a.proj_norm");
    let query = b.g.reshape(query, [n, n_query, 1, 1]);
    let mut query = b.g.repeat(query, [n, n_query, n_windows, 1]);
    let shape = QueryBlock {
        n_head: b.hp.second.n_head.max(1),
        is_flat: false,
        activation: Activation::Gelu,
    };
    for il in 0..LAYERS_OF_QFORMER {
        query = query_block(b, &format!("a.proj_blk.{il}"), [query, windows], &shape);
    }
    let rows = n_query.saturating_mul(n_windows);
    let x = b.g.reshape(query, [n, rows, 1, 1]);
    b.linear(x, "a.proj_linear")
}
