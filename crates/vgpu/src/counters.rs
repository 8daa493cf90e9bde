//! What has been taken, for a program that plays these GPUs to an engine and asks afterwards (by `dlsym`). By CUDA's numbers.

use std::ffi::c_int;

use crate::state::Counters;
use crate::world::world;

fn of(device: c_int, what: impl Fn(&Counters) -> u64) -> usize {
    let place = world().cuda_place(device);
    let live = world().live();
    place
        .and_then(|place| live.devices.get(place))
        .map_or(0, |counters| what(counters) as usize)
}

/// GPUs that CUDA shows.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_count() -> c_int {
    world().settings.cuda.len() as c_int
}

/// Live bytes of allocations, as asked for.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_allocated(device: c_int) -> usize {
    of(device, |counters| counters.asked)
}

/// The most that there ever were.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_allocated_peak(device: c_int) -> usize {
    of(device, |counters| counters.asked_peak)
}

/// Live bytes, each allocation rounded up to 2 MiB.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_allocated_2m(device: c_int) -> usize {
    of(device, |counters| counters.rounded)
}

/// Live bytes of physical blocks (`cuMemCreate`).
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_vmm(device: c_int) -> usize {
    of(device, |counters| counters.vmm)
}

/// The most that there ever were.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_vmm_peak(device: c_int) -> usize {
    of(device, |counters| counters.vmm_peak)
}

/// Allocations granted so far.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_mallocs(device: c_int) -> usize {
    of(device, |counters| counters.calls)
}

/// Kernels launched so far.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_launches(device: c_int) -> usize {
    world()
        .cuda_place(device)
        .map_or(0, |place| world().launches(place) as usize)
}

/// Live bytes of pinned host memory.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_pinned() -> usize {
    world().live().pinned as usize
}

/// The summary of `VGPU_REPORT`, now, on stderr.
#[unsafe(no_mangle)]
pub extern "C" fn vgpu_report() {
    world().report();
}
