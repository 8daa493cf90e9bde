//! LLaVA and its kin: CLIP's tower, then a projector of one kind or another.

use super::blocks::Vit;
use super::graph::{NormKind, TowerGraph, plain};
use super::hparams::Activation;
use super::kinds::{ProjectorKind, common, kind, swapping};
use vramfit_ggml::{Glu, TensorId, Unary};

const SIDE: i64 = 24;

const LLAVA: &[&str] = &[
    "mm.0.+",
    "mm.1.+",
    "mm.2.+",
    "mm.3.+",
    "mm.4.+",
    "v.image_newline",
];

pub(super) static KINDS: &[ProjectorKind] = &[
    swapping(kind("mlp", common, LLAVA, mlp)),
    swapping(kind("mlp_norm", common, LLAVA, mlp_norm)),
    swapping(kind(
        "ldp",
        common,
        &[
            "mm.model.mlp.1.+",
            "mm.model.mlp.3.+",
            "mm.model.mb_block.1.block.0.0.weight",
            "mm.model.mb_block.1.block.0.1.+",
            "mm.model.mb_block.1.block.1.fc1.+",
            "mm.model.mb_block.1.block.1.fc2.+",
            "mm.model.mb_block.1.block.2.0.weight",
            "mm.model.mb_block.1.block.2.1.+",
            "mm.model.mb_block.2.block.0.0.weight",
            "mm.model.mb_block.2.block.0.1.+",
            "mm.model.mb_block.2.block.1.fc1.+",
            "mm.model.mb_block.2.block.1.fc2.+",
            "mm.model.mb_block.2.block.2.0.weight",
            "mm.model.mb_block.2.block.2.1.+",
        ],
        ldp,
    )),
    swapping(kind(
        "ldpv2",
        common,
        &["mm.model.mlp.0.+", "mm.model.mlp.2.+", "mm.model.peg.0.+"],
        ldpv2,
    )),
    swapping(kind(
        "adapter",
        common,
        &[
            "adapter.conv.+",
            "adapter.linear.linear.weight",
            "adapter.linear.norm1.+",
            "adapter.linear.dense_h_to_4h.weight",
            "adapter.linear.gate.weight",
            "adapter.linear.dense_4h_to_h.weight",
            "adapter.boi",
            "adapter.eoi",
        ],
        glm_edge,
    )),
];

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
    let x = b.g.unary(Unary::Gelu, x);
    match b.has("mm.2.weight") {
        true => b.linear(x, "mm.2"),
        false => x,
    }
}

pub(super) fn mlp_norm(b: &mut TowerGraph<'_>) -> TensorId {
    let x = llava_patches(b);
    let x = b.linear(x, "mm.0");
    let x = b.norm(x, NormKind::Layer, "mm.1");
    let x = b.g.unary(Unary::Gelu, x);
    let x = b.linear(x, "mm.3");
    b.norm(x, NormKind::Layer, "mm.4")
}

/// Rows of patches as an image of `side` by `side`.
fn image_of(b: &mut TowerGraph<'_>, x: TensorId, side: i64) -> TensorId {
    let x = b.g.permute(x, [1, 0, 2, 3]);
    let [_, n, more, _] = b.g[x].ne;
    b.g.cont_shape(x, [side, side, n, more])
}

/// MobileVLM's block: a convolution a channel, a gate from the mean of the image, a matrix.
fn mobile_block(b: &mut TowerGraph<'_>, x: TensorId, block: usize, stride: i64) -> TensorId {
    let name = |part: &str| format!("mm.model.mb_block.{block}.block.{part}");
    let kernel = b.need(&name("0.0.weight"));
    let x = b.g.conv_2d_dw(kernel, x, stride, 1);
    let x = b.channels_first(x);
    let x = b.norm(x, NormKind::Layer, &name("0.1"));
    let x = b.channels_last(x);
    let x = b.g.unary(Unary::HardSwish, x);
    let side = b.g[x].ne[0];
    let mean = b.g.pool_2d(x, side);
    let [w, h, n, more] = b.g[mean].ne;
    let n = w.saturating_mul(h).saturating_mul(n);
    let mean = b.g.reshape(mean, [n, more, 1, 1]);
    let gate = b.linear(mean, &name("1.fc1"));
    let gate = b.g.unary(Unary::Relu, gate);
    let gate = b.linear(gate, &name("1.fc2"));
    let gate = b.g.unary(Unary::HardSigmoid, gate);
    let [n, more, ..] = b.g[gate].ne;
    let gate = b.g.reshape(gate, [1, 1, n, more]);
    let x = b.g.mul(x, gate);
    let [w, h, n, more] = b.g[x].ne;
    let x = b.g.reshape(x, [w.saturating_mul(h), n, more, 1]);
    let x = b.g.permute(x, [1, 0, 2, 3]);
    let x = b.g.cont(x);
    let x = plain(b, &name("2.0.weight"), x);
    let [n, _, _, more] = b.g[x].ne;
    let x = b.g.reshape(x, [n, w, h, more]);
    b.norm(x, NormKind::Layer, &name("2.1"))
}

/// `[c, w, h]` as rows.
fn rows_of(b: &mut TowerGraph<'_>, x: TensorId) -> TensorId {
    let [n, w, h, more] = b.g[x].ne;
    b.g.reshape(x, [n, w.saturating_mul(h), more, 1])
}

fn ldp(b: &mut TowerGraph<'_>) -> TensorId {
    let x = llava_patches(b);
    let x = b.mlp(x, "mm.model.mlp.1", Activation::Gelu, "mm.model.mlp.3");
    let x = image_of(b, x, SIDE);
    let y = mobile_block(b, x, 1, 1);
    let y = b.channels_last(y);
    let x = b.g.add(x, y);
    let x = mobile_block(b, x, 2, 2);
    rows_of(b, x)
}

fn ldpv2(b: &mut TowerGraph<'_>) -> TensorId {
    let x = llava_patches(b);
    let x = b.mlp(x, "mm.model.mlp.0", Activation::Gelu, "mm.model.mlp.2");
    let x = image_of(b, x, SIDE);
    let x = b.g.pool_2d(x, 2);
    let kernel = b.need("mm.model.peg.0.weight");
    let y = b.g.conv_2d_dw(kernel, x, 1, 1);
    let y = b.channels_first(y);
    let bias = b.need("mm.model.peg.0.bias");
    let y = b.g.add(y, bias);
    let x = b.channels_first(x);
    let x = b.g.add(y, x);
    rows_of(b, x)
}

fn glm_edge(b: &mut TowerGraph<'_>) -> TensorId {
    let x = llava(b, 0);
    let side = b.g[x].ne[1].max(0).isqrt();
    let x = image_of(b, x, side);
    let kernel = b.need("adapter.conv.weight");
    let x = b.conv_2d(kernel, x, 2, 0);
    let [w, h, n, _] = b.g[x].ne;
    let x = b.g.reshape(x, [w.saturating_mul(h), n, 1, 1]);
    let x = b.g.permute(x, [1, 0, 2, 3]);
    let x = b.g.cont(x);
    let bias = b.need("adapter.conv.bias");
    let x = b.g.add(x, bias);
    let x = plain(b, "adapter.linear.linear.weight", x);
    let x = b.norm(x, NormKind::Layer, "adapter.linear.norm1");
    let x = b.g.unary_inplace(Unary::Gelu, x);
    let gate = plain(b, "adapter.linear.gate.weight", x);
    let up = plain(b, "adapter.linear.dense_h_to_4h.weight", x);
    let x = b.g.glu_split(Glu::Swiglu, gate, up);
    let x = plain(b, "adapter.linear.dense_4h_to_h.weight", x);
    let (begin, end) = (b.need("adapter.boi"), b.need("adapter.eoi"));
    let x = b.g.concat(begin, x, 1);
    b.g.concat(x, end, 1)
}
