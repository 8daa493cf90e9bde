//! Towers for sounds that are no Whisper's: convolutions over frames and bins, codebooks.

use super::audio::convolved_twice;
use super::blocks::{PostNorm, Rope, Vit};
use super::graph::{NormKind, TowerGraph, plain};
use super::hparams::{Activation, MAX_PIXELS, MAX_QUERY, TowerHparams};
use super::kinds::{ProjectorKind, common, kind};
use crate::keys::Keys;
use crate::{Error, Result};
use vramfit_ggml::{Op, TensorId, Type};

pub(super) static KINDS: &[ProjectorKind] = &[
    kind(
        "qwen3a",
        |_, hp| {
            hp.activation = Activation::GeluErf;
            Ok(())
        },
        &[
            "a.conv2d.1.+",
            "a.conv2d.2.+",
            "a.conv2d.3.+",
            "a.conv_out.weight",
            "mm.a.mlp.1.+",
            "mm.a.mlp.2.+",
        ],
        qwen3a,
    ),
    kind(
        "dots3note_a",
        common,
        &[
            "a.conv2d.1.+",
            "a.conv2d.2.+",
            "a.conv2d.3.+",
            "a.conv_out.weight",
            "mm.a.norm_pre.+",
            "mm.a.mlp.1.+",
            "mm.a.mlp.3.+",
        ],
        dots3note,
    ),
    kind(
        "mimo_audio",
        mimo,
        &[
            "a.conv1d.1.+",
            "a.conv1d.2.+",
            "a.downsample.conv.weight",
            "a.downsample.norm.+",
            "a.rvq.codebook.weight",
            "mm.a.code_embd.weight",
            "mm.a.local_blk.#.attn_q.+",
            "mm.a.local_blk.#.attn_k.+",
            "mm.a.local_blk.#.attn_v.+",
            "mm.a.local_blk.#.attn_out.weight",
            "mm.a.local_blk.#.ffn_gate.weight",
            "mm.a.local_blk.#.ffn_up.weight",
            "mm.a.local_blk.#.ffn_down.weight",
            "mm.a.local_blk.#.ln1.weight",
            "mm.a.local_blk.#.ln2.weight",
            "mm.a.local_norm.weight",
            "mm.a.mlp.1.weight",
            "mm.a.mlp.2.weight",
        ],
        mimo_audio,
    ),
];

/// Its modes are -1 for the layers that see all frames.
fn mimo(keys: &Keys<'_>, hp: &mut TowerHparams) -> Result<()> {
    const SIZES: &str = "audio.rvq.codebook_size";
    let n_books = keys.require("audio.rvq.num_quantizers", MAX_QUERY)?;
    let sizes = keys.array(SIZES, n_books as usize, 0)?;
    hp.codebooks = sizes.ok_or_else(|| keys.missing(SIZES))?;
    if hp.codebooks.iter().any(|&n| n <= 0) {
        return Err(Error::KeyRange {
            key: format!("clip.{SIZES}"),
            value: 0,
            min: 1,
            max: MAX_PIXELS,
        });
    }
    keys.require("audio.window_size", MAX_QUERY)?;
    hp.read_modes(keys, "audio.wa_pattern_mode")?;
    hp.read_second(keys, "audio.local_block_count")?;
    hp.chunk = keys.require("audio.local_group_size", MAX_QUERY)?;
    hp.activation = Activation::GeluErf;
    Ok(())
}

/// Three convolutions that each halve frames and bins.
fn convolved(b: &mut TowerGraph<'_>, mut x: TensorId) -> TensorId {
    for name in ["a.conv2d.1", "a.conv2d.2", "a.conv2d.3"] {
        let kernel = b.need(&format!("{name}.weight"));
        x = b.conv_2d(kernel, x, 2, 1);
        x = b.add_channels(x, &format!("{name}.bias"));
        x = b.activate(x, Activation::GeluErf);
    }
    b.channels_last(x)
}

/// Qwen3's: hundred frames at a time.
fn qwen3a(b: &mut TowerGraph<'_>) -> TensorId {
    const CHUNK: i64 = 100;
    let image = b.raw(1);
    let [n_frames, n_mel] = b.hp.warmup;
    let n_chunks = (n_frames / CHUNK).max(1);
    let row = |n: i64| Type::F32.row_size(n.max(0) as u64);
    let nb = [row(n_frames), row(CHUNK), row(CHUNK)];
    let x = b.g.view_4d(image, [CHUNK, n_mel, 1, n_chunks], nb);
    let x = b.g.cont(x);
    let x = convolved(b, x);
    let [h, c, w, n] = b.g[x].ne;
    let ne = [h.saturating_mul(c), w.saturating_mul(n), 1, 1];
    let x = b.g.reshape(x, ne);
    let x = plain(b, "a.conv_out.weight", x);
    let n_pos = b.g[x].ne[1];
    let table = b.need("a.position_embd.weight");
    let g = &mut b.g;
    let (wide, nb) = (g[table].ne[0], g[table].nb[1]);
    let positions = g.view_2d(table, [wide, n_pos / n_chunks], nb);
    let positions = g.repeat(positions, [wide, n_pos, 1, 1]);
    let x = g.add(x, positions);
    let x = b.vit(x, n_pos, &Vit::new(NormKind::Layer));
    b.mlp(x, "mm.a.mlp.1", Activation::GeluErf, "mm.a.mlp.2")
}

fn dots3note(b: &mut TowerGraph<'_>) -> TensorId {
    let image = b.raw(1);
    let x = convolved(b, image);
    let [h, c, w, _] = b.g[x].ne;
    let x = b.g.reshape(x, [h.saturating_mul(c), w, 1, 1]);
    let x = plain(b, "a.conv_out.weight", x);
    let n_pos = b.g[x].ne[1];
    let vit = Vit {
        rope: Some(Rope::Multi(b.ids("positions", n_pos))),
        ..Vit::new(NormKind::Rms)
    };
    let x = b.vit(x, n_pos, &vit);
    let x = b.norm(x, NormKind::Layer, "mm.a.norm_pre");
    b.mlp(x, "mm.a.mlp.1", Activation::GeluErf, "mm.a.mlp.3")
}

/// MiMo's: frames become entries of codebooks, groups of them go through a second transformer.
fn mimo_audio(b: &mut TowerGraph<'_>) -> TensorId {
    const KEPT: usize = 2;
    const ALL: i64 = -1;
    let x = convolved_twice(b);
    let n_pos = b.g[x].ne[1];
    let positions = b.ids("mimo_audio_positions", n_pos);
    let [all, window] = ["mimo_audio_full_mask", "mimo_audio_window_mask"]
        .map(|name| b.g.input(name, Type::F32, [n_pos, n_pos, 1, 1]));
    let mask = |&mode: &i64| Some(if mode == ALL { all } else { window });
    let vit = Vit {
        rope: Some(Rope::Multi(positions)),
        masks: b.hp.modes.iter().map(mask).collect(),
        post_norm: PostNorm::Left,
        ..Vit::new(NormKind::Layer)
    };
    b.tap = Some(KEPT);
    let x = b.vit(x, n_pos, &vit);
    let n = b.hp.n_embd;
    let x = b.g.reshape(x, [n, n_pos, 1, 1]);
    let x = match b.tapped {
        Some(kept) => b.g.add(x, kept),
        None => x,
    };
    let x = b.norm(x, NormKind::Layer, "a.post_ln");
    let x = b.transposed(x);
    let kernel = b.need("a.downsample.conv.weight");
    let x = b.conv_1d_padded(kernel, x, 2, 0);
    let x = b.activate(x, Activation::GeluErf);
    let x = b.transposed(x);
    let x = b.norm(x, NormKind::Layer, "a.downsample.norm");
    let x = coded(b, x);
    in_groups(b, x)
}

/// The nearest entry of each codebook in turn, then what the model's own table says to each.
fn coded(b: &mut TowerGraph<'_>, x: TensorId) -> TensorId {
    let (books, table) = (
        b.need("a.rvq.codebook.weight"),
        b.need("mm.a.code_embd.weight"),
    );
    let sizes = &b.hp.codebooks;
    let g = &mut b.g;
    let ([dim, ..], [_, nb, ..]) = (g[books].ne, g[books].nb);
    let mut rest = x;
    let mut codes = Vec::new();
    for &n in sizes {
        let book = g.view_2d(books, [dim, n], nb);
        let book = g.cont(book);
        let norm = g.map(Op::Sqr, book);
        let norm = g.sum_rows(norm);
        let norm = g.transpose(norm);
        let norm = g.cont(norm);
        let dot = g.mul_mat(book, rest);
        let dot = g.scale(dot);
        let scores = g.sub(dot, norm);
        let code = g.argmax(scores);
        codes.push(code);
        let entry = g.get_rows(book, code);
        rest = g.sub(rest, entry);
    }
    let ([dim, n, ..], [_, nb, ..]) = (g[table].ne, g[table].nb);
    let mut sum: Option<TensorId> = None;
    for code in codes {
        let rows = g.view_2d(table, [dim, n], nb);
        let rows = g.cont(rows);
        let row = g.get_rows(rows, code);
        sum = Some(match sum {
            Some(sum) => g.add(sum, row),
            None => row,
        });
    }
    sum.unwrap_or(x)
}

/// A transformer over groups of frames; a group becomes one token.
fn in_groups(b: &mut TowerGraph<'_>, x: TensorId) -> TensorId {
    let (n, group, rows) = (b.hp.n_embd, b.hp.chunk.max(1), b.g[x].ne[1]);
    let n_groups = (rows + group - 1) / group;
    let n_pos = n_groups.saturating_mul(group);
    let mut x = match n_pos - rows {
        0 => x,
        pad => b.g.pad_by(x, [0, pad, 0, 0]),
    };
    let positions = b.ids("mimo_audio_local_positions", n_pos);
    let mask =
        b.g.input("mimo_audio_local_mask", Type::F32, [n_pos, n_pos, 1, 1]);
    for il in 0..b.hp.second.n_layer {
        let name = |kind: &str| format!("mm.a.local_blk.{il}.{kind}");
        let y = b.norm(x, NormKind::Rms, &name("ln1"));
        let ne = [b.hp.n_embd_head, b.hp.n_head, n_pos, 1];
        let parts = ["attn_q", "attn_k", "attn_v"].map(|kind| b.linear(y, &name(kind)));
        let [q, k, v] = parts.map(|part| b.g.reshape(part, ne));
        let [q, k] = [q, k].map(|part| b.g.rope(part, positions, None));
        let y = b.attention([q, k, v], Some(mask));
        let y = plain(b, &name("attn_out.weight"), y);
        x = b.g.add(x, y);
        let y = b.norm(x, NormKind::Rms, &name("ln2"));
        let [up, gate, down] = ["ffn_up", "ffn_gate", "ffn_down"].map(name);
        let y = b.ffn(y, [&up, &gate, &down], Activation::Silu, &plain);
        x = b.g.add(x, y);
    }
    let x = b.norm(x, NormKind::Rms, "mm.a.local_norm");
    let x = b.g.reshape(x, [n.saturating_mul(group), n_groups, 1, 1]);
    b.mlp(x, "mm.a.mlp.1", Activation::GeluErf, "mm.a.mlp.2")
}
