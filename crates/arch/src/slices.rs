//! Which part of each tensor every device holds with `-sm tensor` (`llama_meta_device_get_split_state`): heads and
//! columns of a matrix are shared out, rounded to what kernels and quantised blocks need, in turn over the layers.

use crate::cache::{CacheKind, CacheTensor};
use crate::hparams::LayerHparams;
use crate::model::Model;
use crate::names::{Global, Kind, Name, Part};
use crate::{Error, Result};

/// What an architecture makes of `-sm tensor`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TensorSplit {
    /// llama.cpp does not have it (`llm_arch_supports_sm_tensor`).
    Refused,
    /// Tensors are shared out.
    Sliced,
    /// The same, but convolutions' states are whole on every device.
    WholeStates,
    /// Gated delta nets: Q holds its gate, what goes into a state is K, K and V.
    DeltaNet,
    /// The same, V in as many parts of K's width as it has.
    DeltaNetInterleaved,
    /// Everything is whole on every device.
    Mirrored,
}

/// Shares tensors out over devices.
pub struct Slicer<'a> {
    model: &'a Model,
    n_devices: usize,
    /// `-ts`; none for equal shares.
    shares: Vec<f32>,
    /// Of each layer: how many of its kind come before.
    ranks: Vec<usize>,
}

/// A stretch of the axis that is shared out by itself, `repeats` times over.
#[derive(Clone, Copy)]
struct Segment {
    n: i64,
    repeats: i64,
    granularity: i64,
}

/// How one tensor is shared out.
struct Cut {
    /// The axis.
    axis: usize,
    /// Where rounding starts: its device differs from layer to layer.
    rotation: usize,
    segments: Vec<Segment>,
}

/// What is cut: the names that llama.cpp tells apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Subject {
    Layer(Kind, Part),
    Cache(CacheKind),
}

/// What a matrix or bias is shared out by: the matrix that reads its product.
const ATTENTION: &[Kind] = &[Kind::AttnOutput, Kind::SsmOut];
const OUTPUT: &[Kind] = &[Kind::AttnOutput];
const STATE: &[Kind] = &[Kind::SsmOut];
const FFN: &[Kind] = &[Kind::FfnDown, Kind::FfnDownExps];
const SHARED: &[Kind] = &[Kind::FfnDownShexp];
/// Kernels are at their best with this many columns.
const COLUMNS: i64 = 128;

impl<'a> Slicer<'a> {
    /// Over `n_devices` by `shares`, equal ones if all are 0.
    pub fn new(model: &'a Model, n_devices: usize, shares: &[f32]) -> Slicer<'a> {
        let share = |i: usize| shares.get(i).copied().unwrap_or(0.0);
        let is_given = (0..n_devices).map(share).sum::<f32>() != 0.0;
        let of = |l: &LayerHparams| usize::from(l.is_recurrent) + 2 * usize::from(l.is_swa);
        let mut seen = [0; 4];
        let rank = |l: &LayerHparams| {
            seen[of(l)] += 1;
            seen[of(l)] - 1
        };
        Slicer {
            model,
            n_devices: n_devices.max(1),
            shares: match is_given {
                true => (0..n_devices).map(share).collect(),
                false => Vec::new(),
            },
            ranks: model.hparams.layers.iter().map(rank).collect(),
        }
    }

    /// Elements of tensor `index` on each device.
    ///
    /// # Errors
    ///
    /// Where llama.cpp aborts, as there is no matrix that says how.
    pub fn weight(&self, index: usize) -> Result<Vec<[i64; 4]>> {
        let tensor = &self.model.tensors[index];
        let cut = match tensor.role {
            Name::Layer(il, kind, part) => {
                self.cut(il, Subject::Layer(kind, part), tensor.ne, &tensor.name)?
            }
            Name::Global(Global::Output, part @ (Part::Weight | Part::Bias)) => {
                let axis = usize::from(part == Part::Weight);
                self.is_sliced().then(|| self.evenly(axis, tensor.ne[axis]))
            }
            _ => None,
        };
        Ok(self.slices(tensor.ne, cut))
    }

    /// Elements of a cache tensor of layer `il` on each device.
    ///
    /// # Errors
    ///
    /// As [`weight`](Self::weight).
    pub fn cache(&self, il: usize, tensor: &CacheTensor) -> Result<Vec<[i64; 4]>> {
        let name = format!("{}_l{il}", tensor.kind.name());
        let cut = self.cut(il, Subject::Cache(tensor.kind), tensor.ne, &name)?;
        Ok(self.slices(tensor.ne, cut))
    }

    fn is_sliced(&self) -> bool {
        let is_dsv4 = self.model.hparams.compressor.is_some();
        self.split() != TensorSplit::Mirrored && !is_dsv4
    }

    fn split(&self) -> TensorSplit {
        self.model.architecture.tensor_split
    }

    /// The output matrix: any column may go anywhere.
    fn evenly(&self, axis: usize, n: i64) -> Cut {
        Cut {
            axis,
            rotation: self.model.hparams.n_layer() % self.n_devices,
            segments: vec![Segment {
                n,
                repeats: 1,
                granularity: 1,
            }],
        }
    }

    fn cut(&self, il: usize, subject: Subject, ne: [i64; 4], name: &str) -> Result<Option<Cut>> {
        let Some((axis, readers)) = self.axis(subject, ne) else {
            return Ok(None);
        };
        let aborts = || Error::CannotBeSliced {
            name: name.to_string(),
        };
        let loaded = |kind: &Kind| {
            let index = self.model.layer_tensor(il, *kind, Part::Weight);
            index.filter(|&i| self.model.is_loaded(i))
        };
        let is_fused = matches!(subject, Subject::Layer(Kind::FfnGateUpExps, _));
        if is_fused && self.model.hparams.lacks_n_ff_exp {
            return Err(aborts());
        }
        let reader = readers.iter().find_map(loaded).ok_or_else(aborts)?;
        let block = self.model.tensors[reader].ty.block_size() as i64;
        let granularity = self.granularity(il, subject, ne, block);
        let granularity = granularity.ok_or_else(aborts)?;
        let stretches = self.stretches(il, subject, ne[axis]);
        let segment = |(i, (n, repeats)): (usize, (i64, i64))| Segment {
            n,
            repeats,
            granularity: granularity[usize::from(i > 0)],
        };
        let segments: Vec<Segment> = stretches.into_iter().enumerate().map(segment).collect();
        if self.n_devices > 1 && segments.iter().any(|s| s.granularity == 0) {
            return Err(aborts());
        }
        let rank = self.ranks.get(il).copied().unwrap_or(0);
        Ok(Some(Cut {
            axis,
            rotation: rank % self.n_devices,
            segments,
        }))
    }

    /// Along which axis a tensor is shared out, and by which matrices; `None` if it is whole everywhere.
    fn axis(&self, subject: Subject, ne: [i64; 4]) -> Option<(usize, &'static [Kind])> {
        use Part::{Bias, Weight};
        if self.split() == TensorSplit::Mirrored {
            return None;
        }
        if self.model.hparams.compressor.is_some()
            && let Some(cut) = compressed_axis(subject)
        {
            return cut;
        }
        let (kind, part) = match subject {
            Subject::Layer(kind, part) => (kind, part),
            Subject::Cache(CacheKind::K | CacheKind::V) => return Some((0, OUTPUT)),
            Subject::Cache(CacheKind::R | CacheKind::S) => {
                let is_whole = self.split() == TensorSplit::WholeStates;
                return (!is_whole).then_some((0, STATE));
            }
            Subject::Cache(_) => return None,
        };
        // a matrix by its columns, a bias by its elements
        let column = usize::from(part == Weight);
        match (kind, part) {
            (Kind::AttnQ | Kind::AttnK | Kind::AttnV | Kind::AttnQkv, Weight | Bias) => {
                Some((column, ATTENTION))
            }
            (Kind::AttnQNorm | Kind::AttnKNorm, Weight) => (ne[1] != 1).then_some((1, OUTPUT)),
            (Kind::AttnSinks, Weight) => Some((0, OUTPUT)),
            (Kind::AttnOutput, Weight) => Some((0, OUTPUT)),
            (Kind::AttnGate, Weight) => Some((1, ATTENTION)),
            (Kind::SsmDt, Bias) | (Kind::SsmA | Kind::SsmOut, Weight) => Some((0, STATE)),
            (Kind::SsmAlpha | Kind::SsmBeta | Kind::SsmBa | Kind::SsmConv1d, Weight) => {
                Some((1, STATE))
            }
            (Kind::FfnUp | Kind::FfnUpExps | Kind::FfnGate | Kind::FfnGateExps, Weight | Bias) => {
                Some((column, FFN))
            }
            (Kind::FfnGateUpExps, Weight) => Some((1, FFN)),
            (Kind::FfnDown | Kind::FfnDownExps, Weight) => Some((0, FFN)),
            _ => None,
        }
    }

    /// Stretches of an axis of `n` elements: how long, how often.
    fn stretches(&self, il: usize, subject: Subject, n: i64) -> Vec<(i64, i64)> {
        let Some(layer) = self.model.hparams.layers.get(il) else {
            return vec![(n, 1)];
        };
        if let Some(stretches) = self.delta_net_stretches(layer, subject) {
            return stretches;
        }
        match subject {
            Subject::Layer(Kind::AttnQkv, _) => {
                let q = layer.n_head.saturating_mul(layer.n_embd_head_k);
                let kv = layer.n_embd_v_gqa();
                vec![(q, 1), (kv, 2)]
            }
            // Phi 3 has up and gate in one matrix
            Subject::Layer(Kind::FfnUp | Kind::FfnUpExps, _)
                if self.delta_net().is_none() && n % 2 == 0 && n / 2 == layer.n_ff =>
            {
                vec![(layer.n_ff, 2)]
            }
            Subject::Layer(Kind::FfnGateUpExps, _) => vec![(n / 2, 2)],
            _ => vec![(n, 1)],
        }
    }

    /// Whether V is in parts of K's width, where there is a gated delta net.
    fn delta_net(&self) -> Option<bool> {
        match self.split() {
            TensorSplit::DeltaNet => Some(false),
            TensorSplit::DeltaNetInterleaved => Some(true),
            _ => None,
        }
    }

    fn delta_net_stretches(
        &self,
        layer: &LayerHparams,
        subject: Subject,
    ) -> Option<Vec<(i64, i64)>> {
        let is_interleaved = self.delta_net()?;
        let ssm = self.model.hparams.ssm?;
        if !layer.is_recurrent && matches!(subject, Subject::Layer(Kind::AttnQkv, _)) {
            let q = product([layer.n_head, layer.n_embd_head_k, 2]);
            return Some(vec![(q, 1), (layer.n_embd_v_gqa(), 2)]);
        }
        let (head, n_k_head, n_v_head) = (ssm.d_state, ssm.n_group, ssm.dt_rank);
        let (key, value) = (product([head, n_k_head, 1]), product([head, n_v_head, 1]));
        let taps = (ssm.d_conv - 1).max(0);
        let [keys, values] = [key, value].map(|n| n.saturating_mul(taps));
        let ratio = n_v_head / n_k_head.max(1);
        let is_mixed = matches!(
            subject,
            Subject::Layer(Kind::AttnQkv | Kind::SsmConv1d, Part::Weight)
        );
        let stretches = match subject {
            _ if is_mixed && is_interleaved => vec![(key, 2 + ratio)],
            _ if is_mixed => vec![(key, 2), (value, 1)],
            Subject::Cache(CacheKind::R) if is_interleaved => vec![(keys, 2 + ratio)],
            Subject::Cache(CacheKind::R) => vec![(keys, 2), (values, 1)],
            _ if !is_interleaved => return None,
            Subject::Layer(Kind::AttnGate | Kind::SsmOut, Part::Weight) => vec![(key, ratio)],
            Subject::Layer(Kind::SsmDt, Part::Bias)
            | Subject::Layer(Kind::SsmA | Kind::SsmAlpha | Kind::SsmBeta, Part::Weight) => {
                vec![(n_k_head, ratio)]
            }
            Subject::Cache(CacheKind::S) => vec![(product([n_k_head, head, head]), ratio)],
            _ => return None,
        };
        Some(stretches)
    }

    /// What slices are rounded to, of the first stretch and of others; `None` where llama.cpp divides by 0.
    fn granularity(
        &self,
        il: usize,
        subject: Subject,
        ne: [i64; 4],
        block: i64,
    ) -> Option<[i64; 2]> {
        let layer = self.model.hparams.layers.get(il)?;
        let of_kind = match layer.is_recurrent {
            true => self.state_granularity(subject, block)?,
            false => self.head_granularity(il, layer, subject, ne, block)?,
        };
        let of_ffn = match subject {
            Subject::Layer(
                Kind::FfnUp | Kind::FfnUpExps | Kind::FfnGate | Kind::FfnGateExps,
                Part::Weight | Part::Bias,
            )
            | Subject::Layer(
                Kind::FfnGateUpExps
                | Kind::FfnDown
                | Kind::FfnDownExps
                | Kind::FfnUpShexp
                | Kind::FfnGateShexp
                | Kind::FfnDownShexp,
                Part::Weight,
            ) => lcm(block, COLUMNS),
            _ => 1,
        };
        Some(of_kind.unwrap_or([of_ffn; 2]))
    }

    /// Linear attention: whole heads of the state.
    fn state_granularity(&self, subject: Subject, block: i64) -> Option<Option<[i64; 2]>> {
        let (head, taps) = self
            .model
            .hparams
            .ssm
            .map_or((0, 0), |s| (s.d_state, s.d_conv - 1));
        let whole = lcm(lcm(block, COLUMNS), head);
        let heads = || whole.checked_div(head);
        let n = match subject {
            Subject::Layer(
                Kind::AttnQkv | Kind::AttnGate | Kind::SsmConv1d | Kind::SsmOut,
                Part::Weight,
            ) => whole,
            Subject::Layer(Kind::SsmDt, Part::Bias)
            | Subject::Layer(Kind::SsmA | Kind::SsmAlpha | Kind::SsmBeta, Part::Weight) => heads()?,
            Subject::Layer(Kind::SsmBa, Part::Weight) => heads()?.saturating_mul(2),
            Subject::Cache(CacheKind::R) => whole.saturating_mul(taps),
            Subject::Cache(CacheKind::S) => whole.saturating_mul(head),
            _ => return Some(None),
        };
        Some(Some([n; 2]))
    }

    /// Attention: whole groups of heads that share K and V.
    fn head_granularity(
        &self,
        il: usize,
        layer: &LayerHparams,
        subject: Subject,
        ne: [i64; 4],
        block: i64,
    ) -> Option<Option<[i64; 2]>> {
        let n_gqa = layer.n_head.checked_div(layer.n_head_kv).unwrap_or(0);
        let group = n_gqa.saturating_mul(layer.n_embd_head_k);
        let mut columns = block;
        while columns < COLUMNS && columns.saturating_mul(self.n_devices as i64) < group {
            columns *= 2;
        }
        let q = lcm(group, columns);
        let heads = q.checked_div(layer.n_embd_head_k)?;
        let with_gate = || match self.delta_net() {
            Some(_) => lcm(group.saturating_mul(2), columns),
            None => q,
        };
        if let Some(n) = self.compressed_granularity(il, layer, subject)? {
            return Some(Some([n; 2]));
        }
        let n = match subject {
            Subject::Layer(Kind::AttnSinks, Part::Weight) => heads,
            Subject::Layer(Kind::AttnQ, Part::Weight | Part::Bias) => with_gate(),
            Subject::Layer(Kind::AttnOutput, Part::Weight) => q,
            Subject::Layer(Kind::AttnGate, Part::Weight) if ne[1] == layer.n_head => heads,
            Subject::Layer(Kind::AttnGate, Part::Weight) => q,
            _ => {
                let kv = q.checked_div(n_gqa)?;
                return Some(match subject {
                    Subject::Layer(Kind::AttnK | Kind::AttnV, Part::Weight | Part::Bias)
                    | Subject::Cache(CacheKind::K | CacheKind::V) => Some([kv; 2]),
                    Subject::Layer(Kind::AttnQkv, Part::Weight | Part::Bias) => {
                        Some([with_gate(), kv])
                    }
                    _ => None,
                });
            }
        };
        Some(Some([n; 2]))
    }

    /// DeepSeek-V4: whole groups of heads that share an output matrix.
    fn compressed_granularity(
        &self,
        il: usize,
        layer: &LayerHparams,
        subject: Subject,
    ) -> Option<Option<i64>> {
        let Some(compressor) = self.model.hparams.compressor else {
            return Some(None);
        };
        let n_head = || layer.n_head.checked_div(compressor.n_out_group);
        let n = match subject {
            Subject::Layer(Kind::AttnSinks, Part::Weight) => n_head()?,
            Subject::Layer(Kind::AttnQB, Part::Weight) => {
                n_head()?.saturating_mul(layer.n_embd_head_k)
            }
            Subject::Layer(Kind::AttnOutputA, Part::Weight) => 1,
            Subject::Layer(Kind::AttnOutputB, Part::Weight) => {
                let groups = self
                    .model
                    .layer_tensor(il, Kind::AttnOutputA, Part::Weight)?;
                self.model.tensors[groups].ne[1]
            }
            _ => return Some(None),
        };
        Some(Some(n))
    }

    /// The shape of each device's part.
    fn slices(&self, ne: [i64; 4], cut: Option<Cut>) -> Vec<[i64; 4]> {
        let mut slices = vec![ne; self.n_devices];
        let Some(cut) = cut else {
            return slices;
        };
        for slice in &mut slices {
            slice[cut.axis] = 0;
        }
        for segment in &cut.segments {
            let mut low = 0;
            for j in 0..self.n_devices {
                let high = match j + 1 == self.n_devices {
                    true => segment.n,
                    false => self.boundary(segment, j, cut.rotation),
                };
                let n = &mut slices[(j + cut.rotation) % self.n_devices][cut.axis];
                *n = n.saturating_add((high - low).saturating_mul(segment.repeats));
                low = high;
            }
        }
        slices
    }

    /// Where the part of the `j`th device from `rotation` on ends, in llama.cpp's own precision.
    fn boundary(&self, segment: &Segment, j: usize, rotation: usize) -> i64 {
        let share = |j: usize| self.shares[(j + rotation) % self.n_devices];
        let high = if self.shares.is_empty() {
            segment.n.saturating_mul(j as i64 + 1) / self.n_devices as i64
        } else {
            let sum = |n: usize| (0..n).fold(0.0f32, |sum, j| sum + share(j));
            (segment.n as f32 * sum(j + 1) / sum(self.n_devices)) as i64
        };
        high - high.checked_rem(segment.granularity).unwrap_or(0)
    }
}

/// DeepSeek-V4's own rules; outside `None` where it has none.
fn compressed_axis(subject: Subject) -> Option<Option<(usize, &'static [Kind])>> {
    const GROUPS: &[Kind] = &[Kind::AttnOutputA];
    let (kind, part) = match subject {
        Subject::Cache(_) => return Some(None),
        Subject::Layer(kind, part) => (kind, part),
    };
    match (kind, part) {
        (Kind::AttnSinks, Part::Weight) => Some(Some((0, GROUPS))),
        (Kind::AttnQB, Part::Weight) => Some(Some((1, GROUPS))),
        (Kind::AttnOutputA, Part::Weight) => Some(Some((2, GROUPS))),
        (Kind::AttnOutputB, Part::Weight) => Some(Some((0, &[Kind::AttnOutputB]))),
        (Kind::FfnUpShexp | Kind::FfnGateShexp, Part::Weight) => Some(Some((1, SHARED))),
        (Kind::FfnDownShexp, Part::Weight) => Some(Some((0, SHARED))),
        _ => None,
    }
}

fn product(factors: [i64; 3]) -> i64 {
    factors.into_iter().fold(1, i64::saturating_mul)
}

/// The least common multiple; 0 with 0.
fn lcm(a: i64, b: i64) -> i64 {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a.checked_div(x).map_or(0, |n| n.saturating_mul(b))
}
