//! Why the machine's GPUs are not known.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why the machine's GPUs are not known. Displays on one line and says what to do; [`cause`](Self::cause)
/// leaves out what `--gpus` could name instead.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "of", rename_all = "snake_case")]
pub enum ProbeError {
    /// This build of vramfit, or this caller, cannot look.
    Unavailable,
    /// It looked and could not find out.
    Failed(String),
    /// The driver's library is not there, or cannot be used.
    NoDriver {
        /// What the loader says.
        why: String,
        /// GPUs that NVML sees all the same.
        nvml_gpus: Option<u32>,
    },
    /// The driver is there and shows no GPU.
    NoDevice {
        /// `CUDA_VISIBLE_DEVICES`, where it is set.
        visible: Option<String>,
        /// GPUs that NVML sees all the same.
        nvml_gpus: Option<u32>,
    },
    /// A call of the driver failed.
    Driver {
        /// Its name.
        call: String,
        /// `CUresult`.
        code: i32,
        /// The code's name, where the driver has one.
        name: Option<String>,
    },
    /// No answer in time.
    TimedOut {
        /// How long it was waited for, in milliseconds.
        after_ms: u64,
        /// The process that asked could not be ended: it is stuck in the kernel.
        is_stuck: bool,
    },
    /// The process that asks could not be started, or ended without an answer.
    Process(String),
    /// `--gpus auto:5` on a machine with fewer.
    NoSuchDevice {
        /// What was asked for.
        pick: String,
        /// What there is.
        there: String,
    },
}

const NAME_THEM: &str = "name them instead: `--gpus k80x2` for a card in the catalogue (`estimate gpus` lists it), \
     `--gpus 24GiB` for any card by its size, `--gpus none` for the CPU";

impl ProbeError {
    /// What is wrong, and how it is mended on the machine.
    pub fn cause(&self) -> String {
        match self {
            Self::Unavailable => "this build cannot look for GPUs by itself".to_owned(),
            Self::Failed(why) => format!("cannot ask the machine which GPUs it has: {why}"),
            Self::NoDriver { why, nvml_gpus } => match nvml_gpus {
                Some(n) if *n > 0 => format!(
                    "NVML sees {}, but the CUDA driver's library cannot be loaded ({why}); a container \
                     needs `compute` among NVIDIA_DRIVER_CAPABILITIES",
                    gpus(*n)
                ),
                _ => format!("no NVIDIA driver: its library cannot be loaded ({why})"),
            },
            Self::NoDevice { visible, nvml_gpus } => no_device(visible.as_deref(), *nvml_gpus),
            Self::Driver { call, code, name } => {
                let name = name.as_deref().unwrap_or("no name for it");
                let advice = advice(*code).map_or(String::new(), |advice| format!(": {advice}"));
                format!("the CUDA driver's {call} answers {code} ({name}){advice}")
            }
            Self::TimedOut { after_ms, is_stuck } => {
                let stuck = match is_stuck {
                    true => {
                        "; the process that asked is stuck in the kernel and cannot be ended, a restart may be needed"
                    }
                    false => "",
                };
                format!(
                    "the driver has not answered within {} s, so it may hang{stuck}; --probe-timeout gives it longer",
                    seconds(*after_ms)
                )
            }
            Self::Process(why) => format!("the process that asks the driver {why}"),
            Self::NoSuchDevice { pick, there } => format!("auto:{pick}: {there}"),
        }
    }
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause())?;
        match self {
            Self::NoSuchDevice { .. } => Ok(()),
            _ => write!(f, "; {NAME_THEM}"),
        }
    }
}

impl std::error::Error for ProbeError {}

fn no_device(visible: Option<&str>, nvml_gpus: Option<u32>) -> String {
    let seen = nvml_gpus.filter(|&n| n > 0);
    match (visible, seen) {
        (Some(visible), Some(n)) => format!(
            "CUDA shows no GPU: CUDA_VISIBLE_DEVICES is '{visible}', which hides the {} that NVML sees",
            gpus(n)
        ),
        (Some(visible), None) => {
            format!("CUDA shows no GPU, with CUDA_VISIBLE_DEVICES='{visible}'")
        }
        (None, Some(n)) => format!(
            "CUDA shows no GPU, though NVML sees {}: they may have MIG mode on and no instance, or not be \
             given to this container",
            gpus(n)
        ),
        (None, None) => "there is an NVIDIA driver, but no GPU that it can use".to_owned(),
    }
}

fn gpus(n: u32) -> String {
    match n {
        1 => "1 GPU".to_owned(),
        n => format!("{n} GPUs"),
    }
}

/// Whole seconds without a point.
fn seconds(ms: u64) -> String {
    match ms.is_multiple_of(1000) {
        true => (ms / 1000).to_string(),
        false => format!("{}.{:03}", ms / 1000, ms % 1000),
    }
}

/// What the driver API's documentation says of the codes that `cuInit` answers on a machine that is
/// not as it should be.
fn advice(code: i32) -> Option<&'static str> {
    Some(match code {
        2 => "there is no memory left, on the host or on a GPU",
        34 => {
            "the library found is the toolkit's stub, not a driver; take its folder off LD_LIBRARY_PATH"
        }
        46 => "a GPU is busy or in exclusive mode",
        802 => "the system is not ready yet; GPUs joined by NVSwitch need the fabric manager",
        803 => {
            "the driver's library and its kernel module are of different versions; restart the machine \
             after an update of the driver"
        }
        804 => {
            "CUDA's compatibility library does not support this GPU; take its folder off LD_LIBRARY_PATH"
        }
        999 => {
            "often the kernel module nvidia-uvm is not loaded (nvidia-modprobe -u loads it) or /dev/nvidia-uvm \
             is not given to the container"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_say_what_to_mend() {
        let check = |error: ProbeError, expected: &str| {
            let text = error.to_string();
            assert!(text.contains(expected), "{text}");
            assert!(text.starts_with(&error.cause()), "{text}");
            assert!(!text.contains('\n'), "{text}");
        };
        let code = |code: i32| ProbeError::Driver {
            call: "cuInit".to_owned(),
            code,
            name: None,
        };
        check(code(803), "different versions");
        check(code(12345), "cuInit answers 12345 (no name for it); name");
        let no_device = |visible: Option<&str>, nvml_gpus| ProbeError::NoDevice {
            visible: visible.map(str::to_owned),
            nvml_gpus,
        };
        check(
            no_device(Some(""), Some(2)),
            "is '', which hides the 2 GPUs",
        );
        check(no_device(None, Some(1)), "NVML sees 1 GPU:");
        check(no_device(None, None), "no GPU that it can use; name them");
        let timed_out = |after_ms| ProbeError::TimedOut {
            after_ms,
            is_stuck: false,
        };
        check(timed_out(20_000), "within 20 s,");
        check(timed_out(1_050), "within 1.050 s,");
    }

    #[test]
    fn errors_pass_between_processes() {
        let errors = [
            ProbeError::Unavailable,
            ProbeError::Failed("x".to_owned()),
            ProbeError::NoDriver {
                why: "y".to_owned(),
                nvml_gpus: Some(1),
            },
        ];
        for error in errors {
            let text = serde_json::to_string(&error).unwrap();
            assert_eq!(serde_json::from_str::<ProbeError>(&text).unwrap(), error);
        }
    }
}
