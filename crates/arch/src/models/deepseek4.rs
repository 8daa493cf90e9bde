//! DeepSeek-V4: a sliding window over the last tokens, and of those before one cell for 4 (CSA, of
//! which a lightning indexer chooses) or 128 (HCA). Hyper connections; experts of the first layers
//! are looked up by token.

use super::Architecture;
use super::deepseek::low_rank_q;
use super::deepseek4_cells::{Compressed, attention_parts, compress, compressed_keys, index_parts};
use super::hy_v4::{HC_ATTN, HC_FFN, hc_head_weights, hc_weights, read_expert_limits};
use crate::cache::CacheKind;
use crate::graph::{Ffn, LlmGraph, MoeOptions, Scale};
use crate::hparams::{Compressor, Hparams, limits};
use crate::keys::Keys;
use crate::names::Kind;
use crate::{Error, Result};
use vramfit_ggml::{TensorId, Type};

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[Architecture::new("deepseek4", graph)
    .constants(&["expert_weights_scale"])
    .leaves_scales(&[Scale::Output])
    .reads(hparams)
    .output_unadapted()
    .tapped()
    .rolling_back()
    .predicts(super::deepseek4_draft::mtp)
    .large_graph()];

/// Tokens a cell where an indexer chooses.
const CSA_RATIO: i64 = 4;
/// Tokens a cell where all are read.
const HCA_RATIO: i64 = 128;

fn hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    // Without the tensors of multi-token prediction, its layers are layers like the others.
    let first = format!("blk.{}.nextn.eh_proj.weight", hp.n_layer());
    if hp.n_layer() < hp.n_layer_all && !keys.has_tensor(&first) {
        *hp = Hparams::load_with_mtp(keys, 0)?;
    }
    hp.n_swa = keys.require("attention.sliding_window", limits::CONTEXT)?;
    hp.has_swa_layers = true;
    read_layers(keys, hp, true)?;
    let key = "attention.compress_ratios";
    let ratios = keys.per_layer(key, hp.n_layer_all, HCA_RATIO)?;
    let ratios = ratios.unwrap_or_default();
    if let Some(&value) = ratios
        .iter()
        .find(|r| ![0, CSA_RATIO, HCA_RATIO].contains(r))
    {
        let (key, min, max) = (key.to_string(), 0, HCA_RATIO);
        return Err(Error::KeyRange {
            key,
            value,
            min,
            max,
        });
    }
    for (il, layer) in hp.layers.iter_mut().enumerate() {
        layer.is_swa = true;
        layer.is_cached = true; // those of multi-token prediction, too
        layer.compress_ratio = ratios.get(il).copied().unwrap_or(0);
    }
    hp.set_indexer(keys, |il| ratios.get(il) == Some(&CSA_RATIO))
}

/// What its layers need in a draft as well.
pub(super) fn read_layers(keys: &Keys<'_>, hp: &mut Hparams, has_cells: bool) -> Result<()> {
    hp.fuses_hyper_connections = true;
    hp.compressor = Some(Compressor {
        has_cells,
        n_out_group: keys.require("attention.output_group_count", limits::HEADS)?,
        n_iterations: keys.require("hyper_connection.sinkhorn_iterations", 64)?,
    });
    read_expert_limits(keys, hp)?;
    let key = "swiglu_clamp_shexp";
    let of_shared = if keys.is_array(key) || keys.float(key)?.is_some() {
        keys.floats(key, hp.n_layer_all)?
    } else {
        Vec::new() // as the experts of the same layer
    };
    for (il, layer) in hp.layers.iter_mut().enumerate() {
        layer.clamps_shared_expert = match of_shared.get(il) {
            Some(&limit) => limit > 1e-6,
            None => layer.clamps_experts,
        };
    }
    Ok(())
}

fn graph(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    let inputs = Inputs::new(g);
    g.expand(inputs.mask);
    let mut x = g.hc_streams(x);
    for il in 0..g.hp.n_layer() {
        tap_mean(g, x, il);
        let weights = hc_weights(g, HC_ATTN, il);
        let (cur, gates) = g.hc_read(x, weights, il);
        let n = g.norm(cur, Kind::AttnNorm, il);
        let cur = attention(g, n, &inputs, il);
        x = g.hc_write(cur, x, gates, il);
        let weights = hc_weights(g, HC_FFN, il);
        let (cur, gates) = g.hc_read(x, weights, il);
        g.hc_expand(x, gates);
        let n = g.norm(cur, Kind::FfnNorm, il);
        let cur = feed_forward(g, n, il);
        x = g.hc_write(cur, x, gates, il);
        x = g.control(x, il);
        g.pin_to_layer(x, "l_last", il);
    }
    tap_mean(g, x, g.hp.n_layer());
    if g.cp.role.gives_states {
        g.mark_output(x);
    }
    let x = g.hc_output_rows(x);
    let cur = sum_for_head(g, x);
    let embd = g.final_norm(cur);
    g.lm_head(embd, embd);
}

/// The mean of the streams before layer `il`, where a draft reads it.
fn tap_mean(g: &mut LlmGraph<'_>, x: TensorId, il: usize) {
    if g.is_tapped(il) {
        let mean = g.hc_mean(x);
        g.expand(mean);
        g.tap(mean, il);
    }
}

/// The streams behind the last layer, summed.
pub(super) fn sum_for_head(g: &mut LlmGraph<'_>, x: TensorId) -> TensorId {
    let weights = hc_head_weights(g);
    let mixes = g.hc_mixes(x, weights.of_streams);
    let gates = g.hc_head_gate(mixes, weights);
    g.hc_sum(x, gates)
}

pub(super) fn feed_forward(g: &mut LlmGraph<'_>, n: TensorId, il: usize) -> TensorId {
    let layer = g.hp.layers[il];
    let activation = |clamps| if clamps { Ffn::SwigluClamp } else { Ffn::Silu };
    let options = MoeOptions {
        activation: activation(layer.clamps_experts),
        ..MoeOptions::of_file(&g.hp.moe)
    };
    let routed = g.moe(n, options, il);
    let shared = g.shared_expert(n, activation(layer.clamps_shared_expert), il);
    g.add(routed, shared)
}

/// Inputs of all layers.
struct Inputs {
    k_idxs: TensorId,
    mask: TensorId,
    rot: Option<TensorId>,
    csa: Compressed,
    hca: Compressed,
    index: Compressed,
}

impl Inputs {
    fn new(g: &mut LlmGraph<'_>) -> Inputs {
        let (cp, n_tokens) = (g.cp, g.n_tokens);
        let n_stream = g.n_seqs.max(1);
        let head = g.hp.layers.first().map_or(0, |l| l.n_embd_head_k);
        let index_head = g.hp.indexer.map_or(0, |i| i.head);
        let ty = mask_type(g);
        let n_cells = cp.n_ctx_swa_of(g.hp.n_swa, 1);
        // Always where heads are as wide as the indexer's.
        let rotates = (cp.type_k.is_quantized() && head % 64 == 0) || head == index_head;
        let mut rot = |wanted: bool, head: i64| {
            wanted.then(|| {
                let mut n = 64;
                while head > 0 && head % (2 * n) == 0 {
                    n *= 2;
                }
                g.input("attn_inp_k_rot", Type::F32, [n, n, 1, 1])
            })
        };
        let rots = [
            rot(rotates, head),
            rot(rotates, head),
            rot(rotates, head),
            rot(true, index_head),
        ];
        let shape = [n_cells, n_tokens / n_stream, 1, n_stream];
        Inputs {
            k_idxs: g.input("attn_inp_k_idxs", Type::I64, [n_tokens, 1, 1, 1]),
            mask: g.input("attn_inp_kq_mask", ty, shape),
            rot: rots[0],
            csa: Compressed::new(g, CSA_RATIO, ty, rots[1]),
            hca: Compressed::new(g, HCA_RATIO, ty, rots[2]),
            index: Compressed::new(g, CSA_RATIO, Type::F16, rots[3]),
        }
    }
}

fn mask_type(g: &LlmGraph<'_>) -> Type {
    if g.cp.flash_attn {
        Type::F16
    } else {
        Type::F32
    }
}

/// The compressed Q, Q, and K, which is V as well.
pub(super) fn low_q_k(g: &mut LlmGraph<'_>, n: TensorId, il: usize) -> [TensorId; 3] {
    let (layer, n_tokens) = (g.hp.layers[il], g.n_tokens);
    let head = layer.n_embd_head_k;
    let low = low_rank_q(g, n, il);
    let q = g.linear(low, Kind::AttnQB, il);
    let q = g.reshape(q, [head, layer.n_head, n_tokens, 1]);
    let q = g.rms(q);
    let q = g.rotate(q, None);
    let kv = g.linear(n, Kind::AttnKv, il);
    let kv = g.norm(kv, Kind::AttnKvANorm, il);
    let kv = g.reshape(kv, [head, 1, n_tokens, 1]);
    [low, q, g.rotate(kv, None)]
}

fn attention(g: &mut LlmGraph<'_>, n: TensorId, inputs: &Inputs, il: usize) -> TensorId {
    let layer = g.hp.layers[il];
    let head = layer.n_embd_head_k;
    let [low, q, kv] = low_q_k(g, n, il);
    let older = match layer.compress_ratio {
        0 => None,
        CSA_RATIO => {
            compress(g, n, &inputs.csa, &attention_parts(head), il);
            compress(g, n, &inputs.index, &index_parts(g), il);
            let chosen = choose_cells(g, n, low, &inputs.index, il);
            Some((inputs.csa, Some(chosen)))
        }
        _ => {
            compress(g, n, &inputs.hca, &attention_parts(head), il);
            Some((inputs.hca, None))
        }
    };
    let cur = attend(g, [q, kv], inputs, older, il);
    output_of_heads(g, cur, il)
}

/// The heads' results without their positions, through the output matrix.
pub(super) fn output_of_heads(g: &mut LlmGraph<'_>, cur: TensorId, il: usize) -> TensorId {
    let (layer, n_tokens) = (g.hp.layers[il], g.n_tokens);
    let shape = [layer.n_embd_head_k, layer.n_head, n_tokens, 1];
    let heads = g.reshape(cur, shape);
    let heads = match g.pos {
        Some(pos) => g.rope_back(heads, pos),
        None => heads,
    };
    project_groups(g, heads, il)
}

/// The cells that the indexer chooses for each token.
fn choose_cells(
    g: &mut LlmGraph<'_>,
    n: TensorId,
    q_low: TensorId,
    c: &Compressed,
    il: usize,
) -> TensorId {
    let n_tokens = g.n_tokens;
    let (n_head, head, top_k) =
        g.hp.indexer
            .map_or((1, 1, 1), |i| (i.n_head, i.head, i.top_k));
    let q = g.linear(q_low, Kind::IndexerAttnQB, il);
    let q = g.reshape(q, [head, n_head, n_tokens, 1]);
    let mut q = g.rotate(q, None);
    if let Some(rot) = c.rot {
        q = g.hadamard(q, rot);
    }
    let weights = g.linear(n, Kind::IndexerProj, il);
    let weights = g.scale(weights);
    let k = compressed_keys(g, CacheKind::Index, c, il);
    let n_stream = g[k].ne[3];
    let q = g.heads_by_stream(q, n_stream);
    let weights = g.weights_by_stream(weights, n_stream);
    let scores = g.lightning_indexer([q, k, weights, c.mask]);
    g.name_layer(scores, "lid_score_masked", il);
    let n_chosen = top_k.min(g[scores].ne[0]);
    let chosen = g.top_k(scores, n_chosen);
    g.cont(chosen)
}

/// Attention to the window, and to the `older` cells behind it: all of them or the chosen ones.
fn attend(
    g: &mut LlmGraph<'_>,
    mut qk: [TensorId; 2],
    inputs: &Inputs,
    older: Option<(Compressed, Option<TensorId>)>,
    il: usize,
) -> TensorId {
    if let Some(rot) = inputs.rot {
        qk = qk.map(|t| g.hadamard(t, rot));
    }
    let [q, kv] = qk;
    qk.into_iter().for_each(|t| g.expand(t));
    let cache = g.cache(il, CacheKind::K);
    g.store_rows(kv, cache, inputs.k_idxs);
    let mut k = g.index_keys(cache, g.cp.n_ctx_swa_of(g.hp.n_swa, 1));
    let mut mask = inputs.mask;
    if let Some((c, chosen)) = older {
        let cells = compressed_keys(g, CacheKind::Comp, &c, il);
        k = g.concat(k, cells, 2);
        let of_cells = match chosen {
            Some(chosen) => g.mask_others(c.mask, chosen, mask_type(g)),
            None => c.mask,
        };
        mask = g.concat(mask, of_cells, 0);
    }
    let sinks = Some(g.weight(il, Kind::AttnSinks));
    let cur = g.attend_masked([q, k, k], mask, sinks, il);
    match inputs.rot {
        Some(rot) => g.hadamard(cur, rot),
        None => cur,
    }
}

/// The output matrix in two steps: a matrix a group of heads, then one over all.
fn project_groups(g: &mut LlmGraph<'_>, heads: TensorId, il: usize) -> TensorId {
    let [head, n_head, n_tokens, _] = g[heads].ne;
    let n_group = g.hp.compressor.map_or(1, |c| c.n_out_group);
    let by_group = g.reshape(heads, [head * n_head / n_group, n_group, n_tokens, 1]);
    let by_group = g.permute(by_group, [0, 2, 1, 3]);
    let a = g.weight(il, Kind::AttnOutputA);
    let cur = g.mul_mat(a, by_group);
    let rank = g[cur].ne[0];
    let cur = g.permute(cur, [0, 2, 1, 3]);
    let cur = g.cont_shape(cur, [rank * n_group, n_tokens, 1, 1]);
    g.linear(cur, Kind::AttnOutputB, il)
}
