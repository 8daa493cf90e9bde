//! What the user asks for, and what llama.cpp makes of it (`llama_context::llama_context`).

use crate::{Error, NotModelled, Refusal};
use vramfit_arch::{
    Adapters, ContextParams, CpuRepack, Hparams, Model, Pooling, Role, Unfused, pad_256,
};
use vramfit_ggml::Type;

/// `LLAMA_MAX_SEQ`: most sequences of a context.
pub const MAX_SEQ: u32 = 256;

/// Flash attention (`-fa`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FlashAttention {
    /// On when the device of every layer has a kernel for it.
    #[default]
    Auto,
    /// On, on the CPU where a device cannot.
    On,
    /// Off.
    Off,
}

/// For how many tokens of a batch logits are reserved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Outputs {
    /// One a sequence, as llama-server does.
    #[default]
    PerSequence,
    /// Every token of a batch, the library's own default.
    EveryToken,
    /// This many.
    AtMost(u32),
}

/// Settings of one run, as llama.cpp's flags name them. The defaults are those of the flags;
/// `n_ctx` 4096 and one sequence.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct RunConfig {
    /// Context size, tokens; 0 for the model's own.
    pub n_ctx: u32,
    /// Logical batch, tokens.
    pub n_batch: u32,
    /// Physical batch, tokens; 0 for the logical batch.
    pub n_ubatch: u32,
    /// Sequences at once.
    pub n_seq_max: u32,
    /// One KV cache for all sequences.
    pub kv_unified: bool,
    /// Flash attention.
    pub flash_attention: FlashAttention,
    /// Element type of the K cache.
    pub type_k: Type,
    /// Element type of the V cache.
    pub type_v: Type,
    /// KV cache and attention on the devices.
    pub offload_kqv: bool,
    /// Host weights are copied to a device for large batches.
    pub op_offload: bool,
    /// Full-size cache for layers with a sliding window.
    pub swa_full: bool,
    /// Host weights stay in the mapped file.
    pub use_mmap: bool,
    /// The CPU's buffers are pinned for the first device (off: `--no-host`).
    pub pinned_host: bool,
    /// What the host's CPU re-orders of weights that are not pinned.
    pub cpu_repack: CpuRepack,
    /// Embeddings are wanted.
    pub embeddings: bool,
    /// Pooling; `None` for the model's own.
    pub pooling: Option<Pooling>,
    /// Reserved logits.
    pub outputs: Outputs,
    /// LoRA adapters and a control vector.
    pub adapters: Adapters,
    /// Its part in speculative decoding; set by [`SpeculativeUse`](crate::SpeculativeUse).
    pub role: Role,
}

impl Default for RunConfig {
    fn default() -> RunConfig {
        RunConfig {
            n_ctx: 4096,
            n_batch: 2048,
            n_ubatch: 512,
            n_seq_max: 1,
            kv_unified: false,
            flash_attention: FlashAttention::Auto,
            type_k: Type::F16,
            type_v: Type::F16,
            offload_kqv: true,
            op_offload: true,
            swa_full: false,
            use_mmap: true,
            pinned_host: true,
            cpu_repack: CpuRepack::default(),
            embeddings: false,
            pooling: None,
            outputs: Outputs::PerSequence,
            adapters: Adapters::default(),
            role: Role::default(),
        }
    }
}

/// Types that llama.cpp's tools take for K and V.
pub const CACHE_TYPES: [Type; 9] = [
    Type::F32,
    Type::F16,
    Type::BF16,
    Type::Q8_0,
    Type::Q4_0,
    Type::Q4_1,
    Type::IQ4_NL,
    Type::Q5_0,
    Type::Q5_1,
];

impl RunConfig {
    /// The context that llama.cpp makes of these settings; flash attention `auto` still counts as
    /// on. An error where llama.cpp refuses, and where there is no rule.
    pub fn resolve(&self, model: &Model) -> Result<ContextParams, Error> {
        self.check_modelled(model)?;
        self.check(model)?;
        let hp = &model.hparams;
        let n_seq_max = i64::from(self.n_seq_max.max(1));
        let n_ctx = if self.n_ctx == 0 {
            hp.n_ctx_train
        } else {
            i64::from(self.n_ctx)
        };
        let (batch, ubatch) = (i64::from(self.n_batch), i64::from(self.n_ubatch));
        let n_batch = if hp.is_causal {
            n_ctx.min(batch)
        } else {
            batch
        };
        let n_ubatch = n_batch.min(if ubatch == 0 { batch } else { ubatch });
        let mut n_ctx = pad_256(n_ctx);
        let n_ctx_seq = if self.kv_unified {
            n_ctx
        } else {
            pad_256(n_ctx / n_seq_max)
        };
        if !self.kv_unified {
            n_ctx = n_ctx_seq * n_seq_max;
        }
        if n_ctx_seq == 0 || n_ubatch == 0 {
            return Err(Refusal::EmptyContext {
                n_ctx: n_ctx as u64,
                n_ubatch: n_ubatch as u64,
            }
            .into());
        }
        let n_outputs_max = match self.outputs {
            _ if model.architecture.has_encoder => n_batch,
            Outputs::PerSequence if self.embeddings => n_batch,
            Outputs::PerSequence => {
                batch.min(n_seq_max.saturating_mul(1 + i64::from(self.role.n_draft)))
            }
            Outputs::EveryToken | Outputs::AtMost(0) => n_batch,
            Outputs::AtMost(n) => i64::from(n),
        };
        if n_outputs_max < n_seq_max {
            return Err(Refusal::FewOutputs {
                n_seq_max,
                n_outputs_max,
            }
            .into());
        }
        let flash_attn = self.flash_attention_for(model) != FlashAttention::Off;
        let file_pooling = hp.pooling_type.and_then(Pooling::from_id);
        Ok(ContextParams {
            n_ctx,
            n_ctx_seq,
            n_batch,
            n_ubatch,
            n_seq_max,
            n_outputs_max,
            kv_unified: self.kv_unified,
            flash_attn,
            unfused: Unfused::default(),
            v_trans: !flash_attn,
            offload_kqv: self.offload_kqv,
            swa_full: self.swa_full,
            op_offload: self.op_offload,
            embeddings: self.embeddings,
            pooling: self.pooling.or(file_pooling).unwrap_or_default(),
            type_k: self.type_k,
            type_v: self.type_v,
            adapters: self.adapters.clone(),
            role: Role {
                n_rollback: match model.architecture.rolls_back {
                    true => self.role.n_rollback,
                    false => 0,
                },
                ..self.role.clone()
            },
        })
    }

    /// Whether flash attention is settled by a probe. A quantised V settles it before.
    pub(crate) fn probes_flash_attention(&self, model: &Model) -> bool {
        let is_auto = self.flash_attention_for(model) == FlashAttention::Auto;
        is_auto && !self.type_v.is_quantized()
    }

    /// The user's choice, where the model leaves one.
    fn flash_attention_for(&self, model: &Model) -> FlashAttention {
        if model.architecture.lacks_flash_attention {
            FlashAttention::Off
        } else {
            self.flash_attention
        }
    }

    /// What is not known of `model`.
    fn check_modelled(&self, model: &Model) -> Result<(), NotModelled> {
        let architecture = || model.architecture_name.clone();
        if !model.is_known() && !self.adapters.is_empty() {
            return Err(NotModelled::AdaptersOfUnknown {
                architecture: architecture(),
            });
        }
        if self.role.is_mtp && model.architecture.mtp.is_none() && has_prediction(model) {
            return Err(NotModelled::Prediction {
                architecture: architecture(),
            });
        }
        Ok(())
    }

    fn check(&self, model: &Model) -> Result<(), Refusal> {
        let off = self.flash_attention_for(model) == FlashAttention::Off;
        if self.n_batch == 0 && self.n_ubatch == 0 {
            return Err(Refusal::EmptyContext {
                n_ctx: u64::from(self.n_ctx),
                n_ubatch: 0,
            });
        }
        if self.role.is_mtp && !has_prediction(model) {
            return Err(Refusal::NoMtp);
        }
        if self.role.is_mtp {
            check_prediction(&model.hparams)?;
        }
        let lent = self.role.target.as_ref().and_then(|t| t.caches.as_ref());
        if model.hparams.n_embd_target > 0 && lent.is_none() {
            return Err(Refusal::NeedsGemma4);
        }
        if self.n_seq_max > MAX_SEQ {
            return Err(Refusal::TooManySequences {
                n_seq_max: self.n_seq_max,
            });
        }
        let compresses = model.hparams.compressor.is_some_and(|c| c.has_cells);
        let k_only = model.hparams.mla.is_some() || compresses;
        if model.is_known() && k_only && self.type_k != self.type_v {
            return Err(Refusal::MixedMlaTypes {
                type_k: self.type_k,
                type_v: self.type_v,
            });
        }
        if self.type_v.is_quantized() && off {
            return Err(Refusal::QuantizedVWithoutFlashAttention {
                type_v: self.type_v,
            });
        }
        match model.is_known() {
            true => self.check_cache(model, off),
            false => Ok(()), // what its caches look like is not known
        }
    }

    /// The types fit the caches of `model`.
    fn check_cache(&self, model: &Model, off: bool) -> Result<(), Refusal> {
        for layer in model.hparams.layers.iter().take(model.hparams.n_layer()) {
            let heads = [
                ("K", self.type_k, layer.n_embd_head_k, layer.n_embd_k_gqa()),
                ("V", self.type_v, layer.n_embd_head_v, layer.n_embd_v_gqa()),
            ];
            for (which, ty, head, row) in heads {
                let block = ty.block_size() as i64;
                // With flash attention every head is read by itself, else whole rows are.
                let width = if off { row } else { head };
                let is_read = model.hparams.has_memory || !off;
                if is_read && width % block != 0 {
                    return Err(Refusal::CacheBlockSize {
                        which,
                        ty,
                        block,
                        width,
                    });
                }
            }
        }
        Ok(())
    }
}

/// Where llama.cpp ends at a context for DeepSeek-V4's layers for multi-token prediction.
fn check_prediction(hp: &Hparams) -> Result<(), Refusal> {
    if !hp.compressor.is_some_and(|c| c.has_cells) {
        return Ok(());
    }
    let n = hp.n_layer_all.saturating_sub(hp.n_layer());
    let ratio = hp.layers.get(hp.n_layer()).map_or(0, |l| l.compress_ratio);
    match hp.rotated_by_indexer() {
        Some(width) => Err(Refusal::IndexerWideMtp { width }),
        None if n > 1 => Err(Refusal::OneMtpLayer { n }),
        None if ratio != 0 => Err(Refusal::CompressedMtp { ratio }),
        None => Ok(()),
    }
}

/// Whether the file has layers for multi-token prediction.
fn has_prediction(model: &Model) -> bool {
    model.hparams.n_layer_all > model.hparams.n_layer()
}
