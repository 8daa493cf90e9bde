//! The child's side: the process that asks the driver and tells its parent, and never outlives it.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::thread;

use serde::{Deserialize, Serialize};

use super::Probe;
use super::error::ProbeError;
use super::look::DriverProbe;
use super::machine::Machine;

/// The first argument of a process that is a probe's child, which no program would take for one of its own.
pub(super) const CHILD_ARGUMENT: &str = "--vramfit-probe-child";
/// Set in a child, so that a program that does not answer cannot start children without end.
pub(super) const CHILD_VARIABLE: &str = "VRAMFIT_PROBE_CHILD";
/// Both sides have to be of the same version.
pub(super) const PROTOCOL: u32 = 1;
/// What follows [`CHILD_ARGUMENT`] and the parent's process id to have contexts made.
pub(super) const WITH_CONTEXT: &str = "context";
/// How the answer's one line starts; a driver's library may print lines of its own.
pub(super) const ANSWER_START: &str = "{\"vramfit_probe\":";

/// The answer: one line on standard output.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Answer {
    /// [`PROTOCOL`].
    pub(super) vramfit_probe: u32,
    #[serde(flatten)]
    pub(super) outcome: Outcome,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    Machine(Machine),
    Error(ProbeError),
}

/// To be called first in `main` by a program that [`ChildProbe`](super::ChildProbe) may start. In a process that it
/// has started, this asks the driver, tells the parent and ends the process; in any other it returns at once.
pub fn answer_probe() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments
        .next()
        .is_some_and(|first| first == CHILD_ARGUMENT)
    {
        // The driver's own clean-up at exit could hang: the parent does not wait for it.
        let code = answer(arguments);
        std::process::exit(if code == ExitCode::SUCCESS { 0 } else { 2 });
    }
}

fn answer(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let parent = arguments.next();
    let parent = parent.and_then(|text| text.to_str()?.parse::<i32>().ok());
    let Some(parent) = parent else {
        return ExitCode::FAILURE;
    };
    if !end_with_parent(parent) {
        return ExitCode::FAILURE;
    }
    let make_context = arguments.next().is_some_and(|word| word == WITH_CONTEXT);
    let outcome = match (DriverProbe { make_context }).machine() {
        Ok(machine) => Outcome::Machine(machine),
        Err(error) => Outcome::Error(error),
    };
    let answer = Answer {
        vramfit_probe: PROTOCOL,
        outcome,
    };
    match write(&answer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn write(answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    // What a library has printed without an end of line is not part of ours.
    line.insert(0, b'\n');
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    out.flush()
}

/// Has this process killed when its parent goes, by SIGKILL or otherwise: by the kernel where it offers that, and by
/// standard input, a pipe that ends when the last process that holds its other side does. False if the parent is
/// gone already.
fn end_with_parent(parent: i32) -> bool {
    let watching = thread::Builder::new().name("parent".to_owned()).spawn(|| {
        // Nothing is ever sent.
        let _ = io::copy(&mut io::stdin().lock().take(u64::MAX), &mut io::sink());
        end_now();
    });
    watching.is_ok() && ask_kernel(parent)
}

#[cfg(target_os = "linux")]
fn ask_kernel(parent: i32) -> bool {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    // An old or strange kernel may refuse: then the pipe has to do.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    // It may have died before the call above.
    getppid().is_some_and(|now| now.as_raw_nonzero().get() == parent)
}

#[cfg(not(target_os = "linux"))]
fn ask_kernel(_parent: i32) -> bool {
    true
}

/// Without the handlers of a normal exit, which may wait for a driver that hangs.
fn end_now() {
    #[cfg(unix)]
    {
        use rustix::process::{Signal, getpid, kill_process};
        let _ = kill_process(getpid(), Signal::KILL);
    }
    std::process::abort();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_one_line_that_starts_as_said() {
        for outcome in [
            Outcome::Machine(Machine::default()),
            Outcome::Error(ProbeError::Unavailable),
        ] {
            let answer = Answer {
                vramfit_probe: PROTOCOL,
                outcome,
            };
            let line = serde_json::to_string(&answer).unwrap();
            assert!(line.starts_with(ANSWER_START), "{line}");
            assert!(!line.contains('\n'), "{line}");
            serde_json::from_str::<Answer>(&line).unwrap();
        }
    }
}
