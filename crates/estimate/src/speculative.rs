//! Speculative decoding: a target and the draft beside it, each in a context of its own, as llama-server sets
//! them up (`tools/server/server-context.cpp`, `common/speculative.cpp`).

use crate::simulate::Context;
use crate::{Breakdown, EngineProfile, Error, Layout, Outputs, Refusal, RunConfig};
use std::borrow::Cow;
use vramfit_arch::{Lent, LentCaches, LentTensor, Model, Role};
use vramfit_ggml::{BufferType, Type};

/// How tokens are drafted (`--spec-type`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum DraftKind {
    /// A model of its own.
    Simple,
    /// EAGLE-3, which reads states of the target.
    Eagle3,
    /// Layers for multi-token prediction: the target's own, or those of a file.
    Mtp,
    /// DFlash: a block of tokens at once.
    Dflash,
    /// DFlash with DSpark's Markov head.
    Dspark,
}

impl DraftKind {
    /// All of them.
    pub const ALL: [DraftKind; 5] = [
        DraftKind::Simple,
        DraftKind::Eagle3,
        DraftKind::Mtp,
        DraftKind::Dflash,
        DraftKind::Dspark,
    ];

    /// As `--spec-type` names it.
    pub const fn name(self) -> &'static str {
        match self {
            DraftKind::Simple => "draft-simple",
            DraftKind::Eagle3 => "draft-eagle3",
            DraftKind::Mtp => "draft-mtp",
            DraftKind::Dflash => "draft-dflash",
            DraftKind::Dspark => "draft-dspark",
        }
    }

    /// From [`name`](Self::name).
    pub fn from_name(name: &str) -> Option<DraftKind> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// What the draft model `model` is for.
    pub fn of(model: &Model) -> DraftKind {
        let has = |name: &str| model.tensors.iter().any(|t| t.name == name);
        match model.architecture_name.as_str() {
            "eagle3" => DraftKind::Eagle3,
            "dflash" if has("markov_w1.weight") => DraftKind::Dspark,
            "dflash" => DraftKind::Dflash,
            "gemma4-assistant" => DraftKind::Mtp,
            _ if model.hparams.n_layer() == 0 => DraftKind::Mtp,
            _ => DraftKind::Simple,
        }
    }

    /// `model`, target or draft, as llama.cpp loads it for this: with its layers for multi-token prediction, where
    /// those draft.
    pub fn loaded(self, model: &Model) -> Cow<'_, Model> {
        match self.lacks(model) {
            true => Cow::Owned(model.clone().with_mtp()),
            false => Cow::Borrowed(model),
        }
    }

    /// `model` is without the layers that draft.
    fn lacks(self, model: &Model) -> bool {
        self == DraftKind::Mtp && !model.loads_mtp
    }

    /// Drafts a block of tokens in one pass.
    const fn drafts_blocks(self) -> bool {
        matches!(self, DraftKind::Dflash | DraftKind::Dspark)
    }
}

/// Settings of the draft, as llama-server's flags name them.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SpeculativeConfig {
    /// `--spec-type`.
    pub kind: DraftKind,
    /// `--spec-draft-n-max`.
    pub n_draft: u32,
    /// Most tokens that other ways of drafting have the target check at once (n-grams); 0 for none.
    pub n_verified: u32,
    /// Drafts are chosen on the device (off: `--no-spec-draft-backend-sampling`).
    pub device_sampling: bool,
    /// `-ctkd`.
    pub type_k: Type,
    /// `-ctvd`.
    pub type_v: Type,
    /// Where the draft goes: `-ngld`, `-otd`, and `-ts` of the target. Not read where the draft is a context on
    /// the target itself.
    pub layout: Layout,
    /// Free bytes of the draft's devices before anything is loaded. Without `-ts` llama.cpp spreads the draft by what
    /// the target leaves of them; empty where that is not known.
    pub free_bytes: Vec<u64>,
    /// For each device of the target, which of the draft's it is (`-devd`).
    pub devices: Vec<Option<usize>>,
}

impl SpeculativeConfig {
    /// llama-server's defaults: three tokens, on the target's devices.
    pub fn new(kind: DraftKind, target: &Layout) -> SpeculativeConfig {
        SpeculativeConfig {
            kind,
            n_draft: 3,
            n_verified: 0,
            device_sampling: true,
            type_k: Type::F16,
            type_v: Type::F16,
            layout: Layout {
                n_gpu_layers: None,
                overrides: Vec::new(),
                ..target.clone()
            },
            free_bytes: Vec::new(),
            devices: (0..target.devices.len()).map(Some).collect(),
        }
    }

    /// The target's settings: tokens to verify, states to go back to, layers that the draft reads.
    pub fn target_run(&self, run: &RunConfig, target: &Model, draft: Option<&Model>) -> RunConfig {
        let reads = draft.filter(|_| !matches!(self.kind, DraftKind::Simple | DraftKind::Mtp));
        let ids = reads.map_or(&[][..], |d| &d.hparams.target_layers);
        let n_layer = target.hparams.n_layer();
        // EAGLE-3 takes the last layer's output from the embeddings instead.
        let is_read = |&il: &usize| self.kind != DraftKind::Eagle3 || il < n_layer;
        // Layers that are read have the graphs reserved again; only then embeddings count.
        let has_last = ids.iter().any(|il| !is_read(il));
        let gives_states = has_last && ids.iter().any(is_read);
        RunConfig {
            role: Role {
                n_draft: self.n_draft.max(self.n_verified),
                n_rollback: match self.kind {
                    DraftKind::Simple => 0,
                    _ => self.n_draft,
                },
                tapped: ids.iter().copied().filter(is_read).collect(),
                gives_states,
                ..Role::default()
            },
            ..run.clone()
        }
    }
}

/// What target and draft take, each by its own devices.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SpeculativeUse {
    /// The target, with what it has to hold for the draft.
    pub target: Breakdown,
    /// The draft. Of a second context on the target, no weights.
    pub draft: Breakdown,
}

/// Settings of two contexts that work together.
#[derive(Clone, Debug)]
pub struct SpeculativeSettings {
    /// Of the target's context.
    pub target: RunConfig,
    /// Of the draft's.
    pub draft: RunConfig,
    /// Where the draft goes.
    pub draft_layout: Layout,
}

impl SpeculativeSettings {
    /// What the draft takes with these settings: `model` is its own, or the target, of which it is a second context
    /// without weights.
    pub fn estimate_draft(
        &self,
        model: &Model,
        is_own: bool,
        profile: &EngineProfile,
    ) -> Result<Breakdown, Error> {
        let mut used = Breakdown::estimate(model, &self.draft, &self.draft_layout, profile)?;
        if !is_own {
            used.devices.iter_mut().for_each(|d| d.model = 0);
            used.host.model = 0;
            used.host_repacked_bytes = 0;
        }
        Ok(used)
    }
}

impl SpeculativeUse {
    /// What llama.cpp takes for `target` and the draft beside it; without a `draft`, for the target's own layers for
    /// multi-token prediction. For [`DraftKind::Mtp`] both have to be loaded with those ([`DraftKind::loaded`]):
    /// else [`Error::WithoutMtp`].
    pub fn estimate(
        target: &Model,
        run: &RunConfig,
        layout: &Layout,
        draft: Option<&Model>,
        config: &SpeculativeConfig,
        profile: &EngineProfile,
    ) -> Result<SpeculativeUse, Error> {
        let run = config.target_run(run, target, draft);
        Ok(SpeculativeUse {
            target: Breakdown::estimate(target, &run, layout, profile)?,
            draft: Self::draft(target, &run, layout, draft, config, profile)?,
        })
    }

    /// The draft alone, beside a target whose settings [`SpeculativeConfig::target_run`] has made.
    pub fn draft(
        target: &Model,
        run: &RunConfig,
        layout: &Layout,
        draft: Option<&Model>,
        config: &SpeculativeConfig,
        profile: &EngineProfile,
    ) -> Result<Breakdown, Error> {
        let settings = Self::settings(target, run, layout, draft, config, profile)?;
        settings.estimate_draft(draft.unwrap_or(target), draft.is_some(), profile)
    }

    /// The settings of both contexts, each of which can be looked at by itself.
    pub fn settings(
        target: &Model,
        run: &RunConfig,
        layout: &Layout,
        draft: Option<&Model>,
        config: &SpeculativeConfig,
        profile: &EngineProfile,
    ) -> Result<SpeculativeSettings, Error> {
        if [Some(target), draft]
            .into_iter()
            .flatten()
            .any(|model| config.kind.lacks(model))
        {
            return Err(Error::WithoutMtp);
        }
        let run = config.target_run(run, target, draft);
        let context = Context::new(target, &run, layout, profile)?;
        let draft_layout = match draft {
            Some(_) => draft_layout(target, &run, layout, config, profile)?,
            None => layout.clone(),
        };
        Ok(SpeculativeSettings {
            draft: draft_run(
                &run,
                &context,
                draft.unwrap_or(target),
                [layout, &draft_layout],
                config,
            )?,
            draft_layout,
            target: run,
        })
    }
}

/// Where the draft goes: by its shares, else by what the target has left free when the draft is loaded, which is
/// before its graphs are reserved again.
fn draft_layout(
    target: &Model,
    run: &RunConfig,
    layout: &Layout,
    config: &SpeculativeConfig,
    profile: &EngineProfile,
) -> Result<Layout, Error> {
    let mut own = config.layout.clone();
    let is_given = own.tensor_split.iter().any(|&share| share != 0.0);
    // -sm tensor goes by equal shares
    if is_given || own.split_tensors || config.free_bytes.is_empty() {
        return Ok(own);
    }
    let mut first = run.clone();
    first.role.tapped.clear();
    first.role.gives_states = false;
    let taken = Breakdown::estimate(target, &first, layout, profile)?;
    own.tensor_split = vec![0.0; own.devices.len()];
    for (i, (share, free)) in own
        .tensor_split
        .iter_mut()
        .zip(&config.free_bytes)
        .enumerate()
    {
        let at = config.devices.iter().position(|&own| own == Some(i));
        let used = at.and_then(|at| taken.devices.get(at));
        *share = free.saturating_sub(used.map_or(0, |d| d.sum())) as f32;
    }
    Ok(own)
}

/// The draft's settings, which follow the target's, by the layouts of both.
fn draft_run(
    run: &RunConfig,
    target: &Context<'_>,
    draft: &Model,
    layouts: [&Layout; 2],
    config: &SpeculativeConfig,
) -> Result<RunConfig, Error> {
    let n_seqs = run.n_seq_max.max(1);
    let per_seq = match config.kind.drafts_blocks() {
        true => config.n_draft.saturating_add(1),
        false => 1,
    };
    // DFlash 2 has a selector instead.
    let has_sampler = config.kind != DraftKind::Simple && draft.hparams.selector.is_none();
    // llama.cpp has no samplers where tensors are shared out.
    let samples = config.device_sampling && has_sampler && !layouts[1].split_tensors;
    Ok(RunConfig {
        n_ctx: u32::try_from(target.params.n_ctx).unwrap_or(u32::MAX),
        type_k: config.type_k,
        type_v: config.type_v,
        embeddings: false,
        pooling: None,
        outputs: Outputs::AtMost(n_seqs.saturating_mul(per_seq)),
        adapters: Default::default(),
        role: Role {
            is_mtp: config.kind == DraftKind::Mtp,
            n_sampled: if samples { per_seq } else { 0 },
            target: Some(lent(target, draft, layouts, config)?),
            ..Role::default()
        },
        ..run.clone()
    })
}

/// The draft is shared out over the very devices of its target, in their order: both see them as the same one.
fn is_same_split([target, draft]: [&Layout; 2], config: &SpeculativeConfig) -> bool {
    let mut in_order = config.devices.iter().enumerate();
    let same_number = draft.devices.len() == target.devices.len();
    draft.split_tensors && same_number && in_order.all(|(i, &own)| own == Some(i))
}

/// What `target` can lend, by the draft's devices.
fn lent(
    target: &Context<'_>,
    draft: &Model,
    layouts: [&Layout; 2],
    config: &SpeculativeConfig,
) -> Result<Lent, Error> {
    if !draft.borrows_of_target() {
        return Ok(Lent::default());
    }
    let seen = |lent: LentTensor| -> Result<LentTensor, Error> {
        let Some(index) = lent.buffer.device_index() else {
            return Ok(lent);
        };
        if layouts[0].split_tensors {
            return match is_same_split(layouts, config) {
                true => Ok(lent),
                false => Err(Refusal::LentShared.into()),
            };
        }
        match config.devices.get(index).copied().flatten() {
            Some(own) => Ok(LentTensor {
                buffer: BufferType::device(own),
                ..lent
            }),
            None => Err(Refusal::LentElsewhere {
                device: format!("device {index}"),
            }
            .into()),
        }
    };
    let all = target.lends();
    Ok(Lent {
        token_embd: all.token_embd.map(seen).transpose()?,
        output: all.output.map(seen).transpose()?,
        output_scale: all.output_scale.map(seen).transpose()?,
        caches: match all.caches {
            Some(caches) if draft.hparams.n_embd_target > 0 => Some(LentCaches {
                window: [seen(caches.window[0])?, seen(caches.window[1])?],
                full: [seen(caches.full[0])?, seen(caches.full[1])?],
            }),
            _ => None,
        },
    })
}
