//! Who uses a GPU: each process with a context on it, and how much.

use std::ffi::c_uint;

use super::{Handle, code, device, since};
use crate::guard::{exported, put};
use crate::world::world;

/// What NVML writes for a number that it does not know.
const NOT_AVAILABLE: u64 = u64::MAX;
/// No MIG instance.
const NO_INSTANCE: c_uint = u32::MAX;

/// `nvmlProcessInfo_v1_t`
#[repr(C)]
pub(crate) struct ProcessV1 {
    pid: c_uint,
    used: u64,
}

/// `nvmlProcessInfo_v2_t`, of the calls `_v2` and `_v3`.
#[repr(C)]
pub(crate) struct ProcessV2 {
    pid: c_uint,
    used: u64,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

/// Writes as many as there is room for, or none and how many there are.
unsafe fn list<T>(
    handle: Handle,
    count: *mut c_uint,
    infos: *mut T,
    make: impl Fn(c_uint, u64, c_uint) -> T,
) -> Result<(), i32> {
    let found = device(handle)?;
    if count.is_null() {
        return Err(code::INVALID_ARGUMENT);
    }
    let instance = if found.spec.mig_is_on() {
        0
    } else {
        NO_INSTANCE
    };
    let settings = &world().settings;
    let known = settings.process_memory;
    let processes: Vec<T> = world()
        .uses(found.place)
        .into_iter()
        .filter(|one| one.contexts > 0)
        .map(|one| {
            make(
                one.pid.wrapping_add(settings.pid_shift),
                if known { one.bytes } else { NOT_AVAILABLE },
                instance,
            )
        })
        .collect();
    // SAFETY: `count` is not null and says how many `infos` has room for.
    unsafe {
        let room = count.read() as usize;
        put(count, processes.len() as c_uint, code::INVALID_ARGUMENT)?;
        if processes.len() > room {
            return Err(code::INSUFFICIENT_SIZE);
        }
        for (at, process) in processes.into_iter().enumerate() {
            if infos.is_null() {
                return Err(code::INVALID_ARGUMENT);
            }
            infos.add(at).write(process);
        }
    }
    Ok(())
}

unsafe fn none(handle: Handle, count: *mut c_uint) -> Result<(), i32> {
    device(handle)?;
    // SAFETY: `put` tests for null; else it is the caller's promise.
    unsafe { put(count, 0, code::INVALID_ARGUMENT) }
}

fn v1(pid: c_uint, used: u64, _: c_uint) -> ProcessV1 {
    ProcessV1 { pid, used }
}

fn v2(pid: c_uint, used: u64, instance: c_uint) -> ProcessV2 {
    ProcessV2 {
        pid,
        used,
        gpu_instance: instance,
        compute_instance: instance,
    }
}

exported! { by super::answer;
    fn nvmlDeviceGetComputeRunningProcesses(handle: Handle, count: *mut c_uint, infos: *mut ProcessV1) {
        list(handle, count, infos, v1)?;
    }

    fn nvmlDeviceGetComputeRunningProcesses_v2(handle: Handle, count: *mut c_uint, infos: *mut ProcessV2) {
        list(handle, count, infos, v2)?;
    }

    fn nvmlDeviceGetComputeRunningProcesses_v3(handle: Handle, count: *mut c_uint, infos: *mut ProcessV2) {
        device(handle)?;
        since(510)?;
        list(handle, count, infos, v2)?;
    }

    fn nvmlDeviceGetGraphicsRunningProcesses(handle: Handle, count: *mut c_uint, infos: *mut ProcessV1) {
        none(handle, count)?;
    }

    fn nvmlDeviceGetGraphicsRunningProcesses_v2(handle: Handle, count: *mut c_uint, infos: *mut ProcessV2) {
        none(handle, count)?;
    }

    fn nvmlDeviceGetGraphicsRunningProcesses_v3(handle: Handle, count: *mut c_uint, infos: *mut ProcessV2) {
        since(510)?;
        none(handle, count)?;
    }

    fn nvmlDeviceGetMPSComputeRunningProcesses_v3(handle: Handle, count: *mut c_uint, infos: *mut ProcessV2) {
        since(510)?;
        none(handle, count)?;
    }
}
