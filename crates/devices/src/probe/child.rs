//! The parent's side: a probe in a process of its own, with a time limit.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use super::Probe;
use super::answer::{
    ANSWER_START, Answer, CHILD_ARGUMENT, CHILD_VARIABLE, Outcome, PROTOCOL, WITH_CONTEXT,
};
use super::error::ProbeError;
use super::machine::Machine;

/// How long a driver is waited for unless said otherwise. Without its persistence daemon a driver starts every GPU
/// anew, which takes seconds on machines with many.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(20);

/// The most that is read of a child's standard output, bytes: 64 devices with a thousand processes each.
const MOST_OUTPUT: u64 = 8 << 20;
/// The most of its standard error that is kept.
const MOST_ERRORS: u64 = 4 << 10;
/// How long a killed child is waited for, and one that has closed its output: on a busy machine it takes its time. A
/// process that is stuck in the kernel does not end at all.
const PATIENCE: Duration = Duration::from_secs(2);

/// A probe in a process of its own: a driver that hangs, crashes or takes memory does so there. The process is
/// killed when its time is up, and dies with its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildProbe {
    program: PathBuf,
    timeout: Duration,
    make_context: bool,
    variables: Vec<(String, String)>,
}

impl ChildProbe {
    /// Asks through `program`, whose `main` has to begin with [`answer_probe`](super::answer_probe); `estimate`'s does.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            timeout: DEFAULT_TIMEOUT,
            make_context: false,
            variables: Vec::new(),
        }
    }

    /// Asks through another process of the running program, see [`new`](Self::new).
    pub fn this_program() -> Result<Self, ProbeError> {
        match std::env::current_exe() {
            Ok(program) => Ok(Self::new(program)),
            Err(error) => Err(ProbeError::Process(format!("cannot be found: {error}"))),
        }
    }

    /// How long the driver may take; [`DEFAULT_TIMEOUT`] unless said.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Where NVML does not say what is free, asks CUDA from inside a context that is made for it. It takes
    /// some hundred MB of the device for that time.
    pub fn make_context(mut self, make_context: bool) -> Self {
        self.make_context = make_context;
        self
    }

    /// An environment variable for the process, beside those of this one: `CUDA_VISIBLE_DEVICES`, say.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    fn start(&self) -> Result<Running, ProbeError> {
        let mut command = Command::new(&self.program);
        command
            .arg(CHILD_ARGUMENT)
            .arg(std::process::id().to_string())
            .args(self.make_context.then_some(WITH_CONTEXT))
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .env(CHILD_VARIABLE, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let failed = |error: std::io::Error| {
            let program = self.program.display();
            ProbeError::Process(format!("({program}) cannot be started: {error}"))
        };
        let mut child = command.spawn().map_err(failed)?;
        Ok(Running {
            stdin: child.stdin.take(),
            child,
        })
    }
}

impl Probe for ChildProbe {
    fn machine(&self) -> Result<Machine, ProbeError> {
        if std::env::var_os(CHILD_VARIABLE).is_some() {
            return Err(ProbeError::Process(
                "was to be started by a probe's own process: the program does not begin with answer_probe"
                    .to_owned(),
            ));
        }
        let start = Instant::now();
        let mut running = self.start()?;
        let (sender, events) = mpsc::channel();
        if let Some(out) = running.child.stdout.take() {
            let sender = sender.clone();
            spawn("probe", move || read_answer(out, &sender))?;
        }
        if let Some(err) = running.child.stderr.take() {
            spawn("probe errors", move || read_errors(err, &sender))?;
        }
        let mut errors = String::new();
        let said = loop {
            let left = self.timeout.saturating_sub(start.elapsed());
            match events.recv_timeout(left) {
                Ok(Event::Errors(text)) => errors = text,
                Ok(Event::Answer(line)) => break Some(line),
                Ok(Event::TooMuch) => {
                    return Err(ProbeError::Process("prints without end".to_owned()));
                }
                Ok(Event::Nothing) => break None,
                Err(RecvTimeoutError::Disconnected) => break None,
                Err(RecvTimeoutError::Timeout) => {
                    let after_ms = u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX);
                    let is_stuck = running.end().is_none();
                    return Err(ProbeError::TimedOut { after_ms, is_stuck });
                }
            }
        };
        match said {
            Some(line) => read(&line),
            None => Err(running.ended_silently(errors, &events)),
        }
    }
}

fn read(line: &str) -> Result<Machine, ProbeError> {
    let wrong = |why: &str| ProbeError::Process(format!("gives an answer that is none: {why}"));
    if let Some(version) = other_version(line) {
        return Err(ProbeError::Process(format!(
            "is of another version of vramfit: it speaks version {version} of the probe's protocol, this \
             program {PROTOCOL}"
        )));
    }
    let answer = serde_json::from_str::<Answer>(line);
    let answer = answer.map_err(|error| wrong(&error.to_string()))?;
    match answer.outcome {
        Outcome::Machine(machine) => machine.checked().map_err(|why| wrong(&why)),
        Outcome::Error(error) => Err(error),
    }
}

fn other_version(line: &str) -> Option<u32> {
    let digits = line.strip_prefix(ANSWER_START)?;
    let end = digits.find(|c: char| !c.is_ascii_digit())?;
    let version = digits.get(..end)?.parse().ok()?;
    (version != PROTOCOL).then_some(version)
}

/// What the child's pipes bring.
enum Event {
    /// The line.
    Answer(String),
    /// Its standard output has ended without one.
    Nothing,
    /// More than can be meant.
    TooMuch,
    /// The end of its standard error.
    Errors(String),
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), ProbeError> {
    // Not waited for: a process that cannot be killed may hold its pipes open for ever.
    match thread::Builder::new().name(name.to_owned()).spawn(work) {
        Ok(_) => Ok(()),
        Err(error) => Err(ProbeError::Process(format!(
            "cannot be listened to: {error}"
        ))),
    }
}

/// Up to the line with the answer, past whatever a driver's library prints. Nobody may be listening any more.
fn read_answer(out: ChildStdout, to: &Sender<Event>) {
    let mut out = BufReader::new(out.take(MOST_OUTPUT));
    let mut line = Vec::new();
    loop {
        line.clear();
        let event = match out.read_until(b'\n', &mut line) {
            Err(_) | Ok(0) if out.get_ref().limit() == 0 => Event::TooMuch,
            Err(_) | Ok(0) => Event::Nothing,
            Ok(_) if line.starts_with(ANSWER_START.as_bytes()) && line.ends_with(b"\n") => {
                Event::Answer(String::from_utf8_lossy(&line).into_owned())
            }
            Ok(_) => continue,
        };
        let _ = to.send(event);
        return;
    }
}

/// The first few KiB; the rest is read too, so that the child does not wait.
fn read_errors(mut err: ChildStderr, to: &Sender<Event>) {
    let mut text = Vec::new();
    let _ = (&mut err).take(MOST_ERRORS).read_to_end(&mut text);
    let _ = to.send(Event::Errors(String::from_utf8_lossy(&text).into_owned()));
    let _ = std::io::copy(&mut err, &mut std::io::sink());
}

/// A child that is killed and reaped when it is let go of.
struct Running {
    child: Child,
    /// Held open, since its end tells the child that its parent is gone.
    stdin: Option<ChildStdin>,
}

impl Running {
    /// Kills it. `None` if it does not end.
    fn end(&mut self) -> Option<ExitStatus> {
        let _ = self.child.kill();
        self.wait()
    }

    fn wait(&mut self) -> Option<ExitStatus> {
        let start = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if start.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(2)),
                _ => return None,
            }
        }
    }

    /// What to say of a child that has closed its output without an answer.
    fn ended_silently(&mut self, mut errors: String, events: &mpsc::Receiver<Event>) -> ProbeError {
        let status = match self.wait() {
            Some(status) => ended(status),
            None => "closes its output".to_owned(),
        };
        if errors.is_empty()
            && let Ok(Event::Errors(text)) = events.recv_timeout(PATIENCE)
        {
            errors = text;
        }
        let last = errors.lines().rfind(|line| !line.trim().is_empty());
        let said = last.map_or(String::new(), |line| {
            format!(" ({})", printable(line.trim()))
        });
        ProbeError::Process(format!("{status} without an answer{said}"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stdin = None;
        self.end();
    }
}

/// `ends with exit code 1`, `is ended by signal 11`.
fn ended(status: ExitStatus) -> String {
    #[cfg(unix)]
    {
        use std::os::unix::process::ExitStatusExt;
        if let Some(signal) = status.signal() {
            return format!("is ended by signal {signal}");
        }
    }
    match status.code() {
        Some(code) => format!("ends with exit code {code}"),
        None => "ends".to_owned(),
    }
}

/// One line that a terminal can show.
fn printable(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(200).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause(line: &str) -> String {
        read(line).unwrap_err().cause()
    }

    #[test]
    fn an_answer_that_is_none_is_said_to_be_none() {
        let none = cause("{\"vramfit_probe\":1,\"machine\":{}}\n");
        assert!(none.contains("gives an answer that is none"), "{none}");
        let other = cause("{\"vramfit_probe\":2,\"world\":{}}\n");
        assert!(other.contains("speaks version 2"), "{other}");
        let error = cause("{\"vramfit_probe\":1,\"error\":{\"kind\":\"unavailable\"}}\n");
        assert!(error.contains("cannot look"), "{error}");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let probe = ChildProbe::new("/no/such/program");
        let cause = probe.machine().unwrap_err().cause();
        assert!(
            cause.contains("(/no/such/program) cannot be started"),
            "{cause}"
        );
    }
}
