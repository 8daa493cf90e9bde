//! Where NVML shows less: calibration still compares, says how it measured, and learns nothing from what may be another's.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::stand_in::script;
use crate::{CONTEXT, MIB, MODEL, MODULES, Stage, answer, fixture, stand_in};

fn run_with(stage: &Stage, settings: &[(&str, &str)]) -> (Option<i32>, String) {
    let engine = stage.engine("llama-server", |_| ());
    let mut run: Command = stage.calibrate(&["--engine", &engine]);
    let run = answer(run.envs(settings.iter().copied()));
    assert_eq!(run.err, "");
    (run.code, run.out)
}

#[test]
fn figures_of_no_process_are_compared_and_not_learned() {
    let check = |settings: &[(&str, &str)], by: &str, why: &str| {
        let stage = Stage::new();
        let (code, out) = run_with(&stage, settings);
        assert_eq!(code, Some(0), "{out}");
        assert!(
            out.contains(&format!("buffers as predicted; measured {by}")),
            "{out}"
        );
        assert!(out.contains("+164.00"), "{out}");
        assert!(out.contains(why), "{out}");
        assert!(!stage.path("overhead.json").exists());
    };
    let growth = "by what the card's memory in use grew";
    let others = "others may be in it; measure where NVML shows each process's memory";
    // WSL2: no process's memory, or no processes at all
    check(&[("VGPU_PROCESS_MEMORY", "0")], growth, others);
    let unsupported = [("VGPU_FAIL", "nvmlDeviceGetComputeRunningProcesses:3")];
    check(&unsupported, growth, others);
    // NVML gives up while the engine runs: what it showed before is not all of it
    let stage = Stage::new();
    let settings = [("VGPU_FAIL", "nvmlDeviceGetComputeRunningProcesses:999@9")];
    let (_, out) = run_with(&stage, &settings);
    assert!(out.contains("nothing is learned from"), "{out}");
    assert!(!stage.path("overhead.json").exists(), "{out}");
    // a container: the ids are the host's
    check(
        &[("VGPU_PID_SHIFT", "500000")],
        "of the one process that is new there",
        "docker run --pid=host",
    );
}

#[test]
fn without_nvml_nothing_is_measured_and_buffers_can_still_be_taken() {
    let stage = Stage::new();
    let settings = [("VGPU_FAIL", "nvmlInit:9")];
    let (code, out) = run_with(&stage, &settings);
    assert_eq!(code, Some(1));
    assert!(out.contains("NVML is not there"), "{out}");
    stage.assert_empty("without NVML");
    assert!(!stage.path("overhead.json").exists());
    let run = answer(stage.calibrate(&["--allocate"]).envs(settings));
    assert_eq!(run.code, Some(0), "{}", run.err);
    for words in [
        "Every planned buffer could be had.",
        "its figures are missing",
    ] {
        assert!(run.out.contains(words), "{}", run.out);
    }
}

/// What is planned and measured is the instance's.
#[test]
fn an_instance_in_mig_mode_is_measured() {
    let stage = Stage::new();
    let gpu = "NVIDIA A100:20000MiB:8.0:sms=42:mig=1:context=93MiB";
    let flags = ["-fa", "off", "-c", "2048", "-ngl", "99", "--json"];
    let model = fixture(MODEL);
    let model = model.to_str().unwrap();
    let ask = |first: &[&str], more: &[&str]| -> Value {
        let mut run = stage.command(first);
        run.env("VGPU", gpu).env("VGPU_DRIVER", "580.65.06");
        let run = answer(run.args(flags).args(more));
        assert_eq!((run.code, run.err.as_str()), (Some(0), ""), "{}", run.out);
        serde_json::from_str(&run.out).unwrap()
    };
    let plan = ask(&[model], &[]);
    let of = |key: &str| plan["devices"][0][format!("{key}_bytes")].as_u64().unwrap();
    let [a, b, c, d] = ["model", "context", "compute", "runtime"].map(of);
    let part = stand_in::Part {
        devices: vec![[a, b, c, d, MODULES]],
        prompt: 2044,
        ..stand_in::Part::default()
    };
    let engine = script(stage.folder.path(), "llama-server", &part);
    let engine = engine.to_str().unwrap();
    let run = ask(&["calibrate", model], &["--allocate", "--engine", engine]);
    let taken = &run["allocation"]["devices"][0];
    assert!(
        taken["uuid"].as_str().unwrap().starts_with("MIG-"),
        "{taken}"
    );
    assert_eq!(taken["nvml_process_bytes"], a + b + c + d + CONTEXT);
    let found = &run["comparison"]["devices"][0];
    assert_eq!(found["measured"]["by"], "process", "{found}");
    assert_eq!(found["residual_bytes"], 164 * MIB);
}

/// An engine of another build is learned of under the name that it gives itself, or as one that has none.
#[test]
fn another_build_is_named_as_it_names_itself() {
    for (version, name) in [
        (Some("6500 (3d16b29c)"), "llama.cpp 6500 (3d16b29c)"),
        (None, "a llama.cpp that does not say its version"),
    ] {
        let stage = Stage::new();
        let engine = stage.engine("old", |part| part.version = version.map(str::to_string));
        let run = answer(&mut stage.calibrate(&["--engine", &engine]));
        let said = format!("the engine is {name}, not the build that is planned for");
        assert!(run.out.contains(&said), "{}", run.out);
        let text = fs::read_to_string(stage.path("overhead.json")).unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["profiles"][0]["build"], name);
    }
}

/// An hour of measuring is not lost to what goes wrong behind it, and what cannot come right is told before.
#[test]
fn what_goes_wrong_late_loses_nothing() {
    let stage = Stage::new();
    let engine = stage.engine("llama-server", |_| ());
    let broken = stage.path("broken.gguf");
    fs::write(&broken, "GGUF, but for the rest of it").unwrap();
    let report = stage.path("report.txt");
    let mut run = stage.calibrate(&["--engine", &engine, "--report", report.to_str().unwrap()]);
    let run = answer(run.arg(&broken));
    assert_eq!(run.code, Some(1), "{}{}", run.out, run.err);
    assert!(run.out.contains("broken.gguf: "), "{}", run.out);
    assert!(run.out.contains("learned: CUDA takes"), "{}", run.out);
    assert_eq!(fs::read_to_string(&report).unwrap(), run.out);
    let json = fs::read_to_string(stage.path("report.txt.json")).unwrap();
    let json: Value = serde_json::from_str(&json).unwrap();
    assert!(json[0]["comparison"].is_object() && json[1]["error"].is_string());

    // a folder that cannot be made: nothing is started
    let nowhere = broken.join("profiles.json");
    let mut run = stage.calibrate(&["--engine", "/no/such/engine"]);
    let run = answer(run.arg("--profile").arg(&nowhere));
    assert_eq!(run.code, Some(2), "{}", run.out);
    assert!(run.err.contains("broken.gguf"), "{}", run.err);
}

#[test]
fn a_probe_that_hangs_is_waited_for_as_long_as_is_said() {
    let stage = Stage::new();
    let mut run = stage.calibrate(&["--allocate", "--probe-timeout", "1"]);
    let run = answer(run.env("VGPU_HANG", "cuInit"));
    assert_eq!(run.code, Some(2), "{}", run.out);
    assert!(run.err.contains("within 1"), "{}", run.err);
}

/// A toolkit's stub, say: `libcuda.so` without the driver's functions, found before the driver's own `libcuda.so.1`.
#[test]
fn what_only_is_called_as_the_driver_is_told() {
    let stage = Stage::new();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let some = maps.lines().find_map(|line| {
        let path = line.split_whitespace().last()?;
        path.contains("/libc.so").then(|| path.to_string())
    });
    let folder = stage.path("stubs");
    fs::create_dir(&folder).unwrap();
    fs::copy(some.unwrap(), folder.join("libcuda.so")).unwrap();
    let mut run = stage.calibrate(&["--allocate"]);
    let own = run.get_envs().find(|(name, _)| *name == "LD_LIBRARY_PATH");
    let own = own.and_then(|(_, path)| path).unwrap().to_str().unwrap();
    let both = format!("{}:{own}", folder.display());
    let run = answer(run.env("LD_LIBRARY_PATH", both));
    assert_eq!((run.code, run.err.as_str()), (Some(1), ""));
    assert!(run.out.contains("is not one"), "{}", run.out);
}
