//! Whatever the writer writes the reader reads back: any values, both versions, both byte orders.
#![allow(clippy::unwrap_used)]

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use vramfit_ggml::Type;
use vramfit_gguf::*;

fn scalar(ty: ValueType) -> BoxedStrategy<ValueBuf> {
    match ty {
        ValueType::U8 => any::<u8>().prop_map(ValueBuf::U8).boxed(),
        ValueType::I8 => any::<i8>().prop_map(ValueBuf::I8).boxed(),
        ValueType::U16 => any::<u16>().prop_map(ValueBuf::U16).boxed(),
        ValueType::I16 => any::<i16>().prop_map(ValueBuf::I16).boxed(),
        ValueType::U32 => any::<u32>().prop_map(ValueBuf::U32).boxed(),
        ValueType::I32 => any::<i32>().prop_map(ValueBuf::I32).boxed(),
        ValueType::F32 => any::<u32>()
            .prop_map(|v| ValueBuf::F32(f32::from_bits(v)))
            .boxed(),
        ValueType::Bool => any::<bool>().prop_map(ValueBuf::Bool).boxed(),
        ValueType::U64 => any::<u64>().prop_map(ValueBuf::U64).boxed(),
        ValueType::I64 => any::<i64>().prop_map(ValueBuf::I64).boxed(),
        ValueType::F64 => any::<u64>()
            .prop_map(|v| ValueBuf::F64(f64::from_bits(v)))
            .boxed(),
        ValueType::String | ValueType::Array => {
            vec(any::<u8>(), 0..20).prop_map(ValueBuf::String).boxed()
        }
    }
}

/// Values with up to `depth` levels of arrays.
fn value(depth: u32) -> BoxedStrategy<ValueBuf> {
    let types = proptest::sample::select(ValueType::ALL);
    types
        .prop_flat_map(move |ty| match ty {
            ValueType::Array if depth > 0 => array(depth).prop_map(ValueBuf::Array).boxed(),
            other => scalar(other),
        })
        .boxed()
}

fn array(depth: u32) -> BoxedStrategy<ArrayBuf> {
    let types = proptest::sample::select(ValueType::ALL);
    types
        .prop_flat_map(move |ty| {
            let (element_type, element) = match ty {
                ValueType::Array if depth > 1 => {
                    (ty, array(depth - 1).prop_map(ValueBuf::Array).boxed())
                }
                ValueType::Array => (ValueType::String, scalar(ValueType::String)),
                ty => (ty, scalar(ty)),
            };
            vec(element, 0..6).prop_map(move |elements| ArrayBuf {
                element_type,
                elements,
            })
        })
        .boxed()
}

fn tensor() -> impl Strategy<Value = (Type, Vec<i64>)> {
    (proptest::sample::select(Type::ALL), vec(0i64..9, 0..=4)).prop_map(|(ty, mut ne)| {
        match ne.first_mut() {
            Some(ne0) => *ne0 *= ty.block_size() as i64,
            // No dimensions: one element, which only an unblocked type can have.
            None if ty.block_size() > 1 => ne.push(ty.block_size() as i64),
            None => {}
        }
        (ty, ne)
    })
}

fn assert_same(found: Value<'_>, expected: &ValueBuf) {
    match (found, expected) {
        (Value::U8(a), ValueBuf::U8(b)) => assert_eq!(a, *b),
        (Value::I8(a), ValueBuf::I8(b)) => assert_eq!(a, *b),
        (Value::U16(a), ValueBuf::U16(b)) => assert_eq!(a, *b),
        (Value::I16(a), ValueBuf::I16(b)) => assert_eq!(a, *b),
        (Value::U32(a), ValueBuf::U32(b)) => assert_eq!(a, *b),
        (Value::I32(a), ValueBuf::I32(b)) => assert_eq!(a, *b),
        (Value::F32(a), ValueBuf::F32(b)) => assert_eq!(a.to_bits(), b.to_bits()),
        (Value::Bool(a), ValueBuf::Bool(b)) => assert_eq!(a, *b),
        (Value::U64(a), ValueBuf::U64(b)) => assert_eq!(a, *b),
        (Value::I64(a), ValueBuf::I64(b)) => assert_eq!(a, *b),
        (Value::F64(a), ValueBuf::F64(b)) => assert_eq!(a.to_bits(), b.to_bits()),
        (Value::String(a), ValueBuf::String(b)) => assert_eq!(a.as_bytes(), b),
        (Value::Array(a), ValueBuf::Array(b)) => {
            assert_eq!(
                (a.element_type(), a.len()),
                (b.element_type, b.elements.len())
            );
            assert_eq!(a.iter().count(), a.len());
            a.iter()
                .zip(&b.elements)
                .for_each(|(a, b)| assert_same(a, b));
        }
        (found, expected) => panic!("{found:?} for {expected:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn written_is_read(
        version in 2u32..=3,
        big_endian: bool,
        alignment in proptest::option::of(0u32..12),
        keys in btree_map("[a-z][a-z0-9_.]{0,12}", value(Limits::MAX_ARRAY_DEPTH), 0..8),
        tensors in btree_map("[a-z0-9_.]{0,63}", tensor(), 0..8),
    ) {
        let order = if big_endian { ByteOrder::Big } else { ByteOrder::Little };
        let mut writer = Writer::with_format(version, order);
        if let Some(shift) = alignment {
            writer.key("general.alignment", 1u32 << shift).unwrap();
        }
        for (name, value) in &keys {
            writer.key(name, value.clone()).unwrap();
        }
        for (name, (ty, ne)) in &tensors {
            writer.tensor(name, *ty, ne);
        }
        let header = Header::parse(writer.finish().unwrap()).unwrap();

        prop_assert_eq!((header.version(), header.byte_order()), (version, order));
        prop_assert_eq!(header.alignment(), alignment.map_or(32, |shift| 1 << shift));
        prop_assert_eq!(header.keys().len(), keys.len() + usize::from(alignment.is_some()));
        for (name, value) in &keys {
            assert_same(header.get(name).unwrap(), value);
        }
        let mut offset = header.data_offset();
        prop_assert_eq!(header.tensors().len(), tensors.len());
        for (info, (name, (ty, ne))) in header.tensors().iter().zip(&tensors) {
            let mut shape = [1; 4];
            shape[..ne.len()].copy_from_slice(ne);
            let n_bytes = shape.iter().product::<i64>() as u64 / ty.block_size() * ty.type_size();
            prop_assert_eq!((&info.name, info.ty, info.ne, info.n_dims as usize), (name, *ty, shape, ne.len()));
            prop_assert_eq!((info.offset, info.n_bytes), (offset, n_bytes));
            offset += n_bytes.next_multiple_of(header.alignment());
        }
        prop_assert_eq!(header.file_bytes(), offset);

        // Copied in the other byte order it is the same header.
        let other = if big_endian { ByteOrder::Little } else { ByteOrder::Big };
        let mut copy = Writer::with_format(version, other);
        header.keys().for_each(|(name, value)| _ = copy.copy_key(name, value));
        let copy = Header::parse(copy.finish().unwrap()).unwrap();
        prop_assert_eq!(copy.byte_order(), other);
        prop_assert!(header.keys().zip(copy.keys()).all(|((n, v), (m, w))| n == m && v.identical(&w)));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..400)) {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(bytes);
        if let Err(error) = Header::parse(file) {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }
}
