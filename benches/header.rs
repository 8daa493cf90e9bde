//! Reading a header with a vocabulary of 262,144 tokens: `cargo bench -p vramfit-gguf`.
//!
//! `bare walk` reads every length prefix of the same bytes and nothing else: the floor.

use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use vramfit_gguf::{Header, Writer};

const N_TOKENS: usize = 262_144;

/// A Gemma-like header: 444 tensors, tokens, scores and types.
fn header_bytes() -> Vec<u8> {
    let tokens: Vec<String> = (0..N_TOKENS).map(|i| format!("token-{i:x}")).collect();
    let mut writer = Writer::new();
    let mut build = || -> Result<Vec<u8>, vramfit_gguf::WriteError> {
        writer.key("general.architecture", "gemma3")?;
        writer.key(
            "tokenizer.ggml.tokens",
            tokens.iter().map(String::as_str).collect::<Vec<_>>(),
        )?;
        writer.key("tokenizer.ggml.scores", vec![0.0f32; N_TOKENS])?;
        writer.key("tokenizer.ggml.token_type", vec![1i32; N_TOKENS])?;
        for i in 0..444 {
            let name = format!("blk.{i}.attn_q.weight");
            writer.tensor(&name, vramfit_ggml::Type::F16, &[2048, 64]);
        }
        writer.finish()
    };
    build().unwrap_or_default()
}

/// Every byte that has to be looked at: the length of each string.
fn bare_walk(bytes: &[u8]) -> usize {
    let text = b"tokenizer.ggml.tokens";
    let start = bytes
        .windows(text.len())
        .position(|w| w == text)
        .unwrap_or(0)
        + text.len();
    let mut at = start + 4 + 4 + 8; // value type, element type, count
    for _ in 0..N_TOKENS {
        let Some(length) = bytes.get(at..at + 8) else {
            break;
        };
        let mut n = [0; 8];
        n.copy_from_slice(length);
        at += 8 + u64::from_le_bytes(n) as usize;
    }
    at
}

fn header(c: &mut Criterion) {
    let bytes = header_bytes();
    let mut group = c.benchmark_group("header with 262,144 tokens");
    group.bench_function("bare walk", |b| b.iter(|| bare_walk(black_box(&bytes))));
    group.bench_function("parse", |b| {
        b.iter_batched(
            || bytes.clone(),
            |bytes| Header::parse(bytes).map(|h| h.tensors().len()),
            criterion::BatchSize::LargeInput,
        )
    });
    group.finish();
}

criterion_group!(benches, header);
criterion_main!(benches);
