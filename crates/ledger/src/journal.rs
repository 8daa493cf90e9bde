//! The journal in a file, by redb: an event is a row, an append a transaction that is on disk when it
//! returns. A process that is killed at any write leaves all of it or none.

use crate::owner::Owner;
use crate::{Event, State, Store, StoreError, Tail};
use redb::{
    Database, DatabaseError, ReadableTable, StorageBackend, StorageError, TableDefinition,
    WriteTransaction,
};
use std::cell::Cell;
use std::io::ErrorKind;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Once;

/// Number -> event, as JSON.
const EVENTS: TableDefinition<u64, &[u8]> = TableDefinition::new("events");
/// The one row: number -> the events of a snapshot, as JSON.
const SNAPSHOT: TableDefinition<u64, &[u8]> = TableDefinition::new("snapshot");
/// redb would keep up to 1 GiB of a file in memory; a ledger has some kilobytes.
const CACHE_BYTES: usize = 4 << 20;

/// A journal in a file, for one process at a time: a second cannot open it, and a child of `fork()` is told that it is
/// not its own.
///
/// When the disk fails, the next call opens the file anew: what was stored is there, and it goes on when the
/// disk does. Damage that redb stumbles over is an error, not a panic.
pub struct Journal {
    /// None where the last call failed.
    database: Option<Database>,
    /// How it is opened again, and what it is called.
    open: Box<dyn Fn() -> Result<Database, DatabaseError> + Send>,
    file: PathBuf,
    owner: Owner,
}

fn failed(error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::Corrupted(what) => StoreError::damaged("", what),
        error => StoreError::Failed(Box::new(error)),
    }
}

impl Journal {
    /// Opens the journal at `path`, or begins one.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref();
        let file = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        let again = file.clone();
        // What was there must be there again: a new file would know of no promises.
        let again = move || builder().open(&again);
        Self::begin(&file, || builder().create(&file), again)
    }

    /// As [`Journal::open`], over anything that stores bytes; clones are the same bytes.
    pub fn with_backend(
        backend: impl StorageBackend + Clone + 'static,
    ) -> Result<Self, StoreError> {
        let open = move || builder().create_with_backend(backend.clone());
        Self::begin(Path::new(""), open.clone(), open)
    }

    fn begin(
        file: &Path,
        first: impl FnOnce() -> Result<Database, DatabaseError>,
        again: impl Fn() -> Result<Database, DatabaseError> + Send + 'static,
    ) -> Result<Self, StoreError> {
        let database = guarded(|| first().map_err(|error| cannot_open(file, error)));
        let mut journal = Journal {
            database: Some(database.map_err(|error| error.in_file(file))?),
            open: Box::new(again),
            file: file.to_path_buf(),
            owner: Owner::this(),
        };
        journal.write(|_| Ok(()))?;
        Ok(journal)
    }

    /// Does `work` with the database, which is opened again where the last call failed.
    fn with<T>(
        &mut self,
        work: impl FnOnce(&Database) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.owner.check_process()?;
        let Journal {
            database,
            open,
            file,
            ..
        } = self;
        let done = guarded(|| {
            let open = match database.take() {
                Some(open) => open,
                None => open().map_err(|error| cannot_open(file, error))?,
            };
            work(database.insert(open))
        });
        if let Err(StoreError::Failed(_) | StoreError::Damaged { .. }) = &done {
            // redb takes nothing more after a failure.
            close(database.take());
        }
        done.map_err(|error| error.in_file(file))
    }

    /// One transaction: on disk, or as if it had never been.
    fn write(
        &mut self,
        change: impl FnOnce(&WriteTransaction) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.with(|database| {
            let transaction = database.begin_write().map_err(failed)?;
            for table in [EVENTS, SNAPSHOT] {
                transaction.open_table(table).map_err(failed)?;
            }
            change(&transaction)?;
            transaction.commit().map_err(failed)
        })
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // It would be closed in the file of the process that goes on with it.
        let database = self.database.take();
        if self.owner.check_process().is_err() {
            std::mem::forget(database);
        } else {
            close(database);
        }
    }
}

/// What redb writes as it is closed may fail as well, and harms nothing.
fn close(database: Option<Database>) {
    let _ = guarded(|| {
        drop(database);
        Ok(())
    });
}

fn cannot_open(file: &Path, error: DatabaseError) -> StoreError {
    let damaged = |what: String| StoreError::damaged("", what);
    match error {
        DatabaseError::Storage(StorageError::Corrupted(what)) => damaged(what),
        DatabaseError::Storage(StorageError::Io(error))
            if matches!(
                error.kind(),
                ErrorKind::InvalidData | ErrorKind::UnexpectedEof
            ) =>
        {
            damaged(error.to_string())
        }
        error => StoreError::Open {
            file: file.to_path_buf(),
            source: Box::new(error),
        },
    }
}

thread_local! {
    /// A panic of this thread is an answer, and is not printed.
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Does `work`, which calls redb: it panics over some files that are damaged.
fn guarded<T>(work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    static HOOK: Once = Once::new();
    if !std::thread::panicking() {
        HOOK.call_once(|| {
            let others = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                if !IS_GUARDED.get() {
                    others(info);
                }
            }));
        });
    }
    let was = IS_GUARDED.replace(true);
    // A database that has panicked is not used again.
    let done = std::panic::catch_unwind(AssertUnwindSafe(work));
    IS_GUARDED.set(was);
    done.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied());
        let what = text.unwrap_or("redb gave up");
        Err(StoreError::damaged("", what))
    })
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    // The format that later versions of redb read, too.
    builder.create_with_file_format_v3(true);
    builder
}

fn encode<T: serde::Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|error| StoreError::Failed(Box::new(error)))
}

fn decode<T: serde::de::DeserializeOwned>(seq: u64, bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|error| StoreError::Corrupt {
        seq,
        what: error.to_string(),
    })
}

/// The last number of either table; 0 where both are empty.
fn last(
    events: &impl ReadableTable<u64, &'static [u8]>,
    snapshot: &impl ReadableTable<u64, &'static [u8]>,
) -> Result<u64, StoreError> {
    let event = events.last().map_err(failed)?.map(|(seq, _)| seq.value());
    let base = snapshot.last().map_err(failed)?.map(|(seq, _)| seq.value());
    Ok(event.or(base).unwrap_or(0))
}

impl Store for Journal {
    fn append(&mut self, after: u64, new: &[Event]) -> Result<(), StoreError> {
        self.write(|transaction| {
            let mut events = transaction.open_table(EVENTS).map_err(failed)?;
            let snapshot = transaction.open_table(SNAPSHOT).map_err(failed)?;
            if last(&events, &snapshot)? != after {
                return Err(StoreError::Conflict);
            }
            for (seq, event) in (after.saturating_add(1)..).zip(new) {
                events
                    .insert(seq, encode(event)?.as_slice())
                    .map_err(failed)?;
            }
            Ok(())
        })
    }

    fn read(&mut self, after: u64) -> Result<Tail, StoreError> {
        self.with(|database| {
            let transaction = database.begin_read().map_err(failed)?;
            let events = transaction.open_table(EVENTS).map_err(failed)?;
            let snapshot = transaction.open_table(SNAPSHOT).map_err(failed)?;
            let mut tail = Tail::default();
            if let Some((seq, bytes)) = snapshot.last().map_err(failed)?
                && after < seq.value()
            {
                let base: Vec<Event> = decode(seq.value(), bytes.value())?;
                tail.snapshot = Some((seq.value(), base));
            }
            let base = tail.snapshot.as_ref().map_or(after, |(seq, _)| *seq);
            for (expected, row) in (base.saturating_add(1)..)
                .zip(events.range(base.saturating_add(1)..).map_err(failed)?)
            {
                let (seq, bytes) = row.map_err(failed)?;
                if seq.value() != expected {
                    return Err(StoreError::Corrupt {
                        seq: expected,
                        what: "is missing".to_string(),
                    });
                }
                tail.events.push(decode(seq.value(), bytes.value())?);
            }
            Ok(tail)
        })
    }

    fn compact(&mut self, state: &State) -> Result<(), StoreError> {
        self.write(|transaction| {
            let mut events = transaction.open_table(EVENTS).map_err(failed)?;
            let mut snapshot = transaction.open_table(SNAPSHOT).map_err(failed)?;
            let base = snapshot.last().map_err(failed)?.map(|(seq, _)| seq.value());
            if state.seq() <= base.unwrap_or(0) || state.seq() > last(&events, &snapshot)? {
                return Ok(());
            }
            let bytes = encode(&state.as_events())?;
            snapshot.retain(|_, _| false).map_err(failed)?;
            snapshot
                .insert(state.seq(), bytes.as_slice())
                .map_err(failed)?;
            events
                .retain_in(..=state.seq(), |_, _| false)
                .map_err(failed)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A new file would know of no promises.
    #[test]
    fn a_journal_that_is_gone_is_not_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.redb");
        let mut journal = Journal::open(&path).unwrap();
        close(journal.database.take()); // as behind a failure
        std::fs::rename(&path, folder.path().join("moved")).unwrap();
        let gone = journal.append(0, &[]);
        assert!(matches!(gone, Err(StoreError::Open { file, .. }) if file == path));
        assert!(!path.exists());
        std::fs::rename(folder.path().join("moved"), &path).unwrap();
        journal.append(0, &[]).unwrap();
    }
}
