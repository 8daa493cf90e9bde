//! What can be wrong with a file: where, in the field's own words, and what to do next.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::value::ValueType;

/// A malformed header: what is wrong, in which key or tensor, at which byte of its part.
///
/// Displays on one line whatever the file holds.
#[derive(Clone, PartialEq, Eq)]
pub struct Error(Box<Repr>);

#[derive(Clone, PartialEq, Eq)]
struct Repr {
    offset: u64,
    place: Place,
    kind: ErrorKind,
}

/// The entry of the header that an error is about.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Place {
    /// The fixed fields at the front, or the file as a whole.
    Header,
    /// A key and its value, by position; the name where it was readable.
    Key(u64, Option<String>),
    /// A tensor info, by position; the name where it was readable.
    Tensor(u64, Option<String>),
}

/// The ways a header can lie.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // each variant's message says what its fields mean
pub enum ErrorKind {
    #[error("not a GGUF file: it starts with {}, not \"GGUF\"", Quoted(&String::from_utf8_lossy(.found)))]
    BadMagic { found: [u8; 4] },
    #[error("GGUF version 0 does not exist")]
    VersionZero,
    #[error("GGUF version 1, which llama.cpp no longer reads")]
    VersionOne,
    #[error("GGUF version {version}, but only versions 2 and 3 are known")]
    VersionUnknown { version: u32 },
    #[error("the file ends inside the {what} (bytes needed: {needed}, left: {left})")]
    Truncated {
        what: &'static str,
        needed: u64,
        left: u64,
    },
    #[error("the {what} is {length} bytes, but only {left} are left in the file")]
    LengthPastEnd {
        what: &'static str,
        length: u64,
        left: u64,
    },
    #[error("the {what} is {length} bytes, more than the limit of {limit}")]
    TooLong {
        what: &'static str,
        length: u64,
        limit: u64,
    },
    #[error("the {what} is {count}, but the {left} bytes left can hold at most {max}")]
    CountTooLarge {
        what: &'static str,
        count: u64,
        max: u64,
        left: u64,
    },
    #[error("the {what} is {count}, more than the limit of {limit}")]
    CountOverLimit {
        what: &'static str,
        count: u64,
        limit: u64,
    },
    #[error("the key is empty")]
    EmptyKey,
    #[error("the {what} is not UTF-8")]
    NotUtf8 { what: &'static str },
    #[error("the key occurs a second time, first at byte {first}")]
    DuplicateKey { first: u64 },
    #[error("value type {id} is unknown (0 to 12 are known)")]
    UnknownValueType { id: u32 },
    #[error("arrays are nested more than {limit} levels deep")]
    NestedTooDeep { limit: u32 },
    #[error("the value is {found}, but must be {expected}")]
    WrongValueType {
        found: ValueType,
        expected: ValueType,
    },
    #[error("an alignment of {value} is not a power of two")]
    BadAlignment { value: u32 },
    #[error("the tensor name holds a NUL byte")]
    NulInName,
    #[error("the tensor name occurs a second time, first at byte {first}")]
    DuplicateTensor { first: u64 },
    #[error("the tensor has {n_dims} dimensions, more than {limit}")]
    TooManyDimensions { n_dims: u32, limit: u32 },
    #[error("dimension {dim} is negative: {ne}")]
    NegativeDimension { dim: u32, ne: i64 },
    #[error("the shape {} has more elements than fit in 63 bits", Shape(.ne))]
    TooManyElements { ne: [i64; 4] },
    #[error("tensor type {id} is unknown")]
    UnknownTensorType { id: u32 },
    #[error("tensor type {id} ({name}) was removed from ggml")]
    RemovedTensorType { id: u32, name: &'static str },
    #[error("a row of {ne0} elements is not a whole number of {ty} blocks of {block}")]
    PartialBlock {
        ne0: i64,
        ty: vramfit_ggml::Type,
        block: u64,
    },
    #[error("the shape {} of {ty} takes more bytes than a file can have", Shape(.ne))]
    TensorTooLarge {
        ne: [i64; 4],
        ty: vramfit_ggml::Type,
    },
    #[error("the data offset {offset} is not a multiple of the alignment {alignment}")]
    UnalignedOffset { offset: u64, alignment: u64 },
    #[error("the data offset {offset} should be {expected}: it overlaps the tensor before it")]
    OverlappingTensors { offset: u64, expected: u64 },
    #[error("the data offset {offset} should be {expected}: there is a gap before it")]
    GapBetweenTensors { offset: u64, expected: u64 },
    #[error("the header goes on past byte {limit}, and no more is read of one")]
    HeaderTooLarge { limit: u64 },
    #[error("the tensor data would end past the largest possible file")]
    FileTooLarge,
    #[error(
        "the tensor data spans bytes {start} to {end}, but the file ends at {file} \
         (bytes missing: {missing})"
    )]
    IncompleteData {
        start: u64,
        end: u64,
        file: u64,
        missing: u64,
    },
    #[error("split.no is {no} in a model of {count} parts")]
    SplitNumber { no: u64, count: u64 },
    #[error("this is part {found} (split.no {}), but part {expected} belongs here", .found - 1)]
    SplitOrder { found: u64, expected: u64 },
    #[error("split.count is {found}, but the other part says {expected}")]
    SplitCount { found: u64, expected: u64 },
    #[error("key {key} is missing from this part of a split model")]
    SplitKeyMissing { key: &'static str },
    #[error("split.tensors.count is {expected}, but the parts hold {found} tensors")]
    SplitTensorCount { found: u64, expected: i64 },
    #[error("the tensor is also in part {first_part}")]
    SplitDuplicateTensor { first_part: u64 },
}

impl ErrorKind {
    /// What the reader of the message can do about it.
    fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::BadMagic { found } => match found {
                b"<!DO" | b"<!do" | b"<htm" | b"<HTM" => {
                    "this is a web page; download the file itself"
                }
                b"vers" => "this may be a Git LFS pointer; run `git lfs pull`",
                b"lmgg" | b"fmgg" | b"tjgg" => "this is a pre-GGUF model; convert it again",
                b"PK\x03\x04" => "this is a zip or PyTorch file; convert it to GGUF first",
                _ => return None,
            },
            Self::VersionOne => "convert or download the model again",
            Self::VersionUnknown { .. } => "a newer release may read it",
            Self::Truncated { .. }
            | Self::LengthPastEnd { .. }
            | Self::CountTooLarge { .. }
            | Self::IncompleteData { .. } => "the file is incomplete or damaged; download it again",
            Self::HeaderTooLarge { .. } => "real ones take some MiB; download it again",
            Self::RemovedTensorType { .. } => "quantize the model again",
            Self::SplitOrder { .. } | Self::SplitCount { .. } | Self::SplitTensorCount { .. } => {
                "the parts are not of one model; download them again"
            }
            _ => return None,
        })
    }
}

impl Error {
    pub(crate) fn new(offset: u64, kind: ErrorKind) -> Self {
        Error(Box::new(Repr {
            offset,
            place: Place::Header,
            kind,
        }))
    }

    pub(crate) fn at(mut self, place: Place) -> Self {
        self.0.place = place;
        self
    }

    /// Whether it only fails for bytes that are in the file, but were not read yet.
    pub(crate) fn wants_more(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Truncated { needed, left, .. } if needed <= left)
    }

    /// It, when no more is read.
    pub(crate) fn past(mut self, limit: u64) -> Self {
        self.0.kind = ErrorKind::HeaderTooLarge { limit };
        self
    }

    /// Byte of the file (of the part, for a split model) where the offending field starts.
    pub fn offset(&self) -> u64 {
        self.0.offset
    }

    /// The key or tensor it is about.
    pub fn place(&self) -> &Place {
        &self.0.place
    }

    /// What is wrong.
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.place {
            Place::Header => {}
            Place::Key(_, Some(name)) => write!(f, "key {}: ", Quoted(name))?,
            Place::Key(index, None) => write!(f, "key #{index}: ")?,
            Place::Tensor(_, Some(name)) => write!(f, "tensor {}: ", Quoted(name))?,
            Place::Tensor(index, None) => write!(f, "tensor #{index}: ")?,
        }
        write!(f, "{} (at byte {})", self.0.kind, self.0.offset)?;
        match self.0.kind.hint() {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("offset", &self.0.offset)
            .field("place", &self.0.place)
            .field("kind", &self.0.kind)
            .finish()
    }
}

impl std::error::Error for Error {}

/// A model that could not be opened. Names the path; displays on one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file could not be read.
    #[error("{}: {source}", OneLine(path))]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The path is a directory, a pipe or a device.
    #[error("{}: not a regular file", OneLine(path))]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The file is malformed.
    #[error("{}: {source}", OneLine(path))]
    Malformed {
        /// The file; one part of it, for a split model.
        path: PathBuf,
        /// What is wrong and where.
        source: Error,
    },
    /// A part of a split model whose file name does not tell where the other parts are.
    #[error(
        "{}: this is part {no} of {count}, so its name should end in \"-{no:05}-of-{count:05}.gguf\"; \
         give the parts their original names",
        OneLine(path)
    )]
    SplitName {
        /// The file.
        path: PathBuf,
        /// Number of this part, from 1.
        no: u64,
        /// Number of parts.
        count: u64,
    },
    /// A part of a split model is absent.
    #[error(
        "{}: part {no} of {count} is missing; download all parts into one folder",
        OneLine(path)
    )]
    PartMissing {
        /// Where it should be.
        path: PathBuf,
        /// Number of the missing part, from 1.
        no: u64,
        /// Number of parts.
        count: u64,
    },
}

/// A name from a file, quoted, without control characters, and cut to a readable length.
pub(crate) struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN_CHARS: usize = 80;
        match self.0.char_indices().nth(SHOWN_CHARS) {
            Some((cut, _)) => write!(f, "{:?}...", self.0.get(..cut).unwrap_or_default()),
            None => write!(f, "{:?}", self.0),
        }
    }
}

/// A path on one line: control characters become `?`.
pub(crate) struct OneLine<'a>(pub &'a Path);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.to_string_lossy().chars() {
            let breaks_lines = c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
            fmt::Write::write_char(f, if breaks_lines { '?' } else { c })?;
        }
        Ok(())
    }
}

struct Shape<'a>(&'a [i64; 4]);

impl fmt::Display for Shape<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d] = self.0;
        write!(f, "{a} x {b} x {c} x {d}")
    }
}
