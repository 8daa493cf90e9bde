//! What some architectures read beside that: windows, indexers, limits, recurrent layers.

use super::limits::{CONTEXT, HEADS, LAYERS, WIDTH};
use super::{Gating, Hparams, Indexer, LayerHparams};
use crate::Result;
use crate::keys::Keys;

impl Hparams {
    /// `load_swa_pattern`: a window on every layer but the last of each `period`, unless the file
    /// has its own pattern. Nothing when there is no window.
    pub(crate) fn set_swa(
        &mut self,
        keys: &Keys<'_>,
        window: Option<i64>,
        period: i64,
    ) -> Result<()> {
        self.set_swa_pattern(keys, window, |i, n| i % n < n - 1, period)
    }

    /// [`set_swa`](Self::set_swa) with the layers that see everything in front (`dense_first`).
    pub(crate) fn set_swa_dense_first(
        &mut self,
        keys: &Keys<'_>,
        window: Option<i64>,
        period: i64,
    ) -> Result<()> {
        self.set_swa_pattern(keys, window, |i, n| i % n != 0, period)
    }

    fn set_swa_pattern(
        &mut self,
        keys: &Keys<'_>,
        window: Option<i64>,
        is_swa: impl Fn(i64, i64) -> bool,
        period: i64,
    ) -> Result<()> {
        const PATTERN: &str = "attention.sliding_window_pattern";
        let Some(window) = window.filter(|&w| w > 0) else {
            return Ok(());
        };
        let n_layer = self.n_layer();
        let pattern = if let Some(pattern) = keys.flags(PATTERN, self.n_layer_all)? {
            pattern
        } else {
            let period = keys.int(PATTERN, LAYERS)?.unwrap_or(period);
            (0..n_layer as i64)
                .map(|i| period == 0 || is_swa(i, period))
                .collect()
        };
        self.n_swa = window;
        self.has_swa_layers = true;
        for (layer, is_swa) in self.layers.iter_mut().zip(pattern) {
            layer.is_swa = is_swa;
        }
        self.set_swa_heads(keys)
    }

    /// The window of the file, 0 as good as none.
    pub(crate) fn window(keys: &Keys<'_>) -> Result<Option<i64>> {
        keys.positive("attention.sliding_window", CONTEXT)
    }

    /// `attention.max_alibi_bias`.
    pub(crate) fn set_alibi(&mut self, keys: &Keys<'_>) -> Result<()> {
        self.alibi = keys
            .float("attention.max_alibi_bias")?
            .is_some_and(|x| x > 0.0);
        Ok(())
    }

    /// `attention.clamp_kqv`.
    pub(crate) fn set_clamp(&mut self, keys: &Keys<'_>) -> Result<()> {
        self.clamps_qkv = keys.float("attention.clamp_kqv")?.is_some_and(|x| x > 0.0);
        Ok(())
    }

    /// Other head widths on the layers with a window.
    fn set_swa_heads(&mut self, keys: &Keys<'_>) -> Result<()> {
        let k = keys.positive("attention.key_length_swa", WIDTH)?;
        let v = keys.positive("attention.value_length_swa", WIDTH)?;
        for layer in self.layers.iter_mut().filter(|l| l.is_swa) {
            layer.n_embd_head_k = k.unwrap_or(layer.n_embd_head_k);
            layer.n_embd_head_v = v.unwrap_or(layer.n_embd_head_v);
        }
        Ok(())
    }

    /// M-RoPE where the file has sections for it (`use_mrope`).
    pub(crate) fn set_mrope(&mut self, keys: &Keys<'_>) -> Result<()> {
        let sections = keys.per_layer("rope.dimension_sections", 2, i64::MAX)?;
        if sections.is_some_and(|s| s.iter().all(|&n| n > 0)) {
            self.n_pos_per_embd = 4;
        }
        Ok(())
    }

    /// The indexer of the file, on the layers for which `has_indexer` holds.
    pub(crate) fn set_indexer(
        &mut self,
        keys: &Keys<'_>,
        has_indexer: impl Fn(usize) -> bool,
    ) -> Result<()> {
        self.indexer = Some(Indexer {
            n_head: keys.require("attention.indexer.head_count", HEADS)?,
            head: keys.require("attention.indexer.key_length", WIDTH)?,
            top_k: keys.require("attention.indexer.top_k", CONTEXT)?,
            block: keys.positive("attention.indexer.block_size", CONTEXT)?,
            caches_values: false,
        });
        let main = self.layers.iter_mut().take(self.n_layer_main);
        for (il, layer) in main.enumerate() {
            layer.has_indexer = has_indexer(il);
        }
        Ok(())
    }

    /// Routers are sigmoids where the file does not say.
    pub(crate) fn sigmoid_by_default(&mut self, keys: &Keys<'_>) -> Result<()> {
        let known = keys.positive("expert_gating_func", 16)?.is_some();
        if let Some(moe) = self.moe.as_mut().filter(|_| !known) {
            moe.gating = Gating::Sigmoid;
        }
        Ok(())
    }

    /// Limits of SwiGLU, one a layer; those next to 0 are none.
    pub(crate) fn set_swiglu_clamps(&mut self, keys: &Keys<'_>) -> Result<()> {
        let experts = keys.floats("swiglu_clamp_exp", self.n_layer())?;
        let ffn = keys.floats("swiglu_clamp_shexp", self.n_layer())?;
        for (layer, (experts, ffn)) in self.layers.iter_mut().zip(experts.into_iter().zip(ffn)) {
            (layer.clamps_experts, layer.clamps_ffn) = (experts > 1e-6, ffn > 1e-6);
        }
        Ok(())
    }

    /// Recurrent layers as the file lists them, else all but each `interval`-th.
    pub(crate) fn set_recurrent_layers(&mut self, keys: &Keys<'_>, interval: i64) -> Result<()> {
        let listed = keys.per_layer("attention.recurrent_layers", self.n_layer_all, i64::MAX)?;
        let interval = keys
            .positive("full_attention_interval", LAYERS)?
            .unwrap_or(interval);
        self.set_recurrent(|il, _| match &listed {
            Some(listed) => listed[il] != 0,
            None => (il as i64 + 1) % interval != 0,
        });
        Ok(())
    }

    /// Layers for which `is_recurrent` holds keep a state instead of a KV cache.
    pub(crate) fn set_recurrent(&mut self, is_recurrent: impl Fn(usize, &LayerHparams) -> bool) {
        let main = self.layers.iter_mut().take(self.n_layer_main);
        for (il, layer) in main.enumerate() {
            layer.is_recurrent = is_recurrent(il, layer);
            layer.is_cached = !layer.is_recurrent;
        }
    }
}
