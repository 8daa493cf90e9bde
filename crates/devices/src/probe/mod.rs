//! Asking the machine which GPUs it has.
//!
//! Attributes and totals come from the CUDA driver ([`driver`]), in CUDA's own order and as
//! `CUDA_VISIBLE_DEVICES` and `CUDA_DEVICE_ORDER` say, since the driver itself obeys them; what is free,
//! and who takes the rest, from NVML ([`nvml`]), which knows nothing of those variables: the two are
//! matched by UUID. No CUDA context is made, as it would take the very memory that is asked for.
//!
//! A driver can hang for ever, so [`ChildProbe`] asks in a process of its own, with a time limit:
//!
//! ```no_run
//! use std::time::Duration;
//! use vramfit_devices::{ChildProbe, Probe, answer_probe};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     answer_probe(); // first of all: returns unless this process is a probe's child
//!
//!     let probe = ChildProbe::this_program()?.timeout(Duration::from_secs(5));
//!     for device in probe.machine()?.devices {
//!         println!("CUDA{}: {} ({:?} free)", device.cuda_index, device.name, device.free);
//!     }
//!     Ok(())
//! }
//! ```
//!
//! A library that is not its program's `main` names one that answers: `ChildProbe::new("estimate")`.
//! [`DriverProbe`] asks in the calling process, for those who would rather hang than start one.

mod answer;
mod child;
mod driver;
mod error;
mod list;
mod look;
mod machine;
mod notes;
pub(crate) mod nvml;

use vramfit_plan::Device;

pub use answer::answer_probe;
pub use child::{ChildProbe, DEFAULT_TIMEOUT};
pub use error::ProbeError;
pub use list::Pick;
pub use look::{DriverProbe, UNNAMED_GPU};
pub use machine::{FreeFrom, FreeMemory, Machine, ProbedDevice, ProcessUse};
pub use notes::ProbeNote;

/// Something that can say which GPUs this machine has.
pub trait Probe {
    /// Everything there is to know of them, in CUDA's order, with what is free now.
    fn machine(&self) -> Result<Machine, ProbeError>;

    /// Every device as the planner sees it.
    fn devices(&self) -> Result<Vec<Device>, ProbeError> {
        let machine = self.machine()?;
        Ok(machine.devices.iter().map(ProbedDevice::device).collect())
    }
}

/// The probe of a build that has none.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProbe;

impl Probe for NoProbe {
    fn machine(&self) -> Result<Machine, ProbeError> {
        Err(ProbeError::Unavailable)
    }
}
