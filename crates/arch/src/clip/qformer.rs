//! Q-formers: queries that look at each other and at windows of what a tower computes.

use super::blocks::Vit;
use super::graph::{NormKind, TowerGraph};
use super::hparams::{Activation, MAX_QUERY, TowerHparams};
use super::kinds::{ProjectorKind, kind};
use crate::Result;
use crate::keys::Keys;
use vramfit_ggml::TensorId;

pub(super) static KINDS: &[ProjectorKind] = &[kind(
    "granite4_vision",
    granite4,
    &[
        "v.image_newline",
        "v.proj_blk.#.img_pos",
        "v.proj_blk.#.query",
        "v.proj_blk.#.linear.+",
        "v.proj_blk.#.norm.+",
        "v.proj_blk.#.post_norm.+",
        "v.proj_blk.#.self_attn_q.+",
        "v.proj_blk.#.self_attn_k.+",
        "v.proj_blk.#.self_attn_v.+",
        "v.proj_blk.#.self_attn_out.+",
        "v.proj_blk.#.self_attn_norm.+",
        "v.proj_blk.#.cross_attn_q.+",
        "v.proj_blk.#.cross_attn_k.+",
        "v.proj_blk.#.cross_attn_v.+",
        "v.proj_blk.#.cross_attn_out.+",
        "v.proj_blk.#.cross_attn_norm.+",
        "v.proj_blk.#.ffn_up.+",
        "v.proj_blk.#.ffn_down.+",
        "v.proj_blk.#.ffn_norm.+",
    ],
    granite4_vision,
)];

fn granite4(keys: &Keys<'_>, hp: &mut TowerHparams) -> Result<()> {
    const OFFSETS: &str = "vision.projector.spatial_offsets";
    let offsets = keys.array(OFFSETS, hp.feature_layers.len(), 0)?;
    hp.qformer.offsets = offsets.ok_or_else(|| keys.missing(OFFSETS))?;
    hp.qformer.query = keys.require("vision.projector.query_side", MAX_QUERY)?;
    hp.qformer.window = keys.require("vision.projector.window_side", MAX_QUERY)?;
    hp.second.n_layer = hp.feature_layers.len();
    Ok(())
}

/// The shape of a block.
pub(crate) struct QueryBlock {
    /// Heads.
    pub n_head: i64,
    /// Windows are laid behind each other for products.
    pub is_flat: bool,
    /// Of its network.
    pub activation: Activation,
}

/// A block: attention among `queries` `[n, n_query, windows]`, then to the `windows` `[n', n_frames, windows]`, then a
/// network.
pub(crate) fn query_block(
    b: &mut TowerGraph<'_>,
    name: &str,
    [queries, windows]: [TensorId; 2],
    shape: &QueryBlock,
) -> TensorId {
    let x = attention(b, &format!("{name}.self_attn"), [queries; 2], shape);
    let x = attention(b, &format!("{name}.cross_attn"), [x, windows], shape);
    let [n, rows, n_windows, _] = b.g[x].ne;
    let inner = match shape.is_flat {
        true => {
            let rows = rows.saturating_mul(n_windows);
            b.g.reshape(x, [n, rows, 1, 1])
        }
        false => x,
    };
    let [up, down] = ["ffn_up", "ffn_down"].map(|kind| format!("{name}.{kind}"));
    let mut y = b.mlp(inner, &up, shape.activation, &down);
    if shape.is_flat {
        y = b.g.reshape(y, [n, rows, n_windows, 1]);
    }
    let y = b.g.add(y, x);
    b.norm(y, NormKind::Layer, &format!("{name}.ffn_norm"))
}

fn attention(
    b: &mut TowerGraph<'_>,
    name: &str,
    [queries, seen]: [TensorId; 2],
    shape: &QueryBlock,
) -> TensorId {
    let [n, rows, n_windows, _] = b.g[queries].ne;
    let d_head = n / shape.n_head.max(1);
    let parts = [("q", queries), ("k", seen), ("v", seen)].map(|(kind, x)| {
        let [wide, rows, n_windows, _] = b.g[x].ne;
        let x = match shape.is_flat {
            true => {
                let rows = rows.saturating_mul(n_windows);
                b.g.reshape(x, [wide, rows, 1, 1])
            }
            false => x,
        };
        let x = b.linear(x, &format!("{name}_{kind}"));
        b.g.reshape(x, [d_head, shape.n_head, rows, n_windows])
    });
    let x = b.attention(parts, None);
    let x = b.linear(x, &format!("{name}_out"));
    let x = b.g.reshape(x, [n, rows, n_windows, 1]);
    let x = b.g.add(x, queries);
    b.norm(x, NormKind::Layer, &format!("{name}_norm"))
}

/// Patches picked by an input.
fn gathered(b: &mut TowerGraph<'_>, x: TensorId, side: i64) -> TensorId {
    let ids = b.ids("indices", side.saturating_mul(side));
    b.g.get_rows(x, ids)
}

/// The mean of each square of patches, `side` by `side` to `new_side` by `new_side`.
fn averaged(b: &mut TowerGraph<'_>, x: TensorId, [side, new_side]: [i64; 2]) -> TensorId {
    let n = b.g[x].ne[0];
    let x = b.g.reshape(x, [n, side, side, 1]);
    let x = b.channels_last(x);
    let x = b.g.reshape(x, [side, side, n, 1]);
    let x = b.g.pool_2d(x, side / new_side.max(1));
    let x = b.g.reshape(x, [new_side, new_side, n, 1]);
    let x = b.channels_first(x);
    b.g.reshape(x, [n, new_side.saturating_mul(new_side), 1, 1])
}

/// What block `index` makes of a layer's patches: as many tokens as it has queries in all windows.
fn window_block(b: &mut TowerGraph<'_>, x: TensorId, index: usize) -> TensorId {
    const D_HEAD: i64 = 64;
    let name = |part: &str| format!("v.proj_blk.{index}.{part}");
    let (n, side) = (b.g[x].ne[0], b.n_patches[0]);
    let (window, query) = (b.hp.qformer.window.max(1), b.hp.qformer.query.max(1));
    let n_side = side / window;
    let new_side = n_side.saturating_mul(query);
    let n_windows = n_side.saturating_mul(n_side);
    let x = b.norm(x, NormKind::Layer, &name("norm"));
    let seen = gathered(b, x, side);
    let seen =
        b.g.reshape(seen, [n, window.saturating_mul(window), n_windows, 1]);
    let offset = b.hp.qformer.offsets.get(index).copied().unwrap_or(0);
    let asked = match offset {
        0.. => gathered(b, x, new_side),
        _ => averaged(b, x, [side, new_side]),
    };
    let asked = gathered(b, asked, new_side);
    let asked =
        b.g.reshape(asked, [n, query.saturating_mul(query), n_windows, 1]);
    let learned = b.need(&name("query"));
    let asked = b.g.add(asked, learned);
    let places = b.need(&name("img_pos"));
    let seen = b.g.add(seen, places);
    let asked = b.norm(asked, NormKind::Layer, &name("post_norm"));
    let shape = QueryBlock {
        n_head: n / D_HEAD,
        is_flat: true,
        activation: Activation::GeluErf,
    };
    let stem = format!("v.proj_blk.{index}");
    let x = query_block(b, &stem, [asked, seen], &shape);
    let rows = query.saturating_mul(query).saturating_mul(n_windows);
    let x = b.g.reshape(x, [n, rows, 1, 1]);
    let x = gathered(b, x, new_side);
    b.linear(x, &name("linear"))
}

/// Granite Vision 4: Q-formers over several layers, beside each other.
fn granite4_vision(b: &mut TowerGraph<'_>) -> TensorId {
    let (n, n_pos) = (b.hp.n_embd, b.n_pos());
    let inp = b.patches();
    let table = b.need("v.position_embd.weight");
    let mut x = b.g.add(inp, table);
    let vit = Vit::new(NormKind::Layer);
    let mut layers = Vec::new();
    for il in 0..b.hp.n_layer {
        let [ln1, out, ln2] = ["ln1", "attn_out", "ln2"].map(|kind| b.layer_name(il, kind));
        let y = b.norm(x, vit.norm, &ln1);
        let parts = b.qkv(y, il, n_pos, &vit);
        let y = b.attention(parts, None);
        let y = b.linear(y, &out);
        let y = b.g.reshape(y, [n, n_pos, 1, 1]);
        let mid = b.g.add(y, x);
        let y = b.norm(mid, vit.norm, &ln2);
        let y = b.layer_ffn(y, il, &vit);
        x = b.g.add(mid, y);
        layers.push(x);
    }
    let features = &b.hp.feature_layers;
    let mut tokens: Option<TensorId> = None;
    for (index, &il) in features.iter().enumerate() {
        let layer = usize::try_from(il).ok().and_then(|il| layers.get(il));
        let y = window_block(b, layer.copied().unwrap_or(x), index);
        tokens = Some(match tokens {
            Some(before) => b.g.concat(before, y, 0),
            None => y,
        });
    }
    tokens.unwrap_or(x)
}
