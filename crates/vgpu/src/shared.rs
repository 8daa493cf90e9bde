//! `VGPU_STATE`: a file that all processes map, where each says what it uses of each GPU. A process that is gone counts
//! no more, however it went: its entry is looked up by process id and start time.
//!
//! Layout, in native 64-bit words: a magic word, then `PROCESSES` entries of pid, start time, and for each GPU (by its
//! place in `VGPU`, which has to be the same for all) the bytes used and the number of contexts.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::MmapRaw;

use crate::spec::MOST_DEVICES;

const MAGIC: u64 = u64::from_le_bytes(*b"vgpu-st1");
const PROCESSES: usize = 256;
const ENTRY_WORDS: usize = 2 + 2 * MOST_DEVICES;
const WORDS: usize = 1 + PROCESSES * ENTRY_WORDS;

/// What one process uses of one GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Use {
    pub pid: u32,
    pub bytes: u64,
    pub contexts: u64,
}

/// The file, as this process has it open.
#[derive(Debug)]
pub(crate) struct Shared {
    path: PathBuf,
    file: File,
    map: MmapRaw,
    /// Who opened it: a fork opens its own, so that locks hold between the two.
    pid: u32,
    own: usize,
}

/// Keeps all other processes out of the file.
struct Lock<'a>(&'a File);

impl<'a> Lock<'a> {
    fn take(file: &'a File) -> io::Result<Self> {
        loop {
            // SAFETY: a plain call on an open descriptor.
            if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } == 0 {
                return Ok(Lock(file));
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { libc::flock(self.0.as_raw_fd(), libc::LOCK_UN) };
    }
}

fn not_ours() -> io::Error {
    io::Error::other("this file is no state of imaginary GPUs")
}

/// When a process began, in ticks since the system did; `None`: it is gone, or only waits to be reaped.
fn start_of(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?; // a program's name may hold spaces and parentheses
    let mut fields = fields.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

impl Shared {
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let map = {
            let _lock = Lock::take(&file)?;
            let bytes = (WORDS * 8) as u64;
            match file.metadata()?.len() {
                0 => file.set_len(bytes)?,
                found if found == bytes => {}
                _ => return Err(not_ours()),
            }
            MmapRaw::map_raw(&file)?
        };
        let mut shared = Shared {
            path: path.to_owned(),
            file,
            map,
            pid: std::process::id(),
            own: 0,
        };
        shared.own = shared.enter()?;
        Ok(shared)
    }

    /// Marks a new file, and takes an entry.
    fn enter(&self) -> io::Result<usize> {
        let _lock = Lock::take(&self.file)?;
        match self.word(0).load(Ordering::Acquire) {
            0 => self.word(0).store(MAGIC, Ordering::Release),
            MAGIC => {}
            _ => return Err(not_ours()),
        }
        self.claim()
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        let at = at.min(WORDS - 1);
        // SAFETY: the map has WORDS words, is page aligned, and every process uses it as atomic words only.
        unsafe { &*self.map.as_ptr().cast::<AtomicU64>().add(at) }
    }

    fn entry(&self, entry: usize, word: usize) -> &AtomicU64 {
        self.word(1 + entry * ENTRY_WORDS + word)
    }

    /// The process of an entry, if it still is there.
    fn alive(&self, entry: usize) -> Option<u32> {
        let pid = u32::try_from(self.entry(entry, 0).load(Ordering::Acquire))
            .ok()
            .filter(|pid| *pid != 0)?;
        let start = self.entry(entry, 1).load(Ordering::Acquire);
        (start_of(pid) == Some(start)).then_some(pid)
    }

    /// An entry of nobody, or of a process that is gone. Under the lock.
    fn claim(&self) -> io::Result<usize> {
        let free = (0..PROCESSES)
            .find(|entry| self.alive(*entry).is_none_or(|pid| pid == self.pid))
            .ok_or_else(|| io::Error::other("too many processes use the imaginary GPUs"))?;
        self.entry(free, 0).store(0, Ordering::Release);
        for word in 2..ENTRY_WORDS {
            self.entry(free, word).store(0, Ordering::Release);
        }
        self.entry(free, 1)
            .store(start_of(self.pid).unwrap_or(0), Ordering::Release);
        self.entry(free, 0)
            .store(self.pid.into(), Ordering::Release);
        Ok(free)
    }

    /// After a fork: an entry of the child's own.
    fn own_after_fork(&mut self) {
        if self.pid != std::process::id()
            && let Ok(own) = Shared::open(&self.path)
        {
            *self = own;
        }
    }

    /// Says what this process uses now. `limit` (all processes together) is checked first, if there is one: false
    /// where it is passed, and nothing is changed.
    pub fn say(&mut self, device: usize, bytes: u64, contexts: u64, limit: Option<u64>) -> bool {
        self.own_after_fork();
        let Ok(_lock) = Lock::take(&self.file) else {
            return false;
        };
        let others = self.others(device);
        if limit.is_some_and(|limit| others.saturating_add(bytes) > limit) {
            return false;
        }
        let at = 2 + 2 * device.min(MOST_DEVICES - 1);
        self.entry(self.own, at).store(bytes, Ordering::Release);
        self.entry(self.own, at + 1)
            .store(contexts, Ordering::Release);
        true
    }

    /// Bytes that other processes use of a GPU.
    pub fn others(&self, device: usize) -> u64 {
        let own = std::process::id();
        self.uses(device)
            .iter()
            .filter(|one| one.pid != own)
            .map(|one| one.bytes)
            .sum()
    }

    /// What each living process uses of a GPU, this one too.
    pub fn uses(&self, device: usize) -> Vec<Use> {
        let at = 2 + 2 * device.min(MOST_DEVICES - 1);
        (0..PROCESSES)
            .filter(|entry| {
                self.entry(*entry, at).load(Ordering::Acquire) != 0
                    || self.entry(*entry, at + 1).load(Ordering::Acquire) != 0
            })
            .filter_map(|entry| {
                Some(Use {
                    pid: self.alive(entry)?,
                    bytes: self.entry(entry, at).load(Ordering::Acquire),
                    contexts: self.entry(entry, at + 1).load(Ordering::Acquire),
                })
            })
            .collect()
    }
}
