//! What makes the compute buffers as large as they are, as a document.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vramfit_arch::Model;
use vramfit_estimate::{EngineProfile, Pass, Peak};

use crate::document::ModelReport;
use crate::schema::SCHEMA_EXPLAIN;

/// The compute peaks of a model. All sizes are in bytes, and exact.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Explanation {
    /// Name and version of this document's layout: `vramfit.explain/1`.
    pub schema: String,
    /// The engine build that the numbers are of.
    pub engine: String,
    /// The model.
    pub model: ModelReport,
    /// Each device that computes, the host last.
    pub peaks: Vec<PeakReport>,
}

/// The graph that a buffer is reserved for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PassWord {
    /// The largest batch of a prompt.
    Prompt,
    /// One token a sequence.
    Generation,
}

/// The moment at which a compute buffer is fullest.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct PeakReport {
    /// `CUDA0` and so on, or `host`.
    pub id: String,
    /// The pass that needs the larger buffer.
    pub pass: PassWord,
    /// Size of the buffer.
    pub compute_bytes: u64,
    /// The most that is in use at once: what a buffer without gaps would take.
    pub unfragmented_bytes: u64,
    /// The tensor whose allocation takes the buffer to its size.
    pub at: String,
    /// What is in it then, the largest first.
    pub alive: Vec<AliveReport>,
}

/// A tensor in a compute buffer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct AliveReport {
    /// As llama.cpp names it, where it does.
    pub name: String,
    /// ggml's operation.
    pub op: String,
    /// Element type.
    pub r#type: String,
    /// Elements in each dimension.
    pub shape: [i64; 4],
    /// What it takes in the buffer.
    pub bytes: u64,
}

impl Explanation {
    /// The document of `peaks`; `layout_devices` has the index of each GPU of the layout.
    pub fn new(
        path: &Path,
        model: &Model,
        engine: &EngineProfile,
        peaks: &[Peak],
        layout_devices: &[usize],
    ) -> Explanation {
        let id = |device: Option<usize>| match device {
            Some(i) => format!("CUDA{}", layout_devices.get(i).copied().unwrap_or(i)),
            None => "host".to_string(),
        };
        let report = |peak: &Peak| PeakReport {
            id: id(peak.device),
            pass: match peak.pass {
                Pass::Prompt => PassWord::Prompt,
                Pass::Generation => PassWord::Generation,
            },
            compute_bytes: peak.bytes,
            unfragmented_bytes: peak.unfragmented_bytes,
            at: peak.at.clone(),
            alive: peak
                .alive
                .iter()
                .map(|t| AliveReport {
                    name: t.name.clone(),
                    op: t.op.to_string(),
                    r#type: t.ty.to_string(),
                    shape: t.ne,
                    bytes: t.bytes,
                })
                .collect(),
        };
        Explanation {
            schema: SCHEMA_EXPLAIN.to_string(),
            engine: engine.name.to_string(),
            model: ModelReport::new(path, model),
            peaks: peaks.iter().map(report).collect(),
        }
    }
}
