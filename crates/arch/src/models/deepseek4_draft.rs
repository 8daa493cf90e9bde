//! DeepSeek-V4's layers where nothing is compressed: its own one for multi-token prediction, and the stages of
//! DSpark. They attend to a window alone.

use super::deepseek4::{feed_forward, low_q_k, output_of_heads, sum_for_head};
use super::hy_v4::{HC_ATTN, HC_FFN, hc_weights};
use crate::graph::LlmGraph;
use crate::names::{Global, Kind, Part};
use vramfit_ggml::{TensorId, Type};

/// One layer over the streams `x`.
pub(super) fn layer(g: &mut LlmGraph<'_>, x: TensorId, il: usize) -> TensorId {
    let weights = hc_weights(g, HC_ATTN, il);
    let (cur, gates) = g.hc_read(x, weights, il);
    let n = g.norm(cur, Kind::AttnNorm, il);
    let [_, q, k] = low_q_k(g, n, il);
    let cur = g.attend_to_k([q, k], il);
    let cur = output_of_heads(g, cur, il);
    let x = g.hc_write(cur, x, gates, il);
    let weights = hc_weights(g, HC_FFN, il);
    let (cur, gates) = g.hc_read(x, weights, il);
    let n = g.norm(cur, Kind::FfnNorm, il);
    let cur = feed_forward(g, n, il);
    g.hc_write(cur, x, gates, il)
}

/// The next token and all streams of the state before it, through one layer more.
pub(super) fn mtp(g: &mut LlmGraph<'_>) {
    let il = g.hp.n_layer();
    let x = joined(g, il);
    let x = layer(g, x, il);
    let x = g.control(x, il);
    let ne = g[x].ne;
    let flat = g.reshape(x, [ne[0] * ne[1], ne[2], 1, 1]);
    let rows = g.output_rows(flat);
    g.mark_output(rows);
    g.name_step(rows, "h_nextn");
    let n_rows = g[rows].ne[1];
    let x = g.reshape(rows, [ne[0], ne[1], n_rows, 1]);
    let cur = sum_for_head(g, x);
    let norm = match g.optional(il, Kind::NextnSharedHeadNorm, Part::Weight) {
        None => g.output_weight(Global::OutputNorm, Part::Weight),
        own => own,
    };
    let embd = g.norm_with(cur, norm, None, None);
    g.set_embeddings(embd);
    let head = match g.optional(il, Kind::NextnSharedHeadHead, Part::Weight) {
        None => g.output_weight(Global::Output, Part::Weight),
        own => own,
    };
    let head = g.required(Global::Output, head);
    let logits = g.mul_mat(head, embd);
    g.name_step(logits, "result_output");
    g.set_logits(logits);
}

/// Each stream of the state joined with the token.
fn joined(g: &mut LlmGraph<'_>, il: usize) -> TensorId {
    let (n_tokens, n_embd, n_streams) = (g.n_tokens, g.hp.n_embd, g.hp.n_streams);
    let table = match g.optional(il, Kind::NextnEmbedTokens, Part::Weight) {
        None => g.input_weight(Global::TokenEmbd),
        own => own,
    };
    let table = g.required(Global::TokenEmbd, table);
    let tokens = g.input("inp_tokens", Type::I32, [n_tokens, 1, 1, 1]);
    let state = [n_embd * n_streams, n_tokens, 1, 1];
    let state = g.input("mtp_h_input", Type::F32, state);
    let embd = g.get_rows(table, tokens);
    let state = g.reshape(state, [n_embd, n_streams, n_tokens, 1]);
    g.build_inputs();
    let state = g.norm(state, Kind::NextnHnorm, il);
    let embd = g.norm(embd, Kind::NextnEnorm, il);
    let embd = g.hc_streams(embd);
    let both = g.concat(embd, state, 0);
    g.linear(both, Kind::NextnEhProj, il)
}
