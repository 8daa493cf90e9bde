//! SmallThinker: the router sees the layer's input, so that experts can be fetched while attention
//! runs.

use super::Architecture;
use crate::Result;
use crate::graph::{Ffn, LlmGraph, MoeOptions};
use crate::hparams::Hparams;
use crate::keys::Keys;
use crate::names::Kind;

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[Architecture::new("smallthinker", graph).reads(hparams)];

/// Any window stands for 4096.
fn hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    let window = Hparams::window(keys)?.map(|_| 4096);
    hp.set_swa_dense_first(keys, window, 4)
}

/// With a window every fourth layer is without rotation.
fn graph(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let options = MoeOptions {
        norms_weights: true,
        activation: Ffn::Relu,
        ..MoeOptions::of_file(&g.hp.moe)
    };
    let rotates_all = !g.hp.has_swa_layers || g.hp.n_layer() == 4;
    g.layers(x, |g, x, il| {
        let logits = g.linear(x, Kind::FfnGateInp, il);
        let n = g.norm(x, Kind::AttnNorm, il);
        let mut qkv = g.qkv(n, il);
        if rotates_all || il % 4 != 0 {
            qkv = g.rotate_qk(qkv, None);
        }
        let cur = g.attention(qkv, il);
        let [cur, residual, logits] = [cur, x, logits].map(|t| g.last_rows(il, t));
        let h = g.add(cur, residual);
        let n = g.norm(h, Kind::FfnNorm, il);
        let cur = g.moe_routed(n, logits, options, il);
        g.add(cur, h)
    });
}
