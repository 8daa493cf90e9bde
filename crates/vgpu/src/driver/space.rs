//! Virtual memory management: addresses, physical blocks, and what maps one to the other.

use std::ffi::{c_int, c_ulonglong, c_void};

use super::{Pointer, code, place, refused, started};
use crate::guard::{exported, put};
use crate::memory;
use crate::world::world;

/// A real driver's granularity, minimum and recommended alike.
pub(crate) const GRANULARITY: usize = 2 << 20;

/// The head of `CUmemAllocationProp`: kind of memory, kinds of handles, and where it is to be.
#[repr(C)]
pub(crate) struct Properties {
    kind: c_int,
    handles: c_int,
    location_kind: c_int,
    device: c_int,
}

exported! { by super::answer;
    fn cuMemGetAllocationGranularity(granularity: *mut usize, properties: *const Properties, option: c_int) {
        started()?;
        put(granularity, GRANULARITY, code::INVALID_VALUE)?;
    }

    fn cuMemAddressReserve(address: *mut Pointer, bytes: usize, alignment: usize, wanted: Pointer, flags: c_ulonglong) {
        started()?;
        if address.is_null() || bytes == 0 || !bytes.is_multiple_of(GRANULARITY) {
            return Err(code::INVALID_VALUE);
        }
        let alignment = alignment.max(GRANULARITY);
        let found = memory::reserve_aligned(bytes, alignment).ok_or(code::OUT_OF_MEMORY)?;
        put(address, found as Pointer, code::INVALID_VALUE)?;
    }

    fn cuMemAddressFree(address: Pointer, bytes: usize) {
        started()?;
        memory::give_back(address as usize, bytes);
    }

    fn cuMemCreate(handle: *mut c_ulonglong, bytes: usize, properties: *const Properties, flags: c_ulonglong) {
        started()?;
        if handle.is_null() || properties.is_null() || bytes == 0 || !bytes.is_multiple_of(GRANULARITY) {
            return Err(code::INVALID_VALUE);
        }
        let place = place((*properties).device)?;
        if !world().spec(place).is_some_and(|spec| spec.vmm) {
            return Err(code::NOT_SUPPORTED);
        }
        let made = world().live().create_physical(place, bytes as u64).map_err(refused)?;
        put(handle, made, code::INVALID_VALUE)?;
    }

    fn cuMemMap(address: Pointer, bytes: usize, offset: usize, handle: c_ulonglong, flags: c_ulonglong) {
        let mut live = started()?.live();
        live.map_physical(address as usize, bytes, handle).map_err(refused)?;
    }

    fn cuMemUnmap(address: Pointer, bytes: usize) {
        started()?.live().unmap_physical(address as usize, bytes);
    }

    fn cuMemRelease(handle: c_ulonglong) {
        started()?.live().release_physical(handle).map_err(refused)?;
    }

    fn cuMemSetAccess(address: Pointer, bytes: usize, access: *const c_void, count: usize) {
        started()?;
    }
}
