//! A process that holds the engine and outlives nobody: this program again, between `estimate` and the engine.
//!
//! It waits for the end of its standard input, which comes however `estimate` ends, and then kills the engine and
//! everything that the engine has started: it is their subreaper, so that none escapes by its parent's death. Should
//! itself be killed, the kernel kills the engine (`PR_SET_PDEATHSIG`), and what the engine has started falls to
//! `estimate`, a subreaper too, which knows it by the holder's session, or by its environment, and kills it. Where both
//! are killed at once the kernel kills the engine; what an engine has started beside itself (llama-server starts nothing)
//! is left then.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::allocate::VISIBLE;
use crate::{Error, io, processes};

/// First argument of the process.
pub const CHILD_ARGUMENT: &str = "__calibrate-hold";

/// In the environment of the holder and of all that comes from it: which of this process's holders it is.
const MARK: &str = "VRAMFIT_HELD";
static HELD: AtomicU32 = AtomicU32::new(0);

const READY: &str = "started ";
const ENDED: &str = "ended ";
/// How long to wait for what was killed. A process that is stuck in the driver does not end at all.
const PATIENCE: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_millis(5);

/// An engine that is killed, with all that it started, when this value is dropped or this process ends.
pub struct Held {
    holder: Child,
    mark: String,
    stdin: Option<ChildStdin>,
    words: Receiver<String>,
    ended: Option<String>,
}

impl Held {
    /// Starts `program` with both of its outputs in `log` (`out` alone apart, where it is given), on the GPUs of
    /// `CUDA_VISIBLE_DEVICES` if they are others than this process's.
    pub fn start(
        program: &Path,
        arguments: &[OsString],
        log: &Path,
        out: Option<&Path>,
        visible: Option<&str>,
    ) -> Result<Held, Error> {
        let own = std::env::current_exe().map_err(io("this program cannot be found"))?;
        let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
        let number = HELD.fetch_add(1, Ordering::Relaxed);
        let mark = format!("{}-{number}", std::process::id());
        let mut holder = Command::new(own)
            .arg(CHILD_ARGUMENT)
            .arg(log)
            .arg(out.unwrap_or(log))
            .arg(program)
            .args(arguments)
            .env(MARK, &mark)
            .envs(visible.map(|list| (VISIBLE, list)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(io("the engine's holder"))?;
        let stdin = holder.stdin.take();
        let (to, words) = mpsc::channel();
        if let Some(out) = holder.stdout.take() {
            thread::spawn(move || {
                let lines = BufReader::new(out).lines();
                for line in lines.map_while(Result::ok) {
                    if to.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        let mut held = Held {
            holder,
            mark: format!("{MARK}={mark}"),
            stdin,
            words,
            ended: None,
        };
        match held.words.recv_timeout(PATIENCE) {
            Ok(word) if word.starts_with(READY) => Ok(held),
            Ok(word) => {
                let reason = word.strip_prefix(ENDED).unwrap_or(&word).to_string();
                held.stop();
                Err(Error::Engine(format!("{}: {reason}", program.display())))
            }
            Err(_) => {
                held.stop();
                Err(Error::Engine(format!(
                    "{} cannot be started",
                    program.display()
                )))
            }
        }
    }

    /// The process below which the engine runs.
    pub fn root(&self) -> u32 {
        self.holder.id()
    }

    /// How the engine ended, if it has; waits no longer than `time`.
    pub fn ended(&mut self, time: Duration) -> Option<&str> {
        if self.ended.is_none() {
            match self.words.recv_timeout(time) {
                Ok(word) => {
                    self.ended = Some(word.strip_prefix(ENDED).unwrap_or(&word).to_string());
                }
                Err(mpsc::RecvTimeoutError::Timeout) => (),
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    self.ended = Some("its holder is gone".to_string());
                }
            }
        }
        self.ended.as_deref()
    }

    fn stop(&mut self) {
        drop(self.stdin.take());
        let _ = processes::wait_for(&mut self.holder, PATIENCE);
        let _ = self.holder.kill();
        // What a killed holder leaves. Its id is nobody else's while its session has a process.
        let id = self.holder.id();
        kill_until_gone(|| processes::left_by(id, &self.mark));
        let _ = self.holder.try_wait();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The holder's whole life: `LOG OUT PROGRAM ARGUMENT..`.
pub fn child(arguments: Vec<OsString>) -> ! {
    // A session of its own: what a terminal sends to everybody (Ctrl-C) is not for it.
    let _ = rustix::process::setsid();
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    let mut engine = match start(&arguments) {
        Ok(engine) => engine,
        Err(error) => {
            say(&format!("{ENDED}{error}"));
            std::process::exit(1);
        }
    };
    thread::spawn(|| {
        // Nothing is ever sent: this returns when the other end is closed, by whatever.
        let _ = io::stdin().read_to_end(&mut Vec::new());
        kill_all();
        std::process::exit(0);
    });
    say(&format!("{READY}{}", engine.id()));
    let ended = engine.wait();
    kill_all();
    say(&match ended {
        Ok(status) => format!("{ENDED}{}", in_words(status)),
        Err(error) => format!("{ENDED}{error}"),
    });
    std::process::exit(0);
}

fn say(words: &str) {
    let mut out = io::stdout();
    let _ = writeln!(out, "{words}").and_then(|()| out.flush());
}

fn start(arguments: &[OsString]) -> io::Result<Child> {
    let [log, out, program, arguments @ ..] = arguments else {
        return Err(io::Error::other("no program"));
    };
    let errors = File::create(log)?;
    let output = if out == log {
        errors.try_clone()?
    } else {
        File::create(out)?
    };
    let holder = rustix::process::getpid();
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors);
    for (name, _) in std::env::vars_os() {
        if is_setting(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
    let dies_with_holder = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // It may have died before that was said.
        match rustix::process::getppid() == Some(holder) {
            true => Ok(()),
            false => Err(io::Error::other("the holder is gone")),
        }
    };
    // SAFETY: two system calls between fork and exec, no allocation and no lock.
    unsafe { command.pre_exec(dies_with_holder) };
    command.spawn()
}

/// Of llama.cpp or ggml: the plan is for none but its own flags (`GGML_CUDA_CUBLAS_COMPUTE_TYPE`, to name one, changes the
/// pool). Where ggml finds its backends is none of a plan's.
fn is_setting(variable: &str) -> bool {
    let of_engine = ["LLAMA_", "GGML_"]
        .iter()
        .any(|of| variable.starts_with(of));
    of_engine && variable != "GGML_BACKEND_PATH"
}

/// Kills everything below this process.
fn kill_all() {
    let own = std::process::id();
    kill_until_gone(|| {
        let mut below = processes::tree(own);
        below.remove(&own);
        below
    });
}

/// Until nothing is left or nothing more can be done.
fn kill_until_gone(left: impl Fn() -> BTreeSet<u32>) {
    let mut was_empty = false;
    for _ in 0..PATIENCE.as_millis() / STEP.as_millis() {
        let left = left();
        // One look alone can miss a process whose parent ends while it looks.
        if was_empty && left.is_empty() {
            return;
        }
        was_empty = left.is_empty();
        for pid in left {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        thread::sleep(STEP);
    }
}

fn in_words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("with exit code {code}"),
        (_, Some(signal)) => format!("by signal {signal}"),
        _ => "somehow".to_string(),
    }
}
