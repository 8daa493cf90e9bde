//! The kit: setup.sh builds the engine and its imaginary GPUs, the script `oracle` runs them. This file only calls both.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use serde_json::Value;
use vramfit_arch::Model;
use vramfit_gguf::{DataState, Header};

use crate::adapters;
use crate::common::adapters::Rule;
use crate::error::{Context, Error, Result};
use crate::models::make_one_sparse;

fn kit() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kit")
}

/// Fetches and builds what the kit needs; the arguments go to setup.sh. Returns its exit code. The imaginary CUDA
/// libraries are those that cargo built with this program.
pub fn setup(args: &[OsString]) -> Result<i32> {
    let library = vramfit_vgpu::Install::library().context("the imaginary CUDA libraries")?;
    let mut command = Command::new(kit().join("setup.sh"));
    pass_through(command.args(args).env("VGPU_LIBRARY", library), "setup.sh")
}

/// Runs the kit's driver with these arguments, on this terminal. Returns its exit code. A header-only model, which
/// the engine would call cut short, is replaced by a copy with a hole for the tensor data.
pub fn run(args: &[OsString]) -> Result<i32> {
    let folder = tempfile::tempdir().context("a temporary folder")?;
    let mut args = args.to_vec();
    make_adapters(&mut args, folder.path())?;
    for arg in &mut args {
        let path = Path::new(arg);
        let header_only = path.extension().is_some_and(|e| e == "gguf")
            && Header::open(path)
                .is_ok_and(|h| h.data_state() != DataState::Complete && h.parts() == 1);
        if let (true, Some(name)) = (header_only, path.file_name()) {
            let copy = folder.path().join(name);
            let bytes = Header::open(path).context(path.display())?.file_bytes();
            make_one_sparse(path, &copy, bytes)?;
            *arg = copy.into();
        }
    }
    pass_through(Command::new(kit().join("oracle")).args(args), "oracle")
}

/// Makes the adapters that are given by rule: `--lora rank=16,type=f16,targets=attn`.
fn make_adapters(args: &mut [OsString], folder: &Path) -> Result<()> {
    let Some(path) = args.first().map(PathBuf::from) else {
        return Ok(());
    };
    for arg in args.iter_mut().skip(1) {
        let Some(rule) = arg.to_str().and_then(Rule::read) else {
            continue;
        };
        let header = Header::open(&path).context(path.display())?;
        let model = Model::load(&header).context(path.display())?;
        *arg = adapters::make_adapter(&rule, &model, &folder.join("adapter"))?.into();
    }
    Ok(())
}

fn pass_through(command: &mut Command, name: &str) -> Result<i32> {
    let status = command.status().context(format!("kit/{name}"))?;
    Ok(status.code().unwrap_or(1))
}

/// The real engine, as built by `setup`.
pub struct Engine;

impl Engine {
    /// The driver, with the environment of this process cleared of what would change a result.
    fn command(&self) -> Command {
        let mut command = Command::new(kit().join("oracle"));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["VGPU", "GGML_", "LLAMA_", "CUDA_"]
                .iter()
                .any(|prefix| text.starts_with(prefix))
            {
                command.env_remove(&name);
            }
        }
        command
    }

    /// One run; its JSON. A refusal is an error with the end of the engine's log.
    pub fn ask(
        &self,
        environment: &[(&str, &str)],
        model: &Path,
        flags: &[String],
    ) -> Result<Value> {
        let mut command = self.command();
        command
            .envs(environment.iter().copied())
            .arg(model)
            .args(flags)
            .stdin(Stdio::null());
        let output = finished(&mut command, model)?;
        serde_json::from_slice(&output).context("the oracle's JSON")
    }

    /// The same, and what `vgpu` and the engine write to stderr.
    pub fn ask_traced(
        &self,
        environment: &[(&str, &str)],
        model: &Path,
        flags: &[&str],
    ) -> Result<(Value, String)> {
        let mut command = self.command();
        command
            .envs(environment.iter().copied())
            .env("VGPU_TRACE", "1")
            .arg(model)
            .args(flags)
            .stdin(Stdio::null());
        let output = command.output().context("kit/oracle")?;
        let trace = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            let last = trace.lines().last().unwrap_or_default();
            return Err(Error::new(format!("{}: {last}", output.status)));
        }
        let json = serde_json::from_slice(&output.stdout).context("the oracle's JSON")?;
        Ok((json, trace))
    }

    /// Name and shape of each tensor that a model with these keys has (`oracle --tensors`).
    pub fn tensors(
        &self,
        keys: &Path,
        with: &[String],
        without: &[String],
    ) -> Result<Vec<(String, Vec<i64>)>> {
        let mut command = self.command();
        command.arg("--tensors").arg(keys).stdin(Stdio::null());
        for (flag, names) in [("--with", with), ("--without", without)] {
            command.args(names.iter().flat_map(|name| [flag, name.as_str()]));
        }
        let output = String::from_utf8(finished(&mut command, keys)?).context("--tensors")?;
        let line = |line: &str| {
            let (name, shape) = line.split_once('\t')?;
            let ne: Option<_> = shape.split(',').map(|n| n.parse().ok()).collect();
            Some((name.to_owned(), ne?))
        };
        output
            .lines()
            .map(|text| line(text).context(format!("--tensors: {text}")))
            .collect()
    }

    /// What a multimodal projector takes (`oracle --mmproj`).
    pub fn projector(&self, gpu: &str, file: &Path, flags: &[&str]) -> Result<Value> {
        let mut command = self.command();
        command
            .env("VGPU", gpu)
            .arg("--mmproj")
            .arg(file)
            .args(flags)
            .stdin(Stdio::null());
        let output = finished(&mut command, file)?;
        serde_json::from_slice(&output).context("the JSON of --mmproj")
    }

    /// A process that answers job lines, one at a time.
    pub fn start_jobs(&self) -> Result<Jobs> {
        let mut command = self.command();
        command
            .args(["--jobs", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command.spawn().context("kit/oracle --jobs")?;
        let stdin = child.stdin.take().context("stdin")?;
        let lines = lines_of(child.stdout.take().context("stdout")?);
        let complaints = lines_of(child.stderr.take().context("stderr")?);
        Ok(Jobs {
            child,
            stdin,
            lines,
            complaints,
        })
    }
}

/// What a run that ends well writes to stdout.
fn finished(command: &mut Command, model: &Path) -> Result<Vec<u8>> {
    let output = command.output().context("kit/oracle")?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let log = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = log.lines().filter(|line| !line.is_empty()).collect();
    let why: Vec<&str> = lines
        .iter()
        .copied()
        .filter(|line| says_why(line) || line.contains("error loading model"))
        .collect();
    let why = match why[..] {
        [] => &lines[lines.len().saturating_sub(6)..],
        _ => &why[..],
    };
    let words = format!(
        "{}: {}: {}",
        model.display(),
        output.status,
        why.join(" | ")
    );
    Err(Error::new(words))
}

/// Whether a line is a failed assertion.
fn says_why(line: &str) -> bool {
    ["GGML_ASSERT", "GGML_ABORT", "fatal error"]
        .iter()
        .any(|word| line.contains(word))
}

fn lines_of(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stream)
            .split(b'\n')
            .map_while(std::io::Result::ok)
        {
            if sender
                .send(String::from_utf8_lossy(&line).into_owned())
                .is_err()
            {
                break;
            }
        }
    });
    lines
}

/// What came of one job.
pub enum Answer {
    /// The oracle's JSON line: a result, or `error` with `log_tail`.
    Json(Value),
    /// No answer in time, or the driver died.
    Lost(String),
}

/// A running `oracle --jobs -`.
pub struct Jobs {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    complaints: Receiver<String>,
}

impl Jobs {
    /// What the last job's process wrote to stderr that says why it died: a failed assertion, else its last line.
    pub fn last_words(&self) -> String {
        std::thread::sleep(Duration::from_millis(30)); // the reading thread may be a little behind
        let lines: Vec<String> = self.complaints.try_iter().collect();
        let telling = lines.iter().find(|line| says_why(line));
        let text = telling
            .or(lines.iter().rev().find(|line| !line.trim().is_empty()))
            .map_or("", String::as_str);
        // "/where/it/was/built/llama.cpp/src/x.cpp:1: GGML_ASSERT(..) failed": from the source tree on
        let text = text
            .find("llama.cpp/")
            .map_or(text, |at| &text[at + "llama.cpp/".len()..]);
        text.chars().take(160).collect()
    }

    /// Runs one job line. After `Lost` this process is of no more use.
    pub fn ask(&mut self, line: &str, limit: Duration) -> Answer {
        self.complaints.try_iter().for_each(drop);
        if let Err(error) = writeln!(self.stdin, "{line}").and_then(|()| self.stdin.flush()) {
            return Answer::Lost(format!("the driver is gone: {error}"));
        }
        match self.lines.recv_timeout(limit) {
            Ok(text) => serde_json::from_str(&text).map_or_else(
                |error| Answer::Lost(format!("bad JSON: {error}")),
                Answer::Json,
            ),
            Err(RecvTimeoutError::Timeout) => {
                Answer::Lost(format!("no answer in {} s", limit.as_secs()))
            }
            Err(RecvTimeoutError::Disconnected) => Answer::Lost("the driver ended".to_owned()),
        }
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        // The job itself is a child of the driver: end the whole group, which this process made.
        let group = format!("-{}", self.child.id());
        let _ = Command::new("kill")
            .args(["-KILL", "--", &group])
            .stderr(Stdio::null())
            .status();
        let _ = self.child.wait();
    }
}
