//! DeepSeek sparse attention: latent attention to the cells that a lightning indexer chooses.
//! DeepSeek-V3.2, GLM-5 (some layers take the choice of the one before), dots3-note (layers with
//! a sliding window between them).

use super::Architecture;
use super::deepseek::{latent_qkv, low_rank_q};
use super::llama::pre_norm_layer;
use crate::Result;
use crate::graph::{LlmGraph, MoeOptions, Scale};
use crate::hparams::{Gating, Hparams, Mla, limits};
use crate::keys::Keys;
use crate::names::Kind;
use vramfit_ggml::{TensorId, Unary};

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    sparse("deepseek32")
        .predicts(super::deepseek::mtp)
        .reads(deepseek32_hparams)
        .loads_of_mtp(&[Kind::ExpProbsB]),
    sparse("dots3note")
        .leaves_scales(&[Scale::Output])
        .reads(dots3_hparams),
    sparse("glm-dsa")
        .predicts(super::deepseek::mtp)
        .reads(glm_hparams)
        .loads_of_mtp(&[Kind::ExpProbsB]),
];

const fn sparse(name: &'static str) -> Architecture {
    Architecture::new(name, graph)
        .whole()
        .constants(&["expert_weights_scale"])
        .scales(&[Scale::Dense, Scale::Experts, Scale::SharedExperts])
        .unadapted(&[super::LATENT])
        .output_unadapted()
}

fn deepseek32_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.set_indexer(keys, |_| true)
}

/// Layers with an indexer of their own: as the file says, else as `default` does.
pub(super) fn indexer_layers(
    keys: &Keys<'_>,
    hp: &mut Hparams,
    default: impl Fn(usize) -> bool,
) -> Result<()> {
    let types = keys.per_layer("attention.indexer.types", hp.n_layer(), i64::MAX)?;
    match types {
        Some(types) => hp.set_indexer(keys, |il| types.get(il).is_some_and(|&t| t != 0)),
        None => hp.set_indexer(keys, default),
    }
}

fn glm_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    if let Some(moe) = &mut hp.moe
        && keys.positive("expert_gating_func", 16)?.is_none()
    {
        moe.gating = Gating::Sigmoid;
    }
    // Files of GLM-5.2 without the key: three of four layers share, of its 78.
    let shares = hp.n_ctx_train >= 1 << 20;
    indexer_layers(keys, hp, |il| {
        !shares || il < 2 || (il < 78 && (il - 2) % 4 == 0)
    })
}

fn dots3_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.set_swa(keys, Hparams::window(keys)?, 1)?;
    if let Some(mla) = hp.mla {
        hp.mla_swa = Some(Mla {
            key_length: keys
                .require("attention.key_length_mla_swa", limits::WIDTH)?
                .max(mla.n_rot),
            value_length: keys.require("attention.value_length_mla_swa", limits::WIDTH)?,
            kv_lora_rank: keys.require("attention.kv_lora_rank_swa", limits::WIDTH)?,
            ..mla
        });
    }
    indexer_layers(keys, hp, |_| false)
}

fn graph(g: &mut LlmGraph<'_>) {
    let mut x = g.embed(false);
    let options = MoeOptions::of_file(&g.hp.moe);
    let mut chosen = None;
    for il in 0..g.hp.n_layer() {
        let attention = |g: &mut LlmGraph<'_>, n| sparse_attention(g, n, &mut chosen, true, il);
        let ffn = |g: &mut LlmGraph<'_>, n| g.ffn_or_moe(n, options, il);
        x = pre_norm_layer(g, x, il, attention, ffn);
        x = g.control(x, il);
    }
    let embd = g.final_norm(x);
    g.lm_head(embd, embd);
}

/// Latent attention to the `chosen` cells: those of this layer's indexer, where it has one, else
/// those of the last layer that had. A layer with a sliding window attends to all of it.
/// `rotated`: the indexer multiplies by a Hadamard matrix.
pub(super) fn sparse_attention(
    g: &mut LlmGraph<'_>,
    n: TensorId,
    chosen: &mut Option<TensorId>,
    rotated: bool,
    il: usize,
) -> TensorId {
    let low = low_rank_q(g, n, il);
    let layer = g.hp.layers[il];
    if layer.has_indexer {
        *chosen = Some(g.choose_cells(n, low, rotated, il));
    }
    let q = g.linear(low, Kind::AttnQB, il);
    let qkv = latent_qkv(g, n, q, il);
    let v_b = g.weight(il, Kind::AttnVB);
    let cells = chosen.filter(|_| !layer.is_swa);
    let mut cur = g.attend_mla(qkv, v_b, cells, il);
    if g.has(il, Kind::AttnGate) {
        cur = gate(g, cur, n, il);
    }
    g.linear(cur, Kind::AttnOutput, il)
}

/// `x` multiplied by gates made of `n`: one an element, or one a head.
fn gate(g: &mut LlmGraph<'_>, x: TensorId, n: TensorId, il: usize) -> TensorId {
    let (n_head, n_tokens) = (g.hp.layers[il].n_head, g.n_tokens);
    let ne = g[x].ne;
    let gate = g.linear(n, Kind::AttnGate, il);
    let gate = g.unary(Unary::Sigmoid, gate);
    if g[gate].ne == ne {
        return g.mul(x, gate);
    }
    let heads = g.reshape(x, [ne[0] / n_head.max(1), n_head, n_tokens, 1]);
    let gate = g.reshape(gate, [1, n_head, n_tokens, 1]);
    let gated = g.mul(heads, gate);
    g.reshape(gated, ne)
}
