//! Contexts: primary ones, held by how often they are asked for, and others. Each takes `context=` on its card.

use std::cell::RefCell;
use std::ffi::{c_int, c_uint, c_void};

use super::{Device, Handle, code, in_context, place, refused, started};
use crate::guard::{exported, put};
use crate::world::world;

thread_local! {
    /// This thread's contexts; the last is current.
    static STACK: RefCell<Vec<Handle>> = const { RefCell::new(Vec::new()) };
}

/// This thread's current context.
pub(crate) fn current() -> Option<Handle> {
    STACK.with(|stack| stack.borrow().last().copied())
}

/// Replaces this thread's current context.
pub(crate) fn set_current(handle: Handle) {
    replace(Some(handle));
}

fn replace(handle: Option<Handle>) {
    STACK.with(|stack| {
        let mut stack = stack.borrow_mut();
        stack.pop();
        stack.extend(handle);
    });
}

fn create(context: *mut Handle, device: Device) -> Result<(), i32> {
    let place = place(device)?;
    if context.is_null() {
        return Err(code::INVALID_VALUE);
    }
    let handle = world()
        .live()
        .create_context(place, false)
        .map_err(refused)?;
    STACK.with(|stack| stack.borrow_mut().push(handle));
    // SAFETY: the caller's pointer is not null.
    unsafe { put(context, handle, code::INVALID_VALUE) }
}

fn known(handle: Handle) -> Result<usize, i32> {
    let context = started()?.live().context(handle);
    context
        .map(|context| context.place)
        .ok_or(code::INVALID_CONTEXT)
}

exported! { by super::answer;
    fn cuDevicePrimaryCtxRetain(context: *mut Handle, device: Device) {
        let place = place(device)?;
        if context.is_null() {
            return Err(code::INVALID_VALUE);
        }
        let handle = world().live().retain_primary(place).map_err(refused)?;
        put(context, handle, code::INVALID_VALUE)?;
    }

    fn cuDevicePrimaryCtxRelease_v2(device: Device) {
        let place = place(device)?;
        world().live().release_primary(place).map_err(|_| code::INVALID_CONTEXT)?;
    }

    fn cuDevicePrimaryCtxReset_v2(device: Device) {
        let place = place(device)?;
        world().live().reset_primary(place).map_err(refused)?;
    }

    fn cuDevicePrimaryCtxGetState(device: Device, flags: *mut c_uint, active: *mut c_int) {
        let place = place(device)?;
        put(flags, 0, code::INVALID_VALUE)?;
        put(active, world().live().primary_is_active(place).into(), code::INVALID_VALUE)?;
    }

    fn cuDevicePrimaryCtxSetFlags_v2(device: Device, flags: c_uint) {
        place(device)?;
    }

    fn cuCtxCreate_v2(context: *mut Handle, flags: c_uint, device: Device) {
        create(context, device)?;
    }

    fn cuCtxCreate_v3(context: *mut Handle, affinity: *mut c_void, affinities: c_int, flags: c_uint, device: Device) {
        create(context, device)?;
    }

    fn cuCtxCreate_v4(context: *mut Handle, parameters: *mut c_void, flags: c_uint, device: Device) {
        create(context, device)?;
    }

    fn cuCtxDestroy_v2(context: Handle) {
        known(context)?;
        let primary = world().live().context(context).is_some_and(|context| context.primary);
        if primary {
            return Err(code::INVALID_CONTEXT);
        }
        world().live().destroy_context(context).map_err(refused)?;
        STACK.with(|stack| {
            let mut stack = stack.borrow_mut();
            if stack.last() == Some(&context) {
                stack.pop();
            }
        });
    }

    fn cuCtxSetCurrent(context: Handle) {
        if context != 0 {
            known(context)?;
        }
        started()?;
        replace((context != 0).then_some(context));
    }

    fn cuCtxGetCurrent(context: *mut Handle) {
        started()?;
        put(context, current().unwrap_or(0), code::INVALID_VALUE)?;
    }

    fn cuCtxPushCurrent_v2(context: Handle) {
        known(context)?;
        STACK.with(|stack| stack.borrow_mut().push(context));
    }

    fn cuCtxPopCurrent_v2(context: *mut Handle) {
        started()?;
        let top = STACK.with(|stack| stack.borrow_mut().pop()).ok_or(code::INVALID_CONTEXT)?;
        if !context.is_null() {
            put(context, top, code::INVALID_VALUE)?;
        }
    }

    fn cuCtxGetDevice(device: *mut Device) {
        let (_, place) = in_context()?;
        let ordinal = world().settings.cuda.iter().position(|shown| *shown == place);
        put(device, ordinal.ok_or(code::INVALID_CONTEXT)? as Device, code::INVALID_VALUE)?;
    }

    fn cuCtxGetApiVersion(context: Handle, version: *mut c_uint) {
        started()?;
        put(version, 3020, code::INVALID_VALUE)?;
    }

    fn cuCtxGetFlags(flags: *mut c_uint) {
        in_context()?;
        put(flags, 0, code::INVALID_VALUE)?;
    }

    fn cuCtxSetFlags(flags: c_uint) {
        in_context()?;
    }

    fn cuCtxGetLimit(value: *mut usize, limit: c_int) {
        in_context()?;
        let default = match limit {
            0 => 1024,    // stack of a thread
            1 => 1 << 20, // what printf keeps
            2 => 8 << 20, // heap of kernels
            _ => 0,
        };
        put(value, default, code::INVALID_VALUE)?;
    }

    fn cuCtxSetLimit(limit: c_int, value: usize) {
        in_context()?;
    }

    fn cuCtxGetCacheConfig(config: *mut c_int) {
        in_context()?;
        put(config, 0, code::INVALID_VALUE)?;
    }

    fn cuCtxSetCacheConfig(config: c_int) {
        in_context()?;
    }

    fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) {
        in_context()?;
        if !least.is_null() {
            put(least, 0, code::INVALID_VALUE)?;
        }
        if !greatest.is_null() {
            put(greatest, -5, code::INVALID_VALUE)?;
        }
    }

    fn cuCtxSynchronize() {
        in_context()?;
    }

    fn cuCtxEnablePeerAccess(peer: Handle, flags: c_uint) {
        known(peer)?;
    }

    fn cuCtxDisablePeerAccess(peer: Handle) {
        known(peer)?;
    }
}
