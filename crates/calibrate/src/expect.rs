//! What is predicted of a run, term by term.

use serde::{Deserialize, Serialize};
use vramfit::arch::ContextParams;
use vramfit::planner::Owner;
use vramfit::{Device, ENGINE, Error, Model, Placement};

use crate::allocate::{Step, What};

/// What was planned.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// The model's file.
    pub path: &'a str,
    /// The model.
    pub model: &'a Model,
    /// Where all of it goes.
    pub placement: &'a Placement,
    /// The GPUs that it was planned for.
    pub devices: &'a [Device],
    /// llama-server's flags for the files beside the model.
    pub beside: &'a [String],
}

/// A planned run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// The model's file.
    pub model: String,
    /// The engine build that the figures are for.
    pub build: String,
    /// llama-server's flags, behind `-m MODEL`.
    pub flags: Vec<String>,
    /// Tokens that fill the context of one sequence.
    pub n_ctx_seq: u64,
    /// Tokens that a server's slot takes when every slot is filled at once: less where slots share one cache, and never
    /// more than the model was trained for.
    #[serde(default)]
    pub n_ctx_slot: u64,
    /// Tokens computed at once.
    pub n_ubatch: u64,
    /// Sequences at once.
    pub n_seq: u64,
    /// Tokens of the vocabulary.
    pub n_vocab: u64,
    /// Embeddings are asked for, not tokens.
    pub embeddings: bool,
    /// The first and the last layer that control vectors are for.
    pub control_vector: Option<[usize; 2]>,
    /// A draft works beside the model.
    pub has_draft: bool,
    /// A multimodal projector is loaded beside the model.
    pub has_projector: bool,
    /// Every GPU given, in CUDA's order.
    pub devices: Vec<ExpectedDevice>,
    /// Every buffer on the GPUs, in the order in which llama-server takes them.
    pub steps: Vec<Step>,
}

/// A GPU's share, bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpectedDevice {
    /// As people call it.
    pub name: String,
    /// llama.cpp is told to use it.
    pub is_used: bool,
    /// Weights, with those of adapters.
    pub model_bytes: u64,
    /// Caches and recurrent state.
    pub context_bytes: u64,
    /// Compute buffer.
    pub compute_bytes: u64,
    /// ggml-cuda's pool of temporary buffers.
    pub pool_bytes: u64,
    /// Of it, what no batch but the largest is needed for.
    #[serde(default)]
    pub pool_own_bytes: u64,
    /// cuBLAS's workspace.
    pub workspace_bytes: u64,
    /// With `-sm tensor`: buffers through which devices add up their results.
    pub reduce_bytes: u64,
    /// The same of a draft.
    pub draft: Beside,
    /// The same of a multimodal projector.
    pub projector: Beside,
    /// Pool and workspace are only a bound.
    pub pool_is_bound: bool,
    /// The device cannot map memory by itself, so that ggml-cuda has its legacy kind of pool: `pool_bytes` is that of prompts
    /// that fill the context, one sequence after the other, and another order of work may keep more or less.
    pub pool_is_legacy: bool,
    /// llama.cpp's own buffers are only a bound: the architecture is not known.
    pub buffers_are_bound: bool,
    /// What the driver may round the buffers up by, all together.
    #[serde(default)]
    pub rounding_bytes: u64,
    /// CUDA's own, at least.
    pub overhead_low_bytes: u64,
    /// CUDA's own, at most; with `rounding_bytes`, where what it was learned from is without.
    pub overhead_bytes: u64,
}

/// What something beside the model takes of a GPU, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beside {
    /// Weights.
    pub model_bytes: u64,
    /// Caches and recurrent state.
    pub context_bytes: u64,
    /// Compute buffer.
    pub compute_bytes: u64,
    /// Pool and workspace.
    pub runtime_bytes: u64,
}

impl Beside {
    fn buffers(&self) -> u64 {
        total(&[self.model_bytes, self.context_bytes, self.compute_bytes])
    }
}

fn total(parts: &[u64]) -> u64 {
    parts.iter().copied().fold(0, u64::saturating_add)
}

impl ExpectedDevice {
    /// Weights, caches and compute buffers of the model and of its draft: what the engine's log names.
    pub fn named(&self) -> [u64; 3] {
        [
            self.model_bytes.saturating_add(self.draft.model_bytes),
            self.context_bytes.saturating_add(self.draft.context_bytes),
            self.compute_bytes.saturating_add(self.draft.compute_bytes),
        ]
    }

    /// llama.cpp's buffers.
    pub fn buffers(&self) -> u64 {
        total(&self.named()).saturating_add(self.projector.buffers())
    }

    /// What is taken for the length of a computation.
    pub fn runtime_bytes(&self) -> u64 {
        total(&[
            self.pool_bytes,
            self.workspace_bytes,
            self.reduce_bytes,
            self.draft.runtime_bytes,
            self.projector.runtime_bytes,
        ])
    }

    /// All but CUDA's own.
    pub fn engine_bytes(&self) -> u64 {
        self.buffers().saturating_add(self.runtime_bytes())
    }

    /// What the plan reckons with.
    pub fn total(&self) -> u64 {
        self.engine_bytes().saturating_add(self.overhead_bytes)
    }
}

impl Expected {
    /// What `plan` says of each of its devices.
    pub fn new(plan: &Plan<'_>) -> Result<Expected, Error> {
        let Plan {
            model, placement, ..
        } = *plan;
        let params = &placement.breakdown.params;
        let mut devices: Vec<ExpectedDevice> = (0..plan.devices.len())
            .map(|index| ExpectedDevice::new(plan, index))
            .collect();
        let steps = steps(plan, &devices)?;
        for (index, (expected, device)) in devices.iter_mut().zip(plan.devices).enumerate() {
            let own = steps.iter().filter(|step| step.device == index);
            expected.rounding_bytes = total(&own.map(Step::rounding_bytes).collect::<Vec<u64>>());
            if device.overhead.per_buffer_bytes > 0 {
                let high = &mut expected.overhead_bytes;
                *high = high.saturating_add(expected.rounding_bytes);
            }
        }
        let mut flags = placement.flags.clone();
        flags.extend_from_slice(plan.beside);
        Ok(Expected {
            model: plan.path.to_string(),
            build: ENGINE.name.to_string(),
            flags,
            n_ctx_seq: count(params.n_ctx_seq),
            n_ctx_slot: count(slot_tokens(params, model.hparams.n_ctx_train)),
            n_ubatch: count(params.n_ubatch),
            n_seq: count(params.n_seq_max).max(1),
            n_vocab: count(model.hparams.n_vocab),
            embeddings: placement.run.embeddings,
            control_vector: params.adapters.control_vector,
            has_draft: placement.draft.is_some(),
            has_projector: plan.beside.iter().any(|flag| flag == "--mmproj"),
            steps,
            devices,
        })
    }
}

impl ExpectedDevice {
    fn new(plan: &Plan<'_>, index: usize) -> ExpectedDevice {
        let placement = plan.placement;
        let breakdown = &placement.breakdown;
        let mut expected = ExpectedDevice::default();
        let (Some(device), Some(placed)) = (plan.devices.get(index), placement.devices.get(index))
        else {
            return expected;
        };
        expected.name.clone_from(&device.name);
        let position = |list: &[usize]| list.iter().position(|&d| d == index);
        if let Some(at) = position(&placement.layout_devices) {
            let memory = breakdown.devices.get(at).copied().unwrap_or_default();
            let runtime = breakdown.runtime.get(at).copied().unwrap_or_default();
            expected.is_used = true;
            expected.model_bytes = memory.model.saturating_add(memory.adapters);
            expected.context_bytes = memory.context;
            expected.compute_bytes = memory.compute;
            expected.pool_bytes = runtime.pool_bytes;
            expected.pool_own_bytes = runtime.pool_own_bytes;
            expected.workspace_bytes = runtime.workspace_bytes;
            expected.reduce_bytes = runtime.reduce_bytes;
            expected.pool_is_bound = runtime.is_bound;
            expected.buffers_are_bound = breakdown.bounded.is_bound();
        }
        if let Some(draft) = placement.draft.as_ref().filter(|_| placed.draft.sum() > 0) {
            let runtime = position(&draft.devices).and_then(|at| draft.breakdown.runtime.get(at));
            expected.draft = Beside {
                model_bytes: placed.draft.model.saturating_add(placed.draft.adapters),
                context_bytes: placed.draft.context,
                compute_bytes: placed.draft.compute,
                runtime_bytes: runtime.map_or(0, |r| r.sum()),
            };
            expected.pool_is_bound |= runtime.is_some_and(|r| r.is_bound);
            expected.buffers_are_bound |= draft.breakdown.bounded.is_bound();
        }
        expected.projector = Beside {
            model_bytes: placed.projector.model,
            context_bytes: placed.projector.context,
            compute_bytes: placed.projector.compute,
            // the placement has one figure for all that computes there
            runtime_bytes: match placed.projector.sum() {
                0 => 0,
                _ => placed
                    .runtime_bytes
                    .saturating_sub(expected.runtime_bytes()),
            },
        };
        expected.buffers_are_bound |= placed.projector_is_guess;
        expected.is_used |= placed.draft.sum() > 0 || placed.projector.sum() > 0;
        if expected.is_used {
            // What the driver keeps of the card is not the process's.
            let kept = device.overhead.kept_bytes;
            expected.overhead_low_bytes = device.overhead.low_bytes;
            expected.overhead_bytes = device.overhead.bytes.saturating_sub(kept);
        }
        expected
    }
}

/// Buffers as they are allocated, then what comes while the engine computes: on every GPU what the model takes, then
/// the draft, then the projector.
fn steps(plan: &Plan<'_>, devices: &[ExpectedDevice]) -> Result<Vec<Step>, Error> {
    let buffers = plan
        .placement
        .buffers(plan.model, &ENGINE)
        .map_err(Error::from)?;
    let mut steps: Vec<Step> = buffers.iter().map(Step::of).collect();
    type Bytes = fn(&ExpectedDevice) -> u64;
    let runtime: [(Owner, What, Bytes); 5] = [
        (Owner::Model, What::Reduce, |d| d.reduce_bytes),
        (Owner::Model, What::Workspace, |d| d.workspace_bytes),
        (Owner::Model, What::Pool, |d| d.pool_bytes),
        (Owner::Draft, What::Pool, |d| d.draft.runtime_bytes),
        (Owner::Projector, What::Pool, |d| d.projector.runtime_bytes),
    ];
    for (owner, what, of) in runtime {
        for (device, expected) in devices.iter().enumerate() {
            let bytes = of(expected);
            if bytes > 0 {
                steps.push(Step {
                    device,
                    of: owner.into(),
                    what,
                    bytes,
                });
            }
        }
    }
    Ok(steps)
}

/// Slots that share one cache fill it together; llama-server caps each at the context the model was trained for.
fn slot_tokens(params: &ContextParams, n_ctx_train: i64) -> i64 {
    let n_seq = params.n_seq_max.max(1);
    let share = match params.kv_unified {
        true => params.n_ctx.checked_div(n_seq).unwrap_or(params.n_ctx),
        false => params.n_ctx_seq,
    };
    let trained = if n_ctx_train > 0 { n_ctx_train } else { share };
    share.min(params.n_ctx_seq).min(trained)
}

fn count(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}
