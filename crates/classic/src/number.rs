//! Numbers for formulas: `u64` that stays at its largest value instead of overflowing, and is 0 when
//! divided by 0.

use std::ops::{Add, Div, Mul};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct N(pub u64);

macro_rules! operator {
    ($trait:ident, $name:ident, $apply:expr) => {
        impl $trait for N {
            type Output = N;
            fn $name(self, other: N) -> N {
                let apply: fn(u64, u64) -> u64 = $apply;
                N(apply(self.0, other.0))
            }
        }

        impl $trait<u64> for N {
            type Output = N;
            fn $name(self, other: u64) -> N {
                self.$name(N(other))
            }
        }

        impl $trait<N> for u64 {
            type Output = N;
            fn $name(self, other: N) -> N {
                N(self).$name(other)
            }
        }
    };
}

operator!(Add, add, u64::saturating_add);
operator!(Mul, mul, u64::saturating_mul);
operator!(Div, div, |a, b| a.checked_div(b).unwrap_or(0));
