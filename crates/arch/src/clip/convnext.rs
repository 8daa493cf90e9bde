//! Reka's tower, ConvNeXt V2: convolutions alone, in stages that halve the image.

use super::graph::TowerGraph;
use super::hparams::Activation;
use super::kinds::{ProjectorKind, kind};
use vramfit_ggml::{Op, TensorId};

const MAX_STAGES: usize = 64;
const MAX_BLOCKS: usize = 1024;

pub(super) static KINDS: &[ProjectorKind] = &[kind(
    "yasa2",
    |_, hp| {
        hp.activation = Activation::GeluErf;
        Ok(())
    },
    &[
        "v.patch_ln.+",
        "v.backbone_ln.+",
        "v.vision_pos_embed",
        "mm.0.+",
        "mm.2.+",
        "v.stage.?.down.ln.+",
        "v.stage.?.down.conv.+",
        "v.stage.?.blk.?.dw.+",
        "v.stage.?.blk.?.ln.+",
        "v.stage.?.blk.?.pw1.+",
        "v.stage.?.blk.?.grn.+",
        "v.stage.?.blk.?.pw2.+",
    ],
    yasa2,
)];

/// A weight a channel, multiplied, and a bias a channel, added, where there are any.
fn scaled(b: &mut TowerGraph<'_>, mut x: TensorId, stem: &str) -> TensorId {
    if let Some(weight) = b.weight(&format!("{stem}.weight")) {
        let n = b.g[weight].ne[0];
        let weight = b.g.reshape(weight, [1, 1, n, 1]);
        x = b.g.mul(x, weight);
    }
    b.add_channels(x, &format!("{stem}.bias"))
}

/// A norm over the channels of each place, step by step.
fn normed(b: &mut TowerGraph<'_>, x: TensorId, stem: &str) -> TensorId {
    let g = &mut b.g;
    let x = g.permute(x, [2, 1, 0, 3]);
    let x = g.cont(x);
    let mean = g.mean(x);
    let x = g.sub(x, mean);
    let squares = g.mul(x, x);
    let variance = g.mean(squares);
    let variance = g.map(Op::Clamp, variance);
    let deviation = g.map(Op::Sqrt, variance);
    let x = g.div(x, deviation);
    let x = g.permute(x, [2, 1, 0, 3]);
    let x = g.cont(x);
    scaled(b, x, stem)
}

/// Each channel by how strong it is beside the others.
fn by_response(b: &mut TowerGraph<'_>, inp: TensorId, stem: &str) -> TensorId {
    let [w, h, c, n] = b.g[inp].ne;
    let g = &mut b.g;
    let squares = g.mul(inp, inp);
    let squares = g.reshape(squares, [w.saturating_mul(h), c, 1, n]);
    let strength = g.sum_rows(squares);
    let strength = g.map(Op::Sqrt, strength);
    let x = g.permute(strength, [1, 0, 2, 3]);
    let x = g.cont(x);
    let mean = g.mean(x);
    let mean = g.map(Op::Clamp, mean);
    let x = g.div(strength, mean);
    let x = g.permute(x, [0, 2, 1, 3]);
    let x = g.cont(x);
    let x = g.mul(inp, x);
    let x = scaled(b, x, stem);
    b.g.add(inp, x)
}

/// Places as rows of channels.
fn rows(b: &mut TowerGraph<'_>, x: TensorId) -> TensorId {
    let [w, h, c, n] = b.g[x].ne;
    let x = b.g.reshape(x, [w.saturating_mul(h), c, n, 1]);
    let x = b.g.permute(x, [1, 0, 2, 3]);
    b.g.cont(x)
}

/// A matrix over the channels of each place.
fn across(b: &mut TowerGraph<'_>, x: TensorId, stem: &str) -> TensorId {
    let [w, h, _, n] = b.g[x].ne;
    let x = rows(b, x);
    let matrix = b.need(&format!("{stem}.weight"));
    let mut x = b.g.mul_mat(matrix, x);
    if let Some(bias) = b.weight(&format!("{stem}.bias")) {
        let c = b.g[bias].ne[0];
        let bias = b.g.reshape(bias, [c, 1, 1, 1]);
        x = b.g.add(x, bias);
    }
    let c = b.g[x].ne[0];
    let x = b.g.permute(x, [1, 0, 2, 3]);
    let x = b.g.cont(x);
    b.g.reshape(x, [w, h, c, n])
}

fn block(b: &mut TowerGraph<'_>, inp: TensorId, name: &str) -> TensorId {
    const PAD: i64 = 3;
    let kernel = b.need(&format!("{name}.dw.weight"));
    let x = b.g.conv_2d_dw(kernel, inp, 1, PAD);
    let x = b.add_channels(x, &format!("{name}.dw.bias"));
    let x = normed(b, x, &format!("{name}.ln"));
    let x = across(b, x, &format!("{name}.pw1"));
    let x = b.activate(x, Activation::GeluErf);
    let x = by_response(b, x, &format!("{name}.grn"));
    let x = across(b, x, &format!("{name}.pw2"));
    b.g.add(inp, x)
}

fn stages(b: &mut TowerGraph<'_>, mut x: TensorId) -> TensorId {
    for stage in 0..MAX_STAGES {
        let name = format!("v.stage.{stage}");
        let has_down = b.has(&format!("{name}.down.conv.weight"));
        if has_down {
            x = normed(b, x, &format!("{name}.down.ln"));
            let kernel = b.need(&format!("{name}.down.conv.weight"));
            x = b.conv_2d(kernel, x, 2, 0);
            x = b.add_channels(x, &format!("{name}.down.conv.bias"));
        }
        let names = (0..MAX_BLOCKS).map(|i| format!("{name}.blk.{i}"));
        let mut n_blocks = 0;
        for block_name in names {
            if !b.has(&format!("{block_name}.dw.weight")) {
                break;
            }
            x = block(b, x, &block_name);
            n_blocks += 1;
        }
        if !has_down && n_blocks == 0 {
            break;
        }
    }
    x
}

fn yasa2(b: &mut TowerGraph<'_>) -> TensorId {
    const SIDE: i64 = 8;
    let image = b.raw(3);
    let kernel = b.need("v.patch_embd.weight");
    let x = b.conv_2d(kernel, image, b.hp.patch_size, 0);
    let x = b.add_channels(x, "v.patch_embd.bias");
    let x = normed(b, x, "v.patch_ln");
    let x = stages(b, x);
    let [w, h, c, n] = b.g[x].ne;
    let mut x = rows(b, x);
    if let Some(table) = b.weight("v.vision_pos_embed") {
        let [wide, n_pos, ..] = b.g[table].ne;
        if n_pos == b.g[x].ne[1] {
            let table = b.g.reshape(table, [wide, n_pos, 1, 1]);
            x = b.g.add(x, table);
        }
    }
    let x = b.g.permute(x, [1, 0, 2, 3]);
    let x = b.g.cont(x);
    let x = b.g.reshape(x, [w, h, c, n]);
    let sides = [w, h].map(|n| (n / SIDE.min(n).max(1)).max(1));
    let x = b.g.pool_2d_by(x, sides);
    let x = rows(b, x);
    b.mlp(x, "mm.0", Activation::GeluErf, "mm.2")
}
