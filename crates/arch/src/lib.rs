//! From a GGUF header to a [`Model`], and from a model to the graph that llama.cpp computes.
//!
//! [`Model::load`] understands the header once. [`WeightMap`] says in which memory each tensor
//! lies, [`cache`] which tensors a context keeps, [`build`] makes the graph of one batch.

pub mod adapter;
pub mod cache;
pub mod clip;
mod error;
mod graph;
pub mod hparams;
mod keys;
mod model;
mod models;
mod names;
mod params;
mod placement;
mod role;
mod slices;

pub use adapter::{Adapters, Lora, LoraTensor, control_vector};
pub use error::{Error, Result};
pub use graph::{Batch, BuiltGraph, Norm, build};
pub use hparams::{Hparams, Unknown};
pub use model::{Model, ModelTensor};
pub use models::Architecture;
pub use names::{Global, Kind, Name, Part, Use};
pub use params::{ContextParams, FusedOp, Pooling, Unfused, pad_256};
pub use placement::{CpuRepack, LoadedTensor, TensorOverride, WeightMap};
pub use role::{Lent, LentCaches, LentTensor, Role};
pub use slices::{Slicer, TensorSplit};
