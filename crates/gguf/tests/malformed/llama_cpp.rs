//! The malformed files of llama.cpp v0.5.0's `tests/test-gguf.cpp`, under its names.

use super::*;

pub fn cases() -> Vec<Case> {
    all([header(), keys(), tensors(), offsets(), data()])
}

fn header() -> Vec<Case> {
    let count = |what, count, limit| ErrorKind::CountOverLimit { what, count, limit };
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
    ]
}

fn keys() -> Vec<Case> {
    vec![
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
    ]
}

fn tensors() -> Vec<Case> {
    let big = 4 * i64::from(i32::MAX);
    // 1.01 * sqrt(SIZE_MAX / 8) + 1: eight bytes an element make more than 2^64.
    let big_i64 = 1_533_685_253;
    let long_name =
        "my_tensor_0_with_a_very_long_name_which_is_longer_than_what_is_allowed_for_ggml_tensors";
    vec![
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
    ]
}

fn offsets() -> Vec<Case> {
    vec![
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
    ]
}

fn data() -> Vec<Case> {
    let huge = 0x7FFF_FFFF_FFFF_FFC0;
    vec![
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
