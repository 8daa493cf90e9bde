//! The `--gpus` language.

use std::str::FromStr;

use crate::bytes::{BytesError, format_bytes, parse_bytes};
use crate::catalogue::{Card, Source};
use crate::facts::Facts;
use crate::list::{GpuEntry, GpuList, Note};
use crate::lookup::{UnknownCard, find_card, shortened, squash};
use crate::options::Options;
use crate::probe::{Pick, Probe, ProbeError};
use vramfit_ggml::ComputeCapability;

/// The most devices one text may name.
pub const MAX_DEVICES: usize = 64;

/// What a card given by size alone is taken to be: consumer Ampere.
pub const DEFAULT_COMPUTE_CAPABILITY: ComputeCapability = ComputeCapability::new(8, 6);

/// What `--gpus` takes, for a help text.
pub const GPUS_HELP: &str = "\
auto                  the GPUs of this machine, as CUDA shows them now
auto:0,2              some of them, by CUDA's number or UUID (auto:GPU-8f3e)
none                  no GPU, everything on the CPU
k80x2                 two devices of a card in the catalogue (`estimate gpus` lists them);
                      2xk80 and 2*k80 are the same
h100,rtx3060          several, in CUDA's order: CUDA0 is the h100, CUDA1 the rtx3060
24GiB                 a card that is not in the catalogue, by its memory; cc 8.6 unless said
rtx3060:free=9GiB     options follow a colon, several as in 24GiB:cc=7.5:free=80%
  free=9GiB, free=80% what is left on each of those devices (default: all of it)
  total=, size=       all memory of each device
  cc=7.5              compute capability
  sms=30              streaming multiprocessors
  vmm=0               no virtual memory management: card, driver or build (GGML_CUDA_NO_VMM)
  name=...            the name to show
Sizes are bytes, or a number with KiB, MiB, GiB, KB, MB or GB. Upper and lower case, spaces,
dashes and underscores are all one: \"RTX 4090\", rtx-4090 and \"NVIDIA GeForce RTX 4090\".
A device is what CUDA counts as one: a K80 board is k80x2.";

/// A read `--gpus` text.
///
/// ```text
/// gpus   = "auto" [ ":" pick { "," pick } ] | "none" | entry { "," entry }
/// pick   = index | uuid                                              (the start of a UUID is enough)
/// entry  = [ count ("x" | "*") ] what | what [ ("x" | "*") count ]   then { ":" option }
/// what   = a card's name | size
/// option = "free=" (size | percent "%") | ("total=" | "size=") size
///        | "cc=" major "." minor | "sms=" number | "vmm=" ("0" | "1") | "name=" text
/// size   = number [ KiB | MiB | GiB | TiB | KB | MB | GB | TB ]      (a unit is required in `what`)
/// count  = 1..=64
/// ```
/// A name that ends like a count (`rtx3060` ends in `x3060`) is a name first. Devices of a board with
/// several dies fill boards in the order given, and go on filling in the next entry of the same card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gpus {
    /// Whatever a probe finds.
    Auto,
    /// These of the GPUs that a probe finds, in this order.
    AutoPicked(Vec<Pick>),
    /// These devices; empty for `none`.
    List(GpuList),
}

impl Gpus {
    /// The devices; `auto` asks the probe, the rest is known.
    pub fn resolve(self, probe: &dyn Probe) -> Result<GpuList, ProbeError> {
        match self {
            Self::Auto => Ok(probe.machine()?.list()),
            Self::AutoPicked(picks) => probe.machine()?.picked(&picks),
            Self::List(list) => Ok(list),
        }
    }
}

/// Why a `--gpus` text cannot be read. `entry` is the part at fault, as typed.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum GpusError {
    #[error("no GPU named; write k80x2, 24GiB, auto, or none for the CPU alone")]
    Empty,
    #[error("an empty place between commas in '{0}'")]
    EmptyEntry(String),
    #[error("'{0}' stands alone; it cannot be mixed with other GPUs or take options")]
    NotAlone(String),
    #[error(
        "'{0}' is not one of this machine's GPUs; write auto:0,2 or auto:GPU-8f3e (the start of a UUID)"
    )]
    Pick(String),
    #[error(transparent)]
    UnknownCard(#[from] UnknownCard),
    #[error("'{0}' has a count on both sides; keep one")]
    TwoCounts(String),
    #[error("'{0}' asks for 0 devices; write none for the CPU alone")]
    ZeroCount(String),
    #[error("'{0}' brings the list over {MAX_DEVICES} devices")]
    TooMany(String),
    #[error(
        "'{option}' in '{entry}' is not an option; there are free=, total= (or size=), cc=, sms=, vmm= and name="
    )]
    UnknownOption { entry: String, option: String },
    #[error(
        "'{0}' is an option with no GPU before it; options follow a colon: rtx3060:free=9GiB:cc=8.6"
    )]
    OptionAlone(String),
    #[error("{option}= is given twice in '{entry}'")]
    OptionTwice { entry: String, option: &'static str },
    #[error("{option}= in '{entry}': {source}")]
    Size {
        entry: String,
        option: &'static str,
        source: BytesError,
    },
    #[error("{option}={value} in '{entry}': {expected}")]
    Value {
        entry: String,
        option: &'static str,
        value: String,
        expected: &'static str,
    },
    #[error(
        "'{entry}' has {free_bytes} bytes free of {total_bytes}; free memory is part of the total"
    )]
    FreeAboveTotal {
        entry: String,
        free_bytes: u64,
        total_bytes: u64,
    },
}

impl FromStr for Gpus {
    type Err = GpusError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match squash(text).as_str() {
            "" => return Err(GpusError::Empty),
            "auto" => return Ok(Self::Auto),
            "none" => return Ok(Self::List(GpuList::default())),
            _ => {}
        }
        if let Some(picks) = picks_of(text) {
            return read_picks(picks).map(Self::AutoPicked);
        }
        let mut reader = Reader::default();
        for entry in text.split(',') {
            if entry.trim().is_empty() {
                return Err(GpusError::EmptyEntry(shortened(text)));
            }
            reader.entry(entry.trim())?;
        }
        Ok(Self::List(reader.list))
    }
}

/// What follows `auto:`.
fn picks_of(text: &str) -> Option<&str> {
    let (head, picks) = text.split_once(':')?;
    (squash(head) == "auto").then_some(picks)
}

fn read_picks(picks: &str) -> Result<Vec<Pick>, GpusError> {
    let read = |pick: &str| Pick::read(pick.trim()).ok_or_else(|| GpusError::Pick(shortened(pick)));
    let picks: Vec<Pick> = picks.split(',').map(read).collect::<Result<_, _>>()?;
    match picks.get(MAX_DEVICES) {
        Some(one_more) => Err(GpusError::TooMany(one_more.to_string())),
        None => Ok(picks),
    }
}

/// The list so far, and the board that still has room.
#[derive(Default)]
struct Reader {
    list: GpuList,
    boards: u32,
    open_board: Option<OpenBoard>,
}

#[derive(Clone, Copy)]
struct OpenBoard {
    card: &'static str,
    number: u32,
    dies_left: u32,
}

impl Reader {
    fn entry(&mut self, entry: &str) -> Result<(), GpusError> {
        let mut parts = entry.split(':');
        let head = parts.next().unwrap_or_default().trim();
        if head.contains('=') {
            return Err(GpusError::OptionAlone(shortened(entry)));
        }
        if ["auto", "none"].contains(&squash(head).as_str()) {
            return Err(GpusError::NotAlone(shortened(head)));
        }
        let counted = read_head(head)?;
        if counted.count > MAX_DEVICES.saturating_sub(self.list.devices.len()) {
            return Err(GpusError::TooMany(shortened(entry)));
        }
        let options = Options::read(entry, parts)?;
        self.note(head, &counted.what, &options);
        let device = options.apply(entry, counted.what.facts())?.device();
        let start = self.list.devices.len();
        let mut boards = Vec::new();
        for _ in 0..counted.count {
            boards.extend(counted.what.card().and_then(|card| self.next_board(card)));
            self.list.devices.push(device.clone());
        }
        if counted
            .what
            .card()
            .is_none_or(|card| card.dies_per_board < 2)
        {
            self.open_board = None;
        }
        self.list.entries.push(GpuEntry {
            text: head.to_owned(),
            devices: start..self.list.devices.len(),
            card: counted.what.card(),
            boards,
        });
        Ok(())
    }

    /// The board the next device of this card sits on; none if the card is a board of its own.
    fn next_board(&mut self, card: &'static Card) -> Option<u32> {
        if card.dies_per_board < 2 {
            return None;
        }
        let board = match self.open_board {
            Some(board) if board.card == card.key && board.dies_left > 0 => board,
            _ => {
                let number = self.boards;
                self.boards += 1;
                OpenBoard {
                    card: card.key,
                    number,
                    dies_left: card.dies_per_board,
                }
            }
        };
        self.open_board = Some(OpenBoard {
            dies_left: board.dies_left - 1,
            ..board
        });
        Some(board.number)
    }

    /// Records what is assumed of an entry, each assumption once in the list.
    fn note(&mut self, head: &str, what: &What, options: &Options) {
        let mut notes = Vec::new();
        match what {
            What::Card { card, variant } => {
                if let Some(others) = variant {
                    notes.push(Note::Variant {
                        text: head.to_owned(),
                        taken: card,
                        others: others.clone(),
                    });
                }
                if card.source == Source::Nominal && options.total_bytes.is_none() {
                    notes.push(Note::NominalSize { card });
                }
                if card.integrated && options.free.is_none() {
                    notes.push(Note::SharedMemory { card });
                }
            }
            What::Size {
                bytes,
                decimal_unit,
            } => {
                if options.compute_capability.is_none() {
                    notes.push(Note::AssumedComputeCapability {
                        text: head.to_owned(),
                        capability: DEFAULT_COMPUTE_CAPABILITY,
                    });
                }
                if *decimal_unit {
                    notes.push(Note::DecimalUnit {
                        text: head.to_owned(),
                        bytes: *bytes,
                    });
                }
            }
        }
        for note in notes {
            if !self.list.notes.contains(&note) {
                self.list.notes.push(note);
            }
        }
    }
}

/// What an entry names.
enum What {
    Card {
        card: &'static Card,
        /// The keys of the other cards of that name, when there are any.
        variant: Option<Vec<&'static str>>,
    },
    Size {
        bytes: u64,
        decimal_unit: bool,
    },
}

impl What {
    fn read(text: &str) -> Result<Self, UnknownCard> {
        let unknown = match find_card(text) {
            Ok(found) => {
                return Ok(Self::Card {
                    card: found.card,
                    variant: found.variant.map(|variant| variant.others.clone()),
                });
            }
            Err(unknown) => unknown,
        };
        match parse_bytes(text) {
            Ok(size) if size.has_unit && size.bytes > 0 => Ok(Self::Size {
                bytes: size.bytes,
                decimal_unit: size.decimal_unit,
            }),
            _ => Err(unknown),
        }
    }

    fn card(&self) -> Option<&'static Card> {
        match self {
            Self::Card { card, .. } => Some(card),
            Self::Size { .. } => None,
        }
    }

    fn facts(&self) -> Facts {
        match self {
            Self::Card { card, .. } => Facts::of_card(card),
            Self::Size { bytes, .. } => {
                let name = format!("GPU {}", format_bytes(*bytes));
                Facts::of_size(name, *bytes, DEFAULT_COMPUTE_CAPABILITY)
            }
        }
    }
}

struct Counted {
    count: usize,
    what: What,
}

/// Reads `k80x2`, `2xk80`, `2*24GiB` or `rtx3060`.
fn read_head(head: &str) -> Result<Counted, GpusError> {
    let text = squash(head);
    let before = count_before(&text);
    let after = count_after(&text);
    let unknown = match What::read(&text) {
        Ok(what) => return Ok(Counted { count: 1, what }),
        Err(unknown) => unknown,
    };
    for (digits, rest) in [before, after].into_iter().flatten() {
        if let Ok(what) = What::read(rest) {
            let count = read_count(digits).ok_or_else(|| GpusError::TooMany(shortened(head)))?;
            if count == 0 {
                return Err(GpusError::ZeroCount(shortened(head)));
            }
            return Ok(Counted { count, what });
        }
    }
    if let Some((_, rest)) = before {
        let inner = count_after(rest).map(|(_, name)| What::read(name));
        if matches!(inner, Some(Ok(_))) {
            return Err(GpusError::TwoCounts(shortened(head)));
        }
    }
    // Blame the name without its count. Digits as long as those of `x3090` and `7900xtx`
    // are a model number, not a count.
    let name = before
        .or(after)
        .filter(|(digits, _)| digits.len() < 3)
        .map(|(_, name)| name);
    Err(match name {
        Some(name) => What::read(name).err().unwrap_or(unknown).into(),
        None => UnknownCard {
            name: shortened(head),
            ..unknown
        }
        .into(),
    })
}

/// `2xk80` is (`2`, `k80`).
fn count_before(text: &str) -> Option<(&str, &str)> {
    let (digits, name) = text.split_once(['x', '*'])?;
    (is_count(digits) && !name.is_empty()).then_some((digits, name))
}

/// `k80x2` is (`2`, `k80`).
fn count_after(text: &str) -> Option<(&str, &str)> {
    let (name, digits) = text.rsplit_once(['x', '*'])?;
    (is_count(digits) && !name.is_empty()).then_some((digits, name))
}

fn is_count(digits: &str) -> bool {
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

/// None above what can be meant at all.
fn read_count(digits: &str) -> Option<usize> {
    digits.parse().ok().filter(|count| *count <= MAX_DEVICES)
}
