//! One file a family of models: what it reads from the header, and its graph, which reads like the
//! model's paper.

mod bert;
mod bitnet;
mod chameleon;
mod cogvlm;
mod cohere;
mod cohere2moe;
mod deepseek;
mod deepseek4;
mod deepseek4_cells;
mod deepseek4_draft;
mod dflash2;
mod diffusion;
mod draft;
mod dsa;
mod falcon;
mod falcon_h1;
mod gated;
mod gated_moe;
mod gemma;
mod gemma3n;
mod glm;
mod gpt;
mod granite;
mod granite_switch;
mod grok;
mod grovemoe;
mod hy_v4;
mod kda;
mod kimi_k3;
mod lfm2;
mod llama;
mod looped;
mod mamba;
mod mellum;
mod mimo2;
mod minicpm3;
mod minimax01;
mod minimax_m3;
mod mistral;
mod moe;
mod olmo2;
mod parallel;
mod plain;
mod plamo2;
mod qwen;
mod qwen3next;
mod qwen4exp;
mod qwen_vl;
mod rwkv;
mod rwkv6;
mod rwkv7;
mod smallthinker;
mod t5;
mod talkie;
mod unknown;
mod wavtokenizer;

pub use dflash2::Selector;

use crate::Result;
use crate::graph::{LlmGraph, Norm, RankHead, Scale};
use crate::hparams::Hparams;
use crate::keys::Keys;
use crate::names::Kind;
use crate::slices::TensorSplit;
use std::fmt;

const FAMILIES: &[&[Architecture]] = &[
    bert::ALL,
    bitnet::ALL,
    chameleon::ALL,
    cogvlm::ALL,
    cohere::ALL,
    cohere2moe::ALL,
    deepseek::ALL,
    deepseek4::ALL,
    diffusion::ALL,
    draft::ALL,
    dsa::ALL,
    falcon::ALL,
    falcon_h1::ALL,
    gated::ALL,
    gated_moe::ALL,
    gemma::ALL,
    gemma3n::ALL,
    glm::ALL,
    gpt::ALL,
    granite::ALL,
    granite_switch::ALL,
    grok::ALL,
    grovemoe::ALL,
    hy_v4::ALL,
    kda::ALL,
    kimi_k3::ALL,
    lfm2::ALL,
    llama::ALL,
    looped::ALL,
    mamba::ALL,
    mellum::ALL,
    mimo2::ALL,
    minicpm3::ALL,
    minimax01::ALL,
    minimax_m3::ALL,
    mistral::ALL,
    moe::ALL,
    olmo2::ALL,
    parallel::ALL,
    plain::ALL,
    plamo2::ALL,
    qwen::ALL,
    qwen3next::ALL,
    qwen4exp::ALL,
    qwen_vl::ALL,
    rwkv::ALL,
    smallthinker::ALL,
    t5::ALL,
    talkie::ALL,
    wavtokenizer::ALL,
];

/// An architecture of llama.cpp: `general.architecture` and what follows from it.
pub struct Architecture {
    /// As files name it.
    pub name: &'static str,
    /// Its normalisation.
    pub norm: Norm,
    /// Reads what is particular to it.
    pub hparams: fn(&Keys<'_>, &mut Hparams) -> Result<()>,
    /// Constants of its header that it looks up, of those that only some architectures do.
    pub constants: &'static [&'static str],
    /// Scales of matrices that its graph multiplies by, of those that few do.
    pub scales: &'static [Scale],
    /// Scales that it leaves, of those that most multiply by.
    pub leaves_scales: &'static [Scale],
    /// Builds its graph; none for an architecture that is not known.
    pub graph: Option<fn(&mut LlmGraph<'_>)>,
    /// Builds that of its layers for multi-token prediction, where llama.cpp has one.
    pub mtp: Option<fn(&mut LlmGraph<'_>)>,
    /// Its recurrent states can be taken back some tokens (`llm_arch_supports_rs_rollback`).
    pub rolls_back: bool,
    /// Drafts may read what goes into its layers (`t_layer_inp`).
    pub taps: bool,
    /// Ends in logits over the vocabulary.
    pub has_lm_head: bool,
    /// Nodes that its graph may have, a token and a tensor, where they are many.
    pub graph_room: Option<(u64, u64)>,
    /// Memory is reserved for a prompt of one sequence, too, where there may be more.
    pub reserves_one_sequence: bool,
    /// A control vector is added behind every layer.
    pub controls_layers: bool,
    /// `ssm_a` is read by a scan (Mamba), not multiplied (gated delta nets).
    pub scans: bool,
    /// Leaves out the output matrix where embeddings are wanted.
    pub embeddings_skip_head: bool,
    /// Creates its tied output matrix before the token embedding, so the two are never one.
    pub makes_output_first: bool,
    /// Its output matrix is the token embedding itself, where it lies with the input layer.
    pub embd_is_output: bool,
    /// Without a token embedding it looks tokens up in a second copy of its output matrix.
    pub output_embeds: bool,
    /// Adds the biases of attention's output and of the feed-forward block where the file has any.
    pub has_block_biases: bool,
    /// Adds a bias to its logits where the file has one.
    pub has_output_bias: bool,
    /// `token_embd_norm` is its final norm.
    pub embd_norm_is_output: bool,
    /// Asks for f32 sums behind attention and in the last matrix of a feed-forward block, which
    /// overflow in f16.
    pub sums_in_f32: bool,
    /// Asks for f32 activations before the last matrix of its experts, which CUDA does not have.
    pub experts_in_f32: bool,
    /// Layers with a sliding window rotate without frequency factors.
    pub rope_freqs_skip_swa: bool,
    /// Its embeddings a layer are read from the file row by row where they are large.
    pub reads_lazily: bool,
    /// Tensors of the multi-token-prediction layers that are loaded all the same.
    pub loads_mtp: &'static [Kind],
    /// How it scores, as a reranker.
    pub rank_head: RankHead,
    /// Has an encoder, whose results are all kept (`llama_model_has_encoder`).
    pub has_encoder: bool,
    /// Where the tokens without wanted logits are dropped.
    pub rows: Rows,
    /// What `-sm tensor` does with it.
    pub tensor_split: TensorSplit,
    /// Flash attention cannot be on.
    pub lacks_flash_attention: bool,
    /// Matrices of its layers that it multiplies without asking adapters (no `build_lora_mm`).
    pub unadapted: &'static [&'static [Kind]],
    /// The same of its output matrix.
    pub output_is_unadapted: bool,
}

/// What most models with latent attention multiply without asking adapters.
const LATENT: &[Kind] = &[
    Kind::AttnQ,
    Kind::AttnQA,
    Kind::AttnQB,
    Kind::AttnKvAMqa,
    Kind::AttnKvB,
    Kind::IndexerAttnK,
    Kind::IndexerAttnQB,
    Kind::IndexerProj,
];

/// Where the tokens without wanted logits are dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rows {
    /// Behind the last layer's attention.
    InLastLayer,
    /// Before the final norm; what goes into it is a result, too, for multi-token prediction.
    BehindLayers,
    /// Behind the final norm, whose result is one, too.
    BehindNorm,
}

impl fmt::Debug for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

const fn nothing(_: &Keys<'_>, _: &mut Hparams) -> Result<()> {
    Ok(())
}

impl Architecture {
    /// An architecture with RMS norms, nothing particular in its header and no exceptions.
    const fn new(name: &'static str, graph: fn(&mut LlmGraph<'_>)) -> Architecture {
        Architecture {
            name,
            norm: Norm::Rms,
            hparams: nothing,
            constants: &[],
            scales: &[],
            leaves_scales: &[],
            graph: Some(graph),
            mtp: None,
            rolls_back: false,
            taps: false,
            has_lm_head: true,
            graph_room: None,
            reserves_one_sequence: false,
            controls_layers: true,
            scans: true,
            embeddings_skip_head: false,
            makes_output_first: false,
            embd_is_output: false,
            output_embeds: false,
            has_block_biases: true,
            has_output_bias: true,
            embd_norm_is_output: false,
            sums_in_f32: false,
            experts_in_f32: false,
            rope_freqs_skip_swa: false,
            reads_lazily: false,
            loads_mtp: &[],
            rank_head: RankHead::Tanh,
            rows: Rows::InLastLayer,
            tensor_split: TensorSplit::Sliced,
            lacks_flash_attention: false,
            unadapted: &[],
            output_is_unadapted: false,
            has_encoder: false,
        }
    }

    const fn reads(mut self, hparams: fn(&Keys<'_>, &mut Hparams) -> Result<()>) -> Architecture {
        self.hparams = hparams;
        self
    }

    const fn constants(mut self, keys: &'static [&'static str]) -> Architecture {
        self.constants = keys;
        self
    }

    const fn scales(mut self, scales: &'static [Scale]) -> Architecture {
        self.scales = scales;
        self
    }

    const fn leaves_scales(mut self, scales: &'static [Scale]) -> Architecture {
        self.leaves_scales = scales;
        self
    }

    const fn predicts(mut self, mtp: fn(&mut LlmGraph<'_>)) -> Architecture {
        self.mtp = Some(mtp);
        self
    }

    const fn rolling_back(mut self) -> Architecture {
        self.rolls_back = true;
        self
    }

    const fn tapped(mut self) -> Architecture {
        self.taps = true;
        self
    }

    const fn layer_norm(mut self) -> Architecture {
        self.norm = Norm::Layer;
        self
    }

    const fn no_lm_head(mut self) -> Architecture {
        self.has_lm_head = false;
        self
    }

    const fn large_graph(self) -> Architecture {
        self.graph_room(40, 32)
    }

    const fn graph_room(mut self, per_token: u64, per_tensor: u64) -> Architecture {
        self.graph_room = Some((per_token, per_tensor));
        self
    }

    const fn reserves_one_sequence(mut self) -> Architecture {
        self.reserves_one_sequence = true;
        self
    }

    const fn no_control(mut self) -> Architecture {
        self.controls_layers = false;
        self
    }

    const fn no_scan(mut self) -> Architecture {
        self.scans = false;
        self
    }

    const fn embeddings_without_head(mut self) -> Architecture {
        self.embeddings_skip_head = true;
        self
    }

    const fn output_first(mut self) -> Architecture {
        self.makes_output_first = true;
        self
    }

    const fn embd_output(mut self) -> Architecture {
        self.embd_is_output = true;
        self
    }

    const fn embeds_by_output(mut self) -> Architecture {
        self.output_embeds = true;
        self
    }

    const fn no_block_biases(mut self) -> Architecture {
        self.has_block_biases = false;
        self
    }

    const fn no_output_bias(mut self) -> Architecture {
        self.has_output_bias = false;
        self
    }

    const fn embd_norm_output(mut self) -> Architecture {
        self.embd_norm_is_output = true;
        self
    }

    const fn f32_sums(mut self) -> Architecture {
        self.sums_in_f32 = true;
        self
    }

    const fn f32_experts(mut self) -> Architecture {
        self.experts_in_f32 = true;
        self
    }

    const fn plain_rope_in_window(mut self) -> Architecture {
        self.rope_freqs_skip_swa = true;
        self
    }

    const fn lazily(mut self) -> Architecture {
        self.reads_lazily = true;
        self
    }

    const fn loads_of_mtp(mut self, kinds: &'static [Kind]) -> Architecture {
        self.loads_mtp = kinds;
        self
    }

    const fn with_encoder(mut self) -> Architecture {
        self.has_encoder = true;
        self
    }

    const fn rows_behind_layers(mut self) -> Architecture {
        self.rows = Rows::BehindLayers;
        self
    }

    const fn rows_behind_norm(mut self) -> Architecture {
        self.rows = Rows::BehindNorm;
        self
    }

    const fn tensor_split(mut self, split: TensorSplit) -> Architecture {
        self.tensor_split = split;
        self
    }

    /// Without `-sm tensor`.
    const fn whole(self) -> Architecture {
        self.tensor_split(TensorSplit::Refused)
    }

    const fn no_flash_attention(mut self) -> Architecture {
        self.lacks_flash_attention = true;
        self
    }

    const fn unadapted(mut self, kinds: &'static [&'static [Kind]]) -> Architecture {
        self.unadapted = kinds;
        self
    }

    const fn output_unadapted(mut self) -> Architecture {
        self.output_is_unadapted = true;
        self
    }

    const fn ranks_by(mut self, head: RankHead) -> Architecture {
        self.rank_head = head;
        self
    }

    /// Every architecture whose graph is known.
    pub fn all() -> impl Iterator<Item = &'static Architecture> {
        FAMILIES.iter().flat_map(|family| family.iter())
    }

    /// The architecture named `name` in `general.architecture`.
    pub fn find(name: &str) -> Option<&'static Architecture> {
        Self::all().find(|a| a.name == name)
    }
}
