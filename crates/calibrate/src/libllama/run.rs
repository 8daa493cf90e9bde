//! One run: the model, a context, a prompt for each sequence, and some tokens behind them.

use std::ffi::{CString, c_char};
use std::path::Path;
use std::ptr;

use super::api::{Api, Batch, Handle, TensorOverride};
use super::settings::{HOST, Settings};
use super::{Done, Job};
use crate::engine::{GENERATED, loaded_cuda};

pub(super) fn run(job: &Job) -> Result<Done, String> {
    let settings = Settings::new(&job.flags)?;
    let library = Path::new(&job.library);
    let library = library
        .canonicalize()
        .map_err(|error| format!("{}: {error}", job.library))?;
    let api = Api::load(&library)?;
    let folder = library.parent().unwrap_or(Path::new("/"));
    let folder = text(&folder.to_string_lossy())?;
    // SAFETY: as llama.h wants it, before anything else.
    unsafe {
        (api.load_backends)(folder.as_ptr());
        (api.backend_init)();
    }
    let context = load(&api, &settings, &job.model)?;
    let n_tokens = i32::try_from(job.prompt_tokens).unwrap_or(i32::MAX);
    let n_tokens = Context::new(&api, context, &settings).compute(n_tokens)?;
    Ok(Done {
        prompt_tokens: u64::try_from(n_tokens).unwrap_or(0),
        version: api.version,
        cuda: loaded_cuda(),
    })
}

fn text(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_| format!("{text:?} has a zero byte"))
}

/// The model and its context, which both stay to the end of the process.
fn load(api: &Api, settings: &Settings, model: &str) -> Result<Handle, String> {
    let path = text(model)?;
    let listed = Listed::new(api, settings)?;
    let mut params = api.model_defaults;
    params.n_gpu_layers = settings.n_gpu_layers;
    params.split_mode = settings.split_mode;
    params.main_gpu = settings.main_gpu;
    params.use_extra_bufts = u8::from(!settings.no_repack);
    params.no_host = u8::from(settings.no_host);
    if let Some(mode) = &settings.load_mode {
        let mode = text(mode)?;
        // SAFETY: the name lives; the function only reads it.
        params.load_mode = unsafe { (api.load_mode)(mode.as_ptr()) };
    }
    let mut devices = listed.devices.clone();
    if let Some(devices) = &mut devices {
        params.devices = devices.as_mut_ptr();
    }
    if !listed.overrides.is_empty() {
        params.overrides = listed.overrides.as_ptr();
    }
    if !listed.shares.is_empty() {
        params.tensor_split = listed.shares.as_ptr();
    }
    // SAFETY: the parameters are the library's own, as `Api::load` has made sure, and what they point to lives.
    let model = unsafe { (api.load_model)(path.as_ptr(), params) };
    if model.is_null() {
        return Err("the model cannot be loaded".to_string());
    }
    let mut adapters = adapters(api, settings, model)?;
    // SAFETY: as above; the model lives as long as the process.
    let context = unsafe { (api.new_context)(model, context_params(api, settings)) };
    if context.is_null() {
        return Err("there is no room for its context".to_string());
    }
    if !adapters.is_empty() {
        let mut scales: Vec<f32> = settings.lora.iter().map(|(_, scale)| *scale).collect();
        // SAFETY: both lists are as long as said.
        let rc = unsafe {
            (api.set_adapters)(
                context,
                adapters.as_mut_ptr(),
                adapters.len(),
                scales.as_mut_ptr(),
            )
        };
        if rc != 0 {
            return Err("its adapters cannot be applied".to_string());
        }
    }
    Ok(context)
}

fn adapters(api: &Api, settings: &Settings, model: Handle) -> Result<Vec<Handle>, String> {
    let load = |(file, _): &(String, f32)| {
        let path = text(file)?;
        // SAFETY: the model lives.
        let adapter = unsafe { (api.load_adapter)(model, path.as_ptr()) };
        match adapter.is_null() {
            true => Err(format!("the adapter {file} cannot be loaded")),
            false => Ok(adapter),
        }
    };
    settings.lora.iter().map(load).collect()
}

/// As llama-server asks for it: an output of each sequence, or of every token of an embedding.
fn context_params(api: &Api, settings: &Settings) -> super::api::ContextParams {
    let mut params = api.context_defaults;
    params.n_ctx = settings.n_ctx;
    params.n_batch = settings.n_batch;
    params.n_ubatch = settings.n_ubatch;
    params.n_seq_max = settings.n_seq_max;
    params.n_outputs_max = match settings.embeddings {
        true => 0,
        false => settings.n_seq_max.min(settings.n_batch).max(1),
    };
    params.flash_attention = settings.flash_attention;
    params.cache_types = settings.cache_types;
    params.offload_kqv = u8::from(!settings.no_kv_offload);
    params.op_offload = u8::from(!settings.no_op_offload);
    params.swa_full = u8::from(settings.swa_full);
    params.kv_unified = u8::from(settings.kv_unified);
    params.embeddings = u8::from(settings.embeddings);
    if let Some(pooling) = settings.pooling {
        params.pooling_type = pooling;
    }
    params
}

/// What the model's parameters point to.
struct Listed {
    /// Ends with null, where it is said at all.
    devices: Option<Vec<Handle>>,
    /// Ends with null, if it is not empty.
    overrides: Vec<TensorOverride>,
    _patterns: Vec<CString>,
    shares: Vec<f32>,
}

impl Listed {
    fn new(api: &Api, settings: &Settings) -> Result<Listed, String> {
        let device = |name: &String| {
            let text = text(name)?;
            // SAFETY: the name lives; the function only reads it.
            let device = unsafe { (api.device)(text.as_ptr()) };
            match device.is_null() {
                true => Err(format!(
                    "it has no {name}: the folder of this libllama needs its CUDA backend (libggml-cuda.so), and that CUDA's runtime \
                     and cuBLAS (LD_LIBRARY_PATH)"
                )),
                false => Ok(device),
            }
        };
        let devices = match &settings.devices {
            None => None,
            Some(names) => {
                let listed: Result<Vec<Handle>, String> = names.iter().map(device).collect();
                let mut listed = listed?;
                listed.push(ptr::null_mut());
                Some(listed)
            }
        };
        let mut patterns = Vec::new();
        let mut overrides = Vec::new();
        for (pattern, target) in &settings.overrides {
            let buffer_type = match target.as_str() {
                // SAFETY: it takes nothing.
                HOST => unsafe { (api.host_buffer_type)() },
                // SAFETY: the device is one of the library's.
                _ => unsafe { (api.device_buffer_type)(device(target)?) },
            };
            let pattern = text(pattern)?;
            // Its bytes stay where they are when it moves into the list.
            overrides.push(TensorOverride {
                pattern: pattern.as_ptr(),
                buffer_type,
            });
            patterns.push(pattern);
        }
        if !overrides.is_empty() {
            let end: *const c_char = ptr::null();
            overrides.push(TensorOverride {
                pattern: end,
                buffer_type: ptr::null_mut(),
            });
        }
        let mut shares = settings.tensor_split.clone();
        if !shares.is_empty() {
            // SAFETY: it takes nothing.
            let most = unsafe { (api.max_devices)() };
            shares.resize(most, 0.0);
        }
        Ok(Listed {
            devices,
            overrides,
            _patterns: patterns,
            shares,
        })
    }
}

/// A context that computes.
struct Context<'a> {
    api: &'a Api,
    context: Handle,
    /// None where nothing is remembered from batch to batch: an encoder.
    memory: Option<Handle>,
    n_seq: i32,
    /// Of each sequence in a batch.
    most_tokens: i32,
    embeddings: bool,
}

impl<'a> Context<'a> {
    fn new(api: &'a Api, context: Handle, settings: &Settings) -> Context<'a> {
        // SAFETY: the context lives.
        let memory = unsafe { (api.memory)(context) };
        let memory = (!memory.is_null()).then_some(memory);
        // What attends to what is behind it, too, is computed at once.
        let most = match memory.is_none() || settings.embeddings {
            true => settings.n_batch.min(settings.n_ubatch),
            false => settings.n_batch,
        };
        let count = |n: u32| i32::try_from(n).unwrap_or(i32::MAX).max(1);
        let n_seq = count(settings.n_seq_max);
        Context {
            api,
            context,
            memory,
            n_seq,
            most_tokens: (count(most) / n_seq).max(1),
            embeddings: settings.embeddings,
        }
    }

    /// Prompts of at most `n_tokens` side by side, as a server that is full has them; then tokens one by one in the place of the
    /// prompts' last ones, where the memory can go back so far. How many tokens each prompt had.
    fn compute(&self, n_tokens: i32) -> Result<i32, String> {
        let n_tokens = match self.memory {
            Some(_) => n_tokens,
            None => n_tokens.min(self.most_tokens),
        };
        let mut from = 0;
        while from < n_tokens {
            let to = from.saturating_add(self.most_tokens).min(n_tokens);
            self.decode(from, to)?;
            from = to;
        }
        let generated = i32::try_from(GENERATED).unwrap_or(1);
        let first = n_tokens.saturating_sub(generated).max(1);
        if self.goes_back_to(first) {
            for at in first..n_tokens {
                self.decode(at, at + 1)?;
            }
        }
        // SAFETY: the context lives.
        unsafe { (self.api.synchronize)(self.context) };
        Ok(n_tokens)
    }

    /// Recurrent states do not.
    fn goes_back_to(&self, at: i32) -> bool {
        let Some(memory) = self.memory else {
            return false;
        };
        // SAFETY: the memory is the context's.
        let goes = |seq| unsafe { (self.api.memory_remove)(memory, seq, at, -1) };
        (0..self.n_seq).all(goes)
    }

    /// Tokens `from` to `to` of every sequence. The last of each has an output, or all of an embedding.
    fn decode(&self, from: i32, to: i32) -> Result<(), String> {
        let places: Vec<(i32, i32)> = (0..self.n_seq)
            .flat_map(|seq| (from..to).map(move |at| (seq, at)))
            .collect();
        let mut token = vec![TOKEN; places.len()];
        let mut pos: Vec<i32> = places.iter().map(|&(_, at)| at).collect();
        let mut n_seq_id = vec![1; places.len()];
        let mut seq: Vec<i32> = places.iter().map(|&(seq, _)| seq).collect();
        let mut seq_id: Vec<*mut i32> = seq.iter_mut().map(ptr::from_mut).collect();
        let is_output = |&(_, at): &(i32, i32)| self.embeddings || at + 1 == to;
        let mut logits: Vec<i8> = places
            .iter()
            .map(|place| i8::from(is_output(place)))
            .collect();
        let batch = Batch {
            n_tokens: i32::try_from(places.len()).map_err(|_| "-b is too large".to_string())?,
            token: token.as_mut_ptr(),
            embd: ptr::null_mut(),
            pos: pos.as_mut_ptr(),
            n_seq_id: n_seq_id.as_mut_ptr(),
            seq_id: seq_id.as_mut_ptr(),
            logits: logits.as_mut_ptr(),
        };
        // SAFETY: every list of the batch has as many entries as it has tokens, and lives until the call returns.
        match unsafe { (self.api.decode)(self.context, batch) } {
            0 => Ok(()),
            code => Err(format!(
                "tokens {from} to {to} cannot be computed (llama_decode: {code})"
            )),
        }
    }
}

/// Memory does not depend on which tokens they are; every vocabulary has this one.
const TOKEN: i32 = 1;
