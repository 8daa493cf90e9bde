//! `cuInit`, the devices and their names.

use std::ffi::{c_char, c_int, c_uint};
use std::sync::atomic::Ordering;

use super::{Device, attributes, code, place, started};
use crate::guard::{exported, put, put_text, text};
use crate::spec::{Spec, pci_of_text};
use crate::world::world;

fn spec(device: Device) -> Result<&'static Spec, i32> {
    world().spec(place(device)?).ok_or(code::INVALID_DEVICE)
}

/// The device's name: a MIG instance has its card's, and says that it is one.
pub(crate) fn shown_name(spec: &Spec) -> String {
    match spec.mig_is_on() {
        true => format!(
            "{} MIG 7g.{}gb",
            spec.name,
            (spec.total_bytes + (1 << 29)) >> 30
        ),
        false => spec.name.clone(),
    }
}

/// `result_code`'s name and words; `None`: no such code.
pub(crate) fn words(
    result_code: i32,
) -> Option<(&'static std::ffi::CStr, &'static std::ffi::CStr)> {
    Some(match result_code {
        0 => (c"CUDA_SUCCESS", c"no error"),
        1 => (c"CUDA_ERROR_INVALID_VALUE", c"invalid argument"),
        2 => (c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory"),
        3 => (c"CUDA_ERROR_NOT_INITIALIZED", c"initialization error"),
        4 => (c"CUDA_ERROR_DEINITIALIZED", c"driver shutting down"),
        34 => (c"CUDA_ERROR_STUB_LIBRARY", c"CUDA driver is a stub library"),
        46 => (
            c"CUDA_ERROR_DEVICE_UNAVAILABLE",
            c"CUDA-capable device(s) is/are busy or unavailable",
        ),
        100 => (
            c"CUDA_ERROR_NO_DEVICE",
            c"no CUDA-capable device is detected",
        ),
        101 => (c"CUDA_ERROR_INVALID_DEVICE", c"invalid device ordinal"),
        200 => (
            c"CUDA_ERROR_INVALID_IMAGE",
            c"device kernel image is invalid",
        ),
        201 => (c"CUDA_ERROR_INVALID_CONTEXT", c"invalid device context"),
        209 => (
            c"CUDA_ERROR_NO_BINARY_FOR_GPU",
            c"no kernel image is available for execution on the device",
        ),
        214 => (
            c"CUDA_ERROR_ECC_UNCORRECTABLE",
            c"uncorrectable ECC error encountered",
        ),
        304 => (
            c"CUDA_ERROR_OPERATING_SYSTEM",
            c"OS call failed or operation not supported on this OS",
        ),
        400 => (c"CUDA_ERROR_INVALID_HANDLE", c"invalid resource handle"),
        500 => (c"CUDA_ERROR_NOT_FOUND", c"named symbol not found"),
        600 => (c"CUDA_ERROR_NOT_READY", c"device not ready"),
        700 => (
            c"CUDA_ERROR_ILLEGAL_ADDRESS",
            c"an illegal memory access was encountered",
        ),
        719 => (c"CUDA_ERROR_LAUNCH_FAILED", c"unspecified launch failure"),
        801 => (c"CUDA_ERROR_NOT_SUPPORTED", c"operation not supported"),
        802 => (
            c"CUDA_ERROR_SYSTEM_NOT_READY",
            c"system not yet initialized",
        ),
        803 => (
            c"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
            c"system has unsupported display driver / cuda driver combination",
        ),
        999 => (c"CUDA_ERROR_UNKNOWN", c"unknown error"),
        _ => return None,
    })
}

exported! { by super::answer;
    fn cuInit(flags: c_uint) {
        let world = world();
        if flags != 0 {
            return Err(code::INVALID_VALUE);
        }
        if world.settings.cuda.is_empty() {
            return Err(code::NO_DEVICE);
        }
        world.started.store(true, Ordering::Release);
    }

    fn cuDriverGetVersion(version: *mut c_int) {
        put(version, world().settings.driver.cuda, code::INVALID_VALUE)?;
    }

    fn cuGetErrorName(error: c_int, name: *mut *const c_char) {
        let (text, known) = words(error).map_or((std::ptr::null(), Err(code::INVALID_VALUE)), |w| (w.0.as_ptr(), Ok(())));
        put(name, text, code::INVALID_VALUE)?;
        known?;
    }

    fn cuGetErrorString(error: c_int, string: *mut *const c_char) {
        let (text, known) = words(error).map_or((std::ptr::null(), Err(code::INVALID_VALUE)), |w| (w.1.as_ptr(), Ok(())));
        put(string, text, code::INVALID_VALUE)?;
        known?;
    }

    fn cuDeviceGetCount(count: *mut c_int) {
        put(count, started()?.settings.cuda.len() as c_int, code::INVALID_VALUE)?;
    }

    fn cuDeviceGet(device: *mut Device, ordinal: c_int) {
        place(ordinal)?;
        put(device, ordinal, code::INVALID_VALUE)?;
    }

    fn cuDeviceGetName(name: *mut c_char, length: c_int, device: Device) {
        let length = usize::try_from(length).map_err(|_| code::INVALID_VALUE)?;
        put_text(name, length, &shown_name(spec(device)?), code::INVALID_VALUE, None)?;
    }

    fn cuDeviceTotalMem_v2(bytes: *mut usize, device: Device) {
        put(bytes, spec(device)?.total_bytes as usize, code::INVALID_VALUE)?;
    }

    fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: Device) {
        put(value, attributes::of(spec(device)?, attribute)?, code::INVALID_VALUE)?;
    }

    fn cuDeviceComputeCapability(major: *mut c_int, minor: *mut c_int, device: Device) {
        let spec = spec(device)?;
        put(major, spec.major as c_int, code::INVALID_VALUE)?;
        put(minor, spec.minor as c_int, code::INVALID_VALUE)?;
    }

    fn cuDeviceGetUuid(uuid: *mut [u8; 16], device: Device) {
        put(uuid, spec(device)?.uuid, code::INVALID_VALUE)?;
    }

    fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: Device) {
        let spec = spec(device)?;
        let own = if spec.mig_is_on() { spec.mig_uuid() } else { spec.uuid };
        put(uuid, own, code::INVALID_VALUE)?;
    }

    fn cuDeviceGetPCIBusId(bus_id: *mut c_char, length: c_int, device: Device) {
        let length = usize::try_from(length).map_err(|_| code::INVALID_VALUE)?;
        put_text(bus_id, length, &spec(device)?.bus_id(), code::INVALID_VALUE, Some(code::INVALID_VALUE))?;
    }

    fn cuDeviceGetByPCIBusId(device: *mut Device, bus_id: *const c_char) {
        let settings = &started()?.settings;
        let address = text(bus_id).and_then(pci_of_text).ok_or(code::INVALID_VALUE)?;
        let found = settings.cuda.iter().position(|place| {
            settings.devices.get(*place).is_some_and(|spec| spec.pci == address)
        });
        put(device, found.ok_or(code::INVALID_DEVICE)? as Device, code::INVALID_VALUE)?;
    }

    fn cuDeviceCanAccessPeer(can: *mut c_int, device: Device, peer: Device) {
        place(device)?;
        place(peer)?;
        put(can, (device != peer && world().settings.peer).into(), code::INVALID_VALUE)?;
    }

    fn cuDeviceGetP2PAttribute(value: *mut c_int, attribute: c_int, device: Device, peer: Device) {
        place(device)?;
        place(peer)?;
        // 1 is the performance rank, 2 access, 3 native atomics, 4 array access
        let value_of = attribute == 2 && device != peer && world().settings.peer;
        put(value, value_of.into(), code::INVALID_VALUE)?;
    }
}
