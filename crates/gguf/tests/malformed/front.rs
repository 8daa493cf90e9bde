//! What comes first in a file: magic, version, counts.

use super::*;

pub fn cases() -> Vec<Case> {
    all([magic(), version(), counts()])
}

fn magic() -> Vec<Case> {
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
    ]
}

fn version() -> Vec<Case> {
    vec![
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
    ]
}

fn counts() -> Vec<Case> {
    let past_end = |what, count, max, left| ErrorKind::CountTooLarge {
        what,
        count,
        max,
        left,
    };
    vec![
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
