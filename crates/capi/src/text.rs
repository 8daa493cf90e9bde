//! Text and handles over the border.

use std::ffi::{CStr, CString, c_char};
use std::path::Path;
use std::ptr;

use serde::Serialize;
use serde::de::DeserializeOwned;
use vramfit::settings::objects::object;

use crate::error::{Failure, look};

/// Text for C; it ends where the text has a NUL, which none of vramfit's has.
pub(crate) fn c_string(text: impl Into<Vec<u8>>) -> CString {
    let mut bytes = text.into();
    if let Some(end) = bytes.iter().position(|&b| b == 0) {
        bytes.truncate(end);
    }
    CString::new(bytes).unwrap_or_default()
}

pub(crate) fn pointer(text: &CStr) -> *const c_char {
    text.as_ptr()
}

fn null(what: &str) -> Failure {
    Failure::argument(format!("{what} is NULL"))
}

fn bytes<'a>(text: *const c_char, what: &str) -> Result<&'a CStr, Failure> {
    match text.is_null() {
        true => Err(null(what)),
        // SAFETY: not NULL, and by the header's rules ends with a NUL and lives as long as the call.
        false => Ok(unsafe { CStr::from_ptr(text) }),
    }
}

/// An argument that is text.
pub(crate) fn text<'a>(text: *const c_char, what: &str) -> Result<&'a str, Failure> {
    let text = bytes(text, what)?.to_str();
    text.map_err(|error| Failure::argument(format!("{what} is not UTF-8: {error}")))
}

/// An argument that is text or NULL.
pub(crate) fn text_or_null<'a>(
    given: *const c_char,
    what: &str,
) -> Result<Option<&'a str>, Failure> {
    match given.is_null() {
        true => Ok(None),
        false => text(given, what).map(Some),
    }
}

/// An argument that is a path: bytes as they are on Unix, UTF-8 elsewhere.
pub(crate) fn path<'a>(path: *const c_char, what: &str) -> Result<&'a Path, Failure> {
    #[cfg(unix)]
    {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        Ok(Path::new(OsStr::from_bytes(bytes(path, what)?.to_bytes())))
    }
    #[cfg(not(unix))]
    {
        text(path, what).map(Path::new)
    }
}

/// An argument that is a handle.
pub(crate) fn handle<'a, H>(handle: *const H, what: &str) -> Result<&'a H, Failure> {
    // SAFETY: NULL, or by the header's rules a handle that lives.
    unsafe { handle.as_ref() }.ok_or_else(|| null(what))
}

/// An argument that is `count` values in a row.
pub(crate) fn values<'a, T>(from: *const T, count: usize, what: &str) -> Result<&'a [T], Failure> {
    if count == 0 {
        return Ok(&[]);
    }
    if from.is_null() {
        return Err(null(what));
    }
    // SAFETY: not NULL, and by the header's rules `count` values that live as long as the call.
    Ok(unsafe { std::slice::from_raw_parts(from, count) })
}

/// An argument that is a JSON object.
pub(crate) fn object_in<T: DeserializeOwned>(
    json: *const c_char,
    what: &str,
) -> Result<T, Failure> {
    let mut json = serde_json::Deserializer::from_str(text(json, what)?);
    let read = object(&mut json).and_then(|read: T| json.end().map(|()| read));
    read.map_err(|error| Failure::argument(format!("{what}: {error}")))
}

/// A place for an answer, which is NULL until there is one.
pub(crate) struct Out<T>(*mut *mut T);

impl<T> Out<T> {
    pub fn new(place: *mut *mut T, what: &str) -> Result<Out<T>, Failure> {
        if place.is_null() {
            return Err(null(what));
        }
        // SAFETY: not NULL, and by the header's rules valid for a write.
        unsafe { place.write(ptr::null_mut()) };
        Ok(Out(place))
    }

    /// From now on the caller's, who frees it.
    pub fn hand_over(self, value: T) {
        // SAFETY: as in `new`.
        unsafe { self.0.write(Box::into_raw(Box::new(value))) };
    }
}

impl Out<c_char> {
    /// The same for text.
    pub fn hand_over_text(self, text: String) {
        // SAFETY: as in `new`.
        unsafe { self.0.write(c_string(text).into_raw()) };
    }
}

/// An array that belongs to a handle; how many there are goes to `count` where that is not NULL.
pub(crate) fn array_of<H, T>(
    handle: *const H,
    count: *mut usize,
    values: impl FnOnce(&H) -> Option<&Vec<T>>,
) -> *const T {
    set(count, 0);
    look(handle, ptr::null(), |handle| {
        let values = values(handle).filter(|values| !values.is_empty());
        values.map_or(ptr::null(), |values| {
            set(count, values.len());
            values.as_ptr()
        })
    })
}

/// JSON for who wants it: not for NULL.
pub(crate) fn write_json(
    place: *mut *mut c_char,
    what: &str,
    value: &impl Serialize,
) -> Result<(), Failure> {
    if !place.is_null() {
        let out = Out::new(place, what)?;
        out.hand_over_text(serde_json::to_string(value)?);
    }
    Ok(())
}

/// Writes a number where there is a place for it.
pub(crate) fn set<T>(place: *mut T, value: T) {
    if !place.is_null() {
        // SAFETY: not NULL, and by the header's rules valid for a write.
        unsafe { place.write(value) };
    }
}

/// Frees a text that was handed over through a `char **`. NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_string_free(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: by the header's rules it came from this library and is freed once.
        drop(unsafe { CString::from_raw(text) });
    }
}
