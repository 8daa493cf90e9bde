//! A model's header, from one file or from all parts of a split one.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cursor::ByteOrder;
use crate::error::{Error, OpenError};
use crate::part::{DataState, Part, sort_by_name};
use crate::source::Source;
use crate::split;
use crate::tensor::TensorInfo;
use crate::value::Value;

/// Everything a GGUF model says about itself: keys, and tensors by name, shape, type and place.
///
/// Validated whole when it is made; reading from it cannot fail. Cloning shares the bytes.
#[derive(Clone)]
pub struct Header {
    /// The first part: it holds the keys.
    source: Arc<Source>,
    first: Arc<Part>,
    tensors: Arc<[TensorInfo]>,
    /// Indices into `tensors`, by name.
    tensors_by_name: Arc<[u32]>,
    parts: usize,
    header_bytes: u64,
    file_bytes: u64,
    state: DataState,
    paths: Arc<[PathBuf]>,
}

impl Header {
    /// Reads the header of a model's file, and keeps what it has read: the file may change or go afterwards. Any
    /// part of a split model opens the whole of it.
    pub fn open(path: impl AsRef<Path>) -> Result<Header, OpenError> {
        split::open(path.as_ref())
    }

    /// Reads a model from memory: a whole file, or one cut off after its header. Of a split model
    /// it reads the one part it is given; see [`parse_parts`](Self::parse_parts).
    pub fn parse(bytes: Vec<u8>) -> Result<Header, Error> {
        let part = Part::parse(&bytes, 0)?;
        Ok(Header::join(
            Source::new(bytes),
            part,
            Vec::new(),
            Vec::new(),
        ))
    }

    /// Reads a split model from memory, all parts in order. An error comes with the index of the
    /// part it is in.
    pub fn parse_parts(parts: Vec<Vec<u8>>) -> Result<Header, (usize, Error)> {
        split::parse_parts(parts)
    }

    /// Puts validated parts together: tensor names are unique across them.
    pub(crate) fn join(
        source: Source,
        mut first: Part,
        others: Vec<Part>,
        paths: Vec<PathBuf>,
    ) -> Header {
        let all = || std::iter::once(&first).chain(&others);
        let state = match all().all(|part| part.state == DataState::Complete) {
            true => DataState::Complete,
            false => DataState::HeaderOnly,
        };
        let header_bytes = all().map(|part| part.header_bytes).sum();
        let file_bytes = all().fold(0, |sum: u64, part| sum.saturating_add(part.file_bytes));
        let parts = 1 + others.len();
        let mut tensors = std::mem::take(&mut first.tensors);
        tensors.extend(others.into_iter().flat_map(|part| part.tensors));
        let tensors_by_name = sort_by_name(&tensors, |t| &t.name).unwrap_or_default();
        Header {
            source: Arc::new(source),
            first: Arc::new(first),
            tensors: tensors.into(),
            tensors_by_name: tensors_by_name.into(),
            parts,
            header_bytes,
            file_bytes,
            state,
            paths: paths.into(),
        }
    }

    /// Version of the format, 2 or 3.
    pub fn version(&self) -> u32 {
        self.first.version
    }

    /// Byte order of the first part.
    pub fn byte_order(&self) -> ByteOrder {
        self.first.order
    }

    /// Alignment of the tensor data in bytes, a power of two: `general.alignment`, or 32.
    pub fn alignment(&self) -> u64 {
        self.first.alignment
    }

    /// Byte of the first part at which its tensor data starts.
    pub fn data_offset(&self) -> u64 {
        self.first.data_offset
    }

    /// Bytes from the magic to the last tensor info, the padding after it not counted; the sum over
    /// the parts.
    pub fn header_bytes(&self) -> u64 {
        self.header_bytes
    }

    /// Bytes that the complete file has, the last tensor padded as llama.cpp writes it; the sum over
    /// the parts. By the header: a file that is cut off gives the same number.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Whether the tensor data is there; `HeaderOnly` if any part lacks it.
    pub fn data_state(&self) -> DataState {
        self.state
    }

    /// Files the model is split into; 1 for most.
    pub fn parts(&self) -> usize {
        self.parts
    }

    /// The files it was opened from, in order; none if it was read from memory.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// `general.architecture`.
    pub fn architecture(&self) -> Option<&str> {
        self.get("general.architecture")?.as_str()
    }

    /// The value of a key, in logarithmic time. A split model has its keys in the first part.
    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        self.first.get(self.source.as_bytes(), key)
    }

    /// Keys and values in file order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = (&str, Value<'_>)> {
        let bytes = self.source.as_bytes();
        let order = self.first.order;
        self.first
            .keys
            .iter()
            .map(move |key| (&*key.name, key.value(bytes, order)))
    }

    /// The tensors in file order, one part after the other.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor with this name, in logarithmic time.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        let at = |index: u32| self.tensors.get(index as usize);
        let found = self
            .tensors_by_name
            .binary_search_by(|&i| at(i).map_or("", |t| t.name.as_str()).cmp(name))
            .ok()?;
        self.tensors_by_name.get(found).and_then(|&i| at(i))
    }
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Header")
            .field("architecture", &self.architecture())
            .field("keys", &self.first.keys.len())
            .field("tensors", &self.tensors.len())
            .field("parts", &self.parts)
            .field("file_bytes", &self.file_bytes)
            .field("state", &self.state)
            .finish()
    }
}
