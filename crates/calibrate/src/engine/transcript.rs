//! What an engine says, kept while it runs.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use crate::{Error, io};

/// The most of it that is read, bytes.
const MOST: u64 = 32 << 20;

/// A file without a name: nothing of it is left behind, however the processes end that have it open.
pub(super) struct Transcript {
    file: File,
}

impl Transcript {
    pub(super) fn new() -> Result<Self, Error> {
        let file = tempfile::tempfile().map_err(io("a temporary file"))?;
        Ok(Self { file })
    }

    /// As another process of the same user can open it while this value lives.
    pub(super) fn path(&self) -> PathBuf {
        let (process, file) = (std::process::id(), self.file.as_raw_fd());
        PathBuf::from(format!("/proc/{process}/fd/{file}"))
    }

    pub(super) fn text(&self) -> Result<String, Error> {
        let what = "what the engine said";
        let mut text = Vec::new();
        // Opened anew, so that it is read from its start each time.
        let file = File::open(self.path()).map_err(io(what))?;
        file.take(MOST).read_to_end(&mut text).map_err(io(what))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}
