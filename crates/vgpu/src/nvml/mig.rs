//! MIG: with `mig=1` a card is cut into one instance, the whole of it.

use std::ffi::c_uint;

use super::{Device, Handle, code, device};
use crate::guard::{exported, put};

fn instance_of(handle: Handle) -> Result<Device, i32> {
    let found = device(handle)?;
    if found.mig || !found.spec.mig_is_on() {
        return Err(code::NOT_FOUND);
    }
    Ok(Device { mig: true, ..found })
}

exported! { by super::answer;
    fn nvmlDeviceGetMigMode(handle: Handle, current: *mut c_uint, pending: *mut c_uint) {
        let on = device(handle)?.spec.mig.ok_or(code::NOT_SUPPORTED)?;
        put(current, on.into(), code::INVALID_ARGUMENT)?;
        put(pending, on.into(), code::INVALID_ARGUMENT)?;
    }

    fn nvmlDeviceGetMaxMigDeviceCount(handle: Handle, count: *mut c_uint) {
        let most = if device(handle)?.spec.mig.is_some() { 7 } else { 0 };
        put(count, most, code::INVALID_ARGUMENT)?;
    }

    fn nvmlDeviceGetMigDeviceHandleByIndex(handle: Handle, index: c_uint, instance: *mut Handle) {
        let found = instance_of(handle)?;
        if index != 0 {
            return Err(code::NOT_FOUND);
        }
        put(instance, found.handle(), code::INVALID_ARGUMENT)?;
    }

    fn nvmlDeviceIsMigDeviceHandle(handle: Handle, is: *mut c_uint) {
        put(is, device(handle)?.mig.into(), code::INVALID_ARGUMENT)?;
    }

    fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(instance: Handle, card: *mut Handle) {
        let found = device(instance)?;
        if !found.mig {
            return Err(code::INVALID_ARGUMENT);
        }
        put(card, Device { mig: false, ..found }.handle(), code::INVALID_ARGUMENT)?;
    }

    fn nvmlDeviceGetGpuInstanceId(instance: Handle, id: *mut c_uint) {
        if !device(instance)?.mig {
            return Err(code::INVALID_ARGUMENT);
        }
        put(id, 0, code::INVALID_ARGUMENT)?;
    }

    fn nvmlDeviceGetComputeInstanceId(instance: Handle, id: *mut c_uint) {
        if !device(instance)?.mig {
            return Err(code::INVALID_ARGUMENT);
        }
        put(id, 0, code::INVALID_ARGUMENT)?;
    }
}
