//! Every way a header can lie: a file for each, and the error that it must get.
//!
//! The first block of cases is that of llama.cpp v0.5.0's `tests/test-gguf.cpp`, under its names.
//! The files are under `fixtures/malformed`; after a change here write them again with
//!
//! ```text
//! cargo test -p vramfit-gguf --test malformed -- --ignored write_fixtures
//! ```
#![allow(clippy::unwrap_used)]

mod raw;

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

fn cases_of_llama_cpp() -> Vec<Case> {
    let count = |what, count, limit| ErrorKind::CountOverLimit { what, count, limit };
    let big = 4 * i64::from(i32::MAX);
    // 1.01 * sqrt(SIZE_MAX / 8) + 1: eight bytes an element make more than 2^64.
    let big_i64 = 1_533_685_253;
    let long_name =
        "my_tensor_0_with_a_very_long_name_which_is_longer_than_what_is_allowed_for_ggml_tensors";
    let huge = 0x7FFF_FFFF_FFFF_FFC0;
    vec![
        case(
            "HEADER_BAD_MAGIC",
            Raw::new().here().raw(b"FUGG").u32(3).u64(0).u64(0).pad(32),
            ErrorKind::BadMagic { found: *b"FUGG" },
            Refuses,
        ),
        case(
            "HEADER_BAD_VERSION_0",
            Raw::new().raw(b"GGUF").here().u32(0).u64(0).u64(0).pad(32),
            ErrorKind::VersionZero,
            Refuses,
        ),
        case(
            "HEADER_BAD_VERSION_1",
            Raw::new().raw(b"GGUF").here().u32(1).u64(0).u64(0).pad(32),
            ErrorKind::VersionOne,
            Refuses,
        ),
        case(
            "HEADER_BAD_VERSION_FUTURE",
            Raw::new().raw(b"GGUF").here().u32(4).u64(0).u64(0).pad(32),
            ErrorKind::VersionUnknown { version: 4 },
            Refuses,
        ),
        case(
            "HEADER_BAD_N_TENSORS",
            Raw::new()
                .raw(b"GGUF")
                .u32(3)
                .here()
                .u64(u64::MAX)
                .u64(0)
                .pad(32),
            count("tensor count", u64::MAX, Limits::MAX_TENSORS),
            Refuses,
        ),
        case(
            "HEADER_BAD_N_KV",
            Raw::new()
                .raw(b"GGUF")
                .u32(3)
                .u64(0)
                .here()
                .u64(u64::MAX)
                .pad(32),
            count("key count", u64::MAX, Limits::MAX_KEYS),
            Refuses,
        ),
        case(
            "KV_BAD_KEY_SIZE",
            Raw::header(0, 1)
                .here()
                .u64(u64::MAX)
                .raw(b"my_key_0")
                .u32(U32)
                .u32(7),
            too_long("key", u64::MAX, 65_535),
            Refuses,
        ),
        case(
            "KV_EMPTY_KEY",
            Raw::header(0, 1).here().str("").u32(U32).u32(7),
            ErrorKind::EmptyKey,
            Refuses,
        ),
        case(
            "KV_BAD_TYPE",
            Raw::header(0, 1)
                .str("my_key_0")
                .here()
                .u32(VALUE_TYPE_COUNT)
                .u8(0),
            ErrorKind::UnknownValueType { id: 13 },
            Refuses,
        ),
        case(
            "KV_DUPLICATE_KEY",
            Raw::header(0, 2)
                .key_u32("my_key_0", 1)
                .here()
                .key_u32("my_key_0", 2),
            ErrorKind::DuplicateKey { first: 24 },
            Refuses,
        ),
        case(
            "KV_BAD_ALIGN",
            Raw::header(0, 1)
                .key("general.alignment", U32)
                .here()
                .u32(13),
            ErrorKind::BadAlignment { value: 13 },
            Refuses,
        ),
        case(
            "KV_WRONG_TYPE_ALIGN",
            Raw::header(0, 1)
                .key("general.alignment", I32)
                .here()
                .u32(13),
            ErrorKind::WrongValueType {
                found: ValueType::I32,
                expected: ValueType::U32,
            },
            Refuses,
        ),
        case(
            "TENSORS_BAD_NAME_SIZE",
            one_key(1)
                .here()
                .tensor(long_name, &[8], F32)
                .u64(0)
                .pad(32),
            too_long("tensor name", 87, 63),
            Refuses,
        ),
        case(
            "TENSORS_BAD_N_DIMS",
            one_key(1)
                .str("my_tensor_0")
                .here()
                .u32(5)
                .i64(1)
                .i64(1)
                .i64(1)
                .i64(1)
                .i64(1)
                .u32(F32)
                .u64(0)
                .pad(32),
            ErrorKind::TooManyDimensions {
                n_dims: 5,
                limit: 4,
            },
            Refuses,
        ),
        case(
            "TENSORS_BAD_SHAPE",
            one_key(1)
                .str("my_tensor_0")
                .u32(1)
                .here()
                .i64(-1)
                .u32(F32)
                .u64(0)
                .pad(32),
            ErrorKind::NegativeDimension { dim: 0, ne: -1 },
            Refuses,
        ),
        case(
            "TENSORS_NE_TOO_BIG",
            one_key(1)
                .str("my_tensor_0")
                .here()
                .u32(2)
                .i64(big)
                .i64(big)
                .u32(F32)
                .u64(0)
                .pad(32),
            ErrorKind::TooManyElements {
                ne: [big, big, 1, 1],
            },
            Refuses,
        ),
        case(
            "TENSORS_NBYTES_TOO_BIG",
            one_key(1)
                .shape("my_tensor_0", &[big_i64, big_i64])
                .here()
                .u32(I64)
                .u64(0)
                .pad(32),
            ErrorKind::TensorTooLarge {
                ne: [big_i64, big_i64, 1, 1],
                ty: Type::I64,
            },
            Refuses,
        ),
        case(
            "TENSORS_BAD_TYPE",
            one_key(1)
                .shape("my_tensor_0", &[8])
                .here()
                .u32(TENSOR_TYPE_COUNT)
                .u64(0)
                .pad(32),
            ErrorKind::UnknownTensorType { id: 43 },
            Refuses,
        ),
        case(
            "TENSORS_BAD_OFFSET",
            one_key(1)
                .tensor("my_tensor_0", &[8], F32)
                .here()
                .u64(u64::MAX)
                .pad(32),
            ErrorKind::UnalignedOffset {
                offset: u64::MAX,
                alignment: 32,
            },
            Refuses,
        ),
        case(
            "TENSORS_DUPLICATE_NAME",
            one_key(2)
                .tensor("my_tensor", &[8], F32)
                .u64(0)
                .here()
                .tensor("my_tensor", &[8], F32)
                .u64(32)
                .pad(32),
            ErrorKind::DuplicateTensor { first: 48 },
            Refuses,
        ),
        case(
            "TENSORS_BAD_ALIGN",
            Raw::header(1, 1)
                .key("general.alignment", U32)
                .here()
                .u32(13)
                .tensor("my_tensor_0", &[8], F32)
                .u64(0)
                .pad(13),
            ErrorKind::BadAlignment { value: 13 },
            Refuses,
        ),
        case(
            "TENSORS_INCONSISTENT_ALIGN",
            one_key(2)
                .tensor("my_tensor_0", &[9], F32)
                .u64(0)
                .tensor("my_tensor_1", &[9], F32)
                .here()
                .u64(36)
                .pad(32),
            ErrorKind::UnalignedOffset {
                offset: 36,
                alignment: 32,
            },
            Refuses,
        ),
        // llama.cpp's own test asks for all data, padding included; its model loader, whose rule
        // this is, for the bytes of the tensors.
        case(
            "DATA_NOT_ENOUGH_DATA",
            one_key(2)
                .tensor("my_tensor_0", &[8], F32)
                .u64(0)
                .tensor("my_tensor_1", &[8], F32)
                .u64(32)
                .pad(32)
                .data(63)
                .here(),
            ErrorKind::IncompleteData {
                start: 192,
                end: 224,
                file: 223,
                missing: 1,
            },
            Loader,
        ),
        case(
            "DATA_BAD_ALIGN",
            Raw::header(1, 1)
                .key("general.alignment", U32)
                .here()
                .u32(13)
                .tensor("my_tensor_0", &[8], F32)
                .u64(0)
                .pad(13)
                .data(32),
            ErrorKind::BadAlignment { value: 13 },
            Refuses,
        ),
        case(
            "DATA_INCONSISTENT_ALIGN",
            one_key(2)
                .tensor("my_tensor_0", &[9], F32)
                .u64(0)
                .tensor("my_tensor_1", &[9], F32)
                .here()
                .u64(36)
                .pad(32)
                .data(72),
            ErrorKind::UnalignedOffset {
                offset: 36,
                alignment: 32,
            },
            Refuses,
        ),
        // llama.cpp reads the header and fails to allocate the sum.
        case(
            "DATA_MEM_SIZE_OVERFLOW",
            one_key(2)
                .tensor("my_tensor_0", &[huge], I8)
                .u64(0)
                .tensor("my_tensor_1", &[huge], I8)
                .here()
                .u64(huge as u64)
                .pad(32)
                .data(32),
            ErrorKind::FileTooLarge,
            Loader,
        ),
    ]
}

fn cases_of_the_front() -> Vec<Case> {
    let past_end = |what, count, max, left| ErrorKind::CountTooLarge {
        what,
        count,
        max,
        left,
    };
    vec![
        case("empty", Raw::new(), truncated("magic", 4, 0), Refuses),
        case(
            "magic-cut",
            Raw::new().raw(b"GGU"),
            truncated("magic", 4, 3),
            Refuses,
        ),
        case(
            "magic-only",
            Raw::new().raw(b"GGUF").here(),
            truncated("version", 4, 0),
            Refuses,
        ),
        case(
            "version-cut",
            Raw::new().raw(b"GGUF").here().raw(&[3, 0]),
            truncated("version", 4, 2),
            Refuses,
        ),
        case(
            "web-page",
            Raw::new().raw(b"<!DOCTYPE html><title>404</title>"),
            ErrorKind::BadMagic { found: *b"<!DO" },
            Refuses,
        ),
        case(
            "git-lfs-pointer",
            Raw::new().raw(b"version https://git-lfs.github.com/spec/v1\n"),
            ErrorKind::BadMagic { found: *b"vers" },
            Refuses,
        ),
        case(
            "ggjt",
            Raw::new().raw(b"tjgg").u32(3).u64(0),
            ErrorKind::BadMagic { found: *b"tjgg" },
            Refuses,
        ),
        case(
            "magic-control-bytes",
            Raw::new().raw(b"\n\0\x1b\xff").u32(3).u64(0).u64(0),
            ErrorKind::BadMagic {
                found: *b"\n\0\x1b\xff",
            },
            Refuses,
        ),
        case(
            "version-1-big-endian",
            Raw::new()
                .raw(b"GGUF")
                .here()
                .raw(&1u32.to_be_bytes())
                .u64(0)
                .u64(0),
            ErrorKind::VersionOne,
            Refuses,
        ),
        case(
            "version-4-big-endian",
            Raw::new()
                .raw(b"GGUF")
                .here()
                .raw(&4u32.to_be_bytes())
                .u64(0)
                .u64(0),
            ErrorKind::VersionUnknown { version: 4 },
            Refuses,
        ),
        case(
            "tensor-count-cut",
            Raw::new().raw(b"GGUF").u32(3).here().u32(1),
            truncated("tensor count", 8, 4),
            Refuses,
        ),
        case(
            "key-count-cut",
            Raw::new().raw(b"GGUF").u32(3).u64(0).here().u32(1),
            truncated("key count", 8, 4),
            Refuses,
        ),
        case(
            "tensor-count-past-end",
            Raw::new().raw(b"GGUF").u32(3).here().u64(3).u64(0).data(71),
            past_end("tensor count", 3, 2, 71),
            Refuses,
        ),
        case(
            "key-count-past-end",
            Raw::new().raw(b"GGUF").u32(3).u64(0).here().u64(3).data(41),
            past_end("key count", 3, 2, 41),
            Refuses,
        ),
        case(
            "tensor-count-over-limit",
            Raw::new().raw(b"GGUF").u32(3).here().u64(1 << 21).u64(0),
            ErrorKind::CountOverLimit {
                what: "tensor count",
                count: 1 << 21,
                limit: Limits::MAX_TENSORS,
            },
            Refuses,
        ),
    ]
}

fn cases_of_keys() -> Vec<Case> {
    let string_limit = Limits::MAX_STRING_BYTES;
    let wrong = |found| ErrorKind::WrongValueType {
        found,
        expected: ValueType::U32,
    };
    let count = "array's element count";
    let element = "string in the array";
    let array = |ty: u32| Raw::header(0, 1).key("a", ARRAY).u32(ty);
    vec![
        // The count promises two keys; the first one is long enough to hide that there is one.
        case(
            "key-cut",
            Raw::header(0, 2)
                .key("a_long_enough_key", U8)
                .u8(1)
                .here()
                .u32(4),
            truncated("key", 8, 4),
            Refuses,
        ),
        case(
            "key-length-past-end",
            Raw::header(0, 1).here().u64(100).raw(b"general.name"),
            length_past_end("key", 100, 12),
            Refuses,
        ),
        case(
            "key-length-over-limit",
            Raw::header(0, 1).here().u64(65_536).data(100),
            too_long("key", 65_536, 65_535),
            Refuses,
        ),
        case(
            "key-not-utf8",
            Raw::header(0, 1).here().str(b"caf\xe9").u32(U8).u8(1),
            ErrorKind::NotUtf8 { what: "key" },
            Reads,
        ),
        case(
            "key-with-line-feed-duplicated",
            Raw::header(0, 2)
                .key_u32("a\nb", 1)
                .here()
                .key_u32("a\nb", 2),
            ErrorKind::DuplicateKey { first: 24 },
            Refuses,
        ),
        case(
            "value-type-cut",
            Raw::header(0, 1).str("my_key").here().u16(4),
            truncated("value type", 4, 2),
            Refuses,
        ),
        case(
            "value-type-negative",
            Raw::header(0, 1).str("my_key").here().u32(u32::MAX).u8(0),
            ErrorKind::UnknownValueType { id: u32::MAX },
            Refuses,
        ),
        case(
            "value-cut",
            Raw::header(0, 1).key("my_key", U64).here().u32(1),
            truncated("value", 8, 4),
            Refuses,
        ),
        case(
            "value-missing",
            Raw::header(0, 1).key("my_key", U8).here(),
            truncated("value", 1, 0),
            Refuses,
        ),
        case(
            "string-length-cut",
            Raw::header(0, 1).key("my_key", STRING).here().u32(1),
            truncated("string value", 8, 4),
            Refuses,
        ),
        case(
            "string-past-end",
            Raw::header(0, 1)
                .key("my_key", STRING)
                .here()
                .u64(5)
                .raw(b"four"),
            length_past_end("string value", 5, 4),
            Refuses,
        ),
        case(
            "string-over-limit",
            Raw::header(0, 1)
                .key("my_key", STRING)
                .here()
                .u64(string_limit + 1)
                .raw(b"x"),
            too_long("string value", string_limit + 1, string_limit),
            Refuses,
        ),
        case(
            "string-length-all-ones",
            Raw::header(0, 1)
                .key("my_key", STRING)
                .here()
                .u64(u64::MAX)
                .raw(b"x"),
            too_long("string value", u64::MAX, string_limit),
            Refuses,
        ),
        case(
            "array-type-cut",
            Raw::header(0, 1).key("my_key", ARRAY).here().u16(4),
            truncated("array's element type", 4, 2),
            Refuses,
        ),
        case(
            "array-type-unknown",
            Raw::header(0, 1).key("my_key", ARRAY).here().u32(13).u64(0),
            ErrorKind::UnknownValueType { id: 13 },
            Refuses,
        ),
        case(
            "array-count-cut",
            array(U32).here().u32(1),
            truncated(count, 8, 4),
            Refuses,
        ),
        case(
            "array-count-past-end",
            array(U32).here().u64(3).u64(0),
            ErrorKind::CountTooLarge {
                what: count,
                count: 3,
                max: 2,
                left: 8,
            },
            Refuses,
        ),
        case(
            "array-count-over-limit",
            array(U64).here().u64(1 << 61).u64(0),
            ErrorKind::CountOverLimit {
                what: count,
                count: 1 << 61,
                limit: 1 << 30,
            },
            Refuses,
        ),
        case(
            "array-of-strings-count-past-end",
            array(STRING).here().u64(1 << 30).str("a"),
            ErrorKind::CountTooLarge {
                what: count,
                count: 1 << 30,
                max: 1,
                left: 9,
            },
            Refuses,
        ),
        case(
            "array-string-length-cut",
            array(STRING).u64(2).str("four").here().u32(0),
            truncated(element, 8, 4),
            Refuses,
        ),
        case(
            "array-string-past-end",
            array(STRING).u64(2).str("a").here().u64(2).raw(b"b"),
            length_past_end(element, 2, 1),
            Refuses,
        ),
        case(
            "array-string-over-limit",
            array(STRING)
                .u64(2)
                .str("a")
                .here()
                .u64(string_limit + 1)
                .raw(b"b"),
            too_long(element, string_limit + 1, string_limit),
            Refuses,
        ),
        case(
            "array-string-length-all-ones",
            array(STRING).u64(1).here().u64(u64::MAX),
            too_long(element, u64::MAX, string_limit),
            Refuses,
        ),
        case(
            "array-nested-type-unknown",
            array(ARRAY).u64(1).here().u32(99).u64(0),
            ErrorKind::UnknownValueType { id: 99 },
            Refuses,
        ),
        case(
            "array-nested-count-past-end",
            array(ARRAY).here().u64(2).u32(U8).u64(1).u8(1),
            ErrorKind::CountTooLarge {
                what: count,
                count: 2,
                max: 1,
                left: 13,
            },
            Refuses,
        ),
        case(
            "array-nested-cut",
            array(ARRAY).u64(2).u32(U8).u64(11).data(11).here().u8(0),
            truncated("array's element type", 4, 1),
            Refuses,
        ),
        case(
            "array-nested-too-deep",
            array(ARRAY)
                .u64(1)
                .u32(ARRAY)
                .u64(1)
                .u32(ARRAY)
                .u64(1)
                .u32(ARRAY)
                .u64(1)
                .here()
                .u32(U8)
                .u64(0),
            ErrorKind::NestedTooDeep { limit: 4 },
            Refuses,
        ),
        case(
            "alignment-zero",
            Raw::header(0, 1)
                .key("general.alignment", U32)
                .here()
                .u32(0),
            ErrorKind::BadAlignment { value: 0 },
            Refuses,
        ),
        case(
            "alignment-all-ones",
            Raw::header(0, 1)
                .key("general.alignment", U32)
                .here()
                .u32(u32::MAX),
            ErrorKind::BadAlignment { value: u32::MAX },
            Refuses,
        ),
        case(
            "alignment-u64",
            Raw::header(0, 1)
                .key("general.alignment", U64)
                .here()
                .u64(32),
            wrong(ValueType::U64),
            Refuses,
        ),
        case(
            "alignment-string",
            Raw::header(0, 1)
                .key("general.alignment", STRING)
                .here()
                .str("32"),
            wrong(ValueType::String),
            Refuses,
        ),
        // llama.cpp looks at the type of the elements, and uses the first one.
        case(
            "alignment-array",
            Raw::header(0, 1)
                .key("general.alignment", ARRAY)
                .here()
                .u32(U32)
                .u64(1)
                .u32(32),
            wrong(ValueType::Array),
            Refuses,
        ),
    ]
}

fn cases_of_tensors() -> Vec<Case> {
    let name_64 = "n".repeat(64);
    let max = i64::MAX;
    let wraps = 1 << 32;
    let tensor = || one_key(1);
    let two = || one_key(2).tensor("a", &[8], F32).u64(0);
    let unaligned = |offset| ErrorKind::UnalignedOffset {
        offset,
        alignment: 32,
    };
    vec![
        // Two infos are promised; the first one is long enough to hide that the second is cut.
        case(
            "tensor-name-length-cut",
            one_key(2)
                .tensor("a_long_enough_name", &[8], F32)
                .u64(0)
                .here()
                .u32(1),
            truncated("tensor name", 8, 4),
            Refuses,
        ),
        case(
            "tensor-name-past-end",
            tensor().here().u64(40).data(30),
            length_past_end("tensor name", 40, 30),
            Refuses,
        ),
        case(
            "tensor-name-64-bytes",
            tensor().here().tensor(&name_64, &[8], F32).u64(0),
            too_long("tensor name", 64, 63),
            Refuses,
        ),
        case(
            "tensor-name-all-ones",
            tensor().here().u64(u64::MAX).data(30),
            too_long("tensor name", u64::MAX, 63),
            Refuses,
        ),
        case(
            "tensor-name-not-utf8",
            tensor()
                .here()
                .str(b"\xff\xfe")
                .u32(1)
                .i64(8)
                .u32(F32)
                .u64(0)
                .pad(32),
            ErrorKind::NotUtf8 {
                what: "tensor name",
            },
            Reads,
        ),
        case(
            "tensor-name-with-nul",
            tensor().here().tensor("a\0b", &[8], F32).u64(0).pad(32),
            ErrorKind::NulInName,
            Reads,
        ),
        case(
            "dimension-count-cut",
            tensor().str("a_name_of_some_bytes").here().u16(1),
            truncated("number of dimensions", 4, 2),
            Refuses,
        ),
        case(
            "dimension-count-all-ones",
            tensor().str("a").here().u32(u32::MAX).data(40),
            ErrorKind::TooManyDimensions {
                n_dims: u32::MAX,
                limit: 4,
            },
            Refuses,
        ),
        case(
            "shape-cut",
            tensor().str("a").u32(2).i64(8).here().u32(1),
            truncated("tensor's shape", 8, 4),
            Refuses,
        ),
        case(
            "shape-last-negative",
            tensor()
                .str("a")
                .u32(4)
                .i64(8)
                .i64(1)
                .i64(1)
                .here()
                .i64(i64::MIN)
                .u32(F32)
                .u64(0),
            ErrorKind::NegativeDimension {
                dim: 3,
                ne: i64::MIN,
            },
            Refuses,
        ),
        case(
            "shape-i64-max",
            tensor().str("a").here().u32(1).i64(max).u32(I8).u64(0),
            ErrorKind::TooManyElements { ne: [max, 1, 1, 1] },
            Refuses,
        ),
        // The product is 2^64, which llama.cpp computes as 0 and takes for an empty tensor.
        case(
            "shape-product-wraps-to-zero",
            tensor()
                .str("a")
                .here()
                .u32(2)
                .i64(wraps)
                .i64(wraps)
                .u32(F32)
                .u64(0)
                .pad(32),
            ErrorKind::TooManyElements {
                ne: [wraps, wraps, 1, 1],
            },
            Reads,
        ),
        case(
            "tensor-type-cut",
            tensor().shape("a_name", &[8]).here().u16(0),
            truncated("tensor type", 4, 2),
            Refuses,
        ),
        case(
            "tensor-type-all-ones",
            tensor().shape("a", &[8]).here().u32(u32::MAX).u64(0),
            ErrorKind::UnknownTensorType { id: u32::MAX },
            Refuses,
        ),
        case(
            "tensor-type-removed-q4_2",
            tensor().shape("a", &[32]).here().u32(4).u64(0),
            ErrorKind::RemovedTensorType {
                id: 4,
                name: "q4_2",
            },
            Refuses,
        ),
        case(
            "tensor-type-removed-q4_0_8_8",
            tensor().shape("a", &[32]).here().u32(33).u64(0),
            ErrorKind::RemovedTensorType {
                id: 33,
                name: "q4_0_8_8",
            },
            Refuses,
        ),
        case(
            "row-of-partial-block",
            tensor().shape("a", &[255, 256]).here().u32(Q4_K).u64(0),
            ErrorKind::PartialBlock {
                ne0: 255,
                ty: Type::Q4_K,
                block: 256,
            },
            Refuses,
        ),
        case(
            "row-of-one-too-many",
            tensor().shape("a", &[257]).here().u32(Q4_K).u64(0),
            ErrorKind::PartialBlock {
                ne0: 257,
                ty: Type::Q4_K,
                block: 256,
            },
            Refuses,
        ),
        case(
            "offset-cut",
            tensor().tensor("a", &[8], F32).here().u32(0),
            truncated("tensor's data offset", 8, 4),
            Refuses,
        ),
        case(
            "offset-not-aligned",
            two().tensor("b", &[8], F32).here().u64(33).pad(32),
            unaligned(33),
            Refuses,
        ),
        case(
            "offset-first-not-zero",
            tensor().tensor("a", &[8], F32).here().u64(32).pad(32),
            ErrorKind::GapBetweenTensors {
                offset: 32,
                expected: 0,
            },
            Refuses,
        ),
        case(
            "tensors-overlap",
            one_key(2)
                .tensor("a", &[16], F32)
                .u64(0)
                .tensor("b", &[8], F32)
                .here()
                .u64(32)
                .pad(32)
                .data(96),
            ErrorKind::OverlappingTensors {
                offset: 32,
                expected: 64,
            },
            Refuses,
        ),
        case(
            "tensors-at-one-offset",
            two().tensor("b", &[8], F32).here().u64(0).pad(32).data(64),
            ErrorKind::OverlappingTensors {
                offset: 0,
                expected: 32,
            },
            Refuses,
        ),
        case(
            "tensors-with-gap",
            two().tensor("b", &[8], F32).here().u64(64).pad(32).data(96),
            ErrorKind::GapBetweenTensors {
                offset: 64,
                expected: 32,
            },
            Refuses,
        ),
        case(
            "tensors-out-of-order",
            one_key(2)
                .tensor("a", &[8], F32)
                .here()
                .u64(32)
                .tensor("b", &[8], F32)
                .u64(0)
                .pad(32)
                .data(64),
            ErrorKind::GapBetweenTensors {
                offset: 32,
                expected: 0,
            },
            Refuses,
        ),
        case(
            "tensor-past-largest-file",
            tensor().tensor("a", &[max - 63], I8).u64(0).here(),
            ErrorKind::FileTooLarge,
            Refuses,
        ),
        case(
            "data-cut-in-first-tensor",
            two().tensor("b", &[8], F32).u64(32).pad(32).data(1).here(),
            ErrorKind::IncompleteData {
                start: 128,
                end: 160,
                file: 129,
                missing: 63,
            },
            Loader,
        ),
        case(
            "data-cut-in-second-tensor",
            two().tensor("b", &[8], F32).u64(32).pad(32).data(32).here(),
            ErrorKind::IncompleteData {
                start: 160,
                end: 192,
                file: 160,
                missing: 32,
            },
            Loader,
        ),
    ]
}

fn cases() -> Vec<Case> {
    [
        cases_of_llama_cpp(),
        cases_of_the_front(),
        cases_of_keys(),
        cases_of_tensors(),
    ]
    .into_iter()
    .flatten()
    .collect()
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

/// llama.cpp's cases that must be read, and those where vramfit is laxer, each with what it says.
#[test]
fn well_formed_files_are_read() {
    let read = |file: Raw| Header::parse(file.bytes).unwrap();

    let header_empty = read(Raw::header(0, 0).pad(32));
    assert_eq!(
        (header_empty.keys().len(), header_empty.tensors().len()),
        (0, 0)
    );
    assert_eq!(header_empty.data_state(), DataState::Complete);

    let kv_success = read(one_key(0).pad(32));
    assert_eq!(kv_success.get("my_key_0").unwrap().as_u64(), Some(7));
    assert_eq!((kv_success.alignment(), kv_success.version()), (32, 3));

    let zero_dim = read(
        one_key(1)
            .tensor("my_tensor_0", &[8, 0], F32)
            .u64(0)
            .pad(32),
    );
    assert_eq!(zero_dim.tensors()[0].n_bytes, 0);
    assert_eq!(zero_dim.data_state(), DataState::Complete);

    let tensors_success = read(
        one_key(1)
            .tensor("my_tensor_0", &[8, 3], F32)
            .u64(0)
            .pad(32),
    );
    assert_eq!(tensors_success.tensors()[0].ne, [8, 3, 1, 1]);
    assert_eq!(tensors_success.data_state(), DataState::HeaderOnly);

    let custom = Raw::header(2, 1).key_u32("general.alignment", 1);
    let custom = custom
        .tensor("my_tensor_0", &[9], I8)
        .u64(0)
        .tensor("my_tensor_1", &[1], I8)
        .u64(9);
    let start = custom.bytes.len() as u64;
    let tensors_custom_align = read(custom.clone());
    assert_eq!(
        (
            tensors_custom_align.alignment(),
            tensors_custom_align.data_offset()
        ),
        (1, start)
    );
    let data_custom_align = read(custom.data(10));
    assert_eq!(data_custom_align.file_bytes(), start + 10);
    assert_eq!(data_custom_align.data_state(), DataState::Complete);

    let data_success = one_key(1).tensor("my_tensor_0", &[9], F32).u64(0).pad(32);
    let start = data_success.bytes.len() as u64;
    for n in [36, 37, 64, 100] {
        let header = read(data_success.clone().data(n));
        assert_eq!(header.data_state(), DataState::Complete);
        assert_eq!(header.file_bytes(), start + 64);
    }

    // Where llama.cpp refuses and vramfit reads: a nested array, the other byte order, and a
    // header without the padding that follows it.
    let nested = read(
        Raw::header(0, 1)
            .key("a", ARRAY)
            .u32(ARRAY)
            .u64(2)
            .u32(U8)
            .u64(1)
            .u8(5)
            .u32(BOOL)
            .u64(0),
    );
    let nested = nested.get("a").unwrap().as_array().unwrap();
    let inner: Vec<_> = nested.iter().map(|v| v.as_array().unwrap()).collect();
    assert_eq!((inner[0].len(), inner[1].len()), (1, 0));
    assert_eq!(inner[0].iter().next().unwrap().as_u64(), Some(5));
    let unpadded = read(one_key(1).tensor("my_tensor_0", &[8], F32).u64(0));
    assert_eq!((unpadded.header_bytes(), unpadded.data_offset()), (91, 96));
    assert_eq!(
        (unpadded.file_bytes(), unpadded.data_state()),
        (128, DataState::HeaderOnly)
    );
}

#[test]
fn text_that_is_not_utf8_stays_readable() {
    let header = Header::parse(
        Raw::header(0, 1)
            .key("general.name", STRING)
            .str(b"caf\xe9")
            .bytes,
    )
    .unwrap();
    let value = header.get("general.name").unwrap();
    assert_eq!(value.as_str(), None);
    let Value::String(text) = value else {
        panic!("{value:?}")
    };
    assert_eq!(
        (text.as_bytes(), text.to_string()),
        (&b"caf\xe9"[..], "caf\u{fffd}".to_owned())
    );
}

/// A file with a little of everything.
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
