//! The header-only models of `fixtures/gguf` against `index.json`, which the program that made
//! them with llama.cpp's own quantizer wrote.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use serde_json::Value as Json;
use vramfit_gguf::{ByteOrder, DataState, Header};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/gguf")
}

#[test]
fn headers_say_what_the_index_says() {
    let index: Vec<Json> =
        serde_json::from_slice(&std::fs::read(folder().join("index.json")).unwrap()).unwrap();
    assert!(index.len() >= 52);
    for entry in &index {
        let file = entry["file"].as_str().unwrap();
        let number = |key: &str| entry[key].as_u64().unwrap();
        let header = Header::open(folder().join(file)).unwrap();

        assert_eq!(header.architecture(), entry["arch"].as_str(), "{file}");
        assert_eq!(header.tensors().len() as u64, number("n_tensors"), "{file}");
        let arch = header.architecture().unwrap();
        let n_layer = header.get(&format!("{arch}.block_count")).unwrap();
        assert_eq!(n_layer.as_u64(), Some(number("n_layer")), "{file}");
        assert_eq!(header.data_offset(), number("data_offset"), "{file}");
        let tensor_bytes: u64 = header.tensors().iter().map(|t| t.n_bytes).sum();
        assert_eq!(tensor_bytes, number("tensor_bytes"), "{file}");
        assert_eq!(header.file_bytes(), number("file_bytes"), "{file}");
        let params: u64 = header.tensors().iter().map(|t| t.n_elements()).sum();
        assert_eq!(params, number("params"), "{file}");

        assert_eq!(header.data_state(), DataState::HeaderOnly, "{file}");
        assert_eq!(
            (header.version(), header.byte_order()),
            (3, ByteOrder::Little),
            "{file}"
        );
        assert_eq!((header.parts(), header.alignment()), (1, 32), "{file}");
        assert!(header.header_bytes() <= header.data_offset());
        assert!(
            header.get(&format!("{arch}.vocab_size")).is_some(),
            "{file}"
        );
    }
}

#[test]
fn tensors_and_keys_are_found_by_name() {
    let header = Header::open(folder().join("llama-3.2-1b.Q4_K_M.gguf")).unwrap();
    for tensor in header.tensors() {
        assert_eq!(header.tensor(&tensor.name), Some(tensor));
    }
    for (name, value) in header.keys() {
        assert!(header.get(name).unwrap().identical(&value));
    }
    assert_eq!(header.tensor("blk.99.attn_q.weight"), None);
    assert!(header.get("llama.").is_none());
    assert_eq!(
        header.get("llama.rope.freq_base").unwrap().as_f64(),
        Some(500_000.0)
    );
    assert_eq!(
        header.get("tokenizer.ggml.model").unwrap().as_str(),
        Some("no_vocab")
    );
}

#[test]
fn a_folder_and_a_missing_file_are_named() {
    let shown = Header::open(folder()).unwrap_err().to_string();
    assert!(shown.ends_with(": not a regular file"), "{shown}");
    let shown = Header::open(folder().join("no-such.gguf"))
        .unwrap_err()
        .to_string();
    assert!(shown.contains("no-such.gguf: "), "{shown}");
}
