//! Which tensors of its file a tower loads: clip.cpp asks by name, and leaves the others in the file.

use super::{Modality, Tower, TowerHparams};

/// Asked for by every tower, those without a prefix by both of a file.
const COMMON: [&str; 6] = [
    "v.class_embd",
    "v.patch_embd.weight",
    "v.patch_embd.weight.1",
    "v.patch_embd.bias",
    "v.norm_embd.weight",
    "v.norm_embd.bias",
];

/// Behind `v.` or `a.`.
const OWN: [&str; 5] = [
    "pre_ln.weight",
    "pre_ln.bias",
    "post_ln.weight",
    "post_ln.bias",
    "position_embd.weight",
];

/// Of a layer, with weight and bias.
const LAYER_PAIRS: [&str; 10] = [
    "attn_k", "attn_q", "attn_v", "attn_out", "attn_qkv", "ln1", "ln2", "ffn_up", "ffn_gate",
    "ffn_down",
];

/// Of a layer, with a weight alone.
const LAYER_WEIGHTS: [&str; 12] = [
    "attn_k_norm",
    "attn_q_norm",
    "ls1",
    "ls2",
    "out_scale",
    "attn_post_norm",
    "ffn_post_norm",
    "ffn_gate_inp",
    "ffn_gate_exps",
    "ffn_up_exps",
    "ffn_down_exps",
    "exp_probs_b",
];

/// Whether `tower` loads the tensor `name`. Of a type that is not known, all that it may load.
pub(super) fn is_loaded(tower: &Tower, name: &str) -> bool {
    if !tower.is_known() {
        let other = match tower.modality {
            Modality::Vision => ["a.", "mm.a."],
            Modality::Audio | Modality::Speech => ["v.", "mm.v."],
        };
        return !other.iter().any(|prefix| name.starts_with(prefix));
    }
    let own = |rest: &str| OWN.contains(&rest) || is_of_layer(tower, rest);
    let rest = name
        .strip_prefix(tower.modality.tensor_prefix())
        .and_then(|rest| rest.strip_prefix('.'));
    COMMON.contains(&name)
        || rest.is_some_and(own)
        || is_deepstack(tower, name)
        || tower
            .kind
            .tensors
            .iter()
            .any(|asked| matches(&tower.hparams, asked, name))
}

/// `asked` with a `+` for weight and bias, `*`, `#` and `?` for numbers of layers.
fn matches(hp: &TowerHparams, asked: &str, name: &str) -> bool {
    let Some(at) = asked.find(['*', '#', '?', '+']) else {
        return asked == name;
    };
    let (before, after) = asked.split_at(at);
    let (Some(rest), Some(sign)) = (name.strip_prefix(before), after.chars().next()) else {
        return false;
    };
    let after = &after[1..];
    let n_layer = match sign {
        '+' => return matches!(rest, "weight" | "bias"),
        '*' => hp.n_layer,
        '#' => hp.second.n_layer,
        _ => usize::MAX,
    };
    let end = rest.find('.').unwrap_or(rest.len());
    let (number, rest) = rest.split_at(end);
    number.parse().is_ok_and(|il: usize| il < n_layer) && matches(hp, after, rest)
}

fn is_of_layer(tower: &Tower, rest: &str) -> bool {
    let parts = rest.strip_prefix("blk.").and_then(|r| r.split_once('.'));
    let Some((il, part)) = parts else {
        return false;
    };
    let is_layer = il.parse().is_ok_and(|il: usize| il < tower.hparams.n_layer);
    is_layer
        && match part.split_once('.') {
            Some((kind, "weight")) => LAYER_PAIRS.contains(&kind) || LAYER_WEIGHTS.contains(&kind),
            Some((kind, "bias")) => LAYER_PAIRS.contains(&kind),
            _ => part == "attn_sinks",
        }
}

fn is_deepstack(tower: &Tower, name: &str) -> bool {
    let parts = name
        .strip_prefix("v.deepstack.")
        .and_then(|r| r.split_once('.'));
    parts.is_some_and(|(il, part)| {
        il.parse().is_ok_and(|il: usize| il < tower.hparams.n_layer)
            && ["norm.+", "fc1.+", "fc2.+"]
                .iter()
                .any(|asked| matches(&tower.hparams, asked, part))
    })
}
