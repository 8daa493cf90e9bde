//! What `estimate --json` says, and llama-server's flags as the oracle's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Context, Error, Result};
use crate::models;

/// The fields of `estimate --json` that are checked here; all sizes in bytes.
#[derive(Debug, Deserialize)]
pub struct Estimate {
    /// `fits`, `partial` or `does_not_fit`.
    pub verdict: String,
    /// CUDA0, CUDA1, .. and host.
    pub devices: Vec<Device>,
    /// What to run: llama-server and its arguments.
    #[serde(default)]
    pub command: Vec<String>,
}

/// One device of an estimate.
#[derive(Debug, Deserialize)]
pub struct Device {
    /// `CUDA0`, .. or `host`.
    pub id: String,
    /// Free memory it was planned for; none for the host.
    #[serde(default)]
    pub free_bytes: Option<u64>,
    /// Weights.
    pub model_bytes: u64,
    /// Caches.
    pub context_bytes: u64,
    /// Compute buffers.
    pub compute_bytes: u64,
    /// Allowance for the CUDA context and the like.
    #[serde(default)]
    pub runtime_bytes: u64,
    /// Allowance for anything else.
    #[serde(default)]
    pub overhead_bytes: u64,
}

/// The program `estimate`.
pub struct Program(PathBuf);

impl Program {
    /// The given binary, else the workspace's own release build.
    pub fn find(given: Option<&str>) -> Result<Self> {
        if let Some(path) = given {
            return Ok(Self(path.into()));
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command
            .args([
                "build",
                "--release",
                "--bin",
                "estimate",
                "--message-format=json",
            ])
            .current_dir(models::repository());
        let output = command
            .stderr(std::process::Stdio::inherit())
            .output()
            .context("cargo build")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let messages = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let path = messages
            .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
            .next_back();
        path.map(Self)
            .context("cargo built no binary named estimate (or give --estimate PATH)")
    }

    /// `estimate MODEL --gpus GPUS FLAGS --json`
    pub fn ask(&self, model: &Path, gpus: &str, flags: &str) -> Result<Estimate> {
        let words = flags.split_whitespace();
        let output = Command::new(&self.0)
            .arg(model)
            .args(["--gpus", gpus])
            .args(words)
            .arg("--json")
            .output()
            .context(self.0.display())?;
        let parsed = serde_json::from_slice(&output.stdout);
        parsed.map_err(|error| {
            let complaint = String::from_utf8_lossy(&output.stderr);
            Error::new(format!(
                "estimate --gpus {gpus} {flags}: {}, {error}; {}",
                output.status,
                complaint.trim()
            ))
        })
    }
}

/// Bytes (model, context, compute) a device, by name; `host` for all of the CPU's buffers.
pub type Bytes = BTreeMap<String, [u64; 3]>;

impl Estimate {
    /// The three exact numbers of each device.
    pub fn bytes(&self) -> Bytes {
        let of = |device: &Device| {
            [
                device.model_bytes,
                device.context_bytes,
                device.compute_bytes,
            ]
        };
        self.devices
            .iter()
            .map(|device| (device.id.clone(), of(device)))
            .collect()
    }
}

/// The same of the oracle's JSON.
pub fn engine_bytes(json: &Value) -> Bytes {
    let devices = json["result"]["devices"].as_array();
    let number = |device: &Value, key: &str| device[key].as_u64().unwrap_or(0);
    let of = |device: &Value| ["model", "context", "compute"].map(|key| number(device, key));
    devices
        .into_iter()
        .flatten()
        .map(|device| {
            (
                device["device"].as_str().unwrap_or("?").to_owned(),
                of(device),
            )
        })
        .collect()
}

/// What differs, one line a device; a device that one of them does not know counts as empty.
pub fn differences(estimate: &Bytes, engine: &Bytes) -> Vec<String> {
    let names: std::collections::BTreeSet<&String> = estimate.keys().chain(engine.keys()).collect();
    let get = |bytes: &Bytes, name: &String| bytes.get(name).copied().unwrap_or_default();
    let differ = names
        .into_iter()
        .filter(|name| get(estimate, name) != get(engine, name));
    differ
        .map(|name| {
            format!(
                "{name}: estimate {:?}, engine {:?}",
                get(estimate, name),
                get(engine, name)
            )
        })
        .collect()
}

/// llama-server's arguments as the oracle's flags, without the model.
pub fn oracle_flags(command: &[String]) -> Result<Vec<String>> {
    const SAME: [(&str, &[&str]); 14] = [
        ("-c", &["-c", "--ctx-size"]),
        ("-b", &["-b", "--batch-size"]),
        ("-ub", &["-ub", "--ubatch-size"]),
        ("-fa", &["-fa", "--flash-attn"]),
        ("-ctk", &["-ctk", "--cache-type-k"]),
        ("-ctv", &["-ctv", "--cache-type-v"]),
        ("-np", &["-np", "--parallel"]),
        ("-ts", &["-ts", "--tensor-split"]),
        ("-sm", &["-sm", "--split-mode"]),
        ("-mg", &["-mg", "--main-gpu"]),
        ("-dev", &["-dev", "--device"]),
        ("-ot", &["-ot", "--override-tensor"]),
        ("--n-cpu-moe", &["-ncmoe", "--n-cpu-moe"]),
        ("-t", &["-t", "--threads"]),
    ];
    const SWITCHES: [(&str, &[&str]); 9] = [
        ("--kv-unified 1", &["-kvu", "--kv-unified"]),
        ("--kv-unified 0", &["-no-kvu", "--no-kv-unified"]),
        ("--cpu-moe", &["-cmoe", "--cpu-moe"]),
        ("-nkvo", &["-nkvo", "--no-kv-offload"]),
        ("--swa-full 1", &["--swa-full"]),
        ("--no-op-offload", &["--no-op-offload"]),
        ("--no-mmap", &["--no-mmap"]),
        ("--embeddings", &["--embedding", "--embeddings"]),
        ("", &["--no-warmup"]),
    ];
    const IGNORED: [&str; 8] = [
        "-m", "--model", "-fit", "--fit", "--host", "--port", "-a", "--alias",
    ];
    const POOLING: [&str; 5] = ["none", "mean", "cls", "last", "rank"];
    let mut flags = vec!["--server".to_owned()];
    let mut words = command.iter().skip(1);
    while let Some(word) = words.next() {
        let word = word.as_str();
        let mut value = || words.next().context(word);
        if let Some((name, _)) = SAME.iter().find(|(_, names)| names.contains(&word)) {
            flags.extend([(*name).to_owned(), value()?.clone()]);
        } else if let Some((text, _)) = SWITCHES.iter().find(|(_, names)| names.contains(&word)) {
            flags.extend(text.split_whitespace().map(str::to_owned));
        } else if ["-ngl", "--gpu-layers", "--n-gpu-layers"].contains(&word) {
            let layers = value()?;
            let all = layers == "all" || layers == "auto";
            flags.extend([
                "-ngl".to_owned(),
                if all { "-1".to_owned() } else { layers.clone() },
            ]);
        } else if ["-lm", "--load-mode"].contains(&word) {
            flags.extend(["--load-mode".to_owned(), value()?.clone()]);
        } else if word == "--pooling" {
            let name = value()?;
            let number = POOLING
                .iter()
                .position(|pooling| pooling == name)
                .context(format!("--pooling {name}"))?;
            flags.extend(["--pooling".to_owned(), number.to_string()]);
        } else if IGNORED.contains(&word) {
            value()?;
        } else {
            return Err(Error::new(format!(
                "the command has a flag that the oracle does not play: {word}"
            )));
        }
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_flags_become_the_oracles() {
        let words =
            "llama-server -m x.gguf --gpu-layers all --ctx-size 8192 -kvu --pooling mean --fit off";
        let command: Vec<String> = words.split(' ').map(str::to_owned).collect();
        let flags = oracle_flags(&command)
            .map(|flags| flags.join(" "))
            .unwrap_or_default();
        assert_eq!(flags, "--server -ngl -1 -c 8192 --kv-unified 1 --pooling 1");
        assert!(oracle_flags(&["llama-server".to_owned(), "--what".to_owned()]).is_err());
    }

    #[test]
    fn a_device_of_one_side_only_is_a_difference_unless_empty() {
        let a = Bytes::from([
            ("CUDA0".to_owned(), [1, 2, 3]),
            ("CUDA1".to_owned(), [0, 0, 0]),
        ]);
        let b = Bytes::from([
            ("CUDA0".to_owned(), [1, 2, 3]),
            ("host".to_owned(), [0, 0, 1]),
        ]);
        assert_eq!(differences(&a, &b).len(), 1);
    }
}
