//! LFM2: gated short convolutions, attention on some layers.

use super::Architecture;
use crate::Result;
use crate::graph::{LlmGraph, MoeOptions};
use crate::hparams::{Hparams, Ssm};
use crate::keys::Keys;
use crate::names::Kind;
use crate::slices::TensorSplit;

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[lfm2("lfm2"), lfm2("lfm2moe")];

const fn lfm2(name: &'static str) -> Architecture {
    Architecture::new(name, graph)
        .tapped()
        .rolling_back()
        .reads(hparams)
        .embd_norm_output()
        .tensor_split(TensorSplit::WholeStates)
        .embeddings_without_head()
}

pub(super) fn hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    let d_conv = keys.require("shortconv.l_cache", 1024)?;
    hp.ssm = Some(Ssm {
        d_conv,
        d_inner: hp.n_embd,
        ..Ssm::default()
    });
    hp.set_recurrent(|_, layer| layer.n_head_kv == 0);
    Ok(())
}

pub(super) fn graph(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let options = MoeOptions {
        norms_weights: true,
        ..MoeOptions::of_file(&g.hp.moe)
    };
    g.layers(x, |g, x, il| {
        let n = g.norm(x, Kind::AttnNorm, il);
        let cur = if g.hp.layers[il].is_recurrent {
            g.short_conv(n, il)
        } else {
            g.rotated_attention(n, None, il)
        };
        let cur = g.last_rows(il, cur);
        let residual = g.last_rows(il, x);
        let h = g.add(residual, cur);
        let n = g.norm(h, Kind::FfnNorm, il);
        let cur = g.ffn_or_moe(n, options, il);
        g.add(h, cur)
    });
}
