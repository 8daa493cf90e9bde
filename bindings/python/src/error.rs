//! Errors as the exceptions of `vramfit._errors`.

use pyo3::prelude::*;
use pyo3::types::PyAny;
use serde_json::Value;
use vramfit::ledger;

/// A failure on its way to Python.
pub struct Failure {
    status: &'static str,
    message: String,
    details: Value,
}

impl Failure {
    pub fn argument(message: impl Into<String>) -> Failure {
        Failure {
            status: "invalid_argument",
            message: message.into(),
            details: Value::Null,
        }
    }

    pub fn settings(message: impl Into<String>) -> Failure {
        Failure {
            status: "settings",
            message: message.into(),
            details: Value::Null,
        }
    }

    pub fn gpus(message: impl Into<String>) -> Failure {
        Failure {
            status: "gpus",
            message: message.into(),
            details: Value::Null,
        }
    }
}

impl From<vramfit::Error> for Failure {
    fn from(error: vramfit::Error) -> Failure {
        Failure {
            status: error.status().word(),
            message: error.to_string(),
            details: error.details(),
        }
    }
}

impl From<ledger::Error> for Failure {
    fn from(error: ledger::Error) -> Failure {
        vramfit::Error::from(error).into()
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> PyErr {
        Python::attach(|py| match exception(py, &failure) {
            Ok(exception) => PyErr::from_value(exception),
            Err(error) => error,
        })
    }
}

fn exception<'py>(py: Python<'py>, failure: &Failure) -> PyResult<Bound<'py, PyAny>> {
    let details = match &failure.details {
        Value::Null => serde_json::json!({}),
        details => details.clone(),
    };
    let details = pythonize::pythonize(py, &details)?;
    let errors = py.import("vramfit._errors")?;
    errors.call_method1("_of", (failure.status, failure.message.as_str(), details))
}
