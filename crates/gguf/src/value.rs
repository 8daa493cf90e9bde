//! Values of keys: numbers, text, and arrays that are borrowed and walked, never copied.

use std::fmt;
use std::str::Utf8Error;

use crate::cursor::{ByteOrder, Cursor};
use crate::error::{Error, ErrorKind};
use crate::limits::Limits;

macro_rules! value_types {
    ($($variant:ident = $id:literal, $name:literal, $bytes:literal;)*) => {
        /// Type of a value or of the elements of an array: `gguf_type` in llama.cpp.
        #[allow(missing_docs)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u32)]
        pub enum ValueType { $($variant = $id,)* }

        impl ValueType {
            /// Every type, by ascending id.
            pub const ALL: &'static [ValueType] = &[$(ValueType::$variant,)*];

            /// The type with this id in a file.
            pub const fn from_id(id: u32) -> Option<ValueType> {
                match id { $($id => Some(ValueType::$variant),)* _ => None }
            }

            /// llama.cpp's name of it, e.g. `u32`.
            pub const fn name(self) -> &'static str {
                match self { $(ValueType::$variant => $name,)* }
            }

            /// Bytes of a value; `None` where it depends on the value (strings and arrays).
            pub const fn fixed_bytes(self) -> Option<u64> {
                match self { $(ValueType::$variant => if $bytes == 0 { None } else { Some($bytes) },)* }
            }
        }
    };
}

value_types! {
    U8 = 0, "u8", 1;
    I8 = 1, "i8", 1;
    U16 = 2, "u16", 2;
    I16 = 3, "i16", 2;
    U32 = 4, "u32", 4;
    I32 = 5, "i32", 4;
    F32 = 6, "f32", 4;
    Bool = 7, "bool", 1;
    String = 8, "str", 0;
    Array = 9, "arr", 0;
    U64 = 10, "u64", 8;
    I64 = 11, "i64", 8;
    F64 = 12, "f64", 8;
}

impl ValueType {
    /// The fewest bytes a value of this type takes.
    const fn min_bytes(self) -> u64 {
        match self {
            ValueType::String => 8,
            ValueType::Array => 4 + 8,
            fixed => match fixed.fixed_bytes() {
                Some(bytes) => bytes,
                None => 1,
            },
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The value of a key or an element of an array, borrowed from the file.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(Str<'a>),
    Array(Array<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl<'a> Value<'a> {
    /// An integer that is not negative, or a bool as 0 or 1.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U64(v) => Some(v),
            _ => self.as_i64().and_then(|v| u64::try_from(v).ok()),
        }
    }

    /// An integer that fits, or a bool as 0 or 1.
    pub fn as_i64(&self) -> Option<i64> {
        Some(match *self {
            Value::U8(v) => v.into(),
            Value::I8(v) => v.into(),
            Value::U16(v) => v.into(),
            Value::I16(v) => v.into(),
            Value::U32(v) => v.into(),
            Value::I32(v) => v.into(),
            Value::U64(v) => return i64::try_from(v).ok(),
            Value::I64(v) => v,
            Value::Bool(v) => v.into(),
            _ => return None,
        })
    }

    /// A floating-point number.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::F32(v) => Some(v.into()),
            Value::F64(v) => Some(v),
            _ => None,
        }
    }

    /// A bool.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Value::Bool(v) => Some(v),
            _ => None,
        }
    }

    /// A string that is UTF-8; see [`Str`] for those that are not.
    pub fn as_str(&self) -> Option<&'a str> {
        match *self {
            Value::String(v) => v.to_str().ok(),
            _ => None,
        }
    }

    /// An array.
    pub fn as_array(&self) -> Option<Array<'a>> {
        match *self {
            Value::Array(v) => Some(v),
            _ => None,
        }
    }

    /// The type it is stored as.
    pub fn value_type(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::F32(_) => ValueType::F32,
            Value::Bool(_) => ValueType::Bool,
            Value::String(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F64(_) => ValueType::F64,
        }
    }

    /// llama.cpp's name of the type, e.g. `u32`, `str`, `arr`.
    pub fn type_name(&self) -> &'static str {
        self.value_type().name()
    }

    /// Same type and same bits: NaN equals itself and -0.0 differs from 0.0. The byte order that
    /// arrays are stored in does not matter.
    pub fn identical(&self, other: &Value<'_>) -> bool {
        match (*self, *other) {
            (Value::F32(a), Value::F32(b)) => a.to_bits() == b.to_bits(),
            (Value::F64(a), Value::F64(b)) => a.to_bits() == b.to_bits(),
            (Value::String(a), Value::String(b)) => a.as_bytes() == b.as_bytes(),
            (Value::Array(a), Value::Array(b)) => {
                a.element_type() == b.element_type()
                    && a.len() == b.len()
                    && a.iter().zip(b.iter()).all(|(a, b)| a.identical(&b))
            }
            (a, b) => {
                a.value_type() == b.value_type()
                    && a.as_u64() == b.as_u64()
                    && a.as_i64() == b.as_i64()
            }
        }
    }

    /// Reads a value of type `ty`. `depth` counts the arrays around it.
    pub(crate) fn read(
        cursor: &mut Cursor<'a>,
        ty: ValueType,
        depth: u32,
    ) -> Result<Value<'a>, Error> {
        const WHAT: &str = "value";
        Ok(match ty {
            ValueType::U8 => Value::U8(cursor.u8(WHAT)?),
            ValueType::I8 => Value::I8(cursor.i8(WHAT)?),
            ValueType::U16 => Value::U16(cursor.u16(WHAT)?),
            ValueType::I16 => Value::I16(cursor.i16(WHAT)?),
            ValueType::U32 => Value::U32(cursor.u32(WHAT)?),
            ValueType::I32 => Value::I32(cursor.i32(WHAT)?),
            ValueType::F32 => Value::F32(cursor.f32(WHAT)?),
            // llama.cpp takes any byte but 0 for true.
            ValueType::Bool => Value::Bool(cursor.u8(WHAT)? != 0),
            ValueType::String => {
                Value::String(Str(cursor.string("string value", Limits::MAX_STRING_BYTES)?))
            }
            ValueType::Array => Value::Array(Array::read(cursor, depth)?),
            ValueType::U64 => Value::U64(cursor.u64(WHAT)?),
            ValueType::I64 => Value::I64(cursor.i64(WHAT)?),
            ValueType::F64 => Value::F64(cursor.f64(WHAT)?),
        })
    }
}

/// A string of the file. Nothing checks that metadata is UTF-8, llama.cpp included, so the bytes
/// are what there is, and text where they allow it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Str<'a>(&'a [u8]);

impl<'a> Str<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Str(bytes)
    }

    /// The bytes as stored.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.0
    }

    /// The text; checked here, at each call.
    pub fn to_str(&self) -> Result<&'a str, Utf8Error> {
        std::str::from_utf8(self.0)
    }
}

impl fmt::Display for Str<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        String::from_utf8_lossy(self.0).fmt(f)
    }
}

impl fmt::Debug for Str<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&String::from_utf8_lossy(self.0), f)
    }
}

/// An array of the file, walked where it lies. Its lengths were checked when the header was read.
#[derive(Clone, Copy)]
pub struct Array<'a> {
    bytes: &'a [u8],
    len: usize,
    element_type: ValueType,
    order: ByteOrder,
    depth: u32,
}

impl<'a> Array<'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Type of every element.
    pub fn element_type(&self) -> ValueType {
        self.element_type
    }

    /// The elements in order.
    pub fn iter(&self) -> Elements<'a> {
        Elements {
            cursor: Cursor::new(self.bytes, 0, self.order),
            left: self.len,
            element_type: self.element_type,
            depth: self.depth,
        }
    }

    /// The elements as stored: the bytes of numbers in [`byte_order`](Self::byte_order), strings
    /// with a length of eight bytes before each.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Byte order of [`as_bytes`](Self::as_bytes).
    pub fn byte_order(&self) -> ByteOrder {
        self.order
    }

    /// An array whose contents were validated before.
    pub(crate) fn from_parts(
        bytes: &'a [u8],
        len: usize,
        element_type: ValueType,
        order: ByteOrder,
    ) -> Self {
        Array {
            bytes,
            len,
            element_type,
            order,
            depth: 1,
        }
    }

    /// Reads the element type and count and passes over the elements, checking their lengths.
    fn read(cursor: &mut Cursor<'a>, depth: u32) -> Result<Self, Error> {
        let type_offset = cursor.offset();
        let depth = depth + 1;
        if depth > Limits::MAX_ARRAY_DEPTH {
            let limit = Limits::MAX_ARRAY_DEPTH;
            return Err(Error::new(type_offset, ErrorKind::NestedTooDeep { limit }));
        }
        let id = cursor.u32("array's element type")?;
        let element_type = ValueType::from_id(id)
            .ok_or_else(|| Error::new(type_offset, ErrorKind::UnknownValueType { id }))?;
        let len = read_element_count(cursor, element_type)?;

        let mut end = *cursor;
        match element_type {
            ValueType::String => end.skip_strings(len, "string in the array")?,
            ValueType::Array => {
                for _ in 0..len {
                    Array::read(&mut end, depth)?;
                }
            }
            fixed => {
                end.bytes(len * fixed.min_bytes(), "array")?;
            }
        }
        let bytes = cursor.bytes(end.offset() - cursor.offset(), "array")?;
        // At most MAX_ARRAY_ELEMENTS, which any usize holds.
        Ok(Array {
            bytes,
            len: len as usize,
            element_type,
            order: cursor.order(),
            depth,
        })
    }
}

/// The element count, checked against what the rest of the file can hold.
fn read_element_count(cursor: &mut Cursor<'_>, element_type: ValueType) -> Result<u64, Error> {
    const WHAT: &str = "array's element count";
    let offset = cursor.offset();
    let count = cursor.u64(WHAT)?;
    let limit = Limits::MAX_ARRAY_ELEMENTS;
    if count > limit {
        return Err(Error::new(
            offset,
            ErrorKind::CountOverLimit {
                what: WHAT,
                count,
                limit,
            },
        ));
    }
    let left = cursor.left();
    let max = left / element_type.min_bytes();
    if count > max {
        return Err(Error::new(
            offset,
            ErrorKind::CountTooLarge {
                what: WHAT,
                count,
                max,
                left,
            },
        ));
    }
    Ok(count)
}

impl fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}; {}]", self.element_type, self.len)
    }
}

impl<'a> IntoIterator for Array<'a> {
    type Item = Value<'a>;
    type IntoIter = Elements<'a>;

    fn into_iter(self) -> Elements<'a> {
        self.iter()
    }
}

/// The elements of an [`Array`].
#[derive(Clone)]
pub struct Elements<'a> {
    cursor: Cursor<'a>,
    left: usize,
    element_type: ValueType,
    depth: u32,
}

impl<'a> Iterator for Elements<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        self.left = self.left.checked_sub(1)?;
        // The lengths were checked, so this reads; were it not so, the walk would just end.
        Value::read(&mut self.cursor, self.element_type, self.depth).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Elements<'_> {}
