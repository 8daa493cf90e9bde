//! Whose a ledger is: a child of `fork()` has a copy of all that its parent knew, and would promise it a second time.

use crate::StoreError;
use std::sync::atomic::{AtomicU64, Ordering};

/// By how many forks this process is away from the one that first opened a ledger.
static FORKS: AtomicU64 = AtomicU64::new(0);

/// The process that opened a ledger or a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    process: u32,
    forks: Option<u64>,
}

impl Owner {
    pub fn this() -> Owner {
        Owner {
            process: std::process::id(),
            forks: is_counted().then(|| FORKS.load(Ordering::Relaxed)),
        }
    }

    /// [`StoreError::AnotherProcess`] anywhere else. Costs nothing beside a reservation, as a system call would.
    pub fn check(self) -> Result<(), StoreError> {
        match self.forks {
            Some(forks) if forks == FORKS.load(Ordering::Relaxed) => Ok(()),
            Some(_) => Err(StoreError::AnotherProcess(self.process)),
            None => self.check_process(),
        }
    }

    /// The same by the system's word: where a process was copied by other means than `fork()`, too.
    pub fn check_process(self) -> Result<(), StoreError> {
        match self.process == std::process::id() {
            true => Ok(()),
            false => Err(StoreError::AnotherProcess(self.process)),
        }
    }
}

/// Whether forks are counted.
#[cfg(unix)]
fn is_counted() -> bool {
    use std::ffi::c_int;
    use std::sync::OnceLock;

    type Hook = Option<extern "C" fn()>;
    // SAFETY: as POSIX declares it. It keeps the function that it is given, which may run in a child of `fork()` with
    // threads beside it: it changes one atomic number.
    unsafe extern "C" {
        safe fn pthread_atfork(prepare: Hook, parent: Hook, child: Hook) -> c_int;
    }
    extern "C" fn in_a_child() {
        FORKS.fetch_add(1, Ordering::Relaxed);
    }
    static IS_COUNTED: OnceLock<bool> = OnceLock::new();
    *IS_COUNTED.get_or_init(|| pthread_atfork(None, None, Some(in_a_child)) == 0)
}

/// There is no `fork()`.
#[cfg(not(unix))]
fn is_counted() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_process_is_told_whose_it_is() {
        let this = Owner::this();
        assert!(this.forks.is_some());
        assert!(this.check().is_ok() && this.check_process().is_ok());
        let process = std::process::id().wrapping_add(1);
        let others = [
            Owner { process, ..this },
            Owner {
                process,
                forks: None,
            },
        ];
        for other in others {
            let refused = other.check_process();
            assert!(matches!(refused, Err(StoreError::AnotherProcess(id)) if id == process));
        }
        assert!(others[1].check().is_err());
        let forks = Some(FORKS.load(Ordering::Relaxed) + 1);
        assert!(Owner { forks, ..this }.check().is_err());
    }
}
