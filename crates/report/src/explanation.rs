//! What makes the compute buffers as large as they are, as a document.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vramfit_arch::Model;
use vramfit_estimate::{AliveTensor, EngineProfile, Pass, Peak, PoolPeak};
use vramfit_ggml::cuda::PoolKind;

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
    /// Each device that computes, the host last; then those of a draft's own context.
    pub peaks: Vec<PeakReport>,
    /// The runtime pool of each GPU. Modelled, not exact.
    #[serde(default)]
    pub pools: Vec<PoolReport>,
}

/// What sets the size of a GPU's runtime pool.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct PoolReport {
    /// `CUDA0` and so on.
    pub id: String,
    /// Of a draft's own context beside the model.
    #[serde(default)]
    pub is_draft: bool,
    /// The pass that holds the more.
    pub pass: PassWord,
    /// ggml-cuda's pool of temporary buffers.
    pub pool_bytes: u64,
    /// The legacy kind of pool, for want of virtual memory management: buffers are kept one by one.
    #[serde(default)]
    pub is_legacy: bool,
    /// Of the legacy kind: what it keeps where the first prompts fill the context. Else `pool_bytes`.
    #[serde(default)]
    pub pool_filled_bytes: u64,
    /// Of the legacy kind: what it cannot do without, as what is kept goes back to the driver where memory runs out. Else
    /// `pool_bytes`.
    #[serde(default)]
    pub pool_least_bytes: u64,
    /// cuBLAS's workspace.
    pub workspace_bytes: u64,
    /// Something of the GPU is not known: not above this.
    pub is_bound: bool,
    /// ggml's operation that holds the most at once; null where none holds anything.
    pub op: Option<String>,
    /// Its result, as llama.cpp names it.
    pub at: Option<String>,
    /// Its first source, of a product the weights.
    pub source: Option<AliveReport>,
    /// What the operation holds.
    pub op_bytes: u64,
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
    /// Of a draft's own context beside the model.
    #[serde(default)]
    pub is_draft: bool,
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
        Explanation {
            schema: SCHEMA_EXPLAIN.to_string(),
            engine: engine.name.to_string(),
            model: ModelReport::new(path, model),
            peaks: peaks.iter().map(|p| peak(p, layout_devices)).collect(),
            pools: Vec::new(),
        }
    }

    /// The same with the runtime pools of GPUs.
    pub fn with_pools(mut self, pools: &[PoolPeak], layout_devices: &[usize]) -> Explanation {
        self.pools = pools.iter().map(|p| pool(p, layout_devices)).collect();
        self
    }

    /// The same with those of a draft's own context; `draft_devices` has the index of each of its GPUs.
    pub fn with_draft(
        mut self,
        peaks: &[Peak],
        pools: &[PoolPeak],
        draft_devices: &[usize],
    ) -> Explanation {
        self.peaks.extend(peaks.iter().map(|p| PeakReport {
            is_draft: true,
            ..peak(p, draft_devices)
        }));
        self.pools.extend(pools.iter().map(|p| PoolReport {
            is_draft: true,
            ..pool(p, draft_devices)
        }));
        self
    }
}

/// `CUDA0` and so on of a device of the layout.
fn id(device: usize, layout_devices: &[usize]) -> String {
    let index = layout_devices.get(device).copied().unwrap_or(device);
    format!("CUDA{index}")
}

fn peak(peak: &Peak, layout_devices: &[usize]) -> PeakReport {
    let gpu = peak.device.map(|device| id(device, layout_devices));
    PeakReport {
        id: gpu.unwrap_or_else(|| "host".to_string()),
        is_draft: false,
        pass: word(peak.pass),
        compute_bytes: peak.bytes,
        unfragmented_bytes: peak.unfragmented_bytes,
        at: peak.at.clone(),
        alive: peak.alive.iter().map(tensor).collect(),
    }
}

fn pool(pool: &PoolPeak, layout_devices: &[usize]) -> PoolReport {
    let at = pool.at.as_ref();
    PoolReport {
        id: id(pool.device, layout_devices),
        is_draft: false,
        pass: word(pool.pass),
        pool_bytes: pool.pool_bytes,
        is_legacy: pool.kind == PoolKind::Legacy,
        pool_filled_bytes: pool.pool_filled_bytes,
        pool_least_bytes: pool.pool_least_bytes,
        workspace_bytes: pool.workspace_bytes,
        is_bound: pool.is_bound,
        op: at.map(|at| at.op.to_string()),
        at: at.map(|at| at.name.clone()),
        source: at.and_then(|at| at.source.as_ref()).map(tensor),
        op_bytes: at.map_or(0, |at| at.bytes),
    }
}

fn word(pass: Pass) -> PassWord {
    match pass {
        Pass::Prompt => PassWord::Prompt,
        Pass::Generation => PassWord::Generation,
    }
}

fn tensor(t: &AliveTensor) -> AliveReport {
    AliveReport {
        name: t.name.clone(),
        op: t.op.to_string(),
        r#type: t.ty.to_string(),
        shape: t.ne,
        bytes: t.bytes,
    }
}
