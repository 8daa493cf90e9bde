//! The planned buffers, taken on the real cards by a process of our own.

mod child;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use vramfit::devices::ROUNDING_BYTES;
use vramfit::estimate::BufferUse;
use vramfit::planner::{Owner, PlannedBuffer};

use crate::{Error, Expected, io, processes};

pub use child::child;

/// First argument of the process.
pub const CHILD_ARGUMENT: &str = "__calibrate-allocate";
/// Which of the machine's GPUs CUDA shows.
pub const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";
/// How long a killed process is waited for, and one that has closed its output.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Weights.
    Weights,
    /// A LoRA adapter, or a control vector.
    Adapter,
    /// A part of the caches, or of the recurrent state.
    Cache,
    /// Compute buffer.
    Compute,
    /// cuBLAS's workspace.
    Workspace,
    /// With `-sm tensor`: buffers through which devices add up their results.
    Reduce,
    /// ggml-cuda's pool.
    Pool,
}

/// Whose a buffer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Of {
    /// The model.
    #[default]
    Model,
    /// The draft.
    Draft,
    /// The multimodal projector.
    Projector,
}

impl From<Owner> for Of {
    fn from(owner: Owner) -> Of {
        match owner {
            Owner::Model => Of::Model,
            Owner::Draft => Of::Draft,
            Owner::Projector => Of::Projector,
        }
    }
}

/// A buffer to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// CUDA's index.
    pub device: usize,
    /// Whose.
    #[serde(default)]
    pub of: Of,
    /// What for.
    pub what: What,
    /// How much.
    pub bytes: u64,
}

impl Step {
    /// What `buffer` comes to on a card.
    pub fn of(buffer: &PlannedBuffer) -> Step {
        Step {
            device: buffer.device,
            of: buffer.owner.into(),
            what: match buffer.used_for {
                BufferUse::Weights => What::Weights,
                BufferUse::Lora | BufferUse::ControlVector => What::Adapter,
                BufferUse::Cache => What::Cache,
                BufferUse::Compute => What::Compute,
            },
            bytes: buffer.bytes,
        }
    }

    /// What the driver rounds it up by, at most.
    pub fn rounding_bytes(&self) -> u64 {
        let over = self.bytes % ROUNDING_BYTES;
        (ROUNDING_BYTES - over) % ROUNDING_BYTES
    }
}

/// What became of a buffer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// The buffer.
    pub step: Step,
    /// What was free before it, by `cuMemGetInfo`.
    pub free_before_bytes: u64,
    /// And behind it.
    pub free_after_bytes: u64,
    /// Why it could not be had.
    pub refused: Option<String>,
}

impl Taken {
    /// What the driver took for it.
    pub fn taken_bytes(&self) -> u64 {
        self.free_before_bytes.saturating_sub(self.free_after_bytes)
    }
}

/// A GPU before, with nothing but a context, and behind it all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceAllocation {
    /// CUDA's index.
    pub device: usize,
    /// As the driver calls it.
    pub name: String,
    /// As `GPU-8f3e..`.
    pub uuid: String,
    /// CUDA's total.
    pub total_bytes: u64,
    /// What is free once the context is there.
    pub free_with_context_bytes: u64,
    /// What NVML shows as used by everybody, before the context.
    pub nvml_before_bytes: Option<u64>,
    /// With the context.
    pub nvml_with_context_bytes: Option<u64>,
    /// With all buffers.
    pub nvml_after_bytes: Option<u64>,
    /// This process alone, with all buffers.
    pub nvml_process_bytes: Option<u64>,
}

/// What the driver gave.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// The GPUs in use.
    pub devices: Vec<DeviceAllocation>,
    /// The buffers, in the engine's order, up to the first that could not be had.
    pub steps: Vec<Taken>,
    /// Everything was had at once.
    pub fits: bool,
}

/// What the process says, a line each.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Taken(Taken),
    Devices(Vec<DeviceAllocation>),
    Failed(String),
}

/// Kills the process when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = processes::wait_for(&mut self.0, PATIENCE);
    }
}

/// Takes the planned buffers, asks what that came to, and gives them back.
/// `CUDA_VISIBLE_DEVICES` is set to `visible`, if anything.
pub fn allocate(
    expected: &Expected,
    visible: Option<&str>,
    time: Duration,
) -> Result<Allocation, Error> {
    let own = std::env::current_exe().map_err(io("this program cannot be found"))?;
    let child = Command::new(own)
        .arg(CHILD_ARGUMENT)
        .arg(std::process::id().to_string())
        .envs(visible.map(|list| (VISIBLE, list)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(io("the process that allocates"))?;
    let request = serde_json::to_string(&expected.steps);
    let request = request.map_err(|e| Error::Driver(e.to_string()))?;
    answer(child, request, time)
}

/// What `child` makes of `request` within `time`.
fn answer(mut child: Child, request: String, time: Duration) -> Result<Allocation, Error> {
    let stdin = child.stdin.take();
    let stdout = child.stdout.take();
    let mut running = Running(child);
    // Neither thread is waited for: one that does not read or write may hold its pipes open for ever.
    if let Some(mut stdin) = stdin {
        // Where this fails the process has ended, which its output tells.
        thread::spawn(move || writeln!(stdin, "{request}"));
    }
    let (to, words) = mpsc::channel();
    if let Some(out) = stdout {
        thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                // What a driver's library prints is passed over.
                if let Ok(word) = serde_json::from_str::<Word>(&line)
                    && to.send(word).is_err()
                {
                    return;
                }
            }
        });
    }
    let deadline = Instant::now() + time;
    let mut allocation = Allocation::default();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match words.recv_timeout(left) {
            Ok(Word::Taken(taken)) => allocation.steps.push(taken),
            Ok(Word::Devices(devices)) => {
                let refused = |t: &Taken| t.refused.is_some();
                allocation.fits = !allocation.steps.iter().any(refused);
                allocation.devices = devices;
                return Ok(allocation);
            }
            Ok(Word::Failed(reason)) => return Err(Error::Driver(reason)),
            Err(RecvTimeoutError::Timeout) => {
                return Err(Error::Driver(format!(
                    "the driver did not answer within {} s; the process that asked it is killed",
                    time.as_secs()
                )));
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = processes::wait_for(&mut running.0, PATIENCE);
                let how = match status.map_err(io("the process that allocates"))? {
                    Some(status) => format!("ended without an answer ({status})"),
                    None => "closes its output without an answer and is killed".to_string(),
                };
                return Err(Error::Driver(format!("the process that allocates {how}")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(script: &str, request: String) -> String {
        let child = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answer = answer(child, request, Duration::from_secs(1));
        answer.unwrap_err().to_string()
    }

    /// Each would be waited for without an end.
    #[test]
    fn a_process_that_neither_reads_nor_ends_is_given_up() {
        // more than a pipe holds
        let long = "x".repeat(1 << 20);
        let error = refused("exec sleep 1000", long);
        assert!(error.contains("did not answer within 1 s"), "{error}");
        let error = refused("exec sleep 1000 >&-", String::new());
        assert!(error.contains("closes its output"), "{error}");
        let error = refused("exit 3", String::new());
        assert!(error.contains("exit status: 3"), "{error}");
    }
}
