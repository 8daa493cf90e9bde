//! Makes `fixtures/gguf/ollama/*.gguf`: header-only Gemma 3 models with their vision tower in the same
//! file, as Ollama's library has them.
//!
//! ```text
//! cargo run -p vramfit-classic --example towers
//! ```
//!
//! Hyperparameters: `config.json` of google/gemma-3-4b-it, -12b-it and -27b-it (`text_config`,
//! `vision_config`: SigLIP So400m at 896 pixels). Names of keys and tensors: convert/convert_gemma3.go of
//! ollama/ollama, which writes no `layer_norm_rms_epsilon` and no `rope` keys for models with a tower.
//! Types: Q4_K_M as llama.cpp mixes it, the tower's matrices in F16; the weights sum up to what Ollama's
//! log says of each (6.0 GiB and 787.5 MiB for 12b, 14.3 and 1.1 GiB for 27b, towers of 795.9 MiB).
//! The vocabulary is left out, as `estimate strip` leaves it out.

#![allow(clippy::disallowed_methods)] // a tool, not the crate: it writes its files

use std::fs;
use std::path::Path;

use vramfit_ggml::Type;
use vramfit_gguf::{WriteError, Writer};

/// Name, blocks, embedding, feed-forward, query heads, key/value heads, head length.
const MODELS: [(&str, [i64; 6]); 3] = [
    ("4b", [34, 2560, 10240, 8, 4, 256]),
    ("12b", [48, 3840, 15360, 16, 8, 256]),
    ("27b", [62, 5376, 21504, 32, 16, 128]),
];
const VOCAB: i64 = 262_144;
/// Blocks, embedding, feed-forward, heads, image, patch, channels.
const TOWER: [i64; 7] = [27, 1152, 4304, 16, 896, 14, 3];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/gguf/ollama");
    fs::create_dir_all(&folder)?;
    for (name, sizes) in MODELS {
        let bytes = model(name, sizes)?;
        fs::write(folder.join(format!("gemma3-{name}.gguf")), bytes)?;
    }
    Ok(())
}

fn model(name: &str, sizes: [i64; 6]) -> Result<Vec<u8>, WriteError> {
    let mut writer = Writer::new();
    keys(&mut writer, name, sizes)?;
    language(&mut writer, sizes);
    tower(&mut writer, sizes[1]);
    writer.finish()
}

fn keys(writer: &mut Writer, name: &str, sizes: [i64; 6]) -> Result<(), WriteError> {
    let [n_layer, embedding, ff, heads, heads_kv, head] = sizes.map(|n| n as u32);
    let tower = TOWER.map(|n| n as u32);
    writer.key("general.architecture", "gemma3")?;
    writer.key("general.name", format!("gemma3:{name}").as_str())?;
    writer.key("general.quantization_version", 2u32)?;
    writer.key("general.file_type", 15u32)?;
    let numbers = [
        ("context_length", 131_072),
        ("embedding_length", embedding),
        ("block_count", n_layer),
        ("feed_forward_length", ff),
        ("attention.head_count", heads),
        ("attention.head_count_kv", heads_kv),
        ("attention.key_length", head),
        ("attention.value_length", head),
        ("attention.sliding_window", 1024),
        ("vision.block_count", tower[0]),
        ("vision.embedding_length", tower[1]),
        ("vision.feed_forward_length", tower[2]),
        ("vision.attention.head_count", tower[3]),
        ("vision.image_size", tower[4]),
        ("vision.patch_size", tower[5]),
        ("vision.num_channels", tower[6]),
        ("mm.tokens_per_image", 256),
        ("vocab_size", VOCAB as u32),
    ];
    for (key, number) in numbers {
        writer.key(&format!("gemma3.{key}"), number)?;
    }
    writer.key("gemma3.vision.attention.layer_norm_epsilon", 1e-6f32)?;
    writer.key("tokenizer.ggml.model", "no_vocab")?;
    Ok(())
}

fn language(writer: &mut Writer, sizes: [i64; 6]) {
    let [n_layer, e, ff, heads, heads_kv, head] = sizes;
    let f32 = Type::F32;
    writer.tensor("output_norm.weight", f32, &[e]);
    writer.tensor("token_embd.weight", Type::Q6_K, &[e, VOCAB]);
    for il in 0..n_layer {
        // The first and the last eighth, and every third between them.
        let eighth = n_layer / 8;
        let more = il < eighth || il >= 7 * n_layer / 8 || (il - eighth) % 3 == 2;
        let better = if more { Type::Q6_K } else { Type::Q4_K };
        let mut tensor = |name: &str, ty, ne: &[i64]| {
            writer.tensor(&format!("blk.{il}.{name}.weight"), ty, ne);
        };
        tensor("attn_k", Type::Q4_K, &[e, heads_kv * head]);
        tensor("attn_k_norm", f32, &[head]);
        tensor("attn_norm", f32, &[e]);
        tensor("attn_output", Type::Q4_K, &[heads * head, e]);
        tensor("attn_q", Type::Q4_K, &[e, heads * head]);
        tensor("attn_q_norm", f32, &[head]);
        tensor("attn_v", better, &[e, heads_kv * head]);
        tensor("ffn_down", better, &[ff, e]);
        tensor("ffn_gate", Type::Q4_K, &[e, ff]);
        tensor("ffn_norm", f32, &[e]);
        tensor("ffn_up", Type::Q4_K, &[e, ff]);
        tensor("post_attention_norm", f32, &[e]);
        tensor("post_ffw_norm", f32, &[e]);
    }
}

fn tower(writer: &mut Writer, embedding: i64) {
    let [n_layer, e, ff, _, image, patch, channels] = TOWER;
    let positions = (image / patch) * (image / patch);
    let (f16, f32) = (Type::F16, Type::F32);
    writer.tensor("mm.mm_input_projection.weight", f16, &[embedding, e]);
    writer.tensor("mm.mm_soft_emb_norm.weight", f32, &[e]);
    writer.tensor(
        "v.patch_embedding.weight",
        f16,
        &[patch, patch, channels, e],
    );
    writer.tensor("v.patch_embedding.bias", f32, &[e]);
    writer.tensor("v.position_embedding.weight", f16, &[e, positions]);
    for il in 0..n_layer {
        let mut layer = |name: &str, ty, ne: &[i64]| {
            writer.tensor(&format!("v.blk.{il}.{name}.weight"), ty, ne);
            let last = ne.last().copied().unwrap_or(0);
            writer.tensor(&format!("v.blk.{il}.{name}.bias"), f32, &[last]);
        };
        for name in ["attn_k", "attn_output", "attn_q", "attn_v"] {
            layer(name, f16, &[e, e]);
        }
        layer("layer_norm1", f32, &[e]);
        layer("layer_norm2", f32, &[e]);
        layer("mlp.fc1", f16, &[e, ff]);
        layer("mlp.fc2", f16, &[ff, e]);
    }
    writer.tensor("v.post_layernorm.weight", f32, &[e]);
    writer.tensor("v.post_layernorm.bias", f32, &[e]);
}
