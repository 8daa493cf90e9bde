//! MiniMax-Text-01: lightning attention, whose state fades by a fixed slope a head, and full attention on
//! every eighth layer; what a block reads is added to what it makes.

use super::Architecture;
use crate::graph::{LlmGraph, MoeOptions, Scale};
use crate::hparams::{Hparams, Ssm, limits};
use crate::keys::Keys;
use crate::names::Kind;
use crate::{Error, Result};
use vramfit_ggml::{TensorId, Type, Unary};

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[Architecture::new("minimax-01", graph)
    .whole()
    .constants(&["residual_scale"])
    .leaves_scales(&[Scale::Qkv])
    .tapped()
    .reads(hparams)
    .large_graph()
    .reserves_one_sequence()];

/// The state of a layer is one matrix a head; there is no convolution.
fn hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.set_recurrent_layers(keys, 8)?;
    let Some(layer) = hp.layers.first() else {
        return Ok(());
    };
    let (n_head, head) = (layer.n_head, layer.n_embd_head_k);
    let d_inner = n_head.saturating_mul(head);
    if d_inner > limits::WIDTH {
        return Err(Error::KeyRange {
            key: "minimax-01.attention.key_length".to_string(),
            value: head,
            min: 1,
            max: limits::WIDTH / n_head.max(1),
        });
    }
    hp.ssm = Some(Ssm {
        d_conv: 1,
        d_inner,
        d_state: head,
        dt_rank: n_head,
        n_group: 0,
    });
    Ok(())
}

fn graph(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let slopes = Slopes::new(g);
    g.layers(x, |g, x, il| {
        let n = g.norm(x, Kind::AttnNorm, il);
        let cur = if g.hp.layers[il].is_recurrent {
            lightning(g, n, slopes, il)
        } else {
            g.rotated_attention(n, None, il)
        };
        let cur = g.last_rows(il, cur);
        let residual = g.last_rows(il, n);
        let residual = g.scale(residual);
        let h = g.add(cur, residual);
        let n = g.norm(h, Kind::FfnNorm, il);
        let cur = g.moe(n, MoeOptions::softmax(true), il);
        let residual = g.scale(n);
        g.add(cur, residual)
    });
}

/// Inputs: the slope of each head, and its powers by distance: from the state to each token, from
/// each token to the state behind, and between tokens.
#[derive(Clone, Copy)]
struct Slopes {
    head: TensorId,
    query: TensorId,
    key: TensorId,
    between: TensorId,
}

impl Slopes {
    fn new(g: &mut LlmGraph<'_>) -> Slopes {
        let (n_time, n_seqs) = (g.n_seq_tokens(), g.n_seqs);
        let n_head = g.hp.layers.first().map_or(0, |l| l.n_head);
        let mut input = |name, ne| g.input(name, Type::F32, ne);
        Slopes {
            head: input("slopes", [n_head, 1, 1, 1]),
            query: input("q_decay_exp", [1, n_head, n_time, n_seqs]),
            key: input("k_decay_exp", [1, n_head, n_time, n_seqs]),
            between: input("diag_decay_exp", [n_time, n_time, n_head, n_seqs]),
        }
    }
}

/// `exp(c * x)`, `c` being of the layer.
fn faded(g: &mut LlmGraph<'_>, x: TensorId) -> TensorId {
    let x = g.scale(x);
    g.unary(Unary::Exp, x)
}

/// All tokens of a batch attend to the state and to each other; then the state takes them in.
fn lightning(g: &mut LlmGraph<'_>, n: TensorId, slopes: Slopes, il: usize) -> TensorId {
    let (ssm, n_time, n_seqs) = (g.ssm(), g.n_seq_tokens(), g.n_seqs);
    let (head, n_head, n_embd) = (ssm.d_state, ssm.dt_rank, g[n].ne[0]);
    let (conv, state) = (g.conv_state(il), g.scan_state(il));
    g.gather_state(conv); // of no elements
    let n = g.reshape(n, [n_embd, n_time, 1, n_seqs]);
    let qkv = g.linear(n, Kind::AttnQkv, il);
    let qkv = g.unary(Unary::Silu, qkv);
    let qkv = g.reshape(qkv, [3 * head, n_head, n_time, n_seqs]);
    let [_, nb1, nb2, nb3] = g[qkv].nb;
    let [q, k, v] =
        [(); 3].map(|()| g.view_4d(qkv, [head, n_head, n_time, n_seqs], [nb1, nb2, nb3]));
    let before = g.gather_state(state);
    let before = g.reshape(before, [head, head, n_head, n_seqs]);
    let v = g.permute(v, [1, 2, 0, 3]);
    let v = g.cont(v);

    let y = attended(g, [q, k, v], before, slopes);
    g.expand(y);
    let after = updated(g, [k, v], before, slopes, n_head);
    let target = g.view_1d(state, ssm.n_embd_s() * n_seqs);
    let kept = g.cpy(after, target);
    g.expand(kept);

    let y = g.permute(y, [0, 2, 1, 3]);
    let y = g.cont(y);
    let y = g.reshape(y, [ssm.d_inner, n_time, 1, n_seqs]);
    let y = g.norm(y, Kind::AttnNorm2, il);
    let gate = g.linear(n, Kind::AttnGate, il);
    let gate = g.unary(Unary::Sigmoid, gate);
    let y = g.mul(gate, y);
    let y = g.linear(y, Kind::AttnOutput, il);
    let n_embd = g[y].ne[0];
    g.reshape(y, [n_embd, n_time * n_seqs, 1, 1])
}

fn attended(
    g: &mut LlmGraph<'_>,
    [q, k, v]: [TensorId; 3],
    before: TensorId,
    slopes: Slopes,
) -> TensorId {
    let decay = faded(g, slopes.query);
    let faded_q = g.mul(q, decay);
    let faded_q = g.permute(faded_q, [0, 2, 1, 3]);
    let from_state = g.mul_mat(before, faded_q);
    let [q, k] = [q, k].map(|t| g.permute(t, [0, 2, 1, 3]));
    let scores = g.mul_mat(k, q);
    let decay = faded(g, slopes.between);
    let scores = g.mul(scores, decay);
    let from_batch = g.mul_mat(v, scores);
    g.add(from_state, from_batch)
}

fn updated(
    g: &mut LlmGraph<'_>,
    [k, v]: [TensorId; 2],
    before: TensorId,
    slopes: Slopes,
    n_head: i64,
) -> TensorId {
    let decay = g.scale(slopes.head);
    let decay = faded(g, decay);
    let decay = g.reshape(decay, [1, 1, n_head, 1]);
    let before = g.mul(before, decay);
    let decay = faded(g, slopes.key);
    let k = g.mul(k, decay);
    let k = g.permute(k, [1, 2, 0, 3]);
    let k = g.cont(k);
    let new = g.mul_mat(k, v);
    g.add(before, new)
}
