//! MiniCPM-V.

use super::blocks::Vit;
use super::graph::{NormKind, TowerGraph, plain};
use super::hparams::{Activation, MAX_PATCH, MAX_PIXELS, MAX_QUERY, SCALE_FACTOR, TowerHparams};
use super::kinds::{ProjectorKind, kind, swapping};
use crate::keys::Keys;
use crate::{Error, Result};
use vramfit_ggml::{Op, TensorId, Type};

fn minicpmv(keys: &Keys<'_>, hp: &mut TowerHparams) -> Result<()> {
    let version = keys.int("minicpmv_version", MAX_PIXELS)?.unwrap_or(0);
    let n_query = keys.positive("minicpmv_query_num", MAX_QUERY)?;
    let of_version = match version {
        3..=6 | 100_045 => 64,
        _ => 96,
    };
    hp.n_query = n_query.unwrap_or(of_version);
    Ok(())
}

/// Its mode is the number of the layer behind which patches become fewer.
fn minicpmv4_6(keys: &Keys<'_>, hp: &mut TowerHparams) -> Result<()> {
    hp.merge_by(keys, SCALE_FACTOR, 4)?;
    if !matches!(hp.n_merge, 2 | 4) {
        return Err(Error::KeyRange {
            key: format!("clip.{SCALE_FACTOR}"),
            value: hp.n_merge,
            min: 2,
            max: 4,
        });
    }
    let layer = keys.int("vision.wa_layer_indexes", MAX_PATCH)?;
    hp.modes = vec![layer.unwrap_or(0)];
    Ok(())
}

pub(super) static KINDS: &[ProjectorKind] = &[
    swapping(kind(
        "resampler",
        minicpmv,
        &[
            "resampler.pos_embed_k",
            "resampler.query",
            "resampler.proj.weight",
            "resampler.kv.weight",
            "resampler.attn.q.+",
            "resampler.attn.k.+",
            "resampler.attn.v.+",
            "resampler.attn.out.+",
            "resampler.ln_q.+",
            "resampler.ln_kv.+",
            "resampler.ln_post.+",
        ],
        resampler,
    )),
    swapping(kind(
        "minicpmv4_6",
        minicpmv4_6,
        &[
            "v.vit_merger.ln1.+",
            "v.vit_merger.attn_q.+",
            "v.vit_merger.attn_k.+",
            "v.vit_merger.attn_v.+",
            "v.vit_merger.attn_out.+",
            "v.vit_merger.ds_ln.+",
            "v.vit_merger.ds_ffn_up.+",
            "v.vit_merger.ds_ffn_down.+",
            "mm.input_norm.+",
            "mm.up.+",
            "mm.down.+",
        ],
        merged_twice,
    )),
];

/// MiniCPM-V: a fixed number of queries looks at the patches.
pub(super) fn resampler(b: &mut TowerGraph<'_>) -> TensorId {
    const D_HEAD: i64 = 128;
    let n_pos = b.n_pos();
    let proj = b.need("resampler.proj.weight");
    let n = b.g[proj].ne[0];
    let omega = b.g.input("omega", Type::F32, [n / 4, 1, 1, 1]);
    let [pos_h, pos_w] =
        ["pos_h", "pos_w"].map(|name| b.g.input(name, Type::F32, [1, n_pos, 1, 1]));
    let positions = b.ids("positions", n_pos);
    let table = b.need("v.position_embd.weight");
    let vit = Vit {
        positions: Some(b.g.get_rows(table, positions)),
        ..Vit::new(NormKind::Layer)
    };
    let inp = b.patches();
    let x = b.vit(inp, n_pos, &vit);
    let q = b.need("resampler.query");
    let v = plain(b, "resampler.kv.weight", x);
    let q = b.norm(q, NormKind::Layer, "resampler.ln_q");
    let v = b.norm(v, NormKind::Layer, "resampler.ln_kv");
    let g = &mut b.g;
    let omega = g.repeat(omega, [n / 4, n_pos, 1, 1]);
    let [x_waves, y_waves] = [pos_w, pos_h].map(|pos| {
        let theta = g.mul(omega, pos);
        let (sin, cos) = (g.map(Op::Sin, theta), g.map(Op::Cos, theta));
        g.concat(sin, cos, 0)
    });
    let waves = g.concat(x_waves, y_waves, 0);
    let k = g.add(v, waves);
    let n_query = b.hp.n_query;
    let parts = [("q", q, n_query), ("k", k, n_pos), ("v", v, n_pos)];
    let parts = parts.map(|(name, x, rows)| {
        let x = b.linear(x, &format!("resampler.attn.{name}"));
        b.g.reshape(x, [D_HEAD, n / D_HEAD, rows, 1])
    });
    let x = b.attention(parts, None);
    let x = b.linear(x, "resampler.attn.out");
    let x = b.norm(x, NormKind::Layer, "resampler.ln_post");
    plain(b, "resampler.proj.weight", x)
}

/// The four patches of each square, as the inputs `names` pick them.
fn corners(
    b: &mut TowerGraph<'_>,
    x: TensorId,
    names: [&'static str; 4],
    n_squares: i64,
) -> [TensorId; 4] {
    let ids = names.map(|name| b.ids(name, n_squares));
    ids.map(|ids| b.g.get_rows(x, ids))
}

fn side_by_side(b: &mut TowerGraph<'_>, corners: [TensorId; 4]) -> TensorId {
    let [first, second, third, fourth] = corners;
    let x = b.g.concat(first, second, 0);
    let x = b.g.concat(x, third, 0);
    b.g.concat(x, fourth, 0)
}

/// MiniCPM-V 4.6: patches become fewer within the tower, too, after they looked at their neighbours.
fn merged_twice(b: &mut TowerGraph<'_>) -> TensorId {
    const IDS: [&str; 4] = [
        "merger_ds_idx_0",
        "merger_ds_idx_1",
        "merger_ds_idx_2",
        "merger_ds_idx_3",
    ];
    let n_pos = b.n_pos();
    let [w, h] = b.n_patches.map(|n| n / 2);
    let within = b.hp.n_merge == 4;
    let n_merged = w.saturating_mul(h);
    let n_out = match within {
        true => (w / 2).saturating_mul(h / 2),
        false => n_merged,
    };
    let vit = Vit::new(NormKind::Layer);
    let positions = b.ids("positions", n_pos);
    let table = b.need("v.position_embd.weight");
    let learned = b.g.get_rows(table, positions);
    let inp = b.patches();
    let inp = b.g.add(inp, learned);
    let mut x = b.normed_if(inp, vit.norm, "v.pre_ln");
    let behind = b.hp.modes.first().copied().unwrap_or(0);
    let mut n = n_pos;
    for il in 0..b.hp.n_layer {
        x = b.layer(x, il, n, &vit, None);
        if within && il as i64 == behind {
            x = neighbours(b, x, &vit);
            x = downsampled(b, x, n_merged);
            n = n_merged;
        }
    }
    let x = b.normed_if(x, vit.norm, "v.post_ln");
    let parts = corners(b, x, IDS, n_out);
    let x = side_by_side(b, parts);
    let x = b.norm(x, vit.norm, "mm.input_norm");
    b.mlp(x, "mm.up", Activation::GeluErf, "mm.down")
}

/// Attention within squares of two by two.
fn neighbours(b: &mut TowerGraph<'_>, inp: TensorId, vit: &Vit<'_>) -> TensorId {
    let n_pos = b.n_pos();
    let ids = ["vit_merger_window_idx", "vit_merger_inv_window_idx"];
    let [there, back] = ids.map(|name| b.ids(name, n_pos));
    let mask =
        b.g.input("vit_merger_window_mask", Type::F32, [n_pos, n_pos, 1, 1]);
    let mask = match b.flash_attn {
        true => b.g.cast(mask, Type::F16),
        false => mask,
    };
    let x = b.norm(inp, vit.norm, "v.vit_merger.ln1");
    let x = b.g.get_rows(x, there);
    let parts = ["q", "k", "v"].map(|part| b.linear(x, &format!("v.vit_merger.attn_{part}")));
    let ne = [b.hp.n_embd_head, b.hp.n_head, n_pos, 1];
    let parts = parts.map(|part| b.g.reshape(part, ne));
    let x = b.attention(parts, Some(mask));
    let x = b.linear(x, "v.vit_merger.attn_out");
    let x = b.g.get_rows(x, back);
    b.g.add(x, inp)
}

/// Squares of two by two become one patch: their mean, and what a network makes of them.
fn downsampled(b: &mut TowerGraph<'_>, x: TensorId, n_merged: i64) -> TensorId {
    const IDS: [&str; 4] = [
        "vit_merger_ds_idx_0",
        "vit_merger_ds_idx_1",
        "vit_merger_ds_idx_2",
        "vit_merger_ds_idx_3",
    ];
    let parts = corners(b, x, IDS, n_merged);
    let mean = b.g.add(parts[0], parts[1]);
    let mean = b.g.add(mean, parts[2]);
    let mean = b.g.add(mean, parts[3]);
    let mean = b.g.scale(mean);
    let x = side_by_side(b, parts);
    let x = b.norm(x, NormKind::Layer, "v.vit_merger.ds_ln");
    let [up, down] = ["v.vit_merger.ds_ffn_up", "v.vit_merger.ds_ffn_down"];
    let x = b.mlp(x, up, Activation::Gelu, down);
    b.g.add(x, mean)
}
