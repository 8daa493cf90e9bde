//! Devices and errors.

use std::ffi::{c_char, c_int, c_uint};

use super::properties::Properties;
use super::{DEVICE, LAST, code, here, place, started};
use crate::driver::{attribute, words};
use crate::guard::{exported, put, put_text};
use crate::world::world;

/// The version of the runtime that is played, as `libcudart.so.13` says it.
const RUNTIME: c_int = 13000;

/// This thread's last error, which is forgotten by that.
#[unsafe(no_mangle)]
pub extern "C" fn cudaGetLastError() -> c_int {
    LAST.replace(0)
}

/// The same, and it is kept.
#[unsafe(no_mangle)]
pub extern "C" fn cudaPeekAtLastError() -> c_int {
    LAST.get()
}

/// A code's words; never null.
#[unsafe(no_mangle)]
pub extern "C" fn cudaGetErrorString(error: c_int) -> *const c_char {
    words(error)
        .map_or(c"unrecognized error code", |known| known.1)
        .as_ptr()
}

/// A code's name, which is the driver's here; never null.
#[unsafe(no_mangle)]
pub extern "C" fn cudaGetErrorName(error: c_int) -> *const c_char {
    words(error)
        .map_or(c"unrecognized error code", |known| known.0)
        .as_ptr()
}

exported! { by super::answer;
    fn cudaDriverGetVersion(version: *mut c_int) {
        put(version, world().settings.driver.cuda, code::INVALID_VALUE)?;
    }

    fn cudaRuntimeGetVersion(version: *mut c_int) {
        put(version, RUNTIME, code::INVALID_VALUE)?;
    }

    fn cudaGetDeviceCount(count: *mut c_int) {
        let world = started();
        put(count, world.map_or(0, |world| world.settings.cuda.len() as c_int), code::INVALID_VALUE)?;
        world?;
    }

    fn cudaGetDevice(device: *mut c_int) {
        put(device, DEVICE.get(), code::INVALID_VALUE)?;
    }

    fn cudaSetDevice(device: c_int) {
        place(device)?;
        DEVICE.set(device);
        here()?;
    }

    fn cudaSetDeviceFlags(flags: c_uint) {
        started()?;
    }

    fn cudaDeviceSynchronize() {
        here()?;
    }

    fn cudaDeviceReset() {
        let place = place(DEVICE.get())?;
        world().live().reset_primary(place).map_err(super::refused)?;
    }

    fn cudaDeviceCanAccessPeer(can: *mut c_int, device: c_int, peer: c_int) {
        place(device)?;
        place(peer)?;
        put(can, (device != peer && world().settings.peer).into(), code::INVALID_VALUE)?;
    }

    fn cudaDeviceEnablePeerAccess(peer: c_int, flags: c_uint) {
        place(peer)?;
    }

    fn cudaDeviceGetPCIBusId(bus_id: *mut c_char, length: c_int, device: c_int) {
        let spec = world().spec(place(device)?).ok_or(code::INVALID_DEVICE)?;
        let length = usize::try_from(length).map_err(|_| code::INVALID_VALUE)?;
        put_text(bus_id, length, &spec.bus_id(), code::INVALID_VALUE, Some(code::INVALID_VALUE))?;
    }

    fn cudaGetDeviceProperties(properties: *mut Properties, device: c_int) {
        let spec = world().spec(place(device)?).ok_or(code::INVALID_DEVICE)?;
        put(properties, Properties::of(spec), code::INVALID_VALUE)?;
    }

    /// The runtime's attributes have the driver's numbers.
    fn cudaDeviceGetAttribute(value: *mut c_int, number: c_int, device: c_int) {
        let spec = world().spec(place(device)?).ok_or(code::INVALID_DEVICE)?;
        put(value, attribute(spec, number)?, code::INVALID_VALUE)?;
    }
}
