//! The journal in a file, by redb: an event is a row, an append a transaction that is on disk when it
//! returns. A process that is killed at any write leaves all of it or none.

use crate::{Event, State, Store, StoreError, Tail};
use redb::{Database, ReadableTable, StorageBackend, TableDefinition, WriteTransaction};
use std::path::Path;

/// Number -> event, as JSON.
const EVENTS: TableDefinition<u64, &[u8]> = TableDefinition::new("events");
/// The one row: number -> the events of a snapshot, as JSON.
const SNAPSHOT: TableDefinition<u64, &[u8]> = TableDefinition::new("snapshot");
/// redb would keep up to 1 GiB of a file in memory; a ledger has some kilobytes.
const CACHE_BYTES: usize = 4 << 20;

/// A journal in a file, for one process at a time: a second cannot open it.
pub struct Journal(Database);

fn failed(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Failed(Box::new(error.into()))
}

impl Journal {
    /// Opens the journal at `path`, or begins one.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let database = builder().create(path).map_err(failed)?;
        Self::begin(database)
    }

    /// As [`Journal::open`], over anything that stores bytes.
    pub fn with_backend(backend: impl StorageBackend) -> Result<Self, StoreError> {
        let database = builder().create_with_backend(backend).map_err(failed)?;
        Self::begin(database)
    }

    fn begin(database: Database) -> Result<Self, StoreError> {
        let mut journal = Journal(database);
        journal.write(|_| Ok(()))?;
        Ok(journal)
    }

    /// One transaction: on disk, or as if it had never been.
    fn write(
        &mut self,
        change: impl FnOnce(&WriteTransaction) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let transaction = self.0.begin_write().map_err(failed)?;
        for table in [EVENTS, SNAPSHOT] {
            transaction.open_table(table).map_err(failed)?;
        }
        change(&transaction)?;
        transaction.commit().map_err(failed)
    }
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
        let transaction = self.0.begin_read().map_err(failed)?;
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
        for (expected, row) in
            (base.saturating_add(1)..).zip(events.range(base.saturating_add(1)..).map_err(failed)?)
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
