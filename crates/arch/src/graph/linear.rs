//! Linear maps: the product, its bias and scale, and what adapters add (`build_lora_mm`).

use super::LlmGraph;
use crate::adapter::LoraTensor;
use crate::names::{Kind, Part};
use vramfit_ggml::{BufferType, Flags, Label, TensorId};

/// Where the scale of a matrix (`.scale`) is multiplied in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScaleAt {
    /// Right behind the product.
    Product,
    /// Behind what adapters add.
    Adapted,
    /// Behind the bias, too.
    Biased,
}

impl LlmGraph<'_> {
    /// `W x + b`, bias and scale as the model has them.
    pub fn linear(&mut self, x: TensorId, kind: Kind, il: usize) -> TensorId {
        let architecture = self.model.architecture;
        let mut unadapted = architecture.unadapted.iter();
        if unadapted.any(|kinds| kinds.contains(&kind)) {
            return self.linear_unadapted(x, kind, il);
        }
        let at = match kind {
            Kind::AttnOutput if architecture.sums_in_f32 => ScaleAt::Adapted,
            Kind::FfnUp | Kind::FfnGate | Kind::FfnDown => ScaleAt::Biased,
            Kind::FfnUpShexp | Kind::FfnGateShexp | Kind::FfnDownShexp => ScaleAt::Biased,
            _ => ScaleAt::Product,
        };
        self.linear_scaled(x, kind, il, at)
    }

    /// [`linear`](Self::linear) with the matrix's scale in a place of its own.
    pub fn linear_scaled(&mut self, x: TensorId, kind: Kind, il: usize, at: ScaleAt) -> TensorId {
        let w = self.weight(il, kind);
        let scale = self.scale_of(il, kind);
        let scale_at = |place| scale.filter(|_| at == place);
        let mut cur = self.adapted_scaled(w, x, None, scale_at(ScaleAt::Product));
        let sums = matches!(kind, Kind::AttnOutput | Kind::FfnDown | Kind::FfnDownShexp);
        if sums && self.model.architecture.sums_in_f32 {
            self.graph[cur].flags.insert(Flags::PREC_F32);
        }
        if let Some(scale) = scale_at(ScaleAt::Adapted) {
            cur = self.mul(cur, scale);
        }
        if let Some(bias) = self.bias_of(il, kind) {
            cur = self.add(cur, bias);
        }
        if let Some(scale) = scale_at(ScaleAt::Biased) {
            cur = self.mul(cur, scale);
        }
        self.graph.name_layer(cur, kind.name(), il);
        cur
    }

    /// `W x + b` of a matrix that adapters and scales leave alone.
    pub fn linear_unadapted(&mut self, x: TensorId, kind: Kind, il: usize) -> TensorId {
        let w = self.weight(il, kind);
        let mut cur = self.mul_mat(w, x);
        if let Some(bias) = self.bias_of(il, kind) {
            cur = self.add(cur, bias);
        }
        self.graph.name_layer(cur, kind.name(), il);
        cur
    }

    /// The bias of a matrix, where the graph adds it.
    fn bias_of(&mut self, il: usize, kind: Kind) -> Option<TensorId> {
        let of_block = matches!(
            kind,
            Kind::AttnOutput | Kind::FfnUp | Kind::FfnGate | Kind::FfnDown
        );
        let is_read = self.model.architecture.has_block_biases || !of_block;
        self.optional(il, kind, Part::Bias).filter(|_| is_read)
    }

    /// `build_lora_mm`, `build_lora_mm_id`: `W x`, of the experts `ids` if there are any, and what adapters add.
    pub(crate) fn adapted(&mut self, w: TensorId, x: TensorId, ids: Option<TensorId>) -> TensorId {
        self.adapted_scaled(w, x, ids, None)
    }

    /// [`adapted`](Self::adapted) with the scale of `W`.
    pub(crate) fn adapted_scaled(
        &mut self,
        w: TensorId,
        x: TensorId,
        ids: Option<TensorId>,
        scale: Option<TensorId>,
    ) -> TensorId {
        let product = |g: &mut Self, w, x| match ids {
            Some(ids) => g.mul_mat_id(w, x, ids),
            None => g.mul_mat(w, x),
        };
        let mut cur = product(self, w, x);
        if let Some(scale) = scale {
            cur = self.mul(cur, scale);
        }
        for lora in 0..self.cp.adapters.loras.len() {
            let Some([a, b]) = self.lora_pair(lora, w) else {
                continue;
            };
            let low = product(self, a, x);
            let added = product(self, b, low);
            let added = self.scale(added);
            cur = self.add(cur, added);
        }
        cur
    }

    /// A and B of adapter `lora` for the weight `w`, in the memory of the weight.
    pub(crate) fn lora_pair(&mut self, lora: usize, w: TensorId) -> Option<[TensorId; 2]> {
        let Label::Weight(index) = self.graph.label(w) else {
            return None;
        };
        if let Some(&pair) = self.lora_pairs.get(&(lora, index)) {
            return Some(pair); // a block that runs several times
        }
        let adapter = self.cp.adapters.loras.get(lora);
        let pair = adapter
            .filter(|l| l.is_applied)?
            .pairs
            .get(&(index as usize))?;
        let buffer = match self.graph[w].buffer? {
            BufferType::HOST_REPACKED => BufferType::HOST,
            buffer => buffer,
        };
        let place = |t: LoraTensor| self.graph.placed(Label::Step("lora"), t.ty, t.ne, buffer);
        let pair = pair.map(place);
        self.lora_pairs.insert((lora, index), pair);
        Some(pair)
    }
}
