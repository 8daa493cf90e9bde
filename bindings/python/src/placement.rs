//! Placements.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyAny, PyDict};
use vramfit::report::{
    DeviceReport, DeviceTerm, Style, VerdictWord, estimate_text, explanation_text,
};
use vramfit::{Answer, Settings};

use crate::error::Failure;
use crate::gpus::GpusLike;
use crate::model::{Model, Opened};

/// Bytes of one kind on one device.
#[pyclass(frozen, skip_from_py_object, module = "vramfit")]
#[derive(Clone)]
pub struct Term {
    #[pyo3(get)]
    kind: &'static str,
    #[pyo3(get)]
    certainty: &'static str,
    #[pyo3(get)]
    bytes: u64,
}

#[pymethods]
impl Term {
    fn __repr__(&self) -> String {
        format!("<{} {}: {} bytes>", self.certainty, self.kind, self.bytes)
    }
}

/// A GPU, or the host, and what it holds.
#[pyclass(frozen, skip_from_py_object, module = "vramfit")]
#[derive(Clone)]
pub struct Device {
    #[pyo3(get)]
    id: String,
    #[pyo3(get)]
    name: String,
    #[pyo3(get)]
    layers: Vec<u64>,
    #[pyo3(get)]
    terms: Vec<Term>,
    #[pyo3(get)]
    required_bytes: u64,
    #[pyo3(get)]
    total_bytes: Option<u64>,
    #[pyo3(get)]
    free_bytes: Option<u64>,
    #[pyo3(get)]
    headroom_bytes: Option<i64>,
}

#[pymethods]
impl Device {
    fn __repr__(&self) -> String {
        let (id, bytes, n) = (&self.id, self.required_bytes, self.layers.len());
        format!("<{id}: {bytes} bytes, {n} layers>")
    }
}

impl Device {
    fn new(device: &DeviceReport) -> Device {
        let term = |term: DeviceTerm| Term {
            kind: term.kind.word(),
            certainty: term.certainty.word(),
            bytes: term.bytes,
        };
        Device {
            id: device.id.clone(),
            name: device.name.clone(),
            layers: device.layers.clone(),
            terms: device.terms().into_iter().map(term).collect(),
            required_bytes: device.required_bytes,
            total_bytes: device.total_bytes,
            free_bytes: device.free_bytes,
            headroom_bytes: device.headroom_bytes,
        }
    }
}

/// Where everything goes.
#[pyclass(frozen, module = "vramfit")]
pub struct Placement {
    pub opened: Arc<Opened>,
    pub answer: Answer,
}

/// Finds where `model` goes on `gpus`.
#[pyfunction]
#[pyo3(signature = (model, gpus, **settings))]
pub fn plan(
    py: Python<'_>,
    model: &Bound<'_, Model>,
    gpus: GpusLike<'_>,
    settings: Option<&Bound<'_, PyDict>>,
) -> Result<Placement, Failure> {
    let opened = Arc::clone(&model.get().opened);
    let settings = read_settings(settings)?;
    let gpus = gpus.list()?;
    let answer = py.detach(|| vramfit::answer(&opened.path, &opened.model, &gpus, &settings))?;
    Ok(Placement { opened, answer })
}

/// The JSON Schema (draft 2020-12) of the settings.
#[pyfunction]
pub fn settings_schema(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    Ok(pythonize::pythonize(py, &Settings::schema())?)
}

/// Settings given as keywords. Paths may be `os.PathLike` as everywhere in Python.
pub fn read_settings(settings: Option<&Bound<'_, PyDict>>) -> Result<Settings, Failure> {
    let Some(settings) = settings else {
        return Ok(Settings::default());
    };
    let wrong = |error: &dyn std::fmt::Display| Failure::settings(format!("settings: {error}"));
    let paths_as_text = || {
        let py = settings.py();
        let fspath = py.import("os")?.getattr("fspath")?;
        let kwargs = PyDict::new(py);
        kwargs.set_item("default", fspath)?;
        let json = py.import("json")?;
        let text = json.call_method("dumps", (settings,), Some(&kwargs))?;
        text.extract::<String>()
    };
    let json = paths_as_text().map_err(|error| wrong(&error.value(settings.py())))?;
    Ok(Settings::from_json(&json)?)
}

#[pymethods]
impl Placement {
    /// `fits`, `partial` or `does_not_fit`.
    #[getter]
    fn verdict(&self) -> &'static str {
        match self.answer.estimate.verdict {
            VerdictWord::Fits => "fits",
            VerdictWord::Partial => "partial",
            VerdictWord::DoesNotFit => "does_not_fit",
        }
    }

    /// The GPUs in order, then the host.
    #[getter]
    fn devices(&self) -> Vec<Device> {
        self.answer
            .estimate
            .devices
            .iter()
            .map(Device::new)
            .collect()
    }

    /// The llama-server call that does it, program and arguments.
    #[getter]
    fn command(&self) -> Vec<String> {
        self.answer.estimate.command.clone()
    }

    /// What a reader should know.
    #[getter]
    fn notes(&self) -> Vec<String> {
        self.answer.estimate.notes.clone()
    }

    /// What `estimate --json` prints, as a dictionary.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(pythonize::pythonize(py, &self.answer.estimate)?)
    }

    /// What `estimate --json` prints.
    fn to_json(&self) -> Result<String, Failure> {
        serde_json::to_string(&self.answer.estimate)
            .map_err(|error| Failure::argument(error.to_string()))
    }

    /// What `estimate` prints.
    #[pyo3(signature = (columns = 80))]
    fn text(&self, columns: usize) -> String {
        estimate_text(&self.answer.estimate, &Style::new(columns, false))
    }

    /// What is in the compute buffers at their peaks, as a dictionary.
    fn explain<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(pythonize::pythonize(py, &self.explanation(py)?)?)
    }

    /// What `estimate explain` prints, with the `most` largest tensors of each peak; `None` for all.
    #[pyo3(signature = (most = Some(12), columns = 80), text_signature = "($self, most=12, columns=80)")]
    fn explain_text(
        &self,
        py: Python<'_>,
        most: Option<usize>,
        columns: usize,
    ) -> Result<String, Failure> {
        let explanation = self.explanation(py)?;
        let most = most.unwrap_or(usize::MAX);
        Ok(explanation_text(
            &explanation,
            most,
            &Style::new(columns, false),
        ))
    }

    fn __repr__(&self) -> String {
        let gpus = self.answer.estimate.gpu_devices().filter(|d| d.is_used());
        let gpus: Vec<String> = gpus
            .map(|d| format!("{} {} bytes", d.id, d.required_bytes))
            .collect();
        format!(
            "<vramfit.Placement {}: {}>",
            self.verdict(),
            gpus.join(", ")
        )
    }
}

impl Placement {
    fn explanation(&self, py: Python<'_>) -> Result<vramfit::report::Explanation, Failure> {
        let Opened { path, model } = &*self.opened;
        let placement = &self.answer.placement;
        Ok(py.detach(|| vramfit::explanation(path, model, placement))?)
    }
}
