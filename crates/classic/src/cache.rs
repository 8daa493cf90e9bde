//! The KV cache, layer by layer.

use crate::Facts;
use crate::number::N;

/// Type of the cache, with the bytes an element that Ollama counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CacheType {
    /// 2 bytes.
    #[default]
    F16,
    /// 1 byte; 1.0625 in truth.
    Q8_0,
    /// Half a byte; 0.5625 in truth.
    Q4_0,
}

impl CacheType {
    /// By Ollama's name; every other name means f16.
    pub fn from_name(name: &str) -> CacheType {
        match name.to_ascii_lowercase().as_str() {
            "q8_0" => CacheType::Q8_0,
            "q4_0" => CacheType::Q4_0,
            _ => CacheType::F16,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            CacheType::F16 => "f16",
            CacheType::Q8_0 => "q8_0",
            CacheType::Q4_0 => "q4_0",
        }
    }

    fn bytes(self, elements: N) -> N {
        match self {
            CacheType::F16 => elements * 2,
            CacheType::Q8_0 => elements,
            CacheType::Q4_0 => elements / 2,
        }
    }
}

/// What is asked of a model, the same for cache and graph.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Load {
    /// Tokens of all requests together.
    pub context: u64,
    /// Tokens computed at once.
    pub batch: u64,
    /// Requests at once.
    pub parallel: u64,
    /// Type of the cache.
    pub cache_type: CacheType,
    /// Attention is fused.
    pub flash_attention: bool,
}

/// Bytes of each layer's cache.
pub fn cache(model: &Facts, load: &Load) -> Vec<u64> {
    let plain = plain(model, load);
    let [k, _] = model.head_count_kv;
    let row = N(model.key_length) + model.value_length;
    let window = |n: u64| n * N(load.parallel) + load.batch;
    let layer = |il: usize, plain: u64| match model.architecture.as_str() {
        // Every sixth layer sees everything. The window is not held below the context.
        "gemma3" if !(il + 1).is_multiple_of(6) => {
            let tokens = window(model.sliding_window);
            load.cache_type.bytes(tokens * row * k).0
        }
        // What all tokens of an image leave: 1601 of each of 4 tiles, in f32.
        "mllama" if model.cross_attention_layers.contains(&il) => (row * k * 4 * 1601 * 4).0,
        "gptoss" | "gpt-oss" => {
            let tokens = if il.is_multiple_of(2) {
                window(4096)
            } else {
                N(load.context)
            };
            (load.cache_type.bytes(row * k) * tokens).0
        }
        _ => plain,
    };
    let layers = plain.into_iter().enumerate();
    layers.map(|(il, plain)| layer(il, plain)).collect()
}

/// The same as if no architecture were special: every token of every attention layer, and one state
/// of every other layer.
pub fn plain(model: &Facts, load: &Load) -> Vec<u64> {
    let row = N(model.key_length) + model.value_length;
    let ssm = &model.recurrent;
    let taps = N(ssm.conv_kernel.saturating_sub(1));
    let conv = taps * (N(ssm.inner_size) + 2 * N(ssm.group_count) * ssm.state_size);
    let state = 4 * (conv + N(ssm.state_size) * ssm.inner_size);
    let layer = |&[heads, heads_kv]: &[u64; 2]| match heads > 0 && heads_kv > 0 {
        true => load.cache_type.bytes(N(load.context) * row * heads_kv).0,
        false => state.0,
    };
    model.heads.iter().map(layer).collect()
}
