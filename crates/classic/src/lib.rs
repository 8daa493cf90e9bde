//! What the Ollama of early 2025, and the fork of it that still runs on Tesla K80s, decide about a
//! model: its memory estimator and its scheduler, as pure functions of the header, the settings and
//! the GPUs.
//!
//! The estimator adds up formulas of its own, one per architecture, which know nothing of the graph
//! that is computed in the end; so its answers differ from llama.cpp's bytes, and are kept apart from
//! them. [`Facts`] is what it reads of a header, [`cache`], [`graph`] and [`vision`] are its formulas,
//! [`mod@estimate`] hands out layers, [`schedule`] chooses GPUs. [`layout`] is how later versions hand
//! out layers. All arithmetic is whole numbers, cut off from left to right, as there; where a lying
//! header would overflow it stays at the largest number.

pub mod cache;
pub mod estimate;
mod facts;
pub mod graph;
pub mod human;
pub mod layout;
mod number;
mod place;
pub mod schedule;
mod tower;
pub mod vision;

pub use cache::CacheType;
pub use estimate::{Estimate, Rules, Settings, Share, Version, estimate};
pub use facts::{Error, Facts};
pub use schedule::{Attempt, Decision, Outcome, automatic_parallel, schedule};
pub use tower::{tower_alone, tower_bytes, without_tower};

/// Kind of GPU, as Ollama groups them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Library {
    /// NVIDIA.
    Cuda,
    /// AMD.
    Rocm,
    /// Apple.
    Metal,
}

impl Library {
    /// Memory that is held back on each GPU of this kind before anything else.
    pub fn minimum_bytes(self) -> u64 {
        match self {
            Library::Cuda | Library::Rocm => 457 << 20,
            Library::Metal => 512 << 20,
        }
    }
}

/// A GPU as Ollama sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gpu {
    /// Its kind.
    pub library: Library,
    /// What the driver says is free, seen from inside a CUDA context; bytes.
    pub free_bytes: u64,
    /// Held back on it: [`Library::minimum_bytes`].
    pub minimum_bytes: u64,
}

impl Gpu {
    /// A CUDA GPU with so many bytes free.
    pub fn cuda(free_bytes: u64) -> Gpu {
        Gpu {
            library: Library::Cuda,
            free_bytes,
            minimum_bytes: Library::Cuda.minimum_bytes(),
        }
    }

    /// What is left for another model: what the driver says, but not more than what the predictions
    /// of the models that are loaded leave of `total_bytes`.
    pub fn left(self, total_bytes: u64, predicted_bytes: u64) -> Gpu {
        let left = total_bytes.saturating_sub(predicted_bytes);
        Gpu {
            free_bytes: self.free_bytes.min(left),
            ..self
        }
    }
}
