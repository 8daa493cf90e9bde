//! Falcon-H1: attention and Mamba 2 beside each other in every layer.

use super::Architecture;
use crate::Result;
use crate::graph::{Ffn, LlmGraph};
use crate::hparams::Hparams;
use crate::keys::Keys;
use crate::names::Kind;

/// Its architectures.
pub(super) const ALL: &[Architecture] =
    &[Architecture::new("falcon-h1", graph).whole().reads(hparams)];

fn hparams(_: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.set_recurrent(|_, _| true);
    hp.layers.iter_mut().for_each(|l| l.is_cached = true);
    Ok(())
}

fn graph(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let n = g.norm(x, Kind::AttnNorm, il);
        let attended = g.rotated_attention(n, None, il);
        // The same norm, computed again.
        let n = g.norm(x, Kind::AttnNorm, il);
        let scanned = g.mamba2(n, il);
        let cur = g.add(attended, scanned);
        let h = g.add(cur, x);
        let h = g.last_rows(il, h);
        let n = g.norm(h, Kind::FfnNorm, il);
        let cur = g.ffn(n, Ffn::Silu, il);
        g.add(cur, h)
    });
}
