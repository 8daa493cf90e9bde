//! The GPUs a plan is made for: a catalogue of NVIDIA cards as the driver reports them, the
//! `--gpus` language over it, a probe of the machine's own GPUs ([`Probe`]), and what CUDA itself takes
//! on a card before llama.cpp allocates anything.
//!
//! ```
//! use vramfit_devices::{Gpus, NoProbe};
//!
//! let gpus: Gpus = "k80x2,rtx3060:free=9GiB".parse()?;
//! let list = gpus.resolve(&NoProbe)?;
//! assert_eq!(list.devices.len(), 3);
//! assert_eq!(list.entries[0].description(), "k80x2: 2 devices, one board");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The catalogue, its ambiguous names and the overhead observations are data (`*.tsv` beside this
//! file), read once and checked row by row in the tests.

mod by_hand;
mod bytes;
mod catalogue;
mod facts;
mod gpus;
mod list;
mod lookup;
mod options;
mod overhead;
mod probe;
mod profiles;
mod support;

/// What NVML is asked for, for those who watch it themselves: in one place.
#[doc(hidden)]
pub mod nvml {
    pub use crate::probe::nvml::{Memory, memory, processes, uuid_text};
}

pub use by_hand::GpuError;
pub use bytes::{ByteSize, BytesError, format_bytes, parse_bytes};
pub use catalogue::{Architecture, COLUMNS, Card, Source, catalogue, list_cards};
pub use gpus::{DEFAULT_COMPUTE_CAPABILITY, GPUS_HELP, Gpus, GpusError, MAX_DEVICES};
pub use list::{GpuEntry, GpuList, Note};
pub use lookup::{CardMatch, UnknownCard, Variant, find_card};
pub use overhead::{Basis, CUBLAS_BYTES, Figure, context, driver_reserve, overhead};
pub use probe::{
    ChildProbe, DEFAULT_TIMEOUT, DriverProbe, FreeFrom, FreeMemory, Machine, NoProbe, Pick, Probe,
    ProbeError, ProbeNote, ProbedDevice, ProcessUse, UNNAMED_GPU, answer_probe,
};
pub use profiles::{
    CONSISTENT_WITHIN_BYTES, Host, Inconsistent, MARGIN_BYTES, PROFILES_VARIABLE, Profile,
    Profiles, ProfilesError, ROUNDING_BYTES, folder_of, profiles_path, write_whole,
};
pub use support::{FlashAttention, PublicBuilds, flash_attention, public_builds};
pub use vramfit_ggml::ComputeCapability;
pub use vramfit_plan::{Allowance, Device};
