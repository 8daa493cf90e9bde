//! What stands around every exported call: the faults of the environment, and no panic across the boundary.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::world::world;

/// Runs a call's body, which answers a code where it fails. `unknown` is what a panic is called.
pub(crate) fn call(name: &str, unknown: i32, body: impl FnOnce() -> Result<(), i32>) -> i32 {
    let run = || match world().settings.faults.meet(name) {
        Some(code) => Err(code),
        None => body(),
    };
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => 0,
        Ok(Err(code)) => code,
        Err(_) => unknown,
    }
}

/// Writes an answer where the caller wants it.
///
/// # Safety
///
/// `to` is null or points to memory for a `T`.
pub(crate) unsafe fn put<T>(to: *mut T, value: T, invalid: i32) -> Result<(), i32> {
    if to.is_null() {
        return Err(invalid);
    }
    // SAFETY: the caller's promise.
    unsafe { to.write(value) };
    Ok(())
}

/// Writes a text with its end. Where it does not fit, NVML fails (`too_long`); CUDA cuts it off.
///
/// # Safety
///
/// `to` is null or points to `length` bytes.
pub(crate) unsafe fn put_text(
    to: *mut std::ffi::c_char,
    length: usize,
    text: &str,
    invalid: i32,
    too_long: Option<i32>,
) -> Result<(), i32> {
    if to.is_null() || length == 0 {
        return Err(invalid);
    }
    if let (true, Some(code)) = (text.len() >= length, too_long) {
        return Err(code);
    }
    let bytes = text.as_bytes();
    let bytes = bytes.get(..bytes.len().min(length - 1)).unwrap_or(bytes);
    // SAFETY: at most `length` bytes, by the line above.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.cast::<u8>(), bytes.len());
        to.add(bytes.len()).write(0);
    }
    Ok(())
}

/// A text that the caller gave.
///
/// # Safety
///
/// `from` is null or points to a text with its end.
pub(crate) unsafe fn text<'a>(from: *const std::ffi::c_char) -> Option<&'a str> {
    if from.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    unsafe { std::ffi::CStr::from_ptr(from) }.to_str().ok()
}

/// Defines exported calls. Each body is a closure's: `?` and `Err(code)` leave the call with that code. `answer` stands
/// around it: each interface has its own over [`call`].
macro_rules! exported {
    (by $answer:path; $(
        $(#[$attribute:meta])*
        fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block
    )*) => {$(
        $(#[$attribute])*
        #[unsafe(no_mangle)]
        #[allow(non_snake_case, unused_variables, unused_unsafe, clippy::too_many_arguments)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> i32 {
            $answer(stringify!($name), || {
                // SAFETY: what the C interface asks of its callers: pointers are null or point to what they say.
                unsafe { $body };
                Ok(())
            })
        }
    )*};
}
pub(crate) use exported;
