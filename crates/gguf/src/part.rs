//! One file, taken apart: the fixed fields, the keys, the tensor infos, and where the data lies.

use std::ops::Range;

use crate::cursor::{ByteOrder, Cursor};
use crate::error::{Error, ErrorKind, Place};
use crate::limits::Limits;
use crate::tensor::TensorInfo;
use crate::value::{Array, Str, Value, ValueType};

const KEY_ALIGNMENT: &str = "general.alignment";

/// Whether the tensor data is there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DataState {
    /// Every byte of every tensor.
    Complete,
    /// None of it: the file ends with its header, by intent.
    HeaderOnly,
}

/// A parsed file. Strings and arrays are byte ranges of it.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) version: u32,
    pub(crate) order: ByteOrder,
    pub(crate) alignment: u64,
    pub(crate) keys: Vec<Key>,
    /// Indices into `keys`, by name.
    keys_by_name: Vec<u32>,
    pub(crate) tensors: Vec<TensorInfo>,
    /// End of the last tensor info.
    pub(crate) header_bytes: u64,
    pub(crate) data_offset: u64,
    /// Bytes of the complete file, the last tensor padded as llama.cpp writes it.
    pub(crate) file_bytes: u64,
    pub(crate) state: DataState,
}

#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) name: Box<str>,
    slot: Slot,
    /// Where the key starts.
    offset: u64,
    /// Where its value starts.
    value_offset: u64,
}

/// A value without its lifetime.
#[derive(Clone, Debug)]
enum Slot {
    Scalar(Value<'static>),
    String(Range<usize>),
    Array {
        bytes: Range<usize>,
        len: usize,
        element_type: ValueType,
    },
}

impl Part {
    /// Reads the whole header of a file (or of its first bytes, up to the end of the header).
    pub(crate) fn parse(bytes: &[u8], number: u16) -> Result<Part, Error> {
        Part::parse_start(bytes, bytes.len() as u64, number)
    }

    /// The same of the first bytes of a file of `length` bytes. An error that [`Error::wants_more`] is none of
    /// the file's.
    pub(crate) fn parse_start(bytes: &[u8], length: u64, number: u16) -> Result<Part, Error> {
        let mut cursor = Cursor::of_part(bytes, length);
        let version = read_magic_and_version(&mut cursor)?;
        let order = cursor.order();
        let (n_tensors, n_keys) = read_counts(&mut cursor)?;
        let (keys, keys_by_name) = read_keys(&mut cursor, n_keys)?;
        let alignment = find_alignment(&keys, &keys_by_name)?;
        let tensors = read_tensors(&mut cursor, n_tensors, number)?;
        let data_bytes = check_offsets(&tensors, alignment)?;

        let header_bytes = cursor.offset();
        // llama.cpp pads the header only where tensors follow.
        let data_offset = if tensors.is_empty() {
            Some(header_bytes)
        } else {
            pad(header_bytes, alignment)
        };
        let file_bytes = data_offset
            .and_then(|start| start.checked_add(data_bytes))
            .filter(|&end| end <= Limits::MAX_FILE_BYTES)
            .ok_or_else(|| Error::new(header_bytes, ErrorKind::FileTooLarge))?;
        let data_offset = file_bytes - data_bytes;
        let place = |ReadTensor { mut info, .. }| {
            info.offset += data_offset;
            info
        };
        let tensors: Vec<TensorInfo> = tensors.into_iter().map(place).collect();
        let state = find_data_state(&tensors, data_offset, length)?;
        Ok(Part {
            version,
            order,
            alignment,
            keys,
            keys_by_name,
            tensors,
            header_bytes,
            data_offset,
            file_bytes,
            state,
        })
    }

    /// The value of a key. `bytes` are those the part was parsed from.
    pub(crate) fn get<'a>(&self, bytes: &'a [u8], name: &str) -> Option<Value<'a>> {
        Some(self.find(name)?.1.value(bytes, self.order))
    }

    /// A key and its position.
    pub(crate) fn find(&self, name: &str) -> Option<(u32, &Key)> {
        find_key(&self.keys, &self.keys_by_name, name)
    }
}

impl Key {
    /// The value. `bytes` are those the part was parsed from, so the ranges lie within them.
    pub(crate) fn value<'a>(&self, bytes: &'a [u8], order: ByteOrder) -> Value<'a> {
        let slice = |range: &Range<usize>| bytes.get(range.clone()).unwrap_or_default();
        match &self.slot {
            Slot::Scalar(value) => *value,
            Slot::String(range) => Value::String(Str::new(slice(range))),
            Slot::Array {
                bytes,
                len,
                element_type,
            } => Value::Array(Array::from_parts(slice(bytes), *len, *element_type, order)),
        }
    }

    /// An error about the value.
    pub(crate) fn value_error(&self, index: u32, kind: ErrorKind) -> Error {
        self.error(index, self.value_offset, kind)
    }

    /// The error of a value that is not of the type that llama.cpp insists on.
    pub(crate) fn wrong_type(&self, index: u32, expected: ValueType) -> Error {
        let found = self.slot.value_type();
        self.value_error(index, ErrorKind::WrongValueType { found, expected })
    }

    fn error(&self, index: u32, offset: u64, kind: ErrorKind) -> Error {
        Error::new(offset, kind).at(Place::Key(index.into(), Some(self.name.to_string())))
    }
}

fn read_magic_and_version(cursor: &mut Cursor<'_>) -> Result<u32, Error> {
    let magic = cursor.bytes(4, "magic")?;
    if magic != b"GGUF" {
        let mut found = [0; 4];
        found.copy_from_slice(magic);
        return Err(Error::new(0, ErrorKind::BadMagic { found }));
    }
    let offset = cursor.offset();
    let mut version = cursor.u32("version")?;
    // Versions are small, so one that has nothing in its low half is in the other byte order:
    // llama.cpp's own test, with which it refuses such files. They are read here, so that a header
    // for a big-endian machine can be looked at on any other.
    if version != 0 && version & 0xFFFF == 0 {
        version = version.swap_bytes();
        cursor.set_order(ByteOrder::Big);
    }
    match version {
        Limits::MIN_VERSION..=Limits::MAX_VERSION => Ok(version),
        0 => Err(Error::new(offset, ErrorKind::VersionZero)),
        1 => Err(Error::new(offset, ErrorKind::VersionOne)),
        _ => Err(Error::new(offset, ErrorKind::VersionUnknown { version })),
    }
}

/// Tensor and key counts, each within its limit and what the bytes left can hold.
fn read_counts(cursor: &mut Cursor<'_>) -> Result<(u64, u64), Error> {
    let tensors_offset = cursor.offset();
    let n_tensors = cursor.u64("tensor count")?;
    let keys_offset = cursor.offset();
    let n_keys = cursor.u64("key count")?;
    let left = cursor.left();

    let check = |what, offset, count, limit, min_bytes| {
        let max = left / min_bytes;
        if count > limit {
            Err(Error::new(
                offset,
                ErrorKind::CountOverLimit { what, count, limit },
            ))
        } else if count > max {
            Err(Error::new(
                offset,
                ErrorKind::CountTooLarge {
                    what,
                    count,
                    max,
                    left,
                },
            ))
        } else {
            Ok(())
        }
    };
    check(
        "tensor count",
        tensors_offset,
        n_tensors,
        Limits::MAX_TENSORS,
        Limits::MIN_TENSOR_INFO_BYTES,
    )?;
    check(
        "key count",
        keys_offset,
        n_keys,
        Limits::MAX_KEYS,
        Limits::MIN_KEY_VALUE_BYTES,
    )?;
    Ok((n_tensors, n_keys))
}

fn read_keys(cursor: &mut Cursor<'_>, count: u64) -> Result<(Vec<Key>, Vec<u32>), Error> {
    let mut keys = Vec::with_capacity(count as usize);
    for index in 0..count {
        let offset = cursor.offset();
        let name = read_key_name(cursor).map_err(|e| e.at(Place::Key(index, None)))?;
        let (slot, value_offset) =
            read_slot(cursor).map_err(|e| e.at(Place::Key(index, Some(name.to_owned()))))?;
        keys.push(Key {
            name: name.into(),
            slot,
            offset,
            value_offset,
        });
    }
    let by_name = sort_by_name(&keys, |key| &key.name).map_err(|repeated| {
        let kind = ErrorKind::DuplicateKey {
            first: repeated.first.offset,
        };
        repeated
            .second
            .error(repeated.second_index, repeated.second.offset, kind)
    })?;
    Ok((keys, by_name))
}

fn read_key_name<'a>(cursor: &mut Cursor<'a>) -> Result<&'a str, Error> {
    let offset = cursor.offset();
    let name = cursor.string("key", Limits::MAX_KEY_BYTES)?;
    if name.is_empty() {
        return Err(Error::new(offset, ErrorKind::EmptyKey));
    }
    // The specification wants ASCII; llama.cpp takes any bytes, but looks for ASCII names only.
    std::str::from_utf8(name).map_err(|_| Error::new(offset, ErrorKind::NotUtf8 { what: "key" }))
}

/// A value's type and the value, with the offset of the latter.
fn read_slot(cursor: &mut Cursor<'_>) -> Result<(Slot, u64), Error> {
    let type_offset = cursor.offset();
    let id = cursor.u32("value type")?;
    let ty = ValueType::from_id(id)
        .ok_or_else(|| Error::new(type_offset, ErrorKind::UnknownValueType { id }))?;
    let value_offset = cursor.offset();
    let value = Value::read(cursor, ty, 0)?;
    // The payload of a string or array is what ends here; offsets into memory fit usize.
    let end = cursor.offset() as usize;
    let slot = match value {
        Value::String(s) => Slot::String(end - s.as_bytes().len()..end),
        Value::Array(a) => Slot::Array {
            bytes: end - a.as_bytes().len()..end,
            len: a.len(),
            element_type: a.element_type(),
        },
        Value::U8(v) => Slot::Scalar(Value::U8(v)),
        Value::I8(v) => Slot::Scalar(Value::I8(v)),
        Value::U16(v) => Slot::Scalar(Value::U16(v)),
        Value::I16(v) => Slot::Scalar(Value::I16(v)),
        Value::U32(v) => Slot::Scalar(Value::U32(v)),
        Value::I32(v) => Slot::Scalar(Value::I32(v)),
        Value::F32(v) => Slot::Scalar(Value::F32(v)),
        Value::Bool(v) => Slot::Scalar(Value::Bool(v)),
        Value::U64(v) => Slot::Scalar(Value::U64(v)),
        Value::I64(v) => Slot::Scalar(Value::I64(v)),
        Value::F64(v) => Slot::Scalar(Value::F64(v)),
    };
    Ok((slot, value_offset))
}

fn find_alignment(keys: &[Key], by_name: &[u32]) -> Result<u64, Error> {
    let Some((index, key)) = find_key(keys, by_name, KEY_ALIGNMENT) else {
        return Ok(Limits::DEFAULT_ALIGNMENT);
    };
    match key.slot {
        Slot::Scalar(Value::U32(value)) if value.is_power_of_two() => Ok(value.into()),
        Slot::Scalar(Value::U32(value)) => {
            Err(key.value_error(index, ErrorKind::BadAlignment { value }))
        }
        _ => Err(key.wrong_type(index, ValueType::U32)),
    }
}

fn find_key<'a>(keys: &'a [Key], by_name: &[u32], name: &str) -> Option<(u32, &'a Key)> {
    let key_at = |index: u32| keys.get(index as usize);
    let found = by_name
        .binary_search_by(|&i| key_at(i).map_or("", |key| &key.name).cmp(name))
        .ok()?;
    let index = *by_name.get(found)?;
    Some((index, key_at(index)?))
}

impl Slot {
    fn value_type(&self) -> ValueType {
        match self {
            Slot::Scalar(value) => value.value_type(),
            Slot::String(_) => ValueType::String,
            Slot::Array { .. } => ValueType::Array,
        }
    }
}

/// A tensor info whose offset is still relative to the data section.
struct ReadTensor {
    info: TensorInfo,
    /// Where the info starts.
    start: u64,
    /// Where its offset field is.
    offset_field: u64,
}

fn read_tensors(cursor: &mut Cursor<'_>, count: u64, part: u16) -> Result<Vec<ReadTensor>, Error> {
    let mut tensors = Vec::with_capacity(count as usize);
    for index in 0..count {
        let start = cursor.offset();
        let (info, offset_field) = TensorInfo::read(cursor, index, part)?;
        tensors.push(ReadTensor {
            info,
            start,
            offset_field,
        });
    }
    sort_by_name(&tensors, |tensor| &tensor.info.name).map_err(|repeated| {
        let kind = ErrorKind::DuplicateTensor {
            first: repeated.first.start,
        };
        let name = repeated.second.info.name.clone();
        let place = Place::Tensor(repeated.second_index.into(), Some(name));
        Error::new(repeated.second.start, kind).at(place)
    })?;
    Ok(tensors)
}

/// Checks that each tensor starts where the one before it ends, padded: the one layout that
/// llama.cpp reads. Returns the bytes of the data section.
fn check_offsets(tensors: &[ReadTensor], alignment: u64) -> Result<u64, Error> {
    let mut expected = 0u64;
    for (
        index,
        ReadTensor {
            info, offset_field, ..
        },
    ) in (0..).zip(tensors)
    {
        let offset = info.offset;
        let place = || Place::Tensor(index, Some(info.name.clone()));
        if offset != expected {
            let kind = if offset % alignment != 0 {
                ErrorKind::UnalignedOffset { offset, alignment }
            } else if offset < expected {
                ErrorKind::OverlappingTensors { offset, expected }
            } else {
                ErrorKind::GapBetweenTensors { offset, expected }
            };
            return Err(Error::new(*offset_field, kind).at(place()));
        }
        expected = pad(info.n_bytes, alignment)
            .and_then(|n| expected.checked_add(n))
            .filter(|&end| end <= Limits::MAX_FILE_BYTES)
            .ok_or_else(|| Error::new(*offset_field, ErrorKind::FileTooLarge).at(place()))?;
    }
    Ok(expected)
}

/// Complete as llama.cpp's model loader has it: every tensor's own bytes are in the file, the
/// padding after the last one need not be. A file that ends with its header is refused by
/// llama.cpp and taken here, since all but the data is known from it.
fn find_data_state(
    tensors: &[TensorInfo],
    data_offset: u64,
    file: u64,
) -> Result<DataState, Error> {
    let end = |tensor: &TensorInfo| tensor.offset + tensor.n_bytes;
    let needed = tensors.iter().map(end).max().unwrap_or(0);
    if file >= needed {
        return Ok(DataState::Complete);
    }
    if file <= data_offset {
        return Ok(DataState::HeaderOnly);
    }
    match (0..).zip(tensors).find(|(_, tensor)| end(tensor) > file) {
        None => Ok(DataState::Complete),
        Some((index, tensor)) => {
            let (start, end, missing) = (tensor.offset, end(tensor), needed - file);
            let place = Place::Tensor(index, Some(tensor.name.clone()));
            Err(Error::new(
                file,
                ErrorKind::IncompleteData {
                    start,
                    end,
                    file,
                    missing,
                },
            )
            .at(place))
        }
    }
}

/// An entry whose name an earlier one has.
#[derive(Debug)]
pub(crate) struct Repeated<'a, T> {
    first: &'a T,
    second: &'a T,
    second_index: u32,
}

/// Indices by name, or the first entry of the file that repeats a name. Sorting keeps this short of
/// quadratic, and of anything a file could do to a hash.
pub(crate) fn sort_by_name<T>(
    items: &[T],
    name: impl Fn(&T) -> &str,
) -> Result<Vec<u32>, Repeated<'_, T>> {
    let mut sorted: Vec<(&str, u32, &T)> = items
        .iter()
        .zip(0..)
        .map(|(item, index)| (name(item), index, item))
        .collect();
    sorted.sort_unstable_by_key(|&(name, index, _)| (name, index));
    let repeated = sorted
        .windows(2)
        .filter_map(|pair| match *pair {
            [(a, _, first), (b, second_index, second)] if a == b => Some(Repeated {
                first,
                second,
                second_index,
            }),
            _ => None,
        })
        .min_by_key(|repeated| repeated.second_index);
    match repeated {
        Some(repeated) => Err(repeated),
        None => Ok(sorted.into_iter().map(|(_, index, _)| index).collect()),
    }
}

/// The next multiple of `alignment`, a power of two.
pub(crate) fn pad(n: u64, alignment: u64) -> Option<u64> {
    n.checked_next_multiple_of(alignment)
}
