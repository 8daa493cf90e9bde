//! Memory: allocations, and copies that move nothing.

use std::ffi::{c_int, c_uint, c_void};

use super::{Device, Handle, Pointer, allocate, code, free, in_context, refused, started};
use crate::guard::{exported, put};
use crate::world::world;

fn host(bytes: usize, to: *mut *mut c_void) -> Result<(), i32> {
    in_context()?;
    if to.is_null() || bytes == 0 {
        return Err(code::INVALID_VALUE);
    }
    let address = world()
        .live()
        .allocate_host(bytes as u64)
        .map_err(refused)?;
    // SAFETY: not null, by the test above.
    unsafe { put(to, address as *mut c_void, code::INVALID_VALUE) }
}

exported! { by super::answer;
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        let (_, place) = in_context()?;
        let (free_bytes, total_bytes) = world().free_and_total(place);
        put(free, free_bytes as usize, code::INVALID_VALUE)?;
        put(total, total_bytes as usize, code::INVALID_VALUE)?;
    }

    fn cuMemAlloc_v2(address: *mut Pointer, bytes: usize) {
        if address.is_null() {
            return Err(code::INVALID_VALUE);
        }
        put(address, allocate(bytes as u64, "cuMemAlloc")?, code::INVALID_VALUE)?;
    }

    fn cuMemAllocManaged(address: *mut Pointer, bytes: usize, flags: c_uint) {
        if address.is_null() {
            return Err(code::INVALID_VALUE);
        }
        put(address, allocate(bytes as u64, "cuMemAllocManaged")?, code::INVALID_VALUE)?;
    }

    fn cuMemAllocPitch_v2(address: *mut Pointer, pitch: *mut usize, width: usize, height: usize, element: c_uint) {
        if address.is_null() {
            return Err(code::INVALID_VALUE);
        }
        let row = width.checked_next_multiple_of(512).ok_or(code::INVALID_VALUE)?;
        let bytes = row.checked_mul(height).ok_or(code::INVALID_VALUE)?;
        put(address, allocate(bytes as u64, "cuMemAllocPitch")?, code::INVALID_VALUE)?;
        put(pitch, row, code::INVALID_VALUE)?;
    }

    fn cuMemFree_v2(address: Pointer) {
        free(address)?;
    }

    fn cuMemGetAddressRange_v2(base: *mut Pointer, size: *mut usize, address: Pointer) {
        in_context()?;
        let (start, block) = world().live().block_at(address as usize).ok_or(code::NOT_FOUND)?;
        if !base.is_null() {
            put(base, start as Pointer, code::INVALID_VALUE)?;
        }
        if !size.is_null() {
            put(size, block.bytes as usize, code::INVALID_VALUE)?;
        }
    }

    fn cuMemAllocHost_v2(address: *mut *mut c_void, bytes: usize) {
        host(bytes, address)?;
    }

    fn cuMemHostAlloc(address: *mut *mut c_void, bytes: usize, flags: c_uint) {
        host(bytes, address)?;
    }

    fn cuMemFreeHost(address: *mut c_void) {
        free(address as Pointer)?;
    }

    fn cuMemHostRegister_v2(address: *mut c_void, bytes: usize, flags: c_uint) {
        in_context()?;
    }

    fn cuMemHostUnregister(address: *mut c_void) {
        in_context()?;
    }

    fn cuMemHostGetDevicePointer_v2(device: *mut Pointer, host: *mut c_void, flags: c_uint) {
        in_context()?;
        put(device, host as Pointer, code::INVALID_VALUE)?;
    }

    fn cuMemHostGetFlags(flags: *mut c_uint, host: *mut c_void) {
        in_context()?;
        put(flags, 0, code::INVALID_VALUE)?;
    }

    fn cuMemsetD8_v2(to: Pointer, value: u8, count: usize) {
        in_context()?;
    }

    fn cuMemsetD8Async(to: Pointer, value: u8, count: usize, stream: Handle) {
        in_context()?;
    }

    fn cuMemsetD32_v2(to: Pointer, value: c_uint, count: usize) {
        in_context()?;
    }

    fn cuMemsetD32Async(to: Pointer, value: c_uint, count: usize, stream: Handle) {
        in_context()?;
    }

    fn cuMemcpyHtoD_v2(to: Pointer, from: *const c_void, bytes: usize) {
        in_context()?;
    }

    fn cuMemcpyHtoDAsync_v2(to: Pointer, from: *const c_void, bytes: usize, stream: Handle) {
        in_context()?;
    }

    fn cuMemcpyDtoH_v2(to: *mut c_void, from: Pointer, bytes: usize) {
        in_context()?;
    }

    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: Pointer, bytes: usize, stream: Handle) {
        in_context()?;
    }

    fn cuMemcpyDtoD_v2(to: Pointer, from: Pointer, bytes: usize) {
        in_context()?;
    }

    fn cuMemcpyDtoDAsync_v2(to: Pointer, from: Pointer, bytes: usize, stream: Handle) {
        in_context()?;
    }

    fn cuMemcpyPeerAsync(to: Pointer, to_context: Handle, from: Pointer, from_context: Handle, bytes: usize, stream: Handle) {
        in_context()?;
    }

    fn cuMemAdvise(address: Pointer, bytes: usize, advice: c_int, device: Device) {
        started()?;
    }

    /// `CUmemLocation` is two words, passed as one.
    fn cuMemAdvise_v2(address: Pointer, bytes: usize, advice: c_int, location: u64) {
        started()?;
    }

    fn cuMemPrefetchAsync(address: Pointer, bytes: usize, device: Device, stream: Handle) {
        started()?;
    }

    fn cuMemPrefetchAsync_v2(address: Pointer, bytes: usize, location: u64, flags: c_uint, stream: Handle) {
        started()?;
    }
}
