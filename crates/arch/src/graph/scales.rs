//! Scales of whole matrices (`.scale` tensors, as NVFP4 has them). llama.cpp loads them for every
//! architecture, but not every graph multiplies by them.

use super::LlmGraph;
use crate::names::{Global, Kind, Part};
use vramfit_ggml::TensorId;

/// Architectures that scale the matrices of dense feed-forward blocks.
const DENSE: &[&str] = &[
    "bitnet",
    "cohere2",
    "cohere2moe",
    "deepseek32",
    "dflash",
    "dots3note",
    "gemma4",
    "glm-dsa",
    "hy_v3",
    "llama",
    "llama-embed",
    "mistral3",
    "nanbeige",
    "nemotron_h",
    "nemotron_h_moe",
    "qwen3",
    "qwen35",
];

/// Those that scale the matrices of experts.
const EXPERTS: &[&str] = &[
    "cohere2moe",
    "deepseek32",
    "dots3note",
    "gemma4",
    "glm-dsa",
    "hy_v3",
    "llama",
    "llama-embed",
    "mellum",
    "mistral3",
    "nemotron_h",
    "nemotron_h_moe",
    "qwen35moe",
    "qwen3moe",
    "qwen3next",
    "qwen4exp",
];

/// Those that scale the matrices of shared experts.
const SHARED: &[&str] = &[
    "cohere2moe",
    "deepseek32",
    "dots3note",
    "glm-dsa",
    "hy_v3",
    "nemotron_h",
    "nemotron_h_moe",
    "qwen35moe",
    "qwen3next",
    "qwen4exp",
];

/// Those that do not scale Q, K and V.
const NOT_QKV: &[&str] = &[
    "bailingmoe3",
    "cogvlm",
    "eagle3",
    "hy_v4",
    "kimi-k3",
    "kimi-linear",
    "minimax-01",
    "openelm",
    "plamo2",
    "plamo3",
    "plm",
];

/// Those that do not scale the output matrix of attention.
const NOT_ATTN_OUTPUT: &[&str] = &["bailingmoe3", "eagle3", "hy_v4", "kimi-k3"];

/// Those that do not scale the matrices around a recurrent state.
const NOT_SSM: &[&str] = &["plamo2", "qwen3next"];

/// Those that do not scale the output matrix.
const NOT_OUTPUT: &[&str] = &[
    "bailingmoe3",
    "bitnet",
    "cohere2moe",
    "deepseek2",
    "deepseek2-ocr",
    "deepseek4",
    "dots3note",
    "eagle3",
    "gemma-embedding",
    "gemma4-assistant",
    "hy_v4",
    "kimi-k3",
    "kimi-linear",
    "laguna",
    "mistral4",
    "spark2_5",
    "talkie",
];

/// Those that scale the gate of attention.
const GATES: &[&str] = &["qwen35", "qwen35moe", "qwen4exp"];

impl LlmGraph<'_> {
    /// The scale of a matrix of layer `il`, where the graph multiplies by it.
    pub(super) fn scale_of(&mut self, il: usize, kind: Kind) -> Option<TensorId> {
        let scale = self.optional(il, kind, Part::Scale)?;
        let name = self.model.architecture.name;
        let is_read = match kind {
            Kind::FfnDown if name == "talkie" => true,
            Kind::FfnUp | Kind::FfnGate | Kind::FfnDown => DENSE.contains(&name),
            Kind::FfnUpExps | Kind::FfnGateExps | Kind::FfnDownExps => EXPERTS.contains(&name),
            Kind::FfnUpShexp | Kind::FfnGateShexp | Kind::FfnDownShexp => SHARED.contains(&name),
            Kind::AttnGate => GATES.contains(&name),
            Kind::AttnQ | Kind::AttnK | Kind::AttnV | Kind::AttnQkv => !NOT_QKV.contains(&name),
            Kind::AttnOutput => !NOT_ATTN_OUTPUT.contains(&name),
            Kind::SsmIn | Kind::SsmOut => !NOT_SSM.contains(&name),
            _ => true,
        };
        is_read.then_some(scale)
    }

    /// The scale of the output matrix, where the graph multiplies by it.
    pub(super) fn output_scale(&mut self) -> Option<TensorId> {
        let skips = NOT_OUTPUT.contains(&self.model.architecture.name);
        self.output_weight(Global::Output, Part::Scale)
            .filter(|_| !skips)
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
