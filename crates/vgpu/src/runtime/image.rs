//! What nvcc puts around kernels. A program calls most of it while it is loaded, long before it says which GPUs it wants,
//! so nothing here looks at the environment.

use std::cell::RefCell;
use std::ffi::{c_char, c_int, c_uint, c_void};

use super::Handle;
use super::kernel::Dim3;

/// A launch whose settings are said before its arguments.
type Launch = (Dim3, Dim3, usize, Handle);

thread_local! {
    static LAUNCHES: RefCell<Vec<Launch>> = const { RefCell::new(Vec::new()) };
}

/// A place to point to, the same for all images.
static IMAGE: [usize; 4] = [0; 4];

/// Keeps the settings of a launch.
#[unsafe(no_mangle)]
pub extern "C" fn __cudaPushCallConfiguration(
    grid: Dim3,
    block: Dim3,
    shared: usize,
    stream: Handle,
) -> c_uint {
    LAUNCHES.with(|launches| launches.borrow_mut().push((grid, block, shared, stream)));
    0
}

/// Gives them to the launch.
///
/// # Safety
///
/// All pointers are the caller's own, as nvcc writes the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __cudaPopCallConfiguration(
    grid: *mut Dim3,
    block: *mut Dim3,
    shared: *mut usize,
    stream: *mut Handle,
) -> c_int {
    if let Some(launch) = LAUNCHES.with(|launches| launches.borrow_mut().pop()) {
        // SAFETY: the caller's promise.
        unsafe {
            grid.write(launch.0);
            block.write(launch.1);
            shared.write(launch.2);
            stream.write(launch.3);
        }
    }
    0
}

/// A file's kernels.
#[unsafe(no_mangle)]
pub extern "C" fn __cudaRegisterFatBinary(_image: *mut c_void) -> *mut *mut c_void {
    (&raw const IMAGE).cast_mut().cast()
}

/// The end of a file's kernels.
#[unsafe(no_mangle)]
pub extern "C" fn __cudaRegisterFatBinaryEnd(_image: *mut *mut c_void) {}

/// A file is unloaded.
#[unsafe(no_mangle)]
pub extern "C" fn __cudaUnregisterFatBinary(_image: *mut *mut c_void) {}

/// One kernel, by ten arguments of which none is looked at.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments)]
pub extern "C" fn __cudaRegisterFunction(
    _image: *mut *mut c_void,
    _host: *const c_char,
    _device: *mut c_char,
    _name: *const c_char,
    _threads: c_int,
    _thread: *mut c_void,
    _block: *mut c_void,
    _block_size: *mut c_void,
    _grid_size: *mut c_void,
    _warp: *mut c_int,
) {
}

/// One variable on the device.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments)]
pub extern "C" fn __cudaRegisterVar(
    _image: *mut *mut c_void,
    _host: *mut c_char,
    _device: *mut c_char,
    _name: *const c_char,
    _external: c_int,
    _bytes: usize,
    _constant: c_int,
    _global: c_int,
) {
}
