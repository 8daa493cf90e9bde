//! One file a family of models: what it reads from the header, and its graph, which reads like the
//! model's paper.

mod bert;
mod cohere;
mod deepseek;
mod falcon;
mod gemma;
mod gemma3n;
mod glm;
mod gpt;
mod granite;
mod lfm2;
mod llama;
mod mamba;
mod minicpm3;
mod olmo2;
mod qwen;
mod qwen3next;
mod rwkv6;

use crate::Result;
use crate::graph::{LlmGraph, Norm};
use crate::hparams::Hparams;
use crate::keys::Keys;
use std::fmt;

/// An architecture of llama.cpp: `general.architecture` and what follows from it.
pub struct Architecture {
    /// As files name it.
    pub name: &'static str,
    /// Its normalisation.
    pub norm: Norm,
    /// Reads what is particular to it.
    pub hparams: fn(&Keys<'_>, &mut Hparams) -> Result<()>,
    /// Builds its graph.
    pub graph: fn(&mut LlmGraph<'_>),
    /// Ends in logits over the vocabulary.
    pub has_lm_head: bool,
    /// Its graph may have many more nodes than tensors.
    pub has_large_graph: bool,
    /// `ssm_a` is read by a scan (Mamba), not multiplied (gated delta nets).
    pub scans: bool,
    /// Leaves out the output matrix where embeddings are wanted.
    pub embeddings_skip_head: bool,
    /// Creates its tied output matrix before the token embedding, so the two are never one.
    pub makes_output_first: bool,
    /// `token_embd_norm` is its final norm.
    pub embd_norm_is_output: bool,
    /// Asks for f32 sums behind attention and in the last matrix of a feed-forward block, which
    /// overflow in f16.
    pub sums_in_f32: bool,
    /// Layers with a sliding window rotate without frequency factors.
    pub rope_freqs_skip_swa: bool,
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
            graph,
            has_lm_head: true,
            has_large_graph: false,
            scans: true,
            embeddings_skip_head: false,
            makes_output_first: false,
            embd_norm_is_output: false,
            sums_in_f32: false,
            rope_freqs_skip_swa: false,
        }
    }

    const fn reads(mut self, hparams: fn(&Keys<'_>, &mut Hparams) -> Result<()>) -> Architecture {
        self.hparams = hparams;
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

    const fn large_graph(mut self) -> Architecture {
        self.has_large_graph = true;
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

    const fn embd_norm_output(mut self) -> Architecture {
        self.embd_norm_is_output = true;
        self
    }

    const fn f32_sums(mut self) -> Architecture {
        self.sums_in_f32 = true;
        self
    }

    const fn plain_rope_in_window(mut self) -> Architecture {
        self.rope_freqs_skip_swa = true;
        self
    }

    /// Every architecture whose graph is known, by name.
    pub const ALL: &'static [Architecture] = &[
        Architecture::new("bert", bert::graph)
            .reads(bert::hparams)
            .layer_norm()
            .no_lm_head(),
        Architecture::new("command-r", cohere::command_r).layer_norm(),
        Architecture::new("deepseek2", deepseek::graph),
        Architecture::new("ernie4_5", llama::ernie),
        Architecture::new("ernie4_5-moe", llama::ernie),
        Architecture::new("exaone4", olmo2::exaone4).reads(olmo2::exaone4_hparams),
        Architecture::new("falcon", falcon::graph).layer_norm(),
        Architecture::new("gemma2", gemma::gemma2).reads(gemma::gemma2_hparams),
        Architecture::new("gemma3", gemma::gemma3).reads(gemma::gemma3_hparams),
        Architecture::new("gemma3n", gemma3n::graph)
            .reads(gemma3n::hparams)
            .output_first(),
        Architecture::new("gemma4", gemma::gemma4)
            .reads(gemma::gemma4_hparams)
            .output_first()
            .plain_rope_in_window(),
        Architecture::new("glm4", glm::glm4).f32_sums(),
        Architecture::new("glm4moe", glm::glm4moe).f32_sums(),
        Architecture::new("gpt-oss", gpt::gpt_oss).reads(gpt::gpt_oss_hparams),
        Architecture::new("gpt2", gpt::gpt2).layer_norm(),
        Architecture::new("granite", granite::graph),
        Architecture::new("granitehybrid", granite::graph).reads(mamba::hybrid_hparams),
        Architecture::new("hunyuan-dense", llama::hunyuan),
        Architecture::new("jamba", mamba::jamba).reads(mamba::hybrid_hparams),
        Architecture::new("lfm2", lfm2::graph)
            .reads(lfm2::hparams)
            .embd_norm_output()
            .embeddings_without_head(),
        Architecture::new("llama", llama::llama),
        Architecture::new("llama4", llama::llama4).reads(llama::llama4_hparams),
        Architecture::new("mamba", mamba::mamba).reads(mamba::hybrid_hparams),
        Architecture::new("mamba2", mamba::mamba2).reads(mamba::hybrid_hparams),
        Architecture::new("minicpm3", minicpm3::graph),
        Architecture::new("nemotron_h", mamba::nemotron_h).reads(mamba::nemotron_h_hparams),
        Architecture::new("nomic-bert", bert::nomic)
            .reads(bert::hparams)
            .layer_norm()
            .no_lm_head(),
        Architecture::new("olmo2", olmo2::olmo2).reads(olmo2::olmo2_hparams),
        Architecture::new("phi3", llama::phi3),
        Architecture::new("qwen2", qwen::graph),
        Architecture::new("qwen3", qwen::graph),
        Architecture::new("qwen35", qwen3next::qwen35)
            .reads(qwen3next::qwen35_hparams)
            .large_graph()
            .no_scan(),
        Architecture::new("qwen3moe", qwen::graph),
        Architecture::new("qwen3next", qwen3next::qwen3next)
            .reads(qwen3next::hparams)
            .large_graph()
            .no_scan(),
        Architecture::new("rwkv6", rwkv6::graph)
            .reads(rwkv6::hparams)
            .layer_norm(),
        Architecture::new("smollm3", llama::smollm3),
        Architecture::new("starcoder2", gpt::starcoder2).layer_norm(),
    ];

    /// The architecture named `name` in `general.architecture`.
    pub fn find(name: &str) -> Option<&'static Architecture> {
        Self::ALL.iter().find(|a| a.name == name)
    }
}
