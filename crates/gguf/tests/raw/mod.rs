//! Files written byte by byte, well-formed or not. Shares nothing with the crate's own writer.
#![allow(dead_code)]

/// Bytes of a little-endian file, and the offset at which a reader should object.
#[derive(Clone, Default)]
pub struct Raw {
    pub bytes: Vec<u8>,
    pub mark: u64,
}

pub const U8: u32 = 0;
pub const U16: u32 = 2;
pub const U32: u32 = 4;
pub const I32: u32 = 5;
pub const BOOL: u32 = 7;
pub const STRING: u32 = 8;
pub const ARRAY: u32 = 9;
pub const U64: u32 = 10;
/// `GGUF_TYPE_COUNT` of llama.cpp v0.5.0.
pub const VALUE_TYPE_COUNT: u32 = 13;

pub const F32: u32 = 0;
pub const Q4_K: u32 = 12;
pub const I8: u32 = 24;
pub const I64: u32 = 27;
/// `GGML_TYPE_COUNT` of llama.cpp v0.5.0.
pub const TENSOR_TYPE_COUNT: u32 = 43;

impl Raw {
    pub fn new() -> Raw {
        Raw::default()
    }

    /// Magic, version 3 and the two counts.
    pub fn header(n_tensors: u64, n_keys: u64) -> Raw {
        Raw::new().raw(b"GGUF").u32(3).u64(n_tensors).u64(n_keys)
    }

    /// Expects the error here.
    pub fn here(mut self) -> Raw {
        self.mark = self.bytes.len() as u64;
        self
    }

    pub fn raw(mut self, bytes: &[u8]) -> Raw {
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub fn u8(self, v: u8) -> Raw {
        self.raw(&[v])
    }

    pub fn u16(self, v: u16) -> Raw {
        self.raw(&v.to_le_bytes())
    }

    pub fn u32(self, v: u32) -> Raw {
        self.raw(&v.to_le_bytes())
    }

    pub fn u64(self, v: u64) -> Raw {
        self.raw(&v.to_le_bytes())
    }

    pub fn i64(self, v: i64) -> Raw {
        self.raw(&v.to_le_bytes())
    }

    pub fn str(self, text: impl AsRef<[u8]>) -> Raw {
        let text = text.as_ref();
        self.u64(text.len() as u64).raw(text)
    }

    /// A key and its type; the value follows.
    pub fn key(self, name: &str, ty: u32) -> Raw {
        self.str(name).u32(ty)
    }

    pub fn key_u32(self, name: &str, v: u32) -> Raw {
        self.key(name, U32).u32(v)
    }

    /// A tensor's name, dimensions and type; the offset follows.
    pub fn tensor(self, name: &str, ne: &[i64], ty: u32) -> Raw {
        self.shape(name, ne).u32(ty)
    }

    /// A tensor's name and dimensions; type and offset follow.
    pub fn shape(self, name: &str, ne: &[i64]) -> Raw {
        ne.iter()
            .fold(self.str(name).u32(ne.len() as u32), |raw, &n| raw.i64(n))
    }

    pub fn pad(mut self, alignment: usize) -> Raw {
        let len = self.bytes.len().next_multiple_of(alignment);
        self.bytes.resize(len, 0);
        self
    }

    /// So many bytes of tensor data.
    pub fn data(mut self, n: usize) -> Raw {
        self.bytes.extend((0..n).map(|i| i as u8));
        self
    }
}
