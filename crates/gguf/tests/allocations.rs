//! A vocabulary is borrowed: what is allocated grows with keys and tensors, not with tokens.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use vramfit_gguf::{ArrayBuf, Header, ValueBuf, ValueType, Writer};

struct Counting;
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn header_with(tokens: usize) -> Vec<u8> {
    let elements = (0..tokens)
        .map(|i| ValueBuf::String(format!("token{i}").into_bytes()))
        .collect();
    let tokens = ArrayBuf {
        element_type: ValueType::String,
        elements,
    };
    let mut writer = Writer::new();
    writer.key("general.architecture", "llama").unwrap();
    writer
        .key("tokenizer.ggml.tokens", ValueBuf::Array(tokens))
        .unwrap();
    for i in 0..100 {
        writer.tensor(
            &format!("blk.{i}.weight"),
            vramfit_ggml::Type::F16,
            &[64, 64],
        );
    }
    writer.finish().unwrap()
}

fn cost_of_parsing(bytes: Vec<u8>) -> (usize, usize) {
    let before = (
        ALLOCATIONS.load(Ordering::Relaxed),
        BYTES.load(Ordering::Relaxed),
    );
    let header = Header::parse(bytes).unwrap();
    let after = (
        ALLOCATIONS.load(Ordering::Relaxed),
        BYTES.load(Ordering::Relaxed),
    );
    assert_eq!(header.tensors().len(), 100);
    (after.0 - before.0, after.1 - before.1)
}

#[test]
fn a_large_vocabulary_costs_no_more_memory_than_a_small_one() {
    let small = cost_of_parsing(header_with(10));
    let large = cost_of_parsing(header_with(262_144));
    assert_eq!(small, large);

    // A count with nothing behind it is refused before anything is allocated for it.
    let before = BYTES.load(Ordering::Relaxed);
    let mut lie = b"GGUF\x03\0\0\0".to_vec();
    lie.extend((1u64 << 20).to_le_bytes());
    lie.extend((1u64 << 16).to_le_bytes());
    assert!(Header::parse(lie).is_err());
    assert!(BYTES.load(Ordering::Relaxed) - before < 1024);
}
