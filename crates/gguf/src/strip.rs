//! Header-only copies of models, with or without the vocabulary, and sparse stand-ins for them.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::{OneLine, OpenError};
use crate::header::Header;
use crate::source::{extend_file, is_same_file, replace_file};
use crate::split;
use crate::value::Value;
use crate::write::{ValueBuf, WriteError, Writer};

const KEY_TOKENS: &str = "tokenizer.ggml.tokens";
const KEY_TOKENIZER: &str = "tokenizer.ggml.model";
/// The tokenizer name at which llama.cpp asks for no token list.
const NO_VOCAB: &str = "no_vocab";

/// What a header-only copy keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StripOptions {
    /// Keep the arrays of the tokenizer (tokens, scores, types, merges). Without them a header is
    /// some 20 KiB rather than some MiB; `{arch}.vocab_size` then says how many tokens there were,
    /// and `tokenizer.ggml.model` becomes `no_vocab`, so that llama.cpp loads it.
    pub keep_tokens: bool,
}

/// Length of the file that [`strip_file`] writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Length {
    /// The header's own.
    #[default]
    Header,
    /// The complete model's, the data being a hole: llama.cpp loads it, as zeros.
    Full,
}

/// A header-only copy that could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StripError {
    /// The copy would not be a valid header.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The vocabulary has more tokens than a u32 can say.
    #[error("{KEY_TOKENS} has {0} elements, more than a u32 holds")]
    TooManyTokens(usize),
    /// The tokens cannot be left out, since nothing says which key their number belongs in.
    #[error("general.architecture is missing, so the vocabulary size has no key; keep the tokens")]
    NoArchitecture,
    /// The output is one of the model's own files.
    #[error("{}: this is the model itself; choose another name for the copy", OneLine(.0))]
    OverInput(PathBuf),
    /// Writing to a file failed.
    #[error("{}: {source}", OneLine(path))]
    File {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// Writing to the given sink failed.
    #[error("writing the header: {0}")]
    Io(#[from] io::Error),
}

/// Writes a header-only copy of a model: the same keys and tensor infos, a split model as one file.
/// Returns the bytes written.
pub fn strip(
    header: &Header,
    options: StripOptions,
    out: &mut impl Write,
) -> Result<u64, StripError> {
    let bytes = stripped_bytes(header, options)?;
    out.write_all(&bytes)?;
    Ok(bytes.len() as u64)
}

/// [`strip`] to a file, which appears whole or not at all. Refuses to replace the model itself.
/// Returns the length of the file.
pub fn strip_file(
    header: &Header,
    options: StripOptions,
    length: Length,
    path: impl AsRef<Path>,
) -> Result<u64, StripError> {
    let path = path.as_ref();
    if header.paths().iter().any(|input| is_same_file(input, path)) {
        return Err(StripError::OverInput(path.to_owned()));
    }
    let bytes = stripped_bytes(header, options)?;
    let full_bytes = match length {
        Length::Header => None,
        Length::Full => Some(
            Header::parse(bytes.clone())
                .map_err(WriteError::from)?
                .file_bytes(),
        ),
    };
    replace_file(path, &bytes, full_bytes).map_err(|source| StripError::File {
        path: path.to_owned(),
        source,
    })?;
    Ok(full_bytes.unwrap_or(bytes.len() as u64))
}

/// Gives a header-only file the length of the complete model, the data being a hole, so that
/// llama.cpp can load it. Returns that length; a complete file is left as it is.
pub fn sparse(path: impl AsRef<Path>) -> Result<u64, OpenError> {
    let path = path.as_ref();
    let header = Header::open(path)?;
    if header.parts() > 1 {
        let source =
            io::Error::other("a split model cannot be made sparse; strip it into one file first");
        return Err(OpenError::Io {
            path: path.to_owned(),
            source,
        });
    }
    extend_file(path, header.file_bytes()).map_err(|source| OpenError::Io {
        path: path.to_owned(),
        source,
    })?;
    Ok(header.file_bytes())
}

fn stripped_bytes(header: &Header, options: StripOptions) -> Result<Vec<u8>, StripError> {
    let mut writer = Writer::with_format(header.version(), header.byte_order());
    let mut replaced = match options.keep_tokens {
        true => Vec::new(),
        false => vocabulary_keys(header)?,
    };
    for (name, value) in header.keys() {
        if let Some(at) = replaced.iter().position(|(key, _)| key == name) {
            let (_, value) = replaced.remove(at);
            writer.key(name, value)?;
        } else if !is_left_out(name, value, options) {
            writer.copy_key(name, value);
        }
    }
    for (name, value) in replaced {
        writer.key(&name, value)?;
    }
    for tensor in header.tensors() {
        let ne = tensor
            .ne
            .get(..tensor.n_dims as usize)
            .unwrap_or(&tensor.ne);
        writer.tensor(&tensor.name, tensor.ty, ne);
    }
    Ok(writer.finish()?)
}

fn is_left_out(name: &str, value: Value<'_>, options: StripOptions) -> bool {
    let is_split_key = [split::KEY_NO, split::KEY_COUNT, split::KEY_TENSORS].contains(&name);
    let is_token_array = name.starts_with("tokenizer.ggml.") && value.as_array().is_some();
    is_split_key || is_token_array && !options.keep_tokens
}

/// What says how many tokens there were once the list of them is gone; nothing where there is no
/// list. llama.cpp counts the list, whatever the size key says, so both keys replace what was there.
fn vocabulary_keys(header: &Header) -> Result<Vec<(String, ValueBuf)>, StripError> {
    let Some(tokens) = header.get(KEY_TOKENS).and_then(|value| value.as_array()) else {
        return Ok(Vec::new());
    };
    let architecture = header.architecture().ok_or(StripError::NoArchitecture)?;
    let count = u32::try_from(tokens.len()).map_err(|_| StripError::TooManyTokens(tokens.len()))?;
    Ok(vec![
        (format!("{architecture}.vocab_size"), ValueBuf::U32(count)),
        (KEY_TOKENIZER.to_owned(), NO_VOCAB.into()),
    ])
}
