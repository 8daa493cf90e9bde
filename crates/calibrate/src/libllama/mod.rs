//! A process that is an engine of its own: it loads a shared libllama of the modelled build, computes a full prompt and some
//! tokens with the planned settings, and says so. `engine::library` starts it, below the holder of every engine.

mod api;
mod run;
mod settings;

use std::ffi::OsString;
use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// First argument of the process; the second is its [`Job`].
pub const CHILD_ARGUMENT: &str = "__calibrate-libllama";

/// What it is to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Job {
    /// The library's file.
    pub library: String,
    /// The model's.
    pub model: String,
    /// llama-server's flags.
    pub flags: Vec<String>,
    /// Tokens that each sequence's prompt may have.
    pub prompt_tokens: u64,
    /// How long it stays when it has computed, ms.
    pub linger_ms: u64,
}

/// What it says when it has computed, in a line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Done {
    /// `llama_version()`.
    pub version: String,
    /// The CUDA whose runtime it has loaded.
    pub cuda: Option<u32>,
    /// Tokens that each sequence's prompt had.
    pub prompt_tokens: u64,
}

/// The process's whole life.
pub fn child(mut arguments: impl Iterator<Item = OsString>) -> ! {
    let job = arguments.next().unwrap_or_default();
    let job: Result<Job, String> =
        serde_json::from_str(&job.to_string_lossy()).map_err(|error| error.to_string());
    let linger = |job: &Job| thread::sleep(Duration::from_millis(job.linger_ms));
    let ran = job.and_then(|job| {
        let done = run::run(&job)?;
        say(&done);
        linger(&job);
        Ok(())
    });
    // Everything goes back to the driver with the process: no library is let go of that may hang in its end.
    std::process::exit(match ran {
        Ok(()) => 0,
        Err(reason) => {
            eprintln!("libllama: {reason}");
            1
        }
    });
}

fn say(done: &Done) {
    if let Ok(line) = serde_json::to_string(done) {
        let mut out = io::stdout();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}
