//! What every architecture reads (`llama_model::load_hparams`).

use super::limits::{CONTEXT, EXPERTS, HEADS, LAYERS, VOCAB, WIDTH};
use super::{Gating, Hparams, Kda, LayerHparams, Mla, Moe, Ssm};
use crate::keys::Keys;
use crate::{Error, Result};

impl Hparams {
    /// What every architecture reads (`llama_model::load_hparams`).
    pub(crate) fn load(keys: &Keys<'_>) -> Result<Hparams> {
        let n_nextn = keys.int("nextn_predict_layers", LAYERS)?.unwrap_or(0);
        Self::load_with_mtp(keys, n_nextn)
    }

    /// [`load`](Self::load), the last `n_nextn` layers being those of multi-token prediction.
    pub(crate) fn load_with_mtp(keys: &Keys<'_>, n_nextn: i64) -> Result<Hparams> {
        let n_layer_all = keys.require("block_count", LAYERS)?;
        let n_layer = (n_layer_all - n_nextn).max(0) as usize;
        let n_embd = keys.require("embedding_length", WIDTH)?;
        let n_ctx_train = keys.require("context_length", CONTEXT)?;
        let n_vocab = match keys.n_tokens() {
            Some(n) => i64::try_from(n).unwrap_or(i64::MAX).min(VOCAB),
            None => keys.require("vocab_size", VOCAB)?,
        };
        let n_ctx_orig = keys.positive("rope.scaling.original_context_length", CONTEXT)?;
        let mut layers = load_layers(keys, n_layer_all as usize, n_embd)?;
        // A model of multi-token-prediction layers alone keeps caches for those.
        let n_cached = if n_layer > 0 { n_layer } else { layers.len() };
        layers
            .iter_mut()
            .take(n_cached)
            .for_each(|l| l.is_cached = true);
        Ok(Hparams {
            n_layer_main: n_layer,
            n_layer_all: n_layer_all as usize,
            n_embd,
            n_deepstack: 0,
            n_vocab,
            n_ctx_train,
            n_ctx_orig_yarn: n_ctx_orig.unwrap_or(n_ctx_train),
            n_rot: keys.positive("rope.dimension_count", WIDTH)?,
            n_swa: 0,
            n_layer_kv: n_layer_all as usize,
            moe: load_moe(keys, &layers)?,
            mla: load_mla(keys)?,
            mla_swa: None,
            kv_lora_rank: keys.positive("attention.kv_lora_rank", WIDTH)?,
            indexer: None,
            n_streams: keys.int("hyper_connection.count", 16)?.unwrap_or(0),
            ngrams: None,
            compressor: None,
            fuses_hyper_connections: false,
            ssm: load_ssm(keys)?,
            kda: Kda::default(),
            altup: None,
            attn_softcap: false,
            attn_temperature: false,
            alibi: false,
            clamps_qkv: false,
            final_softcap: keys.is_set("final_logit_softcapping")?,
            scales_embeddings: keys.is_set("embedding_scale")?,
            scales_residual: keys.is_set("residual_scale")?,
            scales_logits: keys.is_set("logit_scale")?,
            norms_behind: false,
            norms_loops: false,
            hrm: None,
            is_causal: keys.flag("attention.causal")?.unwrap_or(true),
            has_memory: true,
            ignores_memory: false,
            lacks_n_ff_exp: false,
            n_pos_per_embd: 1,
            parallel_residual: false,
            no_rope: keys.flag("rope.scaling.finetuned")? == Some(false),
            rescale_every_n_layers: keys.int("rescale_every_n_layers", LAYERS)?.unwrap_or(0),
            pooling_type: keys.int("pooling_type", 16)?,
            recurrent_attends: false,
            n_posnet: 0,
            n_convnext: 0,
            norm_before_residual: false,
            block_size: 0,
            sample_from_anchor: true,
            selector: None,
            n_embd_target: 0,
            target_layers: Vec::new(),
            hidden_act: keys.text("hidden_activation")?.map(str::to_string),
            has_swa_layers: false,
            layers,
            n_layer_dec: 0,
            unknown: None,
            norm: None,
            scales_attention: false,
            n_layer_dense_lead: keys.int("leading_dense_block_count", LAYERS)?.unwrap_or(0)
                as usize,
        })
    }
}

fn load_layers(keys: &Keys<'_>, n_layer: usize, n_embd: i64) -> Result<Vec<LayerHparams>> {
    let n_head = keys.per_layer("attention.head_count", n_layer, HEADS)?;
    let n_head = n_head.unwrap_or_else(|| vec![0; n_layer]);
    let n_head_kv = keys.per_layer("attention.head_count_kv", n_layer, HEADS)?;
    let n_head_kv = n_head_kv.unwrap_or_else(|| n_head.clone());
    let width = n_embd / n_head.first().copied().unwrap_or(0).max(1);
    let head_k = keys
        .positive("attention.key_length", WIDTH)?
        .unwrap_or(width);
    let head_v = keys
        .positive("attention.value_length", WIDTH)?
        .unwrap_or(width);
    let n_used = keys.per_layer("expert_used_count", n_layer, EXPERTS)?;
    let n_used = n_used.unwrap_or_else(|| vec![0; n_layer]);
    let n_ff = keys.per_layer("feed_forward_length", n_layer, i64::MAX)?;
    let layer = |(block, ((n_head, n_head_kv), n_expert_used))| LayerHparams {
        block,
        n_head,
        n_head_kv,
        n_embd_head_k: head_k,
        n_embd_head_v: head_v,
        n_ff: n_ff.as_ref().map_or(0, |n_ff| n_ff[block]),
        n_expert_used,
        is_swa: false,
        is_recurrent: false,
        has_rope: true,
        clamps_experts: false,
        clamps_shared_expert: false,
        clamps_ffn: false,
        adds_input: false,
        has_indexer: false,
        is_cached: false,
        compress_ratio: 0,
    };
    let heads = n_head.into_iter().zip(n_head_kv);
    Ok(heads.zip(n_used).enumerate().map(layer).collect())
}

fn load_moe(keys: &Keys<'_>, layers: &[LayerHparams]) -> Result<Option<Moe>> {
    let Some(n_expert) = keys.positive("expert_count", EXPERTS)? else {
        return Ok(None);
    };
    let used = layers.iter().map(|l| l.n_expert_used).max().unwrap_or(0);
    if !(1..=n_expert).contains(&used) {
        return Err(Error::KeyRange {
            key: "expert_used_count".to_string(),
            value: used,
            min: 1,
            max: n_expert,
        });
    }
    let scale = keys.float("expert_weights_scale")?.unwrap_or(0.0);
    Ok(Some(Moe {
        n_expert,
        n_expert_groups: keys.int("expert_group_count", n_expert)?.unwrap_or(0),
        n_group_used: keys.int("expert_group_used_count", n_expert)?.unwrap_or(0),
        scales_weights: scale != 0.0 && scale != 1.0,
        norms_weights: keys.flag("expert_weights_norm")?.unwrap_or(false),
        gating: match keys.int("expert_gating_func", 16)? {
            Some(2) => Gating::Sigmoid,
            Some(3) => Gating::SoftmaxWeight,
            Some(4) => Gating::SqrtSoftplus,
            _ => Gating::Softmax,
        },
    }))
}

fn load_mla(keys: &Keys<'_>) -> Result<Option<Mla>> {
    let Some(key_length) = keys.positive("attention.key_length_mla", WIDTH)? else {
        return Ok(None);
    };
    let n_rot = keys.require("rope.dimension_count", WIDTH)?;
    if n_rot > key_length {
        let key = "rope.dimension_count".to_string();
        return Err(Error::KeyRange {
            key,
            value: n_rot,
            min: 1,
            max: key_length,
        });
    }
    Ok(Some(Mla {
        key_length,
        value_length: keys.require("attention.value_length_mla", WIDTH)?,
        n_rot,
        kv_lora_rank: keys.require("attention.kv_lora_rank", WIDTH)?,
    }))
}

fn load_ssm(keys: &Keys<'_>) -> Result<Option<Ssm>> {
    let Some(d_conv) = keys.positive("ssm.conv_kernel", 1024)? else {
        return Ok(None);
    };
    if keys.positive("kda.head_dim", WIDTH)?.is_some() {
        return Ok(None); // the architecture makes its own
    }
    Ok(Some(Ssm {
        d_conv,
        d_inner: keys.require("ssm.inner_size", WIDTH)?,
        d_state: keys.require("ssm.state_size", WIDTH)?,
        dt_rank: keys.require("ssm.time_step_rank", WIDTH)?,
        n_group: keys.int("ssm.group_count", WIDTH)?.unwrap_or(0),
    }))
}
