//! MiniMax sparse attention: an indexer of one head a group of heads scores whole blocks of
//! positions, and each group attends to its best blocks. One token a sequence gathers their cells; a
//! longer batch masks the others.

use super::{LlmGraph, Qkv};
use crate::cache::CacheKind;
use vramfit_ggml::{Flags, TensorId, Type};

/// What every layer with blocks reads.
#[derive(Clone, Copy)]
pub(super) struct MsaInput {
    k_idxs: TensorId,
    /// Blocks near the token are chosen anyhow.
    bias: TensorId,
    /// Positions that the token must not see.
    pos_mask: TensorId,
    /// The cell of each position.
    cells: TensorId,
    /// One token a sequence: the same as floats. Else the block of each cell.
    map: TensorId,
    /// The usual mask as f32, for more than one token.
    mask: Option<TensorId>,
    n_positions: i64,
    n_blocks: i64,
    block: i64,
}

impl LlmGraph<'_> {
    /// Whether blocks are chosen at all: it takes flash attention, and a cache whose cells follow
    /// the positions.
    pub fn attends_by_blocks(&self) -> bool {
        self.cp.flash_attn && (self.cp.n_seq_max == 1 || !self.cp.kv_unified)
    }

    fn msa_input(&mut self, mask: TensorId) -> MsaInput {
        if let Some(input) = self.msa_input {
            return input;
        }
        let ne = self[mask].ne;
        let (n_kv, n_tokens, n_stream) = (ne[0], self.n_tokens, ne[3]);
        let block = self.indexer().block.unwrap_or(1);
        // An empty cache is planned for: 256 positions, in whole blocks as GGML_PAD has them.
        let n_positions = (256 + block - 1) & !(block - 1);
        let n_blocks = n_positions / block;
        let is_single = ne[1] == 1;
        let input = MsaInput {
            k_idxs: self.input("attn_inp_k_idxs", Type::I64, [n_tokens, 1, 1, 1]),
            bias: self.input("msa_bias", Type::F32, [n_blocks, n_tokens, 1, 1]),
            pos_mask: self.input("msa_pos_mask", Type::F32, [n_positions, n_tokens, 1, 1]),
            cells: self.input("msa_pos_slot", Type::I32, [n_positions, n_stream, 1, 1]),
            map: if is_single {
                self.input("msa_pos_slot", Type::F32, [n_positions, n_stream, 1, 1])
            } else {
                self.input("msa_cell_blk", Type::I32, [n_kv, n_stream, 1, 1])
            },
            mask: (!is_single).then(|| self.cast(mask, Type::F32)),
            n_positions,
            n_blocks,
            block,
        };
        *self.msa_input.insert(input)
    }

    /// Attention of layer `il` to the blocks that its indexer's `iq` and `ik` choose.
    pub fn attend_blocks(
        &mut self,
        [mut q, mut k, mut v]: Qkv,
        [iq, ik]: [TensorId; 2],
        il: usize,
    ) -> TensorId {
        let input = self.attn_input_of(il);
        let msa = self.msa_input(input.mask);
        let cache = self.cache(il, CacheKind::Index);
        self.store_rows(ik, cache, msa.k_idxs);
        let index_keys = self.index_keys(cache, input.n_kv);
        if let Some(rot) = input.k_rot {
            q = self.hadamard(q, rot);
            k = self.hadamard(k, rot);
        }
        if let Some(rot) = input.v_rot {
            v = self.hadamard(v, rot);
        }
        [q, k, v].into_iter().for_each(|t| self.expand(t));
        self.store_k(k, &input, il);
        self.store_v(v, &input, il);
        let k = self.cache_k_view(input.n_kv, il);
        let v = self.cache_v_view(input.n_kv, il);
        let cur = match msa.mask {
            None => self.gather_blocks([q, k, v], [iq, index_keys], &msa),
            Some(mask) => {
                let n_stream = self[k].ne[3];
                let mut all = None;
                for _ in 0..n_stream {
                    let cur = self.mask_blocks([q, k, v], [iq, index_keys], mask, &msa);
                    all = Some(match all {
                        Some(all) => self.concat(all, cur, 1),
                        None => cur,
                    });
                }
                all.unwrap_or(q)
            }
        };
        match input.v_rot {
            Some(rot) => self.hadamard(cur, rot),
            None => cur,
        }
    }

    /// One token a sequence: cells of the chosen blocks, side by side.
    fn gather_blocks(
        &mut self,
        [q, k, v]: Qkv,
        [iq, index_keys]: [TensorId; 2],
        msa: &MsaInput,
    ) -> TensorId {
        let (n, n_blocks, block) = (msa.n_positions, msa.n_blocks, msa.block);
        let (head, n_index_head) = (self[iq].ne[0], self[iq].ne[1]);
        let [_, n_group, n_kv, ns] = self[k].ne;

        let nb = self[index_keys].nb;
        let keys = self.view_3d(index_keys, [head, n_kv, ns], [nb[2], nb[3]]);
        let keys = self.get_rows(keys, msa.cells);
        let keys = self.reshape(keys, [head, n, 1, ns]);
        let iq = self.reshape(iq, [head, n_index_head, 1, ns]);
        let scores = self.mul_mat(keys, iq);
        self[scores].flags.insert(Flags::PREC_F32);
        let hidden = self.reshape(msa.pos_mask, [n, 1, 1, ns]);
        let scores = self.add_inplace(scores, hidden);
        let best = self.pool_rows(scores, block);
        let bias = self.reshape(msa.bias, [n_blocks, 1, 1, ns]);
        let best = self.add(best, bias);
        let top = self.indexer().top_k.min(n_blocks);
        let chosen = self.top_k(best, top);

        // positions, their cells, and rows of the cache, counted in floats
        let per_group = block * top;
        let chosen = self.cast(chosen, Type::F32);
        let first = self.scale(chosen);
        let first = self.reshape(first, [1, top, n_index_head, ns]);
        let first = self.repeat(first, [block, top, n_index_head, ns]);
        let within = self.arange(block);
        let within = self.reshape(within, [block, 1, 1, 1]);
        let positions = self.add(first, within);
        let positions = self.reshape(positions, [per_group * n_index_head, ns, 1, 1]);
        let positions = self.cast(positions, Type::I32);
        let map = self.reshape(msa.map, [1, n, ns, 1]);
        let cells = self.get_rows(map, positions);
        let cells = self.reshape(cells, [block, top, n_index_head, ns]);
        let cells = self.scale(cells);
        let group = self.arange(n_group);
        let group = self.reshape(group, [1, 1, n_index_head, 1]);
        let rows = self.add(cells, group);
        let rows = self.reshape(rows, [per_group * n_index_head, ns, 1, 1]);
        let rows = self.cast(rows, Type::I32);

        let [k, v] = [k, v].map(|t| {
            let (ty, ne, nb) = (self[t].ty, self[t].ne, self[t].nb);
            let all = self.view_3d(t, [ne[0], n_group * n_kv, ns], [nb[1], nb[3]]);
            let rows = self.get_rows(all, rows);
            let rows = self.reshape(rows, [ne[0], per_group, 1, n_index_head * ns]);
            let wanted = if ty.is_quantized() { Type::F16 } else { ty };
            if self[rows].ty == wanted {
                rows
            } else {
                self.cast(rows, wanted)
            }
        });
        let hidden = self.reshape(msa.pos_mask, [1, n, ns, 1]);
        let hidden = self.get_rows(hidden, positions);
        let hidden = self.reshape(hidden, [per_group, 1, 1, n_index_head * ns]);
        let mask = self.cast(hidden, Type::F16);
        self.attend_groups([q, k, v], mask, n_group)
    }

    /// More tokens, of one sequence: blocks that were not chosen are masked, a group at a time.
    fn mask_blocks(
        &mut self,
        [q, k, v]: Qkv,
        [iq, index_keys]: [TensorId; 2],
        mask: TensorId,
        msa: &MsaInput,
    ) -> TensorId {
        let (n, n_blocks) = (msa.n_positions, msa.n_blocks);
        let (head, n_index_head) = (self[iq].ne[0], self[iq].ne[1]);
        let [n_kv, n_tokens, ..] = self[mask].ne;
        let [_, n_group, ..] = self[k].ne;
        let n_rows = n_index_head * n_tokens;

        let nb = self[iq].nb;
        let iq = self.view_3d(iq, [head, n_index_head, n_tokens], [nb[1], nb[2]]);
        let nb = self[index_keys].nb;
        let keys = self.view_2d(index_keys, [head, n_kv], nb[2]);
        let cells = self.view_1d(msa.cells, n);
        let nb1 = self[msa.pos_mask].nb[1];
        let hidden = self.view_3d(msa.pos_mask, [n, 1, n_tokens], [nb1, nb1]);
        let map = self.view_1d(msa.map, n_kv);
        let nb = self[mask].nb;
        let mask = self.view_3d(mask, [n_kv, n_tokens, 1], [nb[1], nb[3]]);
        let nb1 = self[msa.bias].nb[1];
        let bias = self.view_3d(msa.bias, [n_blocks, 1, n_tokens], [nb1, nb1]);
        let (ne, nb) = (self[q].ne, self[q].nb);
        let q = self.view_3d(q, [ne[0], ne[1], n_tokens], [nb[1], nb[2]]);
        let [k, v] = [k, v].map(|t| {
            let (ne, nb) = (self[t].ne, self[t].nb);
            self.view_4d(t, [ne[0], ne[1], ne[2], 1], [nb[1], nb[2], nb[3]])
        });

        let keys = self.get_rows(keys, cells);
        let iq = self.reshape(iq, [head, n_rows, 1, 1]);
        let scores = self.mul_mat(keys, iq);
        self[scores].flags.insert(Flags::PREC_F32);
        let scores = self.reshape(scores, [n, n_index_head, n_tokens, 1]);
        let scores = self.add_inplace(scores, hidden);
        let best = self.pool_rows(scores, msa.block);
        let best = self.add(best, bias);
        let top = self.indexer().top_k.min(n_blocks);
        let chosen = self.top_k(best, top);

        let closed = self.scale(bias);
        let closed = self.cast(closed, Type::F16);
        let closed = self.repeat(closed, [n_blocks, n_index_head, n_tokens, 1]);
        let closed = self.reshape(closed, [1, n_blocks, n_rows, 1]);
        let open = self.cast(chosen, Type::F32);
        let open = self.scale(open);
        let open = self.reshape(open, [1, top, n_rows, 1]);
        let ids = self.reshape(chosen, [top, n_rows, 1, 1]);
        let blocks = self.set_rows(closed, open, ids);
        let blocks = self.reshape(blocks, [n_blocks, n_index_head, n_tokens, 1]);
        let blocks = self.permute(blocks, [0, 2, 1, 3]);
        let blocks = self.cont(blocks);

        // from blocks to cells
        let blocks = self.reshape(blocks, [n_blocks, n_rows, 1, 1]);
        let by_block = self.transpose(blocks);
        let by_block = self.cont(by_block);
        let by_cell = self.get_rows(by_block, map);
        let by_cell = self.transpose(by_cell);
        let by_cell = self.cont(by_cell);
        let by_cell = self.reshape(by_cell, [n_kv, n_tokens, n_index_head, 1]);
        let mask = self.add_inplace(by_cell, mask);
        let mask = self.reshape(mask, [n_kv, n_tokens, 1, n_index_head]);
        let mask = self.cast(mask, Type::F16);
        let [k, v] = [k, v].map(|t| self.permute(t, [0, 3, 1, 2]));
        self.attend_groups([q, k, v], mask, n_group)
    }

    /// Flash attention with groups of heads (and sequences) where sequences usually are:
    /// k and v `[head, cells, 1, channels]`.
    fn attend_groups(&mut self, [q, k, v]: Qkv, mask: TensorId, n_group: i64) -> TensorId {
        let [head, n_head, n_tokens, _] = self[q].ne;
        let (shared, channels) = (n_head / n_group.max(1), self[k].ne[3]);
        let rows = n_head * n_tokens / (shared * channels).max(1);
        let q = self.reshape(q, [head, shared, channels, rows]);
        let q = self.permute(q, [0, 2, 3, 1]);
        let cur = self.flash_attn([q, k, v], mask, None);
        let mut cur = self.permute(cur, [0, 1, 3, 2]);
        if !self[cur].is_contiguous() {
            cur = self.cont(cur);
        }
        self.reshape(cur, [head * n_head, n_tokens, 1, 1])
    }
}
