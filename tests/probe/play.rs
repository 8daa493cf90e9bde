//! `estimate` on imaginary GPUs.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use serde_json::Value;
use vramfit_vgpu::Install;

pub use crate::command::{Answer, answer};

pub const MIB: u64 = 1 << 20;

/// A machine with imaginary GPUs.
pub struct Machine {
    install: Install,
    gpus: String,
    environment: Vec<(String, String)>,
}

impl Machine {
    pub fn new(gpus: &str) -> Machine {
        Machine {
            install: Install::new().unwrap(),
            gpus: gpus.to_string(),
            environment: Vec::new(),
        }
    }

    pub fn env(mut self, name: &str, value: impl AsRef<Path>) -> Machine {
        let value = value.as_ref().to_str().unwrap().to_string();
        self.environment.push((name.to_string(), value));
        self
    }

    pub fn play<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        self.install.play(command, &self.gpus);
        // What the linker has anyway is no part of the imaginary machine.
        command.env("LD_LIBRARY_PATH", self.install.folder());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)))
    }

    /// Without one of the libraries.
    pub fn without(self, library: &str) -> Machine {
        std::fs::remove_file(self.install.folder().join(library)).unwrap();
        self
    }

    pub fn estimate(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_estimate"));
        command.env_clear();
        self.play(&mut command).args(arguments);
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Answer {
        answer(&mut self.estimate(arguments))
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        let answer = self.run(arguments);
        assert_eq!(answer.err, "", "{arguments:?}");
        serde_json::from_str(&answer.out).unwrap_or_else(|e| panic!("{e}: {}", answer.out))
    }

    /// `machine` of `estimate gpus`, with more flags.
    pub fn probe_with(&self, flags: &[&str]) -> Value {
        let mut arguments = vec!["gpus", "--here", "--json"];
        arguments.extend(flags);
        self.json(&arguments)["machine"].take()
    }

    pub fn probe(&self) -> Value {
        self.probe_with(&[])
    }

    /// The line that `estimate gpus --here` ends with, on standard error.
    pub fn refusal(&self, flags: &[&str]) -> String {
        let mut arguments = vec!["gpus", "--here"];
        arguments.extend(flags);
        let answer = self.run(&arguments);
        assert_eq!(
            (answer.code, answer.out.as_str()),
            (2, ""),
            "{}",
            answer.err
        );
        assert_eq!(answer.err.lines().count(), 1, "{}", answer.err);
        answer.err
    }
}

/// A field of each device.
pub fn each(machine: &Value, field: &str) -> Vec<Value> {
    let devices = machine["devices"].as_array().unwrap().iter();
    devices.map(|device| device[field].clone()).collect()
}

/// The kinds of a machine's notes.
pub fn notes(machine: &Value) -> Vec<&str> {
    let notes = machine["notes"].as_array().unwrap().iter();
    notes.map(|note| note["kind"].as_str().unwrap()).collect()
}

pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures")
        .join(path)
}

/// A process that has a context on the first GPU, and memory there.
pub struct Taker {
    child: Child,
    _stdin: ChildStdin,
}

const TAKES: &str = "PROBE_TEST_TAKES";

impl Taker {
    pub fn start(machine: &Machine, bytes: u64) -> Taker {
        let mut command = Command::new(std::env::current_exe().unwrap());
        machine.play(&mut command);
        let mut child = command
            .args(["play::taker", "--exact", "--ignored", "--nocapture"])
            .env(TAKES, bytes.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("has taken")));
        Taker {
            child,
            _stdin: stdin,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test: what [`Taker`] starts.
#[test]
#[ignore = "a process of other tests"]
fn taker() {
    type Code = std::ffi::c_int;
    let Ok(bytes) = std::env::var(TAKES) else {
        return;
    };
    let mut pointer = 0u64;
    let mut context = std::ptr::null_mut::<u8>();
    // SAFETY: the types are those of cuda.h.
    unsafe {
        let cuda = libloading::Library::new("libcuda.so.1").unwrap();
        let init = cuda.get::<unsafe extern "C" fn(u32) -> Code>(b"cuInit");
        assert_eq!(init.unwrap()(0), 0);
        let retain = cuda
            .get::<unsafe extern "C" fn(*mut *mut u8, Code) -> Code>(b"cuDevicePrimaryCtxRetain");
        assert_eq!(retain.unwrap()(&mut context, 0), 0);
        let set = cuda.get::<unsafe extern "C" fn(*mut u8) -> Code>(b"cuCtxSetCurrent");
        assert_eq!(set.unwrap()(context), 0);
        let take = cuda.get::<unsafe extern "C" fn(*mut u64, usize) -> Code>(b"cuMemAlloc_v2");
        assert_eq!(take.unwrap()(&mut pointer, bytes.parse().unwrap()), 0);
    }
    println!("has taken");
    let mut end = String::new();
    std::io::stdin().read_line(&mut end).unwrap();
}
