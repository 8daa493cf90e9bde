//! vramfit for C: `include/vramfit.h`, made of this crate by cbindgen, over the library `vramfit`.
//!
//! The header states the rules that callers keep: pointers are valid or NULL where NULL is allowed, a handle is freed
//! once and not used behind that. Every entry catches panics, and nothing is global, so all of it may be called from
//! any thread.

#![allow(
    non_camel_case_types,
    reason = "the names of types are those of the header"
)]
#![allow(
    clippy::missing_safety_doc,
    reason = "the rules are the same for every function; the header's introduction has them"
)]

mod error;
mod gpus;
mod host;
mod ledger;
mod model;
mod placement;
mod text;
mod unclaimed;

pub use error::*;
pub use gpus::*;
pub use host::*;
pub use ledger::*;
pub use model::*;
pub use placement::*;
pub use text::vramfit_string_free;

use std::ffi::c_char;

/// The version of this interface. It grows when something is taken away or means something else; what is added leaves
/// it as it is.
pub const VRAMFIT_ABI_VERSION: u32 = 1;

/// `VRAMFIT_ABI_VERSION` of the library that is loaded: compare it with the header's before anything else.
#[unsafe(no_mangle)]
pub extern "C" fn vramfit_abi_version() -> u32 {
    VRAMFIT_ABI_VERSION
}

/// The library's version, such as "0.1.0". Never freed.
#[unsafe(no_mangle)]
pub extern "C" fn vramfit_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}
