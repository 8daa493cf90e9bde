//! What a convolution in one operation holds (`conv2d.cu`).

use super::{Cuda, DP4A, Held, PASCAL, TURING, count};
use crate::graph::Tensor;
use crate::{Graph, Type};

/// Places and channels that a tile computes.
const TILE: u64 = 64;

impl Cuda {
    /// CONV_2D of an f16 kernel: the input as f16 with its padding, and where few tiles would leave multiprocessors
    /// idle the sums of parts.
    pub(super) fn conv_2d_pool(&self, graph: &Graph, t: &Tensor) -> Held {
        const SMALL_SUM: u64 = 64;
        const SMALL_MAP: u64 = 512;
        let &[kernel, input, ..] = t.sources() else {
            return Held::NOTHING;
        };
        let kernel = &graph[kernel];
        let [kw, kh, c_in, c_out] = kernel.ne.map(count);
        let [iw, ih, _, n] = graph[input].ne.map(count);
        let [ow, oh, ..] = t.ne.map(count);
        let summed = kw.saturating_mul(kh).saturating_mul(c_in);
        let places = ow.saturating_mul(oh);
        let cc = self.compute_capability;
        let is_pointwise = [kw, kh] == [1, 1] && [iw, ih] == [ow, oh];
        let by_cublas = is_pointwise && cc >= PASCAL && cc != DP4A;
        let by_tiles =
            self.compiled_or_zero() >= TURING && (summed >= SMALL_SUM || places >= SMALL_MAP);
        if kernel.ty != Type::F16 || !(by_cublas || by_tiles) {
            return Held::NOTHING;
        }
        // A map as large as its input is padded by what the kernel sees around a place.
        let padded = |input: u64, output: u64, kernel: u64| match input == output {
            true => input.saturating_add(kernel.saturating_sub(1)),
            false => input,
        };
        let mut held = Held::NOTHING;
        held.add([2, padded(iw, ow, kw), padded(ih, oh, kh), c_in, n]);
        if by_cublas {
            held.cublas = true;
            return held;
        }
        let (parts, is_bound) = self.parts_of_sum(places, c_out, n, summed);
        if parts > 1 {
            held.add([4, places, c_out, n, parts]);
            held.is_bound = is_bound;
        }
        held
    }

    /// How often a sum is split so that every multiprocessor has eight tiles, and whether that is a bound.
    fn parts_of_sum(&self, places: u64, c_out: u64, n: u64, summed: u64) -> (u64, bool) {
        const MOST: u64 = 32;
        const TILES_EACH: u64 = 8;
        const GRID: u64 = 65_535;
        let tiles = places
            .div_ceil(TILE)
            .saturating_mul(c_out.div_ceil(TILE))
            .saturating_mul(n)
            .max(1);
        let (sm_count, is_bound) = self.multiprocessors();
        let wanted = TILES_EACH.saturating_mul(sm_count).div_ceil(tiles).max(1);
        let parts = wanted
            .min(summed.div_ceil(TILE))
            .min(GRID / n.max(1))
            .min(MOST);
        (parts, is_bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::Batches;
    use crate::cuda::PoolUse;
    use crate::{ComputeCapability, Op};

    fn device(cc: u32, sm_count: Option<u32>) -> Cuda {
        let compute_capability = ComputeCapability(cc);
        Cuda {
            index: 0,
            compute_capability,
            compiled: (cc >= 750).then_some(compute_capability),
            integrated: false,
            sm_count,
            pool: crate::cuda::PoolKind::Vmm,
        }
    }

    /// A convolution of `[side, side, c]` with `c'` kernels of `k` by `k`.
    fn held(cuda: &Cuda, ty: Type, [side, c, c_out, k]: [i64; 4], pad: i64) -> PoolUse {
        let mut g = Graph::with_capacity(4);
        let x = g.new_tensor(Op::None, Type::F32, [side, side, c, 1], &[]);
        let kernel = g.new_tensor(Op::None, ty, [k, k, c, c_out], &[]);
        let y = g.conv_2d_direct(kernel, x, 1, pad);
        g.expand(y);
        cuda.pool_use_of(&g, &g.nodes, Batches::Own)
    }

    // The figures are those of conv2d.cu of llama.cpp v0.5.0, worked out by hand.
    #[test]
    fn an_input_is_copied_as_f16_with_its_padding() {
        let ampere = device(860, Some(82));
        // 144 x 144 / 64 tiles of places, two of channels: 648 tiles, 656 wanted, so two parts
        let wide = held(&ampere, Type::F16, [144, 64, 128, 3], 1);
        let copy = 146 * 146 * 64 * 2;
        assert_eq!(wide.bytes, copy + 144 * 144 * 128 * 2 * 4);
        assert!(!wide.is_bound && !wide.uses_cublas);
        // 36 x 36 / 64 tiles, one of channels: 21 tiles, 32 wanted, 9 of 64 elements summed
        let small = held(&ampere, Type::F16, [36, 64, 64, 3], 1);
        assert_eq!(small.bytes, 38 * 38 * 64 * 2 + 36 * 36 * 64 * 9 * 4);
        assert!(held(&device(860, None), Type::F16, [36, 64, 64, 3], 1).is_bound);
        assert_eq!(held(&ampere, Type::F32, [36, 64, 64, 3], 1).bytes, 0);
        // no tensor cores: the kernel reads the input as it is
        assert_eq!(
            held(&device(610, Some(28)), Type::F16, [36, 64, 64, 3], 1).bytes,
            0
        );
    }

    #[test]
    fn a_convolution_of_single_places_goes_through_cublas() {
        for cc in [600, 700, 860] {
            let one = held(&device(cc, Some(80)), Type::F16, [48, 640, 768, 1], 0);
            assert_eq!(one.bytes, 48 * 48 * 640 * 2);
            assert!(one.uses_cublas);
        }
        assert_eq!(
            held(&device(370, Some(13)), Type::F16, [48, 640, 768, 1], 0).bytes,
            0
        );
    }
}
