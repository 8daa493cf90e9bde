//! Keys and their values.

use super::*;

pub fn cases() -> Vec<Case> {
    all([names(), values(), arrays(), nested_arrays(), alignment()])
}

fn names() -> Vec<Case> {
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
    ]
}

fn values() -> Vec<Case> {
    let string_limit = Limits::MAX_STRING_BYTES;
    vec![
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
    ]
}

fn arrays() -> Vec<Case> {
    let string_limit = Limits::MAX_STRING_BYTES;
    let count = "array's element count";
    let element = "string in the array";
    let array = |ty: u32| Raw::header(0, 1).key("a", ARRAY).u32(ty);
    vec![
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
    ]
}

fn nested_arrays() -> Vec<Case> {
    let count = "array's element count";
    let array = |ty: u32| Raw::header(0, 1).key("a", ARRAY).u32(ty);
    vec![
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
    ]
}

fn alignment() -> Vec<Case> {
    let wrong = |found| ErrorKind::WrongValueType {
        found,
        expected: ValueType::U32,
    };
    vec![
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
