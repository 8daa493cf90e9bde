//! `cuGetProcAddress`: the entry points by their names without a version, as the asking CUDA knows them.

use std::ffi::{CString, c_char, c_int, c_void};
use std::ptr;

use super::code;
use crate::guard::{exported, put, text};

/// Versions of calls that came after CUDA 4, and the CUDA that brought them. All other `_v2` are older.
const LATER: [(&str, i32); 7] = [
    ("cuGetProcAddress_v2", 12000),
    ("cuDeviceGetUuid_v2", 11040),
    ("cuCtxCreate_v3", 11040),
    ("cuCtxCreate_v4", 12050),
    ("cuStreamBeginCapture_v2", 10010),
    ("cuMemAdvise_v2", 12020),
    ("cuMemPrefetchAsync_v2", 12020),
];

/// This library's own symbol of that name.
fn symbol(name: &str) -> Option<*mut c_void> {
    let name = CString::new(name).ok()?;
    // SAFETY: the path that `dladdr` gives for a function of ours stays as long as the library; the handle is that of
    // a library that is loaded, so nothing is run.
    unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        let here: unsafe extern "C" fn(*const c_char, *mut *mut c_void, c_int, u64) -> i32 =
            cuGetProcAddress;
        if libc::dladdr(here as *const c_void, &mut info) == 0 {
            return None;
        }
        let library = libc::dlopen(info.dli_fname, libc::RTLD_LAZY | libc::RTLD_NOLOAD);
        if library.is_null() {
            return None;
        }
        let found = libc::dlsym(library, name.as_ptr());
        libc::dlclose(library);
        (!found.is_null()).then_some(found)
    }
}

/// The newest version of a call that this CUDA knows.
fn newest(name: &str, cuda: i32) -> Option<*mut c_void> {
    let known = |name: &String| {
        LATER
            .iter()
            .find(|row| row.0 == name)
            .is_none_or(|row| row.1 <= cuda)
    };
    [4, 3, 2]
        .iter()
        .map(|version| format!("{name}_v{version}"))
        .filter(known)
        .chain([name.to_owned()])
        .find_map(|name| symbol(&name))
}

fn look_up(name: *const c_char, function: *mut *mut c_void, cuda: c_int) -> Result<(), i32> {
    if function.is_null() {
        return Err(code::INVALID_VALUE);
    }
    // SAFETY: a text of the caller's, and a pointer that is not null.
    unsafe {
        let name = text(name).ok_or(code::INVALID_VALUE)?;
        let found =
            newest(name, cuda).filter(|_| name.starts_with("cu") && !name.starts_with("cuda"));
        put(
            function,
            found.unwrap_or(ptr::null_mut()),
            code::INVALID_VALUE,
        )?;
        found.map(|_| ()).ok_or(code::NOT_FOUND)
    }
}

exported! { by super::answer;
    fn cuGetProcAddress(name: *const c_char, function: *mut *mut c_void, cuda: c_int, flags: u64) {
        look_up(name, function, cuda)?;
    }

    fn cuGetProcAddress_v2(name: *const c_char, function: *mut *mut c_void, cuda: c_int, flags: u64, status: *mut c_int) {
        let found = look_up(name, function, cuda);
        if !status.is_null() {
            put(status, found.is_err().into(), code::INVALID_VALUE)?; // 0 found, 1 not found
        }
        found?;
    }

    fn cuGetExportTable(table: *mut *const c_void, id: *const c_void) {
        Err::<(), i32>(code::NOT_FOUND)?;
    }
}
