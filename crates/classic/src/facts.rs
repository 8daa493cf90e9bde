//! What the estimator reads of a header.

use vramfit_gguf::{Header, Value};

use crate::vision::Vision;

/// More blocks than any model has; a header may ask for billions.
const MAX_BLOCKS: u64 = 1 << 14;

/// Why there is nothing to estimate.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `general.architecture` is missing.
    #[error("general.architecture: the key is missing")]
    NoArchitecture,
    /// The number of blocks is missing, or none.
    #[error("{architecture}.block_count: {n_layer} blocks; a model has 1 to {MAX_BLOCKS}")]
    Blocks {
        /// The architecture.
        architecture: String,
        /// As the key says.
        n_layer: u64,
    },
}

/// A recurrent layer's shape (`ARCH.ssm.*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Recurrent {
    /// Taps of the convolution.
    pub conv_kernel: u64,
    /// Inner size.
    pub inner_size: u64,
    /// Size of a state.
    pub state_size: u64,
    /// Groups.
    pub group_count: u64,
}

/// Numbers of the header, with the defaults that Ollama takes for those that are missing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Facts {
    /// `general.architecture`.
    pub architecture: String,
    /// Embedding length, E.
    pub embedding: u64,
    /// Query heads H and key/value heads of each block.
    pub heads: Vec<[u64; 2]>,
    /// Most and fewest query heads.
    pub head_count: [u64; 2],
    /// Most and fewest key/value heads.
    pub head_count_kv: [u64; 2],
    /// Length of a key head, dk.
    pub key_length: u64,
    /// Length of a value head, dv.
    pub value_length: u64,
    /// Tokens of the vocabulary, V.
    pub vocab: u64,
    /// Feed-forward length.
    pub feed_forward: u64,
    /// Sliding window.
    pub sliding_window: u64,
    /// Recurrent layers.
    pub recurrent: Recurrent,
    /// Layers that attend to images (mllama).
    pub cross_attention_layers: Vec<usize>,
    /// Weights of each block, bytes.
    pub blocks: Vec<u64>,
    /// Output norm and output matrix, or the embeddings where they serve as one; bytes.
    pub output_bytes: u64,
    /// Bytes of `blk.0.ffn_gate_exps.weight`: Mixtral 8x22b's way to store experts.
    pub gate_exps_bytes: Option<u64>,
    /// Rows of `blk.0.ffn_gate.0.weight`: Mixtral 8x7b's.
    pub gate_rows: Option<u64>,
    /// Elements of `blk.0.attn_qkv.bias`.
    pub qkv_bias: Option<u64>,
    /// Embeddings are pooled, so there is no flash attention, and one request at a time.
    pub is_pooled: bool,
    /// The vision tower inside the file.
    pub vision: Vision,
    /// Weights of projectors in files of their own, bytes.
    pub projector_files_bytes: u64,
}

impl Facts {
    /// Reads the header of a model, and those of its projectors.
    pub fn read(header: &Header, projectors: &[Header]) -> Result<Facts, Error> {
        let keys = Keys::new(header)?;
        let n_layer = keys.number("block_count", 0);
        if !(1..=MAX_BLOCKS).contains(&n_layer) {
            let architecture = keys.architecture.to_string();
            return Err(Error::Blocks {
                architecture,
                n_layer,
            });
        }
        let n_layer = n_layer as usize;
        let heads = keys.numbers("attention.head_count");
        let heads_kv = keys.numbers("attention.head_count_kv");
        let head_count = most_and_least(&heads);
        let embedding = keys.number("embedding_length", 0);
        let head_length = embedding.checked_div(head_count[1]).unwrap_or(0);
        let tensor = |name: &str| header.tensor(name);
        Ok(Facts {
            embedding,
            heads: (0..n_layer)
                .map(|il| [of_layer(&heads, il), of_layer(&heads_kv, il)])
                .collect(),
            head_count,
            head_count_kv: most_and_least(&heads_kv),
            key_length: keys.number("attention.key_length", head_length),
            value_length: keys.number("attention.value_length", head_length),
            vocab: vocab(&keys),
            feed_forward: keys.number("feed_forward_length", 0),
            sliding_window: keys.number("attention.sliding_window", 0),
            recurrent: Recurrent {
                conv_kernel: keys.number("ssm.conv_kernel", 0),
                inner_size: keys.number("ssm.inner_size", 0),
                state_size: keys.number("ssm.state_size", 0),
                group_count: keys.number("ssm.group_count", 0),
            },
            cross_attention_layers: (keys.array("attention.cross_attention_layers").iter())
                .map(|&il| usize::try_from(il).unwrap_or(usize::MAX))
                .collect(),
            blocks: blocks(header, n_layer),
            output_bytes: output_bytes(header),
            gate_exps_bytes: tensor("blk.0.ffn_gate_exps.weight").map(|t| t.n_bytes),
            gate_rows: tensor("blk.0.ffn_gate.0.weight").map(|t| t.ne[1].unsigned_abs()),
            qkv_bias: tensor("blk.0.attn_qkv.bias").map(|t| t.ne[0].unsigned_abs()),
            is_pooled: keys.get("pooling_type").is_some(),
            vision: Vision::read(header, &keys),
            projector_files_bytes: projectors
                .iter()
                .flat_map(|projector| projector.tensors())
                .fold(0, |sum, t| sum.saturating_add(t.n_bytes)),
            architecture: keys.architecture.to_string(),
        })
    }

    /// Blocks of the model.
    pub fn n_layer(&self) -> usize {
        self.blocks.len()
    }

    /// Whether the model's attention can be fused. That of models which pool cannot. (Later versions leave out
    /// Gemma 2, too.)
    pub fn has_flash_attention(&self) -> bool {
        !self.is_pooled && self.key_length != 0 && self.key_length == self.value_length
    }
}

/// A header's keys, those of the architecture by their short names.
pub(crate) struct Keys<'a> {
    header: &'a Header,
    architecture: &'a str,
}

impl<'a> Keys<'a> {
    fn new(header: &'a Header) -> Result<Keys<'a>, Error> {
        let architecture = header.architecture().ok_or(Error::NoArchitecture)?;
        Ok(Keys {
            header,
            architecture,
        })
    }

    pub(crate) fn architecture(&self) -> &'a str {
        self.architecture
    }

    fn get(&self, key: &str) -> Option<Value<'a>> {
        self.header.get(&format!("{}.{key}", self.architecture))
    }

    pub(crate) fn number(&self, key: &str, default: u64) -> u64 {
        let value = self.get(key).and_then(|value| value.as_u64());
        value.unwrap_or(default)
    }

    fn array(&self, key: &str) -> Vec<u64> {
        let array = self.get(key).and_then(|value| value.as_array());
        let numbers = array.into_iter().flat_map(|array| array.iter());
        let numbers = numbers.take(MAX_BLOCKS as usize);
        numbers.map(|value| value.as_u64().unwrap_or(0)).collect()
    }

    /// One for all layers or one each; 1 where the key is missing.
    fn numbers(&self, key: &str) -> Vec<u64> {
        let array = self.array(key);
        match array.is_empty() {
            true => vec![self.number(key, 1)],
            false => array,
        }
    }
}

fn most_and_least(numbers: &[u64]) -> [u64; 2] {
    let of = |found: Option<&u64>| found.copied().unwrap_or(1);
    [of(numbers.iter().max()), of(numbers.iter().min())]
}

/// A list of one number holds for all layers; what a longer one does not reach has one head.
fn of_layer(numbers: &[u64], il: usize) -> u64 {
    let il = if numbers.len() == 1 { 0 } else { il };
    numbers.get(il).copied().unwrap_or(1)
}

/// The number of tokens; a header without its vocabulary says it by a key, or by its embeddings.
fn vocab(keys: &Keys) -> u64 {
    let tokens = keys.header.get("tokenizer.ggml.tokens");
    let n_tokens = tokens.and_then(|tokens| tokens.as_array()).map(|a| a.len());
    let embeddings = keys.header.tensor("token_embd.weight");
    let rows = embeddings.map_or(0, |t| t.ne[1].unsigned_abs());
    match n_tokens {
        Some(n) if n > 0 => n as u64,
        _ => keys.number("vocab_size", rows),
    }
}

/// `blk.3` of `blk.3.attn_q.weight`.
fn blocks(header: &Header, n_layer: usize) -> Vec<u64> {
    let mut blocks = vec![0u64; n_layer];
    for tensor in header.tensors() {
        let rest = tensor.name.strip_prefix("blk.");
        let number = rest.and_then(|rest| rest.split_once('.'));
        let il = number.and_then(|(number, _)| number.parse::<usize>().ok());
        if let Some(bytes) = il.and_then(|il| blocks.get_mut(il)) {
            *bytes = bytes.saturating_add(tensor.n_bytes);
        }
    }
    blocks
}

fn output_bytes(header: &Header) -> u64 {
    let layer = |layer: &str| {
        let of = |name: &str| name.split('.').next() == Some(layer);
        let tensors = header.tensors().iter().filter(|t| of(&t.name));
        tensors.fold(None, |sum: Option<u64>, t| {
            Some(sum.unwrap_or(0).saturating_add(t.n_bytes))
        })
    };
    let norm = layer("output_norm").unwrap_or(0);
    let matrix = layer("output").or_else(|| layer("token_embd"));
    norm.saturating_add(matrix.unwrap_or(0))
}
