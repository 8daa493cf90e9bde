//! Two pieces of work at once.

use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

/// The process that started the pool of threads; no process has number 0.
static POOL_OF: AtomicU32 = AtomicU32::new(0);

/// Does both, at once where that is possible. The child of a fork has its parent's pool of threads, but none of the
/// threads, and would wait for them for ever: there it is one after the other.
pub(crate) fn both<A, B>(a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B + Send) -> (A, B)
where
    A: Send,
    B: Send,
{
    let here = process::id();
    let first = POOL_OF.compare_exchange(0, here, Ordering::Relaxed, Ordering::Relaxed);
    match first.is_ok() || first == Err(here) {
        true => rayon::join(a, b),
        false => (a(), b()),
    }
}
