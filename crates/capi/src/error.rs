//! What a call answers: a status, and beside it an error that says more.

use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use serde_json::{Value, json};
use vramfit::{Status, ledger};

use crate::text::{c_string, pointer};

/// What came of a call.
#[repr(i32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum vramfit_status {
    /// Done.
    Ok = 0,
    /// The caller's mistake: a NULL that is not allowed, text that is not UTF-8, an index beyond the end.
    InvalidArgument = 1,
    /// A file cannot be read, or is no GGUF.
    Open = 2,
    /// The file is sound, but no model that can be sized; or an adapter or projector is not for this model.
    Model = 3,
    /// The list of GPUs cannot be read, a GPU cannot be as described, or this machine's cannot be found.
    Gpus = 4,
    /// A setting is not one that there is, or cannot be for these GPUs.
    Settings = 5,
    /// llama.cpp refuses these settings.
    Refused = 6,
    /// vramfit has no rule for these settings, which llama.cpp may start with.
    NotModelled = 7,
    /// Would fit on these GPUs, but not now: try again when something has been released.
    FullNow = 20,
    /// As `FULL_NOW`, but reservations are still starting or leaving: try again when they have.
    FullPending = 21,
    /// Would not fit even if every GPU were empty.
    NeverFits = 22,
    /// The host has no such GPU.
    UnknownGpu = 23,
    /// No such reservation, or it has been released.
    UnknownReservation = 24,
    /// The ledger has moved on too often meanwhile: try again.
    StalePlan = 25,
    /// What is to be replaced has not been released yet.
    Waits = 26,
    /// The engine took more than there is room for: unload it and release the reservation.
    TookTooMuch = 27,
    /// Not in this phase of the reservation.
    Phase = 28,
    /// No GPU is needed with these settings: there is nothing to reserve.
    NoGpu = 29,
    /// The journal did not take it, or cannot be read. It is not known whether it was stored; the ledger reads the
    /// journal again before it decides anything else.
    Store = 30,
    /// A reservation was made under this key before, and is still held: `reservation` in the error's JSON.
    KeyTaken = 31,
    /// vramfit's own fault. Nothing has been changed; please report it.
    Internal = 99,
}

impl From<Status> for vramfit_status {
    fn from(status: Status) -> vramfit_status {
        match status {
            Status::InvalidArgument => vramfit_status::InvalidArgument,
            Status::Open => vramfit_status::Open,
            Status::Model => vramfit_status::Model,
            Status::Gpus => vramfit_status::Gpus,
            Status::Settings => vramfit_status::Settings,
            Status::Refused => vramfit_status::Refused,
            Status::NotModelled => vramfit_status::NotModelled,
            Status::FullNow => vramfit_status::FullNow,
            Status::FullPending => vramfit_status::FullPending,
            Status::NeverFits => vramfit_status::NeverFits,
            Status::UnknownGpu => vramfit_status::UnknownGpu,
            Status::UnknownReservation => vramfit_status::UnknownReservation,
            Status::StalePlan => vramfit_status::StalePlan,
            Status::Waits => vramfit_status::Waits,
            Status::TookTooMuch => vramfit_status::TookTooMuch,
            Status::Phase => vramfit_status::Phase,
            Status::NoGpu => vramfit_status::NoGpu,
            Status::KeyTaken => vramfit_status::KeyTaken,
            Status::Store => vramfit_status::Store,
            _ => vramfit_status::Internal,
        }
    }
}

/// Why a call failed. Belongs to the caller: free it with `vramfit_error_free`.
pub struct vramfit_error {
    status: vramfit_status,
    can_retry: bool,
    message: CString,
    json: CString,
}

/// A failure on its way out.
pub(crate) struct Failure {
    status: vramfit_status,
    message: String,
    json: Value,
}

impl Failure {
    pub fn argument(message: impl Into<String>) -> Failure {
        Failure::new(vramfit_status::InvalidArgument, "invalid_argument", message)
    }

    pub fn gpus(message: impl Into<String>) -> Failure {
        Failure::new(vramfit_status::Gpus, "gpus", message)
    }

    pub fn internal(message: impl Into<String>) -> Failure {
        Failure::new(vramfit_status::Internal, "internal", message)
    }

    fn new(status: vramfit_status, word: &str, message: impl Into<String>) -> Failure {
        let message = message.into();
        Failure {
            status,
            json: json!({ "status": word, "message": message, "can_retry": false }),
            message,
        }
    }

    /// With more for programs.
    pub fn with(mut self, details: Value) -> Failure {
        if let (Some(all), Value::Object(more)) = (self.json.as_object_mut(), details) {
            all.extend(more);
        }
        self
    }
}

impl From<vramfit::Error> for Failure {
    fn from(error: vramfit::Error) -> Failure {
        let status = error.status();
        let failure = Failure::new(status.into(), status.word(), error.to_string());
        let failure = failure.with(error.details());
        failure.with(json!({ "can_retry": error.can_retry() }))
    }
}

impl From<ledger::Error> for Failure {
    fn from(error: ledger::Error) -> Failure {
        vramfit::Error::from(error).into()
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Failure {
        Failure::internal(error.to_string())
    }
}

impl From<Failure> for vramfit_error {
    fn from(failure: Failure) -> vramfit_error {
        vramfit_error {
            status: failure.status,
            can_retry: failure.json.get("can_retry") == Some(&Value::Bool(true)),
            json: c_string(failure.json.to_string()),
            message: c_string(failure.message),
        }
    }
}

/// Runs `work`; what goes wrong, a panic included, is left in `error` where that is not NULL.
pub(crate) fn guard(
    error: *mut *mut vramfit_error,
    work: impl FnOnce() -> Result<(), Failure>,
) -> vramfit_status {
    let answer = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(ToString::to_string);
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        let text = text.unwrap_or_default();
        let message = format!("a fault in vramfit, please report it: {text}");
        Err(Failure::internal(message))
    });
    let (status, found) = match answer {
        Ok(()) => (vramfit_status::Ok, ptr::null_mut()),
        Err(failure) => {
            let status = failure.status;
            let found = match error.is_null() {
                true => ptr::null_mut(),
                false => Box::into_raw(Box::new(vramfit_error::from(failure))),
            };
            (status, found)
        }
    };
    if !error.is_null() {
        // SAFETY: not NULL, and by the header's rules valid for a write.
        unsafe { error.write(found) };
    }
    status
}

/// Runs an accessor; `default` for a NULL handle or after a panic.
pub(crate) fn look<H, T>(handle: *const H, default: T, work: impl FnOnce(&H) -> T) -> T {
    // SAFETY: NULL, or by the header's rules a handle that lives.
    let Some(handle) = (unsafe { handle.as_ref() }) else {
        return default;
    };
    catch_unwind(AssertUnwindSafe(|| work(handle))).unwrap_or(default)
}

/// Frees what [`hand_over`](crate::text::hand_over) gave out; NULL is nothing.
pub(crate) fn free<H>(handle: *mut H) {
    if !handle.is_null() {
        // SAFETY: by the header's rules it came from this library and is freed once.
        let handle = unsafe { Box::from_raw(handle) };
        // A panic while dropping must not reach the caller; there is nobody left to tell.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(handle)));
    }
}

/// The status that came with it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_error_status(error: *const vramfit_error) -> vramfit_status {
    look(error, vramfit_status::Ok, |e| e.status)
}

/// What is wrong and what would do, on one line. Lives as long as the error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_error_message(error: *const vramfit_error) -> *const c_char {
    look(error, ptr::null(), |e| pointer(&e.message))
}

/// The same for programs: a JSON object with `status` and `message`, and what else is known. Lives as long as the
/// error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_error_json(error: *const vramfit_error) -> *const c_char {
    look(error, ptr::null(), |e| pointer(&e.json))
}

/// 1 where the same call may succeed later, with nothing else changed: others start, leave, or are released. Else 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_error_can_retry(error: *const vramfit_error) -> i32 {
    look(error, 0, |e| i32::from(e.can_retry))
}

/// Frees an error. NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_error_free(error: *mut vramfit_error) {
    free(error);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    #[test]
    fn a_panic_is_an_error_like_others() {
        let mut error = ptr::null_mut();
        let status = guard(&raw mut error, || panic!("a fault of ours"));
        assert_eq!(status, vramfit_status::Internal);
        // SAFETY: an error that has just been handed out.
        let message = unsafe { CStr::from_ptr(vramfit_error_message(error)) };
        assert!(
            message
                .to_str()
                .unwrap()
                .ends_with("report it: a fault of ours")
        );
        // SAFETY: as above, and not used behind this.
        unsafe { vramfit_error_free(error) };
        let status = guard(ptr::null_mut(), || panic!("nobody asks"));
        assert_eq!(status, vramfit_status::Internal);
        assert_eq!(look(&raw const status, 5, |_| panic!("in an accessor")), 5);
    }

    #[test]
    fn success_clears_the_error() {
        let mut error = ptr::dangling_mut();
        assert_eq!(guard(&raw mut error, || Ok(())), vramfit_status::Ok);
        assert!(error.is_null());
    }
}
