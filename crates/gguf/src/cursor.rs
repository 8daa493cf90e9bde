//! The one place that takes bytes apart: a position in a part that cannot leave it.

use byteorder::{BE, ByteOrder as Decode, LE};
use nom::bytes::complete::take;
use nom::number::Endianness;
use nom::number::complete as number;
use nom::{IResult, Parser};

use crate::error::{Error, ErrorKind};
use crate::limits::Limits;

/// Order of the bytes in a number. GGUF v3 files are little-endian unless made for a big-endian
/// machine; the magic reads "GGUF" in both.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ByteOrder {
    /// Least significant byte first.
    Little,
    /// Most significant byte first.
    Big,
}

/// A position in the bytes of a part. Reads advance it; a read that does not fit is an error with
/// the offset at which it was tried, and leaves it where it was.
#[derive(Clone, Copy)]
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
    /// Bytes of the part behind `rest` that were not read from the file. A read that would need them fails as
    /// one past the end does, but for less than what is left: see [`Error::wants_more`].
    beyond: u64,
    offset: u64,
    order: ByteOrder,
}

type Parsed<'a, T> = IResult<&'a [u8], T, ()>;

macro_rules! number_readers {
    ($($name:ident: $ty:ty),*) => {
        $(pub(crate) fn $name(&mut self, what: &'static str) -> Result<$ty, Error> {
            let parsed = number::$name(self.endianness()).parse(self.rest);
            self.accept(parsed, what, size_of::<$ty>() as u64)
        })*
    };
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8], offset: u64, order: ByteOrder) -> Self {
        Cursor {
            rest: bytes,
            beyond: 0,
            offset,
            order,
        }
    }

    /// At the beginning of a part of `length` bytes, of which `bytes` are the first.
    pub(crate) fn of_part(bytes: &'a [u8], length: u64) -> Self {
        let beyond = length.saturating_sub(bytes.len() as u64);
        Cursor {
            beyond,
            ..Cursor::new(bytes, 0, ByteOrder::Little)
        }
    }

    /// Byte of the part that is read next.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes up to the end of the part.
    pub(crate) fn left(&self) -> u64 {
        self.beyond.saturating_add(self.rest.len() as u64)
    }

    pub(crate) fn order(&self) -> ByteOrder {
        self.order
    }

    pub(crate) fn set_order(&mut self, order: ByteOrder) {
        self.order = order;
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, Error> {
        let parsed = number::u8(self.rest);
        self.accept(parsed, what, 1)
    }

    pub(crate) fn i8(&mut self, what: &'static str) -> Result<i8, Error> {
        let parsed = number::i8(self.rest);
        self.accept(parsed, what, 1)
    }

    number_readers!(u16: u16, i16: i16, u32: u32, i32: i32, u64: u64, i64: i64, f32: f32, f64: f64);

    /// The next `count` bytes.
    pub(crate) fn bytes(&mut self, count: u64, what: &'static str) -> Result<&'a [u8], Error> {
        let parsed = match usize::try_from(count) {
            Ok(count) => take::<usize, &[u8], ()>(count).parse(self.rest),
            Err(_) => Err(nom::Err::Error(())),
        };
        self.accept(parsed, what, count)
    }

    /// A length and that many bytes. An error carries the offset of the length.
    pub(crate) fn string(&mut self, what: &'static str, limit: u64) -> Result<&'a [u8], Error> {
        let start = *self;
        let length = self.u64(what)?;
        let left = self.left();
        let kind = if length > limit {
            ErrorKind::TooLong {
                what,
                length,
                limit,
            }
        } else if length > left {
            ErrorKind::LengthPastEnd { what, length, left }
        } else {
            return self.bytes(length, what);
        };
        *self = start;
        Err(Error::new(start.offset, kind))
    }

    /// Passes over `count` strings. This is the loop that a large vocabulary goes through, so it
    /// does two comparisons a string and leaves the wording of an error to [`Self::string`].
    pub(crate) fn skip_strings(&mut self, count: u64, what: &'static str) -> Result<(), Error> {
        let skipped = match self.order {
            ByteOrder::Little => skip_strings::<LE>(self.rest, count),
            ByteOrder::Big => skip_strings::<BE>(self.rest, count),
        };
        match skipped {
            Ok(rest) => self.advance_to(rest),
            Err(refused) => {
                self.advance_to(refused);
                // It tests the same things, so this is where the error is worded.
                self.string(what, Limits::MAX_STRING_BYTES)?;
            }
        }
        Ok(())
    }

    fn endianness(&self) -> Endianness {
        match self.order {
            ByteOrder::Little => Endianness::Little,
            ByteOrder::Big => Endianness::Big,
        }
    }

    fn accept<T>(
        &mut self,
        parsed: Parsed<'a, T>,
        what: &'static str,
        needed: u64,
    ) -> Result<T, Error> {
        match parsed {
            Ok((rest, value)) => {
                self.advance_to(rest);
                Ok(value)
            }
            Err(_) => {
                let left = self.left();
                Err(Error::new(
                    self.offset,
                    ErrorKind::Truncated { what, needed, left },
                ))
            }
        }
    }

    fn advance_to(&mut self, rest: &'a [u8]) {
        self.offset += (self.rest.len() - rest.len()) as u64;
        self.rest = rest;
    }
}

/// The bytes after `count` strings, or from the first string on that does not fit.
fn skip_strings<O: Decode>(bytes: &[u8], count: u64) -> Result<&[u8], &[u8]> {
    let mut rest = bytes;
    for _ in 0..count {
        let Some((length, tail)) = rest.split_first_chunk::<8>() else {
            return Err(rest);
        };
        let length = O::read_u64(length);
        if length > Limits::MAX_STRING_BYTES {
            return Err(rest);
        }
        match tail.get(length as usize..) {
            Some(tail) => rest = tail,
            None => return Err(rest),
        }
    }
    Ok(rest)
}
