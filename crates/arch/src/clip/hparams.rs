//! Shape of a tower, and the size of what it is warmed up with.

use super::Modality;
use crate::Result;
use crate::keys::Keys;
use vramfit_ggml::{Glu, Unary};

const MAX_WIDTH: i64 = 1 << 20;
const MAX_LAYERS: i64 = 512;
const MAX_HEADS: i64 = 1 << 16;
const MAX_IMAGE: i64 = 8192;
pub(super) const MAX_PATCH: i64 = 65535;
const MAX_MEL_BINS: i64 = 256;
const MAX_STACK: i64 = 512;
pub(super) const MAX_PIXELS: i64 = i32::MAX as i64;
pub(super) const MAX_QUERY: i64 = 1 << 16;
pub(super) const SCALE_FACTOR: &str = "vision.projector.scale_factor";
pub(super) const SPATIAL_MERGE: &str = "vision.spatial_merge_size";
const WARMUP_FRAMES: i64 = 3000;

/// Activation of a feed-forward network (`ffn_op_type`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)]
pub enum Activation {
    Gelu,
    GeluErf,
    Silu,
    #[default]
    GeluQuick,
    ReluSqr,
}

impl Activation {
    pub(super) fn unary(self) -> Unary {
        match self {
            Activation::Gelu => Unary::Gelu,
            Activation::GeluErf => Unary::GeluErf,
            Activation::Silu => Unary::Silu,
            Activation::GeluQuick => Unary::GeluQuick,
            Activation::ReluSqr => Unary::Relu,
        }
    }

    pub(super) fn glu(self) -> Option<Glu> {
        Some(match self {
            Activation::Gelu => Glu::Geglu,
            Activation::GeluErf => Glu::GegluErf,
            Activation::Silu => Glu::Swiglu,
            Activation::GeluQuick => Glu::GegluQuick,
            Activation::ReluSqr => return None,
        })
    }
}

/// How many tokens an image may become (`--image-min-tokens`, `--image-max-tokens`); 0 for the projector's own limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ImageTokens {
    /// At least.
    pub min: u32,
    /// At most.
    pub max: u32,
}

/// `clip_hparams`, as far as it shapes a graph.
#[derive(Clone, Debug, Default)]
pub struct TowerHparams {
    /// Width.
    pub n_embd: i64,
    /// Width of a feed-forward network.
    pub n_ff: i64,
    /// Layers.
    pub n_layer: usize,
    /// Heads.
    pub n_head: i64,
    /// Heads of K and V.
    pub n_head_kv: i64,
    /// Width of a head.
    pub n_embd_head: i64,
    /// `projection_dim`.
    pub projection_dim: i64,
    /// Pixels a side that the tower was made for.
    pub image_size: i64,
    /// Pixels a side of a patch.
    pub patch_size: i64,
    /// Patches a side that become one token.
    pub n_merge: i64,
    /// Width and height of what it is warmed up with: pixels, or frames and mel bins.
    pub warmup: [i64; 2],
    /// Of the feed-forward networks.
    pub activation: Activation,
    /// Every n-th layer sees all patches, the others windows; 0: all of them do.
    pub n_wa_pattern: i64,
    /// Layers whose results are stacked.
    pub feature_layers: Vec<i64>,
    /// Queries of a resampler.
    pub n_query: i64,
    /// Frames that become one token.
    pub stack_factor: i64,
    /// Limits by the user.
    pub tokens: ImageTokens,
    /// Experts that a patch is sent to.
    pub n_expert_used: i64,
    /// Pixels, or patches, a side of a window of attention.
    pub window: i64,
    /// One number a layer: which patches it sees.
    pub modes: Vec<i64>,
    /// The stack of layers beside the tower's own: SAM's, a Q-former's, or of a transformer behind it.
    pub second: Stack,
    /// What a Q-former reads and asks for.
    pub qformer: QFormer,
    /// Entries of each codebook.
    pub codebooks: Vec<i64>,
    /// Frames that are looked at together.
    pub chunk: i64,
    /// Frames that a convolution over time sees.
    pub conv_kernel: i64,
}

/// A stack of layers beside the tower's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stack {
    /// Layers.
    pub n_layer: usize,
    /// Heads.
    pub n_head: i64,
    /// Width.
    pub n_embd: i64,
}

/// Queries that look at windows of what a tower computes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct QFormer {
    /// Patches a side of a window, or frames.
    pub window: i64,
    /// Queries a side of a window, or by how much frames become fewer.
    pub query: i64,
    /// For each block: negative where its queries are averages.
    pub offsets: Vec<i64>,
}

impl TowerHparams {
    /// What all towers have.
    pub(super) fn load(
        keys: &Keys<'_>,
        modality: Modality,
        type_name: &str,
        tokens: ImageTokens,
    ) -> Result<TowerHparams> {
        let prefix = modality.name();
        let name = |key: &str| format!("{prefix}.{key}");
        let mut hp = TowerHparams {
            n_embd: keys.require(&name("embedding_length"), MAX_WIDTH)?,
            n_ff: keys
                .int(&name("feed_forward_length"), MAX_WIDTH)?
                .unwrap_or(0),
            n_layer: keys.int(&name("block_count"), MAX_LAYERS)?.unwrap_or(0) as usize,
            n_head: keys
                .int(&name("attention.head_count"), MAX_HEADS)?
                .unwrap_or(0),
            projection_dim: keys.int(&name("projection_dim"), MAX_WIDTH)?.unwrap_or(0),
            n_merge: 1,
            tokens,
            ..TowerHparams::default()
        };
        let n_head_kv = keys.int(&name("attention.head_count_kv"), MAX_HEADS)?;
        hp.n_head_kv = n_head_kv.unwrap_or(hp.n_head);
        let n_embd_head = keys.positive(&name("attention.head_dim"), MAX_WIDTH)?;
        hp.n_embd_head = n_embd_head.unwrap_or(hp.n_embd / hp.n_head.max(1));
        if keys.flag("use_gelu")?.unwrap_or(false) {
            hp.activation = Activation::Gelu;
        } else if keys.flag("use_silu")?.unwrap_or(false) {
            hp.activation = Activation::Silu;
        }
        let layers = keys.array(&name("feature_layer"), MAX_LAYERS as usize, -1)?;
        hp.feature_layers = layers.unwrap_or_default();
        hp.feature_layers.retain(|&il| il >= 0);
        match modality {
            Modality::Vision => {
                hp.image_size = keys.int("vision.image_size", MAX_IMAGE)?.unwrap_or(0);
                hp.patch_size = keys.require("vision.patch_size", MAX_PATCH)?;
                hp.warmup = [hp.image_size; 2];
            }
            Modality::Speech => hp.patch_size = 1,
            Modality::Audio => {
                hp.patch_size = 1;
                // Gemma 4's unified tower reads the waveform itself, whatever the key says.
                let most = match type_name {
                    "gemma4ua" => MAX_WIDTH,
                    _ => MAX_MEL_BINS,
                };
                hp.warmup = [WARMUP_FRAMES, keys.require("audio.num_mel_bins", most)?];
            }
        }
        Ok(hp)
    }

    /// Reads `n_merge` where the key is there.
    pub(super) fn merge_by(&mut self, keys: &Keys<'_>, key: &str, default: i64) -> Result<()> {
        self.n_merge = keys.positive(key, MAX_PATCH)?.unwrap_or(default);
        Ok(())
    }

    /// `set_warmup_n_tokens`, with the square root of the tokens.
    pub(super) fn warm_up_with_side(&mut self, tokens_a_side: i64) {
        let side = tokens_a_side
            .saturating_mul(self.patch_size)
            .saturating_mul(self.n_merge);
        self.warmup = [side.min(MAX_PIXELS); 2];
    }

    /// `set_limit_image_tokens`: the largest image, which the tower is also warmed up with unless it says otherwise.
    pub(super) fn limit_tokens(&mut self, most: i64) {
        let most = match self.tokens.max {
            0 => most,
            n => i64::from(n),
        };
        let side = self.patch_size.saturating_mul(self.n_merge);
        let pixels = most
            .saturating_mul(side.saturating_mul(side))
            .min(MAX_PIXELS);
        self.warmup = [pixels.isqrt(); 2];
    }

    /// A layer's number for each of them; the engine insists that there are as many.
    pub(super) fn read_modes(&mut self, keys: &Keys<'_>, key: &str) -> Result<()> {
        let modes = keys.array(key, self.n_layer, 0)?;
        self.modes = modes.ok_or_else(|| keys.missing(key))?;
        Ok(())
    }

    /// How many layers a second stack has.
    pub(super) fn read_second(&mut self, keys: &Keys<'_>, key: &str) -> Result<()> {
        self.second.n_layer = keys.int(key, MAX_STACK)?.unwrap_or(0) as usize;
        Ok(())
    }

    /// Whether the result of layer `il` is among those stacked.
    pub(super) fn is_feature_layer(&self, il: usize) -> bool {
        self.feature_layers.contains(&(il as i64))
    }
}
