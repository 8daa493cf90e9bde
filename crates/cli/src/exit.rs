//! Exit codes.

/// How a call ended, the worst last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Exit {
    /// Everything fits on the GPUs as asked, or was done.
    Fits = 0,
    /// Something does not fit, or in part.
    DoesNotFit = 1,
    /// An error: a line on standard error says which.
    Error = 2,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> std::process::ExitCode {
        std::process::ExitCode::from(exit as u8)
    }
}
