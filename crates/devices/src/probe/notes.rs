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
    /// Neither the driver nor NVML says what the device is called.
    NameUnknown {
        /// CUDA's index.
        device: u32,
        /// Why not.
        why: String,
    },
    /// NVML does not say which processes are on the device.
    ProcessesUnknown {
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
    /// The device has no virtual memory management, so that ggml-cuda's pool is of its legacy kind.
    OlderPool {
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
        /// `CUDA_VISIBLE_DEVICES`, where it is set.
        visible: Option<String>,
    },
}

impl ProbeNote {
    /// CUDA's index of the device it is about; none for the whole machine.
    pub fn device(&self) -> Option<u32> {
        match self {
            Self::NoNvml { .. } | Self::Hidden { .. } => None,
            Self::FreeUnknown { device, .. }
            | Self::NameUnknown { device, .. }
            | Self::ProcessesUnknown { device, .. }
            | Self::NotInNvml { device }
            | Self::MigInstance { device }
            | Self::MigInstanceUnknown { device }
            | Self::SharedMemory { device }
            | Self::OlderPool { device }
            | Self::MeasuredInContext { device }
            | Self::ContextFailed { device, .. } => Some(*device),
        }
    }
}

impl ProbeNote {
    /// What is to be said, after the devices it is about.
    fn about(&self) -> String {
        match self {
            Self::NoNvml { why } => format!("NVML cannot be asked ({why})"),
            Self::FreeUnknown { why, .. } => format!(
                "what is free is not known ({why}), so all of it is taken as free; --probe-context asks from \
                 inside a short-lived CUDA context"
            ),
            Self::NameUnknown { why, .. } => format!(
                "its name is not known ({why}), so nothing that was measured on a card of its name is used"
            ),
            Self::ProcessesUnknown { why, .. } => {
                format!("NVML does not say which processes are on it ({why})")
            }
            Self::NotInNvml { .. } => "NVML knows no GPU of that UUID or PCI id".to_owned(),
            Self::MigInstance { .. } => {
                "a MIG instance: its figures are its own, not the whole GPU's".to_owned()
            }
            Self::MigInstanceUnknown { .. } => {
                "a part of a GPU in MIG mode, and NVML does not say which: its \
                 total is the instance's as CUDA gives it"
                    .to_owned()
            }
            Self::SharedMemory { .. } => {
                "shares the system's memory: what is free is MemAvailable, as llama.cpp \
                 asks for it"
                    .to_owned()
            }
            Self::OlderPool { .. } => {
                "no virtual memory management: ggml-cuda's pool is of its legacy kind".to_owned()
            }
            Self::MeasuredInContext { .. } => {
                "what is free was measured from inside a CUDA context, which takes \
                 memory itself: a little more is free"
                    .to_owned()
            }
            Self::ContextFailed { why, .. } => format!("a CUDA context could not be made: {why}"),
            Self::Hidden {
                shown,
                all,
                visible,
            } => {
                let visible = visible.as_ref().map_or(String::new(), |visible| {
                    format!(": CUDA_VISIBLE_DEVICES is '{visible}'")
                });
                format!("CUDA shows {shown} of the machine's {all} GPUs{visible}")
            }
        }
    }

    /// The note, said of these devices together.
    pub(crate) fn of(&self, devices: &[u32]) -> String {
        let names: Vec<String> = devices
            .iter()
            .map(|device| format!("CUDA{device}"))
            .collect();
        match names.as_slice() {
            [] => self.about(),
            names => format!("{}: {}", names.join(", "), self.about()),
        }
    }

    /// Notes that say the same of several devices, together, with `index` of each device; without those of
    /// devices that have none.
    pub(crate) fn gathered(
        notes: &[ProbeNote],
        index: impl Fn(u32) -> Option<u32>,
    ) -> Vec<(ProbeNote, Vec<u32>)> {
        let mut gathered: Vec<(ProbeNote, Vec<u32>)> = Vec::new();
        for note in notes {
            let device = match note.device() {
                None => None,
                Some(device) => match index(device) {
                    None => continue,
                    index => index,
                },
            };
            match gathered
                .iter_mut()
                .find(|(other, _)| other.about() == note.about())
            {
                Some((_, devices)) => devices.extend(device),
                None => gathered.push((note.clone(), device.into_iter().collect())),
            }
        }
        gathered
    }
}

impl fmt::Display for ProbeNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.of(self.device().as_slice()))
    }
}
