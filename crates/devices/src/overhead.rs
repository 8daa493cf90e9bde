//! What CUDA and the driver take on a card, beside llama.cpp's own buffers. Not arithmetic: each
//! figure says whether it was measured on that card or is the default.
//!
//! The default is `96 MiB + 3 MiB x SM count`. A CUDA context keeps memory for every
//! multiprocessor, and the published figures lie on one line: 107 MiB on an RTX 4060 Ti (34 SMs),
//! 256 on an RTX 3090 (82), 392 on an RTX 4090 (128), 555 on an RTX PRO 6000 (188), that is about
//! 3 MiB an SM and 8 more. Modules and cuBLAS come on top: 64 to 76 MiB on the two cards where
//! llama.cpp's whole remainder is known (RTX 4090: 456, K80: 169). The 96 covers both with a few MiB to spare.
//! With no SM count it is the line's value at the largest card of the catalogue with that compute capability, or of all where
//! none has it, and 512 MiB at least (Ollama has long held back 457 MiB for any card). The figures and where they were found are `observations.tsv`; the tests
//! hold the default above each of them. [`Profiles`](crate::Profiles) of a calibration go before these.
//!
//! Every figure is an interval. Plans reckon with its upper end; the lower end of a default is a bare
//! context, a tenth below the line.

use vramfit_ggml::ComputeCapability;

use crate::catalogue::catalogue;

const MIB: u64 = 1 << 20;
/// Kepler's K80, the one card measured to the end, and the least default for any card.
const K80_BYTES: u64 = 169 * MIB;
/// The same where cuBLAS's workspace of 4 MiB, counted apart, and the pool's granules are taken off: 163.5 to 165.9 in
/// the rows of `fixtures/measured/k80.tsv`.
const K80_LOW_BYTES: u64 = 163 * MIB;
/// The smallest context on record, the K80's.
const LEAST_CONTEXT_BYTES: u64 = 93 * MIB;
/// The line's value at 139 SMs: of a card given by its size alone the compute capability is an assumption, too.
const LEAST_UNKNOWN_BYTES: u64 = 512 * MIB;
/// Modules and cuBLAS together, the most on record (see above): more than cuBLAS alone can be.
pub const CUBLAS_BYTES: u64 = 76 * MIB;
/// More than on any chip on record.
const MOST_SMS: u32 = 192;
const K80_CAPABILITY: ComputeCapability = ComputeCapability::new(3, 7);

/// What a figure stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// Measured on that kind of card.
    Measured,
    /// Carried over from other cards.
    Default,
}

/// Memory that is not llama.cpp's to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figure {
    /// How much at most, in bytes.
    pub bytes: u64,
    /// How much at least, in bytes.
    pub low_bytes: u64,
    /// How far to trust it.
    pub basis: Basis,
    /// Where the figure comes from, in a sentence part.
    pub source: &'static str,
}

/// The same as [`overhead`] as it was measured on the catalogue's card `key`; `None` for one that nobody measured.
pub(crate) fn measured(key: &str, capability: ComputeCapability) -> Option<Figure> {
    (key == "k80" && capability == K80_CAPABILITY).then_some(Figure {
        bytes: K80_BYTES,
        low_bytes: K80_LOW_BYTES,
        basis: Basis::Measured,
        source: "K80, driver 470, CUDA 11.4: nvidia-smi minus llama.cpp's buffers",
    })
}

/// CUDA's context, modules and cuBLAS on a device that runs llama.cpp, before any of its buffers: the default for
/// a card of which no more is known.
pub fn overhead(capability: ComputeCapability, sm_count: Option<u32>) -> Figure {
    if capability == K80_CAPABILITY {
        return Figure {
            bytes: K80_BYTES,
            low_bytes: LEAST_CONTEXT_BYTES,
            basis: Basis::Default,
            source: "no profile of this card: 169 MiB at most, as measured on the K80, which has its compute capability",
        };
    }
    let line = |sms: u32| (96 * MIB + 3 * MIB * u64::from(sms)).max(K80_BYTES);
    match sm_count {
        Some(sms) => Figure {
            bytes: line(sms),
            low_bytes: context(capability, sm_count).low_bytes,
            basis: Basis::Default,
            source: "no profile of this card: 96 MiB + 3 MiB an SM at most, at least 169 MiB, fitted over published RTX 3090, 4060 Ti, 4090 and PRO 6000 figures",
        },
        None => Figure {
            bytes: line(most_sms(capability)).max(LEAST_UNKNOWN_BYTES),
            low_bytes: LEAST_CONTEXT_BYTES,
            basis: Basis::Default,
            source: "no profile of this card: 96 MiB + 3 MiB an SM of the largest card known of its compute capability, at least 512 MiB, as the SM count is not known",
        },
    }
}

/// Of the largest card on record with that compute capability, or of all where none has it.
fn most_sms(capability: ComputeCapability) -> u32 {
    let most = |is_alike: &dyn Fn(ComputeCapability) -> bool| {
        let cards = catalogue().iter();
        let alike = cards.filter(|card| is_alike(card.compute_capability));
        alike.filter_map(|card| card.sm_count).max()
    };
    most(&|known| known == capability)
        .or_else(|| most(&|_| true))
        .unwrap_or(MOST_SMS)
}

/// CUDA's context alone, which a program that asks for free memory has made by then: the line through
/// the published figures (see above).
pub fn context(capability: ComputeCapability, sm_count: Option<u32>) -> Figure {
    if capability == K80_CAPABILITY {
        return Figure {
            bytes: LEAST_CONTEXT_BYTES,
            low_bytes: LEAST_CONTEXT_BYTES,
            basis: Basis::Measured,
            source: "K80, driver 470, CUDA 11.4: nvidia-smi of a process with nothing but a context",
        };
    }
    let bytes = 8 * MIB + 3 * MIB * u64::from(sm_count.unwrap_or_else(|| most_sms(capability)));
    Figure {
        bytes,
        low_bytes: bytes / 10 * 9,
        basis: Basis::Default,
        source: "8 MiB + 3 MiB an SM: fitted over published figures",
    }
}

/// What the driver keeps of `total_bytes`, as nvidia-smi counts them, before any process runs:
/// CUDA's total is that much less. Nothing on integrated GPUs, and nothing on Kepler, whose last
/// driver (470) counts it out of the total already.
///
/// A bound over every card in the catalogue whose CUDA total is on record: 1.5% up to Pascal,
/// 400 MiB + 0.5% after it.
pub fn driver_reserve(total_bytes: u64, capability: ComputeCapability, integrated: bool) -> Figure {
    let (bytes, source) = match capability.0 {
        _ if integrated => (0, "integrated: CUDA's total is the total"),
        ..500 => (0, "driver 470 and older count it out of the total"),
        500..700 => (
            total_bytes / 200 * 3,
            "1.5%: above the Pascal cards on record",
        ),
        _ => (
            400 * MIB + total_bytes / 200,
            "400 MiB + 0.5%: above every card on record from Volta on",
        ),
    };
    Figure {
        bytes: bytes.min(total_bytes),
        low_bytes: 0,
        basis: Basis::Default,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::{Card, catalogue, data_rows};
    use crate::lookup::find_card;

    fn of_card(card: &Card) -> Figure {
        let capability = card.compute_capability;
        let measured = measured(card.key, capability);
        measured.unwrap_or_else(|| overhead(capability, card.sm_count))
    }

    const OBSERVATIONS: &str = include_str!("observations.tsv");

    #[test]
    fn no_published_figure_is_above_the_allowance() {
        for row in data_rows(OBSERVATIONS) {
            let fields: Vec<&str> = row.split('\t').collect();
            let &[card, what, mib, source] = fields.as_slice() else {
                panic!("{row}");
            };
            assert!(
                !source.is_empty() && ["context", "all"].contains(&what),
                "{row}"
            );
            let known = find_card(card).unwrap().card;
            let seen = mib.parse::<u64>().unwrap() * MIB;
            // A bare context leaves room for modules and cuBLAS, 64 MiB on the RTX 4090.
            let rest = if what == "context" { 64 * MIB } else { 0 };
            let figure = of_card(known);
            let allowed = figure.bytes;
            let is_whole = what == "all" || figure.basis == Basis::Default;
            assert!(!is_whole || figure.low_bytes <= seen, "{row}");
            assert!(seen + rest <= allowed, "{row}");
            assert!(
                allowed < (seen + rest) * 5 / 4 + 16 * MIB || card == "k80",
                "{row}"
            );
        }
    }

    /// Not knowing the SM count must not come out below what was seen on any card of that compute capability.
    #[test]
    fn without_an_sm_count_no_published_figure_is_above_the_allowance() {
        for row in data_rows(OBSERVATIONS) {
            let fields: Vec<&str> = row.split('\t').collect();
            let known = find_card(fields[0]).unwrap().card;
            let seen = fields[2].parse::<u64>().unwrap() * MIB;
            let rest = if fields[1] == "context" { 64 * MIB } else { 0 };
            let allowed = overhead(known.compute_capability, None).bytes;
            assert!(seen + rest <= allowed, "{row}");
            // nor where the compute capability is a newer one
            assert!(seen + rest <= overhead(ComputeCapability::new(19, 0), None).bytes);
        }
    }

    #[test]
    fn figures_say_how_sure_they_are() {
        let check = |card: &str, mib: u64, basis: Basis| {
            let known = find_card(card).unwrap().card;
            let figure = of_card(known);
            assert_eq!((figure.bytes / MIB, figure.basis), (mib, basis), "{card}");
        };
        check("k80", 169, Basis::Measured);
        check("k40", 169, Basis::Default);
        check("p40", 186, Basis::Default);
        check("rtx3060", 180, Basis::Default);
        check("rtx4090", 480, Basis::Default);
        check("h100", 492, Basis::Default);
        // its SMs are not on record: as many as a GB200 has, 152
        check("b100", 552, Basis::Default);
    }

    #[test]
    fn the_default_reserve_bounds_every_card_on_record() {
        for card in catalogue() {
            let (total, capability) = (card.total_bytes, card.compute_capability);
            let reserve = driver_reserve(total, capability, card.integrated).bytes;
            if let Some(cuda_total) = card.cuda_total_bytes {
                assert!(total - cuda_total <= reserve, "{}", card.key);
            }
        }
        let tiny = driver_reserve(1, ComputeCapability(860), false);
        assert_eq!(tiny.bytes, 1);
    }
}
