//! Room for what the driver rounds each allocation up by.

use crate::{Device, Policy};
use std::borrow::Cow;
use vramfit_arch::Model;
use vramfit_estimate::{RunConfig, most_buffers};

/// cuBLAS's workspace, ggml-cuda's pool, and what `-sm tensor` adds up in.
const OF_RUNTIME: usize = 3;
/// A projector's weights and compute buffer.
const OF_PROJECTOR: usize = 2;

/// `devices`, with [`per_buffer_bytes`](crate::Allowance::per_buffer_bytes) for as many buffers as there can be on one of
/// them: how many there will be is not known before the layout is.
pub(crate) fn with_room<'a>(
    model: &Model,
    run: &RunConfig,
    policy: &Policy,
    devices: &'a [Device],
) -> Cow<'a, [Device]> {
    if devices.iter().all(|d| d.overhead.per_buffer_bytes == 0) {
        return Cow::Borrowed(devices);
    }
    let mut n = most_buffers(model, run).saturating_add(OF_RUNTIME);
    if let Some(draft) = &policy.draft {
        let own = draft.model.as_deref().unwrap_or(model);
        n = n
            .saturating_add(most_buffers(own, run))
            .saturating_add(OF_RUNTIME);
    }
    if policy.projector.is_some() {
        n = n.saturating_add(OF_PROJECTOR).saturating_add(OF_RUNTIME);
    }
    let n = u64::try_from(n).unwrap_or(u64::MAX);
    let with_room = |device: &Device| {
        let mut device = device.clone();
        let room = device.overhead.per_buffer_bytes.saturating_mul(n);
        device.overhead.bytes = device.overhead.bytes.saturating_add(room);
        device
    };
    devices.iter().map(with_room).collect()
}
