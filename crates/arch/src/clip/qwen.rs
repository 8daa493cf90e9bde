//! Qwen-VL and towers of its shape: an image counts as two frames, patches come in squares.

use super::blocks::{Rope, Vit};
use super::graph::{NormKind, TowerGraph, plain};
use super::hparams::{Activation, MAX_PIXELS, MAX_QUERY, SPATIAL_MERGE, TowerHparams};
use super::kinds::{ProjectorKind, TWO, kind, swapping};
use crate::Result;
use crate::keys::Keys;
use vramfit_ggml::{Flags, TensorId, Type, Unary};

/// Layers that a list may name.
const MAX_WINDOWS: usize = 512;

fn qwen(keys: &Keys<'_>, hp: &mut TowerHparams) -> Result<()> {
    hp.merge_by(keys, SPATIAL_MERGE, 2)?;
    hp.n_wa_pattern = keys.int("vision.n_wa_pattern", MAX_PIXELS)?.unwrap_or(0);
    hp.warm_up_with_side(46);
    Ok(())
}

fn mimo(keys: &Keys<'_>, hp: &mut TowerHparams) -> Result<()> {
    hp.merge_by(keys, SPATIAL_MERGE, 2)?;
    keys.require("vision.attention.head_count_kv", MAX_QUERY)?;
    keys.require("vision.window_size", MAX_PIXELS)?;
    hp.read_modes(keys, "vision.wa_pattern_mode")?;
    hp.warm_up_with_side(46);
    Ok(())
}

/// Its modes are 1 for the layers that see all patches.
fn youtu(keys: &Keys<'_>, hp: &mut TowerHparams) -> Result<()> {
    const LAYERS: &str = "vision.wa_layer_indexes";
    hp.merge_by(keys, SPATIAL_MERGE, 2)?;
    keys.require("vision.window_size", MAX_PIXELS)?;
    let sees_all = keys.array(LAYERS, MAX_WINDOWS, -1)?;
    let sees_all = sees_all.ok_or_else(|| keys.missing(LAYERS))?;
    if sees_all.iter().any(|&il| il >= 0) {
        let mode = |il: usize| i64::from(sees_all.contains(&(il as i64)));
        hp.modes = (0..hp.n_layer).map(mode).collect();
    }
    hp.warm_up_with_side(16);
    Ok(())
}

pub(super) static KINDS: &[ProjectorKind] = &[
    swapping(kind("qwen2vl_merger", qwen, TWO, qwen2vl)),
    swapping(kind("qwen2.5vl_merger", qwen, TWO, qwen2vl)),
    kind("qwen3vl_merger", qwen, TWO, qwen3vl),
    kind(
        "glm4v",
        qwen,
        &[
            "mm.model.fc.weight",
            "mm.up.+",
            "mm.gate.+",
            "mm.down.+",
            "mm.post_norm.+",
            "mm.patch_merger.+",
        ],
        glm4v,
    ),
    swapping(kind(
        "exaone4_5",
        |keys, hp| {
            keys.require("vision.attention.head_count_kv", MAX_QUERY)?;
            qwen(keys, hp)
        },
        TWO,
        exaone,
    )),
    kind("mimovl", mimo, TWO, mimovl),
    kind(
        "minimax_m3",
        |keys, hp| {
            hp.merge_by(keys, SPATIAL_MERGE, 2)?;
            hp.activation = Activation::GeluErf;
            hp.warm_up_with_side(16);
            Ok(())
        },
        &["mm.1.+", "mm.2.+", "mm.merger.fc1.+", "mm.merger.fc2.+"],
        minimax,
    ),
    kind(
        "youtuvl",
        youtu,
        &["mm.input_norm.weight", "mm.0.+", "mm.2.+"],
        youtuvl,
    ),
];

/// A still image counts as two equal frames; patches come in squares of two by two.
fn frames(b: &mut TowerGraph<'_>, squares: i64) -> TensorId {
    let image = b.raw(3);
    let [first, second] = ["v.patch_embd.weight", "v.patch_embd.weight.1"].map(|name| {
        let kernel = b.need(name);
        b.conv_2d(kernel, image, b.hp.patch_size, 0)
    });
    let x = b.g.add(first, second);
    let x = b.g.permute(x, [1, 2, 0, 3]);
    b.by_squares(x, squares)
}

fn four_in_one(b: &mut TowerGraph<'_>, x: TensorId) -> TensorId {
    let ne = [4 * b.hp.n_embd, b.n_pos() / 4, 1, 1];
    b.g.reshape(x, ne)
}

pub(super) fn qwen2vl(b: &mut TowerGraph<'_>) -> TensorId {
    let norm = match b.tower.type_name.as_str() {
        "qwen2.5vl_merger" => NormKind::Rms,
        _ => NormKind::Layer,
    };
    let x = frames(b, 2);
    let positions = b.ids("positions", 4 * b.n_pos());
    let x = b.normed_if(x, norm, "v.pre_ln");
    let (x, mask) = by_windows(b, x);
    let vit = Vit {
        rope: Some(Rope::Multi(positions)),
        ..Vit::new(norm)
    };
    let x = windowed_layers(b, x, &vit, mask);
    let x = b.normed_if(x, norm, "v.post_ln");
    merged(b, x)
}

pub(super) fn qwen3vl(b: &mut TowerGraph<'_>) -> TensorId {
    let (n_embd, n_pos) = (b.hp.n_embd, b.n_pos());
    let x = frames(b, 2);
    let bias = b.need("v.patch_embd.bias");
    let x = b.g.add(x, bias);
    let positions = b.resized_positions();
    let positions = b.by_squares(positions, 2);
    let x = b.g.add(x, positions);
    let positions = b.ids("positions", 4 * n_pos);
    let mut x = b.normed_if(x, NormKind::Layer, "v.pre_ln");
    let vit = Vit {
        rope: Some(Rope::Multi(positions)),
        ..Vit::new(NormKind::Layer)
    };
    let merge = b.hp.n_merge.saturating_mul(b.hp.n_merge).max(1);
    let mut deepstack: Option<TensorId> = None;
    for il in 0..b.hp.n_layer {
        x = b.layer(x, il, n_pos, &vit, None);
        let [norm, fc1, fc2] =
            ["norm", "fc1", "fc2"].map(|part| format!("v.deepstack.{il}.{part}"));
        if b.has(&format!("{fc1}.weight")) {
            let ne = [n_embd.saturating_mul(merge), n_pos / merge, 1, 1];
            let y = b.g.reshape(x, ne);
            let y = b.norm(y, NormKind::Layer, &norm);
            let y = b.mlp(y, &fc1, Activation::Gelu, &fc2);
            deepstack = Some(match deepstack {
                Some(before) => b.g.concat(before, y, 0),
                None => y,
            });
        }
    }
    let x = b.normed_if(x, NormKind::Layer, "v.post_ln");
    let x = four_in_one(b, x);
    let x = b.mlp(x, "mm.0", Activation::Gelu, "mm.2");
    match deepstack {
        Some(features) => b.g.concat(x, features, 0),
        None => x,
    }
}

pub(super) fn glm4v(b: &mut TowerGraph<'_>) -> TensorId {
    let (n, n_pos, s) = (b.hp.n_embd, b.n_pos(), b.hp.n_merge.max(1));
    let positions = b.ids("positions", 4 * n_pos);
    let x = frames(b, 2);
    let bias = b.need("v.patch_embd.bias");
    let x = b.g.add(x, bias);
    let x = b.norm(x, NormKind::Rms, "v.norm_embd");
    let learned = b.has("v.position_embd.weight").then(|| {
        let positions = b.resized_positions();
        b.by_squares(positions, 2)
    });
    let vit = Vit {
        positions: learned,
        rope: Some(Rope::Multi(positions)),
        ..Vit::new(NormKind::Rms)
    };
    let x = b.vit(x, n_pos, &vit);
    let n_out = n_pos / s / s;
    let x = b.g.reshape(x, [n, s, s, n_out]);
    let x = b.g.permute(x, [2, 0, 1, 3]);
    let x = b.g.cont(x);
    let kernel = b.need("mm.patch_merger.weight");
    let x = b.conv_2d(kernel, x, s, 0);
    let wide = b.g[x].ne[2];
    let x = b.g.reshape(x, [wide, n_out, 1, 1]);
    let bias = b.need("mm.patch_merger.bias");
    let x = b.g.add(x, bias);
    let x = plain(b, "mm.model.fc.weight", x);
    let x = b.norm(x, NormKind::Layer, "mm.post_norm");
    let x = b.activate(x, Activation::GeluErf);
    b.ffn(x, ["mm.up", "mm.gate", "mm.down"], b.hp.activation, &plain)
}

/// Rows of four patches in another order.
fn reordered(b: &mut TowerGraph<'_>, x: TensorId, ids: TensorId) -> TensorId {
    let n = b.hp.n_embd;
    let x = four_in_one(b, x);
    let x = b.g.get_rows(x, ids);
    let n_pos = b.n_pos();
    b.g.reshape(x, [n, n_pos, 1, 1])
}

/// The patches of a window one behind the other, and their mask, where most layers see windows alone.
fn by_windows(b: &mut TowerGraph<'_>, x: TensorId) -> (TensorId, Option<TensorId>) {
    if b.hp.n_wa_pattern <= 0 {
        return (x, None);
    }
    let ids = b.ids("inv_window_idx", b.n_pos() / 4);
    let mask = window_mask(b, "window_mask");
    (reordered(b, x, ids), Some(mask))
}

/// All layers; each `n_wa_pattern`-th sees everything.
fn windowed_layers(
    b: &mut TowerGraph<'_>,
    mut x: TensorId,
    vit: &Vit,
    mask: Option<TensorId>,
) -> TensorId {
    let (n_pos, every) = (b.n_pos(), b.hp.n_wa_pattern);
    for il in 0..b.hp.n_layer {
        let sees_all = every == 0 || (il as i64 + 1) % every == 0;
        x = b.layer(x, il, n_pos, vit, mask.filter(|_| !sees_all));
    }
    x
}

/// Four patches are one token; they go back to their places where windows have them elsewhere.
fn merged(b: &mut TowerGraph<'_>, x: TensorId) -> TensorId {
    let n_out = b.n_pos() / 4;
    let x = four_in_one(b, x);
    let x = b.mlp(x, "mm.0", Activation::Gelu, "mm.2");
    if b.hp.n_wa_pattern <= 0 {
        return x;
    }
    let ids = b.ids("window_idx", n_out);
    let ne = [b.hp.projection_dim, n_out, 1, 1];
    let x = b.g.reshape(x, ne);
    let x = b.g.get_rows(x, ids);
    b.g.reshape(x, ne)
}

/// Which patches share a window, as attention wants it.
fn window_mask(b: &mut TowerGraph<'_>, name: &'static str) -> TensorId {
    let n_pos = b.n_pos();
    let mask = b.g.input(name, Type::F32, [n_pos, n_pos, 1, 1]);
    match b.flash_attn {
        true => b.g.cast(mask, Type::F16),
        false => mask,
    }
}

fn exaone(b: &mut TowerGraph<'_>) -> TensorId {
    let x = frames(b, 2);
    let positions = b.ids("positions", 4 * b.n_pos());
    let (x, mask) = by_windows(b, x);
    let vit = Vit {
        rope: Some(Rope::Multi(positions)),
        fused: Some([b.hp.n_embd_head, b.hp.n_head, b.hp.n_head_kv]),
        ..Vit::new(NormKind::Rms)
    };
    let x = windowed_layers(b, x, &vit, mask);
    let x = b.norm(x, NormKind::Rms, "v.post_ln");
    merged(b, x)
}

/// A product that is summed in f32.
fn precise(b: &mut TowerGraph<'_>, name: &str, x: TensorId) -> TensorId {
    let y = plain(b, name, x);
    b.g[y].flags.insert(Flags::PREC_F32);
    y
}

/// MiMo-V2.5: layers of mode 1 see windows of columns, those of mode 0 windows of rows, -1 all patches.
pub(super) fn mimovl(b: &mut TowerGraph<'_>) -> TensorId {
    const BY_COLUMNS: i64 = 1;
    const ALL: i64 = -1;
    let (n, n_pos) = (b.hp.n_embd, b.n_pos());
    let [n_head, n_kv] = [b.hp.n_head, b.hp.n_head_kv];
    let unit = b.hp.n_merge.saturating_mul(b.hp.n_merge).max(1);
    let qkv = b.need("v.blk.0.attn_qkv.weight");
    let heads = n_head.saturating_add(n_kv.saturating_mul(2)).max(1);
    let d_head = b.g[qkv].ne[1] / heads;
    let mut x = frames(b, 2);
    let rows = b.ids("mimovl_positions_row", 4 * n_pos);
    let columns = b.ids("mimovl_positions_col", 4 * n_pos);
    let order =
        b.g.input("mimovl_idx_col", Type::F32, [n_pos / unit, 1, 1, 1]);
    let to_columns = b.g.cast(order, Type::I32);
    let to_rows = b.g.argsort(order);
    let mask = window_mask(b, "mimovl_window_mask");
    let reorder = |b: &mut TowerGraph<'_>, x: TensorId, ids: TensorId| {
        let x = b.g.reshape(x, [n.saturating_mul(unit), n_pos / unit, 1, 1]);
        let x = b.g.get_rows(x, ids);
        b.g.reshape(x, [n, n_pos, 1, 1])
    };
    let mut by_columns = false;
    for il in 0..b.hp.n_layer {
        let mode = b.hp.modes.get(il).copied().unwrap_or(0);
        let before = std::mem::replace(&mut by_columns, mode == BY_COLUMNS);
        if before != by_columns {
            x = reorder(b, x, if by_columns { to_columns } else { to_rows });
        }
        let vit = Vit {
            rope: Some(Rope::Multi(if by_columns { columns } else { rows })),
            fused: Some([d_head, n_head, n_kv]),
            sinks: true,
            mm: &precise,
            ..Vit::new(NormKind::Rms)
        };
        let mask = Some(mask).filter(|_| mode != ALL);
        x = b.layer(x, il, n_pos, &vit, mask);
    }
    if by_columns {
        x = reorder(b, x, to_rows);
    }
    let x = b.norm(x, NormKind::Layer, "v.post_ln");
    let x = b.g.reshape(x, [n.saturating_mul(unit), n_pos / unit, 1, 1]);
    let x = precise(b, "mm.0.weight", x);
    let x = b.g.unary(Unary::Gelu, x);
    precise(b, "mm.2.weight", x)
}

pub(super) fn minimax(b: &mut TowerGraph<'_>) -> TensorId {
    let (n_pos, s) = (b.n_pos(), b.hp.n_merge.max(1));
    let x = frames(b, s);
    let [pos_h, pos_w] = ["minimax_pos_h", "minimax_pos_w"].map(|name| b.ids(name, n_pos));
    let vit = Vit {
        rope: Some(Rope::Halves(pos_h, pos_w)),
        ..Vit::new(NormKind::Layer)
    };
    let x = b.vit(x, n_pos, &vit);
    let x = b.mlp(x, "mm.1", Activation::GeluErf, "mm.2");
    let (wide, squared) = (b.g[x].ne[0], s.saturating_mul(s));
    let x =
        b.g.reshape(x, [wide.saturating_mul(squared), n_pos / squared, 1, 1]);
    b.mlp(x, "mm.merger.fc1", Activation::GeluErf, "mm.merger.fc2")
}

/// Youtu-VL cuts the image into patches without a convolution.
fn cut_patches(b: &mut TowerGraph<'_>) -> TensorId {
    const M: i64 = 2;
    let p = b.hp.patch_size;
    let [w, h] = b.n_patches.map(|n| n / M);
    let image = b.raw(3);
    let g = &mut b.g;
    let wide = p.saturating_mul(M);
    let x = g.reshape(image, [w.saturating_mul(wide), wide, h, 3]);
    let x = g.permute(x, [1, 2, 3, 0]);
    let x = g.cont_shape(x, [3 * wide, w, wide, h]);
    let x = g.permute(x, [0, 2, 1, 3]);
    let n = h.saturating_mul(w);
    let x = g.cont_shape(x, [3 * wide, p, M, n]);
    let x = g.permute(x, [1, 0, 2, 3]);
    let n = n.saturating_mul(M * M);
    let x = g.cont_shape(x, [p, 3, p, n]);
    let x = g.permute(x, [2, 0, 1, 3]);
    let x = g.cont_shape(x, [p.saturating_mul(p).saturating_mul(3), n, 1, 1]);
    let x = b.linear(x, "v.patch_embd");
    let ne = [b.hp.n_embd, b.n_pos(), 1, 1];
    b.g.reshape(x, ne)
}

pub(super) fn youtuvl(b: &mut TowerGraph<'_>) -> TensorId {
    const SEES_ALL: i64 = 1;
    let n_pos = b.n_pos();
    let is_windowed = !b.hp.modes.is_empty();
    let mut x = cut_patches(b);
    let positions = b.ids("positions", 4 * n_pos);
    x = b.normed_if(x, NormKind::Layer, "v.pre_ln");
    let mut mask = None;
    if is_windowed {
        let ids = b.ids("inv_window_idx", n_pos / 4);
        mask = Some(window_mask(b, "window_mask"));
        x = reordered(b, x, ids);
    }
    let vit = Vit {
        rope: Some(Rope::Multi(positions)),
        ..Vit::new(NormKind::Layer)
    };
    for il in 0..b.hp.n_layer {
        let sees_all = b.hp.modes.get(il).copied().unwrap_or(0) == SEES_ALL;
        x = b.layer(x, il, n_pos, &vit, mask.filter(|_| !sees_all));
    }
    if is_windowed {
        let ids = b.ids("window_idx", n_pos / 4);
        x = reordered(b, x, ids);
    }
    x = b.normed_if(x, NormKind::Layer, "v.post_ln");
    x = b.norm(x, NormKind::Rms, "mm.input_norm");
    x = four_in_one(b, x);
    b.mlp(x, "mm.0", Activation::Gelu, "mm.2")
}
