//! Whose a ledger is: a child of `fork()` has a copy of all that its parent knew, and would promise it a second time.

use crate::StoreError;

/// The process that opened a ledger or a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner(u32);

impl Owner {
    pub fn this() -> Owner {
        Owner(std::process::id())
    }

    /// [`StoreError::AnotherProcess`] anywhere else.
    pub fn check(self) -> Result<(), StoreError> {
        match self == Owner::this() {
            true => Ok(()),
            false => Err(StoreError::AnotherProcess(self.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_process_is_told_whose_it_is() {
        assert!(Owner::this().check().is_ok());
        let other = Owner(std::process::id().wrapping_add(1));
        assert!(matches!(other.check(), Err(StoreError::AnotherProcess(id)) if id == other.0));
    }
}
