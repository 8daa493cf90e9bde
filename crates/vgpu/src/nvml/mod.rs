//! NVML: `libnvidia-ml.so.1`. It sees all GPUs, by PCI address, whatever CUDA is told to show, and makes no context.

mod device;
mod mig;
mod processes;
mod system;

use std::sync::atomic::{AtomicI64, Ordering};

use crate::guard;
use crate::spec::Spec;
use crate::world::{World, world};

/// `nvmlReturn_t` codes.
pub(crate) mod code {
    pub const UNINITIALIZED: i32 = 1;
    pub const INVALID_ARGUMENT: i32 = 2;
    pub const NOT_SUPPORTED: i32 = 3;
    pub const NOT_FOUND: i32 = 6;
    pub const INSUFFICIENT_SIZE: i32 = 7;
    pub const FUNCTION_NOT_FOUND: i32 = 13;
    pub const VERSION_MISMATCH: i32 = 25;
    pub const UNKNOWN: i32 = 999;
}

/// How often it was initialised and not shut down since.
static HELD: AtomicI64 = AtomicI64::new(0);

/// `nvmlDevice_t`: a pointer that is a number here. A card is its NVML index + 1, its MIG instance that + `MIG`.
pub(crate) type Handle = usize;
const MIG: Handle = 0x1000;

/// What a handle stands for.
#[derive(Debug, Clone, Copy)]
struct Device {
    place: usize,
    /// NVML's index.
    index: usize,
    mig: bool,
    spec: &'static Spec,
}

/// What stands around each call here.
fn answer(name: &str, body: impl FnOnce() -> Result<(), i32>) -> i32 {
    guard::call(name, code::UNKNOWN, body)
}

fn started() -> Result<&'static World, i32> {
    match HELD.load(Ordering::Acquire) > 0 {
        true => Ok(world()),
        false => Err(code::UNINITIALIZED),
    }
}

fn by_index(index: usize) -> Option<Device> {
    let place = *world().settings.nvml.get(index)?;
    Some(Device {
        place,
        index,
        mig: false,
        spec: world().spec(place)?,
    })
}

fn device(handle: Handle) -> Result<Device, i32> {
    started()?;
    let mig = handle >= MIG;
    let index = if mig { handle - MIG } else { handle }
        .checked_sub(1)
        .ok_or(code::INVALID_ARGUMENT)?;
    let found = by_index(index).ok_or(code::INVALID_ARGUMENT)?;
    Ok(Device { mig, ..found })
}

/// All cards, by NVML's index.
fn devices() -> impl Iterator<Item = Device> {
    (0..world().settings.nvml.len()).filter_map(by_index)
}

impl Device {
    fn handle(&self) -> Handle {
        self.index + 1 + if self.mig { MIG } else { 0 }
    }
}

/// A call that an old driver does not have. Its symbol is here all the same, so the answer is the code for that.
fn since(branch: u32) -> Result<(), i32> {
    match world().settings.driver.branch >= branch {
        true => Ok(()),
        false => Err(code::FUNCTION_NOT_FOUND),
    }
}
