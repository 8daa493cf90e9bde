//! DeepSeek-OCR: SAM's tower looks at the image first, a second one at what is left of it.

use super::blocks::{Rope, Vit};
use super::graph::{NormKind, TowerGraph, plain};
use super::hparams::{Activation, MAX_PIXELS, MAX_QUERY, TowerHparams};
use super::kinds::{ProjectorKind, kind};
use crate::Result;
use crate::keys::Keys;
use vramfit_ggml::{TensorId, Type};

const PATCH: i64 = 16;
const IMAGE: i64 = 1024;
/// SAM's layers that see the whole image.
const GLOBAL: [usize; 4] = [2, 5, 8, 11];

const SAM: &[&str] = &[
    "v.sam.pos_embd.weight",
    "v.sam.patch_embd.+",
    "v.sam.blk.#.attn.qkv.+",
    "v.sam.blk.#.attn.out.+",
    "v.sam.blk.#.pre_ln.+",
    "v.sam.blk.#.post_ln.+",
    "v.sam.blk.#.attn.pos_h.weight",
    "v.sam.blk.#.attn.pos_w.weight",
    "v.sam.blk.#.mlp.lin1.+",
    "v.sam.blk.#.mlp.lin2.+",
    "v.sam.neck.0.weight",
    "v.sam.neck.1.+",
    "v.sam.neck.2.weight",
    "v.sam.neck.3.+",
    "v.sam.net_2.weight",
    "v.sam.net_3.weight",
    "v.image_newline",
    "v.view_seperator",
    "mm.model.fc.+",
    "v.resample_query_768.weight",
    "v.resample_query_1024.weight",
];

pub(super) static KINDS: &[ProjectorKind] = &[
    kind("deepseekocr", shape, SAM, deepseek_ocr),
    kind(
        "deepseekocr2",
        |keys, hp| {
            keys.require("vision.attention.head_count_kv", MAX_QUERY)?;
            shape(keys, hp)
        },
        SAM,
        deepseek_ocr2,
    ),
];

fn shape(keys: &Keys<'_>, hp: &mut TowerHparams) -> Result<()> {
    hp.patch_size = PATCH;
    hp.image_size = IMAGE;
    hp.warmup = [IMAGE; 2];
    hp.read_second(keys, "vision.sam.block_count")?;
    hp.second.n_head = keys.require("vision.sam.head_count", MAX_QUERY)?;
    hp.second.n_embd = keys.require("vision.sam.embedding_length", MAX_PIXELS)?;
    hp.window = keys.require("vision.window_size", MAX_PIXELS)?;
    Ok(())
}

/// A convolution whose input is spread in f32 unless the kernel is f16.
fn convolved(b: &mut TowerGraph<'_>, name: &str, x: TensorId, [stride, pad]: [i64; 2]) -> TensorId {
    let kernel = b.need(name);
    let ty = match b.g[kernel].ty {
        Type::F16 => Type::F16,
        _ => Type::F32,
    };
    b.conv_2d_in(ty, kernel, x, stride, pad)
}

/// Patches cut into windows: `[c, w, h, n]` to `[c, side, side, windows]`.
fn cut(b: &mut TowerGraph<'_>, x: TensorId, side: i64) -> TensorId {
    let [c, w, h, n] = b.g[x].ne;
    let pad = [w, h].map(|n| (side - n % side) % side);
    let g = &mut b.g;
    let x = match pad {
        [0, 0] => x,
        [px, py] => g.pad_by(x, [0, px, py, 0]),
    };
    let (columns, rows) = ((w + pad[0]) / side, (h + pad[1]) / side);
    let wide = c.saturating_mul(side);
    let x = g.reshape(x, [wide, columns, side, rows.saturating_mul(n)]);
    let x = g.permute(x, [0, 2, 1, 3]);
    let x = g.cont(x);
    let n_windows = columns.saturating_mul(rows).saturating_mul(n);
    g.reshape(x, [c, side, side, n_windows])
}

/// Windows put together again.
fn joined(b: &mut TowerGraph<'_>, x: TensorId, [w, h]: [i64; 2], side: i64) -> TensorId {
    let [c, _, _, n_windows] = b.g[x].ne;
    let pad = [w, h].map(|n| (side - n % side) % side);
    let (columns, rows) = ((w + pad[0]) / side, (h + pad[1]) / side);
    let n = n_windows / columns.saturating_mul(rows).max(1);
    let g = &mut b.g;
    let wide = c.saturating_mul(side);
    let x = g.reshape(x, [wide, side, columns, rows.saturating_mul(n)]);
    let x = g.permute(x, [0, 2, 1, 3]);
    let x = g.cont(x);
    let x = g.reshape(x, [c, w + pad[0], h + pad[1], n]);
    let [_, nb1, nb2, nb3] = g[x].nb;
    let x = g.view_4d(x, [c, w, h, n], [nb1, nb2, nb3]);
    g.cont(x)
}

/// The row of a table for each pair of `n` places.
fn by_distance(b: &mut TowerGraph<'_>, table: &str, ids: TensorId, n: i64) -> TensorId {
    let mut table = b.need(table);
    let g = &mut b.g;
    let [c, rows, more, most] = g[table].ne;
    let distances = 2 * n - 1;
    if distances != rows {
        let flat = c.saturating_mul(more).saturating_mul(most);
        let x = g.permute(table, [1, 0, 2, 3]);
        let x = g.cont(x);
        let x = g.reshape(x, [rows, 1, flat, 1]);
        let x = g.interpolate(x, [distances, 1, flat, 1]);
        let x = g.reshape(x, [distances, c, more, most]);
        let x = g.permute(x, [1, 0, 2, 3]);
        table = g.cont(x);
    }
    let ids = g.reshape(ids, [n.saturating_mul(n), 1, 1, 1]);
    let x = g.get_rows(table, ids);
    g.reshape(x, [c, n, n, 1])
}

/// SAM's positions: for each head a mask of what the query says to the distance in columns and rows.
fn position_mask(
    b: &mut TowerGraph<'_>,
    q: TensorId,
    ids: TensorId,
    [w, h]: [i64; 2],
    il: usize,
) -> TensorId {
    let [d, n_head, n_pos, n] = b.g[q].ne;
    let columns = by_distance(b, &format!("v.sam.blk.{il}.attn.pos_w.weight"), ids, w);
    let rows = by_distance(b, &format!("v.sam.blk.{il}.attn.pos_h.weight"), ids, h);
    let all = n_head.saturating_mul(n);
    let g = &mut b.g;
    let q = g.permute(q, [0, 2, 1, 3]);
    let q = g.cont(q);
    let q = g.reshape(q, [d, w, h, all]);
    let across = g.permute(q, [0, 2, 1, 3]);
    let across = g.cont(across);
    let x = g.mul_mat(columns, across);
    let x = g.permute(x, [0, 2, 1, 3]);
    let x = g.cont(x);
    let x = g.reshape(x, [w, 1, n_pos, all]);
    let x = g.repeat(x, [w, h, n_pos, all]);
    let y = g.mul_mat(rows, q);
    let y = g.reshape(y, [1, h, n_pos, all]);
    let mask = g.add(x, y);
    let mask = g.reshape(mask, [n_pos, n_pos, n_head, n]);
    match b.flash_attn {
        true => b.g.cast(mask, Type::F16),
        false => mask,
    }
}

fn sam_attention(b: &mut TowerGraph<'_>, x: TensorId, ids: TensorId, il: usize) -> TensorId {
    let (wide, n_head) = (b.hp.second.n_embd, b.hp.second.n_head.max(1));
    let [_, w, h, n] = b.g[x].ne;
    let n_pos = w.saturating_mul(h);
    let x = b.linear(x, &format!("v.sam.blk.{il}.attn.qkv"));
    let x = b.g.reshape(x, [wide, 3, n_pos, n]);
    let [_, _, nb2, nb3] = b.g[x].nb;
    let parts = [0; 3].map(|_: u8| {
        let part = b.g.view_3d(x, [wide, n_pos, n], [nb2, nb3]);
        let part = b.g.cont(part);
        b.g.reshape(part, [wide / n_head, n_head, n_pos, n])
    });
    let mask = position_mask(b, parts[0], ids, [w, h], il);
    let x = b.attention(parts, Some(mask));
    let x = b.linear(x, &format!("v.sam.blk.{il}.attn.out"));
    let x = b.g.cont(x);
    b.g.reshape(x, [wide, w, h, n])
}

/// SAM's tower: `[w, h, c]`, a sixteenth of the patches.
fn sam(b: &mut TowerGraph<'_>, image: TensorId) -> TensorId {
    let (wide, side) = (b.hp.second.n_embd, b.hp.window.max(1));
    let kernel = b.need("v.sam.patch_embd.weight");
    let stride = b.g[kernel].ne[0];
    let x = convolved(b, "v.sam.patch_embd.weight", image, [stride, 0]);
    let x = b.add_channels(x, "v.sam.patch_embd.bias");
    let x = b.channels_first(x);
    let [_, w, h, _] = b.g[x].ne;
    let ids = [
        ("rel_pos_indices_local", [side; 2]),
        ("rel_pos_indices_global", [w, h]),
    ];
    let [local, global] = ids.map(|(name, [w, h])| b.g.input(name, Type::I32, [w, h, 1, 1]));
    let mut positions = b.need("v.sam.pos_embd.weight");
    if b.g[positions].ne[1] != w {
        let x = b.channels_last(positions);
        let x = b.g.interpolate(x, [w, w, wide, 1]);
        positions = b.channels_first(x);
    }
    let mut x = b.g.add(x, positions);
    for il in 0..b.hp.second.n_layer {
        let name = |kind: &str| format!("v.sam.blk.{il}.{kind}");
        let y = b.norm(x, NormKind::Layer, &name("pre_ln"));
        let y = match GLOBAL.contains(&il) {
            true => sam_attention(b, y, global, il),
            false => {
                let y = cut(b, y, side);
                let y = sam_attention(b, y, local, il);
                joined(b, y, [w, h], side)
            }
        };
        let mid = b.g.add(y, x);
        let y = b.norm(mid, NormKind::Layer, &name("post_ln"));
        let y = b.mlp(y, &name("mlp.lin1"), b.hp.activation, &name("mlp.lin2"));
        x = b.g.add(y, mid);
    }
    let mut x = b.channels_last(x);
    for (kernel, norm, pad) in [
        ("v.sam.neck.0.weight", "v.sam.neck.1", 0),
        ("v.sam.neck.2.weight", "v.sam.neck.3", 1),
    ] {
        x = convolved(b, kernel, x, [1, pad]);
        x = b.channels_first(x);
        x = b.norm(x, NormKind::Layer, norm);
        x = b.channels_last(x);
    }
    for kernel in ["v.sam.net_2.weight", "v.sam.net_3.weight"] {
        x = convolved(b, kernel, x, [2, 1]);
    }
    b.g.expand(x);
    x
}

/// Patches of SAM's result, `[c, n_pos, n]`.
fn sam_rows(b: &mut TowerGraph<'_>, x: TensorId) -> TensorId {
    let [w, h, c, n] = b.g[x].ne;
    let x = b.g.reshape(x, [w.saturating_mul(h), c, n, 1]);
    let x = b.g.permute(x, [1, 0, 2, 3]);
    b.g.cont(x)
}

/// The numbers from 0 to `n`, as an index.
fn count(b: &mut TowerGraph<'_>, n: i64) -> TensorId {
    let x = b.g.arange(n);
    b.g.cast(x, Type::I32)
}

/// CLIP's learned positions, stretched where the image is another.
fn clip_positions(b: &mut TowerGraph<'_>, n_patches: i64) -> (TensorId, i64) {
    let n = b.hp.n_embd;
    let table = b.need("v.position_embd.weight");
    let ([wide, rows, ..], ty) = (b.g[table].ne, b.g[table].ty);
    let (side, made_for) = (n_patches.max(0).isqrt(), (rows - 1).max(0).isqrt());
    if side == made_for {
        return (table, rows);
    }
    let g = &mut b.g;
    let nb = ty.row_size(wide.max(0) as u64);
    let squared = |side: i64| side.saturating_mul(side);
    let old = g.view_2d(table, [wide, squared(made_for)], nb);
    let class = g.view_2d(table, [wide, 1], nb);
    let new = g.interpolate(old, [side, side, wide, 1]);
    let new = g.reshape(new, [n, squared(side), 1, 1]);
    (g.concat(new, class, 1), squared(side).saturating_add(1))
}

fn deepseek_ocr(b: &mut TowerGraph<'_>) -> TensorId {
    let [side, _] = b.hp.warmup;
    let image = b.raw(3);
    // The tiles of a row lie below each other; the warm-up has one.
    let image = b.g.reshape(image, [side.saturating_mul(side), 1, 3, 1]);
    let image = b.g.permute(image, [0, 2, 1, 3]);
    let image = b.g.cont(image);
    let image = b.g.reshape(image, [side, side, 3, 1]);
    let seen = sam(b, image);
    let [w, h, ..] = b.g[seen].ne;
    let (n, n_patches) = (b.hp.n_embd, w.saturating_mul(h));
    let inp = sam_rows(b, seen);
    let (table, n_pos) = clip_positions(b, n_patches);
    let class = b.need("v.class_embd");
    let class = b.g.repeat(class, [n, 1, 1, 1]);
    let inp = b.g.concat(class, inp, 1);
    let ids = count(b, n_pos);
    let vit = Vit {
        positions: Some(b.g.get_rows(table, ids)),
        activation: Some(Activation::GeluQuick),
        ..Vit::new(NormKind::Layer)
    };
    let x = b.vit(inp, n_pos, &vit);
    b.g.expand(x);
    let seen = b.channels_first(seen);
    let wide = b.g[seen].ne[0];
    let seen = b.g.reshape(seen, [wide, n_patches, 1, 1]);
    let [_, nb1, nb2, _] = b.g[x].nb;
    let x = b.g.view_3d(x, [n, n_patches, 1], [nb1, nb2]);
    let x = b.g.concat(x, seen, 0);
    let x = b.linear(x, "mm.model.fc");
    let grid = n_patches.max(0).isqrt();
    let n = b.g[x].ne[0];
    let row_end = b.need("v.image_newline");
    let g = &mut b.g;
    let x = g.reshape(x, [n.saturating_mul(grid), grid, 1, 1]);
    let x = g.permute(x, [0, 2, 1, 3]);
    let x = g.cont(x);
    let x = g.reshape(x, [n, grid, grid, 1]);
    let row_end = g.repeat(row_end, [n, 1, grid, 1]);
    let x = g.concat(x, row_end, 1);
    g.reshape(x, [n, (grid + 1).saturating_mul(grid), 1, 1])
}

fn deepseek_ocr2(b: &mut TowerGraph<'_>) -> TensorId {
    const SMALL: i64 = 144;
    let image = b.raw(3);
    let seen = sam(b, image);
    let inp = sam_rows(b, seen);
    let (name, n_query) = match b.g[inp].ne[1] {
        SMALL => ("v.resample_query_768.weight", SMALL),
        _ => ("v.resample_query_1024.weight", 256),
    };
    let query = b.need(name);
    let query = b.g.cast(query, Type::F32);
    let [wide, ..] = b.g[query].ne;
    let query = b.g.repeat(query, [wide, n_query, 1, 1]);
    let inp = b.g.concat(inp, query, 1);
    let n_pos = b.g[inp].ne[1];
    let mask =
        b.g.input("qwen2_attn_mask", Type::F32, [n_pos, n_pos, 1, 1]);
    let vit = Vit {
        rope: Some(Rope::Multi(count(b, n_pos))),
        masks: vec![Some(mask); b.hp.n_layer],
        activation: Some(Activation::Silu),
        ..Vit::new(NormKind::Rms)
    };
    let x = b.vit(inp, n_pos, &vit);
    let [n, ..] = b.g[x].ne;
    let [_, nb1, nb2, _] = b.g[x].nb;
    let x = b.g.view_3d(x, [n, n_query, 1], [nb1, nb2]);
    let x = b.g.cont(x);
    b.g.expand(x);
    let x = plain(b, "mm.model.fc.weight", x);
    let bias = b.need("mm.model.fc.bias");
    b.g.add(x, bias)
}
