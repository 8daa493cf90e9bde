//! Chameleon: Q and K under a layer norm of their own; logits of image tokens are overwritten.

use super::Architecture;
use crate::Result;
use crate::graph::{Ffn, LlmGraph, Norm};
use crate::hparams::Hparams;
use crate::keys::Keys;
use crate::names::{Kind, Part};
use vramfit_ggml::{Op, TensorId, Type};

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[Architecture::new("chameleon", graph).reads(hparams)];

/// Tokens that stand for images (fixed in llama.cpp).
const N_IMAGE_TOKENS: i64 = 8192;

fn hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.norms_behind = keys.flag("swin_norm")?.unwrap_or(false);
    Ok(())
}

fn graph(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let embd = g.layers_and_norm(x, layer);
    g.set_embeddings(embd);
    let logits = g.logits(embd);
    let images = g.new_tensor(Op::None, Type::F32, [N_IMAGE_TOKENS, 1, 1, 1], &[]);
    let images = g.map(Op::Clamp, images);
    let logits = g.set(logits, images);
    g.set_output(logits);
}

/// The norm of a block comes before it or (`swin_norm`) behind it.
fn layer(g: &mut LlmGraph<'_>, x: TensorId, il: usize) -> TensorId {
    let behind = g.hp.norms_behind;
    let n = if behind {
        x
    } else {
        g.norm(x, Kind::AttnNorm, il)
    };
    let [q, k, v] = g.qkv(n, il);
    let q = head_norm(g, q, Kind::AttnQNorm, il);
    let k = head_norm(g, k, Kind::AttnKNorm, il);
    let qkv = g.rotate_qk([q, k, v], None);
    let cur = g.attention(qkv, il);
    let cur = g.last_rows(il, cur);
    let residual = g.last_rows(il, x);
    let cur = if behind {
        g.norm(cur, Kind::AttnNorm, il)
    } else {
        cur
    };
    let h = g.add(cur, residual);
    // With the norm behind, the block reads what attention alone has made.
    let n = if behind {
        cur
    } else {
        g.norm(h, Kind::FfnNorm, il)
    };
    let cur = g.ffn(n, Ffn::Silu, il);
    let cur = if behind {
        g.norm(cur, Kind::FfnNorm, il)
    } else {
        cur
    };
    g.add(cur, h)
}

fn head_norm(g: &mut LlmGraph<'_>, x: TensorId, kind: Kind, il: usize) -> TensorId {
    let w = g.optional(il, kind, Part::Weight);
    let b = g.optional(il, kind, Part::Bias);
    g.norm_by(Norm::Layer, x, w, b, Some(il))
}
