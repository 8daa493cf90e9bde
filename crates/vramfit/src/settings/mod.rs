//! Settings as a document: what programs in other languages, and servers, are told in JSON.

mod draft;
pub mod objects;
mod resolve;
mod words;

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vramfit_report::{LayoutWord, PreferWord, SplitWord};

pub use draft::{DraftFile, ResolvedDraft};
pub use resolve::Resolved;
pub use words::{CacheType, FlashWord, GpuId, GpuLayers, PoolingWord};

use crate::Error;

/// How a model is to be run and where it may go: llama-server's settings under the names that
/// [`report::Estimate`](crate::report::Estimate) reports them by, each with llama-server's own default
/// (`n_ctx`: 4096) where it is left out.
///
/// ```
/// let settings = vramfit::Settings::from_json(r#"{"n_ctx": 32768, "type_k": "q8_0", "type_v": "q8_0"}"#)?;
/// assert_eq!(settings.n_ctx, Some(32768));
/// let unknown = vramfit::Settings::from_json(r#"{"n_ctxx": 32768}"#).unwrap_err();
/// assert!(unknown.to_string().starts_with("settings: unknown field `n_ctxx`, expected one of `n_ctx`"));
/// # Ok::<(), vramfit::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Settings {
    /// `-c`: cells of the KV cache over all sequences; 0 for the model's own context. Default 4096.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_ctx: Option<u32>,
    /// `-b`: tokens of a logical batch. Default 2048.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_batch: Option<u32>,
    /// `-ub`: tokens computed at once. Default 512.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_ubatch: Option<u32>,
    /// `-np`: sequences at once. Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_seq_max: Option<u32>,
    /// Tokens of a batch whose logits are reserved; 0 for every token. Default one a sequence, as llama-server has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_outputs: Option<u32>,
    /// `-kvu`: one KV cache for all sequences. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_unified: Option<bool>,
    /// `-fa`. Default auto; off where a card is named that no published build has it for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flash_attention: Option<FlashWord>,
    /// `-ctk`: element type of the K cache. Default f16.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub type_k: Option<CacheType>,
    /// `-ctv`: element type of the V cache. Default f16.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub type_v: Option<CacheType>,
    /// `-kvo`: KV cache and attention on the GPUs. Default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offload_kqv: Option<bool>,
    /// `--op-offload`: large batches of host weights are computed on a GPU. Default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub op_offload: Option<bool>,
    /// `--swa-full`: a full-size cache for layers with a sliding window. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swa_full: Option<bool>,
    /// `--mmap`: host weights stay in the mapped file. Default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mmap: Option<bool>,
    /// `--no-host`: the CPU's buffers are not pinned. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_host: Option<bool>,
    /// `--repack`: the CPU re-orders weights that are its own. Default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repack: Option<bool>,
    /// `--embeddings`. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embeddings: Option<bool>,
    /// `--pooling` of embeddings. Default the model's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pooling: Option<PoolingWord>,

    /// `-ngl`: layers on GPUs, the output layer included. Left out, the placement is searched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_gpu_layers: Option<GpuLayers>,
    /// `-ts`: shares of the GPUs in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor_split: Option<Vec<f32>>,
    /// `-sm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split_mode: Option<SplitWord>,
    /// `-mg`: index among the GPUs in use, for `split_mode` none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub main_gpu: Option<u32>,
    /// `-dev`: GPUs that may be used, in this order; empty for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devices: Option<Vec<GpuId>>,
    /// `-ot`: tensors that go elsewhere than their layer, in order; the first match counts.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "objects::objects"
    )]
    pub overrides: Vec<TensorOverride>,
    /// `-cmoe`: all experts on the host. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_moe: Option<bool>,
    /// `-ncmoe`: experts of the first so many layers on the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_cpu_moe: Option<u32>,
    /// Who decides where layers go. Default best: vramfit searches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layout: Option<LayoutWord>,
    /// Which GPU is taken when several would do alone. Default most-free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefer: Option<PreferWord>,

    /// `--lora` and `--lora-scaled`.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "objects::objects"
    )]
    pub loras: Vec<AdapterFile>,
    /// `--lora-init-without-apply`: adapters are loaded, and applied only later. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_init_without_apply: Option<bool>,
    /// `--control-vector` and `--control-vector-scaled`, for all layers.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "objects::objects"
    )]
    pub control_vectors: Vec<AdapterFile>,
    /// `--control-vector-layer-range`: the first and the last layer that control vectors are for; 0 for where llama.cpp
    /// begins and ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_vector_layer_range: Option<[u32; 2]>,
    /// `--mmproj`: a multimodal projector, which is loaded beside the model.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "objects::object_or_null"
    )]
    pub mmproj: Option<MmprojFile>,
    /// Speculative decoding: `-md`, `--spec-type`.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "objects::object_or_null"
    )]
    pub draft: Option<DraftFile>,
}

/// Tensors that go elsewhere than their layer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct TensorOverride {
    /// Regular expression, searched for in tensor names.
    pub pattern: String,
    /// `CPU`, or a GPU such as `CUDA0`.
    pub buffer: String,
}

/// A file beside the model, applied at a scale.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct AdapterFile {
    /// The file.
    pub path: PathBuf,
    /// Its scale; an adapter of scale 0 is loaded and not applied. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f32>,
}

/// A multimodal projector, as llama-server is told of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct MmprojFile {
    /// The file.
    pub path: PathBuf,
    /// `--mmproj-offload`: on a GPU, or on the host. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offload: Option<bool>,
    /// `--mmproj-device`. Default the first GPU that the model may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<GpuId>,
    /// `--image-min-tokens`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_min_tokens: Option<u32>,
    /// `--image-max-tokens`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_max_tokens: Option<u32>,
}

impl TensorOverride {
    /// Tensors with `pattern` in their names go to `buffer`.
    pub fn new(pattern: impl Into<String>, buffer: impl Into<String>) -> TensorOverride {
        TensorOverride {
            pattern: pattern.into(),
            buffer: buffer.into(),
        }
    }
}

impl AdapterFile {
    /// `path` at scale 1.
    pub fn new(path: impl Into<PathBuf>) -> AdapterFile {
        AdapterFile {
            path: path.into(),
            scale: None,
        }
    }
}

impl MmprojFile {
    /// `path` on the first GPU that the model may use.
    pub fn new(path: impl Into<PathBuf>) -> MmprojFile {
        MmprojFile {
            path: path.into(),
            ..MmprojFile::default()
        }
    }
}

impl Settings {
    /// Every file that these settings name: for servers that look where it is before it is read.
    pub fn files_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let beside = self.loras.iter_mut().chain(&mut self.control_vectors);
        let projector = self.mmproj.as_mut().map(|file| &mut file.path);
        let draft = self.draft.as_mut().and_then(|file| file.path.as_mut());
        let beside = beside.map(|file| &mut file.path);
        beside.chain(projector).chain(draft)
    }

    /// The JSON Schema (draft 2020-12) of [`Settings::from_json`].
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Settings).to_value()
    }

    /// Reads a JSON object; what it does not know is an error that lists what there is. An empty text is all
    /// defaults.
    pub fn from_json(text: &str) -> Result<Settings, Error> {
        if text.trim().is_empty() {
            return Ok(Settings::default());
        }
        let mut json = serde_json::Deserializer::from_str(text);
        let read = objects::object(&mut json).and_then(|settings| json.end().map(|()| settings));
        read.map_err(|error| Error::Settings {
            what: "settings",
            why: error.to_string(),
        })
    }
}
