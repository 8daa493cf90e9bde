//! Modules and kernels: any image loads, any name is found, a launch is counted and runs nothing.

use std::ffi::{c_char, c_int, c_uint, c_void};

use super::{Handle, code, in_context};
use crate::guard::{exported, put};
use crate::memory;
use crate::world::world;

fn load(module: *mut Handle) -> Result<(), i32> {
    in_context()?;
    // SAFETY: `put` tests for null; else it is the caller's promise.
    unsafe { put(module, memory::handle(), code::INVALID_VALUE) }
}

fn launch() -> Result<(), i32> {
    let (_, place) = in_context()?;
    world().launched(place);
    Ok(())
}

exported! { by super::answer;
    fn cuModuleLoad(module: *mut Handle, path: *const c_char) {
        load(module)?;
    }

    fn cuModuleLoadData(module: *mut Handle, image: *const c_void) {
        load(module)?;
    }

    fn cuModuleLoadDataEx(module: *mut Handle, image: *const c_void, options: c_uint, keys: *mut c_int, values: *mut *mut c_void) {
        load(module)?;
    }

    fn cuModuleUnload(module: Handle) {
        in_context()?;
        memory::drop_handle(module);
    }

    /// A function's handle is its module's.
    fn cuModuleGetFunction(function: *mut Handle, module: Handle, name: *const c_char) {
        in_context()?;
        if module == 0 {
            return Err(code::INVALID_HANDLE);
        }
        put(function, module, code::INVALID_VALUE)?;
    }

    fn cuModuleGetGlobal_v2(address: *mut u64, bytes: *mut usize, module: Handle, name: *const c_char) {
        in_context()?;
        Err::<(), i32>(code::NOT_FOUND)?;
    }

    fn cuFuncGetAttribute(value: *mut c_int, attribute: c_int, function: Handle) {
        in_context()?;
        // 0 is threads of a block, 4 registers of a thread
        let value_of = match attribute {
            0 => 1024,
            4 => 64,
            _ => 0,
        };
        put(value, value_of, code::INVALID_VALUE)?;
    }

    fn cuFuncSetAttribute(function: Handle, attribute: c_int, value: c_int) {
        in_context()?;
    }

    fn cuFuncSetCacheConfig(function: Handle, config: c_int) {
        in_context()?;
    }

    fn cuLaunchKernel(
        function: Handle, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint,
        block_z: c_uint, shared: c_uint, stream: Handle, arguments: *mut *mut c_void, extra: *mut *mut c_void,
    ) {
        launch()?;
    }

    fn cuLaunchCooperativeKernel(
        function: Handle, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint,
        block_z: c_uint, shared: c_uint, stream: Handle, arguments: *mut *mut c_void,
    ) {
        launch()?;
    }
}
