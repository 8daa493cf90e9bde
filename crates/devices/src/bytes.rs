//! Sizes as people type them, exact to the byte.

/// A size read from text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize {
    /// The size in bytes; a fraction of a byte is dropped.
    pub bytes: u64,
    /// The unit was written out (`GiB`), not left off.
    pub has_unit: bool,
    /// The unit counts in thousands (`GB`), which is rarely what is meant for a card.
    pub decimal_unit: bool,
}

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BytesError {
    /// Not a number, or a unit that is not known.
    #[error("'{0}' is not a size; write bytes, or a number with KiB, MiB, GiB, KB, MB or GB")]
    Malformed(String),
    /// Over 2^64 bytes.
    #[error("'{0}' is more bytes than 64 bits can count")]
    TooLarge(String),
}

const UNITS: [(&str, u64, bool); 9] = [
    ("b", 1, false),
    ("kib", 1 << 10, false),
    ("mib", 1 << 20, false),
    ("gib", 1 << 30, false),
    ("tib", 1 << 40, false),
    ("kb", 1_000, true),
    ("mb", 1_000_000, true),
    ("gb", 1_000_000_000, true),
    ("tb", 1_000_000_000_000, true),
];

/// A decimal number as `digits / 10^scale`, so that nothing is lost to floating point.
pub(crate) struct Decimal {
    pub(crate) digits: u128,
    pub(crate) scale: u32,
}

impl Decimal {
    /// Up to 20 digits before the point and 12 after it.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let all_digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        let sane = (1..=20).contains(&whole.len()) && fraction.len() <= 12;
        if !sane || !all_digits(whole) || !all_digits(fraction) || text.ends_with('.') {
            return None;
        }
        let digits = format!("{whole}{fraction}").parse().ok()?;
        Some(Self {
            digits,
            scale: u32::try_from(fraction.len()).ok()?,
        })
    }

    /// `self * factor`, rounded down.
    pub(crate) fn times(&self, factor: u64) -> Option<u128> {
        let product = self.digits.checked_mul(u128::from(factor))?;
        product.checked_div(10u128.checked_pow(self.scale)?)
    }
}

/// Reads `9GiB`, `11.17 GiB`, `16000mib`, `24GB` or `12884901888`. Upper or lower case is all one.
pub fn parse_bytes(text: &str) -> Result<ByteSize, BytesError> {
    let malformed = || BytesError::Malformed(text.trim().to_owned());
    let lower = text.trim().to_ascii_lowercase();
    let end_of_number = lower
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(lower.len());
    let (number, unit) = lower.split_at(end_of_number);
    let unit = unit.trim();
    let number = Decimal::parse(number).ok_or_else(malformed)?;
    if unit.is_empty() && number.scale > 0 {
        return Err(malformed());
    }
    let (_, factor, decimal_unit) = *UNITS
        .iter()
        .find(|(name, ..)| *name == unit || (unit.is_empty() && *name == "b"))
        .ok_or_else(malformed)?;
    let bytes = number
        .times(factor)
        .and_then(|bytes| u64::try_from(bytes).ok())
        .ok_or_else(|| BytesError::TooLarge(text.trim().to_owned()))?;
    Ok(ByteSize {
        bytes,
        has_unit: !unit.is_empty(),
        decimal_unit,
    })
}

/// Bytes as people read them: `24 GiB` when whole, `11441 MiB` when whole MiB, else bytes.
pub fn format_bytes(bytes: u64) -> String {
    match bytes {
        0 => "0 B".to_owned(),
        _ if bytes.is_multiple_of(1 << 30) => format!("{} GiB", bytes >> 30),
        _ if bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        _ => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_exact() {
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(
                parse_bytes(text).ok().map(|size| size.bytes),
                expected,
                "{text:?}"
            );
        };
        check("0", Some(0));
        check("12884901888", Some(12_884_901_888));
        check("9GiB", Some(9 << 30));
        check(" 9 gib ", Some(9 << 30));
        check("16000MiB", Some(16_000 << 20));
        check("11.5GiB", Some(11_776 << 20));
        check("0.1KiB", Some(102));
        check("24GB", Some(24_000_000_000));
        check("1MB", Some(1_000_000));
        check("512KB", Some(512_000));
        check("18446744073709551615", Some(u64::MAX));
        for bad in [
            "",
            "GiB",
            "-1GiB",
            "1.5",
            "1.GiB",
            ".5GiB",
            "1..5GiB",
            "9G",
            "9 GiB GiB",
            "18446744073709551616",
            "99999999TiB",
            "1e9",
            "1,5GiB",
            "٩GiB",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn sizes_are_shown_in_the_largest_whole_unit() {
        let check = |bytes: u64, expected: &str| assert_eq!(format_bytes(bytes), expected);
        check(0, "0 B");
        check(24 << 30, "24 GiB");
        check(11_441 << 20, "11441 MiB");
        check(24_000_000_000, "24000000000 B");
    }
}
