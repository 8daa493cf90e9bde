//! What a header says of tensors.

use super::*;

pub fn cases() -> Vec<Case> {
    all([names(), shapes(), types(), offsets(), data()])
}

fn names() -> Vec<Case> {
    let name_64 = "n".repeat(64);
    let tensor = || one_key(1);
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
    ]
}

fn shapes() -> Vec<Case> {
    let max = i64::MAX;
    let wraps = 1 << 32;
    let tensor = || one_key(1);
    vec![
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
    ]
}

fn types() -> Vec<Case> {
    let tensor = || one_key(1);
    vec![
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
    ]
}

fn offsets() -> Vec<Case> {
    let max = i64::MAX;
    let tensor = || one_key(1);
    let two = || one_key(2).tensor("a", &[8], F32).u64(0);
    let unaligned = |offset| ErrorKind::UnalignedOffset {
        offset,
        alignment: 32,
    };
    vec![
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
    ]
}

fn data() -> Vec<Case> {
    let two = || one_key(2).tensor("a", &[8], F32).u64(0);
    vec![
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
