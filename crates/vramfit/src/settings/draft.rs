//! Speculative decoding, as llama-server is told of it.

use std::path::PathBuf;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vramfit_arch::Model;
use vramfit_estimate::DraftKind;
use vramfit_plan::DraftPlan;

use super::resolve::{devices_named, set, tensor_override, wrong};
use super::{CacheType, GpuId, GpuLayers, TensorOverride};
use crate::{Error, GpuList};

/// Ways of drafting without a model, and how many tokens each has the model check at once by default.
const NGRAMS: [(&str, u32); 5] = [
    ("ngram-simple", 48),
    ("ngram-map-k", 48),
    ("ngram-map-k4v", 48),
    ("ngram-mod", 64),
    ("ngram-cache", 8),
];

/// Speculative decoding: a draft model beside the model, or its own layers for multi-token prediction.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct DraftFile {
    /// `--spec-type`: one name or more with commas between; left out, what the draft's file is for.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// `-md`: the draft model. Left out with `draft-mtp`: the model's own layers for multi-token prediction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// `--spec-draft-n-max`: tokens that are drafted at most. Default 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_max: Option<u32>,
    /// `-ngld`: layers of the draft on GPUs. Default all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_gpu_layers: Option<GpuLayers>,
    /// `-devd`: the draft's GPUs. Default the model's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devices: Option<Vec<GpuId>>,
    /// `-ctkd`. Default f16.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub type_k: Option<CacheType>,
    /// `-ctvd`. Default f16.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub type_v: Option<CacheType>,
    /// `-otd`.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "super::objects::objects"
    )]
    pub overrides: Vec<TensorOverride>,
    /// `-cmoed`: all experts of the draft on the host. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_moe: Option<bool>,
    /// `-ncmoed`: experts of its first so many layers on the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_cpu_moe: Option<u32>,
    /// `--spec-draft-backend-sampling`: drafts are chosen on the GPU. Default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_sampling: Option<bool>,
}

/// What a [`DraftFile`] comes to.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ResolvedDraft {
    /// For [`Policy::draft`](crate::Policy::draft); none where no model drafts.
    pub plan: Option<DraftPlan>,
    /// Tokens that the model has to check at once where no model drafts: for
    /// [`Role::n_draft`](crate::arch::Role::n_draft).
    pub n_verified: u32,
    /// llama-server's flags.
    pub flags: Vec<String>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

impl DraftFile {
    /// `path` beside a model.
    pub fn new(path: impl Into<PathBuf>) -> DraftFile {
        DraftFile {
            path: Some(path.into()),
            ..DraftFile::default()
        }
    }

    /// Reads the draft for `target`, and settles what the GPUs decide.
    pub fn resolve(&self, target: &Model, gpus: &GpuList) -> Result<ResolvedDraft, Error> {
        let model = self.path.as_ref().map(crate::open).transpose()?;
        let mut resolved = ResolvedDraft::default();
        let kinds = self.kinds(model.as_ref(), &mut resolved)?;
        resolved.flags = self.flags(&kinds, resolved.n_verified > 0);
        let kind = match kinds[..] {
            [] if model.is_some() => {
                return Err(wrong(
                    "draft",
                    "its type drafts without a model: leave out path",
                ));
            }
            [] => return Ok(resolved),
            [kind] => kind,
            [_, other, ..] => {
                let why = format!(
                    "{} is a second way to use one draft: choose one",
                    other.name()
                );
                return Err(wrong("draft", why));
            }
        };
        if model.is_none() && kind != DraftKind::Mtp {
            let why = format!("{} needs a draft model: give its path (-md)", kind.name());
            return Err(wrong("draft", why));
        }
        resolved
            .notes
            .extend(vocabularies(target, model.as_ref(), kind));
        let mut plan = DraftPlan::new(model.map(Arc::new), kind);
        plan.n_verified = std::mem::take(&mut resolved.n_verified);
        set(&mut plan.n_draft, self.n_max);
        set(&mut plan.type_k, self.type_k.map(CacheType::get));
        set(&mut plan.type_v, self.type_v.map(CacheType::get));
        set(&mut plan.device_sampling, self.backend_sampling);
        set(&mut plan.cpu_moe, self.cpu_moe);
        set(&mut plan.n_cpu_moe, self.n_cpu_moe);
        plan.n_gpu_layers = match self.n_gpu_layers {
            Some(GpuLayers::Layers(n)) => Some(n),
            _ => None,
        };
        let n_gpus = gpus.devices.len();
        let ids = self.devices.as_deref();
        plan.devices = ids
            .map(|ids| devices_named("draft.devices", ids, n_gpus))
            .transpose()?;
        let overrides = self.overrides.iter().map(|o| tensor_override(o, n_gpus));
        plan.overrides = overrides.collect::<Result<_, _>>()?;
        resolved.notes.push(NOTE.to_string());
        resolved.plan = Some(plan);
        Ok(resolved)
    }

    /// The ways of drafting that a model is for, as asked for or as its file says.
    fn kinds(
        &self,
        model: Option<&Model>,
        resolved: &mut ResolvedDraft,
    ) -> Result<Vec<DraftKind>, Error> {
        let mut kinds = Vec::new();
        for name in self.kind.iter().flat_map(|names| names.split(',')) {
            let ngram = NGRAMS.iter().find(|(ngram, _)| *ngram == name);
            match (DraftKind::from_name(name), ngram) {
                (Some(kind), _) if !kinds.contains(&kind) => kinds.push(kind),
                (Some(_), _) => {}
                (None, Some((_, n))) => resolved.n_verified = resolved.n_verified.max(*n),
                (None, None) if name == "none" => return Ok(Vec::new()),
                (None, None) => {
                    let drafts = DraftKind::ALL.map(DraftKind::name);
                    let ngrams = NGRAMS.map(|(name, _)| name);
                    let all = [&drafts[..], &ngrams[..]].concat().join(", ");
                    return Err(wrong("draft.type", format!("'{name}' is none of {all}")));
                }
            }
        }
        if let (None, Some(model)) = (&self.kind, model) {
            let kind = DraftKind::of(model);
            kinds.push(kind);
            if matches!(kind, DraftKind::Simple | DraftKind::Eagle3) {
                resolved.notes.push(format!(
                    "the draft's file says {}; llama-server itself drafts nothing without --spec-type, which the \
                     command has",
                    kind.name()
                ));
            }
        }
        Ok(kinds)
    }

    fn flags(&self, kinds: &[DraftKind], by_ngrams: bool) -> Vec<String> {
        let mut flags = Vec::new();
        let mut value = |flag: &str, value: String| flags.extend([flag.to_string(), value]);
        if let Some(path) = &self.path {
            value("-md", path.to_string_lossy().into_owned());
        }
        match &self.kind {
            Some(kind) if by_ngrams || !kinds.is_empty() => value("--spec-type", kind.clone()),
            Some(_) => {}
            None => kinds
                .iter()
                .for_each(|kind| value("--spec-type", kind.name().to_string())),
        }
        if let Some(n) = self.n_max {
            value("--spec-draft-n-max", n.to_string());
        }
        match self.n_gpu_layers {
            Some(GpuLayers::Layers(n)) => value("-ngld", n.to_string()),
            Some(GpuLayers::All) => value("-ngld", "all".to_string()),
            Some(GpuLayers::Auto) | None => {}
        }
        if let Some(ids) = &self.devices {
            let ids: Vec<String> = ids.iter().map(|id| GpuList::id(id.0)).collect();
            let ids = ids.join(",");
            value(
                "-devd",
                if ids.is_empty() {
                    "none".to_string()
                } else {
                    ids
                },
            );
        }
        for (flag, ty) in [("-ctkd", self.type_k), ("-ctvd", self.type_v)] {
            if let Some(ty) = ty {
                value(flag, ty.get().name().to_string());
            }
        }
        let overrides = self.overrides.iter();
        let overrides: Vec<String> = overrides
            .map(|o| format!("{}={}", o.pattern, o.buffer))
            .collect();
        if !overrides.is_empty() {
            value("-otd", overrides.join(","));
        }
        if let Some(n) = self.n_cpu_moe {
            value("-ncmoed", n.to_string());
        }
        if self.cpu_moe == Some(true) {
            flags.push("-cmoed".to_string());
        }
        if self.backend_sampling == Some(false) {
            flags.push("--no-spec-draft-backend-sampling".to_string());
        }
        flags
    }
}

const NOTE: &str = "the draft's weights, cache and compute buffers are among those of its devices, as they are from the first \
     request on";

/// llama-server turns a draft away whose vocabulary is another one (`SPEC_VOCAB_MAX_SIZE_DIFFERENCE`).
fn vocabularies(target: &Model, draft: Option<&Model>, kind: DraftKind) -> Option<String> {
    const MOST: i64 = 128;
    let draft = draft.filter(|_| kind == DraftKind::Simple)?;
    let [own, other] = [target, draft].map(|model| model.hparams.n_vocab);
    (own.abs_diff(other) > MOST.unsigned_abs()).then(|| {
        format!(
            "the model knows {own} tokens and the draft {other}: llama-server will not draft with it, though it takes \
             the memory"
        )
    })
}
