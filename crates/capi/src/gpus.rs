//! Lists of GPUs.

use std::ffi::c_char;
use std::path::Path;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use vramfit::{ChildProbe, ComputeCapability, GpuList};

use crate::error::{Failure, free, guard, look, vramfit_error, vramfit_status};
use crate::text::{Out, handle, path, text, text_or_null};

/// GPUs in CUDA's order: the first is CUDA0. It may be used from several threads at once; a plan is made for the list
/// as it is at that moment.
pub struct vramfit_gpus {
    list: RwLock<GpuList>,
}

impl From<GpuList> for vramfit_gpus {
    fn from(list: GpuList) -> vramfit_gpus {
        vramfit_gpus {
            list: RwLock::new(list),
        }
    }
}

impl vramfit_gpus {
    pub(crate) fn now(&self) -> GpuList {
        let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
        list.clone()
    }

    fn change<T>(&self, change: impl FnOnce(&mut GpuList) -> T) -> T {
        change(&mut self.list.write().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Reads a list as `estimate --gpus` does: "k80x2", "rtx3060:free=9GiB", "24GiB:cc=7.5", "none". For "auto" there is
/// `vramfit_gpus_probe`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_gpus_parse(
    gpus_text: *const c_char,
    gpus: *mut *mut vramfit_gpus,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    guard(error, || {
        let out = Out::new(gpus, "gpus")?;
        let list = vramfit::gpu_list(text(gpus_text, "gpus_text")?)?;
        out.hand_over(vramfit_gpus::from(list));
        Ok(())
    })
}

/// This machine's GPUs, as the driver shows them: "auto" (which NULL is, too), or "auto:0,2" for some. `program` is
/// vramfit's `estimate` (NULL: by its name, on the path), which asks the driver in a process of its own, so that a
/// driver that hangs or crashes does so there; it is given `timeout_ms` (0 for the default, some seconds), then killed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_gpus_probe(
    program: *const c_char,
    gpus_text: *const c_char,
    timeout_ms: u32,
    gpus: *mut *mut vramfit_gpus,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    guard(error, || {
        let out = Out::new(gpus, "gpus")?;
        let program = match program.is_null() {
            true => Path::new("estimate"),
            false => path(program, "program")?,
        };
        let text = text_or_null(gpus_text, "gpus_text")?.unwrap_or("auto");
        let mut probe = ChildProbe::new(program);
        if timeout_ms > 0 {
            probe = probe.timeout(Duration::from_millis(timeout_ms.into()));
        }
        out.hand_over(vramfit_gpus::from(vramfit::probed_gpus(text, &probe)?));
        Ok(())
    })
}

/// An empty list, for `vramfit_gpus_add`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_gpus_new(
    gpus: *mut *mut vramfit_gpus,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    guard(error, || {
        Out::new(gpus, "gpus")?.hand_over(vramfit_gpus::from(GpuList::default()));
        Ok(())
    })
}

/// Adds a GPU by what CUDA says of it (`cudaMemGetInfo`, the compute capability's two numbers). `name` may be NULL; a
/// card of the catalogue is known by it, for others what CUDA itself takes is modelled by the compute capability.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_gpus_add(
    gpus: *const vramfit_gpus,
    name: *const c_char,
    total_bytes: u64,
    free_bytes: u64,
    compute_capability_major: u32,
    compute_capability_minor: u32,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    guard(error, || {
        let gpus = handle(gpus, "gpus")?;
        let name = text_or_null(name, "name")?.unwrap_or_default();
        let (major, minor) = (compute_capability_major, compute_capability_minor);
        if major == 0 || major > 99 || minor > 9 {
            let message = format!("{major}.{minor} is not a compute capability (8.6 is one)");
            return Err(Failure::gpus(message));
        }
        let capability = ComputeCapability::new(major, minor);
        gpus.change(|list| list.add(name, total_bytes, free_bytes, capability))
            .map_err(vramfit::Error::from)?;
        Ok(())
    })
}

/// Says what is free on a GPU now.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_gpus_set_free(
    gpus: *const vramfit_gpus,
    gpu: u32,
    free_bytes: u64,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    guard(error, || {
        handle(gpus, "gpus")?.change(|list| {
            let count = list.devices.len();
            let Some(device) = list.devices.get_mut(gpu as usize) else {
                let message = format!("CUDA{gpu} is none of the {count} GPUs of the list");
                return Err(Failure::argument(message));
            };
            if free_bytes > device.total_bytes {
                let total_bytes = device.total_bytes;
                let error = vramfit::devices::GpuError::FreeAboveTotal {
                    free_bytes,
                    total_bytes,
                };
                return Err(vramfit::Error::from(error).into());
            }
            device.free_bytes = free_bytes;
            Ok(())
        })
    })
}

/// How many there are.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_gpus_count(gpus: *const vramfit_gpus) -> u32 {
    look(gpus, 0, |g| {
        u32::try_from(g.now().devices.len()).unwrap_or(u32::MAX)
    })
}

/// All memory of a GPU, bytes; 0 beyond the end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_gpus_total_bytes(gpus: *const vramfit_gpus, gpu: u32) -> u64 {
    look(gpus, 0, |g| {
        let list = g.now();
        list.devices.get(gpu as usize).map_or(0, |d| d.total_bytes)
    })
}

/// Free memory of a GPU, bytes; 0 beyond the end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_gpus_free_bytes(gpus: *const vramfit_gpus, gpu: u32) -> u64 {
    look(gpus, 0, |g| {
        let list = g.now();
        list.devices.get(gpu as usize).map_or(0, |d| d.free_bytes)
    })
}

/// Frees a list. NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_gpus_free(gpus: *mut vramfit_gpus) {
    free(gpus);
}
