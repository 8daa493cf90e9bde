//! Lists of GPUs.

use std::path::PathBuf;
use std::time::Duration;

use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::types::{PyIterator, PyTuple};
use vramfit::{ChildProbe, ComputeCapability, Device, GpuList};

use crate::error::Failure;

/// A GPU by what CUDA says of it.
#[pyclass(frozen, from_py_object, module = "vramfit")]
#[derive(Clone)]
pub struct Gpu {
    #[pyo3(get)]
    name: String,
    #[pyo3(get)]
    total_bytes: u64,
    #[pyo3(get)]
    free_bytes: u64,
    #[pyo3(get)]
    compute_capability: String,
}

#[pymethods]
impl Gpu {
    #[new]
    #[pyo3(signature = (total_bytes, *, compute_capability, free_bytes = None, name = ""))]
    fn new(
        total_bytes: u64,
        compute_capability: &str,
        free_bytes: Option<u64>,
        name: &str,
    ) -> Result<Gpu, Failure> {
        let capability: Result<ComputeCapability, _> = compute_capability.parse();
        let capability = capability.map_err(|error| Failure::gpus(error.to_string()))?;
        let free = free_bytes.unwrap_or(total_bytes);
        let mut list = GpuList::default();
        let added = list.add(name, total_bytes, free, capability);
        added.map_err(vramfit::Error::from)?;
        Ok(Gpu {
            name: name.to_string(),
            total_bytes,
            free_bytes: free,
            compute_capability: capability.to_string(),
        })
    }

    fn __repr__(&self) -> String {
        format!(
            "Gpu({}, compute_capability='{}', free_bytes={}, name='{}')",
            self.total_bytes, self.compute_capability, self.free_bytes, self.name
        )
    }
}

impl Gpu {
    fn of(device: &Device) -> Gpu {
        Gpu {
            name: device.name.clone(),
            total_bytes: device.total_bytes,
            free_bytes: device.free_bytes,
            compute_capability: device.compute_capability.to_string(),
        }
    }
}

/// GPUs in CUDA's order: the first is CUDA0.
#[pyclass(frozen, sequence, module = "vramfit")]
pub struct Gpus {
    pub list: GpuList,
}

/// What stands for GPUs: a list of them, or a text as in `estimate --gpus`.
#[derive(FromPyObject)]
pub enum GpusLike<'py> {
    List(Bound<'py, Gpus>),
    Text(String),
    Each(Vec<Gpu>),
}

impl GpusLike<'_> {
    pub fn list(self) -> Result<GpuList, Failure> {
        Ok(match self {
            GpusLike::List(gpus) => gpus.get().list.clone(),
            GpusLike::Text(text) => vramfit::gpu_list(&text)?,
            GpusLike::Each(gpus) => {
                let mut list = GpuList::default();
                for gpu in gpus {
                    let capability: Result<ComputeCapability, _> = gpu.compute_capability.parse();
                    let capability =
                        capability.map_err(|error| Failure::gpus(error.to_string()))?;
                    list.add(&gpu.name, gpu.total_bytes, gpu.free_bytes, capability)
                        .map_err(vramfit::Error::from)?;
                }
                list
            }
        })
    }
}

#[pymethods]
impl Gpus {
    #[new]
    fn new(gpus: GpusLike<'_>) -> Result<Gpus, Failure> {
        Ok(Gpus { list: gpus.list()? })
    }

    /// This machine's GPUs, as the driver shows them, asked by `program` in a process of its own.
    #[staticmethod]
    #[pyo3(signature = (gpus = "auto", *, program = None, timeout_ms = None), text_signature = "(gpus='auto', *, program=None, timeout_ms=None)")]
    fn probe(
        py: Python<'_>,
        gpus: &str,
        program: Option<PathBuf>,
        timeout_ms: Option<u64>,
    ) -> Result<Gpus, Failure> {
        let program = program.unwrap_or_else(|| "estimate".into());
        let mut probe = ChildProbe::new(program);
        if let Some(ms) = timeout_ms {
            probe = probe.timeout(Duration::from_millis(ms));
        }
        let list = py.detach(|| vramfit::probed_gpus(gpus, &probe))?;
        Ok(Gpus { list })
    }

    /// What was assumed while the list was read.
    #[getter]
    fn notes(&self) -> Vec<String> {
        self.list.notes.iter().map(ToString::to_string).collect()
    }

    fn __len__(&self) -> usize {
        self.list.devices.len()
    }

    fn __getitem__(&self, index: isize) -> PyResult<Gpu> {
        let count = self.list.devices.len();
        let at = match usize::try_from(index) {
            Ok(at) => Some(at),
            Err(_) => count.checked_sub(index.unsigned_abs()),
        };
        let device = at.and_then(|at| self.list.devices.get(at));
        let device = device.ok_or_else(|| PyIndexError::new_err(format!("{count} GPUs")))?;
        Ok(Gpu::of(device))
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        let gpus = self.list.devices.iter().map(Gpu::of);
        PyTuple::new(py, gpus.collect::<Vec<_>>())?.try_iter()
    }

    fn __repr__(&self) -> String {
        let entries = self.list.entries.iter().map(|e| e.description());
        let entries: Vec<String> = entries.collect();
        format!("<vramfit.Gpus {}>", entries.join("; "))
    }
}
