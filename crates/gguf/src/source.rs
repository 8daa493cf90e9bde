//! The crate's only contact with the file system: headers read, and files replaced whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use crate::error::OpenError;
use crate::limits::Limits;
use crate::part::Part;

/// How much of a file is read at first: enough for the headers of vocabularies with 262,144 tokens, as one that goes on
/// is looked at anew from its beginning. What is behind the header is never needed.
const FIRST: u64 = 8 << 20;

/// The bytes of a part's header, kept alive for the strings and arrays that are borrowed from them.
pub(crate) struct Source(Vec<u8>);

impl Source {
    pub(crate) fn new(bytes: Vec<u8>) -> Source {
        Source(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Reads the header of a file: of a 40 GB model some MiB.
    ///
    /// By plain reads, not by a memory map: a file that another program shortens while it is mapped ends the
    /// process with SIGBUS, and a server reads files that others replace.
    pub(crate) fn open(path: &Path, number: u16) -> Result<(Source, Part), OpenError> {
        Self::open_from(path, number, FIRST)
    }

    fn open_from(path: &Path, number: u16, first: u64) -> Result<(Source, Part), OpenError> {
        let io_error = |source| OpenError::Io {
            path: path.to_owned(),
            source,
        };
        // Asked before the file is opened: opening a pipe would wait for its writer.
        if !fs::metadata(path).map_err(io_error)?.is_file() {
            return Err(OpenError::NotAFile {
                path: path.to_owned(),
            });
        }
        let mut file = File::open(path).map_err(io_error)?;
        let mut length = file.metadata().map_err(io_error)?.len();
        let (mut bytes, mut wanted) = (Vec::new(), first);
        loop {
            read_up_to(&mut file, &mut bytes, wanted.min(length)).map_err(io_error)?;
            let n = bytes.len() as u64;
            if n < wanted.min(length) {
                // It has become shorter since.
                length = n;
            }
            match Part::parse_start(&bytes, length, number) {
                Err(error) if error.wants_more() && n < Limits::MAX_HEADER_BYTES => {
                    wanted = n.saturating_mul(4).min(Limits::MAX_HEADER_BYTES);
                }
                Err(source) => {
                    let path = path.to_owned();
                    let source = match source.wants_more() {
                        true => source.past(Limits::MAX_HEADER_BYTES),
                        false => source,
                    };
                    return Err(OpenError::Malformed { path, source });
                }
                Ok(part) => {
                    bytes.truncate(usize::try_from(part.header_bytes).unwrap_or(usize::MAX));
                    if bytes.capacity() > 2 * bytes.len() {
                        bytes.shrink_to_fit();
                    }
                    return Ok((Source(bytes), part));
                }
            }
        }
    }
}

/// Reads on until there are `wanted` bytes, or the file ends.
fn read_up_to(file: &mut File, bytes: &mut Vec<u8>, wanted: u64) -> io::Result<()> {
    let more = wanted.saturating_sub(bytes.len() as u64);
    let room = usize::try_from(more).map_err(|_| io::ErrorKind::OutOfMemory)?;
    bytes.try_reserve_exact(room)?;
    file.take(more).read_to_end(bytes)?;
    Ok(())
}

/// Writes a file in one step: it appears under its name when it is whole, or not at all.
/// `full_bytes` extends it with a hole to that length.
pub(crate) fn replace_file(path: &Path, bytes: &[u8], full_bytes: Option<u64>) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".vramfit-").suffix(".gguf.part");
    #[cfg(unix)]
    {
        // What a plain `File::create` would give; the umask applies.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    // Else the error of a folder that is not there names the temporary file.
    fs::metadata(folder)?;
    let mut file = builder.tempfile_in(folder)?;
    file.write_all(bytes)?;
    if let Some(length) = full_bytes {
        file.as_file().set_len(length)?;
    }
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// Whether two paths lead to one existing file.
pub(crate) fn is_same_file(a: &Path, b: &Path) -> bool {
    match (fs::canonicalize(a), fs::canonicalize(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

/// Extends a file with a hole to `length`. Never shortens it.
pub(crate) fn extend_file(path: &Path, length: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    if file.metadata()?.len() < length {
        file.set_len(length)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::Header;
    use crate::value::Value;
    use crate::write::Writer;

    fn header() -> Vec<u8> {
        let mut writer = Writer::new();
        writer.key("general.architecture", "llama").unwrap();
        writer.key("general.name", "a name of some length").unwrap();
        let tokens = ["", "of", "many", "lengths"];
        writer
            .key("tokenizer.ggml.tokens", tokens.to_vec())
            .unwrap();
        writer
            .key("tokenizer.ggml.scores", vec![0.5f32; 9])
            .unwrap();
        writer.tensor("token_embd.weight", vramfit_ggml::Type::F16, &[32, 4]);
        writer.tensor("output.weight", vramfit_ggml::Type::F16, &[32, 4]);
        writer.finish().unwrap()
    }

    /// Every length in it is one that GGUF allows, and the file is long enough for it.
    #[test]
    fn a_header_larger_than_any_is_told_as_such() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let mut writer = Writer::new();
        writer.key("general.architecture", "llama").unwrap();
        writer.key("x", vec![0u8; 8]).unwrap();
        let mut bytes = writer.finish().unwrap();
        let n = bytes.windows(8).rposition(|w| w == 8u64.to_le_bytes());
        let n = n.unwrap();
        bytes[n..n + 8].copy_from_slice(&(1u64 << 30).to_le_bytes());
        fs::write(&path, bytes).unwrap();
        extend_file(&path, 2 << 30).unwrap();
        let error = Header::open(&path).unwrap_err().to_string();
        assert!(error.contains("goes on past byte 268435456"), "{error}");
        assert!(error.contains("some MiB"), "{error}");
    }

    /// However little is read at a time, and wherever the file ends: as if all of it were in memory.
    #[test]
    fn a_file_that_is_read_bit_by_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let mut complete = header();
        let n_header = complete.len();
        complete.resize(n_header + 1000, 0);
        let (mut good, mut bad) = (0, 0);
        for length in (0..=n_header).chain([n_header + 40, n_header + 600, n_header + 1000]) {
            let bytes = &complete[..length];
            fs::write(&path, bytes).unwrap();
            let expected = Header::parse(bytes.to_vec());
            for first in [1, 7, 30, 500, FIRST] {
                match (Source::open_from(&path, 0, first), &expected) {
                    (Ok((source, part)), Ok(expected)) => {
                        good += 1;
                        let bytes = source.as_bytes();
                        assert_eq!(bytes, &complete[..bytes.len()]);
                        let read = Header::join(source, part, Vec::new(), Vec::new());
                        let same = |((a, x), (b, y)): ((&str, Value<'_>), (&str, Value<'_>))| {
                            a == b && x.identical(&y)
                        };
                        assert_eq!(read.keys().len(), expected.keys().len());
                        assert!(read.keys().zip(expected.keys()).all(same));
                        assert_eq!(read.tensors(), expected.tensors());
                        assert_eq!(read.data_state(), expected.data_state());
                        assert_eq!(read.file_bytes(), expected.file_bytes());
                    }
                    (Err(OpenError::Malformed { source, .. }), Err(expected)) => {
                        bad += 1;
                        assert_eq!(source.to_string(), expected.to_string());
                    }
                    (found, expected) => {
                        panic!("{length}, {first}: {:?}, {expected:?}", found.err())
                    }
                }
            }
        }
        assert!(good >= 15 && bad > 1000, "{good} {bad}");
    }
}
