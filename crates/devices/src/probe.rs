//! Asking the machine which GPUs it has. The real probe (CUDA, NVML) comes later; this is its shape.

use vramfit_plan::Device;

/// Something that can say which GPUs this machine has.
pub trait Probe {
    /// Every device, in CUDA's order, with what is free on it now.
    fn devices(&self) -> Result<Vec<Device>, ProbeError>;
}

/// Why the machine's GPUs are not known.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// This build of vramfit cannot look.
    #[error(
        "this build cannot look for GPUs by itself; name them instead: `--gpus k80x2` for a card in the \
         catalogue (`estimate gpus` lists it), `--gpus 24GiB` for any card by its size, `--gpus none` for the CPU"
    )]
    Unavailable,
    /// It looked and could not find out.
    #[error(
        "cannot ask the machine which GPUs it has: {0}; name them instead, as in `--gpus k80x2` or `--gpus 24GiB`"
    )]
    Failed(String),
}

/// The probe of a build that has none.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProbe;

impl Probe for NoProbe {
    fn devices(&self) -> Result<Vec<Device>, ProbeError> {
        Err(ProbeError::Unavailable)
    }
}
