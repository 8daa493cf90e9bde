//! What a plan really takes on the cards of this machine.
//!
//! Two ways to find out: [`allocate`] takes the planned buffers itself, in the engine's order, and asks the driver what
//! that came to; [`measure`] runs the engine with the planned flags and a full prompt, and watches what NVML shows of it.
//! [`Comparison`] holds both sides side by side, and [`learn`] draws from the second what CUDA itself takes: the rest
//! when llama.cpp's buffers and its pool are taken off. Those are never adjusted.
//!
//! A driver or an engine can hang, crash or take all memory, so each runs in a process of its own, below one that does
//! nothing but wait ([`hold`]): whatever ends this process, SIGKILL included, the other one notices and kills all that
//! was started. The program's `main` therefore begins with [`answer_child`].

#![cfg(target_os = "linux")]

mod allocate;
mod compare;
mod engine;
mod expect;
mod hold;
mod learn;
mod libllama;
mod log;
mod processes;
mod reach;
mod rows;
mod text;
mod watch;

use serde::{Deserialize, Serialize};

pub use allocate::{Allocation, DeviceAllocation, Of, Step, Taken, What, allocate};
pub use compare::{Comparison, DeviceComparison, TOLERANCE_BYTES};
pub use engine::{EngineKind, Measurement, Options, measure};
pub use expect::{Beside, Expected, ExpectedDevice, Plan};
pub use learn::{Refusal, learn};
pub use log::SaidBuffers;
pub use rows::rows;
pub use text::{allocation_text, comparison_text};
pub use watch::{MeasuredBy, Seen};

/// A GPU of this machine, as CUDA shows it to this process and to the engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// As the driver calls it.
    pub name: String,
    /// As `GPU-8f3e..`: NVML finds the card by it.
    pub uuid: Option<String>,
    /// As `0000:05:00.0`, where there is no UUID.
    pub pci_id: Option<String>,
}

/// Why nothing could be measured.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A process of ours.
    #[error("{what}: {source}")]
    Io {
        /// What was to be done.
        what: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The engine ended, or never answered.
    #[error("{0}")]
    Engine(String),
    /// The driver.
    #[error("{0}")]
    Driver(String),
}

pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    let what = what.into();
    move |source| Error::Io { what, source }
}

/// First of all in `main`: returns unless this process was started by this crate as a child.
pub fn answer_child() {
    let mut arguments = std::env::args_os().skip(1);
    let Some(name) = arguments.next() else {
        return;
    };
    if name == hold::CHILD_ARGUMENT {
        hold::child(arguments.collect());
    }
    if name == libllama::CHILD_ARGUMENT {
        libllama::child(arguments);
    }
    if name == allocate::CHILD_ARGUMENT {
        allocate::child();
    }
}
