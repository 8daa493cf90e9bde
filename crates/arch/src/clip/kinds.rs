//! The types of projectors (`clip.projector_type`): what each reads, loads and computes.

use super::graph::TowerGraph;
use super::hparams::{Activation, MAX_PIXELS, TowerHparams};
use super::{audio, vision};
use crate::Result;
use crate::keys::Keys;
use vramfit_ggml::TensorId;

type Graph = fn(&mut TowerGraph<'_>) -> TensorId;
type Read = fn(&Keys<'_>, &mut TowerHparams) -> Result<()>;

/// A type of projector.
#[derive(Debug)]
pub struct ProjectorKind {
    /// As the file names it.
    pub name: &'static str,
    /// Its own keys, and what it is warmed up with.
    pub(super) hparams: Read,
    /// Tensors beside those of the transformer; a `+` is weight and bias.
    pub(super) tensors: &'static [&'static str],
    /// Old files have the two matrices of a network swapped.
    pub(super) swaps_ffn: bool,
    pub(super) graph: Option<Graph>,
}

const SCALE_FACTOR: &str = "vision.projector.scale_factor";
const SPATIAL_MERGE: &str = "vision.spatial_merge_size";
const MAX_QUERY: i64 = 1 << 16;

const fn kind(
    name: &'static str,
    hparams: Read,
    tensors: &'static [&'static str],
    graph: Graph,
) -> ProjectorKind {
    ProjectorKind {
        name,
        hparams,
        tensors,
        swaps_ffn: false,
        graph: Some(graph),
    }
}

const fn swapping(kind: ProjectorKind) -> ProjectorKind {
    ProjectorKind {
        swaps_ffn: true,
        ..kind
    }
}

const LLAVA: &[&str] = &[
    "mm.0.+",
    "mm.1.+",
    "mm.2.+",
    "mm.3.+",
    "mm.4.+",
    "v.image_newline",
];
const TWO: &[&str] = &["mm.0.+", "mm.2.+"];
const NORM_AND_TWO: &[&str] = &["mm.input_norm.+", "mm.1.+", "mm.2.+"];

/// Nothing beside what all towers read.
fn plain(_: &Keys<'_>, _: &mut TowerHparams) -> Result<()> {
    Ok(())
}

fn scaled(keys: &Keys<'_>, hp: &mut TowerHparams) -> Result<()> {
    hp.merge_by(keys, SCALE_FACTOR, 1)
}

fn mistral(keys: &Keys<'_>, hp: &mut TowerHparams) -> Result<()> {
    hp.merge_by(keys, SPATIAL_MERGE, 1)?;
    hp.warm_up_with_side(16);
    Ok(())
}

fn qwen(keys: &Keys<'_>, hp: &mut TowerHparams) -> Result<()> {
    hp.merge_by(keys, SPATIAL_MERGE, 2)?;
    hp.n_wa_pattern = keys.int("vision.n_wa_pattern", MAX_PIXELS)?.unwrap_or(0);
    hp.warm_up_with_side(46);
    Ok(())
}

fn minicpmv(keys: &Keys<'_>, hp: &mut TowerHparams) -> Result<()> {
    let version = keys.int("minicpmv_version", MAX_PIXELS)?.unwrap_or(0);
    let n_query = keys.positive("minicpmv_query_num", MAX_QUERY)?;
    let of_version = match version {
        3..=6 | 100_045 => 64,
        _ => 96,
    };
    hp.n_query = n_query.unwrap_or(of_version);
    Ok(())
}

fn whisper(keys: &Keys<'_>, hp: &mut TowerHparams) -> Result<()> {
    hp.activation = Activation::GeluErf;
    let factor = keys.int("audio.projector.stack_factor", MAX_QUERY)?;
    hp.stack_factor = factor.unwrap_or(0);
    Ok(())
}

static ALL: &[ProjectorKind] = &[
    swapping(kind("mlp", plain, LLAVA, vision::mlp)),
    swapping(kind("mlp_norm", plain, LLAVA, vision::mlp_norm)),
    swapping(kind(
        "gemma3",
        |keys, hp| hp.merge_by(keys, SCALE_FACTOR, 4),
        &["mm.input_projection.weight", "mm.soft_emb_norm.weight"],
        vision::gemma3,
    )),
    swapping(kind(
        "idefics3",
        scaled,
        &["mm.model.fc.weight"],
        vision::idefics3,
    )),
    kind(
        "lfm2",
        |keys, hp| {
            hp.merge_by(keys, SCALE_FACTOR, 1)?;
            hp.limit_tokens(256);
            Ok(())
        },
        NORM_AND_TWO,
        vision::lfm2,
    ),
    kind("janus_pro", plain, &["mm.0.+", "mm.1.+"], vision::janus_pro),
    kind(
        "phi4",
        |_, hp| {
            hp.warm_up_with_side(16);
            Ok(())
        },
        TWO,
        vision::phi4,
    ),
    swapping(kind("qwen2vl_merger", qwen, TWO, vision::qwen2vl)),
    swapping(kind("qwen2.5vl_merger", qwen, TWO, vision::qwen2vl)),
    kind("qwen3vl_merger", qwen, TWO, vision::qwen3vl),
    kind(
        "pixtral",
        mistral,
        &[
            "mm.1.+",
            "mm.2.+",
            "v.token_embd.img_break",
            "mm.input_norm.weight",
            "mm.patch_merger.weight",
        ],
        vision::pixtral,
    ),
    kind(
        "lightonocr",
        mistral,
        &[
            "mm.1.+",
            "mm.2.+",
            "mm.input_norm.weight",
            "mm.patch_merger.weight",
        ],
        vision::pixtral,
    ),
    kind(
        "internvl",
        scaled,
        &["mm.model.mlp.0.+", "mm.model.mlp.1.+", "mm.model.mlp.3.+"],
        vision::internvl,
    ),
    kind(
        "llama4",
        scaled,
        &[
            "mm.model.fc.weight",
            "mm.model.mlp.1.weight",
            "mm.model.mlp.2.weight",
        ],
        vision::llama4,
    ),
    kind(
        "kimivl",
        |keys, hp| {
            scaled(keys, hp)?;
            hp.warm_up_with_side(16);
            Ok(())
        },
        NORM_AND_TWO,
        vision::kimivl,
    ),
    swapping(kind(
        "resampler",
        minicpmv,
        &[
            "resampler.pos_embed_k",
            "resampler.query",
            "resampler.proj.weight",
            "resampler.kv.weight",
            "resampler.attn.q.+",
            "resampler.attn.k.+",
            "resampler.attn.v.+",
            "resampler.attn.out.+",
            "resampler.ln_q.+",
            "resampler.ln_kv.+",
            "resampler.ln_post.+",
        ],
        vision::resampler,
    )),
    kind(
        "gemma4v",
        |keys, hp| {
            hp.merge_by(keys, SCALE_FACTOR, 3)?;
            hp.warm_up_with_side(16);
            Ok(())
        },
        &["mm.input_projection.weight", "v.std_bias", "v.std_scale"],
        vision::gemma4v,
    ),
    kind(
        "glm4v",
        qwen,
        &[
            "mm.model.fc.weight",
            "mm.up.+",
            "mm.gate.+",
            "mm.down.+",
            "mm.post_norm.+",
            "mm.patch_merger.+",
        ],
        vision::glm4v,
    ),
    kind(
        "nemotron_v2_vl",
        scaled,
        &[
            "mm.model.mlp.0.weight",
            "mm.model.mlp.1.weight",
            "mm.model.mlp.3.weight",
        ],
        vision::nemotron,
    ),
    kind(
        "paddleocr",
        |_, hp| {
            hp.n_merge = 2;
            hp.warm_up_with_side(28);
            Ok(())
        },
        NORM_AND_TWO,
        vision::paddleocr,
    ),
    kind(
        "cogvlm",
        plain,
        &[
            "mm.model.fc.weight",
            "mm.post_fc_norm.+",
            "mm.up.weight",
            "mm.gate.weight",
            "mm.down.weight",
            "v.boi",
            "v.eoi",
        ],
        vision::cogvlm,
    ),
    kind(
        "ultravox",
        whisper,
        &[
            "a.conv1d.1.+",
            "a.conv1d.2.+",
            "mm.a.mlp.1.weight",
            "mm.a.mlp.2.weight",
            "mm.a.norm_pre.weight",
            "mm.a.norm_mid.weight",
        ],
        audio::ultravox,
    ),
    kind(
        "qwen2a",
        whisper,
        &["a.conv1d.1.+", "a.conv1d.2.+", "mm.a.fc.+"],
        audio::qwen2a,
    ),
    kind(
        "voxtral",
        whisper,
        &[
            "a.conv1d.1.+",
            "a.conv1d.2.+",
            "mm.a.mlp.1.weight",
            "mm.a.mlp.2.weight",
        ],
        audio::voxtral,
    ),
    kind(
        "musicflamingo",
        whisper,
        &[
            "a.conv1d.1.+",
            "a.conv1d.2.+",
            "mm.a.mlp.1.+",
            "mm.a.mlp.2.+",
        ],
        audio::music_flamingo,
    ),
    kind(
        "meralion",
        whisper,
        &[
            "a.conv1d.1.+",
            "a.conv1d.2.+",
            "mm.a.mlp.0.+",
            "mm.a.mlp.1.+",
            "mm.a.mlp.2.+",
            "mm.a.mlp.3.+",
            "mm.a.norm_pre.+",
        ],
        audio::meralion,
    ),
    kind(
        "glma",
        whisper,
        &[
            "a.conv1d.1.+",
            "a.conv1d.2.+",
            "mm.a.mlp.1.+",
            "mm.a.mlp.2.+",
            "mm.a.norm_pre.+",
            "v.boi",
            "v.eoi",
        ],
        audio::glma,
    ),
];

impl ProjectorKind {
    /// Of a type whose graph is not known.
    pub const UNKNOWN: &'static ProjectorKind = &ProjectorKind {
        name: "",
        hparams: plain,
        tensors: &[],
        swaps_ffn: false,
        graph: None,
    };

    /// The type that files name so.
    pub fn find(name: &str) -> Option<&'static ProjectorKind> {
        ALL.iter().find(|kind| kind.name == name)
    }
}
