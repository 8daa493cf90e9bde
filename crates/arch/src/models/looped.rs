//! Models that run the same blocks several times, each time with a KV cache of its own: Nanbeige and
//! HRM-Text.

use super::gated::{gate, gated_attention};
use super::{Architecture, llama};
use crate::graph::{Ffn, LlmGraph, Scale};
use crate::hparams::{Hparams, Hrm, limits::LAYERS};
use crate::keys::Keys;
use crate::names::{Global, Part};
use crate::slices::TensorSplit;
use crate::{Error, Result};
use vramfit_ggml::TensorId;

/// Its architectures.
pub(super) const ALL: &[Architecture] = &[
    Architecture::new("hrm_text", hrm)
        .tensor_split(TensorSplit::Mirrored)
        .constants(&["embedding_scale"])
        .reads(hrm_hparams)
        .graph_room(80, 64),
    Architecture::new("nanbeige", nanbeige)
        .scales(&[Scale::Dense])
        .tapped()
        .reads(nanbeige_hparams)
        .large_graph(),
];

fn nanbeige_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    hp.norms_loops = !keys.flag("skip_loop_final_norm")?.unwrap_or(false);
    hp.repeat_layers(keys, "num_loops")
}

/// Nanbeige: Llama, looped.
fn nanbeige(g: &mut LlmGraph<'_>) {
    let x = g.embed(false);
    g.layers(x, |g, x, il| {
        let begins_again = il > 0 && g.hp.layers[il].block == 0;
        let x = if begins_again && g.hp.norms_loops {
            let w = g.output_weight(Global::OutputNorm, Part::Weight);
            g.norm_with(x, w, None, Some(il - 1))
        } else {
            x
        };
        llama::layer(g, x, None, il)
    });
}

fn hrm_hparams(keys: &Keys<'_>, hp: &mut Hparams) -> Result<()> {
    let n_stack = keys.require("hrm.layers_per_stack", LAYERS)?;
    let h_cycles = keys.require("hrm.h_cycles", LAYERS)?;
    let l_cycles = keys.require("hrm.l_cycles", LAYERS)?;
    let n_slot = n_stack * h_cycles * (l_cycles + 1);
    if n_slot != hp.n_layer() as i64 {
        return Err(Error::KeyRange {
            key: "hrm_text.block_count".to_string(),
            value: hp.n_layer() as i64,
            min: n_slot,
            max: n_slot,
        });
    }
    let hrm = Hrm {
        n_stack: n_stack as usize,
        h_cycles: h_cycles as usize,
        l_cycles: l_cycles as usize,
    };
    for (slot, layer) in hp.layers.iter_mut().enumerate() {
        let is_high = slot / hrm.n_stack % (hrm.l_cycles + 1) == hrm.l_cycles;
        layer.block = slot % hrm.n_stack + if is_high { hrm.n_stack } else { 0 };
    }
    hp.hrm = Some(hrm);
    Ok(())
}

/// HRM-Text: a low and a high stack, each fed with the sum of both results.
fn hrm(g: &mut LlmGraph<'_>) {
    let Some(hrm) = g.hp.hrm else { return };
    let mut high = g.embed(false);
    let init = g.input_weight(Global::HrmZLInit);
    let mut low = g.required(Global::HrmZLInit, init);
    let mut first = 0;
    for _ in 0..hrm.h_cycles {
        for _ in 0..hrm.l_cycles {
            low = hrm_stack(g, [high, low], first, hrm.n_stack);
            first += hrm.n_stack;
        }
        high = hrm_stack(g, [high, low], first, hrm.n_stack);
        first += hrm.n_stack;
    }
    let embd = g.output_rows(high);
    g.lm_head(embd, embd);
}

/// `n` layers from `first` on: pre-norm, gated attention, no norm with weights.
fn hrm_stack(g: &mut LlmGraph<'_>, [high, low]: [TensorId; 2], first: usize, n: usize) -> TensorId {
    let mut x = g.add(high, low);
    for il in first..first + n {
        let n = g.rms(x);
        let qkv = g.qkv(n, il);
        let qkv = g.rotate_qk(qkv, None);
        let gate = gate(g, n, il);
        let cur = gated_attention(g, qkv, gate, il);
        let h = g.add(cur, x);
        let n = g.rms(h);
        let cur = g.ffn(n, Ffn::Silu, il);
        x = g.add(cur, h);
        x = g.control(x, il);
    }
    g.rms(x)
}
