//! Files that have to be read.

use super::*;

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
