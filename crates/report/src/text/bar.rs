//! A device's memory as a bar. Every kind has a glyph of its own, so that no colour is needed.

use crate::document::DeviceReport;
use crate::style::{Ink, Style};

/// Kinds of memory in a bar, in order: glyph, colour, name.
pub(crate) const KINDS: [(char, Ink, &str); 6] = [
    ('×', Ink::Faint, "in use already"),
    ('█', Ink::Weights, "weights"),
    ('▓', Ink::Cache, "KV"),
    ('▒', Ink::Compute, "compute"),
    ('░', Ink::Cuda, "CUDA"),
    ('·', Ink::Faint, "free"),
];
/// What is over the device's memory.
const MISSING: (char, Ink, &str) = ('!', Ink::Bad, "missing");

/// Bytes of each kind.
fn parts(device: &DeviceReport) -> [u64; 6] {
    let total = device.total_bytes.unwrap_or(0);
    let free = device.free_bytes.unwrap_or(0).min(total);
    [
        total - free,
        device.weight_bytes(),
        device.all_context_bytes(),
        device.all_compute_bytes(),
        device.cuda_bytes(),
        free.saturating_sub(device.required_bytes),
    ]
}

fn sum(bytes: impl Iterator<Item = u64>) -> u64 {
    bytes.fold(0, u64::saturating_add)
}

/// `cells` wide. A part that is not empty has a cell at least; the largest one makes up for it.
pub(crate) fn bar(device: &DeviceReport, cells: usize, style: &Style) -> String {
    let total = device.total_bytes.unwrap_or(0);
    let mut parts: Vec<_> = KINDS.into_iter().zip(parts(device)).collect();
    let all = sum(parts.iter().map(|(_, bytes)| *bytes));
    let over = all.saturating_sub(total);
    if over > 0 {
        // The parts are cut off at the end of the device's memory, where what is missing begins.
        let mut left = total;
        for (_, bytes) in &mut parts {
            *bytes = left.min(*bytes);
            left -= *bytes;
        }
        parts.push((MISSING, over));
    }
    let bytes: Vec<u64> = parts.iter().map(|(_, bytes)| *bytes).collect();
    let paint = |(((glyph, ink, _), _), n): (&((char, Ink, &str), u64), usize)| {
        style.paint(*ink, &glyph.to_string().repeat(n))
    };
    parts.iter().zip(shares(&bytes, cells)).map(paint).collect()
}

/// Shares `cells` among `parts`.
fn shares(parts: &[u64], cells: usize) -> Vec<usize> {
    let whole: u128 = parts.iter().map(|&b| u128::from(b)).sum();
    let share = |&bytes: &u64| match (u128::from(bytes) * cells as u128).checked_div(whole) {
        Some(n) if bytes > 0 => (n as usize).max(1),
        _ => 0,
    };
    let mut shares: Vec<usize> = parts.iter().map(share).collect();
    let largest = (0..parts.len()).max_by_key(|&i| (parts[i], i)).unwrap_or(0);
    if let Some(n) = shares.get(largest).copied() {
        let others = shares.iter().sum::<usize>() - n;
        shares[largest] = if whole > 0 {
            cells.saturating_sub(others)
        } else {
            0
        };
    }
    shares
}

/// What the glyphs of these devices' bars mean.
pub(crate) fn legend<'a>(
    devices: impl Iterator<Item = &'a DeviceReport>,
    style: &Style,
) -> Vec<String> {
    let mut shown = [false; 6];
    let mut missing = false;
    for device in devices {
        let parts = parts(device);
        for (shown, part) in shown.iter_mut().zip(parts) {
            *shown |= part > 0;
        }
        missing |= sum(parts.into_iter()) > device.total_bytes.unwrap_or(0);
    }
    let kinds = KINDS.into_iter().zip(shown).filter(|(_, shown)| *shown);
    let missing = missing.then_some(MISSING);
    kinds
        .map(|(kind, _)| kind)
        .chain(missing)
        .map(|(glyph, ink, name)| format!("{} {name}", style.paint(ink, &glyph.to_string())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_seen() {
        assert_eq!(shares(&[0, 70, 1, 0, 29], 10), [0, 7, 1, 0, 2]);
        assert_eq!(shares(&[1, 999, 0], 10), [1, 9, 0]);
        assert_eq!(shares(&[0, 0], 10), [0, 0]);
        assert_eq!(shares(&[u64::MAX, u64::MAX], 8), [4, 4]);
    }
}
