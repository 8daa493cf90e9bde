//! Sizes and lists of layers in words.

const MIB: f64 = (1u64 << 20) as f64;
const GIB: u64 = 1 << 30;

/// Bytes in MiB with so many decimals.
pub(crate) fn mib(bytes: u64, decimals: usize) -> String {
    format!("{:.decimals$}", bytes as f64 / MIB)
}

/// The same, below 0 too.
pub(crate) fn signed_mib(bytes: i64, decimals: usize) -> String {
    let sign = if bytes < 0 { "-" } else { "" };
    format!("{sign}{}", mib(bytes.unsigned_abs(), decimals))
}

/// Bytes as in a sentence: `3.02 GiB`, `812.50 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    if bytes >= GIB {
        format!("{:.2} GiB", bytes as f64 / GIB as f64)
    } else {
        format!("{} MiB", mib(bytes, 2))
    }
}

/// A count as in a sentence: `11.77 B`.
pub(crate) fn count(n: u64) -> String {
    match n {
        1_000_000_000.. => format!("{:.2} B", n as f64 / 1e9),
        1_000_000.. => format!("{:.0} M", n as f64 / 1e6),
        _ => n.to_string(),
    }
}

/// Layers as ranges, the output layer by name: `layers 0-23, 30, output`.
pub(crate) fn layers(layers: &[u64], n_layer: u64) -> String {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for &il in layers.iter().filter(|&&il| il < n_layer) {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == il => *last = il,
            _ => ranges.push((il, il)),
        }
    }
    let mut parts: Vec<String> = ranges
        .iter()
        .map(|&(first, last)| match last - first {
            0 => first.to_string(),
            _ => format!("{first}-{last}"),
        })
        .collect();
    let word = match ranges.as_slice() {
        [] => "",
        [(first, last)] if first == last => "layer ",
        _ => "layers ",
    };
    if layers.contains(&n_layer) {
        parts.push("output".to_string());
    }
    format!("{word}{}", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_shown_as_ranges() {
        let check = |given: &[u64], expected: &str| assert_eq!(layers(given, 8), expected);
        check(&[], "");
        check(&[8], "output");
        check(&[3], "layer 3");
        check(&[0, 1, 2, 3, 4, 5, 6, 7, 8], "layers 0-7, output");
        check(&[0, 1, 4, 6, 7], "layers 0-1, 4, 6-7");
    }

    #[test]
    fn sizes_have_the_unit_that_reads_best() {
        let check = |bytes: u64, expected: &str| assert_eq!(size(bytes), expected);
        check(0, "0.00 MiB");
        check(812 * 1024 * 1024 + 512 * 1024, "812.50 MiB");
        check(3 << 30, "3.00 GiB");
        assert_eq!(signed_mib(-(3 << 20), 1), "-3.0");
        assert_eq!(count(11_765_788_416), "11.77 B");
        assert_eq!(count(494_000_000), "494 M");
    }
}
