//! Streams, events and graphs: handles without a meaning. Everything is done at once.

use std::cell::Cell;
use std::ffi::{c_int, c_uint, c_ulonglong, c_void};

use super::{Handle, code, in_context};
use crate::guard::{exported, put};
use crate::memory;

thread_local! {
    static CAPTURING: Cell<bool> = const { Cell::new(false) };
}

fn new_handle(to: *mut Handle) -> Result<(), i32> {
    in_context()?;
    // SAFETY: `put` tests for null; else it is the caller's promise.
    unsafe { put(to, memory::handle(), code::INVALID_VALUE) }
}

fn drop_handle(handle: Handle) -> Result<(), i32> {
    in_context()?;
    memory::drop_handle(handle);
    Ok(())
}

exported! { by super::answer;
    fn cuStreamCreate(stream: *mut Handle, flags: c_uint) {
        new_handle(stream)?;
    }

    fn cuStreamCreateWithPriority(stream: *mut Handle, flags: c_uint, priority: c_int) {
        new_handle(stream)?;
    }

    fn cuStreamDestroy_v2(stream: Handle) {
        drop_handle(stream)?;
    }

    fn cuStreamSynchronize(stream: Handle) {
        in_context()?;
    }

    fn cuStreamQuery(stream: Handle) {
        in_context()?;
    }

    fn cuStreamWaitEvent(stream: Handle, event: Handle, flags: c_uint) {
        in_context()?;
    }

    fn cuStreamAttachMemAsync(stream: Handle, address: u64, bytes: usize, flags: c_uint) {
        in_context()?;
    }

    fn cuLaunchHostFunc(stream: Handle, function: Option<unsafe extern "C" fn(*mut c_void)>, data: *mut c_void) {
        in_context()?;
        function.ok_or(code::INVALID_VALUE)?(data);
    }

    fn cuStreamBeginCapture_v2(stream: Handle, mode: c_int) {
        in_context()?;
        CAPTURING.set(true);
    }

    fn cuStreamEndCapture(stream: Handle, graph: *mut Handle) {
        CAPTURING.set(false);
        new_handle(graph)?;
    }

    fn cuStreamIsCapturing(stream: Handle, status: *mut c_int) {
        in_context()?;
        put(status, CAPTURING.get().into(), code::INVALID_VALUE)?;
    }

    fn cuGraphInstantiateWithFlags(executable: *mut Handle, graph: Handle, flags: c_ulonglong) {
        new_handle(executable)?;
    }

    fn cuGraphUpload(executable: Handle, stream: Handle) {
        in_context()?;
    }

    fn cuGraphLaunch(executable: Handle, stream: Handle) {
        in_context()?;
    }

    fn cuGraphDestroy(graph: Handle) {
        drop_handle(graph)?;
    }

    fn cuGraphExecDestroy(executable: Handle) {
        drop_handle(executable)?;
    }

    fn cuEventCreate(event: *mut Handle, flags: c_uint) {
        new_handle(event)?;
    }

    fn cuEventDestroy_v2(event: Handle) {
        drop_handle(event)?;
    }

    fn cuEventRecord(event: Handle, stream: Handle) {
        in_context()?;
    }

    fn cuEventQuery(event: Handle) {
        in_context()?;
    }

    fn cuEventSynchronize(event: Handle) {
        in_context()?;
    }

    fn cuEventElapsedTime(milliseconds: *mut f32, start: Handle, end: Handle) {
        in_context()?;
        put(milliseconds, 0.0, code::INVALID_VALUE)?;
    }
}
