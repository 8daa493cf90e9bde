//! Tensor infos: name, shape, type and place of each weight.

use vramfit_ggml::Type;

use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Place};
use crate::limits::Limits;

/// A tensor of the model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TensorInfo {
    /// Unique in the model; at most 63 bytes.
    pub name: String,
    /// Elements in each dimension, the first one contiguous; missing dimensions are 1. Never
    /// negative; zero is allowed, as in llama.cpp.
    pub ne: [i64; 4],
    /// Dimensions that the file stores, 0 to 4.
    pub n_dims: u32,
    /// Element type.
    pub ty: Type,
    /// First byte of the data in the file of its part.
    pub offset: u64,
    /// Bytes of the data: `ggml_nbytes`.
    pub n_bytes: u64,
    /// The part that holds it, from 0.
    pub part: u16,
}

impl TensorInfo {
    /// Product of the dimensions.
    pub fn n_elements(&self) -> u64 {
        // Checked to fit when it was read.
        self.ne
            .iter()
            .map(|&ne| ne.unsigned_abs())
            .fold(1, u64::saturating_mul)
    }

    /// Reads an info; its offset is still relative to the data section, and `info_offset` is where
    /// that field is. Errors name the tensor.
    pub(crate) fn read(
        cursor: &mut Cursor<'_>,
        index: u64,
        part: u16,
    ) -> Result<(Self, u64), Error> {
        let name = read_name(cursor).map_err(|e| e.at(Place::Tensor(index, None)))?;
        Self::read_rest(cursor, name.clone(), part)
            .map_err(|e| e.at(Place::Tensor(index, Some(name))))
    }

    fn read_rest(cursor: &mut Cursor<'_>, name: String, part: u16) -> Result<(Self, u64), Error> {
        let shape_offset = cursor.offset();
        let (n_dims, ne) = read_shape(cursor)?;
        let n_elements = count_elements(&ne)
            .ok_or_else(|| Error::new(shape_offset, ErrorKind::TooManyElements { ne }))?;

        let type_offset = cursor.offset();
        let ty = read_type(cursor)?;
        let block = ty.block_size();
        let ne0 = ne[0];
        if !ne0.unsigned_abs().is_multiple_of(block) {
            return Err(Error::new(
                type_offset,
                ErrorKind::PartialBlock { ne0, ty, block },
            ));
        }
        // Contiguous, so ggml_nbytes comes down to whole blocks.
        let n_bytes = (n_elements / block)
            .checked_mul(ty.type_size())
            .filter(|&n| n <= Limits::MAX_FILE_BYTES)
            .ok_or_else(|| Error::new(type_offset, ErrorKind::TensorTooLarge { ne, ty }))?;

        let offset_field = cursor.offset();
        let offset = cursor.u64("tensor's data offset")?;
        Ok((
            TensorInfo {
                name,
                ne,
                n_dims,
                ty,
                offset,
                n_bytes,
                part,
            },
            offset_field,
        ))
    }
}

fn read_name(cursor: &mut Cursor<'_>) -> Result<String, Error> {
    let offset = cursor.offset();
    let name = cursor.string("tensor name", Limits::MAX_TENSOR_NAME_BYTES)?;
    // Stricter than llama.cpp on two counts. It copies the name up to the first NUL, so such a file
    // names a different tensor than it seems to; and every name it looks for is ASCII, so one that
    // is not even UTF-8 is damage.
    if name.contains(&0) {
        return Err(Error::new(offset, ErrorKind::NulInName));
    }
    match std::str::from_utf8(name) {
        Ok(name) => Ok(name.to_owned()),
        Err(_) => Err(Error::new(
            offset,
            ErrorKind::NotUtf8 {
                what: "tensor name",
            },
        )),
    }
}

fn read_shape(cursor: &mut Cursor<'_>) -> Result<(u32, [i64; 4]), Error> {
    let offset = cursor.offset();
    let n_dims = cursor.u32("number of dimensions")?;
    if n_dims > Limits::MAX_DIMS {
        let limit = Limits::MAX_DIMS;
        return Err(Error::new(
            offset,
            ErrorKind::TooManyDimensions { n_dims, limit },
        ));
    }
    let mut shape = [1; 4];
    for (dim, slot) in (0..n_dims).zip(&mut shape) {
        let offset = cursor.offset();
        let ne = cursor.i64("tensor's shape")?;
        if ne < 0 {
            return Err(Error::new(offset, ErrorKind::NegativeDimension { dim, ne }));
        }
        *slot = ne;
    }
    Ok((n_dims, shape))
}

/// The product of the dimensions; `None` where llama.cpp could not represent it. Exact, so also
/// `None` for shapes whose product wraps around to zero, which llama.cpp takes for empty.
fn count_elements(ne: &[i64; 4]) -> Option<u64> {
    if ne.contains(&0) {
        return Some(0);
    }
    ne.iter()
        .try_fold(1u64, |product, &n| product.checked_mul(n.unsigned_abs()))
        .filter(|&n| n <= Limits::MAX_ELEMENTS)
}

fn read_type(cursor: &mut Cursor<'_>) -> Result<Type, Error> {
    let offset = cursor.offset();
    let id = cursor.u32("tensor type")?;
    let kind = match Type::from_id(id) {
        Some(ty) => return Ok(ty),
        None => match removed_type_name(id) {
            Some(name) => ErrorKind::RemovedTensorType { id, name },
            None => ErrorKind::UnknownTensorType { id },
        },
    };
    Err(Error::new(offset, kind))
}

/// Types that older files may have; `ggml.h` keeps their ids as comments.
fn removed_type_name(id: u32) -> Option<&'static str> {
    Some(match id {
        4 => "q4_2",
        5 => "q4_3",
        31 => "q4_0_4_4",
        32 => "q4_0_4_8",
        33 => "q4_0_8_8",
        36 => "iq4_nl_4_4",
        37 => "iq4_nl_4_8",
        38 => "iq4_nl_8_8",
        _ => return None,
    })
}
