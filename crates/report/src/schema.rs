//! The documents' JSON Schemas.

use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};

use crate::{Comparison, Estimate, Explanation};

/// `schema` of an [`Estimate`].
pub const SCHEMA_ESTIMATE: &str = "vramfit.estimate/1";
/// `schema` of an [`Explanation`].
pub const SCHEMA_EXPLAIN: &str = "vramfit.explain/1";
/// `schema` of a [`Comparison`].
pub const SCHEMA_COMPARE: &str = "vramfit.compare/1";
/// `schema` of a [`Failure`].
pub const SCHEMA_ERROR: &str = "vramfit.error/1";

/// A model among several that could not be estimated: its line of JSON.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Failure {
    /// Name and version of this document's layout: `vramfit.error/1`.
    pub schema: String,
    /// The model's file.
    pub path: String,
    /// What is wrong, on one line.
    pub error: String,
}

impl Failure {
    /// `error`, about the file at `path`.
    pub fn new(path: impl Into<String>, error: impl Into<String>) -> Failure {
        Failure {
            schema: SCHEMA_ERROR.to_string(),
            path: path.into(),
            error: error.into(),
        }
    }
}

/// A document that has a schema.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum SchemaOf {
    /// [`Estimate`].
    #[default]
    Estimate,
    /// [`Explanation`].
    Explain,
    /// [`Comparison`].
    Compare,
    /// [`Failure`].
    Error,
}

/// The JSON Schema (draft 2020-12) of a document.
pub fn schema(of: SchemaOf) -> serde_json::Value {
    let schema = match of {
        SchemaOf::Estimate => schema_for!(Estimate),
        SchemaOf::Explain => schema_for!(Explanation),
        SchemaOf::Compare => schema_for!(Comparison),
        SchemaOf::Error => schema_for!(Failure),
    };
    schema.to_value()
}
