//! Gemma's towers.

use super::blocks::{Rope, Vit};
use super::graph::{NormKind, TowerGraph, plain};
use super::hparams::SCALE_FACTOR;
use super::kinds::{ProjectorKind, kind, swapping};
use super::vision::siglip;
use vramfit_ggml::{Op, TensorId, Type};

pub(super) static KINDS: &[ProjectorKind] = &[
    swapping(kind(
        "gemma3",
        |keys, hp| hp.merge_by(keys, SCALE_FACTOR, 4),
        &["mm.input_projection.weight", "mm.soft_emb_norm.weight"],
        gemma3,
    )),
    kind(
        "gemma4v",
        |keys, hp| {
            hp.merge_by(keys, SCALE_FACTOR, 3)?;
            hp.warm_up_with_side(16);
            Ok(())
        },
        &["mm.input_projection.weight", "v.std_bias", "v.std_scale"],
        gemma4v,
    ),
    kind(
        "gemma4uv",
        |keys, hp| {
            hp.merge_by(keys, SCALE_FACTOR, 3)?;
            hp.patch_size = hp.patch_size.saturating_mul(hp.n_merge);
            hp.n_merge = 1;
            hp.warm_up_with_side(16);
            Ok(())
        },
        &[
            "mm.input_projection.weight",
            "v.patch_norm.1.+",
            "v.patch_norm.2.+",
            "v.patch_norm.3.+",
        ],
        gemma4uv,
    ),
    kind(
        "gemma4ua",
        |_, hp| {
            hp.warmup[1] = SAMPLES;
            Ok(())
        },
        &["mm.a.input_projection.weight"],
        gemma4ua,
    ),
];

/// Of the waveform that Gemma 4's unified tower reads at a time.
const SAMPLES: i64 = 640;

/// Squares of patches averaged: `[n_embd, n]` to `[n_embd, n / (k k)]`.
fn pooled(b: &mut TowerGraph<'_>, x: TensorId) -> TensorId {
    let (n_embd, k) = (b.hp.n_embd, b.hp.n_merge.max(1));
    let [w, h] = b.n_patches;
    let g = &mut b.g;
    let x = g.transpose(x);
    let x = g.cont_shape(x, [w, h, n_embd, 1]);
    let x = g.pool_2d(x, k);
    let ne = g[x].ne;
    let x = g.reshape(x, [ne[0].saturating_mul(ne[1]), n_embd, 1, 1]);
    b.transposed(x)
}

pub(super) fn gemma3(b: &mut TowerGraph<'_>) -> TensorId {
    let x = siglip(b, None);
    let x = pooled(b, x);
    let x = b.g.map(Op::RmsNorm, x);
    let norm = b.need("mm.soft_emb_norm.weight");
    let x = b.g.mul(x, norm);
    let w = b.need("mm.input_projection.weight");
    let w = b.transposed(w);
    b.g.mul_mat(w, x)
}

/// Gemma 4 limits what goes into some matrices and what comes out: clip.cpp asks for the limits of every matrix and
/// limits them all.
pub(super) fn clamped(b: &mut TowerGraph<'_>, name: &str, x: TensorId) -> TensorId {
    let w = b.need(name);
    let x = b.g.map(Op::Clamp, x);
    let y = b.g.mul_mat(w, x);
    b.g.map(Op::Clamp, y)
}

/// Learned positions: rows of one table for columns, of another for rows of patches.
fn add_positions(b: &mut TowerGraph<'_>, x: TensorId, pos: [TensorId; 2]) -> TensorId {
    let n = b.hp.n_embd;
    let table = b.need("v.position_embd.weight");
    let rows = b.g[table].ne[1];
    let nb = b.g[table].ty.row_size(n.max(0) as u64);
    let rows = pos.map(|pos| {
        let half = b.g.view_2d(table, [n, rows], nb);
        b.g.get_rows(half, pos)
    });
    let x = b.g.add(x, rows[0]);
    b.g.add(x, rows[1])
}

pub(super) fn gemma4v(b: &mut TowerGraph<'_>) -> TensorId {
    let n_pos = b.n_pos();
    let image = b.raw(3);
    let image = b.g.scale(image);
    let mut x = b.patches_of(image);
    let pos = ["pos_x", "pos_y"].map(|name| b.ids(name, n_pos));
    x = add_positions(b, x, pos);
    let vit = Vit {
        rope: Some(Rope::Halves(pos[0], pos[1])),
        normed_v: true,
        mm: &clamped,
        ..Vit::new(NormKind::Rms)
    };
    let x = b.vit(x, n_pos, &vit);
    let x = pooled(b, x);
    let mut x = b.g.scale(x);
    if let (Some(bias), Some(scale)) = (b.weight("v.std_bias"), b.weight("v.std_scale")) {
        x = b.g.sub(x, bias);
        x = b.g.mul(x, scale);
    }
    let x = b.g.map(Op::RmsNorm, x);
    clamped(b, "mm.input_projection.weight", x)
}

/// Gemma 4, unified: patches go to the model as they are, normed and with their positions.
fn gemma4uv(b: &mut TowerGraph<'_>) -> TensorId {
    let (p, n_pos) = (b.hp.patch_size, b.n_pos());
    let image = b.raw(3);
    let kernel = b.g.new_tensor(Op::None, Type::F32, [p, p, 3, 1], &[]);
    let x = b.g.im2col_2d(kernel, image, [p; 2], [0; 2], Type::F32);
    let [n, w, h, more] = b.g[x].ne;
    let rows = w.saturating_mul(h).saturating_mul(more);
    let x = b.g.reshape(x, [n, rows, 1, 1]);
    let x = b.norm(x, NormKind::Layer, "v.patch_norm.1");
    let x = plain(b, "v.patch_embd.weight", x);
    let bias = b.need("v.patch_embd.bias");
    let x = b.g.add(x, bias);
    let x = b.norm(x, NormKind::Layer, "v.patch_norm.2");
    let pos = ["pos_x", "pos_y"].map(|name| b.ids(name, n_pos));
    let x = add_positions(b, x, pos);
    let x = b.norm(x, NormKind::Layer, "v.patch_norm.3");
    let x = b.g.map(Op::RmsNorm, x);
    plain(b, "mm.input_projection.weight", x)
}

/// The same for sounds.
fn gemma4ua(b: &mut TowerGraph<'_>) -> TensorId {
    let x = b.raw(1);
    let x = b.g.permute(x, [1, 0, 2, 3]);
    let x = b.g.cont(x);
    let x = b.g.map(Op::RmsNorm, x);
    plain(b, "mm.a.input_projection.weight", x)
}
