//! MMQ, products of quantised matrices by tiles (`mmq.cu`, `mmq.cuh` and its tables).

use super::matmul::padded_row;
use super::{AMPERE, Cuda, Held, TURING, VOLTA, count};
use crate::{Type, align};

/// Columns of a tile, where the rows of the matrix are a multiple of 128 and where not. Older
/// cards stop at 64.
const TILE_COLUMNS: [u64; 11] = [8, 16, 24, 32, 40, 48, 64, 80, 96, 112, 128];
const TILE_COLUMNS_RAGGED: [u64; 5] = [8, 16, 32, 64, 128];
const OLD_TILE_COLUMNS: u64 = 64;
const WIDEST_TILE: u64 = 128;
/// Rows of a tile where tiles are cut along the inner dimension (stream-k).
const TILE_ROWS: u64 = 128;
/// `block_q8_1_mmq`: 128 elements and their scales.
const BLOCK_BYTES: u64 = 144;
const BLOCK_ELEMENTS: u64 = 128;
/// `block_fp4_mmq` holds twice as many.
const FP4_BLOCK_ELEMENTS: u64 = 256;
/// Threads of a block.
const THREADS: u64 = 256;
/// A device is full enough for whole tiles at this percentage.
const FULL_ENOUGH: u64 = 90;

impl Held {
    /// A part of a tile for each multiprocessor.
    fn add_partial_tiles(&mut self, n_sms: u64, columns: u64) {
        let before = self.bytes;
        self.add([4, n_sms, TILE_ROWS, columns]);
        self.partial_tiles = self.bytes.saturating_sub(before);
    }
}

/// A product as MMQ launches it.
struct Launch {
    ty: Type,
    /// Rows of the matrix.
    n: i64,
    /// Columns that the grid covers.
    columns: i64,
    /// Products side by side: matrices or experts.
    depth: u64,
}

impl Cuda {
    /// `b` `[k, rows, ..]` quantised, and the partial tiles.
    pub(super) fn mmq_pool(&self, ty: Type, n: i64, b: [i64; 4]) -> Held {
        let depth = count(b[2]).saturating_mul(count(b[3]));
        let columns = depth.saturating_mul(count(b[1]));
        let mut held = self.quantised(ty, n, columns, b[0], b[1]);
        self.add_partial_tiles(
            &mut held,
            &Launch {
                ty,
                n,
                columns: b[1],
                depth,
            },
        );
        held
    }

    /// MUL_MAT_ID: `rows` of `k` elements, sorted by expert. `shape` is `[k, n]`, `rows_a_token`
    /// those that the activations have for a token: 1, or one an expert used.
    pub(super) fn mmq_experts_pool(
        &self,
        ty: Type,
        shape: [i64; 2],
        n_experts: i64,
        rows_a_token: i64,
        n_tokens: i64,
        rows: u64,
    ) -> Held {
        let [k, n] = shape;
        let mut held = self.quantised(ty, n, rows, k, rows_a_token);
        self.add_partial_tiles(
            &mut held,
            &Launch {
                ty,
                n,
                columns: n_tokens,
                depth: count(n_experts),
            },
        );
        held
    }

    /// Columns quantised for MMQ, and a tile more, for tiles are read whole.
    fn quantised(&self, ty: Type, n: i64, columns: u64, k: i64, tile_for: i64) -> Held {
        let fp4 = self.has_native_fp4(ty);
        let elements = if fp4 {
            FP4_BLOCK_ELEMENTS
        } else {
            BLOCK_ELEMENTS
        };
        let bytes = columns
            .saturating_mul(padded_row(k))
            .saturating_mul(BLOCK_BYTES)
            / elements;
        let tile = self
            .tile_columns(n)
            .rfind(|&j| j <= count(tile_for))
            .unwrap_or(0);
        let mut held = Held::NOTHING;
        held.add([bytes.saturating_add(tile * BLOCK_BYTES)]);
        if fp4 && ty == Type::NVFP4 {
            held.add([4, columns]);
        }
        held
    }

    /// Stream-k: when the tiles do not fill the device, every multiprocessor works on an equal
    /// share of them, and the parts of shared tiles are kept aside.
    fn add_partial_tiles(&self, held: &mut Held, launch: &Launch) {
        if self.compiled_or_zero() < VOLTA {
            return; // older tables know whole tiles only
        }
        let tile = self.best_tile(launch);
        let (n_sms, is_bound) = self.multiprocessors();
        // Shared memory without tensor cores in the code is laid out in another way.
        let layout_unknown = self.compiled_or_zero() < TURING;
        if is_bound || layout_unknown {
            // of this batch or a smaller one
            let any_tile = layout_unknown || count(launch.columns) >= WIDEST_TILE;
            let tile = if any_tile { WIDEST_TILE } else { tile };
            held.add_partial_tiles(n_sms, tile);
            held.is_bound = true;
            return;
        }
        let tiles = count(launch.columns)
            .div_ceil(tile)
            .saturating_mul(count(launch.n).div_ceil(TILE_ROWS))
            .saturating_mul(launch.depth);
        let waves = tiles.div_ceil(n_sms).max(1);
        let is_full = tiles.saturating_mul(100) / n_sms.saturating_mul(waves) >= FULL_ENOUGH;
        if !is_full && !tiles.is_multiple_of(n_sms) {
            held.add_partial_tiles(n_sms, tile);
        }
    }

    /// The most that partial tiles of any product take, bytes.
    pub(super) fn most_partial_tiles(&self) -> u64 {
        if self.compiled_or_zero() < VOLTA {
            return 0;
        }
        let mut held = Held::NOTHING;
        held.add_partial_tiles(self.multiprocessors().0, WIDEST_TILE);
        held.partial_tiles
    }

    /// The narrowest tile that covers the columns with the fewest tiles.
    fn best_tile(&self, launch: &Launch) -> u64 {
        let fits = |&j: &u64| self.tile_fits(launch.ty, j);
        let widest = self.tile_columns(launch.n).rfind(fits);
        let columns = count(launch.columns).max(1);
        let fewest = columns.div_ceil(widest.unwrap_or(TILE_COLUMNS[0]));
        let least = columns.div_ceil(fewest);
        self.tile_columns(launch.n)
            .find(|&j| j >= least)
            .unwrap_or(TILE_COLUMNS[0])
    }

    /// Only Turing's 64 KiB of shared memory are ever too small.
    fn tile_fits(&self, ty: Type, columns: u64) -> bool {
        if self.compute_capability >= AMPERE {
            return true;
        }
        let words_a_row = match ty {
            Type::Q2_K => 100,
            Type::Q3_K | Type::IQ2_XS | Type::IQ2_S | Type::NVFP4 => 84,
            _ => 76,
        };
        let matrix = TILE_ROWS * words_a_row * 4;
        let activations = align(columns * BLOCK_BYTES, THREADS * 4);
        columns * 4 + matrix + activations <= 64 << 10
    }

    /// Widths of the tiles compiled for a matrix of `n` rows.
    fn tile_columns(&self, n: i64) -> impl DoubleEndedIterator<Item = u64> {
        let is_ragged = n % TILE_ROWS as i64 != 0;
        let most = if self.compiled_or_zero() >= VOLTA {
            u64::MAX
        } else {
            OLD_TILE_COLUMNS
        };
        let all = if is_ragged {
            &TILE_COLUMNS_RAGGED[..]
        } else {
            &TILE_COLUMNS[..]
        };
        all.iter().copied().filter(move |&j| j <= most)
    }
}
