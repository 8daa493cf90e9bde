//! Settings made into what [`plan`](crate::plan) takes.

use vramfit_arch::{Adapters, CpuRepack, Model};
use vramfit_estimate::{FlashAttention, Outputs, RunConfig};
use vramfit_plan::{
    LayoutMode, Override, OverrideTarget, Pinned, Policy, Prefer, ProjectorPlan, SplitMode,
};
use vramfit_report::{LayoutWord, PreferWord, SplitWord};

use super::{AdapterFile, CacheType, GpuId, GpuLayers, MmprojFile, Settings, TensorOverride};
use crate::{Error, GpuList, ImageTokens};

/// `-ngl all`: above the layers of any model.
const ALL_LAYERS: u32 = 9999;

/// What a [`Settings`] comes to for one model on some GPUs.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Resolved {
    /// llama.cpp's settings, adapters read.
    pub run: RunConfig,
    /// What goes where, the projector read.
    pub policy: Policy,
    /// llama-server's flags for the files beside the model.
    pub flags: Vec<String>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

pub(super) fn wrong(what: &'static str, why: impl Into<String>) -> Error {
    Error::Settings {
        what,
        why: why.into(),
    }
}

pub(super) fn set<T>(slot: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *slot = value;
    }
}

impl Settings {
    /// Reads the files beside the model, and settles what the GPUs decide.
    pub fn resolve(&self, model: &Model, gpus: &GpuList) -> Result<Resolved, Error> {
        let n_gpus = gpus.devices.len();
        let mut resolved = Resolved {
            run: self.run()?,
            policy: Policy {
                mode: match self.layout {
                    Some(LayoutWord::Engine) => LayoutMode::Engine,
                    Some(LayoutWord::Best) | None => LayoutMode::Best,
                },
                prefer: self.prefer.map_or(Prefer::default(), prefer),
                pinned: self.pinned(n_gpus)?,
                projector: None,
                draft: None,
                without_flash_attention: match self.flash_attention {
                    Some(_) => None,
                    None => crate::without_flash_attention(&gpus.devices),
                },
            },
            flags: Vec::new(),
            notes: self.notes(model, gpus),
        };
        if resolved.run.outputs != Outputs::PerSequence {
            let note = "n_outputs is for users of the library: llama-server always reserves one a sequence";
            resolved.notes.push(note.to_string());
        }
        self.adapters(model, &mut resolved)?;
        if let Some(file) = &self.mmproj {
            file.resolve(gpus, &mut resolved)?;
        }
        if let Some(file) = &self.draft {
            let draft = file.resolve(model, gpus)?;
            resolved.run.role.n_draft = draft.n_verified;
            resolved.policy.draft = draft.plan;
            resolved.flags.extend(draft.flags);
            resolved.notes.extend(draft.notes);
        }
        Ok(resolved)
    }

    fn run(&self) -> Result<RunConfig, Error> {
        if self.n_seq_max == Some(0) {
            return Err(wrong(
                "n_seq_max",
                "0 sequences can do nothing; give 1 or more",
            ));
        }
        let mut run = RunConfig::default();
        set(&mut run.n_ctx, self.n_ctx);
        set(&mut run.n_batch, self.n_batch);
        set(&mut run.n_ubatch, self.n_ubatch);
        set(&mut run.n_seq_max, self.n_seq_max);
        set(&mut run.kv_unified, self.kv_unified);
        set(
            &mut run.flash_attention,
            self.flash_attention.map(|fa| fa.0),
        );
        set(&mut run.type_k, self.type_k.map(CacheType::get));
        set(&mut run.type_v, self.type_v.map(CacheType::get));
        set(&mut run.offload_kqv, self.offload_kqv);
        set(&mut run.op_offload, self.op_offload);
        set(&mut run.swa_full, self.swa_full);
        set(&mut run.use_mmap, self.mmap);
        set(&mut run.pinned_host, self.no_host.map(|no| !no));
        set(&mut run.embeddings, self.embeddings);
        if self.repack == Some(false) {
            run.cpu_repack = CpuRepack::Off;
        }
        run.pooling = self.pooling.map(Into::into);
        run.outputs = match self.n_outputs {
            None => Outputs::PerSequence,
            Some(0) => Outputs::EveryToken,
            Some(n) => Outputs::AtMost(n),
        };
        Ok(run)
    }

    fn pinned(&self, n_gpus: usize) -> Result<Pinned, Error> {
        let devices = self.devices.as_deref().map(|d| devices(d, n_gpus));
        let devices = devices.transpose()?;
        let used = devices.as_ref().map_or(n_gpus, Vec::len);
        let split_mode = self.split_mode.map(|mode| match mode {
            SplitWord::None => SplitMode::None,
            SplitWord::Layer => SplitMode::Layer,
            SplitWord::Tensor => SplitMode::Tensor,
        });
        let main_gpu = self.main_gpu.map(|main| main as usize);
        if let Some(main) = main_gpu.filter(|&main| main >= used && used > 0)
            && split_mode == Some(SplitMode::None)
        {
            let why = format!("{main} is not below {used}, the number of GPUs in use");
            return Err(wrong("main_gpu", why));
        }
        if let Some(shares) = &self.tensor_split
            && (shares.is_empty() || shares.iter().any(|x| !x.is_finite() || *x < 0.0))
        {
            return Err(wrong(
                "tensor_split",
                "is not a list of shares such as [3, 1]",
            ));
        }
        let overrides = self.overrides.iter().map(|o| tensor_override(o, n_gpus));
        Ok(Pinned {
            n_gpu_layers: match self.n_gpu_layers {
                None | Some(GpuLayers::Auto) => None,
                Some(GpuLayers::All) => Some(ALL_LAYERS),
                Some(GpuLayers::Layers(n)) => Some(n.min(ALL_LAYERS)),
            },
            tensor_split: self.tensor_split.clone(),
            split_mode,
            main_gpu,
            devices,
            overrides: overrides.collect::<Result<_, _>>()?,
            cpu_moe: self.cpu_moe.unwrap_or(false),
            n_cpu_moe: self.n_cpu_moe,
            experts_behind: None,
        })
    }

    fn notes(&self, model: &Model, gpus: &GpuList) -> Vec<String> {
        let mut notes = Vec::new();
        if self.n_ctx.is_none() {
            let n = model.hparams.n_ctx_train;
            notes.push(format!(
                "n_ctx 4096 is estimate's default; llama-server without -c takes the model's {n}"
            ));
        }
        notes.extend(gpus.notes.iter().map(ToString::to_string));
        notes
    }

    fn adapters(&self, model: &Model, resolved: &mut Resolved) -> Result<(), Error> {
        if let Some([first, last]) = self.control_vector_layer_range {
            let flag = "--control-vector-layer-range".to_string();
            let range = [flag, first.to_string(), last.to_string()];
            resolved.flags.extend(range);
        }
        let is_applied = !self.lora_init_without_apply.unwrap_or(false);
        let mut loras = Vec::new();
        for file in &self.loras {
            let mut lora = crate::lora(&file.path, model)?;
            lora.is_applied = is_applied && file.scale != Some(0.0);
            loras.push(lora);
            resolved.flags.extend(file.flags("--lora")?);
        }
        let mut adapters = Adapters {
            loras: loras.into(),
            control_vector: None,
        };
        for file in &self.control_vectors {
            let all = crate::control_vector(&file.path, model)?;
            adapters.control_vector = Some(self.controlled(all));
            resolved.flags.extend(file.flags("--control-vector")?);
        }
        if !is_applied {
            resolved.flags.push("--lora-init-without-apply".to_string());
        }
        resolved.run.adapters = adapters;
        Ok(())
    }
}

impl Settings {
    /// The layers that control vectors are for, out of `all` of a file.
    fn controlled(&self, all: [usize; 2]) -> [usize; 2] {
        let [first, last] = self.control_vector_layer_range.unwrap_or_default();
        let [all_first, all_last] = all;
        let given = |layer: u32, all: usize| match layer {
            0 => all,
            n => n as usize,
        };
        [given(first, all_first), given(last, all_last)]
    }
}

impl AdapterFile {
    fn flags(&self, flag: &str) -> Result<[String; 2], Error> {
        let path = self.path.to_string_lossy();
        Ok(match self.scale {
            None => [flag.to_string(), path.into_owned()],
            Some(scale) if scale.is_finite() => {
                [format!("{flag}-scaled"), format!("{path}:{scale}")]
            }
            Some(scale) => return Err(wrong("scale", format!("{scale} is not a number"))),
        })
    }
}

impl MmprojFile {
    fn resolve(&self, gpus: &GpuList, resolved: &mut Resolved) -> Result<(), Error> {
        let on_host = self.offload == Some(false);
        let path = self.path.to_string_lossy().into_owned();
        resolved.flags.extend(["--mmproj".to_string(), path]);
        for (flag, tokens) in [
            ("--image-min-tokens", self.image_min_tokens),
            ("--image-max-tokens", self.image_max_tokens),
        ] {
            if let Some(n) = tokens {
                resolved.flags.extend([flag.to_string(), n.to_string()]);
            }
        }
        let device = match self.device.filter(|_| !on_host) {
            Some(id) => Some(index(id, gpus.devices.len(), "mmproj.device")?),
            None => None,
        };
        if on_host {
            resolved.flags.push("--no-mmproj-offload".to_string());
        } else if let Some(index) = device {
            let flags = ["--mmproj-device".to_string(), GpuList::id(index)];
            resolved.flags.extend(flags);
        }
        let default = ImageTokens::default();
        let tokens = ImageTokens {
            min: self.image_min_tokens.unwrap_or(default.min),
            max: self.image_max_tokens.unwrap_or(default.max),
        };
        let projector = crate::projector(&self.path, tokens)?;
        let plan = |attention| -> Result<ProjectorPlan, Error> {
            Ok(ProjectorPlan {
                on_host,
                device,
                ..crate::projector_plan(&projector, attention, &gpus.devices)?
            })
        };
        resolved.policy.projector = Some(plan(resolved.run.flash_attention)?);
        if let Some(without) = &mut resolved.policy.without_flash_attention {
            without.projector = Some(plan(FlashAttention::Off)?);
        }
        resolved.notes.extend(crate::projector_notes(&projector));
        Ok(())
    }
}

fn prefer(word: PreferWord) -> Prefer {
    match word {
        PreferWord::MostFree => Prefer::MostFree,
        PreferWord::First => Prefer::First,
        PreferWord::Last => Prefer::Last,
        PreferWord::Tightest => Prefer::Tightest,
    }
}

fn index(id: GpuId, n_gpus: usize, what: &'static str) -> Result<usize, Error> {
    let GpuId(index) = id;
    match index < n_gpus {
        true => Ok(index),
        false => Err(wrong(
            what,
            format!("CUDA{index} is none of the {n_gpus} GPUs given"),
        )),
    }
}

fn devices(ids: &[GpuId], n_gpus: usize) -> Result<Vec<usize>, Error> {
    devices_named("devices", ids, n_gpus)
}

pub(super) fn devices_named(
    what: &'static str,
    ids: &[GpuId],
    n_gpus: usize,
) -> Result<Vec<usize>, Error> {
    let mut devices = Vec::new();
    for id in ids {
        let index = index(*id, n_gpus, what)?;
        if devices.contains(&index) {
            return Err(wrong(what, format!("CUDA{index} is named twice")));
        }
        devices.push(index);
    }
    Ok(devices)
}

pub(super) fn tensor_override(given: &TensorOverride, n_gpus: usize) -> Result<Override, Error> {
    let buffer = given.buffer.as_str();
    let target = match buffer {
        "CPU" => OverrideTarget::Host,
        _ => {
            let id: Result<GpuId, _> = serde_json::from_value(buffer.into());
            let Ok(id) = id else {
                let why = format!("'{buffer}' is neither CPU nor a GPU such as CUDA0");
                return Err(wrong("overrides", why));
            };
            OverrideTarget::Device(index(id, n_gpus, "overrides")?)
        }
    };
    let pattern = regex::Regex::new(&given.pattern).map_err(|error| {
        // The last line has the reason; those before it point at the place.
        let reason = error.to_string();
        let reason = reason.lines().last().unwrap_or_default();
        let reason = reason.trim_start_matches("error: ");
        let why = format!("'{}' is not a regular expression: {reason}", given.pattern);
        wrong("overrides", why)
    })?;
    Ok(Override { pattern, target })
}
