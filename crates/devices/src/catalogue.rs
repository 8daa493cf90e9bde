//! The catalogue of NVIDIA cards: `catalogue.tsv`, read once.

use std::fmt;
use std::sync::OnceLock;

use crate::facts::Facts;
use crate::lookup::normalise;
use crate::support::{flash_attention, public_builds};
use crate::{FlashAttention, PublicBuilds};
use vramfit_ggml::ComputeCapability;
use vramfit_plan::Device;

const CATALOGUE: &str = include_str!("catalogue.tsv");
const MIB: u64 = 1 << 20;

/// The generation of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "NVIDIA's own names")]
pub enum Architecture {
    Kepler,
    Maxwell,
    Pascal,
    Volta,
    Turing,
    Ampere,
    Ada,
    Hopper,
    Blackwell,
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kepler => "Kepler",
            Self::Maxwell => "Maxwell",
            Self::Pascal => "Pascal",
            Self::Volta => "Volta",
            Self::Turing => "Turing",
            Self::Ampere => "Ampere",
            Self::Ada => "Ada",
            Self::Hopper => "Hopper",
            Self::Blackwell => "Blackwell",
        })
    }
}

/// Where a card's total memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `memory.total` off a published nvidia-smi print of that card.
    NvidiaSmi,
    /// The total CUDA reports, as llama.cpp prints it; integrated GPUs, mostly.
    Cuda,
    /// The size on the box: an upper bound, the driver reports that or a little less.
    Nominal,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::NvidiaSmi => "nvidia-smi",
            Self::Cuda => "cuda",
            Self::Nominal => "nominal",
        })
    }
}

/// One kind of device in the catalogue.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// The name `--gpus` prints and takes, unique: `rtx4060ti-16g`.
    pub key: &'static str,
    /// The driver's name, with the size added where the driver gives two cards the same name.
    pub name: &'static str,
    /// Other spellings, already normalised.
    pub aliases: Vec<&'static str>,
    /// Its generation.
    pub architecture: Architecture,
    /// All memory of one device in bytes, as `nvidia-smi` prints `memory.total`.
    pub total_bytes: u64,
    /// The smallest total CUDA has been seen to report for it on Linux, in bytes; the difference
    /// to `total_bytes` is the driver's own.
    pub cuda_total_bytes: Option<u64>,
    /// Which instructions it has.
    pub compute_capability: ComputeCapability,
    /// Streaming multiprocessors of one device, when known.
    pub sm_count: Option<u32>,
    /// Devices on one physical board: 2 for a K80, 4 for an A16, else 1.
    pub dies_per_board: u32,
    /// It shares the system's memory.
    pub integrated: bool,
    /// Where `total_bytes` comes from.
    pub source: Source,
}

impl Card {
    /// One such device with all its memory free. Its total is CUDA's where that is on record; else
    /// it is the driver's, and what the driver keeps of it is part of the overhead.
    pub fn device(&self) -> Device {
        Facts::of_card(self).device()
    }

    /// The card as the cells of a table, under [`COLUMNS`].
    pub fn row(&self) -> [String; COLUMNS.len()] {
        let attention = match flash_attention(self.compute_capability) {
            FlashAttention::MatrixCores => "matrix cores",
            FlashAttention::VoltaMatrixCores => "matrix cores (Volta)",
            FlashAttention::Tile => "tile",
            FlashAttention::TileF32 => "tile (f32)",
            FlashAttention::None => "none",
        };
        let builds = match public_builds(self.compute_capability) {
            PublicBuilds::Cuda12And13 => "CUDA 12, 13",
            PublicBuilds::Cuda12 => "CUDA 12",
            PublicBuilds::None => "none",
        };
        [
            self.key.to_owned(),
            self.name.to_owned(),
            (self.total_bytes / MIB).to_string(),
            self.compute_capability.to_string(),
            self.sm_count.map_or("-".to_owned(), |sms| sms.to_string()),
            self.dies_per_board.to_string(),
            self.architecture.to_string(),
            attention.to_owned(),
            builds.to_owned(),
            self.source.to_string(),
        ]
    }
}

/// The headings over [`Card::row`].
pub const COLUMNS: [&str; 10] = [
    "gpu",
    "name",
    "MiB",
    "cc",
    "SMs",
    "per board",
    "generation",
    "flash attention",
    "public builds",
    "size from",
];

/// Every card, sorted by key.
pub fn catalogue() -> &'static [Card] {
    static CARDS: OnceLock<Vec<Card>> = OnceLock::new();
    // A row that cannot be read is left out here and fails the test below.
    CARDS.get_or_init(|| {
        data_rows(CATALOGUE)
            .filter_map(|row| parse_row(row).ok())
            .collect()
    })
}

/// The cards with `filter` in their key, name, aliases or generation, in catalogue order; an empty
/// filter gives them all. Spelled as freely as in `--gpus`.
pub fn list_cards(filter: &str) -> Vec<&'static Card> {
    let wanted = normalise(filter);
    let matches = |card: &&Card| {
        let generation = card.architecture.to_string();
        std::iter::once(card.key)
            .chain([card.name, generation.as_str()])
            .any(|text| normalise(text).contains(&wanted))
            || card.aliases.iter().any(|alias| alias.contains(&wanted))
    };
    catalogue().iter().filter(matches).collect()
}

/// The lines of a table of ours: comments, blank lines and the heading left out.
pub(crate) fn data_rows(table: &'static str) -> impl Iterator<Item = &'static str> {
    table
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .skip(1)
}

fn parse_row(row: &'static str) -> Result<Card, String> {
    let wrong = |what: &str| format!("{what} in {row:?}");
    let fields: Vec<&'static str> = row.split('\t').collect();
    let &[
        key,
        name,
        aliases,
        architecture,
        total_mib,
        cuda_mib,
        capability,
        sms,
        dies,
        kind,
        source,
    ] = fields.as_slice()
    else {
        return Err(wrong("not eleven fields"));
    };
    let optional = |text: &'static str| if text == "-" { None } else { Some(text) };
    let number = |text: &str| text.parse::<u32>().map_err(|_| wrong("a number"));
    Ok(Card {
        key,
        name,
        aliases: optional(aliases)
            .map(|list| list.split(',').collect())
            .unwrap_or_default(),
        architecture: match architecture {
            "Kepler" => Architecture::Kepler,
            "Maxwell" => Architecture::Maxwell,
            "Pascal" => Architecture::Pascal,
            "Volta" => Architecture::Volta,
            "Turing" => Architecture::Turing,
            "Ampere" => Architecture::Ampere,
            "Ada" => Architecture::Ada,
            "Hopper" => Architecture::Hopper,
            "Blackwell" => Architecture::Blackwell,
            _ => return Err(wrong("the architecture")),
        },
        total_bytes: u64::from(number(total_mib)?) * MIB,
        cuda_total_bytes: match optional(cuda_mib) {
            Some(mib) => Some(u64::from(number(mib)?) * MIB),
            None => None,
        },
        compute_capability: capability.parse().map_err(|_| wrong("cc"))?,
        sm_count: optional(sms).map(number).transpose()?,
        dies_per_board: number(dies)?,
        integrated: match kind {
            "discrete" => false,
            "integrated" => true,
            _ => return Err(wrong("the kind")),
        },
        source: match source {
            "nvidia-smi" => Source::NvidiaSmi,
            "cuda" => Source::Cuda,
            "nominal" => Source::Nominal,
            _ => return Err(wrong("the source")),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Which compute capabilities each generation has.
    fn capabilities(architecture: Architecture) -> &'static [u32] {
        match architecture {
            Architecture::Kepler => &[300, 350, 370],
            Architecture::Maxwell => &[500, 520, 530],
            Architecture::Pascal => &[600, 610, 620],
            Architecture::Volta => &[700, 720],
            Architecture::Turing => &[750],
            Architecture::Ampere => &[800, 860, 870],
            Architecture::Ada => &[890],
            Architecture::Hopper => &[900],
            Architecture::Blackwell => &[1000, 1030, 1100, 1200, 1210],
        }
    }

    #[test]
    fn every_row_is_sound() {
        let mut spellings: BTreeMap<String, &str> = BTreeMap::new();
        for row in data_rows(CATALOGUE) {
            let card = parse_row(row).unwrap();
            let gib = card.total_bytes >> 20;
            assert!((1024..400 * 1024).contains(&gib), "{row}");
            assert!(
                card.cuda_total_bytes
                    .is_none_or(|cuda| cuda <= card.total_bytes),
                "{row}"
            );
            assert!(
                capabilities(card.architecture).contains(&card.compute_capability.0),
                "{row}"
            );
            assert!(
                card.sm_count.is_none_or(|sms| (1..=200).contains(&sms)),
                "{row}"
            );
            assert!([1, 2, 4].contains(&card.dies_per_board), "{row}");
            if card.source == Source::Nominal {
                assert_eq!(gib % 512, 0, "a nominal size is a round one: {row}");
            }
            for alias in &card.aliases {
                assert_eq!(normalise(alias), *alias, "{row}");
            }
            // the quick look-up relies on it
            assert_eq!(
                normalise(card.key),
                card.key.replace('-', ""),
                "{}",
                card.key
            );
            let all = std::iter::once(normalise(card.key))
                .chain(card.aliases.iter().map(|alias| (*alias).to_owned()));
            for spelling in all {
                let earlier = spellings.insert(spelling.clone(), card.key);
                assert_eq!(earlier, None, "{spelling} twice");
            }
        }
    }

    #[test]
    fn the_catalogue_is_whole_and_sorted() {
        let keys: Vec<&str> = catalogue().iter().map(|card| card.key).collect();
        assert_eq!(keys.len(), data_rows(CATALOGUE).count());
        assert!(keys.is_sorted());
        assert!(keys.len() >= 200);
    }

    #[test]
    fn cards_are_what_the_driver_says() {
        let check = |key: &str, mib: u64, capability: &str, sms: u32, dies: u32| {
            let card = catalogue().iter().find(|card| card.key == key).unwrap();
            let seen = (
                card.total_bytes >> 20,
                card.compute_capability.to_string(),
                card.sm_count,
                card.dies_per_board,
            );
            assert_eq!(seen, (mib, capability.to_owned(), Some(sms), dies), "{key}");
        };
        check("k80", 11_441, "3.7", 13, 2);
        check("m60", 8_192, "5.2", 16, 2);
        check("p40", 23_040, "6.1", 30, 1);
        check("v100-32g", 32_768, "7.0", 80, 1);
        check("t4", 15_360, "7.5", 40, 1);
        check("a100-80g", 81_920, "8.0", 108, 1);
        check("a16", 15_356, "8.6", 10, 4);
        check("rtx3090", 24_576, "8.6", 82, 1);
        check("rtx4090", 24_564, "8.9", 128, 1);
        check("h100-sxm", 81_559, "9.0", 132, 1);
        check("b200", 183_359, "10.0", 148, 1);
        check("rtx5090", 32_607, "12.0", 170, 1);
        check("gb10", 124_610, "12.1", 48, 1);
    }

    #[test]
    fn the_listing_is_filtered_by_any_part() {
        let check = |filter: &str, expected: &[&str]| {
            let keys: Vec<&str> = list_cards(filter).iter().map(|card| card.key).collect();
            assert_eq!(keys, expected, "{filter:?}");
        };
        check("K80", &["k80"]);
        check("dgx spark", &["gb10"]);
        check(
            "RTX 4090",
            &["rtx4090", "rtx4090-48g", "rtx4090d", "rtx4090laptop"],
        );
        check(
            "volta",
            &[
                "agxxavier-32g",
                "agxxavier-64g",
                "gv100",
                "titanv",
                "v100-16g",
                "v100-32g",
                "v100s",
                "xaviernx-16g",
                "xaviernx-8g",
            ],
        );
        check("radeon", &[]);
        assert_eq!(list_cards("").len(), catalogue().len());
        assert!(
            list_cards("")
                .iter()
                .all(|card| card.row().iter().all(|cell| !cell.is_empty()))
        );
    }
}
