//! What a reader should know of a probe's figures.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Something that is not known, or not as it usually is.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ProbeNote {
    /// NVML cannot be asked.
    NoNvml {
        /// What it says, or the loader.
        why: String,
    },
    /// What is free on a device is not known.
    FreeUnknown {
        /// CUDA's index.
        device: u32,
        /// Why not.
        why: String,
    },
    /// NVML has no GPU of the device's UUID or PCI id.
    NotInNvml {
        /// CUDA's index.
        device: u32,
    },
    /// The device is a part of a GPU in MIG mode.
    MigInstance {
        /// CUDA's index.
        device: u32,
    },
    /// The device is a part of a GPU in MIG mode, and NVML does not say which.
    MigInstanceUnknown {
        /// CUDA's index.
        device: u32,
    },
    /// The device shares the system's memory.
    SharedMemory {
        /// CUDA's index.
        device: u32,
    },
    /// What is free was measured from inside a CUDA context made for it.
    MeasuredInContext {
        /// CUDA's index.
        device: u32,
    },
    /// A context was asked for, and failed.
    ContextFailed {
        /// CUDA's index.
        device: u32,
        /// The driver's answer.
        why: String,
    },
    /// Some GPUs of the machine are hidden from CUDA.
    Hidden {
        /// Those that CUDA shows.
        shown: u32,
        /// Those that NVML sees.
        all: u32,
        /// `CUDA_VISIBLE_DEVICES`.
        visible: String,
    },
}

impl ProbeNote {
    /// CUDA's index of the device it is about; none for the whole machine.
    pub fn device(&self) -> Option<u32> {
        match self {
            Self::NoNvml { .. } | Self::Hidden { .. } => None,
            Self::FreeUnknown { device, .. }
            | Self::NotInNvml { device }
            | Self::MigInstance { device }
            | Self::MigInstanceUnknown { device }
            | Self::SharedMemory { device }
            | Self::MeasuredInContext { device }
            | Self::ContextFailed { device, .. } => Some(*device),
        }
    }
}

impl fmt::Display for ProbeNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNvml { why } => write!(f, "NVML cannot be asked ({why})"),
            Self::FreeUnknown { device, why } => write!(
                f,
                "CUDA{device}: what is free is not known ({why}), so all of it is taken as free; --probe-context \
                 asks from inside a short-lived CUDA context"
            ),
            Self::NotInNvml { device } => {
                write!(f, "CUDA{device}: NVML knows no GPU of its UUID or PCI id")
            }
            Self::MigInstance { device } => write!(
                f,
                "CUDA{device} is a MIG instance: its figures are the instance's own, not the whole GPU's"
            ),
            Self::MigInstanceUnknown { device } => write!(
                f,
                "CUDA{device} is a part of a GPU in MIG mode, and NVML does not say which: its total is the \
                 instance's as CUDA gives it"
            ),
            Self::SharedMemory { device } => write!(
                f,
                "CUDA{device} shares the system's memory: what is free is MemAvailable, as llama.cpp asks for it"
            ),
            Self::MeasuredInContext { device } => write!(
                f,
                "CUDA{device}: what is free was measured from inside a CUDA context, which takes memory itself: \
                 a little more is free"
            ),
            Self::ContextFailed { device, why } => {
                write!(f, "CUDA{device}: a CUDA context could not be made: {why}")
            }
            Self::Hidden {
                shown,
                all,
                visible,
            } => write!(
                f,
                "CUDA shows {shown} of the machine's {all} GPUs: CUDA_VISIBLE_DEVICES is '{visible}'"
            ),
        }
    }
}
