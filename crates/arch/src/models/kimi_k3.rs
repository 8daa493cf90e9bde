//! Kimi K3: Kimi Linear with attention over earlier states of the residual stream, experts that
//! work on a narrower stream, and a soft-limited SiLU.

use super::{Architecture, LATENT, kda};
use crate::Result;
use crate::graph::{Ffn, LlmGraph, MoeOptions, Scale};
use crate::hparams::{Decay, Hparams, limits};
use crate::keys::Keys;
use crate::names::{Global, Kind, Part};
use vramfit_ggml::{Op, TensorId, Type};

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[Architecture::new("kimi-k3", graph)
    .whole()
    .constants(&["expert_weights_scale"])
    .leaves_scales(&[Scale::Qkv, Scale::AttnOutput, Scale::Output])
    .reads(hparams)
    .graph_room(160, 64)
    .no_scan()
    .unadapted(&[LATENT, kda::DELTA, BESIDE_EXPERTS])
    .output_unadapted()];

/// What else it multiplies without asking adapters: all but the experts.
const BESIDE_EXPERTS: &[Kind] = &[
    Kind::AttnGate,
    Kind::AttnOutput,
    Kind::FfnGate,
    Kind::FfnUp,
    Kind::FfnDown,
    Kind::FfnGateInp,
    Kind::FfnRoutedDown,
    Kind::FfnRoutedUp,
    Kind::FfnGateShexp,
    Kind::FfnUpShexp,
    Kind::FfnDownShexp,
];

fn hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    kda::hparams(keys, hp)?;
    if keys.float("kda.gate_lower_bound")?.is_some() {
        hp.kda.decay = Decay::NegatedSigmoid;
    }
    let block = keys.int("attn_res.block_size", limits::LAYERS)?;
    hp.kda.res_block = block.unwrap_or(0) as usize;
    let limit = keys.float("activation.situ_linear_beta")?;
    hp.kda.situ_limits_up = limit.is_some_and(|limit| limit > 0.0);
    Ok(())
}

fn graph(g: &mut LlmGraph<'_>) {
    let every = g.hp.kda.res_block;
    let mut x = g.embed(false);
    let mut earlier = None;
    for il in 0..g.hp.n_layer() {
        let score = g.optional(il, Kind::AttnResScore, Part::Weight);
        let cur = with_earlier(g, x, earlier, score);
        let is_checkpoint = every > 0 && il.is_multiple_of(every);
        if is_checkpoint {
            earlier = Some(pushed(g, x, earlier));
        }
        let n = g.norm(cur, Kind::AttnNorm, il);
        g.expand(n);
        let mut h = kda::mix(g, n, false, il);
        if !is_checkpoint {
            h = g.add(x, h);
        }
        let score = g.optional(il, Kind::FfnResScore, Part::Weight);
        let cur = with_earlier(g, h, earlier, score);
        let n = g.norm(cur, Kind::FfnNorm, il);
        let cur = ffn(g, n, il);
        x = g.add(h, cur);
        x = g.control(x, il);
    }
    let score = g.output_weight(Global::OutputResScore, Part::Weight);
    let x = with_earlier(g, x, earlier, score);
    let x = g.output_rows(x);
    let embd = g.final_norm(x);
    g.lm_head(embd, embd);
}

/// `[n_embd, checkpoints, n_tokens]` with `x` behind.
fn pushed(g: &mut LlmGraph<'_>, x: TensorId, earlier: Option<TensorId>) -> TensorId {
    let (n_embd, n_tokens) = (g.hp.n_embd, g.n_tokens);
    let x = g.reshape(x, [n_embd, 1, n_tokens, 1]);
    earlier.map_or(x, |earlier| g.concat(earlier, x, 1))
}

/// The stream and its checkpoints, summed by the softmax of their scores.
fn with_earlier(
    g: &mut LlmGraph<'_>,
    x: TensorId,
    earlier: Option<TensorId>,
    score: Option<TensorId>,
) -> TensorId {
    let (Some(earlier), Some(score)) = (earlier, score) else {
        return x;
    };
    let (n_embd, n_tokens, n) = (g.hp.n_embd, g.n_tokens, g[earlier].ne[1]);
    let [of_earlier, of_x] = [earlier, x].map(|t| {
        let t = g.rms(t);
        let t = g.mul(t, score);
        g.sum_rows(t)
    });
    let of_earlier = g.reshape(of_earlier, [n, n_tokens, 1, 1]);
    let scores = g.concat(of_earlier, of_x, 0);
    let probs = g.soft_max(scores, None, None);
    let row = g[probs].nb[1];
    let [of_earlier, of_x] = [n, 1].map(|n| {
        let part = g.view_2d(probs, [n, n_tokens], row);
        g.cont(part)
    });
    let shape = [n_embd, n_tokens, 1, 1];
    let sum = g.new_tensor(Op::Dsv4HcPre, Type::F32, shape, &[earlier, of_earlier]);
    let own = g.mul(x, of_x);
    g.add(sum, own)
}

/// Dense, or experts on a narrower stream and a shared one on the full.
fn ffn(g: &mut LlmGraph<'_>, n: TensorId, il: usize) -> TensorId {
    let activation = Ffn::Situ {
        limits_up: g.hp.kda.situ_limits_up,
    };
    if !g.has(il, Kind::FfnGateInp) {
        return g.ffn(n, activation, il);
    }
    let options = MoeOptions {
        activation,
        ..MoeOptions::of_file(&g.hp.moe)
    };
    let mut cur = n;
    if g.has(il, Kind::FfnRoutedDown) {
        cur = g.linear(n, Kind::FfnRoutedDown, il);
    }
    let logits = g.linear(n, Kind::FfnGateInp, il);
    let mut routed = g.moe_routed(cur, logits, options, il);
    if g.has(il, Kind::FfnRoutedNorm) {
        routed = g.norm(routed, Kind::FfnRoutedNorm, il);
    }
    if g.has(il, Kind::FfnRoutedUp) {
        routed = g.linear(routed, Kind::FfnRoutedUp, il);
    }
    if !g.has(il, Kind::FfnGateShexp) {
        return routed;
    }
    let shared = g.shared_expert(n, activation, il);
    g.add(routed, shared)
}
