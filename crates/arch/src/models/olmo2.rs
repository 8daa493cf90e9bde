//! OLMo 2 and EXAONE 4: norms behind each block, none before.

use super::Architecture;
use crate::Result;
use crate::graph::{Ffn, LlmGraph};
use crate::hparams::Hparams;
use crate::keys::Keys;
use crate::names::Kind;
use vramfit_ggml::TensorId;

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    Architecture::new("exaone4", exaone4).reads(exaone4_hparams),
    Architecture::new("olmo2", olmo2)
        .whole()
        .reads(olmo2_hparams),
];

pub(super) fn olmo2_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.set_swa(keys, Hparams::window(keys)?, 4)
}

/// Only the 64-layer model has a window.
pub(super) fn exaone4_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    if hp.n_layer() != 64 {
        return Ok(());
    }
    hp.set_swa(keys, Hparams::window(keys)?.or(Some(4096)), 4)
}

/// Q and K normalised over all heads at once.
pub(super) fn olmo2(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let qkv = g.qkv_flat_norm(x, il);
        let qkv = g.rotate_qk(qkv, None);
        let cur = g.attention(qkv, il);
        post_norm(g, cur, x, il)
    });
}

/// Q and K normalised a head; full attention without rotation where other layers have a window.
pub(super) fn exaone4(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let factors = g.rope_factors(il);
        let qkv = g.qkv(x, il);
        let mut qkv = g.qk_norm(qkv, il);
        if g.hp.layers[il].is_swa || !g.hp.has_swa_layers {
            qkv = g.rotate_qk(qkv, factors);
        }
        let cur = g.attention(qkv, il);
        post_norm(g, cur, x, il)
    });
}

fn post_norm(g: &mut LlmGraph<'_>, cur: TensorId, x: TensorId, il: usize) -> TensorId {
    let cur = g.last_rows(il, cur);
    let residual = g.last_rows(il, x);
    let cur = g.norm(cur, Kind::AttnPostNorm, il);
    let h = g.add(cur, residual);
    let cur = g.ffn(h, Ffn::Silu, il);
    let cur = g.norm_unpinned(cur, Kind::FfnPostNorm, il);
    g.add(cur, h)
}
