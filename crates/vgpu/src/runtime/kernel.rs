//! Kernels: counted, never run; what is known of one is made up.

use std::ffi::{c_int, c_uint, c_void};

use super::{DEVICE, Handle, code, here, place};
use crate::guard::{exported, put};
use crate::spec::Spec;
use crate::world::world;

/// `dim3`
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Dim3 {
    x: c_uint,
    y: c_uint,
    z: c_uint,
}

/// `cudaFuncAttributes` of CUDA 13.
#[repr(C)]
pub(crate) struct FunctionAttributes {
    shared_bytes: usize,
    constant_bytes: usize,
    local_bytes: usize,
    most_threads: c_int,
    registers: c_int,
    ptx_version: c_int,
    binary_version: c_int,
    cache_mode: c_int,
    most_dynamic_shared_bytes: c_int,
    rest: [c_int; 24],
}
const _: () = assert!(size_of::<FunctionAttributes>() == 144);

/// What the prebuilt engine's kernels are compiled for.
const PTX: [u32; 7] = [121, 120, 90, 89, 86, 80, 75];
/// A guess at what a kernel uses.
const REGISTERS_A_THREAD: c_int = 128;
const REGISTERS: c_int = 65_536;
const THREADS: c_int = 2048;

fn spec() -> Result<&'static Spec, i32> {
    world()
        .spec(place(DEVICE.get())?)
        .ok_or(code::INVALID_DEVICE)
}

fn launch() -> Result<(), i32> {
    let (_, place) = here()?;
    world().launched(place);
    Ok(())
}

/// Blocks that a multiprocessor holds at once: by threads, registers and shared memory, one at least.
fn occupancy(spec: &Spec, threads: c_int, shared: usize) -> c_int {
    let by_threads = match threads {
        1.. => (THREADS / threads).min(REGISTERS / threads.saturating_mul(REGISTERS_A_THREAD)),
        _ => 1,
    };
    let by_shared = match shared {
        0 => c_int::MAX,
        _ => c_int::try_from(spec.smem_optin as usize / shared.saturating_add(1024))
            .unwrap_or(c_int::MAX),
    };
    by_threads.min(by_shared).max(1)
}

exported! { by super::answer;
    fn cudaLaunchKernel(
        function: *const c_void, grid: Dim3, block: Dim3, arguments: *mut *mut c_void, shared: usize, stream: Handle,
    ) {
        launch()?;
    }

    fn cudaLaunchCooperativeKernel(
        function: *const c_void, grid: Dim3, block: Dim3, arguments: *mut *mut c_void, shared: usize, stream: Handle,
    ) {
        launch()?;
    }

    fn cudaLaunchKernelExC(config: *const c_void, function: *const c_void, arguments: *mut *mut c_void) {
        launch()?;
    }

    fn __cudaLaunchKernel(
        kernel: Handle, grid: Dim3, block: Dim3, arguments: *mut *mut c_void, shared: usize, stream: Handle,
    ) {
        launch()?;
    }

    /// A kernel's handle is its function's address.
    fn __cudaGetKernel(kernel: *mut Handle, function: *const c_void) {
        put(kernel, function as Handle, code::INVALID_VALUE)?;
    }

    fn cudaFuncGetAttributes(attributes: *mut FunctionAttributes, function: *const c_void) {
        let spec = spec()?;
        let capability = spec.major * 10 + spec.minor;
        // Of the images in a file, a device takes the newest that it can.
        let ptx = PTX.into_iter().find(|version| *version <= capability).unwrap_or(75);
        put(
            attributes,
            FunctionAttributes {
                shared_bytes: 0,
                constant_bytes: 0,
                local_bytes: 0,
                most_threads: 1024,
                registers: 64,
                ptx_version: ptx as c_int,
                binary_version: capability as c_int,
                cache_mode: 0,
                most_dynamic_shared_bytes: spec.smem_optin as c_int,
                rest: [0; 24],
            },
            code::INVALID_VALUE,
        )?;
    }

    fn cudaFuncSetAttribute(function: *const c_void, attribute: c_int, value: c_int) {}

    fn cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        blocks: *mut c_int, function: *const c_void, threads: c_int, shared: usize, flags: c_uint,
    ) {
        put(blocks, occupancy(spec()?, threads, shared), code::INVALID_VALUE)?;
    }

    fn cudaOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: *mut c_int, function: *const c_void, threads: c_int, shared: usize,
    ) {
        put(blocks, occupancy(spec()?, threads, shared), code::INVALID_VALUE)?;
    }
}
