//! Towers for images.

use super::graph::{NormKind, Rope, TowerGraph, Vit, plain};
use super::hparams::Activation;
use vramfit_ggml::{Glu, Op, TensorId, Type};

/// The transformer of most towers, with learned positions.
fn siglip(b: &mut TowerGraph<'_>, positions: Option<TensorId>) -> TensorId {
    let inp = b.patches();
    let positions = positions.or_else(|| b.weight("v.position_embd.weight"));
    let vit = Vit {
        positions,
        ..Vit::new(NormKind::Layer)
    };
    b.vit(inp, b.n_pos(), &vit)
}

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

pub(super) fn idefics3(b: &mut TowerGraph<'_>) -> TensorId {
    let x = siglip(b, None);
    let x = b.merge_patches(x);
    plain(b, "mm.model.fc.weight", x)
}

pub(super) fn lfm2(b: &mut TowerGraph<'_>) -> TensorId {
    let positions = b.resized_positions();
    let x = siglip(b, Some(positions));
    let x = b.merge_patches(x);
    let x = b.normed_if(x, NormKind::Layer, "mm.input_norm");
    b.mlp(x, "mm.1", Activation::Gelu, "mm.2")
}

pub(super) fn janus_pro(b: &mut TowerGraph<'_>) -> TensorId {
    let x = siglip(b, None);
    b.mlp(x, "mm.0", b.hp.activation, "mm.1")
}

pub(super) fn phi4(b: &mut TowerGraph<'_>) -> TensorId {
    let positions = b.resized_positions();
    let x = siglip(b, Some(positions));
    b.mlp(x, "mm.0", Activation::Gelu, "mm.2")
}

/// A still image counts as two equal frames; patches come in squares of two by two.
fn frames(b: &mut TowerGraph<'_>) -> TensorId {
    let image = b.raw(3);
    let [first, second] = ["v.patch_embd.weight", "v.patch_embd.weight.1"].map(|name| {
        let kernel = b.need(name);
        b.conv_2d(kernel, image, b.hp.patch_size, 0)
    });
    let x = b.g.add(first, second);
    let x = b.g.permute(x, [1, 2, 0, 3]);
    b.by_squares(x)
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
    let (n_embd, n_pos, every) = (b.hp.n_embd, b.n_pos(), b.hp.n_wa_pattern);
    let mut x = frames(b);
    let positions = b.ids("positions", 4 * n_pos);
    x = b.normed_if(x, norm, "v.pre_ln");
    let mut window_mask = None;
    if every > 0 {
        let ids = b.ids("inv_window_idx", n_pos / 4);
        let mask = b.g.input("window_mask", Type::F32, [n_pos, n_pos, 1, 1]);
        window_mask = Some(match b.flash_attn {
            true => b.g.cast(mask, Type::F16),
            false => mask,
        });
        x = b.g.reshape(x, [4 * n_embd, n_pos / 4, 1, 1]);
        x = b.g.get_rows(x, ids);
        x = b.g.reshape(x, [n_embd, n_pos, 1, 1]);
    }
    let vit = Vit {
        rope: Some(Rope::Multi(positions)),
        ..Vit::new(norm)
    };
    for il in 0..b.hp.n_layer {
        let sees_all = every == 0 || (il as i64 + 1) % every == 0;
        let mask = window_mask.filter(|_| !sees_all);
        x = b.layer(x, il, n_pos, &vit, mask);
    }
    x = b.normed_if(x, norm, "v.post_ln");
    x = four_in_one(b, x);
    x = b.mlp(x, "mm.0", Activation::Gelu, "mm.2");
    if every > 0 {
        let ids = b.ids("window_idx", n_pos / 4);
        let ne = [b.hp.projection_dim, n_pos / 4, 1, 1];
        x = b.g.reshape(x, ne);
        x = b.g.get_rows(x, ids);
        x = b.g.reshape(x, ne);
    }
    x
}

pub(super) fn qwen3vl(b: &mut TowerGraph<'_>) -> TensorId {
    let (n_embd, n_pos) = (b.hp.n_embd, b.n_pos());
    let x = frames(b);
    let bias = b.need("v.patch_embd.bias");
    let x = b.g.add(x, bias);
    let positions = b.resized_positions();
    let positions = b.by_squares(positions);
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

/// LLaVA and its kin: the layers up to the deepest one that is wanted.
fn llava(b: &mut TowerGraph<'_>, leaves_out: usize) -> TensorId {
    let n_layer = b.hp.n_layer;
    let deepest = b.hp.feature_layers.iter().copied().max().unwrap_or(-1);
    let last = usize::try_from(deepest).unwrap_or(n_layer.saturating_sub(leaves_out));
    let mut x = b.patches();
    let mut n_pos = b.n_pos();
    if let Some(class) = b.weight("v.class_embd") {
        x = b.g.concat(x, class, 1);
        n_pos += 1;
    }
    let positions = b.ids("positions", n_pos);
    let table = b.need("v.position_embd.weight");
    let rows = b.g.get_rows(table, positions);
    x = b.g.add(x, rows);
    x = b.normed_if(x, NormKind::Layer, "v.pre_ln");
    let vit = Vit::new(NormKind::Layer);
    let mut stack: Vec<TensorId> = Vec::new();
    for il in 0..last.min(n_layer) {
        if b.hp.is_feature_layer(il) {
            stack.push(x);
        }
        x = b.layer(x, il, n_pos, &vit, None);
    }
    x = b.normed_if(x, NormKind::Layer, "v.post_ln");
    if b.hp.is_feature_layer(last) {
        stack.push(x);
    }
    stack
        .into_iter()
        .reduce(|before, layer| b.g.concat(before, layer, 0))
        .unwrap_or(x)
}

/// The patches of LLaVA's tower, without what stands for the whole image.
fn llava_patches(b: &mut TowerGraph<'_>) -> TensorId {
    let x = llava(b, 1);
    let [n, rows, ..] = b.g[x].ne;
    let x = b.g.reshape(x, [n, rows, 1, 1]);
    let ids = b.ids("patches", b.n_pos());
    b.g.get_rows(x, ids)
}

pub(super) fn mlp(b: &mut TowerGraph<'_>) -> TensorId {
    let x = llava_patches(b);
    let x = b.linear(x, "mm.0");
    let x = b.g.unary(vramfit_ggml::Unary::Gelu, x);
    match b.has("mm.2.weight") {
        true => b.linear(x, "mm.2"),
        false => x,
    }
}

pub(super) fn mlp_norm(b: &mut TowerGraph<'_>) -> TensorId {
    let x = llava_patches(b);
    let x = b.linear(x, "mm.0");
    let x = b.norm(x, NormKind::Layer, "mm.1");
    let x = b.g.unary(vramfit_ggml::Unary::Gelu, x);
    let x = b.linear(x, "mm.3");
    b.norm(x, NormKind::Layer, "mm.4")
}

pub(super) fn pixtral(b: &mut TowerGraph<'_>) -> TensorId {
    let n_pos = b.n_pos();
    let [pos_h, pos_w] = ["pos_h", "pos_w"].map(|name| b.ids(name, n_pos));
    let inp = b.patches();
    let vit = Vit {
        rope: Some(Rope::Halves(pos_h, pos_w)),
        ..Vit::new(NormKind::Rms)
    };
    let mut x = b.vit(inp, n_pos, &vit);
    let (n_embd, s) = (b.hp.n_embd, b.hp.n_merge.max(1));
    let [w, h] = b.n_patches;
    if b.has("mm.patch_merger.weight") {
        x = b.g.map(Op::RmsNorm, x);
        let norm = b.need("mm.input_norm.weight");
        let g = &mut b.g;
        x = g.mul(x, norm);
        x = g.reshape(x, [n_embd, w, h, 1]);
        x = g.permute(x, [2, 0, 1, 3]);
        x = g.cont(x);
        // The kernel is there for its shape alone.
        let channels = g[x].ne[2];
        let kernel = g.view_3d(x, [s, s, channels], [0, 0]);
        x = g.im2col_2d(kernel, x, [s; 2], [0; 2], Type::F32);
        let ne = g[x].ne;
        x = g.reshape(x, [ne[0], ne[1].saturating_mul(ne[2]), 1, 1]);
        x = plain(b, "mm.patch_merger.weight", x);
    }
    x = b.mlp(x, "mm.1", Activation::Gelu, "mm.2");
    let Some(row_end) = b.weight("v.token_embd.img_break") else {
        return x;
    };
    let (w, h) = (w / s, h / s);
    let g = &mut b.g;
    let n = g[x].ne[0];
    let rows = g.reshape(x, [n, w, h, 1]);
    let ends = g.new_tensor(Op::None, Type::F32, [n, 1, h, 1], &[]);
    let ends = g.scale(ends);
    let ends = g.add(ends, row_end);
    let x = g.concat(rows, ends, 1);
    let nb = g[x].nb[1];
    g.view_2d(x, [n, w.saturating_mul(h) + h - 1], nb)
}

pub(super) fn internvl(b: &mut TowerGraph<'_>) -> TensorId {
    let inp = b.patches();
    let class = b.need("v.class_embd");
    let ne = [b.g[class].ne[0], 1, 1, 1];
    let class = b.g.repeat(class, ne);
    let inp = b.g.concat(inp, class, 1);
    let is_6b = b.hp.n_embd == 3200 && b.hp.n_layer == 45;
    let vit = Vit {
        positions: Some(b.need("v.position_embd.weight")),
        ..Vit::new(if is_6b {
            NormKind::Rms
        } else {
            NormKind::Layer
        })
    };
    let n_pos = b.n_pos();
    let x = b.vit(inp, n_pos + 1, &vit);
    let (n, s) = (b.hp.n_embd, b.hp.n_merge.max(1));
    let [w, h] = b.n_patches;
    let g = &mut b.g;
    let [_, nb1, nb2, _] = g[x].nb;
    let x = g.view_3d(x, [n, n_pos, 1], [nb1, nb2]);
    let x = g.cont(x);
    let x = g.reshape(x, [n.saturating_mul(s), h / s, w, 1]);
    let x = g.permute(x, [0, 2, 1, 3]);
    let wide = n.saturating_mul(s).saturating_mul(s);
    let x = g.cont_shape(x, [wide, h / s, w / s, 1]);
    let x = g.permute(x, [0, 2, 1, 3]);
    let ne = g[x].ne;
    let x = g.cont_shape(x, [wide, ne[1].saturating_mul(ne[2]), ne[3], 1]);
    let x = b.norm(x, NormKind::Layer, "mm.model.mlp.0");
    b.mlp(x, "mm.model.mlp.1", Activation::Gelu, "mm.model.mlp.3")
}

pub(super) fn llama4(b: &mut TowerGraph<'_>) -> TensorId {
    let (n, p, n_patches) = (b.hp.n_embd, b.hp.patch_size, b.n_pos());
    let n_pos = n_patches + 1;
    let [pos_h, pos_w] = ["pos_h", "pos_w"].map(|name| b.ids(name, n_pos));
    let image = b.raw(3);
    let w = b.need("v.patch_embd.weight");
    let kernel = b.g.reshape(w, [p, p, 3, n]);
    let columns = b.g.im2col_2d(kernel, image, [p; 2], [0; 2], Type::F32);
    let x = b.g.mul_mat(w, columns);
    let x = b.g.reshape(x, [n, n_patches, 1, 1]);
    let class = b.need("v.class_embd");
    let x = b.g.concat(x, class, 1);
    let vit = Vit {
        positions: Some(b.need("v.position_embd.weight")),
        rope: Some(Rope::Halves(pos_w, pos_h)),
        ..Vit::new(NormKind::Layer)
    };
    let x = b.vit(x, n_pos, &vit);
    let s = b.hp.n_merge.max(1);
    let [w, h] = b.n_patches;
    let g = &mut b.g;
    let nb = g[x].nb[1];
    let x = g.view_2d(x, [n, n_patches], nb);
    let wide = n.saturating_mul(s);
    let x = g.reshape(x, [wide, w / s, h, 1]);
    let x = g.permute(x, [0, 2, 1, 3]);
    let wide = wide.saturating_mul(s);
    let x = g.cont_shape(x, [wide, w / s, h / s, 1]);
    let x = g.cont_shape(x, [wide, n_patches / s / s, 1, 1]);
    let mut x = x;
    for name in ["mm.model.mlp.1.weight", "mm.model.mlp.2.weight"] {
        x = plain(b, name, x);
        x = b.g.unary(vramfit_ggml::Unary::Gelu, x);
    }
    plain(b, "mm.model.fc.weight", x)
}

pub(super) fn kimivl(b: &mut TowerGraph<'_>) -> TensorId {
    let n_pos = b.n_pos();
    let [pos_h, pos_w] = ["pos_h", "pos_w"].map(|name| b.ids(name, n_pos));
    let vit = Vit {
        positions: Some(b.resized_positions()),
        rope: Some(Rope::Halves(pos_w, pos_h)),
        ..Vit::new(NormKind::Layer)
    };
    let inp = b.patches();
    let x = b.vit(inp, n_pos, &vit);
    let x = b.merge_patches(x);
    let (n, squared) = (
        b.hp.n_embd,
        b.hp.n_merge.saturating_mul(b.hp.n_merge).max(1),
    );
    let [wide, rows, ..] = b.g[x].ne;
    let row = |n: i64| Type::F32.row_size(n.max(0) as u64);
    let x = b.g.view_2d(x, [n, rows.saturating_mul(squared)], row(n));
    let x = b.norm(x, NormKind::Layer, "mm.input_norm");
    let x = b.g.view_2d(x, [wide, rows], row(wide));
    b.mlp(x, "mm.1", Activation::Gelu, "mm.2")
}

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

/// Gemma 4 limits what goes into some matrices and what comes out: clip.cpp asks for the limits of every matrix and
/// limits them all.
fn clamped(b: &mut TowerGraph<'_>, name: &str, x: TensorId) -> TensorId {
    let w = b.need(name);
    let x = b.g.map(Op::Clamp, x);
    let y = b.g.mul_mat(w, x);
    b.g.map(Op::Clamp, y)
}

pub(super) fn gemma4v(b: &mut TowerGraph<'_>) -> TensorId {
    let (n, n_pos) = (b.hp.n_embd, b.n_pos());
    let image = b.raw(3);
    let image = b.g.scale(image);
    let mut x = b.patches_of(image);
    let [pos_x, pos_y] = ["pos_x", "pos_y"].map(|name| b.ids(name, n_pos));
    let table = b.need("v.position_embd.weight");
    let rows = b.g[table].ne[1];
    let nb = b.g[table].ty.row_size(n.max(0) as u64);
    let tables = [pos_x, pos_y].map(|pos| {
        let half = b.g.view_2d(table, [n, rows], nb);
        b.g.get_rows(half, pos)
    });
    for rows in tables {
        x = b.g.add(x, rows);
    }
    let vit = Vit {
        rope: Some(Rope::Halves(pos_x, pos_y)),
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

pub(super) fn glm4v(b: &mut TowerGraph<'_>) -> TensorId {
    let (n, n_pos, s) = (b.hp.n_embd, b.n_pos(), b.hp.n_merge.max(1));
    let positions = b.ids("positions", 4 * n_pos);
    let x = frames(b);
    let bias = b.need("v.patch_embd.bias");
    let x = b.g.add(x, bias);
    let x = b.norm(x, NormKind::Rms, "v.norm_embd");
    let learned = b.has("v.position_embd.weight").then(|| {
        let positions = b.resized_positions();
        b.by_squares(positions)
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

pub(super) fn nemotron(b: &mut TowerGraph<'_>) -> TensorId {
    let (n, n_patches) = (b.hp.n_embd, b.n_pos());
    let inp = b.patches();
    let positions = b.need("v.position_embd.weight");
    let inp = b.g.add(inp, positions);
    let class = b.need("v.class_embd");
    let n_pos = n_patches.saturating_add(b.g[class].ne[1]);
    let inp = b.g.concat(class, inp, 1);
    let x = b.vit(inp, n_pos, &Vit::new(NormKind::Layer));
    let nb = b.g[x].nb[1];
    let x = b.g.view_2d(x, [n, n_patches], nb);
    let x = b.merge_patches(x);
    let x = b.norm(x, NormKind::Rms, "mm.model.mlp.0");
    b.mlp(x, "mm.model.mlp.1", Activation::ReluSqr, "mm.model.mlp.3")
}

pub(super) fn paddleocr(b: &mut TowerGraph<'_>) -> TensorId {
    let n_pos = b.n_pos();
    let positions = b.ids("positions", 4 * n_pos);
    let vit = Vit {
        positions: Some(b.resized_positions()),
        rope: Some(Rope::Multi(positions)),
        ..Vit::new(NormKind::Layer)
    };
    let inp = b.patches();
    let x = b.vit(inp, n_pos, &vit);
    let x = b.norm(x, NormKind::Layer, "mm.input_norm");
    let x = b.merge_patches(x);
    b.mlp(x, "mm.1", b.hp.activation, "mm.2")
}

/// CogVLM: norms behind attention and network; two gates.
pub(super) fn cogvlm(b: &mut TowerGraph<'_>) -> TensorId {
    let (n, n_patches) = (b.hp.n_embd, b.n_pos());
    let inp = b.patches();
    let class = b.need("v.class_embd");
    let x = b.g.concat(inp, class, 1);
    let positions = b.need("v.position_embd.weight");
    let mut x = b.g.add(x, positions);
    let vit = Vit::new(NormKind::Layer);
    for il in 0..b.hp.n_layer {
        let [ln1, out, ln2] = ["ln1", "attn_out", "ln2"].map(|kind| b.layer_name(il, kind));
        let parts = b.qkv(x, il, n_patches + 1, &vit);
        let y = b.attention(parts, None);
        let y = b.linear(y, &out);
        let y = b.norm(y, vit.norm, &ln1);
        x = b.g.add(y, x);
        let y = b.layer_ffn(x, il, &plain);
        let y = b.norm(y, vit.norm, &ln2);
        x = b.g.add(y, x);
    }
    let nb = b.g[x].nb[1];
    let x = b.g.view_2d(x, [n, n_patches], nb);
    let x = plain(b, "mm.model.fc.weight", x);
    let x = b.norm(x, NormKind::Layer, "mm.post_fc_norm");
    let x = b.g.unary_inplace(vramfit_ggml::Unary::Gelu, x);
    let up = plain(b, "mm.up.weight", x);
    let gate = plain(b, "mm.gate.weight", x);
    let x = b.g.glu_split(Glu::Swiglu, gate, up);
    let x = plain(b, "mm.down.weight", x);
    let (begin, end) = (b.need("v.boi"), b.need("v.eoi"));
    let x = b.g.concat(begin, x, 1);
    b.g.concat(x, end, 1)
}
