//! Beginning, end, versions and error words.

use std::ffi::{c_char, c_int, c_uint};
use std::sync::atomic::Ordering;

use super::{HELD, code, started};
use crate::guard::{exported, put, put_text};

/// A code's words.
fn words(result: c_int) -> &'static std::ffi::CStr {
    match result {
        0 => c"The operation was successful",
        1 => c"Uninitialized",
        2 => c"Invalid Argument",
        3 => c"Not Supported",
        4 => c"Insufficient Permissions",
        5 => c"Already Initialized",
        6 => c"Not Found",
        7 => c"Insufficient Size",
        9 => c"Driver Not Loaded",
        10 => c"Timeout",
        12 => c"NVML Shared Library Not Found",
        13 => c"Function Not Found",
        15 => c"GPU is lost",
        18 => c"Driver/library version mismatch",
        25 => c"Argument Version Mismatch",
        _ => c"Unknown Error",
    }
}

fn start() -> Result<(), i32> {
    HELD.fetch_add(1, Ordering::AcqRel);
    Ok(())
}

/// nvmlErrorString's text for a code; never null.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(result: c_int) -> *const c_char {
    words(result).as_ptr()
}

exported! { by super::answer;
    fn nvmlInit() {
        start()?;
    }

    fn nvmlInit_v2() {
        start()?;
    }

    fn nvmlInitWithFlags(flags: c_uint) {
        start()?;
    }

    fn nvmlShutdown() {
        started()?;
        HELD.fetch_sub(1, Ordering::AcqRel);
    }

    fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) {
        let text = &started()?.settings.driver.text;
        put_text(version, length as usize, text, code::INVALID_ARGUMENT, Some(code::INSUFFICIENT_SIZE))?;
    }

    fn nvmlSystemGetNVMLVersion(version: *mut c_char, length: c_uint) {
        let driver = &started()?.settings.driver;
        let text = format!("{}.{}", driver.cuda / 1000, driver.text);
        put_text(version, length as usize, &text, code::INVALID_ARGUMENT, Some(code::INSUFFICIENT_SIZE))?;
    }

    fn nvmlSystemGetCudaDriverVersion(version: *mut c_int) {
        put(version, started()?.settings.driver.cuda, code::INVALID_ARGUMENT)?;
    }

    fn nvmlSystemGetCudaDriverVersion_v2(version: *mut c_int) {
        put(version, started()?.settings.driver.cuda, code::INVALID_ARGUMENT)?;
    }

    fn nvmlSystemGetProcessName(pid: c_uint, name: *mut c_char, length: c_uint) {
        started()?;
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).map_err(|_| code::NOT_FOUND)?;
        put_text(name, length as usize, &program.to_string_lossy(), code::INVALID_ARGUMENT, None)?;
    }
}
