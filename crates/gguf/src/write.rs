//! Headers made from keys and tensor infos: for tests, fixtures and header-only copies.

use crate::cursor::ByteOrder;
use crate::error::Error;
use crate::header::Header;
use crate::limits::Limits;
use crate::part::pad;
use crate::value::{Array, Value, ValueType};

/// A value to be written.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs)]
pub enum ValueBuf {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    /// Bytes of a string, UTF-8 or not.
    String(Vec<u8>),
    Array(ArrayBuf),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array to be written: elements of one type.
#[derive(Clone, PartialEq, Debug)]
pub struct ArrayBuf {
    /// Type of every element, stated because an array may be empty.
    pub element_type: ValueType,
    /// The elements.
    pub elements: Vec<ValueBuf>,
}

impl ValueBuf {
    /// The type it is written as.
    pub fn value_type(&self) -> ValueType {
        match self {
            ValueBuf::U8(_) => ValueType::U8,
            ValueBuf::I8(_) => ValueType::I8,
            ValueBuf::U16(_) => ValueType::U16,
            ValueBuf::I16(_) => ValueType::I16,
            ValueBuf::U32(_) => ValueType::U32,
            ValueBuf::I32(_) => ValueType::I32,
            ValueBuf::F32(_) => ValueType::F32,
            ValueBuf::Bool(_) => ValueType::Bool,
            ValueBuf::String(_) => ValueType::String,
            ValueBuf::Array(_) => ValueType::Array,
            ValueBuf::U64(_) => ValueType::U64,
            ValueBuf::I64(_) => ValueType::I64,
            ValueBuf::F64(_) => ValueType::F64,
        }
    }
}

macro_rules! value_from {
    ($($ty:ty => $variant:ident),*) => {$(
        impl From<$ty> for ValueBuf {
            fn from(value: $ty) -> Self {
                ValueBuf::$variant(value)
            }
        }

        impl From<Vec<$ty>> for ValueBuf {
            fn from(values: Vec<$ty>) -> Self {
                let elements = values.into_iter().map(ValueBuf::$variant).collect();
                ValueBuf::Array(ArrayBuf { element_type: ValueType::$variant, elements })
            }
        }
    )*};
}

value_from!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64,
    f32 => F32, f64 => F64, bool => Bool);

impl From<&str> for ValueBuf {
    fn from(text: &str) -> Self {
        ValueBuf::String(text.as_bytes().to_vec())
    }
}

impl From<Vec<&str>> for ValueBuf {
    fn from(texts: Vec<&str>) -> Self {
        let elements = texts.into_iter().map(ValueBuf::from).collect();
        ValueBuf::Array(ArrayBuf {
            element_type: ValueType::String,
            elements,
        })
    }
}

/// A header that cannot be written.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// An array element is not of the array's type.
    #[error("an array of {expected} holds a {found}")]
    MixedArray {
        /// Type of the array's elements.
        expected: ValueType,
        /// Type of the element.
        found: ValueType,
    },
    /// The reader would refuse it, for this reason.
    #[error("the header would be malformed: {0}")]
    Malformed(#[from] Error),
}

/// Builds a header: keys and tensor infos in the order they are added, data offsets computed.
#[derive(Clone, Debug)]
pub struct Writer {
    version: u32,
    order: ByteOrder,
    alignment: u64,
    keys: Encoder,
    n_keys: u64,
    tensors: Encoder,
    n_tensors: u64,
    data_bytes: u64,
}

impl Default for Writer {
    fn default() -> Self {
        Writer::new()
    }
}

impl Writer {
    /// A version 3, little-endian header.
    pub fn new() -> Self {
        Writer::with_format(Limits::MAX_VERSION, ByteOrder::Little)
    }

    /// A header of the given version (2 and 3 differ in nothing else) and byte order.
    pub fn with_format(version: u32, order: ByteOrder) -> Self {
        Writer {
            version,
            order,
            alignment: Limits::DEFAULT_ALIGNMENT,
            keys: Encoder::new(order),
            n_keys: 0,
            tensors: Encoder::new(order),
            n_tensors: 0,
            data_bytes: 0,
        }
    }

    /// Adds a key. Add `general.alignment` before the first tensor: offsets depend on it.
    pub fn key(&mut self, name: &str, value: impl Into<ValueBuf>) -> Result<&mut Self, WriteError> {
        let value = value.into();
        if let ValueBuf::U32(alignment) = value {
            self.note_alignment(name, alignment);
        }
        self.start_key(name, value.value_type());
        self.keys.value(&value)?;
        Ok(self)
    }

    /// Adds a key with a value of another header.
    pub fn copy_key(&mut self, name: &str, value: Value<'_>) -> &mut Self {
        if let Value::U32(alignment) = value {
            self.note_alignment(name, alignment);
        }
        self.start_key(name, value.value_type());
        self.keys.copy(value);
        self
    }

    /// Adds a tensor info; `ne` has up to four dimensions. The data starts where that of the tensor
    /// before it ends.
    pub fn tensor(&mut self, name: &str, ty: vramfit_ggml::Type, ne: &[i64]) -> &mut Self {
        let out = &mut self.tensors;
        out.string(name.as_bytes());
        out.u32(ne.len() as u32);
        ne.iter().for_each(|&n| out.i64(n));
        out.u32(ty as u32);
        out.u64(self.data_bytes);
        self.n_tensors += 1;

        // Whatever saturates here, the check in `finish` refuses.
        let elements = ne
            .iter()
            .fold(1u64, |product, &n| product.saturating_mul(n.max(0) as u64));
        let n_bytes = (elements / ty.block_size()).saturating_mul(ty.type_size());
        self.data_bytes = self
            .data_bytes
            .saturating_add(pad(n_bytes, self.alignment).unwrap_or(u64::MAX));
        self
    }

    /// The header, padded up to where the data starts, and read back to prove it well-formed.
    pub fn finish(&self) -> Result<Vec<u8>, WriteError> {
        let mut out = Encoder::new(self.order);
        out.bytes.extend_from_slice(b"GGUF");
        out.u32(self.version);
        out.u64(self.n_tensors);
        out.u64(self.n_keys);
        out.bytes.extend_from_slice(&self.keys.bytes);
        out.bytes.extend_from_slice(&self.tensors.bytes);
        let header = Header::parse(out.bytes.clone())?;
        out.bytes.resize(header.data_offset() as usize, 0);
        Ok(out.bytes)
    }

    fn start_key(&mut self, name: &str, ty: ValueType) {
        self.n_keys += 1;
        self.keys.string(name.as_bytes());
        self.keys.u32(ty as u32);
    }

    fn note_alignment(&mut self, name: &str, alignment: u32) {
        if name == "general.alignment" && alignment.is_power_of_two() {
            self.alignment = alignment.into();
        }
    }
}

/// Bytes in one byte order.
#[derive(Clone, Debug)]
struct Encoder {
    bytes: Vec<u8>,
    order: ByteOrder,
}

macro_rules! number_writers {
    ($($name:ident: $ty:ty),*) => {
        $(fn $name(&mut self, value: $ty) {
            match self.order {
                ByteOrder::Little => self.bytes.extend_from_slice(&value.to_le_bytes()),
                ByteOrder::Big => self.bytes.extend_from_slice(&value.to_be_bytes()),
            }
        })*
    };
}

impl Encoder {
    fn new(order: ByteOrder) -> Self {
        Encoder {
            bytes: Vec::new(),
            order,
        }
    }

    number_writers!(u8: u8, i8: i8, u16: u16, i16: i16, u32: u32, i32: i32, u64: u64, i64: i64, f32: f32, f64: f64);

    fn string(&mut self, text: &[u8]) {
        self.u64(text.len() as u64);
        self.bytes.extend_from_slice(text);
    }

    fn value(&mut self, value: &ValueBuf) -> Result<(), WriteError> {
        match value {
            ValueBuf::U8(v) => self.u8(*v),
            ValueBuf::I8(v) => self.i8(*v),
            ValueBuf::U16(v) => self.u16(*v),
            ValueBuf::I16(v) => self.i16(*v),
            ValueBuf::U32(v) => self.u32(*v),
            ValueBuf::I32(v) => self.i32(*v),
            ValueBuf::F32(v) => self.f32(*v),
            ValueBuf::Bool(v) => self.u8((*v).into()),
            ValueBuf::String(v) => self.string(v),
            ValueBuf::U64(v) => self.u64(*v),
            ValueBuf::I64(v) => self.i64(*v),
            ValueBuf::F64(v) => self.f64(*v),
            ValueBuf::Array(array) => {
                self.u32(array.element_type as u32);
                self.u64(array.elements.len() as u64);
                for element in &array.elements {
                    let (expected, found) = (array.element_type, element.value_type());
                    if expected != found {
                        return Err(WriteError::MixedArray { expected, found });
                    }
                    self.value(element)?;
                }
            }
        }
        Ok(())
    }

    fn copy(&mut self, value: Value<'_>) {
        match value {
            Value::U8(v) => self.u8(v),
            Value::I8(v) => self.i8(v),
            Value::U16(v) => self.u16(v),
            Value::I16(v) => self.i16(v),
            Value::U32(v) => self.u32(v),
            Value::I32(v) => self.i32(v),
            Value::F32(v) => self.f32(v),
            Value::Bool(v) => self.u8(v.into()),
            Value::String(v) => self.string(v.as_bytes()),
            Value::U64(v) => self.u64(v),
            Value::I64(v) => self.i64(v),
            Value::F64(v) => self.f64(v),
            Value::Array(array) => self.copy_array(array),
        }
    }

    fn copy_array(&mut self, array: Array<'_>) {
        self.u32(array.element_type() as u32);
        self.u64(array.len() as u64);
        if array.byte_order() == self.order {
            self.bytes.extend_from_slice(array.as_bytes());
        } else {
            array.iter().for_each(|element| self.copy(element));
        }
    }
}
