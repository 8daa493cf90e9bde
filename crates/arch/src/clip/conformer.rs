//! Conformers: towers for sounds whose layers hold a convolution over time between two halves of a network, with
//! positions relative to each other.

use super::graph::{NormKind, TowerGraph, plain};
use super::hparams::{Activation, MAX_QUERY};
use super::kinds::{ProjectorKind, common, kind};
use vramfit_ggml::{Op, TensorId, Type, Unary};

type Product<'p> = &'p dyn Fn(&mut TowerGraph<'_>, &str, TensorId) -> TensorId;

pub(super) static KINDS: &[ProjectorKind] = &[
    kind(
        "lfm2a",
        common,
        &[
            "a.conv1d.0.+",
            "a.conv1d.2.+",
            "a.conv1d.3.+",
            "a.conv1d.5.+",
            "a.conv1d.6.+",
            "a.pre_encode.out.+",
            "mm.a.mlp.0.+",
            "mm.a.mlp.1.+",
            "mm.a.mlp.3.+",
            "a.blk.*.ffn_norm.+",
            "a.blk.*.ffn_norm_1.+",
            "a.blk.*.ffn_up_1.+",
            "a.blk.*.ffn_down_1.+",
            "a.blk.*.pos_bias_u",
            "a.blk.*.pos_bias_v",
            "a.blk.*.norm_conv.+",
            "a.blk.*.linear_pos.weight",
            "a.blk.*.conv_norm.+",
            "a.blk.*.conv_dw.+",
            "a.blk.*.conv_pw1.+",
            "a.blk.*.conv_pw2.+",
        ],
        lfm2a,
    ),
    kind(
        "parakeet",
        |keys, hp| {
            hp.conv_kernel = keys.require("audio.conv_kernel_size", MAX_QUERY)?;
            keys.require("audio.subsampling_factor", MAX_QUERY)?;
            Ok(())
        },
        &[
            "a.conv1d.0.+",
            "a.conv1d.2.+",
            "a.conv1d.3.+",
            "a.conv1d.5.+",
            "a.conv1d.6.+",
            "a.pre_encode.out.+",
            "mm.a.norm_pre.weight",
            "mm.a.mlp.1.weight",
            "mm.a.mlp.2.weight",
            "mm.model.mlp.0.weight",
            "mm.model.mlp.1.weight",
            "mm.model.mlp.3.weight",
            "a.blk.*.linear_pos.weight",
            "a.blk.*.pos_bias_u",
            "a.blk.*.pos_bias_v",
            "a.blk.*.conv_pw1.+",
            "a.blk.*.conv_dw.+",
            "a.blk.*.conv_norm.+",
            "a.blk.*.conv_norm_mean",
            "a.blk.*.conv_norm_var",
            "a.blk.*.conv_pw2.+",
            "a.blk.*.ffn_norm.+",
            "a.blk.*.ffn_norm_1.+",
            "a.blk.*.ffn_up_1.+",
            "a.blk.*.ffn_down_1.+",
            "a.blk.*.norm_conv.+",
        ],
        parakeet,
    ),
];

/// Half of what `name`'s network makes of `x`, added to `residual`.
pub(super) fn half_step(b: &mut TowerGraph<'_>, residual: TensorId, y: TensorId) -> TensorId {
    let half = b.g.scale(y);
    b.g.add(residual, half)
}

/// A network behind a norm, without biases where it `is_bare`.
fn network(
    b: &mut TowerGraph<'_>,
    x: TensorId,
    [norm, up, down]: [&str; 3],
    is_bare: bool,
) -> TensorId {
    let x = b.norm(x, NormKind::Layer, norm);
    if !is_bare {
        return b.mlp(x, up, Activation::Silu, down);
    }
    let x = plain(b, &format!("{up}.weight"), x);
    let x = b.activate(x, Activation::Silu);
    plain(b, &format!("{down}.weight"), x)
}

/// Convolutions that make four frames, or eight, one; the last two one by one.
fn subsampled(b: &mut TowerGraph<'_>, is_direct: bool) -> TensorId {
    let image = b.raw(1);
    let x = b.transposed(image);
    let relu = |b: &mut TowerGraph<'_>, x| match is_direct {
        true => b.g.unary_inplace(Unary::Relu, x),
        false => b.g.unary(Unary::Relu, x),
    };
    let kernel = b.need("a.conv1d.0.weight");
    let x = b.conv_2d(kernel, x, 2, 1);
    let bias = b.need("a.conv1d.0.bias");
    let x = b.g.add(x, bias);
    let mut x = relu(b, x);
    for (each, across) in [("a.conv1d.2", "a.conv1d.3"), ("a.conv1d.5", "a.conv1d.6")] {
        let kernel = b.need(&format!("{each}.weight"));
        x = b.g.conv_2d_dw_direct(kernel, x, 2, 1);
        let bias = b.need(&format!("{each}.bias"));
        x = b.g.add(x, bias);
        let kernel = b.need(&format!("{across}.weight"));
        x = match is_direct {
            true => b.g.conv_2d_direct(kernel, x, 1, 0),
            false => b.conv_2d(kernel, x, 1, 0),
        };
        let bias = b.need(&format!("{across}.bias"));
        x = b.g.add(x, bias);
        x = relu(b, x);
    }
    let x = b.g.permute(x, [0, 2, 1, 3]);
    let x = b.g.cont(x);
    let [n_freq, n_chan, n_frames, _] = b.g[x].ne;
    let x =
        b.g.reshape(x, [n_freq.saturating_mul(n_chan), n_frames, 1, 1]);
    b.linear(x, "a.pre_encode.out")
}

/// Half of the channels gate the other half; frames come first afterwards.
pub(super) fn gated(b: &mut TowerGraph<'_>, x: TensorId, order: Gating) -> TensorId {
    let [n, rows, ..] = b.g[x].ne;
    let nb = b.g[x].nb[1];
    let view = |b: &mut TowerGraph<'_>| b.g.view_2d(x, [n / 2, rows], nb);
    let gate = view(b);
    let gate = match order {
        Gating::Copied => b.g.cont(gate),
        Gating::Viewed => gate,
    };
    let gate = b.g.unary(Unary::Sigmoid, gate);
    let signal = view(b);
    let y = b.g.mul(signal, gate);
    b.transposed(y)
}

/// Whether a gate is copied before its sigmoid.
#[derive(Clone, Copy)]
pub(super) enum Gating {
    Copied,
    Viewed,
}

/// A convolution over time, of as many frames before as behind.
pub(super) fn over_time(b: &mut TowerGraph<'_>, x: TensorId, pad: i64, name: &str) -> TensorId {
    let x = b.g.pad_by(x, [pad, 0, 0, 0]);
    let x = b.g.roll(x);
    let x = b.g.pad_by(x, [pad, 0, 0, 0]);
    let kernel = b.need(name);
    b.g.ssm_conv(x, kernel)
}

/// Scores by distance become scores by frame (Transformer-XL, appendix B).
fn shifted(b: &mut TowerGraph<'_>, x: TensorId) -> TensorId {
    let [pos_len, q_len, heads, _] = b.g[x].ne;
    let g = &mut b.g;
    let x = g.pad_by(x, [1, 0, 0, 0]);
    let x = g.roll(x);
    let x = g.reshape(x, [q_len, pos_len.saturating_add(1), heads, 1]);
    let [_, nb1, nb2, _] = g[x].nb;
    let x = g.view_3d(x, [q_len, pos_len, heads], [nb1, nb2]);
    g.cont_shape(x, [pos_len, q_len, heads, 1])
}

/// Heads of `name`'s product, `[d, h, t]`.
fn heads(b: &mut TowerGraph<'_>, x: TensorId, name: &str, mm: Product<'_>) -> TensorId {
    let x = b.linear_by(x, name, mm);
    let rows = b.g[x].ne[1];
    let ne = [b.hp.n_embd_head, b.hp.n_head, rows, 1];
    b.g.reshape(x, ne)
}

pub(super) fn swapped(b: &mut TowerGraph<'_>, x: TensorId) -> TensorId {
    b.g.permute(x, [0, 2, 1, 3])
}

/// A Conformer's layer: half a network, attention, a gated convolution over time and half a network, each added to what went
/// in; matrices have no biases where it `is_bare`. `over` is the convolution and its norm.
pub(super) fn layer(
    b: &mut TowerGraph<'_>,
    x: TensorId,
    il: usize,
    is_bare: bool,
    attention: impl FnOnce(&mut TowerGraph<'_>, TensorId) -> TensorId,
    over: impl FnOnce(&mut TowerGraph<'_>, TensorId) -> TensorId,
) -> TensorId {
    let name = |kind: &str| format!("a.blk.{il}.{kind}");
    let linear = |b: &mut TowerGraph<'_>, x, kind: &str| match is_bare {
        true => plain(b, &name(&format!("{kind}.weight")), x),
        false => b.linear(x, &name(kind)),
    };
    let names = ["ffn_norm", "ffn_up", "ffn_down"].map(name);
    let y = network(b, x, [&names[0], &names[1], &names[2]], is_bare);
    let residual = half_step(b, x, y);
    let y = b.norm(residual, NormKind::Layer, &name("ln1"));
    let y = attention(b, y);
    let residual = b.g.add(residual, y);
    let y = b.norm(residual, NormKind::Layer, &name("norm_conv"));
    let y = linear(b, y, "conv_pw1");
    let y = gated(b, y, Gating::Viewed);
    let y = over(b, y);
    let y = b.g.unary(Unary::Silu, y);
    let y = linear(b, y, "conv_pw2");
    let residual = b.g.add(residual, y);
    let names = ["ffn_norm_1", "ffn_up_1", "ffn_down_1"].map(name);
    let y = network(b, residual, [&names[0], &names[1], &names[2]], is_bare);
    let residual = half_step(b, residual, y);
    b.norm(residual, NormKind::Layer, &name("ln2"))
}

fn lfm2a(b: &mut TowerGraph<'_>) -> TensorId {
    const WIDE: i64 = 512;
    let n_frames = b.hp.warmup[0];
    let eighth = (((n_frames + 1) / 2 + 1) / 2 + 1) / 2;
    let positions =
        b.g.input("pos_emb", Type::F32, [WIDE, 2 * eighth - 1, 1, 1]);
    b.g.expand(positions);
    let mut x = subsampled(b, true);
    for il in 0..b.hp.n_layer {
        let attention = |b: &mut TowerGraph<'_>, x| lfm2a_attention(b, x, positions, il);
        let over = |b: &mut TowerGraph<'_>, x| {
            let x = over_time(b, x, 4, &format!("a.blk.{il}.conv_dw.weight"));
            let bias = b.need(&format!("a.blk.{il}.conv_dw.bias"));
            let x = b.g.add(x, bias);
            folded_norm(b, x, &format!("a.blk.{il}.conv_norm"))
        };
        x = layer(b, x, il, false, attention, over);
    }
    let x = b.norm(x, NormKind::Layer, "mm.a.mlp.0");
    b.mlp(x, "mm.a.mlp.1", Activation::GeluErf, "mm.a.mlp.3")
}

/// A norm over what was seen in training, folded into a weight and a bias.
pub(super) fn folded_norm(b: &mut TowerGraph<'_>, x: TensorId, name: &str) -> TensorId {
    let weight = b.need(&format!("{name}.weight"));
    let x = b.g.mul(x, weight);
    let bias = b.need(&format!("{name}.bias"));
    b.g.add(x, bias)
}

fn lfm2a_attention(
    b: &mut TowerGraph<'_>,
    x: TensorId,
    positions: TensorId,
    il: usize,
) -> TensorId {
    let name = |kind: &str| format!("a.blk.{il}.{kind}");
    let q = heads(b, x, &name("attn_q"), &plain);
    let [by_content, by_place] = ["pos_bias_u", "pos_bias_v"].map(|kind| {
        let bias = b.need(&name(kind));
        let q = b.g.add(q, bias);
        swapped(b, q)
    });
    let k = heads(b, x, &name("attn_k"), &plain);
    let k = swapped(b, k);
    let k = b.g.cont(k);
    let v = heads(b, x, &name("attn_v"), &plain);
    let v = b.g.permute(v, [1, 2, 0, 3]);
    let v = b.g.cont(v);
    let content = b.g.mul_mat(by_content, k);
    let content = b.g.permute(content, [1, 0, 2, 3]);
    let content = b.g.cont(content);
    let p = heads(b, positions, &name("linear_pos"), &plain);
    let p = swapped(b, p);
    let place = b.g.mul_mat(by_place, p);
    let place = b.g.permute(place, [1, 0, 2, 3]);
    let place = b.g.cont(place);
    let place = shifted(b, place);
    let g = &mut b.g;
    let ([n, ..], [_, rows, heads, _]) = (g[content].ne, g[place].ne);
    let [_, nb1, nb2, _] = g[place].nb;
    let place = g.view_3d(place, [n, rows, heads], [nb1, nb2]);
    let scores = g.add(content, place);
    let scores = g.scale(scores);
    let probs = g.soft_max(scores, None, None);
    let y = g.mul_mat(probs, v);
    let y = side_by_side(b, y);
    b.linear(y, &name("attn_out"))
}

/// Heads `[t, d, h]` become rows `[d h, t]`.
fn side_by_side(b: &mut TowerGraph<'_>, x: TensorId) -> TensorId {
    let g = &mut b.g;
    let x = g.permute(x, [2, 0, 1, 3]);
    let [d, heads, rows, _] = g[x].ne;
    g.cont_shape(x, [d.saturating_mul(heads), rows, 1, 1])
}

/// Sines and cosines of distances, made in the graph.
fn waves(b: &mut TowerGraph<'_>, n_time: i64) -> TensorId {
    let (n, half) = (b.hp.n_embd, b.hp.n_embd / 2);
    let n_distances = 2 * n_time - 1;
    let g = &mut b.g;
    let frequencies = g.input("pos_freqs", Type::F32, [half, 1, 1, 1]);
    let distances = g.input("rel_positions", Type::F32, [1, n_distances, 1, 1]);
    let frequencies = g.repeat(frequencies, [half, n_distances, 1, 1]);
    let theta = g.mul(frequencies, distances);
    let [sin, cos] = [Op::Sin, Op::Cos].map(|op| {
        let wave = g.map(op, theta);
        g.reshape(wave, [1, half, n_distances, 1])
    });
    let waves = g.concat(sin, cos, 0);
    let waves = g.cont(waves);
    g.reshape(waves, [n, n_distances, 1, 1])
}

fn parakeet(b: &mut TowerGraph<'_>) -> TensorId {
    let mut x = subsampled(b, false);
    let n_time = b.g[x].ne[1];
    let mask = b.g.input("attn_mask", Type::F32, [n_time, n_time, 1, 1]);
    let positions = waves(b, n_time);
    let pad = (b.hp.conv_kernel - 1) / 2;
    for il in 0..b.hp.n_layer {
        let attention = |b: &mut TowerGraph<'_>, x| parakeet_attention(b, x, [positions, mask], il);
        let over = |b: &mut TowerGraph<'_>, x| {
            let name = |kind: &str| format!("a.blk.{il}.{kind}");
            let x = over_time(b, x, pad, &name("conv_dw.weight"));
            let mean = b.need(&name("conv_norm_mean"));
            let x = b.g.sub(x, mean);
            let variance = b.need(&name("conv_norm_var"));
            let deviation = b.g.map(Op::Sqrt, variance);
            let x = b.g.div(x, deviation);
            folded_norm(b, x, &name("conv_norm"))
        };
        x = layer(b, x, il, true, attention, over);
    }
    let x = b.g.map(Op::RmsNorm, x);
    let weight = b.need("mm.a.norm_pre.weight");
    let x = b.g.mul(x, weight);
    b.mlp(x, "mm.a.mlp.1", Activation::ReluSqr, "mm.a.mlp.2")
}

fn parakeet_attention(
    b: &mut TowerGraph<'_>,
    x: TensorId,
    [positions, mask]: [TensorId; 2],
    il: usize,
) -> TensorId {
    let name = |kind: &str| format!("a.blk.{il}.{kind}");
    let bare = |b: &mut TowerGraph<'_>, kind: &str, x: TensorId| {
        let x = plain(b, &name(&format!("{kind}.weight")), x);
        let rows = b.g[x].ne[1];
        let ne = [b.hp.n_embd / b.hp.n_head.max(1), b.hp.n_head, rows, 1];
        b.g.reshape(x, ne)
    };
    let [q, k, v] = ["attn_q", "attn_k", "attn_v"].map(|kind| bare(b, kind, x));
    let p = bare(b, "linear_pos", positions);
    let p = swapped(b, p);
    let p = b.g.cont(p);
    let bias = b.need(&name("pos_bias_u"));
    let by_content = b.g.add(q, bias);
    let k = swapped(b, k);
    let by_content = swapped(b, by_content);
    let content = b.g.mul_mat(k, by_content);
    let bias = b.need(&name("pos_bias_v"));
    let by_place = b.g.add(q, bias);
    let by_place = swapped(b, by_place);
    let by_place = b.g.cont(by_place);
    let place = b.g.mul_mat(p, by_place);
    let place = centred(b, place, content);
    let g = &mut b.g;
    let scores = g.add(content, place);
    let scores = g.scale(scores);
    let scores = g.add(scores, mask);
    let probs = g.soft_max(scores, None, None);
    let v = g.permute(v, [1, 2, 0, 3]);
    let v = g.cont(v);
    let y = g.mul_mat(probs, v);
    let y = side_by_side(b, y);
    plain(b, &name("attn_out.weight"), y)
}

/// Parakeet's own way to [`shifted`].
fn centred(b: &mut TowerGraph<'_>, x: TensorId, like: TensorId) -> TensorId {
    let [n_pos, n_frames, heads, _] = b.g[x].ne;
    let [n, rows, ..] = b.g[like].ne;
    let g = &mut b.g;
    let x = g.pad_by(x, [1, 0, 0, 0]);
    let x = g.roll(x);
    let x = g.reshape(x, [n_frames, n_pos.saturating_add(1), heads, 1]);
    let x = g.cont(x);
    let (nb1, nb2) = (Type::F32.row_size(n_pos.max(0) as u64), g[x].nb[2]);
    let x = g.view_3d(x, [n_frames, n_pos, heads], [nb1, nb2]);
    let x = g.cont(x);
    let [_, nb1, nb2, _] = g[x].nb;
    let x = g.view_3d(x, [n, rows, heads], [nb1, nb2]);
    g.cont(x)
}
