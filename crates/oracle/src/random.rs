//! A seeded generator (splitmix64), so that a grid is the same on every machine and for ever.

/// The state of one stream.
pub struct Random(u64);

impl Random {
    /// A stream that depends on the seed and on a name only.
    pub fn new(seed: u64, name: &str) -> Self {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
        });
        Self(seed ^ hash)
    }

    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n` (0 for n = 0).
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.next() % n }
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of the items, each as likely as the number beside it says; the first where the weights are all zero.
    pub fn weighted<T: Copy>(&mut self, items: &[(T, u64)]) -> T {
        let mut at = self.below(items.iter().map(|item| item.1).sum());
        for &(item, weight) in items {
            if at < weight {
                return item;
            }
            at -= weight;
        }
        items[0].0
    }

    /// One of the items, each as likely. `items` is never empty here: they are literals.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_fixed() {
        let mut random = Random(0);
        assert_eq!(random.next(), 0xe220_a839_7b1d_cdaf); // first value of splitmix64(0)
        assert_ne!(Random::new(1, "a").next(), Random::new(1, "b").next());
    }
}
