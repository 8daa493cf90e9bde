//! The CUDA driver: `libcuda.so.1`. Signatures and numbers are those of NVIDIA's `cuda.h`.

mod attributes;
mod context;
mod device;
mod entry;
mod launch;
mod pool;
mod space;
mod stream;
mod transfer;

use std::sync::atomic::Ordering;

use crate::guard;
use crate::state::{Live, Refusal};
use crate::world::{World, world};

pub(crate) use attributes::of as attribute;
pub(crate) use context::{current, set_current};
pub(crate) use device::{shown_name, words};

/// `CUresult` codes.
pub(crate) mod code {
    pub const INVALID_VALUE: i32 = 1;
    pub const OUT_OF_MEMORY: i32 = 2;
    pub const NOT_INITIALIZED: i32 = 3;
    pub const NO_DEVICE: i32 = 100;
    pub const INVALID_DEVICE: i32 = 101;
    pub const INVALID_CONTEXT: i32 = 201;
    pub const INVALID_HANDLE: i32 = 400;
    pub const NOT_FOUND: i32 = 500;
    pub const NOT_SUPPORTED: i32 = 801;
    pub const UNKNOWN: i32 = 999;
}

/// `CUdevice`, `CUdeviceptr`, and pointers to things that are nothing here.
pub(crate) type Device = i32;
pub(crate) type Pointer = u64;
pub(crate) type Handle = usize;

/// What stands around each call here.
fn answer(name: &str, body: impl FnOnce() -> Result<(), i32>) -> i32 {
    guard::call(name, code::UNKNOWN, body)
}

/// The GPUs, once `cuInit` was called.
fn started() -> Result<&'static World, i32> {
    let world = world();
    match world.started.load(Ordering::Acquire) {
        true => Ok(world),
        false => Err(code::NOT_INITIALIZED),
    }
}

/// A device's place in the list.
fn place(device: Device) -> Result<usize, i32> {
    started()?.cuda_place(device).ok_or(code::INVALID_DEVICE)
}

/// The current context's handle and place.
fn in_context() -> Result<(usize, usize), i32> {
    let world = started()?;
    let handle = current().ok_or(code::INVALID_CONTEXT)?;
    let context = world.live().context(handle).ok_or(code::INVALID_CONTEXT)?;
    Ok((handle, context.place))
}

fn refused(refusal: Refusal) -> i32 {
    match refusal {
        Refusal::OutOfMemory => code::OUT_OF_MEMORY,
        Refusal::Unknown => code::INVALID_VALUE,
    }
}

/// An allocation on the current context's GPU.
fn allocate(bytes: u64, call: &str) -> Result<Pointer, i32> {
    let (context, place) = in_context()?;
    if bytes == 0 {
        return Err(code::INVALID_VALUE);
    }
    let mut live = world().live();
    live.allocate(place, context, bytes, call)
        .map(|address| address as Pointer)
        .map_err(refused)
}

fn free(address: Pointer) -> Result<(), i32> {
    let world = started()?;
    if address == 0 {
        return Ok(());
    }
    Live::free(&mut world.live(), address as usize).map_err(refused)
}
