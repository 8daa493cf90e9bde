//! Gemma 3n's tower, MobileNet-V5: blocks of convolutions, some of attention, in four stages.

use super::graph::{TowerGraph, plain};
use super::kinds::{ProjectorKind, common, kind};
use vramfit_ggml::{Op, TensorId, Unary};

const STAGES: usize = 4;
/// A side of what the model reads.
const SIDE: i64 = 16;

pub(super) static KINDS: &[ProjectorKind] = &[kind(
    "gemma3nv",
    common,
    &[
        "v.conv_stem.conv.+",
        "v.conv_stem.bn.weight",
        "v.msfa.ffn.pw_exp.conv.weight",
        "v.msfa.ffn.pw_exp.bn.weight",
        "v.msfa.ffn.pw_proj.conv.weight",
        "v.msfa.ffn.pw_proj.bn.weight",
        "v.msfa.norm.weight",
        "v.blk.?.?.conv_exp.weight",
        "v.blk.?.?.bn1.weight",
        "v.blk.?.?.conv_pwl.weight",
        "v.blk.?.?.bn2.weight",
        "v.blk.?.?.dw_start.conv.weight",
        "v.blk.?.?.dw_start.bn.weight",
        "v.blk.?.?.dw_mid.conv.weight",
        "v.blk.?.?.dw_mid.bn.weight",
        "v.blk.?.?.pw_exp.conv.weight",
        "v.blk.?.?.pw_exp.bn.weight",
        "v.blk.?.?.pw_proj.conv.weight",
        "v.blk.?.?.pw_proj.bn.weight",
        "v.blk.?.?.layer_scale.gamma",
        "v.blk.?.?.attn.query.proj.weight",
        "v.blk.?.?.attn.key.proj.weight",
        "v.blk.?.?.attn.value.proj.weight",
        "v.blk.?.?.attn.output.proj.weight",
        "v.blk.?.?.attn.key.down_conv.weight",
        "v.blk.?.?.attn.key.norm.weight",
        "v.blk.?.?.attn.value.down_conv.weight",
        "v.blk.?.?.attn.value.norm.weight",
        "v.blk.?.?.norm.weight",
        "mm.input_projection.weight",
        "mm.soft_emb_norm.weight",
    ],
    gemma3n,
)];

/// A norm over the channels of each place, if there is a weight.
fn normed(b: &mut TowerGraph<'_>, x: TensorId, name: &str) -> TensorId {
    let Some(weight) = b.weight(name) else {
        return x;
    };
    let g = &mut b.g;
    let x = g.permute(x, [2, 1, 0, 3]);
    let x = g.cont(x);
    let x = g.map(Op::RmsNorm, x);
    let x = g.mul(x, weight);
    let x = g.permute(x, [2, 1, 0, 3]);
    g.cont(x)
}

/// Zeros around the image, as many as a convolution needs to see every place.
fn padded(b: &mut TowerGraph<'_>, x: TensorId, kernel: i64, stride: i64) -> TensorId {
    let [w, h, ..] = b.g[x].ne;
    let pad = |n: i64| {
        let out = (n + stride - 1) / stride;
        ((out - 1) * stride + kernel - n).max(0)
    };
    match (pad(w), pad(h)) {
        (0, 0) => x,
        (x_pad, y_pad) => b.g.pad_by(x, [x_pad, y_pad, 0, 0]),
    }
}

/// A convolution of one place.
fn pointwise(b: &mut TowerGraph<'_>, x: TensorId, name: &str) -> TensorId {
    let kernel = b.need(name);
    b.g.conv_2d_direct(kernel, x, 1, 0)
}

/// One kernel a channel.
fn depthwise(b: &mut TowerGraph<'_>, x: TensorId, name: &str, stride: i64) -> TensorId {
    let kernel = b.need(name);
    let k = b.g[kernel].ne[0];
    match stride {
        1 => b.g.conv_2d_dw(kernel, x, 1, k / 2),
        _ => {
            let x = padded(b, x, k, stride);
            b.g.conv_2d_dw(kernel, x, stride, 0)
        }
    }
}

/// A block of the first stage.
fn edge_block(b: &mut TowerGraph<'_>, inp: TensorId, block: &str, stride: i64) -> TensorId {
    const KERNEL: i64 = 3;
    let kernel = b.need(&format!("{block}.conv_exp.weight"));
    let x = match stride {
        2 => {
            let x = padded(b, inp, KERNEL, stride);
            b.g.conv_2d_direct(kernel, x, stride, 0)
        }
        _ => b.g.conv_2d_direct(kernel, inp, stride, 1),
    };
    let x = normed(b, x, &format!("{block}.bn1.weight"));
    let x = b.g.unary(Unary::Gelu, x);
    let x = pointwise(b, x, &format!("{block}.conv_pwl.weight"));
    let x = normed(b, x, &format!("{block}.bn2.weight"));
    let (a, c) = (b.g[inp].ne, b.g[x].ne);
    match stride == 1 && a[2] == c[2] && a[0] == c[0] {
        true => b.g.add(x, inp),
        false => x,
    }
}

/// Wider, a convolution a channel, narrower again.
fn inverted_block(b: &mut TowerGraph<'_>, inp: TensorId, block: &str, stride: i64) -> TensorId {
    let name = |part: &str| format!("{block}.{part}");
    let mut x = inp;
    if b.has(&name("dw_start.conv.weight")) {
        x = depthwise(b, x, &name("dw_start.conv.weight"), 1);
        x = normed(b, x, &name("dw_start.bn.weight"));
    }
    if b.has(&name("pw_exp.conv.weight")) {
        x = pointwise(b, x, &name("pw_exp.conv.weight"));
        x = normed(b, x, &name("pw_exp.bn.weight"));
        x = b.g.unary(Unary::Gelu, x);
    }
    if b.has(&name("dw_mid.conv.weight")) {
        x = depthwise(b, x, &name("dw_mid.conv.weight"), stride);
        x = normed(b, x, &name("dw_mid.bn.weight"));
        x = b.g.unary(Unary::Gelu, x);
    }
    if b.has(&name("pw_proj.conv.weight")) {
        x = pointwise(b, x, &name("pw_proj.conv.weight"));
        x = normed(b, x, &name("pw_proj.bn.weight"));
    }
    if let Some(scale) = b.weight(&name("layer_scale.gamma")) {
        x = b.g.mul(x, scale);
    }
    match b.g[inp].ne[..3] == b.g[x].ne[..3] {
        true => b.g.add(x, inp),
        false => x,
    }
}

/// K or V: one head, of a quarter of the places where a convolution makes them fewer.
fn shared_head(b: &mut TowerGraph<'_>, x: TensorId, stem: &str) -> TensorId {
    let down = format!("{stem}.down_conv.weight");
    let x = match b.has(&down) {
        true => {
            let x = depthwise(b, x, &down, 2);
            normed(b, x, &format!("{stem}.norm.weight"))
        }
        false => x,
    };
    pointwise(b, x, &format!("{stem}.proj.weight"))
}

fn attention_block(b: &mut TowerGraph<'_>, inp: TensorId, block: &str) -> TensorId {
    let x = normed(b, inp, &format!("{block}.norm.weight"));
    let q = pointwise(b, x, &format!("{block}.attn.query.proj.weight"));
    let [k, v] = ["key", "value"].map(|part| shared_head(b, x, &format!("{block}.attn.{part}")));
    let [w, h, ..] = b.g[x].ne;
    let ([w_k, h_k, d, _], wide) = (b.g[k].ne, b.g[q].ne[2]);
    let (n, n_kv) = (w.saturating_mul(h), w_k.saturating_mul(h_k));
    let g = &mut b.g;
    let q = g.reshape(q, [n, wide, 1, 1]);
    let q = g.reshape(q, [n, d, wide / d.max(1), 1]);
    let q = g.permute(q, [1, 0, 2, 3]);
    let q = g.cont(q);
    let k = g.reshape(k, [n_kv, d, 1, 1]);
    let k = g.reshape(k, [n_kv, d, 1, 1]);
    let k = g.permute(k, [1, 0, 2, 3]);
    let k = g.cont(k);
    let v = g.reshape(v, [n_kv, d, 1, 1]);
    let v = g.reshape(v, [n_kv, d, 1, 1]);
    let v = g.cont(v);
    let scores = g.mul_mat(k, q);
    let scores = g.scale(scores);
    let probs = g.soft_max(scores, None, None);
    let y = g.mul_mat(v, probs);
    let y = g.permute(y, [1, 0, 2, 3]);
    let y = g.cont(y);
    let y = g.reshape(y, [n, wide, 1, 1]);
    let y = g.reshape(y, [w, h, wide, 1]);
    let y = g.cont(y);
    let mut y = pointwise(b, y, &format!("{block}.attn.output.proj.weight"));
    let (a, c) = (b.g[inp].ne, b.g[y].ne);
    if [a[0], a[2]] == [c[0], c[2]] {
        if let Some(scale) = b.weight(&format!("{block}.layer_scale.gamma")) {
            y = b.g.mul(y, scale);
        }
        y = b.g.add(y, inp);
    }
    y
}

/// The blocks, and what two stages end with.
fn stages(b: &mut TowerGraph<'_>, mut x: TensorId) -> Vec<TensorId> {
    let mut ends = Vec::new();
    for stage in 0..STAGES {
        let mut n_blocks = 0;
        loop {
            let block = format!("v.blk.{stage}.{n_blocks}");
            let has = |part: &str| b.has(&format!("{block}.{part}"));
            let stride = if n_blocks == 0 { 2 } else { 1 };
            x = if has("conv_exp.weight") {
                edge_block(b, x, &block, stride)
            } else if has("attn.query.proj.weight") {
                attention_block(b, x, &block)
            } else if has("dw_start.conv.weight") || has("pw_exp.conv.weight") {
                inverted_block(b, x, &block, stride)
            } else {
                break;
            };
            n_blocks += 1;
        }
        if n_blocks > 0 {
            ends.push(x);
        }
    }
    match ends[..] {
        [_, _, third, fourth] => vec![third, fourth],
        [.., last] => vec![last],
        [] => Vec::new(),
    }
}

/// Stages at the size of the first of them, beside each other, then a network and a mean.
fn fused(b: &mut TowerGraph<'_>, ends: &[TensorId]) -> Option<TensorId> {
    let (&first, others) = ends.split_first()?;
    let [w, h, ..] = b.g[first].ne;
    let mut x = first;
    for &end in others {
        let [w_end, h_end, n, more] = b.g[end].ne;
        let mut end = end;
        if w_end < w || h_end < h {
            let times = w / w_end.max(1);
            let ne = [
                w_end.saturating_mul(times),
                h_end.saturating_mul(times),
                n,
                more,
            ];
            end = b.g.interpolate(end, ne);
        }
        x = b.g.concat(x, end, 2);
    }
    if b.has("v.msfa.ffn.pw_exp.conv.weight") {
        x = pointwise(b, x, "v.msfa.ffn.pw_exp.conv.weight");
        x = normed(b, x, "v.msfa.ffn.pw_exp.bn.weight");
        x = b.g.unary(Unary::Gelu, x);
    }
    if b.has("v.msfa.ffn.pw_proj.conv.weight") {
        x = pointwise(b, x, "v.msfa.ffn.pw_proj.conv.weight");
        x = normed(b, x, "v.msfa.ffn.pw_proj.bn.weight");
    }
    let w = b.g[x].ne[0];
    if w > SIDE {
        x = b.g.pool_2d(x, w / SIDE);
    }
    Some(normed(b, x, "v.msfa.norm.weight"))
}

fn gemma3n(b: &mut TowerGraph<'_>) -> TensorId {
    const STEM: i64 = 3;
    let image = b.raw(3);
    let x = padded(b, image, STEM, 2);
    let kernel = b.need("v.conv_stem.conv.weight");
    let mut x = b.g.conv_2d_direct(kernel, x, 2, 0);
    if let Some(bias) = b.weight("v.conv_stem.conv.bias") {
        x = b.g.add(x, bias);
    }
    x = normed(b, x, "v.conv_stem.bn.weight");
    x = b.g.unary(Unary::Gelu, x);
    let ends = stages(b, x);
    let x = fused(b, &ends).unwrap_or(x);
    let [w, h, c, more] = b.g[x].ne;
    let g = &mut b.g;
    let x = g.permute(x, [2, 1, 0, 3]);
    let x = g.permute(x, [0, 2, 1, 3]);
    let x = g.cont(x);
    let x = g.reshape(x, [c, w.saturating_mul(h), more, 1]);
    let x = g.cont(x);
    let x = g.scale(x);
    let x = g.map(Op::RmsNorm, x);
    let weight = b.need("mm.soft_emb_norm.weight");
    let x = b.g.mul(x, weight);
    let x = plain(b, "mm.input_projection.weight", x);
    b.g.map(Op::RmsNorm, x)
}
