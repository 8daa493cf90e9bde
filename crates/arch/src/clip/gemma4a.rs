//! Gemma 4's tower for sounds: a conformer whose frames see their block and the one before.

use super::conformer::{Gating, gated, half_step};
use super::gemma::clamped;
use super::graph::{NormKind, TowerGraph, plain};
use super::hparams::Activation;
use super::kinds::{ProjectorKind, common, kind};
use vramfit_ggml::{Op, TensorId, Type, Unary};

pub(super) static KINDS: &[ProjectorKind] = &[kind(
    "gemma4a",
    common,
    &[
        "a.conv1d.0.+",
        "a.conv1d.0.norm.weight",
        "a.conv1d.1.+",
        "a.conv1d.1.norm.weight",
        "a.input_projection.+",
        "a.pre_encode.out.+",
        "mm.a.soft_emb_norm.weight",
        "mm.a.input_projection.weight",
        "a.blk.*.ffn_norm.weight",
        "a.blk.*.attn_pre_norm.weight",
        "a.blk.*.per_dim_scale.weight",
        "a.blk.*.per_dim_k_scale.weight",
        "a.blk.*.attn_k_rel.weight",
        "a.blk.*.conv_norm.+",
        "a.blk.*.conv_pw1.+",
        "a.blk.*.conv_dw.+",
        "a.blk.*.norm_conv.+",
        "a.blk.*.conv_pw2.+",
        "a.blk.*.ffn_norm_1.weight",
        "a.blk.*.ffn_up_1.+",
        "a.blk.*.ffn_down_1.+",
        "a.blk.*.ffn_post_norm_1.weight",
    ],
    gemma4a,
)];

/// What Gemma 4's attention over blocks of frames needs.
#[derive(Clone, Copy)]
struct Blocks {
    n_pos: i64,
    n_blocks: i64,
    positions: TensorId,
    mask: TensorId,
}

/// Frames of a block, those that it sees before it, and both.
const BLOCK: i64 = 12;
const PAST: i64 = 12;
const SEEN: i64 = BLOCK + PAST;

fn gemma4a(b: &mut TowerGraph<'_>) -> TensorId {
    let mut x = gemma4a_frames(b);
    let n_pos = b.g[x].ne[1];
    let n_blocks = (n_pos + BLOCK - 1) / BLOCK;
    let wide = b.hp.n_head.saturating_mul(b.hp.n_embd_head);
    let blocks = Blocks {
        n_pos,
        n_blocks,
        positions: b.g.input("pos_emb", Type::F32, [wide, PAST + 1, 1, 1]),
        mask: b.g.input("kq_mask", Type::F32, [SEEN, BLOCK, n_blocks, 1]),
    };
    for il in 0..b.hp.n_layer {
        let name = |kind: &str| format!("a.blk.{il}.{kind}");
        let names = ["ffn_norm", "ffn_up", "ffn_down", "ffn_post_norm"].map(name);
        let mut residual = gemma4a_network(b, x, &names);
        let norm = match b.has(&name("attn_pre_norm.weight")) {
            true => name("attn_pre_norm"),
            false => name("ln1"),
        };
        let y = b.normed_if(residual, NormKind::Rms, &norm);
        let y = gemma4a_attention(b, y, il, &blocks);
        let y = b.normed_if(y, NormKind::Rms, &name("attn_post_norm"));
        residual = b.g.add(residual, y);
        if b.has(&name("conv_norm.weight")) {
            residual = gemma4a_over_time(b, residual, il);
        }
        let names = ["ffn_norm_1", "ffn_up_1", "ffn_down_1", "ffn_post_norm_1"].map(name);
        residual = gemma4a_network(b, residual, &names);
        x = match b.weight(&name("ln2.weight")) {
            Some(weight) => scaled_rms(b, residual, weight),
            None => residual,
        };
    }
    if b.has("a.pre_encode.out.weight") {
        x = b.linear_by(x, "a.pre_encode.out", &clamped);
    }
    x = b.g.map(Op::RmsNorm, x);
    if let Some(weight) = b.weight("mm.a.soft_emb_norm.weight") {
        x = b.g.mul(x, weight);
    }
    match b.has("mm.a.input_projection.weight") {
        true => clamped(b, "mm.a.input_projection.weight", x),
        false => x,
    }
}

fn scaled_rms(b: &mut TowerGraph<'_>, x: TensorId, weight: TensorId) -> TensorId {
    let x = b.g.map(Op::RmsNorm, x);
    b.g.mul(x, weight)
}

/// Two convolutions that make four frames one.
fn gemma4a_frames(b: &mut TowerGraph<'_>) -> TensorId {
    let image = b.raw(1);
    let mut x = b.transposed(image);
    for name in ["a.conv1d.0", "a.conv1d.1"] {
        let kernel = b.need(&format!("{name}.weight"));
        x = b.conv_2d(kernel, x, 2, 1);
        if let Some(bias) = b.weight(&format!("{name}.bias")) {
            x = b.g.add(x, bias);
        }
        if let Some(weight) = b.weight(&format!("{name}.norm.weight")) {
            x = b.channels_first(x);
            x = b.g.map(Op::Norm, x);
            x = b.g.mul(x, weight);
            x = b.channels_last(x);
        }
        x = b.g.unary(Unary::Relu, x);
    }
    let x = b.channels_first(x);
    let [n_chan, n_freq, n_time, _] = b.g[x].ne;
    let x =
        b.g.reshape(x, [n_chan.saturating_mul(n_freq), n_time, 1, 1]);
    b.linear_by(x, "a.input_projection", &clamped)
}

fn gemma4a_network(
    b: &mut TowerGraph<'_>,
    residual: TensorId,
    [norm, up, down, post]: &[String; 4],
) -> TensorId {
    let weight = b.need(&format!("{norm}.weight"));
    let x = scaled_rms(b, residual, weight);
    let x = clamped(b, &format!("{up}.weight"), x);
    let x = b.activate(x, Activation::Silu);
    let mut x = clamped(b, &format!("{down}.weight"), x);
    if let Some(weight) = b.weight(&format!("{post}.weight")) {
        x = scaled_rms(b, x, weight);
    }
    half_step(b, residual, x)
}

/// Frames that each block sees, `[d, h, seen, blocks]`.
fn seen(b: &mut TowerGraph<'_>, x: TensorId, blocks: &Blocks) -> TensorId {
    let more = SEEN.saturating_mul(blocks.n_blocks) - blocks.n_pos;
    let g = &mut b.g;
    let x = g.pad_by(x, [0, 0, more, 0]);
    let x = g.roll(x);
    let x = g.cont(x);
    let ([d, heads, ..], [_, nb1, nb2, _]) = (g[x].ne, g[x].nb);
    let nb = [nb1, nb2, nb2.saturating_mul(BLOCK as u64)];
    let x = g.view_4d(x, [d, heads, SEEN, blocks.n_blocks], nb);
    g.cont(x)
}

fn gemma4a_attention(b: &mut TowerGraph<'_>, x: TensorId, il: usize, blocks: &Blocks) -> TensorId {
    let name = |kind: &str| format!("a.blk.{il}.{kind}");
    let &Blocks {
        n_pos, n_blocks, ..
    } = blocks;
    let n_padded = n_blocks.saturating_mul(BLOCK);
    let (d, n_head) = (b.hp.n_embd_head, b.hp.n_head);
    let [q, k, v] = ["attn_q", "attn_k", "attn_v"].map(|kind| {
        let x = clamped(b, &name(&format!("{kind}.weight")), x);
        b.g.reshape(x, [d, n_head, n_pos, 1])
    });
    let [q, k] = [(q, "per_dim_scale.weight"), (k, "per_dim_k_scale.weight")].map(|(x, kind)| {
        let x = b.g.scale(x);
        match b.weight(&name(kind)) {
            Some(scale) => {
                let scale = b.g.reshape(scale, [d, 1, 1, 1]);
                b.g.mul(x, scale)
            }
            None => x,
        }
    });
    let q = b.g.pad_by(q, [0, 0, n_padded - n_pos, 0]);
    let q = b.g.reshape(q, [d, n_head, BLOCK, n_blocks]);
    let q = b.g.permute(q, [0, 3, 1, 2]);
    let q = b.g.cont(q);
    let k = seen(b, k, blocks);
    let k = b.g.permute(k, [0, 3, 1, 2]);
    let k = b.g.cont(k);
    let v = seen(b, v, blocks);
    let v = b.g.permute(v, [1, 3, 0, 2]);
    let v = b.g.cont(v);
    let mut scores = b.g.mul_mat(k, q);
    if b.has(&name("attn_k_rel.weight")) {
        let place = by_distance(b, q, &name("attn_k_rel.weight"), blocks);
        scores = b.g.add(scores, place);
    }
    let g = &mut b.g;
    let scores = g.scale(scores);
    let scores = g.unary(Unary::Tanh, scores);
    let scores = g.scale(scores);
    let scores = g.add(scores, blocks.mask);
    let probs = g.soft_max(scores, None, None);
    let y = g.mul_mat(v, probs);
    let y = g.permute(y, [0, 2, 3, 1]);
    let y = g.cont(y);
    let wide = d.saturating_mul(n_head);
    let mut y = g.cont_shape(y, [wide, n_padded, 1, 1]);
    if n_pos < n_padded {
        let nb = g[y].nb[1];
        y = g.view_2d(y, [wide, n_pos], nb);
        y = g.cont(y);
    }
    b.linear_by(y, &name("attn_out"), &clamped)
}

/// Scores by distance within a block.
fn by_distance(b: &mut TowerGraph<'_>, q: TensorId, name: &str, blocks: &Blocks) -> TensorId {
    const R: i64 = PAST + 1;
    let (d, n_head, n) = (b.hp.n_embd_head, b.hp.n_head, blocks.n_blocks);
    let p = plain(b, name, blocks.positions);
    let g = &mut b.g;
    let p = g.reshape(p, [d, n_head, R, 1]);
    let p = g.permute(p, [0, 2, 1, 3]);
    let p = g.cont(p);
    let q = g.reshape(q, [d, n.saturating_mul(BLOCK), n_head, 1]);
    let x = g.mul_mat(p, q);
    let x = g.reshape(x, [R, BLOCK, n, n_head]);
    let x = g.pad_by(x, [SEEN + 1 - R, 0, 0, 0]);
    let x = g.reshape(x, [(SEEN + 1) * BLOCK, n, n_head, 1]);
    let [_, nb1, nb2, _] = g[x].nb;
    let x = g.view_3d(x, [BLOCK * SEEN, n, n_head], [nb1, nb2]);
    let x = g.cont(x);
    g.reshape(x, [SEEN, BLOCK, n, n_head])
}

/// The convolution of layer `il`, of frames before alone.
fn gemma4a_over_time(b: &mut TowerGraph<'_>, residual: TensorId, il: usize) -> TensorId {
    const BEFORE: i64 = 4;
    let name = |kind: &str| format!("a.blk.{il}.{kind}");
    let weight = b.need(&name("conv_norm.weight"));
    let x = scaled_rms(b, residual, weight);
    let x = clamped(b, &name("conv_pw1.weight"), x);
    let x = gated(b, x, Gating::Copied);
    let x = b.g.pad_by(x, [BEFORE, 0, 0, 0]);
    let x = b.g.roll(x);
    let kernel = b.need(&name("conv_dw.weight"));
    let mut x = b.g.ssm_conv(x, kernel);
    if let Some(bias) = b.weight(&name("conv_dw.bias")) {
        x = b.g.add(x, bias);
    }
    if let Some(weight) = b.weight(&name("norm_conv.weight")) {
        x = scaled_rms(b, x, weight);
    }
    let x = b.g.unary(Unary::Silu, x);
    let x = clamped(b, &name("conv_pw2.weight"), x);
    b.g.add(residual, x)
}
