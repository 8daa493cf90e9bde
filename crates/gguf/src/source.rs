//! The crate's only contact with the file system: files mapped for reading, and files replaced whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use memmap2::Mmap;

use crate::error::OpenError;

/// The bytes of a part, kept alive for the strings and arrays that are borrowed from it.
pub(crate) enum Source {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl Source {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self {
            Source::Mapped(map) => map,
            Source::Owned(bytes) => bytes,
        }
    }

    /// Maps a file. Only the pages that are read are loaded, so a 40 GB model costs its header.
    pub(crate) fn open(path: &Path) -> Result<Source, OpenError> {
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
        let file = File::open(path).map_err(io_error)?;
        if file.metadata().map_err(io_error)?.len() == 0 {
            return Ok(Source::Owned(Vec::new()));
        }
        // SAFETY: the map is read-only and private to this process. A file that another program
        // shortens while it is mapped raises SIGBUS on access; llama.cpp maps models the same way.
        let map = unsafe { Mmap::map(&file) }.map_err(io_error)?;
        Ok(Source::Mapped(map))
    }
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
