//! Every bound the reader puts on a file, in one place.

/// The bounds, each with its reason. Counts are also checked against the bytes that are left, so a
/// small file can never make the reader allocate more than a small multiple of its own size.
#[derive(Clone, Copy, Debug)]
pub struct Limits;

impl Limits {
    /// Versions that are read. v1 had 32-bit counts and lengths, and llama.cpp v0.5.0 refuses it.
    pub const MIN_VERSION: u32 = 2;
    /// The newest version there is (`GGUF_VERSION` in llama.cpp v0.5.0).
    pub const MAX_VERSION: u32 = 3;

    /// Bytes of one string: `GGUF_MAX_STRING_LENGTH` in llama.cpp v0.5.0.
    pub const MAX_STRING_BYTES: u64 = 1 << 30;
    /// Elements of one array: `GGUF_MAX_ARRAY_ELEMENTS` in llama.cpp v0.5.0.
    pub const MAX_ARRAY_ELEMENTS: u64 = 1 << 30;
    /// Array levels: `[u32]` is one, `[[u32]]` two. The format allows any number; llama.cpp v0.5.0
    /// reads one level only. Four is more than anything writes and keeps recursion shallow.
    pub const MAX_ARRAY_DEPTH: u32 = 4;

    /// Bytes of a key: 2^16 - 1 in the GGUF specification. llama.cpp would read longer ones.
    pub const MAX_KEY_BYTES: u64 = 65_535;
    /// Keys in a part. Real files have tens. llama.cpp compares each key with all before it, so it
    /// could not get through such a file in reasonable time either.
    pub const MAX_KEYS: u64 = 1 << 16;
    /// The fewest bytes a key and its value take: length, one letter, type, one byte of value.
    pub const MIN_KEY_VALUE_BYTES: u64 = 8 + 1 + 4 + 1;

    /// Tensors in a part. The largest real models have a few thousand; a tensor costs the reader
    /// about 130 bytes, and llama.cpp compares each name with all before it.
    pub const MAX_TENSORS: u64 = 1 << 20;
    /// The fewest bytes a tensor info takes: name length, dimension count, type, offset.
    pub const MIN_TENSOR_INFO_BYTES: u64 = 8 + 4 + 4 + 8;
    /// Bytes of a tensor name: `GGML_MAX_NAME` is 64 and counts the closing NUL.
    pub const MAX_TENSOR_NAME_BYTES: u64 = 63;
    /// Dimensions of a tensor: `GGML_MAX_DIMS`.
    pub const MAX_DIMS: u32 = 4;
    /// Elements of a tensor: llama.cpp wants the product of the dimensions below `INT64_MAX`.
    pub const MAX_ELEMENTS: u64 = i64::MAX as u64 - 1;

    /// Bytes of a file: file offsets are signed 64-bit integers, in llama.cpp's reader as well.
    pub const MAX_FILE_BYTES: u64 = i64::MAX as u64;

    /// Bytes of a header in a file, which are read into memory. Real ones have some MiB, most of it vocabulary.
    pub const MAX_HEADER_BYTES: u64 = 256 << 20;

    /// Alignment of the tensor data where `general.alignment` is absent.
    pub const DEFAULT_ALIGNMENT: u64 = 32;

    /// Parts of a split model: `split.count` is a u16, and file names have five digits for it.
    pub const MAX_PARTS: u64 = u16::MAX as u64;
}
