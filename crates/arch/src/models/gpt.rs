//! GPT-2, StarCoder 2 and gpt-oss.

use super::Architecture;
use super::llama::pre_norm_layer;
use crate::Result;
use crate::graph::{Ffn, LlmGraph, MoeOptions};
use crate::hparams::{Gating, Hparams};
use crate::keys::Keys;
use crate::names::{Global, Kind};
use vramfit_ggml::{Flags, TensorId};

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    Architecture::new("gpt-oss", gpt_oss).reads(gpt_oss_hparams),
    Architecture::new("gpt2", gpt2).layer_norm(),
    Architecture::new("starcoder2", starcoder2).layer_norm(),
];

/// GPT-2: learned positions instead of rotation.
pub(super) fn gpt2(g: &mut LlmGraph<'_>) {
    let mut x = g.embed(false);
    let table = g.input_weight(Global::PositionEmbd);
    let table = g.required(Global::PositionEmbd, table);
    if let Some(pos) = g.pos {
        let positions = g.get_rows(table, pos);
        x = g.add(x, positions);
    }
    g.layers(x, |g, x, il| layer(g, x, il, false));
}

pub(super) fn starcoder2(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| layer(g, x, il, true));
}

fn layer(g: &mut LlmGraph<'_>, x: TensorId, il: usize, rotated: bool) -> TensorId {
    let attention = |g: &mut LlmGraph<'_>, n| {
        let mut qkv = g.qkv(n, il);
        if rotated {
            qkv = g.rotate_qk(qkv, None);
        }
        g.attention(qkv, il)
    };
    let ffn = |g: &mut LlmGraph<'_>, n| g.ffn(n, Ffn::Gelu, il);
    pre_norm_layer(g, x, il, attention, ffn)
}

pub(super) fn gpt_oss_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.set_swa(keys, Hparams::window(keys)?, 2)
}

/// gpt-oss: attention sinks, experts with biases, every other layer with a window.
pub(super) fn gpt_oss(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let options = MoeOptions {
        gating: Gating::SoftmaxWeight,
        activation: Ffn::SwigluOai,
        ..MoeOptions::softmax(false)
    };
    g.layers(x, |g, x, il| {
        let n = g.norm(x, Kind::AttnNorm, il);
        let qkv = g.qkv(n, il);
        let qkv = g.rotate_qk(qkv, None);
        let cur = g.attention(qkv, il);
        let h = g.add(cur, x);
        let n = g.norm(h, Kind::AttnPostNorm, il);
        let cur = g.moe(n, options, il);
        let x = g.add(cur, h);
        if il + 1 < g.hp.n_layer() {
            return x;
        }
        g[x].flags.insert(Flags::OUTPUT);
        g.output_rows(x)
    });
}
