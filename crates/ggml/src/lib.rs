//! The engine's memory arithmetic, model-free: tensor types, a shapes-only compute graph, ggml's
//! graph allocator and its backend scheduler, replayed as arithmetic.
//!
//! Everything here is a pure function of its arguments and mirrors one piece of ggml as of
//! llama.cpp v0.5.0: [`Type`] and [`Op`] `ggml.h`, [`Graph`] `ggml.c`, [`Scheduler`]
//! `ggml-backend.cpp`, [`reserve`] `ggml-alloc.c`, [`cuda`] `ggml-cuda`.

mod alloc;
mod backend;
mod build;
mod conv;
pub mod cuda;
mod graph;
mod op;
mod sched;
mod shape;
mod types;

pub use alloc::{Observer, Unwatched, reserve};
pub use backend::{Backend, align};
pub use cuda::ComputeCapability;
pub use graph::{
    BackendId, BufferType, Flags, Graph, GraphError, Label, MAX_SRC, Tensor, TensorId,
    contiguous_strides,
};
pub use op::{Glu, Op, Unary};
pub use sched::{Schedule, Scheduler, Split};
pub use types::Type;
