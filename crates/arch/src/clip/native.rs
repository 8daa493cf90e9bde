//! Towers that read images at their own size, with rotary positions or stretched ones.

use super::blocks::{PostNorm, Rope, Vit};
use super::graph::{NormKind, TowerGraph, plain};
use super::hparams::{
    Activation, MAX_PIXELS, MAX_QUERY, SCALE_FACTOR, SPATIAL_MERGE, TowerHparams,
};
use super::kinds::{NORM_AND_TWO, ProjectorKind, kind, scaled};
use crate::Result;
use crate::keys::Keys;
use vramfit_ggml::{TensorId, Type, Unary};

const DOTS: &[&str] = &["mm.0.+", "mm.2.+", "mm.input_norm.+", "mm.post_norm.weight"];

pub(super) static KINDS: &[ProjectorKind] = &[
    kind(
        "kimivl",
        |keys, hp| {
            scaled(keys, hp)?;
            hp.warm_up_with_side(16);
            Ok(())
        },
        NORM_AND_TWO,
        kimivl,
    ),
    kind("kimik25", kimik, NORM_AND_TWO, kimik25),
    kind(
        "dots_ocr",
        |keys, hp| {
            hp.n_merge = keys.require(SCALE_FACTOR, MAX_QUERY)?;
            hp.warm_up_with_side(46);
            Ok(())
        },
        DOTS,
        dots,
    ),
    kind(
        "dots3note_v",
        |keys, hp| {
            hp.n_merge = keys.require(SPATIAL_MERGE, MAX_QUERY)?;
            hp.n_expert_used = keys.require("vision.expert_used_count", MAX_QUERY)?;
            hp.warm_up_with_side(46);
            Ok(())
        },
        DOTS,
        dots,
    ),
    kind(
        "hunyuanvl",
        |keys, hp| {
            hp.merge_by(keys, SPATIAL_MERGE, 2)?;
            hp.activation = Activation::Gelu;
            hp.warm_up_with_side(32);
            Ok(())
        },
        &[
            "mm.0.+",
            "mm.2.+",
            "mm.model.fc.+",
            "mm.pre_norm.weight",
            "mm.post_norm.weight",
            "mm.image_begin",
            "mm.image_end",
            "v.image_newline",
            "v.view_seperator",
        ],
        hunyuan,
    ),
    kind(
        "deepseek4v",
        deepseek4,
        &[
            "mm.1.+",
            "mm.2.+",
            "v.image_newline",
            "v.token_embd.img_start",
            "v.token_embd.img_end",
            "v.token_embd.img_pad",
        ],
        deepseek4v,
    ),
    kind(
        "step3vl",
        |keys, hp| hp.merge_by(keys, SCALE_FACTOR, 4),
        &["mm.0.+", "mm.1.+", "mm.model.fc.weight"],
        step3vl,
    ),
    kind(
        "muse-glimmer",
        |keys, hp| {
            hp.merge_by(keys, SPATIAL_MERGE, 2)?;
            hp.activation = Activation::GeluErf;
            hp.warm_up_with_side(32);
            Ok(())
        },
        &["mm.0.weight", "mm.1.weight", "mm.2.weight"],
        muse_glimmer,
    ),
];

fn kimik(keys: &Keys<'_>, hp: &mut TowerHparams) -> Result<()> {
    scaled(keys, hp)?;
    let least = keys.int("vision.image_min_pixels", MAX_PIXELS)?;
    let most = keys.int("vision.image_max_pixels", MAX_PIXELS)?;
    match (least.unwrap_or(0), most.unwrap_or(0)) {
        (1.., most @ 1..) => hp.warmup = [most.isqrt(); 2],
        _ => hp.limit_tokens(4096),
    }
    Ok(())
}

fn deepseek4(keys: &Keys<'_>, hp: &mut TowerHparams) -> Result<()> {
    const TOKENS: i64 = 384;
    const LEAST: i64 = 16;
    const WARM_UP: i64 = 256;
    hp.n_merge = keys.require(SCALE_FACTOR, MAX_QUERY)?;
    let most = match hp.tokens.max {
        0 => TOKENS,
        n => i64::from(n).max(LEAST),
    };
    hp.warm_up_with_side(most.min(WARM_UP).isqrt());
    Ok(())
}

/// Patches in squares, each patch normed, then two matrices.
fn merged_mlp(b: &mut TowerGraph<'_>, x: TensorId) -> TensorId {
    let x = b.merge_patches(x);
    let n = b.hp.n_embd;
    let squared = b.hp.n_merge.saturating_mul(b.hp.n_merge).max(1);
    let [wide, rows, ..] = b.g[x].ne;
    let row = |n: i64| Type::F32.row_size(n.max(0) as u64);
    let x = b.g.view_2d(x, [n, rows.saturating_mul(squared)], row(n));
    let x = b.norm(x, NormKind::Layer, "mm.input_norm");
    let x = b.g.view_2d(x, [wide, rows], row(wide));
    b.mlp(x, "mm.1", Activation::Gelu, "mm.2")
}

fn kimivl(b: &mut TowerGraph<'_>) -> TensorId {
    let n_pos = b.n_pos();
    let [pos_h, pos_w] = ["pos_h", "pos_w"].map(|name| b.ids(name, n_pos));
    let vit = Vit {
        positions: Some(b.resized_positions()),
        rope: Some(Rope::Halves(pos_w, pos_h)),
        ..Vit::new(NormKind::Layer)
    };
    let inp = b.patches();
    let x = b.vit(inp, n_pos, &vit);
    merged_mlp(b, x)
}

/// Learned positions of a table with a row and a column a patch.
fn stretched_positions(b: &mut TowerGraph<'_>) -> TensorId {
    let table = b.need("v.position_embd.weight");
    let n = b.hp.n_embd;
    let [w, h] = b.n_patches;
    let flat = [n, w.saturating_mul(h), 1, 1];
    let g = &mut b.g;
    if g[table].ne[1..3] == [w, h] {
        return g.cont_shape(table, flat);
    }
    let x = g.permute(table, [2, 1, 0, 3]);
    let x = g.interpolate(x, [h, w, n, 1]);
    let x = g.permute(x, [2, 1, 0, 3]);
    g.cont_shape(x, flat)
}

fn kimik25(b: &mut TowerGraph<'_>) -> TensorId {
    let n_pos = b.n_pos();
    let [pos_h, pos_w] = ["pos_h", "pos_w"].map(|name| b.ids(name, n_pos));
    let positions = stretched_positions(b);
    let inp = b.patches();
    let inp = b.g.add(inp, positions);
    let vit = Vit {
        rope: Some(Rope::Halves(pos_w, pos_h)),
        ..Vit::new(NormKind::Layer)
    };
    let x = b.vit(inp, n_pos, &vit);
    merged_mlp(b, x)
}

/// dots.ocr; with experts in some layers dots3-note.
fn dots(b: &mut TowerGraph<'_>) -> TensorId {
    let n_pos = b.n_pos();
    let positions = b.ids("positions", 4 * n_pos);
    let inp = b.patches();
    let vit = Vit {
        rope: Some(Rope::Multi(positions)),
        post_norm: PostNorm::Named("mm.post_norm"),
        ..Vit::new(NormKind::Rms)
    };
    let x = b.vit(inp, n_pos, &vit);
    let x = b.norm(x, NormKind::Layer, "mm.input_norm");
    let x = b.merge_patches(x);
    b.mlp(x, "mm.0", Activation::GeluErf, "mm.2")
}

/// Hunyuan-VL: convolutions make patches fewer, each row of them ends with a token of its own.
fn hunyuan(b: &mut TowerGraph<'_>) -> TensorId {
    let (n, n_pos, s) = (b.hp.n_embd, b.n_pos(), b.hp.n_merge.max(1));
    let positions = b.g.input("hunyuanvl_pos_embd", Type::F32, [n, n_pos, 1, 1]);
    let inp = b.patches();
    let vit = Vit {
        positions: Some(positions),
        ..Vit::new(NormKind::Layer)
    };
    let x = b.vit(inp, n_pos, &vit);
    let x = b.norm(x, NormKind::Rms, "mm.pre_norm");
    let x = b.as_image(x);
    let kernel = b.need("mm.0.weight");
    let x = b.conv_2d(kernel, x, s, 0);
    let x = b.add_channels(x, "mm.0.bias");
    let x = b.g.unary(Unary::Gelu, x);
    let kernel = b.need("mm.2.weight");
    let x = b.conv_2d(kernel, x, 1, 0);
    let x = b.add_channels(x, "mm.2.bias");
    let [w, h] = b.n_patches.map(|n| n / s);
    let wide = b.g[x].ne[2];
    let row_end = b.need("v.image_newline");
    let g = &mut b.g;
    let row_end = g.reshape(row_end, [1, 1, wide, 1]);
    let row_end = g.repeat(row_end, [1, h, wide, 1]);
    let x = g.concat(x, row_end, 0);
    let x = g.permute(x, [1, 2, 0, 3]);
    let x = g.cont_shape(x, [wide, w.saturating_add(1).saturating_mul(h), 1, 1]);
    let x = b.linear(x, "mm.model.fc");
    let begin = b.row("mm.image_begin");
    let x = b.g.concat(begin, x, 1);
    let end = b.row("mm.image_end");
    let x = b.g.concat(x, end, 1);
    b.norm(x, NormKind::Rms, "mm.post_norm")
}

/// Tokens of a grid of `w` by `h` patches as DeepSeek V4 reads them: rows in pairs, each with an end.
fn block_tokens(w: i64, h: i64) -> i64 {
    let rows = h.saturating_add(h % 2);
    let row = w.saturating_add(1);
    let padding = (rows / 2).saturating_mul(row) % 2 * 2;
    rows.saturating_mul(row).saturating_add(padding + 2)
}

fn deepseek4v(b: &mut TowerGraph<'_>) -> TensorId {
    let (n_pos, s) = (b.n_pos(), b.hp.n_merge.max(1));
    let positions = b.ids("positions", 4 * n_pos);
    let inp = b.patches();
    let vit = Vit {
        rope: Some(Rope::Multi(positions)),
        ..Vit::new(NormKind::Rms)
    };
    let x = b.vit(inp, n_pos, &vit);
    let mut x = b.as_image(x);
    let [w, h] = b.n_patches;
    let pad = [w, h].map(|n| (s - n % s) % s);
    if pad != [0, 0] {
        x = b.g.pad_by(x, [pad[0], pad[1], 0, 0]);
    }
    let g = &mut b.g;
    // The kernel is there for its shape alone.
    let channels = g[x].ne[2];
    let kernel = g.view_3d(x, [s, s, channels], [0, 0]);
    let x = g.im2col_2d(kernel, x, [s; 2], [0; 2], Type::F32);
    let ne = g[x].ne;
    let x = g.reshape(x, [ne[0], ne[1].saturating_mul(ne[2]), 1, 1]);
    let mut x = b.mlp(x, "mm.1", Activation::GeluErf, "mm.2");
    for token in [
        "v.token_embd.img_start",
        "v.token_embd.img_end",
        "v.image_newline",
        "v.token_embd.img_pad",
    ] {
        let row = b.row(token);
        x = b.g.concat(x, row, 1);
    }
    let layout = b.ids(
        "layout_idx",
        block_tokens((w + pad[0]) / s, (h + pad[1]) / s),
    );
    b.g.get_rows(x, layout)
}

/// A bias a channel, added to rows of channels.
fn add_rows(b: &mut TowerGraph<'_>, x: TensorId, name: &str) -> TensorId {
    let Some(bias) = b.weight(name) else {
        return x;
    };
    let [w, h, n, _] = b.g[x].ne;
    let x = b.g.reshape(x, [w.saturating_mul(h), n, 1, 1]);
    let x = b.transposed(x);
    let x = b.g.add(x, bias);
    let x = b.transposed(x);
    b.g.reshape(x, [w, h, n, 1])
}

fn step3vl(b: &mut TowerGraph<'_>) -> TensorId {
    let n_pos = b.n_pos();
    let [pos_h, pos_w] = ["pos_h", "pos_w"].map(|name| b.ids(name, n_pos));
    let inp = b.patches();
    let vit = Vit {
        positions: Some(b.resized_positions()),
        rope: Some(Rope::Halves(pos_w, pos_h)),
        ..Vit::new(NormKind::Layer)
    };
    let x = b.vit(inp, n_pos, &vit);
    let [w, h] = b.n_patches;
    let n = b.hp.n_embd;
    let x = b.g.permute(x, [1, 0, 2, 3]);
    let mut x = b.g.cont_shape(x, [w, h, n, 1]);
    for name in ["mm.0", "mm.1"] {
        let kernel = b.need(&format!("{name}.weight"));
        x = b.conv_2d(kernel, x, 2, 1);
        x = add_rows(b, x, &format!("{name}.bias"));
    }
    let [w, h, n, more] = b.g[x].ne;
    let x = b.g.reshape(x, [w.saturating_mul(h), n, more, 1]);
    let x = b.g.permute(x, [1, 0, 2, 3]);
    let x = b.g.cont(x);
    plain(b, "mm.model.fc.weight", x)
}

/// Muse Glimmer: three layers see windows, every fourth and the last see all patches.
fn muse_glimmer(b: &mut TowerGraph<'_>) -> TensorId {
    const EVERY: usize = 4;
    let (n, n_pos, s) = (b.hp.n_embd, b.n_pos(), b.hp.n_merge.max(1));
    let [pos_w, pos_h] =
        ["muse_glimmer_pos_w", "muse_glimmer_pos_h"].map(|name| b.ids(name, n_pos));
    let orders = [
        "muse_glimmer_sp_perm",
        "muse_glimmer_inv_perm",
        "muse_glimmer_ds_perm",
    ];
    let [windows, back, squares] = orders.map(|name| b.ids(name, n_pos));
    let mask =
        b.g.input("muse_glimmer_sp_mask", Type::F32, [n_pos, n_pos, 1, 1]);
    let inp = b.patches();
    let positions = b.resized_positions();
    let x = b.g.add(inp, positions);
    let x = b.g.get_rows(x, windows);
    let n_layer = b.hp.n_layer;
    let sees_all = |il: usize| il + 1 == n_layer || (il + 1).is_multiple_of(EVERY);
    let vit = Vit {
        rope: Some(Rope::Halves(pos_w, pos_h)),
        masks: (0..n_layer)
            .map(|il| (!sees_all(il)).then_some(mask))
            .collect(),
        ..Vit::new(NormKind::Layer)
    };
    let x = b.vit(x, n_pos, &vit);
    let x = b.g.get_rows(x, back);
    let x = b.g.get_rows(x, squares);
    let [w, h] = b.n_patches.map(|n| n / s);
    let (squared, n_out) = (s.saturating_mul(s), w.saturating_mul(h));
    let g = &mut b.g;
    let x = g.reshape(x, [n, squared, n_out, 1]);
    let x = g.permute(x, [1, 0, 2, 3]);
    let x = g.cont(x);
    let mut x = g.reshape(x, [n.saturating_mul(squared), n_out, 1, 1]);
    for name in ["mm.0.weight", "mm.1.weight"] {
        x = plain(b, name, x);
        x = b.g.unary(Unary::GeluErf, x);
    }
    plain(b, "mm.2.weight", x)
}
