//! The types of projectors (`clip.projector_type`): what each reads, loads and computes.

use super::graph::TowerGraph;
use super::hparams::{SCALE_FACTOR, TowerHparams};
use super::{
    audio, conformer, convnext, frames, gemma, gemma4a, granite_speech, llava, minicpm, mobilenet,
    native, qformer, qwen, sam, speech, vision,
};
use crate::Result;
use crate::keys::Keys;
use vramfit_ggml::TensorId;

type Build = fn(&mut TowerGraph<'_>) -> TensorId;
type Read = fn(&Keys<'_>, &mut TowerHparams) -> Result<()>;

/// What is computed when a tower is loaded.
#[derive(Clone, Copy, Debug)]
pub(super) enum WarmUp {
    /// This graph.
    Graph(Build),
    /// Nothing: it has weights alone until it is used.
    Nothing,
    /// The type is not known.
    Unknown,
}

/// A type of projector.
#[derive(Debug)]
pub struct ProjectorKind {
    /// As the file names it.
    pub name: &'static str,
    /// Its own keys, and what it is warmed up with.
    pub(super) hparams: Read,
    /// Tensors beside those of the transformer: a `+` is weight and bias, a `*` the number of a layer, a `#` that of a
    /// layer of the second stack, a `?` any number.
    pub(super) tensors: &'static [&'static str],
    /// Old files have the two matrices of a network swapped.
    pub(super) swaps_ffn: bool,
    pub(super) warmup: WarmUp,
}

pub(super) const fn kind(
    name: &'static str,
    hparams: Read,
    tensors: &'static [&'static str],
    graph: Build,
) -> ProjectorKind {
    ProjectorKind {
        name,
        hparams,
        tensors,
        swaps_ffn: false,
        warmup: WarmUp::Graph(graph),
    }
}

/// A type that is loaded and not warmed up.
pub(super) const fn silent(name: &'static str, tensors: &'static [&'static str]) -> ProjectorKind {
    ProjectorKind {
        name,
        hparams: common,
        tensors,
        swaps_ffn: false,
        warmup: WarmUp::Nothing,
    }
}

pub(super) const fn swapping(kind: ProjectorKind) -> ProjectorKind {
    ProjectorKind {
        swaps_ffn: true,
        ..kind
    }
}

pub(super) const TWO: &[&str] = &["mm.0.+", "mm.2.+"];
pub(super) const NORM_AND_TWO: &[&str] = &["mm.input_norm.+", "mm.1.+", "mm.2.+"];

/// Nothing beside what all towers read.
pub(super) fn common(_: &Keys<'_>, _: &mut TowerHparams) -> Result<()> {
    Ok(())
}

pub(super) fn scaled(keys: &Keys<'_>, hp: &mut TowerHparams) -> Result<()> {
    hp.merge_by(keys, SCALE_FACTOR, 1)
}

/// All types, by the file that holds their graphs.
static FAMILIES: &[&[ProjectorKind]] = &[
    audio::KINDS,
    conformer::KINDS,
    convnext::KINDS,
    frames::KINDS,
    gemma::KINDS,
    gemma4a::KINDS,
    granite_speech::KINDS,
    llava::KINDS,
    minicpm::KINDS,
    mobilenet::KINDS,
    native::KINDS,
    qformer::KINDS,
    qwen::KINDS,
    sam::KINDS,
    speech::KINDS,
    vision::KINDS,
];

impl ProjectorKind {
    /// Of a type whose graph is not known.
    pub const UNKNOWN: &'static ProjectorKind = &ProjectorKind {
        name: "",
        hparams: common,
        tensors: &[],
        swaps_ffn: false,
        warmup: WarmUp::Unknown,
    };

    /// The type that files name so.
    pub fn find(name: &str) -> Option<&'static ProjectorKind> {
        let mut all = FAMILIES.iter().flat_map(|kinds| kinds.iter());
        all.find(|kind| kind.name == name)
    }
}
