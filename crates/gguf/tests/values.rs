//! Every value type, from bytes written out by hand after the GGUF specification, in both orders.
#![allow(clippy::unwrap_used)]

mod raw;

use raw::Raw;
use vramfit_gguf::{ByteOrder, Header, Value, ValueType};

/// Type id, big-endian bytes of the value, and what it is.
const VALUES: &[(u32, &[u8], Value<'static>)] = &[
    (0, &[0xFE], Value::U8(254)),
    (1, &[0xFE], Value::I8(-2)),
    (2, &[0x12, 0x34], Value::U16(0x1234)),
    (3, &[0xFF, 0x00], Value::I16(-256)),
    (4, &[0x12, 0x34, 0x56, 0x78], Value::U32(0x1234_5678)),
    (5, &[0xFF, 0xFF, 0xFF, 0x00], Value::I32(-256)),
    (6, &[0x3F, 0xC0, 0x00, 0x00], Value::F32(1.5)),
    (7, &[0x01], Value::Bool(true)),
    (7, &[0x00], Value::Bool(false)),
    (7, &[0x02], Value::Bool(true)),
    (
        10,
        &[0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF],
        Value::U64(0x0123_4567_89AB_CDEF),
    ),
    (
        11,
        &[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x00],
        Value::I64(-256),
    ),
    (12, &[0xC0, 0x04, 0, 0, 0, 0, 0, 0], Value::F64(-2.5)),
];

/// A header of one key, `k`, in the given version and order.
fn file(version: u32, order: ByteOrder, ty: u32, value: &[&[u8]]) -> Vec<u8> {
    let ordered = |bytes: &[u8]| -> Vec<u8> {
        match order {
            ByteOrder::Big => bytes.to_vec(),
            ByteOrder::Little => bytes.iter().rev().copied().collect(),
        }
    };
    let front = Raw::new()
        .raw(b"GGUF")
        .raw(&ordered(&version.to_be_bytes()));
    let front = front
        .raw(&ordered(&0u64.to_be_bytes()))
        .raw(&ordered(&1u64.to_be_bytes()));
    let front = front
        .raw(&ordered(&1u64.to_be_bytes()))
        .raw(b"k")
        .raw(&ordered(&ty.to_be_bytes()));
    value
        .iter()
        .fold(front, |raw, bytes| raw.raw(&ordered(bytes)))
        .bytes
}

#[test]
fn values_are_read_in_both_orders_and_versions() {
    for version in [2, 3] {
        for order in [ByteOrder::Little, ByteOrder::Big] {
            for (ty, bytes, expected) in VALUES {
                let header = Header::parse(file(version, order, *ty, &[bytes])).unwrap();
                assert_eq!((header.version(), header.byte_order()), (version, order));
                let found = header.get("k").unwrap();
                assert!(found.identical(expected), "{found:?} for {expected:?}");
                assert_eq!(found.value_type(), ValueType::from_id(*ty).unwrap());
            }
        }
    }
}

#[test]
fn arrays_are_walked_in_both_orders() {
    for order in [ByteOrder::Little, ByteOrder::Big] {
        for (ty, bytes, expected) in VALUES {
            let (element, count) = (ty.to_be_bytes(), 3u64.to_be_bytes());
            let header =
                Header::parse(file(3, order, 9, &[&element, &count, bytes, bytes, bytes])).unwrap();
            let array = header.get("k").unwrap().as_array().unwrap();
            assert_eq!(
                (array.len(), array.iter().len(), array.is_empty()),
                (3, 3, false)
            );
            assert_eq!(array.element_type() as u32, *ty);
            assert_eq!(
                array
                    .iter()
                    .filter(|found| found.identical(expected))
                    .count(),
                3
            );
        }
    }
}

#[test]
fn strings_are_borrowed_text() {
    let strings = Raw::header(0, 2).key("name", raw::STRING).str("Llama 3 🦙");
    let strings = strings
        .key("list", raw::ARRAY)
        .u32(raw::STRING)
        .u64(3)
        .str("a")
        .str("")
        .str("bc");
    let header = Header::parse(strings.bytes).unwrap();
    assert_eq!(header.get("name").unwrap().as_str(), Some("Llama 3 🦙"));
    let list = header.get("list").unwrap().as_array().unwrap();
    let texts: Vec<_> = list.iter().map(|v| v.as_str().unwrap()).collect();
    assert_eq!(texts, ["a", "", "bc"]);
    assert_eq!(header.get("list").unwrap().type_name(), "arr");
    assert_eq!(
        format!("{:?} {:?}", header.get("name").unwrap(), list),
        "String(\"Llama 3 🦙\") [str; 3]"
    );
}

#[test]
fn conversions_lose_nothing() {
    assert_eq!(Value::I32(-1).as_u64(), None);
    assert_eq!(Value::I32(-1).as_i64(), Some(-1));
    assert_eq!(Value::U64(u64::MAX).as_u64(), Some(u64::MAX));
    assert_eq!(Value::U64(u64::MAX).as_i64(), None);
    assert_eq!(
        (Value::Bool(true).as_u64(), Value::Bool(true).as_bool()),
        (Some(1), Some(true))
    );
    assert_eq!(
        (Value::U8(1).as_bool(), Value::U8(1).as_f64()),
        (None, None)
    );
    assert_eq!(
        (Value::F32(0.5).as_f64(), Value::F64(0.5).as_f64()),
        (Some(0.5), Some(0.5))
    );
    assert_eq!(
        (Value::F32(1.0).as_u64(), Value::F32(1.0).as_i64()),
        (None, None)
    );
    assert!(Value::F32(f32::NAN).identical(&Value::F32(f32::NAN)));
    assert!(!Value::F32(0.0).identical(&Value::F32(-0.0)));
    assert!(!Value::U8(1).identical(&Value::I8(1)));
    assert!(!Value::U64(1 << 63).identical(&Value::U64(3 << 62)));
}

#[test]
fn value_types_have_the_names_and_sizes_of_llama_cpp() {
    // GGUF_TYPE_NAME and GGUF_TYPE_SIZE of gguf.cpp, in the order of gguf_type.
    let names = [
        "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "arr", "u64", "i64", "f64",
    ];
    let sizes = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8];
    assert_eq!(ValueType::ALL.len(), names.len());
    for (id, (name, size)) in (0..).zip(names.into_iter().zip(sizes)) {
        let ty = ValueType::from_id(id).unwrap();
        assert_eq!(
            (ty as u32, ty.name(), ty.fixed_bytes().unwrap_or(0)),
            (id, name, size)
        );
    }
    assert_eq!(ValueType::from_id(13), None);
}
