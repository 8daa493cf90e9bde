//! Files that somebody else shortens or replaces after they were opened.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use vramfit_gguf::Header;

#[test]
fn a_header_outlives_its_file() {
    let fixture =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/gguf/qwen3-8b.Q4_K_M.gguf");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.gguf");
    fs::copy(&fixture, &file).unwrap();
    let header = Header::open(&file).unwrap();
    // In place, as `cp` and `truncate` do it: the same file, now with other bytes or none.
    fs::File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(0)
        .unwrap();
    let expected = Header::parse(fs::read(&fixture).unwrap()).unwrap();
    assert!(expected.keys().len() > 10);
    assert_eq!(header.keys().len(), expected.keys().len());
    for ((key, value), (expected_key, expected)) in header.keys().zip(expected.keys()) {
        assert_eq!(key, expected_key);
        assert!(value.identical(&expected), "{key}");
    }
    assert_eq!(header.tensors(), expected.tensors());
    assert!(Header::open(&file).is_err());
}
