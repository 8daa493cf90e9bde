//! Placements.

use std::ffi::{CString, c_char};
use std::ptr;
use std::sync::Arc;

use vramfit::report::{
    DeviceReport, DeviceTerm, Estimate, Style, Sure, TermKind, VerdictWord, estimate_text,
    explanation_text,
};
use vramfit::{Answer, Settings};

use crate::error::{Failure, free, guard, look, vramfit_error, vramfit_status};
use crate::gpus::vramfit_gpus;
use crate::model::{Opened, vramfit_model};
use crate::text::{Out, array_of, c_string, handle, pointer, text_or_null};

/// The host where a GPU's index is asked for.
pub const VRAMFIT_HOST_MEMORY: u32 = 0xffff_ffff;

/// The answer in one word.
#[repr(i32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum vramfit_verdict {
    /// All layers on GPUs (or, with no GPU, on the host), within free memory.
    Fits = 0,
    /// Some layers or experts stay on the host.
    Partial = 1,
    /// Not as asked: a GPU falls short, or no layer fits on any.
    DoesNotFit = 2,
}

/// What bytes are for.
#[repr(i32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum vramfit_term_kind {
    /// The model's weights.
    Weights = 0,
    /// LoRA adapters and control vectors.
    Adapters = 1,
    /// KV cache and recurrent state.
    Context = 2,
    /// The compute buffer.
    Compute = 3,
    /// A multimodal projector's weights.
    ProjectorWeights = 4,
    /// A multimodal projector's own compute buffers.
    ProjectorCompute = 5,
    /// A draft model's weights.
    DraftWeights = 6,
    /// A draft's cache.
    DraftContext = 7,
    /// A draft's own compute buffers.
    DraftCompute = 8,
    /// CUDA's pool of temporary buffers and cuBLAS's workspace.
    Runtime = 9,
    /// CUDA's context, and what the driver keeps where that is not known.
    Overhead = 10,
    /// Something that this version of the header has no name for.
    Other = 99,
}

/// How sure a number is.
#[repr(i32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum vramfit_certainty {
    /// llama.cpp's own bytes.
    Exact = 0,
    /// A model of what CUDA takes.
    Modelled = 1,
    /// Not above this.
    Bound = 2,
}

/// Bytes of one kind on one device.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vramfit_term {
    /// What for.
    pub kind: vramfit_term_kind,
    /// How sure.
    pub certainty: vramfit_certainty,
    /// How many.
    pub bytes: u64,
}

/// Where everything goes. Never changes; share it between threads as you like. It keeps what it needs of the model.
pub struct vramfit_placement {
    pub(crate) model: Arc<Opened>,
    pub(crate) answer: Answer,
    json: CString,
    devices: Vec<Shown>,
    _words: Vec<CString>,
    command: Pointers,
}

/// A device as its arrays.
struct Shown {
    terms: Vec<vramfit_term>,
    layers: Vec<u32>,
    required_bytes: u64,
    headroom_bytes: i64,
}

/// Pointers into strings that the same handle owns and never changes.
struct Pointers(Vec<*const c_char>);

// SAFETY: they point into `CString`s of the same placement, which nobody changes.
unsafe impl Send for Pointers {}
// SAFETY: as above.
unsafe impl Sync for Pointers {}

impl From<DeviceTerm> for vramfit_term {
    fn from(term: DeviceTerm) -> vramfit_term {
        vramfit_term {
            kind: match term.kind {
                TermKind::Weights => vramfit_term_kind::Weights,
                TermKind::Adapters => vramfit_term_kind::Adapters,
                TermKind::Context => vramfit_term_kind::Context,
                TermKind::Compute => vramfit_term_kind::Compute,
                TermKind::ProjectorWeights => vramfit_term_kind::ProjectorWeights,
                TermKind::ProjectorCompute => vramfit_term_kind::ProjectorCompute,
                TermKind::DraftWeights => vramfit_term_kind::DraftWeights,
                TermKind::DraftContext => vramfit_term_kind::DraftContext,
                TermKind::DraftCompute => vramfit_term_kind::DraftCompute,
                TermKind::Runtime => vramfit_term_kind::Runtime,
                TermKind::Overhead => vramfit_term_kind::Overhead,
                _ => vramfit_term_kind::Other,
            },
            certainty: match term.certainty {
                Sure::Exact => vramfit_certainty::Exact,
                Sure::Modelled => vramfit_certainty::Modelled,
                Sure::Bound => vramfit_certainty::Bound,
            },
            bytes: term.bytes,
        }
    }
}

impl Shown {
    fn new(device: &DeviceReport) -> Shown {
        let layers = device.layers.iter();
        Shown {
            terms: device.terms().into_iter().map(Into::into).collect(),
            layers: layers
                .map(|&il| u32::try_from(il).unwrap_or(u32::MAX))
                .collect(),
            required_bytes: device.required_bytes,
            headroom_bytes: device.headroom_bytes.unwrap_or(0),
        }
    }
}

impl vramfit_placement {
    pub(crate) fn new(model: Arc<Opened>, answer: Answer) -> Result<vramfit_placement, Failure> {
        let estimate: &Estimate = &answer.estimate;
        let json = serde_json::to_string(estimate)?;
        let words = estimate.command.iter();
        let words: Vec<CString> = words.map(|word| c_string(word.as_str())).collect();
        Ok(vramfit_placement {
            json: c_string(json),
            devices: estimate.devices.iter().map(Shown::new).collect(),
            command: Pointers(words.iter().map(|word| pointer(word)).collect()),
            _words: words,
            model,
            answer,
        })
    }

    /// The GPUs, then the host.
    fn device(&self, device: u32) -> Option<&Shown> {
        let gpus = self.devices.len().checked_sub(1)?;
        let index = match device {
            VRAMFIT_HOST_MEMORY => gpus,
            gpu => Some(gpu as usize).filter(|&gpu| gpu < gpus)?,
        };
        self.devices.get(index)
    }
}

/// Finds where `model` goes on `gpus`. `settings_json` is a JSON object, or NULL for llama-server's defaults:
/// {"n_ctx": 32768, "type_k": "q8_0"}; `vramfit_settings_schema` describes all of it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_plan(
    model: *const vramfit_model,
    gpus: *const vramfit_gpus,
    settings_json: *const c_char,
    placement: *mut *mut vramfit_placement,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    guard(error, || {
        let out = Out::new(placement, "placement")?;
        let model = Arc::clone(&handle(model, "model")?.shared);
        let gpus = handle(gpus, "gpus")?.now();
        let settings = settings(settings_json)?;
        let answer = vramfit::answer(&model.path, &model.model, &gpus, &settings)?;
        out.hand_over(vramfit_placement::new(model, answer)?);
        Ok(())
    })
}

pub(crate) fn settings(json: *const c_char) -> Result<Settings, Failure> {
    let text = text_or_null(json, "settings_json")?.unwrap_or_default();
    Ok(Settings::from_json(text)?)
}

/// The JSON Schema (draft 2020-12) of `settings_json`. Free it with `vramfit_string_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_settings_schema(
    schema_json: *mut *mut c_char,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    guard(error, || {
        Out::new(schema_json, "schema_json")?.hand_over_text(Settings::schema().to_string());
        Ok(())
    })
}

/// The answer in one word.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_placement_verdict(
    placement: *const vramfit_placement,
) -> vramfit_verdict {
    look(placement, vramfit_verdict::DoesNotFit, |p| {
        match p.answer.estimate.verdict {
            VerdictWord::Fits => vramfit_verdict::Fits,
            VerdictWord::Partial => vramfit_verdict::Partial,
            VerdictWord::DoesNotFit => vramfit_verdict::DoesNotFit,
        }
    })
}

/// How many GPUs were given, used or not.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_placement_gpu_count(placement: *const vramfit_placement) -> u32 {
    look(placement, 0, |p| {
        u32::try_from(p.devices.len().saturating_sub(1)).unwrap_or(u32::MAX)
    })
}

/// What a GPU, or `VRAMFIT_HOST_MEMORY`, holds, split in terms; their sum is `vramfit_placement_required_bytes`. NULL
/// beyond the end. Lives as long as the placement.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_placement_terms(
    placement: *const vramfit_placement,
    device: u32,
    count: *mut usize,
) -> *const vramfit_term {
    array_of(placement, count, |p| p.device(device).map(|d| &d.terms))
}

/// What a GPU, or `VRAMFIT_HOST_MEMORY`, takes in all: what nvidia-smi would show for the process. 0 beyond the end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_placement_required_bytes(
    placement: *const vramfit_placement,
    device: u32,
) -> u64 {
    look(placement, 0, |p| {
        p.device(device).map_or(0, |d| d.required_bytes)
    })
}

/// Free less required on a GPU; below 0 what is missing. 0 for the host and beyond the end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_placement_headroom_bytes(
    placement: *const vramfit_placement,
    device: u32,
) -> i64 {
    look(placement, 0, |p| {
        p.device(device).map_or(0, |d| d.headroom_bytes)
    })
}

/// Layers on a GPU, or on `VRAMFIT_HOST_MEMORY`, ascending; the output layer is `vramfit_model_n_layer`. NULL for none.
/// Lives as long as the placement.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_placement_layers(
    placement: *const vramfit_placement,
    device: u32,
    count: *mut usize,
) -> *const u32 {
    array_of(placement, count, |p| p.device(device).map(|d| &d.layers))
}

/// The llama-server call that does it, program and arguments. Lives as long as the placement.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_placement_command(
    placement: *const vramfit_placement,
    count: *mut usize,
) -> *const *const c_char {
    array_of(placement, count, |p| Some(&p.command.0))
}

/// All of it as JSON: what `estimate --json` prints, `vramfit.estimate/1`. Lives as long as the placement.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_placement_json(
    placement: *const vramfit_placement,
) -> *const c_char {
    look(placement, ptr::null(), |p| pointer(&p.json))
}

/// All of it for people, in lines of `columns` (0 for 80). Free it with `vramfit_string_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_placement_text(
    placement: *const vramfit_placement,
    columns: u32,
    text: *mut *mut c_char,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    guard(error, || {
        let out = Out::new(text, "text")?;
        let placement = handle(placement, "placement")?;
        out.hand_over_text(estimate_text(&placement.answer.estimate, &style(columns)));
        Ok(())
    })
}

fn style(columns: u32) -> Style {
    match columns {
        0 => Style::default(),
        n => Style::new(n as usize, false),
    }
}

/// What is in the compute buffers at their peaks, for people, in lines of `columns` (0 for 80), with the `most` largest
/// tensors of each (0 for all). Free it with `vramfit_string_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_explain_text(
    placement: *const vramfit_placement,
    most: u32,
    columns: u32,
    text: *mut *mut c_char,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    guard(error, || {
        let out = Out::new(text, "text")?;
        let explanation = explanation(placement)?;
        let most = match most {
            0 => usize::MAX,
            n => n as usize,
        };
        out.hand_over_text(explanation_text(&explanation, most, &style(columns)));
        Ok(())
    })
}

/// The same as JSON, `vramfit.explain/1`. Free it with `vramfit_string_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_explain_json(
    placement: *const vramfit_placement,
    json: *mut *mut c_char,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    guard(error, || {
        let out = Out::new(json, "json")?;
        out.hand_over_text(serde_json::to_string(&explanation(placement)?)?);
        Ok(())
    })
}

fn explanation(
    placement: *const vramfit_placement,
) -> Result<vramfit::report::Explanation, Failure> {
    let placement = handle(placement, "placement")?;
    let Opened { path, model } = &*placement.model;
    Ok(vramfit::explanation(
        path,
        model,
        &placement.answer.placement,
    )?)
}

/// Frees a placement. NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_placement_free(placement: *mut vramfit_placement) {
    free(placement);
}
