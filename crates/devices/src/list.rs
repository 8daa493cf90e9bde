//! What a `--gpus` text comes to: devices, how each part of the text expanded, and what had to be assumed.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use crate::bytes::format_bytes;
use crate::catalogue::Card;
use crate::probe::ProbeNote;
use vramfit_ggml::ComputeCapability;
use vramfit_plan::Device;

/// The devices of a plan, in CUDA's order.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuList {
    /// CUDA0, CUDA1 and so on.
    pub devices: Vec<Device>,
    /// What each part of the text became, in order.
    pub entries: Vec<GpuEntry>,
    /// What was assumed; each is to be shown.
    pub notes: Vec<Note>,
    /// Names that outlive a restart, of the devices that a probe has found: UUIDs, where they have one.
    pub ids: Vec<String>,
}

impl GpuList {
    /// Which physical board the device at `index` sits on, counted from 0 over the boards that carry
    /// several devices; `None` for a card that is a board of its own.
    pub fn board(&self, index: usize) -> Option<u32> {
        let entry = self.entries.iter().find(|e| e.devices.contains(&index))?;
        entry.boards.get(index - entry.devices.start).copied()
    }

    /// The driver's version, where the devices are this machine's and it is known.
    pub fn driver(&self) -> Option<&str> {
        self.notes.iter().find_map(|note| match note {
            Note::Probed { driver, .. } => driver.as_deref(),
            _ => None,
        })
    }

    /// Names for a ledger: those that outlive a restart where a probe has found them, else CUDA's.
    pub fn ledger_ids(&self) -> Vec<String> {
        let id = |i| self.ids.get(i).cloned().unwrap_or_else(|| Self::id(i));
        (0..self.devices.len()).map(id).collect()
    }

    /// What llama.cpp calls the device at `index`: `CUDA0`.
    pub fn id(index: usize) -> String {
        format!("CUDA{index}")
    }
}

/// Devices given by hand.
impl From<Vec<Device>> for GpuList {
    fn from(devices: Vec<Device>) -> Self {
        Self {
            devices,
            ..Self::default()
        }
    }
}

/// One part of a `--gpus` text.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuEntry {
    /// The part without its options, as typed: `k80x2`.
    pub text: String,
    /// Which of the list's devices it became.
    pub devices: Range<usize>,
    /// The card it named, or that a probe found; none for one given by size.
    pub card: Option<&'static Card>,
    /// The board of each of its devices; empty for cards that are boards of their own.
    pub boards: Vec<u32>,
}

impl GpuEntry {
    /// The expansion in words: `k80x2: 2 devices, one board`.
    pub fn description(&self) -> String {
        let count = self.devices.len();
        let devices = if count == 1 { "device" } else { "devices" };
        let boards = match self.card {
            Some(card) if card.dies_per_board > 1 && !self.boards.is_empty() => {
                let dies = card.dies_per_board as usize;
                // Those of a machine need not fill their boards.
                match BTreeSet::from_iter(&self.boards).len() {
                    n if n == count.div_ceil(dies) => format!(", {}", boards(count, dies)),
                    n => format!(", on {n} boards"),
                }
            }
            _ => String::new(),
        };
        format!("{}: {count} {devices}{boards}", self.text)
    }
}

fn boards(count: usize, dies: usize) -> String {
    let whole = match count / dies {
        0 => None,
        1 => Some("one board".to_owned()),
        many => Some(format!("{many} boards")),
    };
    let part = match count % dies {
        0 => None,
        left if left * 2 == dies => Some(format!("half a board ({left} of {dies} dies)")),
        left => Some(format!("part of a board ({left} of {dies} dies)")),
    };
    match (whole, part) {
        (Some(whole), Some(part)) => format!("{whole} and {part}"),
        (whole, part) => whole.or(part).unwrap_or_default(),
    }
}

/// Something assumed while reading a `--gpus` text.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// The name stands for several cards; one was taken.
    Variant {
        /// As typed.
        text: String,
        /// The card taken.
        taken: &'static Card,
        /// The keys of the others.
        others: Vec<&'static str>,
    },
    /// A card given by size alone.
    AssumedComputeCapability {
        /// As typed.
        text: String,
        /// The compute capability taken.
        capability: ComputeCapability,
    },
    /// The card's size is the one on the box, not read off a driver.
    NominalSize {
        /// The card.
        card: &'static Card,
    },
    /// The card shares its memory with the system.
    SharedMemory {
        /// The card.
        card: &'static Card,
    },
    /// A size in GB or MB, taken at its word.
    DecimalUnit {
        /// As typed.
        text: String,
        /// What it came to, in bytes.
        bytes: u64,
    },
    /// The devices were found on this machine.
    Probed {
        /// How many.
        count: usize,
        /// Where their figures are from.
        source: String,
        /// The driver's version, where it is known.
        driver: Option<String>,
    },
    /// Some of this machine's GPUs, or in another order, so that their numbers are not those of the machine.
    Picked {
        /// For `CUDA_VISIBLE_DEVICES`.
        visible: String,
    },
    /// Something that the probe could not find out, or that is not as usual.
    Probe {
        /// What it is.
        note: ProbeNote,
        /// The devices that it is about, as the list numbers them; none for the whole machine.
        devices: Vec<u32>,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variant {
                text,
                taken,
                others,
            } => write!(
                f,
                "{text} taken as {} ({}, {}); others: {}",
                taken.key,
                taken.name,
                format_bytes(taken.total_bytes),
                others.join(", ")
            ),
            Self::AssumedComputeCapability { text, capability } => write!(
                f,
                "{text} has no compute capability; {capability} assumed, say otherwise as {text}:cc=7.5"
            ),
            Self::NominalSize { card } => write!(
                f,
                "{}: {} is its nominal size, an upper bound; the driver reports that or a little less",
                card.key,
                format_bytes(card.total_bytes)
            ),
            Self::SharedMemory { card } => write!(
                f,
                "{}: its memory is the system's own; give what is left for it as {}:free=...",
                card.key, card.key
            ),
            Self::DecimalUnit { text, bytes } => write!(
                f,
                "{text}: {bytes} bytes, or {} MiB, each; cards are sized in MiB and GiB",
                bytes >> 20
            ),
            Self::Probed {
                count,
                source,
                driver,
            } => {
                let devices = if *count == 1 { "device" } else { "devices" };
                write!(f, "auto: {count} {devices} found on this machine, {source}")?;
                match driver {
                    Some(driver) => write!(f, "; driver {driver}"),
                    None => Ok(()),
                }
            }
            Self::Picked { visible } => write!(
                f,
                "CUDA0 and so on are the GPUs picked: start llama-server with CUDA_VISIBLE_DEVICES={visible}"
            ),
            Self::Probe { note, devices } => f.write_str(&note.of(devices)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boards_are_counted_in_words() {
        let check = |count: usize, dies: usize, expected: &str| {
            assert_eq!(boards(count, dies), expected, "{count} of {dies}");
        };
        check(1, 2, "half a board (1 of 2 dies)");
        check(2, 2, "one board");
        check(3, 2, "one board and half a board (1 of 2 dies)");
        check(4, 2, "2 boards");
        check(1, 4, "part of a board (1 of 4 dies)");
        check(2, 4, "half a board (2 of 4 dies)");
        check(11, 4, "2 boards and part of a board (3 of 4 dies)");
    }
}
