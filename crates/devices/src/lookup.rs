//! From what people call a card to its row.

use std::sync::OnceLock;

use crate::catalogue::{Card, catalogue, data_rows};

const VARIANTS: &str = include_str!("variants.tsv");
/// Names longer than this are not compared with the catalogue.
const LONGEST_COMPARED: usize = 48;

/// A bare name that several cards go by, and the one it is taken for.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// The bare name, normalised: `a100`.
    pub name: &'static str,
    /// The key of the card it is taken for: `a100-80g`.
    pub taken: &'static str,
    /// The keys of the others: `a100-40g`.
    pub others: Vec<&'static str>,
}

/// A card found by name.
#[derive(Clone, Copy, Debug)]
pub struct CardMatch {
    /// The card.
    pub card: &'static Card,
    /// Set when the name alone did not say which card, and this one was taken.
    pub variant: Option<&'static Variant>,
}

/// No card goes by that name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown GPU '{name}'{}", self.hint())]
pub struct UnknownCard {
    /// The name as given.
    pub name: String,
    /// Up to three keys that are spelled most like it, nearest first, then by name.
    pub closest: Vec<&'static str>,
}

impl UnknownCard {
    fn hint(&self) -> String {
        // no card has so short a number for a name
        if self.name.len() < 4 && self.name.parse::<f64>().is_ok() {
            return format!("; a card by its size has a unit: {}GiB", self.name);
        }
        let size = self.name.trim_end_matches(['g', 'G', 'm', 'M']);
        if size.len() < self.name.len() && size.parse::<f64>().is_ok() {
            let unit = match self.name.ends_with(['g', 'G']) {
                true => "GiB",
                false => "MiB",
            };
            return format!("; a card by its size is written {size}{unit}");
        }
        match self.closest.split_last() {
            None => "; `estimate gpus` lists the names, and any card can be given by its size, as in 24GiB:cc=8.6"
                .to_owned(),
            Some((only, [])) => format!("; did you mean {only}?"),
            Some((last, others)) => format!("; did you mean {} or {last}?", others.join(", ")),
        }
    }
}

/// Finds a card by its key, an alias, the driver's name or a bare name of several cards, however
/// it is cased, spaced, hyphenated or prefixed with NVIDIA, GeForce or Tesla.
pub fn find_card(name: &str) -> Result<CardMatch, UnknownCard> {
    let wanted = normalise(name);
    let found = by_short_name(&wanted).or_else(|| by_any_name(&wanted));
    if let Some(found) = found {
        return Ok(found);
    }
    Err(UnknownCard {
        name: shortened(name),
        closest: closest(&wanted),
    })
}

/// Whether `wanted` is `spelling`, with or without the series before the number. Hyphens of
/// `spelling` do not count.
fn is_spelled(wanted: &str, spelling: &str) -> bool {
    let same = |spelling: &str| spelling.chars().filter(|&c| c != '-').eq(wanted.chars());
    let series = ["rtx", "gtx"]
        .into_iter()
        .filter_map(|s| spelling.strip_prefix(s));
    same(spelling)
        || (wanted.starts_with(|c: char| c.is_ascii_digit()) && series.into_iter().any(same))
}

/// By key, alias or bare name: what people type, found without normalising the whole catalogue.
fn by_short_name(wanted: &str) -> Option<CardMatch> {
    let spelled = |text: &&str| is_spelled(wanted, text);
    let named = |card: &&Card| spelled(&card.key) || card.aliases.iter().any(&spelled);
    if let Some(card) = catalogue().iter().find(named) {
        return Some(CardMatch {
            card,
            variant: None,
        });
    }
    let variant = variants().iter().find(|variant| spelled(&variant.name))?;
    let card = catalogue().iter().find(|card| card.key == variant.taken)?;
    Some(CardMatch {
        card,
        variant: Some(variant),
    })
}

/// By the driver's name as well.
fn by_any_name(wanted: &str) -> Option<CardMatch> {
    let spelling = spellings()
        .iter()
        .find(|entry| is_spelled(wanted, &entry.text))?;
    Some(CardMatch {
        card: spelling.card,
        variant: spelling.variant,
    })
}

/// One normalised spelling of one card.
struct Spelling {
    text: String,
    card: &'static Card,
    variant: Option<&'static Variant>,
}

/// All spellings that find a card: keys, aliases and driver's names, then bare names.
fn spellings() -> &'static [Spelling] {
    static SPELLINGS: OnceLock<Vec<Spelling>> = OnceLock::new();
    SPELLINGS.get_or_init(|| {
        let own = catalogue().iter().flat_map(|card| {
            [card.key, card.name]
                .into_iter()
                .chain(card.aliases.iter().copied())
                .map(move |text| Spelling {
                    text: normalise(text),
                    card,
                    variant: None,
                })
        });
        let bare = variants().iter().filter_map(|variant| {
            let card = catalogue().iter().find(|card| card.key == variant.taken)?;
            Some(Spelling {
                text: variant.name.to_owned(),
                card,
                variant: Some(variant),
            })
        });
        own.chain(bare).collect()
    })
}

fn variants() -> &'static [Variant] {
    static ALL: OnceLock<Vec<Variant>> = OnceLock::new();
    ALL.get_or_init(|| data_rows(VARIANTS).filter_map(parse_variant).collect())
}

fn parse_variant(row: &'static str) -> Option<Variant> {
    let mut fields = row.split('\t');
    Some(Variant {
        name: fields.next()?,
        taken: fields.next()?,
        others: fields.next()?.split(',').collect(),
    })
}

/// Lower case without spaces, `-`, `_`, brackets, maker's and series' words; `80gb` becomes `80g`.
pub(crate) fn normalise(name: &str) -> String {
    const NOISE: [&str; 9] = [
        "nvidia",
        "geforce",
        "tesla",
        "generation",
        "edition",
        "blackwell",
        "graphics",
        "gpu",
        "modified",
    ];
    let mut text = squash(name);
    text.retain(|c| c.is_alphanumeric() || c == '.' || c == '*');
    // A generation's own name must survive as a filter: only drop a word that leaves something.
    for noise in NOISE {
        if text != noise {
            text = text.replace(noise, "");
        }
    }
    shorten_units(&text)
}

/// Lower case without spaces, `-` and `_`.
pub(crate) fn squash(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_whitespace() && !matches!(c, '-' | '_' | '\u{2010}'..='\u{2015}'))
        .map(|c| if c == '×' { 'x' } else { c })
        .flat_map(char::to_lowercase)
        .collect()
}

/// `80gb` and `80gib` become `80g`; `gb200` stays.
fn shorten_units(text: &str) -> String {
    let mut short = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let after_digit = short.ends_with(|c: char| c.is_ascii_digit());
        let unit = ["gib", "gb"]
            .into_iter()
            .find(|unit| rest.starts_with(unit));
        match unit {
            Some(unit) if after_digit => {
                short.push('g');
                rest = rest.strip_prefix(unit).unwrap_or_default();
            }
            _ => {
                short.push(next);
                rest = rest.strip_prefix(next).unwrap_or_default();
            }
        }
    }
    short
}

/// The keys and bare names spelled most like `wanted`: at most three, all equally far, none farther
/// than a third of its length. A name that goes on where `wanted` ends is one step away.
fn closest(wanted: &str) -> Vec<&'static str> {
    let length = wanted.chars().count();
    if length == 0 || length > LONGEST_COMPARED {
        return Vec::new();
    }
    let farthest = (length / 3).clamp(1, 4);
    let mut nearest: Vec<(usize, usize, &'static str)> = spellings()
        .iter()
        .map(|spelling| {
            let goes_on = length >= 3 && spelling.text.starts_with(wanted);
            let edits = strsim::damerau_levenshtein(wanted, &spelling.text);
            let distance = if goes_on { 1 } else { edits };
            let shown = spelling
                .variant
                .map_or(spelling.card.key, |variant| variant.name);
            (distance, spelling.text.len().abs_diff(wanted.len()), shown)
        })
        .filter(|(distance, ..)| *distance <= farthest)
        .collect();
    nearest.sort_unstable();
    let best = nearest.first().map_or(0, |(distance, ..)| *distance);
    let mut names: Vec<&'static str> = Vec::new();
    for (distance, _, name) in nearest {
        if distance == best && names.len() < 3 && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// A name fit for a message.
pub(crate) fn shortened(text: &str) -> String {
    let text = text.trim();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_however_they_are_written() {
        let check = |name: &str, expected: &str| {
            let found = find_card(name).map(|found| found.card.key);
            assert_eq!(
                found.unwrap_or_else(|error| panic!("{error}")),
                expected,
                "{name:?}"
            );
        };
        check("k80", "k80");
        check("Tesla K80", "k80");
        check("NVIDIA Tesla K80", "k80");
        check("RTX 4090", "rtx4090");
        check("rtx-4090", "rtx4090");
        check("RTX_4090", "rtx4090");
        check("geforce rtx 4090", "rtx4090");
        check("NVIDIA GeForce RTX 4090", "rtx4090");
        check("4090", "rtx4090");
        check("1080 ti", "gtx1080ti");
        check("NVIDIA GeForce RTX 4070 Ti SUPER", "rtx4070tisuper");
        check("NVIDIA GeForce RTX 3060 Laptop GPU", "rtx3060laptop");
        check("RTX 4060 Ti 16GB", "rtx4060ti-16g");
        check("NVIDIA H100 80GB HBM3", "h100-sxm");
        check("H100 PCIe", "h100-pcie");
        check("a100-80g", "a100-80g");
        check("NVIDIA A100-SXM4-40GB", "a100-40g");
        check("NVIDIA A100 80GB PCIe", "a100-80g");
        check("Tesla V100-SXM2-32GB", "v100-32g");
        check("Tesla P100-PCIE-16GB", "p100-16g");
        check("GeForce GTX TITAN X", "titanx-maxwell");
        check("NVIDIA TITAN X (Pascal)", "titanx-pascal");
        check("NVIDIA GH200 480GB", "gh200-96g");
        check("GB200", "gb200");
        check("NVIDIA RTX 6000 Ada Generation", "rtx6000ada");
        check(
            "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
            "rtxpro6000",
        );
        check(
            "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
            "rtxpro6000",
        );
        check("DGX Spark", "gb10");
        check("Jetson AGX Orin 64GB", "agxorin-64g");
    }

    #[test]
    fn every_key_name_and_alias_finds_its_own_card() {
        for card in catalogue() {
            for spelling in [card.key, card.name]
                .into_iter()
                .chain(card.aliases.iter().copied())
            {
                let found = find_card(spelling).unwrap();
                assert_eq!(found.card.key, card.key, "{spelling:?}");
                assert_eq!(found.variant, None, "{spelling:?}");
            }
        }
    }

    #[test]
    fn bare_names_are_sound_and_say_what_they_stand_for() {
        assert_eq!(variants().len(), data_rows(VARIANTS).count());
        assert!(variants().is_sorted_by_key(|variant| variant.name));
        let known = |key: &str| catalogue().iter().any(|card| card.key == key);
        for variant in variants() {
            assert_eq!(normalise(variant.name), variant.name);
            assert!(known(variant.taken), "{variant:?}");
            assert!(variant.others.iter().all(|key| known(key)), "{variant:?}");
            let found = find_card(variant.name).unwrap();
            assert_eq!(found.variant, Some(variant), "a card has that very name");
        }
    }

    #[test]
    fn unknown_names_bring_the_closest() {
        let check = |name: &str, expected: &str| {
            assert_eq!(find_card(name).unwrap_err().to_string(), expected);
        };
        check(
            "rtx306",
            "unknown GPU 'rtx306'; did you mean rtx3060, rtx3060-8g or rtx3060ti?",
        );
        check("k08", "unknown GPU 'k08'; did you mean k80?");
        check(
            "24",
            "unknown GPU '24'; a card by its size has a unit: 24GiB",
        );
        check(
            "rtx5090tii",
            "unknown GPU 'rtx5090tii'; did you mean rtx3090ti, rtx5060ti or rtx5070ti?",
        );
        check(
            "radeon 7900xtx",
            "unknown GPU 'radeon 7900xtx'; `estimate gpus` lists the names, and any card can be given by its size, as in 24GiB:cc=8.6",
        );
    }
}
