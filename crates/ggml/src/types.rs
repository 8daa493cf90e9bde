//! Tensor element types of ggml (llama.cpp v0.5.0, `ggml.h` and the block structs of `ggml-common.h`).

use std::fmt;

macro_rules! types {
    ($($(#[$doc:meta])* $variant:ident = $id:literal, $name:literal, $block:literal, $bytes:literal;)*) => {
        /// An element type: `F32`, `F16`, the integers and every quantisation of llama.cpp v0.5.0.
        ///
        /// Data comes in blocks: [`block_size`](Self::block_size) elements take
        /// [`type_size`](Self::type_size) bytes.
        #[allow(non_camel_case_types, missing_docs)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum Type { $($(#[$doc])* $variant = $id,)* }

        impl Type {
            /// Every type, by ascending id.
            pub const ALL: &'static [Type] = &[$(Type::$variant,)*];

            /// The type with this `ggml_type` id, as stored in a GGUF tensor info. `None` for ids
            /// that were removed (4, 5, 31-33, 36-38) or that v0.5.0 does not know.
            pub const fn from_id(id: u32) -> Option<Type> {
                match id { $($id => Some(Type::$variant),)* _ => None }
            }

            /// ggml's own name, e.g. `q4_K`.
            pub const fn name(self) -> &'static str {
                match self { $(Type::$variant => $name,)* }
            }

            /// Elements a block.
            #[inline]
            pub const fn block_size(self) -> u64 {
                match self { $(Type::$variant => $block,)* }
            }

            /// Bytes a block.
            #[inline]
            pub const fn type_size(self) -> u64 {
                match self { $(Type::$variant => $bytes,)* }
            }
        }
    };
}

types! {
    F32 = 0, "f32", 1, 4;
    F16 = 1, "f16", 1, 2;
    Q4_0 = 2, "q4_0", 32, 18;
    Q4_1 = 3, "q4_1", 32, 20;
    Q5_0 = 6, "q5_0", 32, 22;
    Q5_1 = 7, "q5_1", 32, 24;
    Q8_0 = 8, "q8_0", 32, 34;
    Q8_1 = 9, "q8_1", 32, 36;
    Q2_K = 10, "q2_K", 256, 84;
    Q3_K = 11, "q3_K", 256, 110;
    Q4_K = 12, "q4_K", 256, 144;
    Q5_K = 13, "q5_K", 256, 176;
    Q6_K = 14, "q6_K", 256, 210;
    Q8_K = 15, "q8_K", 256, 292;
    IQ2_XXS = 16, "iq2_xxs", 256, 66;
    IQ2_XS = 17, "iq2_xs", 256, 74;
    IQ3_XXS = 18, "iq3_xxs", 256, 98;
    IQ1_S = 19, "iq1_s", 256, 50;
    IQ4_NL = 20, "iq4_nl", 32, 18;
    IQ3_S = 21, "iq3_s", 256, 110;
    IQ2_S = 22, "iq2_s", 256, 82;
    IQ4_XS = 23, "iq4_xs", 256, 136;
    I8 = 24, "i8", 1, 1;
    I16 = 25, "i16", 1, 2;
    I32 = 26, "i32", 1, 4;
    I64 = 27, "i64", 1, 8;
    F64 = 28, "f64", 1, 8;
    IQ1_M = 29, "iq1_m", 256, 56;
    BF16 = 30, "bf16", 1, 2;
    TQ1_0 = 34, "tq1_0", 256, 54;
    TQ2_0 = 35, "tq2_0", 256, 66;
    MXFP4 = 39, "mxfp4", 32, 17;
    NVFP4 = 40, "nvfp4", 64, 36;
    Q1_0 = 41, "q1_0", 128, 18;
    Q2_0 = 42, "q2_0", 64, 18;
}

impl Type {
    /// `ggml_is_quantized`: a block holds more than one element.
    #[inline]
    pub const fn is_quantized(self) -> bool {
        self.block_size() > 1
    }

    /// `ggml_row_size`: bytes of `n` elements in a row. A part of a block counts by its share, as
    /// heads of 80 values in blocks of 32 do.
    #[inline]
    pub const fn row_size(self, n: u64) -> u64 {
        let (block, size) = (self.block_size(), self.type_size());
        (n / block)
            .saturating_mul(size)
            .saturating_add(n % block * size / block)
    }

    /// The type whose [`name`](Self::name) is `name`, ignoring case.
    pub fn from_name(name: &str) -> Option<Type> {
        Self::ALL
            .iter()
            .copied()
            .find(|t| t.name().eq_ignore_ascii_case(name))
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_round_trip() {
        for &t in Type::ALL {
            assert_eq!(Type::from_id(t as u32), Some(t));
            assert_eq!(Type::from_name(t.name()), Some(t));
        }
        assert_eq!(Type::from_id(4), None);
        assert_eq!(Type::from_id(43), None);
    }

    #[test]
    fn row_sizes_match_the_block_structs() {
        assert_eq!(Type::Q4_K.row_size(4096), 4096 / 256 * 144);
        assert_eq!(Type::Q8_0.row_size(64), 68);
        assert_eq!(Type::F16.row_size(3), 6);
        assert_eq!(Type::Q5_0.row_size(80), 55);
    }
}
