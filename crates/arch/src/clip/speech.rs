//! Speech output: encoders of a speaker's voice, and what makes sounds of a model's results. The latter are loaded and
//! not warmed up: what they compute with is taken when they first speak.

use super::graph::{NormKind, TowerGraph, plain};
use super::hparams::Activation;
use super::kinds::{ProjectorKind, common, kind, silent};
use vramfit_ggml::{Flags, Op, TensorId, Type, Unary};

pub(super) static KINDS: &[ProjectorKind] = &[
    kind(
        "qwen3tts_spkenc",
        common,
        &[
            "a.conv1d.0.+",
            "a.blk.?.conv_pw1.+",
            "a.blk.?.conv_pw2.+",
            "a.blk.?.se_conv1.+",
            "a.blk.?.se_conv2.+",
            "a.blk.?.res2.?.+",
            "a.conv_out.+",
            "a.asp_attn.+",
            "a.asp_tdnn.+",
            "mm.a.fc.+",
        ],
        qwen3_speaker,
    ),
    kind(
        "pockettts_spkenc",
        common,
        &[
            "a.seanet.conv_in.+",
            "a.seanet.conv_out.+",
            "a.seanet.blk.?.res_conv1.+",
            "a.seanet.blk.?.res_conv2.+",
            "a.seanet.blk.?.scale_conv.+",
            "a.downsample.conv.weight",
            "a.speaker_proj.weight",
        ],
        pocket_speaker,
    ),
    silent(
        "qwen3tts_gen",
        &[
            "a.gen.code.proj_in.+",
            "a.gen.code.embd.weight",
            "a.gen.code.head.weight",
            "a.gen.code.out_embd.weight",
            "a.gen.code.output_norm.weight",
            "a.gen.wav.quant.first.in_proj.weight",
            "a.gen.wav.quant.first.out_proj.weight",
            "a.gen.wav.quant.first.codebook.weight",
            "a.gen.wav.quant.rest.in_proj.weight",
            "a.gen.wav.quant.rest.out_proj.weight",
            "a.gen.wav.quant.rest.codebook.weight",
            "a.gen.wav.pre_conv.+",
            "a.gen.wav.tfm.in_proj.+",
            "a.gen.wav.tfm.out_proj.+",
            "a.gen.wav.tfm.output_norm.weight",
            "a.gen.wav.tfm.blk.?.attn_q.weight",
            "a.gen.wav.tfm.blk.?.attn_k.weight",
            "a.gen.wav.tfm.blk.?.attn_v.weight",
            "a.gen.wav.tfm.blk.?.attn_out.weight",
            "a.gen.wav.tfm.blk.?.ln1.weight",
            "a.gen.wav.tfm.blk.?.ln2.weight",
            "a.gen.wav.tfm.blk.?.ls1.weight",
            "a.gen.wav.tfm.blk.?.ls2.weight",
            "a.gen.wav.tfm.blk.?.ffn_gate.weight",
            "a.gen.wav.tfm.blk.?.ffn_up.weight",
            "a.gen.wav.tfm.blk.?.ffn_down.weight",
            "a.gen.wav.up.blk.?.conv.+",
            "a.gen.wav.up.blk.?.dwconv.+",
            "a.gen.wav.up.blk.?.norm.+",
            "a.gen.wav.up.blk.?.pw1.+",
            "a.gen.wav.up.blk.?.pw2.+",
            "a.gen.wav.up.blk.?.gamma",
            "a.gen.wav.dac.entry.+",
            "a.gen.wav.dac.blk.?.snake.alpha",
            "a.gen.wav.dac.blk.?.snake.beta",
            "a.gen.wav.dac.blk.?.conv.+",
            "a.gen.wav.dac.blk.?.res.?.act1.alpha",
            "a.gen.wav.dac.blk.?.res.?.act1.beta",
            "a.gen.wav.dac.blk.?.res.?.conv1.+",
            "a.gen.wav.dac.blk.?.res.?.act2.alpha",
            "a.gen.wav.dac.blk.?.res.?.act2.beta",
            "a.gen.wav.dac.blk.?.res.?.conv2.+",
            "a.gen.wav.dac.post_snake.alpha",
            "a.gen.wav.dac.post_snake.beta",
            "a.gen.wav.dac.post_conv.+",
        ],
    ),
    silent(
        "pockettts_gen",
        &[
            "a.gen.flow.input_proj.+",
            "a.gen.flow.cond_embd.+",
            "a.gen.flow.final.ada.+",
            "a.gen.flow.final.proj.+",
            "a.gen.flow.time.?.freqs",
            "a.gen.flow.time.?.up.+",
            "a.gen.flow.time.?.down.+",
            "a.gen.flow.time.?.norm",
            "a.gen.flow.blk.?.norm.+",
            "a.gen.flow.blk.?.up.+",
            "a.gen.flow.blk.?.down.+",
            "a.gen.flow.blk.?.ada.+",
            "a.gen.out_eos.+",
            "a.gen.input_linear.weight",
            "a.gen.emb_mean",
            "a.gen.emb_std",
            "a.gen.wav.quant_out.weight",
            "a.gen.wav.upsample.weight",
            "a.gen.wav.seanet.conv_in.+",
            "a.gen.wav.seanet.conv_out.+",
            "a.gen.wav.seanet.blk.?.res_conv1.+",
            "a.gen.wav.seanet.blk.?.res_conv2.+",
            "a.gen.wav.seanet.blk.?.scale_conv.+",
            "a.gen.wav.tfm.blk.*.ln1.+",
            "a.gen.wav.tfm.blk.*.attn_q.weight",
            "a.gen.wav.tfm.blk.*.attn_k.weight",
            "a.gen.wav.tfm.blk.*.attn_v.weight",
            "a.gen.wav.tfm.blk.*.attn_out.weight",
            "a.gen.wav.tfm.blk.*.ls1.weight",
            "a.gen.wav.tfm.blk.*.ln2.+",
            "a.gen.wav.tfm.blk.*.ffn_up.weight",
            "a.gen.wav.tfm.blk.*.ffn_down.weight",
            "a.gen.wav.tfm.blk.*.ls2.weight",
        ],
    ),
];

/// A convolution over frames that keeps their number: `[c, t]` to `[c', t]`, the ends mirrored.
fn mirrored(b: &mut TowerGraph<'_>, x: TensorId, stem: &str, dilation: i64) -> TensorId {
    let kernel = b.need(&format!("{stem}.weight"));
    let bias = b.need(&format!("{stem}.bias"));
    let [k, c_in, c_out, _] = b.g[kernel].ne;
    let pad = (k - 1).saturating_mul(dilation) / 2;
    let mut x = b.transposed(x);
    let g = &mut b.g;
    if pad > 0 {
        x = g.pad_reflect_1d(x, pad);
    }
    let n = g[x].ne[0];
    let x = g.reshape(x, [n, c_in, 1, 1]);
    // The kernel is there for its shape alone.
    let shape = g.new_tensor(Op::None, Type::F32, [k, c_in, 1, 1], &[]);
    let columns = g.im2col_1d_by(shape, x, [1, 0, dilation], Type::F32);
    let (row, n_out) = (k.saturating_mul(c_in), g[columns].ne[1]);
    let columns = g.reshape(columns, [row, n_out, 1, 1]);
    let matrix = g.reshape(kernel, [row, c_out, 1, 1]);
    let y = g.mul_mat(matrix, columns);
    g[y].flags.insert(Flags::PREC_F32);
    let bias = g.reshape(bias, [c_out, 1, 1, 1]);
    g.add(y, bias)
}

fn relu(b: &mut TowerGraph<'_>, x: TensorId) -> TensorId {
    b.g.unary(Unary::Relu, x)
}

/// The mean of all frames, `[c, 1]`.
fn mean(b: &mut TowerGraph<'_>, x: TensorId) -> TensorId {
    let x = b.transposed(x);
    let x = b.g.mean(x);
    b.transposed(x)
}

/// A block of ECAPA-TDNN: channels in eight parts, each convolved with what the one before came to, then a gate.
fn speaker_block(b: &mut TowerGraph<'_>, inp: TensorId, block: &str, dilation: i64) -> TensorId {
    const PARTS: i64 = 8;
    let x = mirrored(b, inp, &format!("{block}.conv_pw1"), 1);
    let x = relu(b, x);
    let ([c, t, ..], nb) = (b.g[x].ne, b.g[x].nb[1]);
    let mut all: Option<TensorId> = None;
    let mut before: Option<TensorId> = None;
    for part in 0..PARTS {
        let view = b.g.view_2d(x, [c / PARTS, t], nb);
        let mut y = b.g.cont(view);
        if part > 0 {
            if let Some(before) = before {
                y = b.g.add(y, before);
            }
            y = mirrored(b, y, &format!("{block}.res2.{}", part - 1), dilation);
            y = relu(b, y);
            before = Some(y);
        }
        all = Some(match all {
            Some(all) => b.g.concat(all, y, 0),
            None => y,
        });
    }
    let x = mirrored(b, all.unwrap_or(x), &format!("{block}.conv_pw2"), 1);
    let x = relu(b, x);
    let gate = mean(b, x);
    let gate = mirrored(b, gate, &format!("{block}.se_conv1"), 1);
    let gate = relu(b, gate);
    let gate = mirrored(b, gate, &format!("{block}.se_conv2"), 1);
    let gate = b.g.unary(Unary::Sigmoid, gate);
    let x = b.g.mul(x, gate);
    b.g.add(x, inp)
}

/// What is left of a sum of squares: a little is added, then the root.
fn root(b: &mut TowerGraph<'_>, x: TensorId) -> TensorId {
    let x = b.g.scale(x);
    b.g.map(Op::Sqrt, x)
}

/// Mean and deviation over time, weighed by attention: `[2 c, 1]`.
fn statistics(b: &mut TowerGraph<'_>, x: TensorId) -> TensorId {
    let ne = b.g[x].ne;
    let centre = mean(b, x);
    let centre = b.g.repeat(centre, ne);
    let apart = b.g.sub(x, centre);
    let squares = b.g.map(Op::Sqr, apart);
    let variance = mean(b, squares);
    let deviation = root(b, variance);
    let deviation = b.g.repeat(deviation, ne);
    let seen = b.g.concat(x, centre, 0);
    let seen = b.g.concat(seen, deviation, 0);
    let y = mirrored(b, seen, "a.asp_tdnn", 1);
    let y = relu(b, y);
    let y = b.g.unary(Unary::Tanh, y);
    let y = mirrored(b, y, "a.asp_attn", 1);
    let y = b.transposed(y);
    let y = b.g.soft_max(y, None, None);
    let weights = b.transposed(y);
    let sum = |b: &mut TowerGraph<'_>, x: TensorId| {
        let x = b.transposed(x);
        let x = b.g.mean(x);
        let x = b.g.scale(x);
        b.transposed(x)
    };
    let weighed = b.g.mul(weights, x);
    let centre = sum(b, weighed);
    let centres = b.g.repeat(centre, ne);
    let apart = b.g.sub(x, centres);
    let squares = b.g.map(Op::Sqr, apart);
    let squares = b.g.mul(weights, squares);
    let variance = sum(b, squares);
    let deviation = root(b, variance);
    b.g.concat(centre, deviation, 0)
}

fn qwen3_speaker(b: &mut TowerGraph<'_>) -> TensorId {
    let image = b.raw(1);
    let [n_frames, n_mel] = b.hp.warmup;
    let x = b.g.reshape(image, [n_frames, n_mel, 1, 1]);
    let x = b.transposed(x);
    let x = mirrored(b, x, "a.conv1d.0", 1);
    let x = relu(b, x);
    let first = speaker_block(b, x, "a.blk.1", 2);
    let second = speaker_block(b, first, "a.blk.2", 3);
    let third = speaker_block(b, second, "a.blk.3", 4);
    let x = b.g.concat(first, second, 0);
    let x = b.g.concat(x, third, 0);
    let x = mirrored(b, x, "a.conv_out", 1);
    let x = relu(b, x);
    let x = statistics(b, x);
    let x = mirrored(b, x, "mm.a.fc", 1);
    let n = b.g[x].ne[0];
    let x = b.g.reshape(x, [n, 1, 1, 1]);
    b.g.cont(x)
}

/// What stands before the first frame.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    Zeros,
    /// The first frame, again and again.
    First,
}

/// A convolution that sees frames before alone: `[t, c]` to `[t / stride, c']`.
fn causal(b: &mut TowerGraph<'_>, x: TensorId, stem: &str, stride: i64, start: Before) -> TensorId {
    let kernel = b.need(&format!("{stem}.weight"));
    let (k, [n, channels, ..]) = (b.g[kernel].ne[0], b.g[x].ne);
    let before = (k - stride).max(0);
    let n_out = (n - stride).max(0).saturating_add(stride - 1) / stride;
    let behind = n_out.saturating_mul(stride).saturating_add(stride) - n;
    let g = &mut b.g;
    let x = match start {
        Before::First if before > 0 => {
            let nb = g[x].nb[1];
            let first = g.view_2d(x, [1, channels], nb);
            let first = g.repeat(first, [before, channels, 1, 1]);
            let x = g.concat(first, x, 0);
            g.pad_by(x, [behind, 0, 0, 0])
        }
        _ => g.pad_by(x, [before.saturating_add(behind), 0, 0, 0]),
    };
    let y = b.conv_1d_padded(kernel, x, stride, 0);
    let [n, c, ..] = b.g[y].ne;
    let y = b.g.reshape(y, [n, c, 1, 1]);
    match b.weight(&format!("{stem}.bias")) {
        Some(bias) => {
            let c = b.g[bias].ne[0];
            let bias = b.g.reshape(bias, [1, c, 1, 1]);
            b.g.add(y, bias)
        }
        None => y,
    }
}

fn elu(b: &mut TowerGraph<'_>, x: TensorId) -> TensorId {
    b.g.unary(Unary::Elu, x)
}

/// Mimi's encoder: convolutions that make 120 samples one frame, a transformer, one more convolution.
fn pocket_speaker(b: &mut TowerGraph<'_>) -> TensorId {
    const STRIDES: [i64; 3] = [4, 5, 6];
    const DOWN: i64 = 16;
    let image = b.raw(1);
    let ne = [b.hp.warmup[0], b.hp.warmup[1], 1, 1];
    let x = b.g.reshape(image, ne);
    let mut x = causal(b, x, "a.seanet.conv_in", 1, Before::Zeros);
    for (stage, stride) in STRIDES.into_iter().enumerate() {
        let name = |part: &str| format!("a.seanet.blk.{stage}.{part}");
        let y = elu(b, x);
        let y = causal(b, y, &name("res_conv1"), 1, Before::Zeros);
        let y = elu(b, y);
        let y = causal(b, y, &name("res_conv2"), 1, Before::Zeros);
        x = b.g.add(x, y);
        x = elu(b, x);
        x = causal(b, x, &name("scale_conv"), stride, Before::Zeros);
    }
    x = elu(b, x);
    x = causal(b, x, "a.seanet.conv_out", 1, Before::Zeros);
    x = b.transposed(x);
    let n_pos = b.g[x].ne[1];
    let positions = b.ids("inp_pos", n_pos);
    let mask = b.g.input("kq_mask", Type::F32, [n_pos, n_pos, 1, 1]);
    for il in 0..b.hp.n_layer {
        x = mimi_layer(b, x, [positions, mask], il);
    }
    x = b.transposed(x);
    x = causal(b, x, "a.downsample.conv", DOWN, Before::First);
    x = b.transposed(x);
    plain(b, "a.speaker_proj.weight", x)
}

fn mimi_layer(
    b: &mut TowerGraph<'_>,
    inp: TensorId,
    [positions, mask]: [TensorId; 2],
    il: usize,
) -> TensorId {
    let name = |kind: &str| format!("a.blk.{il}.{kind}");
    let n_pos = b.g[inp].ne[1];
    let ne = [b.hp.n_embd_head, b.hp.n_head, n_pos, 1];
    let x = b.norm(inp, NormKind::Layer, &name("ln1"));
    let parts = ["attn_q", "attn_k", "attn_v"];
    let parts = parts.map(|kind| plain(b, &name(&format!("{kind}.weight")), x));
    let [q, k, v] = parts.map(|part| b.g.reshape(part, ne));
    let [q, k] = [q, k].map(|part| b.g.rope(part, positions, None));
    let x = b.attention([q, k, v], Some(mask));
    let x = plain(b, &name("attn_out.weight"), x);
    let scale = b.need(&name("ls1.weight"));
    let x = b.g.mul(x, scale);
    let mid = b.g.add(x, inp);
    let x = b.norm(mid, NormKind::Layer, &name("ln2"));
    let x = plain(b, &name("ffn_up.weight"), x);
    let x = b.activate(x, Activation::Gelu);
    let x = plain(b, &name("ffn_down.weight"), x);
    let scale = b.need(&name("ls2.weight"));
    let x = b.g.mul(x, scale);
    b.g.add(x, mid)
}
