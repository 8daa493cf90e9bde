//! A journal in a file is one machine's. What it has promised under other names than the server's may be on the same
//! GPUs, and would be promised again.

use vramfit::GpuList;
use vramfit::ledger::{GpuId, ReservationId, State, Store, StoreError};
use vramfit::report::one_line;

/// Reservations that the server would not know for those of its own GPUs. Displays on one line and says what to do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unknown {
    /// Of a host with another name.
    #[error(
        "{} on {}, a GPU of host {}, and this server's host is {}: start it with that --host-name, or, where that is \
         another machine, with a --ledger of its own", held(*first, *count), one_line(gpu.gpu().as_str()),
         one_line(gpu.host().as_str()), one_line(host)
    )]
    Host {
        /// The oldest of them.
        first: ReservationId,
        /// How many there are.
        count: usize,
        /// Where that one is.
        gpu: GpuId,
        /// The server's.
        host: String,
    },
    /// Of GPUs that went by their own names where they now go by indices, or the other way round.
    #[error(
        "{} on {}, and --gpus gives {}, which may be the same GPU by another name: start it with --gpus as before, \
         or, when nothing is loaded any more, with another --ledger", held(*first, *count),
         one_line(gpu.gpu().as_str()), one_line(given)
    )]
    Gpus {
        /// The oldest of them.
        first: ReservationId,
        /// How many there are.
        count: usize,
        /// Where that one is.
        gpu: GpuId,
        /// One of the server's.
        given: String,
    },
}

fn held(first: ReservationId, count: usize) -> String {
    match count {
        1 => format!("reservation {} is", first.0),
        n => format!("{n} reservations, the oldest number {}, are", first.0),
    }
}

/// Whether all that is reserved in `store` is on GPUs that the server of `host` with these names of GPUs knows, or that
/// are none of its own: a card that has gone keeps its reservations. Writes nothing.
pub fn check<S: Store>(
    store: &mut S,
    host: &str,
    ids: &[String],
) -> Result<Option<Unknown>, StoreError> {
    let state = read(store)?;
    let is_of = |gpu: &GpuId| gpu.host().as_str() == host;
    if let Some((first, gpu, count)) = oldest(&state, |gpu| !is_of(gpu)) {
        let host = host.to_string();
        return Ok(Some(Unknown::Host {
            first,
            count,
            gpu,
            host,
        }));
    }
    let other_kind = |gpu: &GpuId| {
        let name = gpu.gpu().as_str();
        let is_given = ids.iter().any(|id| id == name);
        let mut others = ids.iter().filter(|id| is_index(id) != is_index(name));
        others.next().filter(|_| !is_given)
    };
    let found = oldest(&state, |gpu| other_kind(gpu).is_some());
    Ok(found.and_then(|(first, gpu, count)| {
        let given = other_kind(&gpu)?.clone();
        Some(Unknown::Gpus {
            first,
            count,
            gpu,
            given,
        })
    }))
}

/// The oldest reservation with bytes on such a GPU, which, and how many reservations have.
fn oldest(
    state: &State,
    is_such: impl Fn(&GpuId) -> bool,
) -> Option<(ReservationId, GpuId, usize)> {
    let on_such = state.reservations().filter_map(|r| {
        let share = r.shares.iter().find(|share| is_such(&share.gpu))?;
        Some((r.id, share.gpu.clone()))
    });
    let mut on_such = on_such.peekable();
    let (id, gpu) = on_such.peek()?.clone();
    Some((id, gpu, on_such.count()))
}

fn read<S: Store>(store: &mut S) -> Result<State, StoreError> {
    let tail = store.read(0)?;
    let mut state = match tail.snapshot {
        Some((seq, events)) => State::from_snapshot(seq, events)?,
        None => State::default(),
    };
    for event in tail.events {
        state.apply(event)?;
    }
    Ok(state)
}

/// Whether a GPU goes by its index: `CUDA0`.
fn is_index(id: &str) -> bool {
    let index = id.strip_prefix("CUDA").and_then(|n| n.parse().ok());
    index.is_some_and(|index| GpuList::id(index) == id)
}
