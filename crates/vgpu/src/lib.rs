//! Imaginary NVIDIA GPUs, for development only: one library that answers as the CUDA driver (`libcuda.so.1`), NVML
//! (`libnvidia-ml.so.1`), the CUDA runtime (`libcudart.so.13`) and cuBLAS (`libcublas.so.13`). It is installed under these
//! names as links to one file, so that a process loads it once and all four see the same GPUs. Nothing is computed or
//! copied; allocations are counted, and refused where a card would refuse them. What it plays is in the environment:
//! see README.md.
//!
//! The Rust side is [`Install`]: the links in a folder, and the environment for a child process.

mod blas;
mod counters;
mod driver;
mod faults;
mod guard;
mod install;
mod memory;
mod nvml;
mod runtime;
mod settings;
mod shared;
mod spec;
mod state;
mod visible;
mod world;

pub use install::{Install, InstallError};
