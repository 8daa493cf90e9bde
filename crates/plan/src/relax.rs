//! Splits of layers over GPUs by what is known so far: additive bytes exactly, compute buffers as
//! they were seen in estimates. Never asks for an estimate itself.
//!
//! A compute buffer depends on which kinds of layers a GPU holds, on the output layer being among
//! them, and on the first GPU on the work of the host's layers that is sent there. That is a
//! [`Role`]; what was seen for a role is expected of all splits that give it. A role that was never
//! seen is expected to cost nothing, so a split is only ruled out by what was seen.

use crate::fit::{HostExperts, Problem, Scored, layout_device};
use crate::sheet::Sheet;
use std::collections::BTreeMap;
use vramfit_estimate::{FlashAttention, LayoutDevice};

/// From so many layers on, compute buffers change little with one more.
const FEW: usize = 4;

/// What decides a compute buffer, as far as is known.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Role {
    device: LayoutDevice,
    /// First of several or the only one: the host's work is sent here.
    is_first: bool,
    /// Four copies of inputs are kept.
    copies: bool,
    flash_attn: bool,
    several: bool,
    /// Kinds of the layers that it holds; the output layer is a kind.
    kinds: u64,
    has_first_layer: bool,
    /// Up to [`FEW`]: with few layers every one of them makes a difference.
    n_layers: usize,
    /// On the first GPU: kinds of layers on the host, or with experts there.
    host_kinds: u64,
}

/// What a GPU took beyond its additive bytes, by the layers that it held.
#[derive(Clone, Copy, Debug)]
struct Seen {
    from: usize,
    to: usize,
    host_experts: HostExperts,
    bytes: i64,
}

/// How much of what was seen for other splits is held against a split.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Trust {
    /// The least seen for a role with about as many layers.
    Near,
    /// The least seen for a role.
    Least,
    /// Three quarters of that.
    Doubt,
}

/// Which splits are asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Wanted {
    /// Least and most layers on the GPUs, the output layer included.
    pub layers: (usize, usize),
    /// GPUs may be left without layers.
    pub allow_empty: bool,
    pub host_experts: HostExperts,
    /// Pipelining is turned off.
    pub no_copies: bool,
    /// Splits that fall short are wanted too, the least bad.
    pub any: bool,
}

/// All that was seen.
#[derive(Default)]
pub(crate) struct Known {
    roles: Vec<(Role, Vec<Seen>)>,
    /// What flash attention `auto` came to, by the number of layers on the host. It goes off when
    /// the attention of the last of them is drawn to the GPU.
    flash_attn: BTreeMap<usize, bool>,
}

/// The search for a split of one list of GPUs.
struct Table<'a> {
    problem: &'a Problem<'a>,
    sheet: &'a Sheet,
    known: &'a Known,
    trust: Trust,
    wanted: Wanted,
    listed: &'a [usize],
    /// Splits with this outcome of flash attention.
    flash_attn: bool,
    sums: crate::sheet::Sums,
    /// Kinds of layers that the host works on when the first so many layers are there.
    host_kinds: Vec<u64>,
}

/// Best way to put placements `a..` on GPUs `j..`: the least headroom, and where the next begins.
type Cell = Option<(i64, usize)>;

impl Known {
    /// The split that leaves the most headroom on the fullest GPU, among those with the most
    /// layers: a count a GPU. `None` when no split can fit.
    pub fn best_split(
        &self,
        problem: &Problem,
        sheet: &Sheet,
        listed: &[usize],
        wanted: Wanted,
        trust: Trust,
    ) -> Option<Vec<usize>> {
        let with = |flash_attn: bool| {
            let table = Table {
                problem,
                sheet,
                known: self,
                trust,
                wanted,
                listed,
                flash_attn,
                sums: sheet.sums(wanted.host_experts),
                host_kinds: host_kinds(sheet, wanted.host_experts),
            };
            table.best()
        };
        let on_if_seen = match problem.run.flash_attention {
            FlashAttention::Off => return with(false).map(|(_, counts)| counts),
            FlashAttention::On => true,
            FlashAttention::Auto => !self.flash_attn.values().any(|on| !on),
        };
        let off = if on_if_seen { None } else { with(false) };
        [with(true), off]
            .into_iter()
            .flatten()
            .max_by_key(|&(rank, _)| rank)
            .map(|(_, c)| c)
    }

    /// Whether `from` layers on the host may leave flash attention `on`.
    fn may_be(&self, on: bool, from: usize, sheet: &Sheet, trust: Trust) -> bool {
        if let Some(&seen) = self.flash_attn.get(&from) {
            return seen == on;
        }
        let last = |il: usize| {
            il.checked_sub(1)
                .map(|il| sheet.kind(il, HostExperts::None))
        };
        let alike = |seen: &(&usize, &bool)| last(*seen.0) == last(from);
        let seen = self.flash_attn.iter().find(alike).map(|(_, &on)| on);
        match seen {
            Some(seen) if trust != Trust::Doubt => seen == on,
            _ => on,
        }
    }

    /// Learns from an estimate.
    pub fn learn(&mut self, problem: &Problem, sheet: &Sheet, scored: &Scored) {
        let n = sheet.n_placements();
        let candidate = &scored.candidate;
        let host_experts = candidate.host_experts;
        let sums = sheet.sums(host_experts);
        let host_kinds = host_kinds(sheet, host_experts);
        let used = candidate.used();
        let mut from = n - scored.n_layers().min(n);
        let host = from;
        let flash_attn = scored.breakdown.params.flash_attn;
        self.flash_attn.insert(host, flash_attn);
        for (i, &device) in used.iter().enumerate() {
            let to = from + scored.breakdown.layers_on(i).len();
            let (Some(d), Some(&required)) = (problem.devices.get(device), scored.required.get(i))
            else {
                return;
            };
            let role = Role {
                device: layout_device(d),
                is_first: i == 0,
                copies: scored.breakdown.pipeline_copies > 1,
                flash_attn,
                several: used.len() > 1,
                kinds: (from..to).fold(0, |k, il| k | sheet.kind(il, host_experts)),
                has_first_layer: from == 0 && to > 0,
                n_layers: (to - from).min(FEW),
                host_kinds: if i == 0 { host_kinds[host] } else { 0 },
            };
            let own = d.overhead.bytes.saturating_add(sheet.fixed(device));
            let additive = own.saturating_add(sums.bytes(from, to));
            let bytes = signed(required).saturating_sub(signed(additive));
            let seen = Seen {
                from,
                to,
                host_experts,
                bytes,
            };
            match self.roles.iter_mut().find(|(r, _)| *r == role) {
                Some((_, all)) => all.push(seen),
                None => self.roles.push((role, vec![seen])),
            }
            from = to;
        }
    }

    fn seen(&self, role: &Role) -> &[Seen] {
        let of_role = self.roles.iter().find(|(r, _)| r == role);
        of_role.map_or(&[], |(_, seen)| seen)
    }
}

/// Below 2^63 all real sizes are.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// For each number of layers on the host: kinds of layers that the first GPU may work for.
fn host_kinds(sheet: &Sheet, host_experts: HostExperts) -> Vec<u64> {
    let n = sheet.n_placements();
    let split = (0..n).filter(|&il| sheet.splits_experts(il, host_experts));
    let mut kinds = split.fold(0, |k, il| k | sheet.kind(il, host_experts));
    let mut all = vec![kinds];
    for il in 0..n {
        kinds |= sheet.kind(il, host_experts);
        all.push(kinds);
    }
    all
}

/// What a GPU with placements `from..to` is expected to take beyond its additive bytes.
fn expected(seen: &[Seen], from: usize, to: usize, experts: HostExperts, trust: Trust) -> i64 {
    let exactly = |s: &&Seen| (s.from, s.to, s.host_experts) == (from, to, experts);
    if let Some(s) = seen.iter().rfind(exactly) {
        return s.bytes;
    }
    let distance = |s: &Seen| (s.to - s.from).abs_diff(to - from);
    let nearest = seen.iter().map(distance).min().unwrap_or(0);
    let counts = |s: &&Seen| trust != Trust::Near || distance(s) <= nearest + 2;
    let least = seen
        .iter()
        .filter(counts)
        .map(|s| s.bytes)
        .min()
        .unwrap_or(0);
    if trust == Trust::Doubt {
        least / 4 * 3
    } else {
        least
    }
}

impl Table<'_> {
    fn best(&self) -> Option<((usize, i64), Vec<usize>)> {
        let n = self.sheet.n_placements();
        let n_devices = self.listed.len();
        // cells[j][a]
        let mut cells: Vec<Vec<Cell>> = vec![vec![None; n + 1]; n_devices + 1];
        cells[n_devices][n] = Some((i64::MAX, n));
        for j in (0..n_devices).rev() {
            let (before, behind) = cells.split_at_mut(j + 1);
            for (to, cell) in behind[0].iter().enumerate() {
                if let Some((headroom, _)) = *cell {
                    self.extend(j, to, headroom, &mut before[j]);
                }
            }
        }
        let (least, most) = self.wanted.layers;
        let mut start =
            (n.saturating_sub(most)..=n.saturating_sub(least)).find(|&a| cells[0][a].is_some())?;
        let rank = (
            n - start,
            cells[0][start].map_or(0, |(headroom, _)| headroom),
        );
        let mut counts = Vec::with_capacity(n_devices);
        for row in &cells[..n_devices] {
            let (_, to) = row[start]?;
            counts.push(to - start);
            start = to;
        }
        Some((rank, counts))
    }

    /// All ways for GPU `j` to hold placements that end at `to`.
    fn extend(&self, j: usize, to: usize, behind: i64, cells: &mut [Cell]) {
        let Some((device, index)) = self.device(j) else {
            return;
        };
        let free = signed(device.free_bytes);
        let floor = device
            .overhead
            .bytes
            .saturating_add(self.sheet.fixed(index))
            .saturating_add(self.problem.projector_bytes(self.listed, index));
        let n = self.sheet.n_placements();
        let (least, most) = self.wanted.layers;
        let mut role = self.role(j, layout_device(device));
        let mut known: Option<(Role, &[Seen])> = None;
        let first = if j == 0 { n.saturating_sub(most) } else { 0 };
        for from in (first..=to).rev() {
            if from < to {
                role.kinds |= self.sheet.kind(from, self.wanted.host_experts);
            }
            let additive = signed(floor.saturating_add(self.sums.bytes(from, to)));
            if additive > free && !self.wanted.any {
                return; // more layers only take more
            }
            let is_empty = from == to;
            let starts = || {
                let known = self
                    .known
                    .may_be(self.flash_attn, from, self.sheet, self.trust);
                n - from >= least && (known || !self.settles_flash_attn())
            };
            if (is_empty && !self.wanted.allow_empty) || (j == 0 && !starts()) {
                continue;
            }
            role.has_first_layer = from == 0 && !is_empty;
            role.n_layers = (to - from).min(FEW);
            role.host_kinds = if j == 0 { self.host_kinds[from] } else { 0 };
            if known.is_none_or(|(r, _)| r != role) {
                known = Some((role, self.known.seen(&role)));
            }
            let seen = known.map_or(&[][..], |(_, seen)| seen);
            let experts = self.wanted.host_experts;
            let expected = expected(seen, from, to, experts, self.trust);
            let headroom = free.saturating_sub(additive).saturating_sub(expected);
            if headroom < 0 && !self.wanted.any {
                continue;
            }
            let least_headroom = headroom.min(behind);
            if cells[from].is_none_or(|(best, _)| least_headroom > best) {
                cells[from] = Some((least_headroom, to));
            }
        }
    }

    /// Whether llama.cpp decides on flash attention.
    fn settles_flash_attn(&self) -> bool {
        self.problem.run.flash_attention == FlashAttention::Auto
    }

    fn device(&self, j: usize) -> Option<(&crate::Device, usize)> {
        let index = *self.listed.get(j)?;
        Some((self.problem.devices.get(index)?, index))
    }

    /// The role of GPU `j`, but for its layers.
    fn role(&self, j: usize, device: LayoutDevice) -> Role {
        let n = self.sheet.n_placements();
        let several = self.listed.len() > 1;
        let has_overrides = self.wanted.no_copies
            || self.wanted.host_experts != HostExperts::None
            || self.problem.pins_overrides();
        let full = self.wanted.layers.0 >= n;
        Role {
            device,
            is_first: j == 0,
            flash_attn: self.flash_attn,
            copies: several && full && self.problem.run.offload_kqv && !has_overrides,
            several,
            kinds: 0,
            has_first_layer: false,
            n_layers: 0,
            host_kinds: 0,
        }
    }
}
