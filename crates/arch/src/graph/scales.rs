//! Scales of whole matrices (`.scale` tensors, as NVFP4 has them). llama.cpp loads them for every
//! architecture, but not every graph multiplies by them.

use super::LlmGraph;
use crate::models::Architecture;
use crate::names::{Global, Kind, Part};
use vramfit_ggml::TensorId;

/// Matrices whose scales a graph multiplies by, or leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scale {
    /// Of a dense feed-forward block.
    Dense,
    /// The last one of a dense feed-forward block.
    FfnDown,
    /// Of experts.
    Experts,
    /// Of shared experts.
    SharedExperts,
    /// Attention's gate.
    AttnGate,
    /// Q, K and V.
    Qkv,
    /// Attention's output matrix.
    AttnOutput,
    /// Around a recurrent state.
    Ssm,
    /// The model's output matrix.
    Output,
}

impl Architecture {
    /// Graphs multiply by the scales around attention, states and the output unless they leave them, by others
    /// only where they say so.
    fn multiplies_by(&self, scale: Scale) -> bool {
        match scale {
            Scale::Qkv | Scale::AttnOutput | Scale::Ssm | Scale::Output => {
                !self.leaves_scales.contains(&scale)
            }
            _ => self.scales.contains(&scale),
        }
    }
}

impl LlmGraph<'_> {
    /// The scale of a matrix of layer `il`, where the graph multiplies by it.
    pub(super) fn scale_of(&mut self, il: usize, kind: Kind) -> Option<TensorId> {
        let scale = self.optional(il, kind, Part::Scale)?;
        let architecture = self.model.architecture;
        let reads = |scale| architecture.multiplies_by(scale);
        let is_read = match kind {
            Kind::FfnDown => reads(Scale::Dense) || reads(Scale::FfnDown),
            Kind::FfnUp | Kind::FfnGate => reads(Scale::Dense),
            Kind::FfnUpExps | Kind::FfnGateExps | Kind::FfnDownExps => reads(Scale::Experts),
            Kind::FfnUpShexp | Kind::FfnGateShexp | Kind::FfnDownShexp => {
                reads(Scale::SharedExperts)
            }
            Kind::AttnGate => reads(Scale::AttnGate),
            Kind::AttnQ | Kind::AttnK | Kind::AttnV | Kind::AttnQkv => reads(Scale::Qkv),
            Kind::AttnOutput => reads(Scale::AttnOutput),
            Kind::SsmIn | Kind::SsmOut => reads(Scale::Ssm),
            _ => true,
        };
        is_read.then_some(scale)
    }

    /// The scale of the output matrix, where the graph multiplies by it.
    pub(super) fn output_scale(&mut self) -> Option<TensorId> {
        let is_read = self.model.architecture.multiplies_by(Scale::Output);
        self.output_weight(Global::Output, Part::Scale)
            .filter(|_| is_read)
    }

    /// The scales of the experts `ids`: `[1, n_used, n_tokens]`.
    pub(super) fn scale_of_experts(
        &mut self,
        scale: TensorId,
        ids: TensorId,
        n_tokens: i64,
    ) -> TensorId {
        let n_expert = self[scale].ne[0];
        let scale = self.reshape(scale, [1, n_expert, 1, 1]);
        let scale = self.repeat(scale, [1, n_expert, n_tokens, 1]);
        self.get_rows(scale, ids)
    }
}
