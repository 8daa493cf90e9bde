//! Streams, events and graphs: handles without a meaning. Everything is done at once.

use std::cell::Cell;
use std::ffi::{c_int, c_uint, c_ulonglong};

use super::{Handle, code};
use crate::guard::{exported, put};
use crate::memory;

thread_local! {
    static CAPTURING: Cell<bool> = const { Cell::new(false) };
}

/// `cudaGraphExecUpdateResultInfo`: a result (0: the graph is updated) and two nodes that stood in its way.
type UpdateResult = [u64; 3];

fn new_handle(to: *mut Handle) -> Result<(), i32> {
    // SAFETY: `put` tests for null; else it is the caller's promise.
    unsafe { put(to, memory::handle(), code::INVALID_VALUE) }
}

exported! { by super::answer;
    fn cudaStreamCreate(stream: *mut Handle) {
        new_handle(stream)?;
    }

    fn cudaStreamCreateWithFlags(stream: *mut Handle, flags: c_uint) {
        new_handle(stream)?;
    }

    fn cudaStreamDestroy(stream: Handle) {
        memory::drop_handle(stream);
    }

    fn cudaStreamSynchronize(stream: Handle) {}

    fn cudaStreamWaitEvent(stream: Handle, event: Handle, flags: c_uint) {}

    fn cudaStreamBeginCapture(stream: Handle, mode: c_int) {
        CAPTURING.set(true);
    }

    fn cudaStreamEndCapture(stream: Handle, graph: *mut Handle) {
        CAPTURING.set(false);
        new_handle(graph)?;
    }

    fn cudaStreamIsCapturing(stream: Handle, status: *mut c_int) {
        put(status, CAPTURING.get().into(), code::INVALID_VALUE)?;
    }

    fn cudaEventCreate(event: *mut Handle) {
        new_handle(event)?;
    }

    fn cudaEventCreateWithFlags(event: *mut Handle, flags: c_uint) {
        new_handle(event)?;
    }

    fn cudaEventDestroy(event: Handle) {
        memory::drop_handle(event);
    }

    fn cudaEventRecord(event: Handle, stream: Handle) {}

    fn cudaEventSynchronize(event: Handle) {}

    fn cudaEventQuery(event: Handle) {}

    fn cudaEventElapsedTime(milliseconds: *mut f32, start: Handle, end: Handle) {
        put(milliseconds, 0.0, code::INVALID_VALUE)?;
    }

    fn cudaGraphInstantiate(executable: *mut Handle, graph: Handle, flags: c_ulonglong) {
        new_handle(executable)?;
    }

    fn cudaGraphLaunch(executable: Handle, stream: Handle) {}

    fn cudaGraphDestroy(graph: Handle) {
        memory::drop_handle(graph);
    }

    fn cudaGraphExecDestroy(executable: Handle) {
        memory::drop_handle(executable);
    }

    fn cudaGraphExecUpdate(executable: Handle, graph: Handle, result: *mut UpdateResult) {
        if !result.is_null() {
            put(result, [0; 3], code::INVALID_VALUE)?;
        }
    }
}
