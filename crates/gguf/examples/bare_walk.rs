//! Time of opening a model against that of a bare walk over the bytes of its header.
//!
//! ```text
//! cargo run --release -p vramfit-gguf --example bare_walk [MODEL.gguf]
//! ```
//!
//! Without a path it makes a model with a vocabulary of 262,144 tokens and as many merges.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vramfit_gguf::{ArrayBuf, Header, ValueBuf, ValueType, Writer};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let path = match std::env::args_os().nth(1) {
        Some(path) => PathBuf::from(path),
        None => {
            let path = folder.path().join("model.gguf");
            std::fs::write(&path, model_with_tokens(262_144)?)?;
            path
        }
    };
    let header_bytes = Header::open(&path)?.header_bytes();
    println!("header: {header_bytes} bytes");
    println!("bare walk:    {:?}", fastest(|| walk(&path)));
    println!(
        "Header::open: {:?}",
        fastest(|| black_box(Header::open(&path))
            .map(|h| h.tensors().len())
            .ok())
    );
    Ok(())
}

fn fastest<T>(mut work: impl FnMut() -> T) -> Duration {
    let time = |_| {
        let start = Instant::now();
        black_box(work());
        start.elapsed()
    };
    (0..50).map(time).min().unwrap_or_default()
}

/// The least that a program can do to reach the end of a header: map the file, hop from length to
/// length, keep nothing.
fn walk(path: &Path) -> Option<usize> {
    let file = std::fs::File::open(path).ok()?;
    // SAFETY: nobody else writes the file.
    let map = unsafe { memmap2::Mmap::map(&file) }.ok()?;
    let u32_at =
        |at: usize| Some(u32::from_le_bytes(map.get(at..at + 4)?.try_into().ok()?) as usize);
    let u64_at =
        |at: usize| Some(u64::from_le_bytes(map.get(at..at + 8)?.try_into().ok()?) as usize);
    const SIZES: [usize; 13] = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8];
    const STRING: usize = 8;
    const ARRAY: usize = 9;

    let (n_tensors, n_keys) = (u64_at(8)?, u64_at(16)?);
    let mut at = 24;
    for _ in 0..n_keys {
        at += 8 + u64_at(at)?;
        let (mut ty, mut count) = (u32_at(at)?, 1);
        at += 4;
        if ty == ARRAY {
            (ty, count) = (u32_at(at)?, u64_at(at + 4)?);
            at += 12;
        }
        match ty {
            STRING => {
                for _ in 0..count {
                    at += 8 + u64_at(at)?;
                }
            }
            ty => at += count * SIZES.get(ty)?,
        }
    }
    for _ in 0..n_tensors {
        at += 8 + u64_at(at)?;
        at += 4 + 8 * u32_at(at)? + 4 + 8;
    }
    Some(at)
}

fn model_with_tokens(tokens: usize) -> Result<Vec<u8>, vramfit_gguf::WriteError> {
    let strings = |text: &dyn Fn(usize) -> String| {
        let elements = (0..tokens)
            .map(|i| ValueBuf::String(text(i).into_bytes()))
            .collect();
        ValueBuf::Array(ArrayBuf {
            element_type: ValueType::String,
            elements,
        })
    };
    let mut writer = Writer::new();
    writer.key("general.architecture", "llama")?;
    writer.key(
        "tokenizer.ggml.tokens",
        strings(&|i| format!("token{}", i * 7919 % 65_537)),
    )?;
    writer.key(
        "tokenizer.ggml.merges",
        strings(&|i| format!("{} {}", i % 911, i % 7919)),
    )?;
    writer.key("tokenizer.ggml.token_type", vec![1i32; tokens])?;
    for layer in 0..80 {
        for name in [
            "attn_q",
            "attn_k",
            "attn_v",
            "attn_output",
            "ffn_up",
            "ffn_down",
            "ffn_gate",
        ] {
            writer.tensor(
                &format!("blk.{layer}.{name}.weight"),
                vramfit_ggml::Type::Q4_K,
                &[4096, 4096],
            );
        }
    }
    writer.finish()
}
