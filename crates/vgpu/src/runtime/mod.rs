//! The CUDA runtime: `libcudart.so.13`, as much of it as llama.cpp's CUDA backend and small programs call. Signatures and
//! numbers are those of NVIDIA's `cuda_runtime_api.h` for CUDA 13.

mod device;
mod image;
mod kernel;
mod memory;
mod properties;
mod stream;

use std::cell::Cell;
use std::sync::atomic::Ordering;

use crate::driver;
use crate::guard;
use crate::state::Refusal;
use crate::world::{World, world};

/// `cudaError_t` codes.
pub(crate) mod code {
    pub const INVALID_VALUE: i32 = 1;
    pub const OUT_OF_MEMORY: i32 = 2;
    pub const NO_DEVICE: i32 = 100;
    pub const INVALID_DEVICE: i32 = 101;
    pub const UNKNOWN: i32 = 999;
}

pub(crate) type Handle = usize;

thread_local! {
    /// This thread's device.
    static DEVICE: Cell<i32> = const { Cell::new(0) };
    /// This thread's last error, until it is asked for.
    static LAST: Cell<i32> = const { Cell::new(0) };
}

/// What stands around each call here: an error stays, to be asked for.
fn answer(name: &str, body: impl FnOnce() -> Result<(), i32>) -> i32 {
    let code = guard::call(name, code::UNKNOWN, body);
    if code != 0 {
        LAST.set(code);
    }
    code
}

/// The GPUs. The runtime initialises the driver when it is first asked for something.
fn started() -> Result<&'static World, i32> {
    let world = world();
    if world.started.load(Ordering::Acquire) {
        return Ok(world);
    }
    if let Some(code) = world.settings.faults.meet("cuInit") {
        return Err(code);
    }
    if world.settings.cuda.is_empty() {
        return Err(code::NO_DEVICE);
    }
    world.started.store(true, Ordering::Release);
    Ok(world)
}

fn place(device: i32) -> Result<usize, i32> {
    started()?.cuda_place(device).ok_or(code::INVALID_DEVICE)
}

/// This thread's device: its primary context, which the runtime holds from the first use on, and its place.
fn here() -> Result<(usize, usize), i32> {
    let place = place(DEVICE.get())?;
    let context = world().live().runtime_context(place).map_err(refused)?;
    if driver::current() != Some(context) {
        driver::set_current(context);
    }
    Ok((context, place))
}

fn refused(refusal: Refusal) -> i32 {
    match refusal {
        Refusal::OutOfMemory => code::OUT_OF_MEMORY,
        Refusal::Unknown => code::INVALID_VALUE,
    }
}
