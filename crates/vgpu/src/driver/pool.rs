//! Allocations in a stream's order, from pools that keep nothing: a free is one at once.

use std::ffi::{c_int, c_void};

use super::{Device, Handle, Pointer, allocate, code, free, in_context, place};
use crate::guard::{exported, put};
use crate::memory;

/// A GPU's one pool: a handle that is its number, and nothing to free.
fn default_pool(device: Device) -> Result<Handle, i32> {
    place(device)?;
    Ok(device as Handle + 1)
}

exported! { by super::answer;
    fn cuMemAllocAsync(address: *mut Pointer, bytes: usize, stream: Handle) {
        if address.is_null() {
            return Err(code::INVALID_VALUE);
        }
        put(address, allocate(bytes as u64, "cuMemAllocAsync")?, code::INVALID_VALUE)?;
    }

    fn cuMemAllocFromPoolAsync(address: *mut Pointer, bytes: usize, pool: Handle, stream: Handle) {
        if address.is_null() {
            return Err(code::INVALID_VALUE);
        }
        put(address, allocate(bytes as u64, "cuMemAllocFromPoolAsync")?, code::INVALID_VALUE)?;
    }

    fn cuMemFreeAsync(address: Pointer, stream: Handle) {
        in_context()?;
        free(address)?;
    }

    fn cuDeviceGetDefaultMemPool(pool: *mut Handle, device: Device) {
        put(pool, default_pool(device)?, code::INVALID_VALUE)?;
    }

    fn cuDeviceGetMemPool(pool: *mut Handle, device: Device) {
        put(pool, default_pool(device)?, code::INVALID_VALUE)?;
    }

    fn cuDeviceSetMemPool(device: Device, pool: Handle) {
        place(device)?;
    }

    fn cuMemPoolCreate(pool: *mut Handle, properties: *const c_void) {
        put(pool, memory::handle(), code::INVALID_VALUE)?;
    }

    fn cuMemPoolDestroy(pool: Handle) {
        memory::drop_handle(pool);
    }

    fn cuMemPoolTrimTo(pool: Handle, keep: usize) {}

    fn cuMemPoolSetAttribute(pool: Handle, attribute: c_int, value: *mut c_void) {}

    /// Attributes 1 to 3 are 32-bit switches, the others 64-bit sizes; a pool that keeps nothing has none of either.
    fn cuMemPoolGetAttribute(pool: Handle, attribute: c_int, value: *mut c_void) {
        match attribute {
            1..=3 => put(value.cast::<u32>(), 0, code::INVALID_VALUE)?,
            _ => put(value.cast::<u64>(), 0, code::INVALID_VALUE)?,
        }
    }
}
