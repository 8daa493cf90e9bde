//! Header-only copies, checked against what llama.cpp v0.5.0 reads from them.
#![allow(clippy::unwrap_used)]

use vramfit_ggml::Type;
use vramfit_gguf::*;

const NO_TOKENS: StripOptions = StripOptions { keep_tokens: false };
const WITH_TOKENS: StripOptions = StripOptions { keep_tokens: true };

/// A model with five tokens and, as its data, zeros.
fn model(extra: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut w = Writer::new();
    w.key("general.architecture", "llama").unwrap();
    w.key("general.alignment", 64u32).unwrap();
    extra(&mut w);
    w.key("llama.block_count", 1u32).unwrap();
    w.key("tokenizer.ggml.model", "gpt2").unwrap();
    w.key("tokenizer.ggml.tokens", vec!["<s>", "</s>", "a", "b", "ab"])
        .unwrap();
    w.key("tokenizer.ggml.token_type", vec![3i32, 3, 1, 1, 1])
        .unwrap();
    w.key("tokenizer.ggml.scores", vec![0f32; 5]).unwrap();
    w.key("tokenizer.ggml.merges", vec!["a b"]).unwrap();
    w.key("tokenizer.ggml.bos_token_id", 0u32).unwrap();
    w.key("tokenizer.chat_template", "{{ messages }}").unwrap();
    w.tensor("token_embd.weight", Type::Q4_K, &[256, 5]).tensor(
        "output_norm.weight",
        Type::F32,
        &[256],
    );
    let mut bytes = w.finish().unwrap();
    let file_bytes = Header::parse(bytes.clone()).unwrap().file_bytes();
    bytes.resize(file_bytes as usize, 0);
    bytes
}

fn stripped(header: &Header, options: StripOptions) -> Header {
    let mut out = Vec::new();
    let written = strip(header, options, &mut out).unwrap();
    assert_eq!(written, out.len() as u64);
    let copy = Header::parse(out).unwrap();
    assert_eq!(
        (copy.data_offset(), copy.data_state()),
        (written, DataState::HeaderOnly)
    );
    copy
}

fn names(header: &Header) -> Vec<&str> {
    header.keys().map(|(name, _)| name).collect()
}

#[test]
fn tokens_kept_means_the_same_header() {
    let header = Header::parse(model(|_| {})).unwrap();
    assert_eq!(header.data_state(), DataState::Complete);
    let copy = stripped(&header, WITH_TOKENS);
    assert_eq!(names(&copy), names(&header));
    assert!(
        copy.keys()
            .zip(header.keys())
            .all(|((_, a), (_, b))| a.identical(&b))
    );
    assert_eq!(copy.tensors(), header.tensors());
    assert_eq!(copy.file_bytes(), header.file_bytes());
}

#[test]
fn tokens_dropped_leaves_their_number() {
    let header = Header::parse(model(|_| {})).unwrap();
    let copy = stripped(&header, NO_TOKENS);
    let expected = [
        "general.architecture",
        "general.alignment",
        "llama.block_count",
        "tokenizer.ggml.model",
        "tokenizer.ggml.bos_token_id",
        "tokenizer.chat_template",
        "llama.vocab_size",
    ];
    assert_eq!(names(&copy), expected);
    assert!(matches!(copy.get("llama.vocab_size"), Some(Value::U32(5))));
    assert_eq!(
        copy.get("tokenizer.ggml.model").unwrap().as_str(),
        Some("no_vocab")
    );
    assert_eq!(copy.alignment(), 64);
    let place = |h: &Header| -> Vec<_> {
        h.tensors()
            .iter()
            .map(|t| {
                (
                    t.name.clone(),
                    t.ne,
                    t.ty,
                    t.n_bytes,
                    t.offset - h.data_offset(),
                )
            })
            .collect()
    };
    assert_eq!(place(&copy), place(&header));
}

#[test]
fn a_vocabulary_size_that_llama_cpp_did_not_use_is_replaced() {
    // With a token list llama.cpp counts that, whatever the key says.
    let header = Header::parse(model(|w| _ = w.key("llama.vocab_size", 999u64).unwrap())).unwrap();
    let copy = stripped(&header, NO_TOKENS);
    assert!(matches!(copy.get("llama.vocab_size"), Some(Value::U32(5))));
    assert_eq!(names(&copy)[2], "llama.vocab_size");
}

#[test]
fn a_stripped_header_strips_to_itself() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../fixtures/gguf/gemma-3-4b.Q4_K_M.gguf"
    );
    let header = Header::open(path).unwrap();
    let mut out = Vec::new();
    strip(&header, NO_TOKENS, &mut out).unwrap();
    assert!(out == std::fs::read(path).unwrap());
}

#[test]
fn split_parts_become_one_file() {
    let part = |no: u16, names: &[&str]| {
        let mut w = Writer::new();
        if no == 0 {
            w.key("general.architecture", "llama").unwrap();
        }
        w.key("split.no", no).unwrap();
        w.key("split.count", 2u16).unwrap();
        w.key("split.tensors.count", 3i32).unwrap();
        names
            .iter()
            .for_each(|name| _ = w.tensor(name, Type::F16, &[8]));
        w.finish().unwrap()
    };
    let header = Header::parse_parts(vec![part(0, &["a"]), part(1, &["b", "c"])]).unwrap();
    assert_eq!(header.parts(), 2);
    let copy = stripped(&header, WITH_TOKENS);
    assert_eq!(
        (copy.parts(), names(&copy)),
        (1, vec!["general.architecture"])
    );
    let tensors: Vec<_> = copy
        .tensors()
        .iter()
        .map(|t| (t.name.as_str(), t.part, t.offset - copy.data_offset()))
        .collect();
    assert_eq!(tensors, [("a", 0, 0), ("b", 0, 32), ("c", 0, 64)]);
}

#[test]
fn files_are_replaced_whole_and_never_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("model.gguf");
    let output = folder.path().join("header.gguf");
    std::fs::write(&input, model(|_| {})).unwrap();
    let header = Header::open(&input).unwrap();

    let error = strip_file(
        &header,
        NO_TOKENS,
        Length::Header,
        folder.path().join("./model.gguf"),
    )
    .unwrap_err();
    assert!(matches!(error, StripError::OverInput(_)), "{error}");
    assert!(std::fs::read(&input).unwrap() == model(|_| {}));

    std::fs::write(&output, "an older file, which goes").unwrap();
    let length = strip_file(&header, NO_TOKENS, Length::Header, &output).unwrap();
    assert_eq!(std::fs::metadata(&output).unwrap().len(), length);
    let copy = Header::open(&output).unwrap();
    assert_eq!(copy.data_state(), DataState::HeaderOnly);

    // The hole makes it as long as the model would be, so it counts as complete.
    assert_eq!(sparse(&output).unwrap(), copy.file_bytes());
    assert_eq!(std::fs::metadata(&output).unwrap().len(), copy.file_bytes());
    assert_eq!(
        Header::open(&output).unwrap().data_state(),
        DataState::Complete
    );
    let again = folder.path().join("again.gguf");
    assert_eq!(
        strip_file(&header, NO_TOKENS, Length::Full, &again).unwrap(),
        copy.file_bytes()
    );
    assert!(std::fs::read(&again).unwrap() == std::fs::read(&output).unwrap());

    let nowhere = strip_file(
        &header,
        NO_TOKENS,
        Length::Header,
        folder.path().join("none/x.gguf"),
    );
    assert!(matches!(nowhere, Err(StripError::File { .. })));
    let left: Vec<_> = folder
        .path()
        .read_dir()
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 3, "no temporary file stays: {left:?}");
}

#[test]
fn tokens_without_an_architecture_cannot_be_dropped() {
    let mut w = Writer::new();
    w.key("tokenizer.ggml.tokens", vec!["a"]).unwrap();
    let header = Header::parse(w.finish().unwrap()).unwrap();
    assert!(matches!(
        strip(&header, NO_TOKENS, &mut Vec::new()),
        Err(StripError::NoArchitecture)
    ));
    assert!(strip(&header, WITH_TOKENS, &mut Vec::new()).is_ok());
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let mut w = Writer::new();
    w.key("a", 1u8).unwrap().key("a", 2u8).unwrap();
    let WriteError::Malformed(error) = w.finish().unwrap_err() else {
        panic!()
    };
    assert_eq!(error.kind(), &ErrorKind::DuplicateKey { first: 24 });

    let mixed = ArrayBuf {
        element_type: ValueType::U8,
        elements: vec![ValueBuf::I8(1)],
    };
    let expected = WriteError::MixedArray {
        expected: ValueType::U8,
        found: ValueType::I8,
    };
    assert_eq!(
        Writer::new().key("a", ValueBuf::Array(mixed)).unwrap_err(),
        expected
    );
}
