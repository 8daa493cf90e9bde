//! MiMo-V2: windows with attention sinks on most layers, V narrower than K.

use super::Architecture;
use super::llama::pre_norm_layer;
use crate::Result;
use crate::graph::{LlmGraph, MoeOptions, Qkv, floats};
use crate::hparams::{Gating, Hparams};
use crate::keys::Keys;
use crate::names::Kind;
use vramfit_ggml::TensorId;

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[Architecture::new("mimo2", graph)
    .reads(hparams)
    .predicts(mtp)];

fn hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    let scale = keys.float("attention.value_scale")?.unwrap_or(0.0);
    hp.scales_attention = scale != 0.0 && scale != 1.0;
    hp.set_swa(keys, Hparams::window(keys)?, 0)
}

/// Biases are loaded and left alone.
fn qkv(g: &mut LlmGraph<'_>, n: TensorId, il: usize) -> Qkv {
    let (shape, n_tokens) = (g.hp.layers[il], g.n_tokens);
    let heads = [
        (Kind::AttnQ, shape.n_embd_head_k, shape.n_head),
        (Kind::AttnK, shape.n_embd_head_k, shape.n_head_kv),
        (Kind::AttnV, shape.n_embd_head_v, shape.n_head_kv),
    ];
    let product = |g: &mut LlmGraph<'_>, kind| {
        let w = g.weight(il, kind);
        g.adapted(w, n, None)
    };
    if !g.has(il, Kind::AttnQkv) {
        return heads.map(|(kind, width, n_head)| {
            let flat = product(g, kind);
            g.reshape(flat, [width, n_head, n_tokens, 1])
        });
    }
    let all = product(g, Kind::AttnQkv);
    let row = g[all].nb[1];
    heads.map(|(_, width, n_head)| g.view_3d(all, [width, n_head, n_tokens], [floats(width), row]))
}

fn graph(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let options = MoeOptions {
        gating: Gating::Sigmoid,
        ..MoeOptions::softmax(true)
    };
    g.layers(x, |g, x, il| layer(g, x, options, il));
}

fn layer(g: &mut LlmGraph<'_>, x: TensorId, options: MoeOptions, il: usize) -> TensorId {
    let attention = |g: &mut LlmGraph<'_>, n| {
        let qkv = qkv(g, n, il);
        let qkv = g.rotate_qk(qkv, None);
        let cur = g.attention(qkv, il);
        if g.hp.scales_attention {
            g.scale(cur)
        } else {
            cur
        }
    };
    let ffn = |g: &mut LlmGraph<'_>, n| g.ffn_or_moe(n, options, il);
    pre_norm_layer(g, x, il, attention, ffn)
}

fn mtp(g: &mut LlmGraph<'_>) {
    let (x, il) = g.mtp_input();
    let x = layer(g, x, MoeOptions::softmax(true), il);
    g.mtp_head_of_rows(x, il);
}
