//! PLaMo 2: Mamba layers with a decay a head between attention, norms on both sides of each block.

use super::glm::layer_between_norms;
use super::{Architecture, mamba};
use crate::graph::{LlmGraph, Scale, floats};
use crate::names::Kind;
use vramfit_ggml::{Glu, TensorId, Unary};

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[Architecture::new("plamo2", graph)
    .whole()
    .leaves_scales(&[Scale::Qkv, Scale::Ssm])
    .reads(mamba::hybrid_hparams)
    .no_control()];

fn graph(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let mix = |g: &mut LlmGraph<'_>, n| match g.hp.layers[il].is_recurrent {
            true => mamba_layer(g, n, il),
            false => g.rotated_attention(n, None, il),
        };
        layer_between_norms(g, x, il, mix)
    });
}

/// Mamba 1's projections with Mamba 2's scan.
fn mamba_layer(g: &mut LlmGraph<'_>, n: TensorId, il: usize) -> TensorId {
    let ssm = g.ssm();
    let (n_seqs, n_time, n_tokens) = (g.n_seqs, g.n_seq_tokens(), g.n_tokens);
    let (d_inner, n_head) = (ssm.d_inner, ssm.dt_rank);
    let head = d_inner / n_head.max(1);
    let heads = [head, n_head, n_time, n_seqs];
    let (conv, scan) = (g.conv_state(il), g.scan_state(il));

    let before = g.taps_before(conv, d_inner, ssm.d_conv);
    let n_embd = g[n].ne[0];
    let n = g.reshape(n, [n_embd, n_time, n_seqs, 1]);
    let zx = g.linear(n, Kind::SsmIn, il);
    let zx = g.permute(zx, [0, 2, 1, 3]);
    let zx = g.cont_shape(zx, [2 * head, n_head, n_time, n_seqs]);
    let [_, nb1, nb2, nb3] = g[zx].nb;
    let [x, z] = [(); 2].map(|()| g.view_4d(zx, heads, [nb1, nb2, nb3]));
    let x = g.cont_shape(x, [d_inner, n_time, n_seqs, 1]);

    let x = g.transpose(x);
    let all = g.concat(before, x, 0);
    g.keep_taps_in_line(conv, all, d_inner, ssm.d_conv);
    let kernel = g.weight(il, Kind::SsmConv1d);
    let x = g.ssm_conv(all, kernel);
    let x = g.unary(Unary::Silu, x);

    let [dt, b, c] = dt_b_c(g, x, il);
    let a = g.weight(il, Kind::SsmA);
    let a = g.reshape(a, [1, n_head, 1, 1]);
    let token = floats(d_inner);
    let strides = [floats(head), token, token * n_time.max(0) as u64];
    let x = g.view_4d(x, heads, strides);
    let y = g.read_state(scan, |g, states, ids| {
        let n_states = g[states].ne[1];
        let states = g.reshape(states, [ssm.d_state, head, n_head, n_states]);
        g.ssm_scan([states, x, dt, a, b, c, ids], 1)
    });
    let n = ssm.n_embd_s() * n_seqs;
    let states = g.view_1d(y, n);
    let target = g.view_1d(scan, n);
    let kept = g.cpy(states, target);
    g.expand(kept);

    let y = g.view_4d(y, heads, strides);
    let d = g.weight(il, Kind::SsmD);
    let d = g.reshape(d, [1, n_head, 1, 1]);
    let skip = g.mul(x, d);
    let y = g.add(y, skip);
    let z = g.cont(z);
    let y = g.glu_split(Glu::Swiglu, z, y);
    let nb = g[y].nb;
    let y = g.view_3d(y, [d_inner, n_time, n_seqs], [nb[2], nb[3]]);
    let y = g.linear(y, Kind::SsmOut, il);
    let n = g[y].ne[0];
    g.reshape(y, [n, n_tokens, 1, 1])
}

/// Time step, B and C, all made of `x` and normalised.
fn dt_b_c(g: &mut LlmGraph<'_>, x: TensorId, il: usize) -> [TensorId; 3] {
    let (ssm, n_seqs, n_time) = (g.ssm(), g.n_seqs, g.n_seq_tokens());
    let all = g.linear(x, Kind::SsmX, il);
    let (nb, dt_dim) = (g[all].nb, g[all].ne[0] - 2 * ssm.d_state);
    let widths = [ssm.d_state, ssm.d_state, dt_dim];
    let [b, c, dt] = widths.map(|n| g.view_3d(all, [n, n_time, n_seqs], [nb[1], nb[2]]));
    let [b, c] = [(b, Kind::SsmBNorm), (c, Kind::SsmCNorm)].map(|(t, kind)| {
        let t = g.norm(t, kind, il);
        let nb = g[t].nb;
        g.view_4d(
            t,
            [ssm.d_state, 1, n_time, n_seqs],
            [floats(ssm.d_state), nb[1], nb[2]],
        )
    });
    let dt = g.norm(dt, Kind::SsmDtNorm, il);
    let dt = g.linear(dt, Kind::SsmDt, il);
    [dt, b, c]
}
