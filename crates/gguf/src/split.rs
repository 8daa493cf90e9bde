//! Models split over several files, `NAME-00001-of-0000N.gguf`, read as one from any of them.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, OpenError, Place};
use crate::header::Header;
use crate::limits::Limits;
use crate::part::{Key, Part};
use crate::source::Source;
use crate::value::{Value, ValueType};

pub(crate) const KEY_NO: &str = "split.no";
pub(crate) const KEY_COUNT: &str = "split.count";
pub(crate) const KEY_TENSORS: &str = "split.tensors.count";

/// A part's own place in a split model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Split {
    /// From 0.
    no: u16,
    /// At least 2.
    count: u16,
}

pub(crate) fn open(path: &Path) -> Result<Header, OpenError> {
    let malformed = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Malformed { path, source }
    };
    let (source, part) = Source::open(path, 0)?;
    let Some(split) = read_split(&part, source.as_bytes()).map_err(malformed(path))? else {
        return Ok(Header::join(
            source,
            part,
            Vec::new(),
            vec![path.to_owned()],
        ));
    };

    // The part that was given is read again in its turn: it is cheap, and one loop does for all.
    let paths = list_paths(path, split)?;
    let mut parts = Joined::new(split.count);
    for (no, path) in (0..).zip(&paths) {
        let read = Source::open(path, no);
        let (source, part) = read.map_err(|e| name_missing_part(e, no, split.count))?;
        parts.add(source, part, no).map_err(malformed(path))?;
    }
    let first = paths.first().map_or(path, PathBuf::as_path).to_owned();
    parts.finish(paths).map_err(malformed(&first))
}

pub(crate) fn parse_parts(parts: Vec<Vec<u8>>) -> Result<Header, (usize, Error)> {
    let count = u16::try_from(parts.len()).map_err(|_| {
        let (what, count, limit) = ("number of parts", parts.len() as u64, Limits::MAX_PARTS);
        (
            0,
            Error::new(0, ErrorKind::CountOverLimit { what, count, limit }),
        )
    })?;
    let mut joined = Joined::new(count);
    for (no, bytes) in (0..count).zip(parts) {
        let part = Part::parse(&bytes, no).map_err(|e| (no.into(), e))?;
        joined
            .add(Source::new(bytes), part, no)
            .map_err(|e| (no.into(), e))?;
    }
    joined.finish(Vec::new()).map_err(|e| (0, e))
}

/// Parts read so far, checked against each other.
struct Joined {
    count: u16,
    first: Option<(Source, Part)>,
    others: Vec<Part>,
    /// Part that each tensor is in.
    seen: HashMap<String, u16>,
}

impl Joined {
    fn new(count: u16) -> Self {
        Joined {
            count,
            first: None,
            others: Vec::new(),
            seen: HashMap::new(),
        }
    }

    fn add(&mut self, source: Source, part: Part, no: u16) -> Result<(), Error> {
        let expected = Split {
            no,
            count: self.count,
        };
        check_split(&part, source.as_bytes(), expected)?;
        for (index, tensor) in (0..).zip(&part.tensors) {
            if let Some(first) = self.seen.insert(tensor.name.clone(), no) {
                let kind = ErrorKind::SplitDuplicateTensor {
                    first_part: u64::from(first) + 1,
                };
                return Err(Error::new(tensor.offset, kind)
                    .at(Place::Tensor(index, Some(tensor.name.clone()))));
            }
        }
        // Keys are read from the first part only, as llama.cpp does, so only its bytes are kept.
        match self.first {
            None => self.first = Some((source, part)),
            Some(_) => self.others.push(part),
        }
        Ok(())
    }

    fn finish(self, paths: Vec<PathBuf>) -> Result<Header, Error> {
        let Some((source, first)) = self.first else {
            return Err(Error::new(0, ErrorKind::SplitKeyMissing { key: KEY_COUNT }));
        };
        if self.count > 1 {
            let missing = || Error::new(0, ErrorKind::SplitKeyMissing { key: KEY_TENSORS });
            let (index, key) = first.find(KEY_TENSORS).ok_or_else(missing)?;
            let expected = match key.value(source.as_bytes(), first.order) {
                Value::I32(n) => i64::from(n),
                _ => return Err(key.wrong_type(index, ValueType::I32)),
            };
            let found = self.seen.len() as u64;
            if i64::try_from(found) != Ok(expected) {
                return Err(Error::new(
                    0,
                    ErrorKind::SplitTensorCount { found, expected },
                ));
            }
        }
        Ok(Header::join(source, first, self.others, paths))
    }
}

/// The split keys, with the types that llama.cpp insists on; `None` for a model in one file.
fn read_split(part: &Part, bytes: &[u8]) -> Result<Option<Split>, Error> {
    let count = match read_u16(part, bytes, KEY_COUNT)? {
        Some((count, ..)) if count > 1 => count,
        _ => return Ok(None),
    };
    match read_u16(part, bytes, KEY_NO)? {
        Some((no, ..)) if no < count => Ok(Some(Split { no, count })),
        Some((no, index, key)) => {
            let kind = ErrorKind::SplitNumber {
                no: no.into(),
                count: count.into(),
            };
            Err(key.value_error(index, kind))
        }
        None => Err(Error::new(0, ErrorKind::SplitKeyMissing { key: KEY_NO })),
    }
}

/// llama.cpp compares `split.no` of the parts; their `split.count` is compared here as well, since
/// parts of two different splits of a model do not belong together.
fn check_split(part: &Part, bytes: &[u8], expected: Split) -> Result<(), Error> {
    let found = read_split(part, bytes)?;
    let (no, count) = (u64::from(expected.no), u64::from(expected.count));
    if found.is_none() && count > 1 {
        return Err(Error::new(0, ErrorKind::SplitKeyMissing { key: KEY_COUNT }));
    }
    let Some(found) = found else { return Ok(()) };
    let (key, kind) = if found.count != expected.count {
        (
            KEY_COUNT,
            ErrorKind::SplitCount {
                found: found.count.into(),
                expected: count,
            },
        )
    } else if found.no != expected.no {
        (
            KEY_NO,
            ErrorKind::SplitOrder {
                found: u64::from(found.no) + 1,
                expected: no + 1,
            },
        )
    } else {
        return Ok(());
    };
    Err(match part.find(key) {
        Some((index, key)) => key.value_error(index, kind),
        None => Error::new(0, kind),
    })
}

/// The value of a key that must be a u16, with the key.
fn read_u16<'a>(
    part: &'a Part,
    bytes: &[u8],
    name: &str,
) -> Result<Option<(u16, u32, &'a Key)>, Error> {
    let Some((index, key)) = part.find(name) else {
        return Ok(None);
    };
    match key.value(bytes, part.order) {
        Value::U16(value) => Ok(Some((value, index, key))),
        _ => Err(key.wrong_type(index, ValueType::U16)),
    }
}

/// Paths of all parts, from the name of one.
fn list_paths(path: &Path, split: Split) -> Result<Vec<PathBuf>, OpenError> {
    let Split { no, count } = split;
    let name_error = || OpenError::SplitName {
        path: path.to_owned(),
        no: u64::from(no) + 1,
        count: count.into(),
    };
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(name_error)?;
    let prefix = name
        .strip_suffix(&suffix(no, count))
        .filter(|prefix| !prefix.is_empty())
        .ok_or_else(name_error)?;
    Ok((0..count)
        .map(|no| path.with_file_name(format!("{prefix}{}", suffix(no, count))))
        .collect())
}

fn suffix(no: u16, count: u16) -> String {
    format!("-{:05}-of-{count:05}.gguf", u32::from(no) + 1)
}

fn name_missing_part(error: OpenError, no: u16, count: u16) -> OpenError {
    match error {
        OpenError::Io { path, source } if source.kind() == io::ErrorKind::NotFound => {
            OpenError::PartMissing {
                path,
                no: u64::from(no) + 1,
                count: count.into(),
            }
        }
        other => other,
    }
}
