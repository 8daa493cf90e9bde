//! Any bytes: refused with an error, or a header that can be walked, written and read back the same.
//!
//! ```text
//! mkdir -p fuzz/corpus/header
//! cargo +nightly fuzz run header fuzz/corpus/header fixtures/malformed fixtures/gguf -- -max_total_time=600
//! ```
#![no_main]

use libfuzzer_sys::fuzz_target;
use vramfit_gguf::{ByteOrder, DataState, Header, StripOptions, Value, Writer, strip};

fuzz_target!(|bytes: &[u8]| {
    let header = match Header::parse(bytes.to_vec()) {
        Ok(header) => header,
        Err(error) => {
            assert!(error.offset() <= bytes.len() as u64, "{error:?}");
            assert!(
                !error.to_string().contains(|c: char| c.is_control()),
                "{error:?}"
            );
            return;
        }
    };
    header.keys().for_each(|(name, value)| {
        walk(value);
        assert!(
            header
                .get(name)
                .is_some_and(|found| found.identical(&value))
        );
    });
    check_tensors(&header, bytes.len() as u64);

    for order in [ByteOrder::Little, ByteOrder::Big] {
        let copy = write_again(&header, order);
        assert_eq!(copy.version(), header.version());
        assert_same(&header, &copy);
    }
    for keep_tokens in [true, false] {
        let mut out = Vec::new();
        if strip(&header, StripOptions { keep_tokens }, &mut out).is_ok() {
            let copy = Header::parse(out).expect("a stripped header is well-formed");
            assert_eq!(copy.tensors().len(), header.tensors().len());
        }
    }
});

fn walk(value: Value<'_>) {
    let _ = (
        value.as_u64(),
        value.as_i64(),
        value.as_f64(),
        value.as_bool(),
        value.as_str(),
    );
    if let Some(array) = value.as_array() {
        let mut count = 0;
        for element in array {
            assert_eq!(element.value_type(), array.element_type());
            walk(element);
            count += 1;
        }
        assert_eq!(count, array.len());
    }
}

fn check_tensors(header: &Header, file: u64) {
    let mut end = header.data_offset();
    for tensor in header.tensors() {
        assert_eq!(tensor.offset, end);
        end = (tensor.offset + tensor.n_bytes).next_multiple_of(header.alignment());
        assert!(
            tensor.n_elements() / tensor.ty.block_size() * tensor.ty.type_size() == tensor.n_bytes
        );
        assert!(
            header.data_state() == DataState::HeaderOnly || tensor.offset + tensor.n_bytes <= file
        );
        assert_eq!(header.tensor(&tensor.name), Some(tensor));
    }
    assert!(header.tensors().is_empty() || header.file_bytes() == end.max(header.data_offset()));
}

fn write_again(header: &Header, order: ByteOrder) -> Header {
    let mut writer = Writer::with_format(header.version(), order);
    for (name, value) in header.keys() {
        writer.copy_key(name, value);
    }
    for tensor in header.tensors() {
        writer.tensor(
            &tensor.name,
            tensor.ty,
            &tensor.ne[..tensor.n_dims as usize],
        );
    }
    Header::parse(writer.finish().expect("what was read can be written")).expect("and read again")
}

fn assert_same(a: &Header, b: &Header) {
    assert_eq!(a.keys().len(), b.keys().len());
    for ((name, value), (other_name, other)) in a.keys().zip(b.keys()) {
        assert_eq!(name, other_name);
        assert!(value.identical(&other), "{name}");
    }
    assert_eq!(a.tensors(), b.tensors());
    assert_eq!(a.header_bytes(), b.header_bytes());
    assert_eq!(a.file_bytes(), b.file_bytes());
}
