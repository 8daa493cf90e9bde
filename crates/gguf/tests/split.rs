//! Split models: written as llama.cpp's gguf-split writes them, opened from any part.
#![allow(clippy::unwrap_used)]

mod raw;

use std::path::{Path, PathBuf};

use raw::*;
use vramfit_gguf::{DataState, ErrorKind, Header, OpenError, ValueType};

const I32_TYPE: u32 = I32;

/// gguf-split puts all keys in the first part, and the three split keys in each.
fn part(no: u16, count: u16, tensors: i32, own: &[(&str, &[i64])]) -> Raw {
    let keys = if no == 0 { 4 } else { 3 };
    let raw = Raw::header(own.len() as u64, keys);
    let raw = if no == 0 {
        raw.key("general.architecture", STRING).str("llama")
    } else {
        raw
    };
    let raw = raw
        .key("split.no", U16)
        .u16(no)
        .key("split.count", U16)
        .u16(count);
    let raw = raw
        .key("split.tensors.count", I32_TYPE)
        .raw(&tensors.to_le_bytes());
    let mut offset = 0;
    let raw = own.iter().fold(raw, |raw, (name, ne)| {
        let start = offset;
        offset += (4 * ne.iter().product::<i64>() as u64).next_multiple_of(32);
        raw.tensor(name, ne, F32).u64(start)
    });
    if own.is_empty() {
        raw
    } else {
        raw.pad(32).data(offset as usize)
    }
}

/// gguf-split --no-tensor-first-split, three parts.
fn three_parts() -> [Raw; 3] {
    [
        part(0, 3, 3, &[]),
        part(1, 3, 3, &[("a", &[9]), ("b", &[8])]),
        part(2, 3, 3, &[("c", &[8, 2])]),
    ]
}

fn write(folder: &Path, name: &str, parts: &[Raw]) -> Vec<PathBuf> {
    let n = parts.len();
    let paths: Vec<_> = (1..=n)
        .map(|i| folder.join(format!("{name}-{i:05}-of-{n:05}.gguf")))
        .collect();
    paths
        .iter()
        .zip(parts)
        .for_each(|(path, part)| std::fs::write(path, &part.bytes).unwrap());
    paths
}

fn parse(parts: &[Raw]) -> Result<Header, (usize, ErrorKind)> {
    let parts = parts.iter().map(|part| part.bytes.clone()).collect();
    Header::parse_parts(parts).map_err(|(part, error)| (part, error.kind().clone()))
}

#[test]
fn any_part_opens_the_whole_model() {
    let folder = tempfile::tempdir().unwrap();
    let parts = three_parts();
    let paths = write(folder.path(), "model", &parts);
    for path in &paths {
        let header = Header::open(path).unwrap();
        assert_eq!((header.parts(), header.paths()), (3, &paths[..]));
        assert_eq!(header.architecture(), Some("llama"));
        let tensors: Vec<_> = header
            .tensors()
            .iter()
            .map(|t| (t.name.as_str(), t.part, t.n_bytes))
            .collect();
        assert_eq!(tensors, [("a", 1, 36), ("b", 1, 32), ("c", 2, 64)]);
        // Offsets count from the start of the part that holds the tensor.
        let data_offset = |part: &Raw, data: u64| part.bytes.len() as u64 - data;
        assert_eq!(
            header.tensor("b").unwrap().offset,
            data_offset(&parts[1], 96) + 64
        );
        assert_eq!(
            header.tensor("c").unwrap().offset,
            data_offset(&parts[2], 64)
        );
        assert_eq!(
            header.file_bytes(),
            parts.iter().map(|p| p.bytes.len() as u64).sum::<u64>()
        );
        assert_eq!(header.data_state(), DataState::Complete);
    }
}

#[test]
fn a_part_without_data_makes_the_model_header_only() {
    let mut parts = three_parts();
    let whole = parse(&parts).unwrap().file_bytes();
    let header_end = parts[2].bytes.len() - 64;
    parts[2].bytes.truncate(header_end);
    let header = parse(&parts).unwrap();
    assert_eq!(
        (header.data_state(), header.file_bytes()),
        (DataState::HeaderOnly, whole)
    );
}

#[test]
fn a_missing_part_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let paths = write(folder.path(), "model", &three_parts());
    std::fs::remove_file(&paths[1]).unwrap();
    let error = Header::open(&paths[2]).unwrap_err();
    assert!(
        matches!(&error, OpenError::PartMissing { path, no: 2, count: 3 } if path == &paths[1]),
        "{error}"
    );
}

#[test]
fn a_renamed_part_is_told_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let paths = write(folder.path(), "model", &three_parts());
    for name in [
        "model.gguf",
        "-00001-of-00003.gguf",
        "model-00002-of-00003.gguf",
    ] {
        let path = folder.path().join(name);
        std::fs::copy(&paths[0], &path).unwrap();
        let error = Header::open(&path).unwrap_err();
        assert!(
            error.to_string().contains("\"-00001-of-00003.gguf\""),
            "{error}"
        );
    }
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let [first, second, third] = three_parts();

    let swapped = parse(&[first.clone(), third.clone(), second.clone()]);
    assert_eq!(
        swapped.unwrap_err(),
        (
            1,
            ErrorKind::SplitOrder {
                found: 3,
                expected: 2
            }
        )
    );

    let other_split = parse(&[first.clone(), part(1, 4, 3, &[("a", &[8])]), third.clone()]);
    assert_eq!(
        other_split.unwrap_err(),
        (
            1,
            ErrorKind::SplitCount {
                found: 4,
                expected: 3
            }
        )
    );

    let duplicate = parse(&[first.clone(), second.clone(), part(2, 3, 3, &[("a", &[8])])]);
    assert_eq!(
        duplicate.unwrap_err(),
        (2, ErrorKind::SplitDuplicateTensor { first_part: 2 })
    );

    let too_few = parse(&[part(0, 3, 4, &[]), second.clone(), third.clone()]);
    assert_eq!(
        too_few.unwrap_err(),
        (
            0,
            ErrorKind::SplitTensorCount {
                found: 3,
                expected: 4
            }
        )
    );

    let no_keys = Raw::header(0, 1).key_u32("a", 1);
    let missing = parse(&[first.clone(), no_keys, third.clone()]);
    assert_eq!(
        missing.unwrap_err(),
        (1, ErrorKind::SplitKeyMissing { key: "split.count" })
    );

    let past_count = parse(&[part(3, 3, 3, &[]), second, third]);
    assert_eq!(
        past_count.unwrap_err(),
        (0, ErrorKind::SplitNumber { no: 3, count: 3 })
    );
}

#[test]
fn split_keys_have_the_types_of_llama_cpp() {
    let folder = tempfile::tempdir().unwrap();
    let file = Raw::header(0, 1).key("split.count", U32).here().u32(2);
    let path = folder.path().join("model-00001-of-00002.gguf");
    std::fs::write(&path, &file.bytes).unwrap();
    let Err(OpenError::Malformed { source, .. }) = Header::open(&path) else {
        panic!()
    };
    let kind = ErrorKind::WrongValueType {
        found: ValueType::U32,
        expected: ValueType::U16,
    };
    assert_eq!((source.kind(), source.offset()), (&kind, file.mark));
}

#[test]
fn one_part_of_one_is_no_split() {
    let header = Header::parse(part(0, 1, 1, &[("a", &[8])]).bytes).unwrap();
    assert_eq!(header.parts(), 1);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("any-name.gguf");
    std::fs::write(&path, part(0, 1, 1, &[("a", &[8])]).bytes).unwrap();
    assert_eq!(Header::open(&path).unwrap().tensors().len(), 1);
}
