//! Granite with adapters in the model: some tokens switch to an adapter, and an attention head with a
//! cache of its own remembers which one is on.

use super::Architecture;
use crate::Result;
use crate::graph::LlmGraph;
use crate::hparams::{Hparams, LayerHparams};
use crate::keys::Keys;
use crate::names::{Kind, Part};
use vramfit_ggml::{Op, TensorId, Type, Unary};

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[Architecture::new("graniteswitch", graph)
    .constants(&["embedding_scale", "logit_scale", "residual_scale"])
    .reads(hparams)
    .unadapted(&[&[
        Kind::AttnQkv,
        Kind::AttnOutput,
        Kind::FfnGate,
        Kind::FfnUp,
        Kind::FfnDown,
    ]])];

/// The router is one layer more, of one head; its weights are none.
fn hparams(_: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.scales_logits = true;
    let Some(last) = hp.layers.last().copied() else {
        return Ok(());
    };
    hp.layers.push(LayerHparams {
        n_head: 1,
        n_head_kv: 1,
        block: hp.n_layer_all,
        is_cached: true,
        ..last
    });
    hp.n_layer_all += 1;
    hp.n_layer_kv = hp.n_layer_all;
    Ok(())
}

fn graph(g: &mut LlmGraph<'_>) {
    let (_, mut x) = g.token_rows(); // of the tokens that adapters' tokens stand for
    if g.hp.scales_embeddings {
        x = g.scale(x);
    }
    g.build_inputs();
    let mut adapters = router(g);
    for il in 0..g.hp.n_layer() {
        x = layer(g, x, &mut adapters, il);
        x = g.control(x, il);
    }
    let embd = g.final_norm(x);
    g.lm_head(embd, embd);
}

/// The adapter of each token.
fn router(g: &mut LlmGraph<'_>) -> TensorId {
    let (il, n_tokens) = (g.hp.n_layer(), g.n_tokens);
    let head = g.hp.layers[il].n_embd_head_k;
    let qkv = ["router_q", "router_ksig", "router_vval"].map(|name| {
        let signal = g.input(name, Type::F32, [n_tokens, 1, 1, 1]);
        let signal = g.reshape(signal, [1, 1, n_tokens, 1]);
        g.pad_to(signal, head)
    });
    let found = g.attend(qkv, il);
    let row = g[found].nb[1];
    let slot = g.view_2d(found, [1, n_tokens], row);
    let slot = g.cont(slot);
    let slot = g.reshape(slot, [n_tokens, 1, 1, 1]);
    let slot = g.map(Op::Clamp, slot);
    let slot = g.unary(Unary::Round, slot);
    g.cast(slot, Type::I32)
}

fn layer(g: &mut LlmGraph<'_>, x: TensorId, adapters: &mut TensorId, il: usize) -> TensorId {
    let n = g.norm(x, Kind::AttnNorm, il);
    let qkv = qkv(g, n, *adapters, il);
    let qkv = if g.hp.no_rope {
        qkv
    } else {
        let factors = g.rope_factors(il);
        g.rotate_qk(qkv, factors)
    };
    let cur = g.attend(qkv, il);
    let cur = switched(g, cur, Kind::AttnOutput, *adapters, il);
    let cur = g.last_rows(il, cur);
    let x = g.last_rows(il, x);
    if il + 1 == g.hp.n_layer() {
        let n = g[*adapters].ne[0];
        let ids = g.reshape(*adapters, [1, n, 1, 1]);
        let ids = g.output_rows(ids);
        let n = g[ids].ne[1];
        *adapters = g.reshape(ids, [n, 1, 1, 1]);
    }
    let cur = residual(g, cur);
    let h = g.add(cur, x);
    let n = g.norm(h, Kind::FfnNorm, il);
    let [gate, up] = [Kind::FfnGate, Kind::FfnUp].map(|kind| switched(g, n, kind, *adapters, il));
    let gate = g.unary(Unary::Silu, gate);
    let cur = g.mul(gate, up);
    let cur = switched(g, cur, Kind::FfnDown, *adapters, il);
    let cur = residual(g, cur);
    g.add(cur, h)
}

fn residual(g: &mut LlmGraph<'_>, x: TensorId) -> TensorId {
    if g.hp.scales_residual { g.scale(x) } else { x }
}

/// Q, K and V of one matrix, each with its own adapters.
fn qkv(g: &mut LlmGraph<'_>, n: TensorId, adapters: TensorId, il: usize) -> [TensorId; 3] {
    let (shape, n_tokens) = (g.hp.layers[il], g.n_tokens);
    let all = g.linear(n, Kind::AttnQkv, il);
    let row = g[all].nb[1];
    let parts = [
        (Kind::AttnQ, shape.n_embd_head_k, shape.n_head),
        (Kind::AttnK, shape.n_embd_head_k, shape.n_head_kv),
        (Kind::AttnV, shape.n_embd_head_v, shape.n_head_kv),
    ];
    parts.map(|(kind, head, n_head)| {
        let part = g.view_2d(all, [head * n_head, n_tokens], row);
        let part = g.cont(part);
        let delta = delta(g, n, kind, adapters, il);
        let part = g.add(part, delta);
        g.reshape(part, [head, n_head, n_tokens, 1])
    })
}

/// `W x` and what each token's adapter adds.
fn switched(
    g: &mut LlmGraph<'_>,
    x: TensorId,
    kind: Kind,
    adapters: TensorId,
    il: usize,
) -> TensorId {
    let base = g.linear(x, kind, il);
    let delta = delta(g, x, kind, adapters, il);
    g.add(base, delta)
}

/// `B A x` of each token's adapter.
fn delta(g: &mut LlmGraph<'_>, x: TensorId, kind: Kind, adapters: TensorId, il: usize) -> TensorId {
    let [n, n_tokens, ..] = g[x].ne;
    let x = g.reshape(x, [n, 1, n_tokens, 1]);
    let ids = g.reshape(adapters, [1, n_tokens, 1, 1]);
    let mut cur = x;
    for part in [Part::LoraA, Part::LoraB] {
        let w = g.part(il, kind, part);
        cur = g.mul_mat_id(w, cur, ids);
    }
    let n = g[cur].ne[0];
    g.reshape(cur, [n, n_tokens, 1, 1])
}
