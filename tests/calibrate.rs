//! `estimate calibrate`, through the real binary, on imaginary GPUs with NVML and an engine that is none.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types
)] // tests start processes and may panic

#[path = "calibrate/beside.rs"]
mod beside;
#[path = "calibrate/degrade.rs"]
mod degrade;
#[path = "calibrate/granularity.rs"]
mod granularity;
#[path = "calibrate/killed.rs"]
mod killed;
#[path = "calibrate/libllama.rs"]
mod libllama;
#[path = "calibrate/prompts.rs"]
mod prompts;
#[path = "calibrate/stand_in.rs"]
mod stand_in;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use stand_in::{Part, script};
use tempfile::TempDir;
use vramfit_vgpu::Install;

const MIB: u64 = 1 << 20;
/// A context takes so much here, and the stand-in so much more that nobody predicts.
const CONTEXT: u64 = 93 * MIB;
const MODULES: u64 = 71 * MIB;
const GPUS: &str = "2*Tesla K80:11441MiB:3.7:sms=13:context=93MiB";
const MODEL: &str = "gguf/qwen2.5-0.5b.Q4_K_M.gguf";
const FLAGS: &str = "-fa off -c 2048 -ngl 99 -ts 1,1 --layout engine";
/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// What is temporary of a test, in its folder.
const TEMPORARY: &str = "temporary";

struct Stage {
    gpus: Install,
    folder: TempDir,
    /// In the environment of every process of this test.
    mark: String,
}

struct Answer {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Stage {
    fn new() -> Stage {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(TEMPORARY)).unwrap();
        Stage {
            gpus: Install::new().unwrap(),
            mark: folder.path().display().to_string(),
            folder,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        self.command_on(GPUS, arguments)
    }

    fn command_on(&self, gpus: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_estimate"));
        command.env_clear().args(arguments);
        self.gpus
            .play(&mut command, gpus)
            .env("VGPU_DRIVER", "470.256.02")
            .env("VGPU_STATE", self.path("state"))
            .env("VRAMFIT_PROFILES", self.path("overhead.json"))
            .env("TMPDIR", self.path(TEMPORARY))
            .env("PATH", "/usr/bin:/bin")
            .env("MARK", &self.mark)
            .envs(stand_in::NOT_PASSED_ON.map(|name| (name, "1")))
            .env(stand_in::PASSED_ON, "/here");
        command
    }

    fn calibrate(&self, more: &[&str]) -> Command {
        let model = fixture(MODEL);
        let mut command = self.command(&["calibrate", model.to_str().unwrap()]);
        command.args(FLAGS.split(' ')).args(more);
        command
    }

    /// What the plan says of `model` with `flags`.
    fn plan(&self, model: &str, flags: &[&str]) -> Value {
        let model = fixture(model);
        let plan = answer(
            self.command(&[model.to_str().unwrap(), "--json"])
                .args(flags),
        );
        assert!(!plan.out.is_empty(), "{}", plan.err);
        serde_json::from_str(&plan.out).unwrap()
    }

    /// A stand-in that takes what is predicted, and `MODULES` beside it.
    fn engine(&self, name: &str, change: impl FnOnce(&mut Part)) -> String {
        self.engine_with(name, &[], change)
    }

    /// As [`Stage::engine`], with `more` flags.
    fn engine_with(&self, name: &str, more: &[&str], change: impl FnOnce(&mut Part)) -> String {
        let mut part = self.part(more);
        assert!(
            part.devices
                .iter()
                .all(|d| d.iter().all(|&bytes| bytes > 0))
        );
        change(&mut part);
        let path = script(self.folder.path(), name, &part);
        path.to_str().unwrap().to_string()
    }

    /// What is predicted with `more` flags, and `MODULES` beside it.
    fn part(&self, more: &[&str]) -> Part {
        let flags: Vec<&str> = FLAGS.split(' ').chain(more.iter().copied()).collect();
        let plan = self.plan(MODEL, &flags);
        let device = |d: &Value| {
            let of = |key: &str| d[key].as_u64().unwrap();
            let buffers = [
                "model_bytes",
                "context_bytes",
                "compute_bytes",
                "runtime_bytes",
            ];
            let [a, b, c, d] = buffers.map(of);
            [a, b, c, d, MODULES]
        };
        let devices = plan["devices"].as_array().unwrap();
        Part {
            devices: devices[..2].iter().map(device).collect(),
            // 2048 less what is generated
            prompt: 2044,
            ..Part::default()
        }
    }

    /// No process that this test has started is left, and nothing temporary.
    fn assert_empty(&self, why: &str) {
        let start = Instant::now();
        loop {
            let left = marked(&self.mark);
            if left.is_empty() {
                let files = fs::read_dir(self.path(TEMPORARY)).unwrap();
                let files: Vec<_> = files.flatten().map(|entry| entry.file_name()).collect();
                assert!(files.is_empty(), "{why}: {files:?}");
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{why}: {left:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures")
        .join(path)
}

fn answer(command: &mut Command) -> Answer {
    let output = command.output().unwrap();
    let answer = Answer {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    };
    assert!(!answer.err.contains("panicked"), "{}", answer.err);
    answer
}

/// Processes with `mark` in their environment.
fn marked(mark: &str) -> Vec<String> {
    let has = |pid: &Path| {
        let environment = fs::read(pid.join("environ")).unwrap_or_default();
        environment
            .windows(mark.len())
            .any(|w| w == mark.as_bytes())
    };
    let entries = fs::read_dir("/proc").unwrap().flatten().map(|e| e.path());
    entries
        .filter(|pid| has(pid))
        .map(|pid| fs::read_to_string(pid.join("cmdline")).unwrap_or_default())
        .collect()
}

#[test]
fn what_cuda_takes_is_measured_learned_and_used() {
    let stage = Stage::new();
    let engine = stage.engine("llama-server", |_| ());
    let report = stage.path("report.txt");
    let rows = stage.path("rows.tsv");
    std::os::unix::fs::symlink("linked.tsv", &rows).unwrap();
    let files = [
        "--report",
        report.to_str().unwrap(),
        "--rows",
        rows.to_str().unwrap(),
    ];
    let run = answer(stage.calibrate(&["--engine", &engine]).args(files));
    assert_eq!((run.code, run.err.as_str()), (Some(0), ""), "{}", run.out);
    assert!(
        run.out
            .contains("buffers as predicted; measured of its processes"),
        "{}",
        run.out
    );
    assert_eq!(fs::read_to_string(&report).unwrap(), run.out);
    stage.assert_empty("after a run");

    let json = fs::read_to_string(stage.path("report.txt.json")).unwrap();
    let json: Value = serde_json::from_str(&json).unwrap();
    let devices = json[0]["comparison"]["devices"].as_array().unwrap();
    assert_eq!(devices.len(), 2);
    // The last batch has 508 tokens of 512, and 512 ran at three quarters of the context: what the pool may be smaller by
    // may be CUDA's own.
    let short = |d: &Value| {
        let pool = d["predicted"]["pool_bytes"].as_u64().unwrap();
        let (ran, planned) = (508 * 2044, 512 * 2048);
        let short = (pool * (planned - ran)).div_ceil(planned);
        assert_eq!(d["pool_short_bytes"], short);
        short
    };
    let high = CONTEXT + MODULES + devices.iter().map(short).max().unwrap();
    let learned = format!(
        " to {:.2} MiB on Tesla K80, driver 470.256.02",
        high as f64 / MIB as f64
    );
    assert!(run.out.contains(&learned), "{learned}: {}", run.out);
    for device in devices {
        assert_eq!(device["residual_bytes"], CONTEXT + MODULES);
        assert_eq!(device["buffers_agree"], true);
        assert_eq!(device["within_tolerance"], true);
        assert_eq!(device["measured"]["by"], "process");
    }
    assert!(rows.is_symlink() && stage.path("linked.tsv").is_file());
    let table = fs::read_to_string(&rows).unwrap();
    assert_eq!(table.lines().count(), 3);
    assert!(table.contains("Tesla K80\t470.256.02\t"), "{table}");

    // the next plan goes by it
    let model = fixture(MODEL);
    let plan = answer(&mut stage.command(&[model.to_str().unwrap(), "--json"]));
    let plan: Value = serde_json::from_str(&plan.out).unwrap();
    let first = &plan["devices"][0];
    // 2 MiB for each of weights, cache, compute buffer, workspace, pool and -sm tensor's buffer
    assert_eq!(first["overhead_bytes"], high + 6 * 2 * MIB);
    // as if all of those that were measured had been rounded up
    let low = first["overhead_low_bytes"].as_u64().unwrap();
    assert!((164 - 8) * MIB < low && low <= 164 * MIB, "{low}");
    let source = first["overhead_source"].as_str().unwrap();
    assert!(
        source.contains("measured 2 times with driver 470.256.02"),
        "{source}"
    );
}

#[test]
fn nothing_is_learned_where_exact_terms_disagree() {
    let stage = Stage::new();
    let engine = stage.engine("lies", |part| part.fault = "lies".to_string());
    let run = answer(&mut stage.calibrate(&["--engine", &engine]));
    assert_eq!(run.code, Some(1));
    assert!(
        run.out.contains("BUFFERS ARE NOT THE PREDICTED ONES"),
        "{}",
        run.out
    );
    assert!(run.out.contains("nothing is learned from"), "{}", run.out);
    assert!(!stage.path("overhead.json").exists());

    // what goes up is learned, and by how much it had been too low is told
    let all_is_well = stage.engine("well", |_| ());
    let run = answer(&mut stage.calibrate(&["--engine", &all_is_well]));
    assert!(run.out.contains("learned: CUDA takes"), "{}", run.out);
    let engine = stage.engine("more", |part| {
        part.devices[0][4] += 70 * MIB;
        part.devices[1][4] += 70 * MIB;
    });
    let run = answer(&mut stage.calibrate(&["--engine", &engine]));
    assert_eq!(run.code, Some(1), "{}", run.out);
    for words in [
        "MORE THAN 1 % AND 64 MiB OUTSIDE",
        "to 234.18 MiB on Tesla K80",
    ] {
        assert!(run.out.contains(words), "{}", run.out);
    }
    let first = fs::read_to_string(stage.path("overhead.json")).unwrap();
    // what goes down too far is not
    let engine = stage.engine("less", |part| part.devices[0][4] -= 10 * MIB);
    let run = answer(&mut stage.calibrate(&["--engine", &engine]));
    assert_eq!(run.code, Some(0), "{}", run.out);
    for words in [
        "nothing is learned from Tesla K80",
        "234 MiB before (4 measured",
    ] {
        assert!(run.out.contains(words), "{}", run.out);
    }
    let last = fs::read_to_string(stage.path("overhead.json")).unwrap();
    assert_eq!(first, last);
    fs::remove_file(stage.path("overhead.json")).unwrap();

    // nothing is learned of an engine that says nothing, nor of one that takes less than a context
    let engine = stage.engine("silent", |part| {
        part.fault = "silent".to_string();
        part.devices[1][4] += 40 * MIB;
    });
    let run = answer(&mut stage.calibrate(&["--engine", &engine]));
    for words in ["the engine does not say its buffers", "names no buffers"] {
        assert!(run.out.contains(words), "{}", run.out);
    }
    assert_eq!(run.code, Some(0), "{}", run.out);
    assert!(!stage.path("overhead.json").exists());
    let engine = stage.engine("small", |part| part.devices[1][4] = 0);
    let run = answer(&mut stage.calibrate(&["--engine", &engine]));
    for words in [
        "MORE THAN 1 % AND 64 MiB OUTSIDE",
        "totals are below the predicted interval",
    ] {
        assert!(run.out.contains(words), "{}", run.out);
    }
    assert_eq!(run.code, Some(1));
    assert!(!stage.path("overhead.json").exists());
}

/// What a legacy pool keeps depends on what was computed in which order: not all that is left is CUDA's own.
#[test]
fn nothing_is_learned_from_a_device_without_virtual_memory() {
    let stage = Stage::new();
    let engine = stage.engine("legacy", |_| ());
    let mut run = stage.calibrate(&["--engine", &engine]);
    let run = answer(run.env("VGPU_VMM", "0"));
    assert!(
        run.out.contains("no virtual memory management"),
        "{}",
        run.out
    );
    assert!(!stage.path("overhead.json").exists());
}

#[test]
fn an_engine_that_fails_is_told_and_gone() {
    let stage = Stage::new();
    let check = |engine: &str, more: &[&str], words: &str| {
        let run = answer(stage.calibrate(&["--engine", engine]).args(more));
        assert_eq!(run.code, Some(1), "{}", run.out);
        assert!(run.out.contains(words), "{}", run.out);
        stage.assert_empty(words);
        assert!(!stage.path("overhead.json").exists());
    };
    let faulty = |fault: &str| stage.engine(fault, |part| part.fault = fault.to_string());
    check("/no/such/llama-server", &[], "No such file");
    check(
        &faulty("start"),
        &[],
        "ended with exit code 1 before it was ready; its last words: running 1 test / error: failed to load model",
    );
    check(
        &faulty("never ready"),
        &["--time-limit", "2"],
        "did not come to an end in time and is killed",
    );
    check(&faulty("prompt"), &[], "status 400: the prompt is too long");
}

#[test]
fn planned_buffers_are_taken_by_itself() {
    let stage = Stage::new();
    let run = answer(&mut stage.calibrate(&["--allocate"]));
    assert_eq!((run.code, run.err.as_str()), (Some(0), ""), "{}", run.out);
    assert!(
        run.out.contains("Every planned buffer could be had."),
        "{}",
        run.out
    );
    assert!(run.out.contains("93.00 with a bare context"), "{}", run.out);

    let null = stage.path("null");
    std::os::unix::fs::symlink("/dev/null", &null).unwrap();
    let report = ["--json", "--report", null.to_str().unwrap()];
    let json = answer(stage.calibrate(&["--allocate"]).args(report));
    assert_eq!((json.code, json.err.as_str()), (Some(0), ""));
    assert!(null.is_symlink() && !stage.path("null.json").exists());
    let json: Value = serde_json::from_str(&json.out).unwrap();
    let planned = json["planned"]["devices"].as_array().unwrap();
    let found = json["allocation"]["devices"].as_array().unwrap();
    for (planned, found) in planned.iter().zip(found) {
        let terms = ["model", "context", "compute", "pool", "workspace"];
        let own = terms.map(|term| planned[format!("{term}_bytes")].as_u64().unwrap());
        let own: u64 = own.iter().sum();
        assert_eq!(found["nvml_process_bytes"].as_u64().unwrap(), own + CONTEXT);
    }

    // the order of the engine, up to what cannot be had
    let mut short = stage.calibrate(&["--allocate", "--json", "--gpus", "k80x2"]);
    let run = answer(short.env("VGPU_FREE", "11441MiB,300MiB"));
    assert_eq!(run.code, Some(1), "{}", run.err);
    let json: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(json["allocation"]["fits"], false);
    let steps = json["allocation"]["steps"].as_array().unwrap();
    let order: Vec<String> = steps
        .iter()
        .map(|s| {
            format!(
                "{} {}",
                s["step"]["device"],
                s["step"]["what"].as_str().unwrap()
            )
        })
        .collect();
    assert_eq!(order[..2], ["0 weights", "1 weights"]);
    assert!(steps.last().unwrap()["refused"].is_string(), "{order:?}");
    stage.assert_empty("after allocations");
}

#[test]
fn a_driver_that_hangs_does_not() {
    let stage = Stage::new();
    let mut run = stage.calibrate(&["--allocate", "--time-limit", "2"]);
    let run = answer(run.env("VGPU_HANG", "cuMemAlloc"));
    assert_eq!(run.code, Some(1), "{}", run.err);
    assert!(run.out.contains("did not answer within 2 s"), "{}", run.out);
    stage.assert_empty("a driver that hangs");
}

#[test]
fn requests_that_cannot_be_are_refused() {
    let stage = Stage::new();
    let check = |more: &[&str], words: &str| {
        let run = answer(&mut stage.calibrate(more));
        assert_eq!(run.code, Some(2), "{}", run.out);
        assert!(
            run.err.contains(words) && run.err.lines().count() == 1,
            "{}",
            run.err
        );
    };
    check(&[], "say how: --engine PATH");
    check(
        &["--engine", "llama-server", "--n-outputs", "0"],
        "what runs here counts its outputs itself",
    );
    check(
        &["--allocate", "--gpus", "k80x4"],
        "--gpus names 4 devices, and this machine has 2",
    );
    check(
        &["--allocate", "--gpus", "rtx3090x2"],
        "compute capability 8.6, and this machine's is Tesla K80 with compute capability 3.7",
    );
    check(
        &["--allocate", "--gpus", "k80,12GiB:cc=3.7:sms=15"],
        "CUDA1 is planned as",
    );
    check(&["--allocate", "--mmproj", "no-such.gguf"], "no-such.gguf");
    // before anything is measured
    let [own, json] = ["overhead.json", "report.txt.json"].map(|name| stage.path(name));
    let [own, json] = [&own, &json].map(|path| path.to_str().unwrap());
    let report = stage.path("report.txt");
    let report = report.to_str().unwrap();
    let engine = stage.engine("llama-server", |_| ());
    let run = ["--engine", &engine];
    check(
        &[&run[..], &["--report", own]].concat(),
        "--report (its JSON) and --profile would be one file",
    );
    check(
        &[&run[..], &["--rows", json, "--report", report]].concat(),
        "--report (its JSON) and --rows would be one file",
    );
    check(
        &[&run[..], &["--report", "/proc/no/report.txt"]].concat(),
        "what is measured could not be kept there: name another place (--report FILE)",
    );
    fs::write(stage.path("overhead.json"), "{").unwrap();
    check(&["--allocate"], "not a file of overhead profiles");
    let mut alone = stage.calibrate(&["--allocate"]);
    let alone = answer(alone.env("LD_LIBRARY_PATH", "").env("VRAMFIT_PROFILES", ""));
    assert_eq!(alone.code, Some(2));
    assert!(alone.err.contains("no NVIDIA driver"), "{}", alone.err);
    assert!(!alone.err.contains("--gpus"), "{}", alone.err);
}
