//! What is taken into account for some figures of the driver's, and then no longer.

use serde::{Deserialize, Serialize};

/// For how many figures: the memory of a process that was released may still be there for so long. `estimate serve`
/// asks the driver a second after something was loaded or released at the soonest and every 15 seconds at the latest,
/// so that this is a quarter of a minute at least.
pub(crate) const FIGURES: u8 = 16;

/// Bytes that count for so many more figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fading {
    /// How much.
    pub bytes: u64,
    /// For how many figures more, the next one included.
    pub figures: u8,
}

/// Oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FadingSum(Vec<Fading>);

impl FadingSum {
    pub fn new(parts: Vec<Fading>) -> FadingSum {
        FadingSum(parts)
    }

    pub fn parts(&self) -> Vec<Fading> {
        self.0.clone()
    }

    pub fn sum(&self) -> u128 {
        let bytes = self.0.iter().map(|part| u128::from(part.bytes));
        bytes.fold(0, u128::saturating_add)
    }

    /// Counts from the next figure on.
    pub fn add(&mut self, bytes: u64) {
        match self.0.last_mut() {
            _ if bytes == 0 => {}
            Some(last) if last.figures == FIGURES => last.bytes = last.bytes.saturating_add(bytes),
            _ => self.0.push(Fading {
                bytes,
                figures: FIGURES,
            }),
        }
    }

    /// One figure later.
    pub fn aged(mut self) -> FadingSum {
        for part in &mut self.0 {
            part.figures = part.figures.saturating_sub(1);
        }
        self.0.retain(|part| part.figures > 0);
        self
    }

    /// It can be no more than `most`.
    pub fn limit(&mut self, most: u128) {
        self.take(self.sum().saturating_sub(most));
    }

    /// Less, as far as there is any: how much less it is.
    pub fn less(&mut self, bytes: u64) -> u64 {
        let was = self.sum();
        self.take(bytes.into());
        u64::try_from(was.saturating_sub(self.sum())).unwrap_or(bytes)
    }

    /// The oldest goes first.
    fn take(&mut self, mut less: u128) {
        for part in &mut self.0 {
            let bytes = part.bytes;
            part.bytes = bytes.saturating_sub(u64::try_from(less).unwrap_or(u64::MAX));
            less = less.saturating_sub(u128::from(bytes.saturating_sub(part.bytes)));
        }
        self.0.retain(|part| part.bytes > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(of: &[(u64, u8)]) -> FadingSum {
        let part = |&(bytes, figures): &(u64, u8)| Fading { bytes, figures };
        FadingSum::new(of.iter().map(part).collect())
    }

    #[test]
    fn the_oldest_goes_first() {
        let mut sum = parts(&[(10, 3), (20, 5), (30, 16)]);
        sum.limit(u128::from(u64::MAX));
        assert_eq!(sum.sum(), 60);
        sum.limit(45);
        assert_eq!(sum, parts(&[(15, 5), (30, 16)]));
        sum.add(0);
        sum.add(u64::MAX);
        assert_eq!(sum, parts(&[(15, 5), (u64::MAX, 16)]));
        sum.add(7);
        assert_eq!(sum.aged(), parts(&[(15, 4), (u64::MAX, 15)]));
        assert_eq!(parts(&[(1, 1), (2, 0)]).aged(), parts(&[]));
        let mut some = parts(&[(10, 3), (20, 5)]);
        assert_eq!((some.less(12), some.less(20), some.less(1)), (12, 18, 0));
        let mut huge = parts(&[(u64::MAX, 1), (u64::MAX, 2)]);
        huge.limit(1);
        assert_eq!(huge, parts(&[(1, 2)]));
        huge.limit(0);
        assert_eq!(huge, parts(&[]));
    }
}
