//! Every way a header can lie: a file for each, and the error that it must get.
//!
//! Those of `malformed/llama_cpp.rs` are llama.cpp v0.5.0's own, of its `tests/test-gguf.cpp`.
//! The files are under `fixtures/malformed`; after a change here write them again with
//!
//! ```text
//! cargo test -p vramfit-gguf --test malformed -- --ignored write_fixtures
//! ```
#![allow(clippy::unwrap_used)]

mod raw;

#[path = "malformed/front.rs"]
mod front;
#[path = "malformed/keys.rs"]
mod keys;
#[path = "malformed/llama_cpp.rs"]
mod llama_cpp;
#[path = "malformed/read.rs"]
mod read;
#[path = "malformed/tensors.rs"]
mod tensors;

use std::collections::BTreeSet;
use std::path::PathBuf;

use raw::*;
use vramfit_ggml::Type;
use vramfit_gguf::{DataState, ErrorKind, Header, Limits, Value, ValueType};

/// What llama.cpp v0.5.0 does with the file: measured with `gguf_init_from_file` of its own
/// libggml-base, and for `Loader` read in `llama_tensor_weight` of llama-model-loader.h.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Engine {
    /// `gguf_init_from_file` refuses it.
    Refuses,
    /// The header is read; loading the model is refused.
    Loader,
    /// It is read: vramfit is stricter here, and the code says why.
    Reads,
}
use Engine::{Loader, Reads, Refuses};

struct Case {
    name: &'static str,
    file: Raw,
    kind: ErrorKind,
    engine: Engine,
}

fn case(name: &'static str, file: Raw, kind: ErrorKind, engine: Engine) -> Case {
    Case {
        name,
        file,
        kind,
        engine,
    }
}

fn truncated(what: &'static str, needed: u64, left: u64) -> ErrorKind {
    ErrorKind::Truncated { what, needed, left }
}

fn length_past_end(what: &'static str, length: u64, left: u64) -> ErrorKind {
    ErrorKind::LengthPastEnd { what, length, left }
}

fn too_long(what: &'static str, length: u64, limit: u64) -> ErrorKind {
    ErrorKind::TooLong {
        what,
        length,
        limit,
    }
}

/// One u32 key, so that what follows is not at a round offset.
fn one_key(n_tensors: u64) -> Raw {
    Raw::header(n_tensors, 1).key_u32("my_key_0", 7)
}

fn all<const N: usize>(lists: [Vec<Case>; N]) -> Vec<Case> {
    lists.into_iter().flatten().collect()
}

fn cases() -> Vec<Case> {
    all([
        llama_cpp::cases(),
        front::cases(),
        keys::cases(),
        tensors::cases(),
    ])
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/malformed")
}

fn file_name(case: &Case) -> String {
    format!("{}.gguf", case.name.to_lowercase().replace('_', "-"))
}

#[test]
fn each_gets_its_error() {
    for case in cases() {
        let error = Header::parse(case.file.bytes.clone()).expect_err(case.name);
        assert_eq!(error.kind(), &case.kind, "{}", case.name);
        assert_eq!(error.offset(), case.file.mark, "{}: {error}", case.name);
        let shown = error.to_string();
        assert!(
            !shown.contains(|c: char| c.is_control()),
            "{}: {shown:?}",
            case.name
        );
        assert!(
            shown.contains(&format!("at byte {}", case.file.mark)),
            "{}: {shown}",
            case.name
        );
    }
}

#[test]
fn committed_files_are_the_generated_ones() {
    let expected: BTreeSet<String> = cases().iter().map(file_name).collect();
    assert_eq!(expected.len(), cases().len(), "two cases of one name");
    let found: BTreeSet<String> = folder()
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(found, expected);
    for case in cases() {
        assert!(case.file.bytes.len() < 2048, "{}", case.name);
        assert!(
            std::fs::read(folder().join(file_name(&case))).unwrap() == case.file.bytes,
            "{}",
            case.name
        );
    }
}

#[test]
fn opened_from_disk_the_error_names_the_path_on_one_line() {
    for case in cases() {
        let path = folder().join(file_name(&case));
        let shown = Header::open(&path).expect_err(case.name).to_string();
        assert!(
            shown.starts_with(&format!("{}: ", path.display())),
            "{shown}"
        );
        assert_eq!(shown.lines().count(), 1, "{shown}");
    }
}

#[test]
#[ignore = "writes fixtures/malformed"]
fn write_fixtures() {
    std::fs::create_dir_all(folder()).unwrap();
    for case in cases() {
        std::fs::write(folder().join(file_name(&case)), case.file.bytes).unwrap();
    }
}

fn small_file() -> Raw {
    Raw::header(2, 4)
        .key("general.architecture", STRING)
        .str("llama")
        .key_u32("general.alignment", 64)
        .key("tokenizer.ggml.tokens", ARRAY)
        .u32(STRING)
        .u64(3)
        .str("<s>")
        .str("")
        .str("b")
        .key("nested", ARRAY)
        .u32(ARRAY)
        .u64(1)
        .u32(U16)
        .u64(2)
        .u32(9)
        .tensor("a", &[256, 2], Q4_K)
        .u64(0)
        .tensor("b", &[3], F32)
        .u64(320)
        .pad(64)
}

#[test]
fn every_prefix_is_an_error_or_a_header_without_data() {
    let header_bytes = Header::parse(small_file().bytes).unwrap().header_bytes() as usize;
    let whole = small_file().data(332);
    let data_offset = small_file().bytes.len();
    for end in 0..=whole.bytes.len() {
        let result = Header::parse(whole.bytes[..end].to_vec());
        let state = result
            .as_ref()
            .map(Header::data_state)
            .map_err(|e| e.kind());
        match end {
            _ if end == whole.bytes.len() => assert_eq!(state, Ok(DataState::Complete)),
            _ if end > data_offset => assert!(
                matches!(state, Err(ErrorKind::IncompleteData { .. })),
                "{end}"
            ),
            _ if end >= header_bytes => assert_eq!(state, Ok(DataState::HeaderOnly), "{end}"),
            _ => assert!(state.is_err(), "{end}"),
        }
    }
}

#[test]
fn no_single_byte_makes_it_panic() {
    let file = small_file().bytes;
    for at in 0..file.len() {
        for byte in [0, 1, 3, 9, 0x7F, 0x80, 0xFF] {
            let mut bytes = file.clone();
            bytes[at] = byte;
            match Header::parse(bytes) {
                Ok(header) => header
                    .keys()
                    .for_each(|(_, value)| assert!(value.identical(&value))),
                Err(error) => assert!(!error.to_string().contains('\n')),
            }
        }
    }
}

#[test]
fn the_verdicts_of_llama_cpp_are_stated() {
    let reads = cases().iter().filter(|case| case.engine == Reads).count();
    assert_eq!(reads, 4, "vramfit is stricter only where the code says why");
}
