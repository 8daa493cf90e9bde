//! Towers for sounds.

use super::blocks::Vit;
use super::graph::{NormKind, TowerGraph, plain};
use super::hparams::{Activation, MAX_QUERY, TowerHparams};
use super::kinds::{ProjectorKind, kind};
use crate::Result;
use crate::keys::Keys;
use vramfit_ggml::{Glu, Op, TensorId, Unary};

fn stacks(keys: &Keys<'_>, hp: &mut TowerHparams) -> Result<()> {
    hp.activation = Activation::GeluErf;
    let factor = keys.int("audio.projector.stack_factor", MAX_QUERY)?;
    hp.stack_factor = factor.unwrap_or(0);
    Ok(())
}

pub(super) static KINDS: &[ProjectorKind] = &[
    kind(
        "ultravox",
        stacks,
        &[
            "a.conv1d.1.+",
            "a.conv1d.2.+",
            "mm.a.mlp.1.weight",
            "mm.a.mlp.2.weight",
            "mm.a.norm_pre.weight",
            "mm.a.norm_mid.weight",
        ],
        ultravox,
    ),
    kind(
        "qwen2a",
        stacks,
        &["a.conv1d.1.+", "a.conv1d.2.+", "mm.a.fc.+"],
        qwen2a,
    ),
    kind(
        "voxtral",
        stacks,
        &[
            "a.conv1d.1.+",
            "a.conv1d.2.+",
            "mm.a.mlp.1.weight",
            "mm.a.mlp.2.weight",
        ],
        voxtral,
    ),
    kind(
        "musicflamingo",
        stacks,
        &[
            "a.conv1d.1.+",
            "a.conv1d.2.+",
            "mm.a.mlp.1.+",
            "mm.a.mlp.2.+",
        ],
        music_flamingo,
    ),
    kind(
        "meralion",
        stacks,
        &[
            "a.conv1d.1.+",
            "a.conv1d.2.+",
            "mm.a.mlp.0.+",
            "mm.a.mlp.1.+",
            "mm.a.mlp.2.+",
            "mm.a.mlp.3.+",
            "mm.a.norm_pre.+",
        ],
        meralion,
    ),
    kind(
        "glma",
        stacks,
        &[
            "a.conv1d.1.+",
            "a.conv1d.2.+",
            "mm.a.mlp.1.+",
            "mm.a.mlp.2.+",
            "mm.a.norm_pre.+",
            "v.boi",
            "v.eoi",
        ],
        glma,
    ),
];

/// Two convolutions over time, the second one of every other place.
pub(super) fn convolved_twice(b: &mut TowerGraph<'_>) -> TensorId {
    let mut x = b.raw(1);
    for (name, stride) in [("a.conv1d.1", 1), ("a.conv1d.2", 2)] {
        let kernel = b.need(&format!("{name}.weight"));
        x = b.conv_1d(kernel, x, stride);
        let bias = b.need(&format!("{name}.bias"));
        x = b.g.add(x, bias);
        x = b.activate(x, Activation::GeluErf);
    }
    b.transposed(x)
}

/// Whisper's encoder: two convolutions over time, then a transformer.
fn whisper(b: &mut TowerGraph<'_>, halved: bool) -> TensorId {
    let n_pos = b.hp.warmup[0] / 2;
    let inp = convolved_twice(b);
    let table = b.need("a.position_embd.weight");
    let (n, nb) = (b.g[table].ne[0], b.g[table].nb[1]);
    let vit = Vit {
        positions: Some(b.g.view_2d(table, [n, n_pos], nb)),
        halved,
        ..Vit::new(NormKind::Layer)
    };
    b.vit(inp, n_pos, &vit)
}

/// `build_stack`: frames side by side become one token, the last one filled up, or left out.
fn stacked(b: &mut TowerGraph<'_>, x: TensorId) -> TensorId {
    if b.hp.stack_factor <= 1 {
        return x;
    }
    let wide = b.hp.n_embd.saturating_mul(b.hp.stack_factor);
    let g = &mut b.g;
    let n = g[x].n_elements();
    // GGML_PAD rounds by bits: right for powers of two alone, and taken as it is for other widths.
    let padded = n.saturating_add(wide - 1) & !(wide - 1);
    let (rows, pad) = (padded / wide.max(1), padded.saturating_sub(n));
    let x = if pad > 0 {
        let x = g.view_1d(x, n);
        g.pad_by(x, [pad, 0, 0, 0])
    } else {
        x
    };
    let nb = g[x].ty.row_size(wide.max(0) as u64);
    g.view_2d(x, [wide, rows], nb)
}

fn scaled_rms(b: &mut TowerGraph<'_>, x: TensorId, name: &str) -> TensorId {
    let x = b.g.map(Op::RmsNorm, x);
    let w = b.need(name);
    b.g.mul(x, w)
}

pub(super) fn ultravox(b: &mut TowerGraph<'_>) -> TensorId {
    let x = whisper(b, false);
    let x = stacked(b, x);
    let x = scaled_rms(b, x, "mm.a.norm_pre.weight");
    let x = plain(b, "mm.a.mlp.1.weight", x);
    let x = b.g.glu(Glu::Swiglu, x);
    let x = scaled_rms(b, x, "mm.a.norm_mid.weight");
    plain(b, "mm.a.mlp.2.weight", x)
}

pub(super) fn qwen2a(b: &mut TowerGraph<'_>) -> TensorId {
    let x = whisper(b, true);
    b.linear(x, "mm.a.fc")
}

pub(super) fn voxtral(b: &mut TowerGraph<'_>) -> TensorId {
    let x = whisper(b, true);
    let x = stacked(b, x);
    b.mlp(x, "mm.a.mlp.1", Activation::GeluErf, "mm.a.mlp.2")
}

pub(super) fn music_flamingo(b: &mut TowerGraph<'_>) -> TensorId {
    let x = whisper(b, true);
    b.mlp(x, "mm.a.mlp.1", Activation::GeluErf, "mm.a.mlp.2")
}

pub(super) fn meralion(b: &mut TowerGraph<'_>) -> TensorId {
    let x = whisper(b, false);
    let x = stacked(b, x);
    let x = b.norm(x, NormKind::Layer, "mm.a.norm_pre");
    let x = b.linear(x, "mm.a.mlp.0");
    let x = b.g.unary(Unary::Silu, x);
    let gate = b.linear(x, "mm.a.mlp.1");
    let gate = b.g.unary(Unary::Silu, gate);
    let pool = b.linear(x, "mm.a.mlp.2");
    let x = b.g.mul(gate, pool);
    b.linear(x, "mm.a.mlp.3")
}

pub(super) fn glma(b: &mut TowerGraph<'_>) -> TensorId {
    let x = whisper(b, false);
    let x = b.norm(x, NormKind::Layer, "mm.a.norm_pre");
    let x = stacked(b, x);
    let x = b.mlp(x, "mm.a.mlp.1", b.hp.activation, "mm.a.mlp.2");
    let (begin, end) = (b.need("v.boi"), b.need("v.eoi"));
    let x = b.g.concat(begin, x, 1);
    b.g.concat(x, end, 1)
}
