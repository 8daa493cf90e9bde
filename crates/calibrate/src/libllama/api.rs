//! The few functions of libllama and ggml that a run needs, and the two structures of parameters, which go by value: those
//! of llama.cpp v0.5.0 (include/llama.h), and of nothing else. [`Api::load`] finds out whether a library has just these.

use std::ffi::{CStr, OsStr, c_char, c_void};
use std::mem::{align_of, size_of};
use std::path::Path;

use libloading::Library;

/// What llama.cpp hands out and takes back: nothing is known of what is behind it.
pub(super) type Handle = *mut c_void;

/// `llama_model_params`. Booleans are bytes, as whatever is in them may be read.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ModelParams {
    pub devices: *mut Handle,
    pub overrides: *const TensorOverride,
    pub n_gpu_layers: i32,
    pub split_mode: i32,
    pub load_mode: i32,
    pub lazy_mode: i32,
    pub main_gpu: i32,
    pub tensor_split: *const f32,
    pub progress: *const c_void,
    pub progress_data: *mut c_void,
    pub kv_overrides: *const c_void,
    pub vocab_only: u8,
    pub check_tensors: u8,
    pub use_extra_bufts: u8,
    pub no_host: u8,
    pub no_alloc: u8,
    pub load_mtp: u8,
}

/// `llama_context_params`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ContextParams {
    pub n_ctx: u32,
    pub n_batch: u32,
    pub n_ubatch: u32,
    pub n_seq_max: u32,
    pub n_rs_seq: u32,
    pub n_outputs_max: u32,
    pub n_outputs_max_per_seq: u32,
    pub n_threads: i32,
    pub n_threads_batch: i32,
    pub context_type: i32,
    pub rope_scaling_type: i32,
    pub pooling_type: i32,
    pub attention_type: i32,
    pub flash_attention: i32,
    pub rope_freq_base: f32,
    pub rope_freq_scale: f32,
    pub yarn: [f32; 4],
    pub yarn_orig_ctx: u32,
    pub defrag_thold: f32,
    pub eval: *const c_void,
    pub eval_data: *mut c_void,
    pub cache_types: [i32; 2],
    pub abort: *const c_void,
    pub abort_data: *mut c_void,
    pub embeddings: u8,
    pub offload_kqv: u8,
    pub no_perf: u8,
    pub op_offload: u8,
    pub swa_full: u8,
    pub kv_unified: u8,
    pub samplers: *mut c_void,
    pub n_samplers: usize,
    pub other: Handle,
}

/// `llama_model_tensor_buft_override`; a list ends with null.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct TensorOverride {
    pub pattern: *const c_char,
    pub buffer_type: Handle,
}

/// `llama_batch`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Batch {
    pub n_tokens: i32,
    pub token: *mut i32,
    pub embd: *mut f32,
    pub pos: *mut i32,
    pub n_seq_id: *mut i32,
    pub seq_id: *mut *mut i32,
    pub logits: *mut i8,
}

/// The functions, as llama.h and ggml-backend.h declare them.
pub(super) struct Api {
    pub version: String,
    pub model_defaults: ModelParams,
    pub context_defaults: ContextParams,
    pub load_backends: unsafe extern "C" fn(*const c_char),
    pub backend_init: unsafe extern "C" fn(),
    pub device: unsafe extern "C" fn(*const c_char) -> Handle,
    pub device_buffer_type: unsafe extern "C" fn(Handle) -> Handle,
    pub host_buffer_type: unsafe extern "C" fn() -> Handle,
    pub max_devices: unsafe extern "C" fn() -> usize,
    pub load_mode: unsafe extern "C" fn(*const c_char) -> i32,
    pub load_model: unsafe extern "C" fn(*const c_char, ModelParams) -> Handle,
    pub load_adapter: unsafe extern "C" fn(Handle, *const c_char) -> Handle,
    pub new_context: unsafe extern "C" fn(Handle, ContextParams) -> Handle,
    pub set_adapters: unsafe extern "C" fn(Handle, *mut Handle, usize, *mut f32) -> i32,
    pub decode: unsafe extern "C" fn(Handle, Batch) -> i32,
    pub memory: unsafe extern "C" fn(Handle) -> Handle,
    pub memory_remove: unsafe extern "C" fn(Handle, i32, i32, i32) -> bool,
    pub synchronize: unsafe extern "C" fn(Handle),
}

/// What `llama_version()` says of the modelled build.
const VERSIONS: [&str; 2] = ["0.5.0", "0.5.0-dev"];

/// A structure's defaults are taken into more room than it needs, filled with this: what is left of it beyond the structure says
/// how long the library's own is.
const FILL: u8 = 0xa5;
const ROOM: usize = 1024;

#[repr(C, align(16))]
struct Room([u8; ROOM]);

impl Api {
    /// Loads `library`, which stays loaded. The error says why it is not the modelled build's.
    pub(super) fn load(library: &Path) -> Result<Api, String> {
        if cfg!(not(target_arch = "x86_64")) {
            return Err(not_ours("its parameters can be checked on x86-64 alone"));
        }
        // SAFETY: llama.cpp's and ggml's initialisers have no conditions.
        let library = unsafe { Library::new::<&OsStr>(library.as_os_str()) };
        let library: &'static Library =
            Box::leak(Box::new(library.map_err(|error| error.to_string())?));
        // SAFETY: as llama.h declares them.
        unsafe {
            let version: unsafe extern "C" fn() -> *const c_char = get(library, "llama_version")?;
            let version = version();
            if version.is_null() {
                return Err(not_ours("it does not say its version"));
            }
            let version = CStr::from_ptr(version).to_string_lossy().into_owned();
            if !VERSIONS.contains(&version.as_str()) {
                return Err(not_ours(&format!("it is {version}")));
            }
            let model_defaults = defaults(get(library, "llama_model_default_params")?)?;
            let context_defaults = defaults(get(library, "llama_context_default_params")?)?;
            check(&model_defaults, &context_defaults)?;
            Ok(Api {
                version,
                model_defaults,
                context_defaults,
                load_backends: get(library, "ggml_backend_load_all_from_path")?,
                backend_init: get(library, "llama_backend_init")?,
                device: get(library, "ggml_backend_dev_by_name")?,
                device_buffer_type: get(library, "ggml_backend_dev_buffer_type")?,
                host_buffer_type: get(library, "ggml_backend_cpu_buffer_type")?,
                max_devices: get(library, "llama_max_devices")?,
                load_mode: get(library, "llama_load_mode_from_str")?,
                load_model: get(library, "llama_model_load_from_file")?,
                load_adapter: get(library, "llama_adapter_lora_init")?,
                new_context: get(library, "llama_init_from_model")?,
                set_adapters: get(library, "llama_set_adapters_lora")?,
                decode: get(library, "llama_decode")?,
                memory: get(library, "llama_get_memory")?,
                memory_remove: get(library, "llama_memory_seq_rm")?,
                synchronize: get(library, "llama_synchronize")?,
            })
        }
    }
}

fn not_ours(why: &str) -> String {
    format!(
        "this is no libllama of llama.cpp {}, whose parameters alone are known here ({why}): give a llama-server as --engine",
        VERSIONS[0]
    )
}

/// The function behind `name`, in the library or in those that it has loaded.
///
/// # Safety
/// `F` is the function's type.
unsafe fn get<F: Copy>(library: &'static Library, name: &str) -> Result<F, String> {
    // SAFETY: by the caller.
    let found = unsafe { library.get::<F>(name.as_bytes()) };
    found
        .map(|function| *function)
        .map_err(|_| not_ours(&format!("it has no {name}")))
}

/// What `function` returns, if its structure is as long as `T`.
///
/// # Safety
/// `function` returns a structure of more than 16 bytes and takes nothing. By the System V ABI of x86-64 its caller hands
/// over the address where the structure is to be, as if it were the first argument.
unsafe fn defaults<T: Copy>(function: unsafe extern "C" fn(*mut Room)) -> Result<T, String> {
    let mut room = Room([FILL; ROOM]);
    // SAFETY: there is more room than any of these structures needs; what is in it is plain data.
    unsafe { function(&raw mut room) };
    let size = size_of::<T>();
    debug_assert!(align_of::<T>() <= align_of::<Room>() && size < ROOM);
    // Their last members are pointers and flags of 0 or 1.
    let has_end = room.0.get(size.wrapping_sub(8)..size);
    let is_written = has_end.is_some_and(|end| end.iter().any(|&byte| byte != FILL));
    let is_longer = room.0.iter().skip(size).any(|&byte| byte != FILL);
    if !is_written || is_longer {
        return Err(not_ours("its parameters have another length"));
    }
    // SAFETY: initialised, long enough, aligned, and of types that may hold any bytes.
    Ok(unsafe { room.0.as_ptr().cast::<T>().read() })
}

/// The defaults of v0.5.0 (`llama_model_default_params` and `llama_context_default_params`), at their places.
fn check(model: &ModelParams, context: &ContextParams) -> Result<(), String> {
    let m = [
        model.n_gpu_layers,
        model.split_mode,
        model.load_mode,
        model.lazy_mode,
        model.main_gpu,
    ];
    let flags = [
        model.vocab_only,
        model.check_tensors,
        model.use_extra_bufts,
        model.no_host,
        model.no_alloc,
        model.load_mtp,
    ];
    let model_is = m == [-1, 1, -1, 1, 0]
        && flags == [0, 0, 1, 0, 0, 0]
        && [
            model.devices.cast_const().cast(),
            model.overrides.cast(),
            model.tensor_split.cast(),
            model.kv_overrides,
        ]
        .iter()
        .all(|pointer: &*const c_void| pointer.is_null());
    let c = context;
    let counts = [
        c.n_ctx,
        c.n_batch,
        c.n_ubatch,
        c.n_seq_max,
        c.n_rs_seq,
        c.n_outputs_max,
        c.n_outputs_max_per_seq,
        c.yarn_orig_ctx,
    ];
    let kinds = [
        c.context_type,
        c.rope_scaling_type,
        c.pooling_type,
        c.attention_type,
        c.flash_attention,
    ];
    let flags = [
        c.embeddings,
        c.offload_kqv,
        c.no_perf,
        c.op_offload,
        c.swa_full,
        c.kv_unified,
    ];
    let context_is = counts == [512, 2048, 512, 1, 0, 0, 1, 0]
        && kinds == [0, -1, -1, -1, -1]
        && c.yarn == [-1.0; 4]
        && c.defrag_thold == -1.0
        && c.cache_types == [1, 1]
        && flags == [0, 1, 1, 1, 1, 0]
        && c.n_samplers == 0
        && c.other.is_null();
    match model_is && context_is {
        true => Ok(()),
        false => Err(not_ours("its parameters have other defaults")),
    }
}
