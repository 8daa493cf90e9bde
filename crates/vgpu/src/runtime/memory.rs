//! Memory: allocations, and copies that move nothing.

use std::ffi::{c_int, c_uint, c_void};

use super::{Handle, code, here, refused, started};
use crate::guard::{exported, put};
use crate::world::world;

fn allocate(to: *mut *mut c_void, bytes: usize, call: &str) -> Result<(), i32> {
    // SAFETY: `put` tests for null; else it is the caller's promise.
    unsafe { put(to, std::ptr::null_mut(), code::INVALID_VALUE)? };
    let (context, place) = here()?;
    if bytes == 0 {
        return Ok(());
    }
    let address = world()
        .live()
        .allocate(place, context, bytes as u64, call)
        .map_err(refused)?;
    // SAFETY: as above.
    unsafe { put(to, address as *mut c_void, code::INVALID_VALUE) }
}

fn allocate_host(to: *mut *mut c_void, bytes: usize) -> Result<(), i32> {
    // SAFETY: as above.
    unsafe { put(to, std::ptr::null_mut(), code::INVALID_VALUE)? };
    here()?;
    if bytes == 0 {
        return Ok(());
    }
    let address = world()
        .live()
        .allocate_host(bytes as u64)
        .map_err(refused)?;
    // SAFETY: as above.
    unsafe { put(to, address as *mut c_void, code::INVALID_VALUE) }
}

fn free(address: *mut c_void) -> Result<(), i32> {
    if address.is_null() {
        return Ok(());
    }
    started()?.live().free(address as usize).map_err(refused)
}

exported! { by super::answer;
    fn cudaMemGetInfo(free: *mut usize, total: *mut usize) {
        let (_, place) = here()?;
        let (free_bytes, total_bytes) = world().free_and_total(place);
        put(free, free_bytes as usize, code::INVALID_VALUE)?;
        put(total, total_bytes as usize, code::INVALID_VALUE)?;
    }

    fn cudaMalloc(to: *mut *mut c_void, bytes: usize) {
        allocate(to, bytes, "cudaMalloc")?;
    }

    fn cudaMallocManaged(to: *mut *mut c_void, bytes: usize, flags: c_uint) {
        allocate(to, bytes, "cudaMallocManaged")?;
    }

    fn cudaMallocAsync(to: *mut *mut c_void, bytes: usize, stream: Handle) {
        allocate(to, bytes, "cudaMallocAsync")?;
    }

    fn cudaFree(address: *mut c_void) {
        free(address)?;
    }

    fn cudaFreeAsync(address: *mut c_void, stream: Handle) {
        free(address)?;
    }

    fn cudaMallocHost(to: *mut *mut c_void, bytes: usize) {
        allocate_host(to, bytes)?;
    }

    fn cudaHostAlloc(to: *mut *mut c_void, bytes: usize, flags: c_uint) {
        allocate_host(to, bytes)?;
    }

    fn cudaFreeHost(address: *mut c_void) {
        free(address)?;
    }

    fn cudaHostGetDevicePointer(device: *mut *mut c_void, host: *mut c_void, flags: c_uint) {
        put(device, host, code::INVALID_VALUE)?;
    }

    fn cudaHostRegister(address: *mut c_void, bytes: usize, flags: c_uint) {}

    fn cudaHostUnregister(address: *mut c_void) {}

    fn cudaMemset(to: *mut c_void, value: c_int, bytes: usize) {}

    fn cudaMemsetAsync(to: *mut c_void, value: c_int, bytes: usize, stream: Handle) {}

    fn cudaMemcpy(to: *mut c_void, from: *const c_void, bytes: usize, kind: c_int) {}

    fn cudaMemcpyAsync(to: *mut c_void, from: *const c_void, bytes: usize, kind: c_int, stream: Handle) {}

    fn cudaMemcpy2DAsync(
        to: *mut c_void, to_pitch: usize, from: *const c_void, from_pitch: usize, width: usize, height: usize,
        kind: c_int, stream: Handle,
    ) {}

    fn cudaMemcpyPeerAsync(
        to: *mut c_void, to_device: c_int, from: *const c_void, from_device: c_int, bytes: usize, stream: Handle,
    ) {}
}
