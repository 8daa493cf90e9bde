//! Drivers that are not there, fail, hang or die; and processes that have to be gone afterwards.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::play::{MIB, Machine, answer, each, fixture, notes};

const T4: &str = "T4:15000MiB:7.5:context=100MiB";

/// Processes of this machine with `marker` in their environment.
fn alive(marker: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let has = |file: &str, text: &str| {
            let file = std::fs::read(entry.path().join(file)).unwrap_or_default();
            String::from_utf8_lossy(&file).contains(text)
        };
        // A zombie has no environment any more.
        if has("environ", &format!("PROBE_TEST_MARKER={marker}\0")) {
            found.push(pid);
        }
    }
    found
}

/// Waits, for a minute, which is to say for ever.
fn wait_until(is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(60), "it never comes");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until so many are alive.
fn wait_for(marker: &str, n: usize) {
    wait_until(|| alive(marker).len() == n);
}

fn marked(gpus: &str, name: &str) -> (Machine, String) {
    let marker = format!("{name}-{}", std::process::id());
    (Machine::new(gpus).env("PROBE_TEST_MARKER", &marker), marker)
}

#[test]
fn a_driver_that_fails_is_told_with_what_mends_it() {
    let check = |code: i32, expected: &str| {
        let machine = Machine::new(T4).env("VGPU_FAIL", format!("cuInit:{code}"));
        let text = machine.refusal(&[]);
        assert!(text.contains(expected), "{code}: {text}");
        let asked = machine.run(&[fixture("gguf/gemma-3-12b.Q4_K_M.gguf").to_str().unwrap()]);
        assert_eq!(asked.code, 2);
        assert!(asked.err.contains(expected), "{code}: {}", asked.err);
        assert!(
            asked.err.contains("name them instead: `--gpus k80x2`"),
            "{}",
            asked.err
        );
        // What is asked for by name is answered, whatever the driver does.
        let listed = machine.run(&["gpus"]);
        assert_eq!(listed.code, 0);
        assert!(listed.out.contains("Tesla K80"), "{}", listed.out);
    };
    check(100, "no GPU");
    check(802, "fabric manager");
    check(803, "different versions");
    check(804, "LD_LIBRARY_PATH");
    check(999, "nvidia-uvm");
    // Codes that CUDA 11.4 does not know, and nobody.
    check(46, "cuInit answers 46");
    check(805, "cuInit answers 805");
    check(123_456, "cuInit answers 123456");
    let later = Machine::new(T4).env("VGPU_FAIL", "cuDeviceTotalMem:101");
    assert!(later.refusal(&[]).contains("cuDeviceTotalMem answers 101"));
}

#[test]
fn what_nvml_cannot_say_is_noted() {
    let check = |fail: &str, expected: &[&str]| {
        let found = Machine::new(T4).env("VGPU_FAIL", fail).probe();
        assert_eq!(notes(&found), expected, "{fail}");
        let device = &found["devices"][0];
        assert_eq!(device["total_bytes"], 15_000 * MIB);
        assert_eq!(device["free"], Value::Null);
        assert_eq!(device["used_bytes"], Value::Null);
    };
    check("nvmlInit:9", &["no_nvml", "free_unknown"]);
    check("nvmlInit:18", &["no_nvml", "free_unknown"]);
    check("nvmlDeviceGetMemoryInfo:15", &["free_unknown"]);
    check(
        "nvmlDeviceGetHandleByUUID:6,nvmlDeviceGetHandleByPciBusId:6",
        &["not_in_nvml", "free_unknown"],
    );
    // All of it is taken as free, and the reader is told.
    let machine = Machine::new(T4).env("VGPU_FAIL", "nvmlInit:9");
    let model = fixture("gguf/gemma-3-12b.Q4_K_M.gguf");
    let document = machine.json(&[model.to_str().unwrap(), "--json"]);
    assert_eq!(document["devices"][0]["free_bytes"], 15_000 * MIB);
    let said = document["notes"].to_string();
    assert!(
        said.contains("what is free is not known (no NVML), so all of it is taken"),
        "{said}"
    );
    // A driver without the one call is no matter.
    let found = Machine::new(T4)
        .env("VGPU_FAIL", "nvmlDeviceGetComputeRunningProcesses:13")
        .probe();
    assert_eq!(found["devices"][0]["processes"], Value::Null);
    assert_eq!(notes(&found), ["processes_unknown"]);
    assert_eq!(found["devices"][0]["free"]["bytes"], 15_000 * MIB);
    let found = Machine::new(T4)
        .env("VGPU_FAIL", "nvmlDeviceGetHandleByUUID:6")
        .probe();
    assert_eq!(found["devices"][0]["free"]["bytes"], 15_000 * MIB);
}

#[test]
fn a_gpu_whose_name_is_not_known_is_there_all_the_same() {
    let probed = |fail: &str| Machine::new(T4).env("VGPU_FAIL", fail).probe();
    let named = probed("cuDeviceGetName:999");
    assert_eq!(notes(&named), [""; 0]);
    assert_eq!(named["devices"][0]["name"], "T4");
    let unnamed = probed("cuDeviceGetName:999,nvmlDeviceGetName:999");
    assert_eq!(notes(&unnamed), ["name_unknown"]);
    assert_eq!(unnamed["devices"][0]["name"], "unnamed GPU");
    assert_eq!(unnamed["devices"][0]["free"]["bytes"], 15_000 * MIB);
}

#[test]
fn a_context_is_made_where_it_is_asked_for() {
    let machine = Machine::new(&format!("2*{T4}:free=9000MiB")).env("VGPU_FAIL", "nvmlInit:9");
    let found = machine.probe_with(&["--probe-context"]);
    let free = serde_json::json!({"bytes": 8900 * MIB, "from": "context"});
    assert_eq!(each(&found, "free"), [free.clone(), free]);
    assert_eq!(
        notes(&found),
        ["no_nvml", "measured_in_context", "measured_in_context"]
    );
    let machine = machine.env("VGPU_FAIL", "nvmlInit:9,cuDevicePrimaryCtxRetain:2");
    let found = machine.probe_with(&["--probe-context"]);
    assert_eq!(
        notes(&found)[..3],
        ["no_nvml", "context_failed", "free_unknown"]
    );
    // Where NVML knows, no context is made.
    let hangs = Machine::new(T4).env("VGPU_HANG", "cuDevicePrimaryCtxRetain");
    let found = hangs.probe_with(&["--probe-context"]);
    assert_eq!(found["devices"][0]["free"]["from"], "nvml");
}

/// Whether the linker finds a library of the real machine.
fn has_real(library: &str) -> bool {
    // SAFETY: NVIDIA's libraries run nothing when they are loaded.
    unsafe { libloading::Library::new(library) }.is_ok()
}

#[test]
fn missing_libraries_are_an_answer() {
    if !has_real("libcuda.so.1") {
        let bare = || {
            Machine::new(T4)
                .without("libcuda.so")
                .without("libcuda.so.1")
        };
        let text = bare().refusal(&[]);
        assert!(
            text.contains("NVML sees 1 GPU, but the CUDA driver's library"),
            "{text}"
        );
        assert!(text.contains("NVIDIA_DRIVER_CAPABILITIES"), "{text}");
        if !has_real("libnvidia-ml.so.1") {
            let text = bare().without("libnvidia-ml.so.1").refusal(&[]);
            assert!(text.contains("no NVIDIA driver"), "{text}");
            let listed = bare().without("libnvidia-ml.so.1").run(&["gpus"]);
            assert_eq!((listed.code, listed.err.as_str()), (0, ""));
        }
    }
    if !has_real("libnvidia-ml.so.1") {
        let found = Machine::new(T4).without("libnvidia-ml.so.1").probe();
        assert_eq!(notes(&found), ["no_nvml", "free_unknown"]);
        assert_eq!(found["driver"], Value::Null);
        assert_eq!(found["cuda"], "13.0");
    }
}

#[test]
fn a_library_that_is_none_is_an_answer() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("libcuda.so.1"), "not a library").unwrap();
    let machine = Machine::new(T4).env("LD_LIBRARY_PATH", folder.path());
    let text = machine.refusal(&[]);
    assert!(text.contains("cannot be loaded"), "{text}");
}

#[test]
fn a_driver_that_hangs_is_given_up_and_killed() {
    for call in [
        "cuInit",
        "nvmlInit",
        "cuDeviceGetName",
        "nvmlDeviceGetMemoryInfo",
    ] {
        let (machine, marker) = marked(T4, call);
        let machine = machine.env("VGPU_HANG", call);
        let text = machine.refusal(&["--probe-timeout", "0.2"]);
        assert!(
            text.contains("has not answered within 0.200 s"),
            "{call}: {text}"
        );
        assert_eq!(alive(&marker), [] as [i32; 0], "{call}");
        let model = fixture("gguf/gemma-3-12b.Q4_K_M.gguf");
        let asked = machine.run(&[model.to_str().unwrap(), "--probe-timeout", "0.2"]);
        assert_eq!(asked.code, 2, "{call}");
        assert!(
            asked.err.contains("name them instead"),
            "{call}: {}",
            asked.err
        );
    }
}

#[test]
fn a_parent_that_dies_takes_the_probe_along() {
    for signal in ["KILL", "TERM"] {
        let (machine, marker) = marked(T4, signal);
        let machine = machine.env("VGPU_HANG", "cuInit");
        let mut parent = machine
            .estimate(&["gpus", "--probe-timeout", "3600"])
            .spawn()
            .unwrap();
        wait_for(&marker, 2);
        let pid = parent.id().to_string();
        let sent = Command::new("kill")
            .args([&format!("-{signal}"), &pid])
            .status();
        assert!(sent.unwrap().success());
        assert!(!parent.wait().unwrap().success());
        wait_for(&marker, 0);
    }
}

/// Each way alone: the pipe here, for systems whose kernel tells nobody that a parent is gone.
#[test]
fn a_probe_whose_pipe_ends_is_gone() {
    let (machine, marker) = marked(T4, "pipe");
    let machine = machine.env("VGPU_HANG", "cuInit");
    let own = std::process::id().to_string();
    let mut child = machine
        .estimate(&["--vramfit-probe-child", &own])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for(&marker, 1);
    drop(child.stdin.take());
    wait_for(&marker, 0);
    assert!(!child.wait().unwrap().success());
}

/// And the kernel here, with a pipe that somebody else holds open.
#[test]
fn a_probe_whose_parent_is_gone_is_killed() {
    let (machine, marker) = marked(T4, "kernel");
    let machine = machine.env("VGPU_HANG", "cuInit");
    let program = env!("CARGO_BIN_EXE_estimate");
    let script = format!("exec 3<&0; '{program}' --vramfit-probe-child $$ <&3 & read end");
    let mut shell = Command::new("/bin/sh");
    shell.env_clear();
    let mut parent = machine
        .play(&mut shell)
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let held = parent.stdin.take();
    wait_for(&marker, 2);
    // It asks the kernel first, then loads the driver.
    let has_driver = |pid: &i32| {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"));
        maps.is_ok_and(|maps| maps.contains("vramfit_vgpu"))
    };
    wait_until(|| alive(&marker).iter().any(has_driver));
    parent.kill().unwrap();
    parent.wait().unwrap();
    wait_for(&marker, 0);
    drop(held);
}

#[test]
fn a_probe_of_no_parent_asks_nobody() {
    // Its parent is this process, not that one.
    let machine = Machine::new(T4).env("VGPU_HANG", "cuInit");
    for parent in ["1", "many"] {
        let mut command = machine.estimate(&["--vramfit-probe-child", parent]);
        let answer = answer(command.stdin(Stdio::piped()));
        assert_eq!(answer.out, "", "{parent}");
        assert_ne!(answer.code, 0, "{parent}");
    }
}

#[test]
fn time_limits_that_are_none_are_refused() {
    let machine = Machine::new(T4);
    for limit in ["0", "-1", "soon"] {
        let text = machine.refusal(&["--probe-timeout", limit]);
        assert!(text.contains("is not a number of seconds"), "{text}");
    }
}
