//! cuBLAS: `libcublas.so.13`. Every call of llama.cpp's succeeds, and computes nothing. What real cuBLAS takes for
//! itself is not counted.

use std::ffi::{c_char, c_int};

use crate::guard::{self, exported, put};
use crate::memory;

const INVALID_VALUE: i32 = 7;
const INTERNAL_ERROR: i32 = 14;

fn answer(name: &str, body: impl FnOnce() -> Result<(), i32>) -> i32 {
    guard::call(name, INTERNAL_ERROR, body)
}

/// A status' words; never null.
#[unsafe(no_mangle)]
pub extern "C" fn cublasGetStatusString(status: c_int) -> *const c_char {
    match status {
        0 => c"the operation completed successfully",
        1 => c"the library was not initialized",
        3 => c"the resource allocation failed",
        7 => c"an unsupported value or parameter was passed to the function",
        13 => c"the function failed to launch on the GPU",
        14 => c"an internal operation failed",
        15 => c"the functionality is not supported",
        _ => c"<unknown>",
    }
    .as_ptr()
}

// A caller of the C interface clears away the arguments itself: a call that looks at none need not name them.
exported! { by answer;
    fn cublasCreate_v2(handle: *mut usize) {
        put(handle, memory::handle(), INVALID_VALUE)?;
    }

    fn cublasDestroy_v2(handle: usize) {
        memory::drop_handle(handle);
    }

    fn cublasSetMathMode() {}
    fn cublasSetStream_v2() {}
    fn cublasSetWorkspace_v2() {}
    fn cublasGemmEx() {}
    fn cublasGemmBatchedEx() {}
    fn cublasGemmStridedBatchedEx() {}
    fn cublasSgemm_v2() {}
    fn cublasSgemmBatched() {}
    fn cublasSgemmStridedBatched() {}
    fn cublasStrsmBatched() {}
}
