//! Models.

use std::ffi::{CString, c_char};
use std::path::PathBuf;
use std::ptr;
use std::sync::Arc;

use vramfit::Model;

use crate::error::{free, guard, look, vramfit_error, vramfit_status};
use crate::text::{Out, c_string, path, pointer};

/// What a GGUF file's header says of a model. Never changes; share it between threads as you like.
pub struct vramfit_model {
    pub(crate) shared: Arc<Opened>,
    architecture: CString,
    name: CString,
}

/// A model and where it was read from.
pub(crate) struct Opened {
    pub path: PathBuf,
    pub model: Model,
}

/// Reads the model at `model_path`: one file, or any part of a split model. Only the header is read, in milliseconds.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_model_open(
    model_path: *const c_char,
    model: *mut *mut vramfit_model,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    guard(error, || {
        let out = Out::new(model, "model")?;
        let path = path(model_path, "model_path")?.to_owned();
        let model = vramfit::open(&path)?;
        out.hand_over(vramfit_model {
            architecture: c_string(model.architecture_name.clone()),
            name: c_string(model.name.clone().unwrap_or_default()),
            shared: Arc::new(Opened { path, model }),
        });
        Ok(())
    })
}

/// `general.architecture`. Lives as long as the model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_model_architecture(model: *const vramfit_model) -> *const c_char {
    look(model, ptr::null(), |m| pointer(&m.architecture))
}

/// `general.name`, empty where there is none. Lives as long as the model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_model_name(model: *const vramfit_model) -> *const c_char {
    look(model, ptr::null(), |m| pointer(&m.name))
}

/// Blocks. The output layer is one more layer behind them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_model_n_layer(model: *const vramfit_model) -> u64 {
    look(model, 0, |m| m.shared.model.hparams.n_layer_all as u64)
}

/// Elements of all tensors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_model_n_params(model: *const vramfit_model) -> u64 {
    look(model, 0, |m| m.shared.model.n_params)
}

/// The context that the model was trained with: what llama-server takes without `-c`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_model_n_ctx_train(model: *const vramfit_model) -> u64 {
    look(model, 0, |m| {
        u64::try_from(m.shared.model.hparams.n_ctx_train).unwrap_or(0)
    })
}

/// Bytes of the complete file, or files.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_model_file_bytes(model: *const vramfit_model) -> u64 {
    look(model, 0, |m| m.shared.model.file_bytes)
}

/// Frees a model; placements made of it live on. NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_model_free(model: *mut vramfit_model) {
    free(model);
}
