//! Models.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;

use crate::error::Failure;

/// What a GGUF file's header says of a model.
#[pyclass(frozen, module = "vramfit")]
pub struct Model {
    pub opened: Arc<Opened>,
}

/// A model and where it was read from.
pub struct Opened {
    pub path: PathBuf,
    pub model: vramfit::Model,
}

/// Reads the model at `path`: one file, or any part of a split model. Only the header is read.
#[pyfunction]
pub fn open(py: Python<'_>, path: PathBuf) -> Result<Model, Failure> {
    let model = py.detach(|| vramfit::open(&path))?;
    let opened = Arc::new(Opened { path, model });
    Ok(Model { opened })
}

#[pymethods]
impl Model {
    /// The file.
    #[getter]
    fn path(&self) -> PathBuf {
        self.opened.path.clone()
    }

    /// `general.architecture`.
    #[getter]
    fn architecture(&self) -> &str {
        &self.opened.model.architecture_name
    }

    /// `general.name`.
    #[getter]
    fn name(&self) -> Option<&str> {
        self.opened.model.name.as_deref()
    }

    /// Blocks; the output layer is one more layer behind them.
    #[getter]
    fn n_layer(&self) -> usize {
        self.opened.model.hparams.n_layer_all
    }

    /// Elements of all tensors.
    #[getter]
    fn n_params(&self) -> u64 {
        self.opened.model.n_params
    }

    /// The context that the model was trained with: what llama-server takes without `-c`.
    #[getter]
    fn n_ctx_train(&self) -> i64 {
        self.opened.model.hparams.n_ctx_train
    }

    /// Bytes of the complete file, or files.
    #[getter]
    fn file_bytes(&self) -> u64 {
        self.opened.model.file_bytes
    }

    fn __repr__(&self) -> String {
        let path = vramfit::report::one_line(&self.opened.path.to_string_lossy());
        format!("<vramfit.Model {path}, {}>", self.architecture())
    }
}
