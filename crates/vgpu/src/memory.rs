//! Address space of this process: device memory without access, pinned memory with it, and opaque handles.

use std::ptr;

const PAGE: u64 = 4096;

/// A length in whole pages, one at least; `None` where no process has so much address space.
pub(crate) fn pages(bytes: u64) -> Option<usize> {
    let length = bytes.max(1).checked_next_multiple_of(PAGE)?;
    usize::try_from(length)
        .ok()
        .filter(|length| *length <= isize::MAX as usize)
}

/// Address space; `None` when there is none left.
pub(crate) fn reserve(length: usize, access: bool) -> Option<usize> {
    let protection = if access {
        libc::PROT_READ | libc::PROT_WRITE
    } else {
        libc::PROT_NONE
    };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the system's choice touches nothing that exists.
    let address = unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, -1, 0) };
    (address != libc::MAP_FAILED).then_some(address as usize)
}

/// The same at a multiple of `alignment`: more is reserved, and the ends are given back.
pub(crate) fn reserve_aligned(length: usize, alignment: usize) -> Option<usize> {
    let whole = length.checked_add(alignment)?;
    let start = reserve(whole, false)?;
    let aligned = start.checked_next_multiple_of(alignment.max(1))?;
    give_back(start, aligned - start);
    give_back(aligned + length, start + whole - (aligned + length));
    Some(aligned)
}

pub(crate) fn give_back(address: usize, length: usize) {
    if length > 0 {
        // SAFETY: only called on what `reserve` gave, which nothing else points into.
        unsafe { libc::munmap(address as *mut libc::c_void, length) };
    }
}

/// A pointer that means nothing, and is nobody else's while it lives: streams, events, modules, contexts.
pub(crate) fn handle() -> usize {
    // SAFETY: a fresh block of zeros.
    unsafe { libc::calloc(1, 64) as usize }
}

pub(crate) fn drop_handle(handle: usize) {
    // SAFETY: only called on what `handle` gave (or 0), once.
    unsafe { libc::free(handle as *mut libc::c_void) };
}
