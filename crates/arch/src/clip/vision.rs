//! Towers for images.

use super::blocks::{Rope, Vit};
use super::graph::{NormKind, TowerGraph, plain};
use super::hparams::{Activation, SCALE_FACTOR, SPATIAL_MERGE, TowerHparams};
use super::kinds::{NORM_AND_TWO, ProjectorKind, TWO, common, kind, scaled, swapping};
use crate::Result;
use crate::keys::Keys;
use vramfit_ggml::{Glu, Op, TensorId, Type};

fn mistral(keys: &Keys<'_>, hp: &mut TowerHparams) -> Result<()> {
    hp.merge_by(keys, SPATIAL_MERGE, 1)?;
    hp.warm_up_with_side(16);
    Ok(())
}

pub(super) static KINDS: &[ProjectorKind] = &[
    swapping(kind("idefics3", scaled, &["mm.model.fc.weight"], idefics3)),
    kind(
        "lfm2",
        |keys, hp| {
            hp.merge_by(keys, SCALE_FACTOR, 1)?;
            hp.limit_tokens(256);
            Ok(())
        },
        NORM_AND_TWO,
        lfm2,
    ),
    kind("janus_pro", common, &["mm.0.+", "mm.1.+"], janus_pro),
    kind(
        "phi4",
        |_, hp| {
            hp.warm_up_with_side(16);
            Ok(())
        },
        TWO,
        phi4,
    ),
    kind(
        "pixtral",
        mistral,
        &[
            "mm.1.+",
            "mm.2.+",
            "v.token_embd.img_break",
            "mm.input_norm.weight",
            "mm.patch_merger.weight",
        ],
        pixtral,
    ),
    kind(
        "lightonocr",
        mistral,
        &[
            "mm.1.+",
            "mm.2.+",
            "mm.input_norm.weight",
            "mm.patch_merger.weight",
        ],
        pixtral,
    ),
    kind(
        "internvl",
        scaled,
        &["mm.model.mlp.0.+", "mm.model.mlp.1.+", "mm.model.mlp.3.+"],
        internvl,
    ),
    kind(
        "llama4",
        scaled,
        &[
            "mm.model.fc.weight",
            "mm.model.mlp.1.weight",
            "mm.model.mlp.2.weight",
        ],
        llama4,
    ),
    kind(
        "nemotron_v2_vl",
        scaled,
        &[
            "mm.model.mlp.0.weight",
            "mm.model.mlp.1.weight",
            "mm.model.mlp.3.weight",
        ],
        nemotron,
    ),
    kind(
        "paddleocr",
        |_, hp| {
            hp.n_merge = 2;
            hp.warm_up_with_side(28);
            Ok(())
        },
        NORM_AND_TWO,
        paddleocr,
    ),
    kind(
        "cogvlm",
        common,
        &[
            "mm.model.fc.weight",
            "mm.post_fc_norm.+",
            "mm.up.weight",
            "mm.gate.weight",
            "mm.down.weight",
            "v.boi",
            "v.eoi",
        ],
        cogvlm,
    ),
];

/// The transformer of most towers, with learned positions.
pub(super) fn siglip(b: &mut TowerGraph<'_>, positions: Option<TensorId>) -> TensorId {
    let inp = b.patches();
    let positions = positions.or_else(|| b.weight("v.position_embd.weight"));
    let vit = Vit {
        positions,
        ..Vit::new(NormKind::Layer)
    };
    b.vit(inp, b.n_pos(), &vit)
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
        let y = b.layer_ffn(x, il, &vit);
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
