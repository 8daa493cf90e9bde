//! `estimate --profile`: what calibrations learned goes before the shipped figures.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types
)] // tests read files and may panic

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const MIB: u64 = 1 << 20;

fn estimate(arguments: &[&str]) -> Command {
    let model =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/gguf/gemma-3-12b.Q4_K_M.gguf");
    let mut command = Command::new(env!("CARGO_BIN_EXE_estimate"));
    command.env_clear().arg(model).args(arguments);
    command
}

fn profiles(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let build = vramfit::ENGINE.name;
    let (low, high) = (300 * MIB, 333 * MIB);
    let text = format!(
        r#"{{"format": "vramfit overhead profiles", "version": 1, "profiles": [{{
        "card": "NVIDIA GeForce RTX 3090", "driver": "550.54.14", "build": "{build}",
        "with_cublas": true, "low_bytes": {low}, "high_bytes": {high}, "runs": 7}}]}}"#
    );
    fs::write(&path, text).unwrap();
    path
}

fn overheads(command: &mut Command) -> Vec<[u64; 2]> {
    let output = command.arg("--json").output().unwrap();
    assert!(output.stderr.is_empty(), "{output:?}");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let devices = json["devices"].as_array().unwrap();
    let mib = |d: &Value, key: &str| d[key].as_u64().unwrap() / MIB;
    let used = devices.iter().filter(|d| d["overhead_source"].is_string());
    used.map(|d| [mib(d, "overhead_low_bytes"), mib(d, "overhead_bytes")])
        .collect()
}

#[test]
fn profiles_are_found_and_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = profiles(folder.path(), "p.json");
    let data = folder.path().join("data");
    profiles(&data, "vramfit/overhead.json");
    let check = |arguments: &[&str], env: &[(&str, &Path)], expected: [u64; 2]| {
        let mut command = estimate(&["--gpus", "rtx3090"]);
        command.args(arguments).envs(env.iter().copied());
        assert_eq!(overheads(&mut command), [expected], "{arguments:?} {env:?}");
    };
    let text = path.to_str().unwrap();
    // 2 MiB for each of 7 buffers: weights, two caches, compute buffer, workspace, pool and -sm tensor's
    // and 64 for a driver that is not known
    let learned = [300, 333 + 14 + 64];
    check(&["--profile", text], &[], learned);
    check(&[], &[("VRAMFIT_PROFILES", &path)], learned);
    check(&[], &[("XDG_DATA_HOME", &data)], learned);
    // the default: 96 + 3 x 82 MiB at most
    check(&[], &[], [228, 342]);
    let both = [
        ("XDG_DATA_HOME", data.as_path()),
        ("VRAMFIT_PROFILES", Path::new("")),
    ];
    check(&[], &both, [228, 342]);
    // of another card
    let mut k80 = estimate(&["--gpus", "k80", "--profile", text]);
    assert_eq!(overheads(&mut k80), [[163, 169]]);

    let shown = estimate(&["--gpus", "rtx3090", "--profile", text])
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let words = shown.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("300.00 MiB to 411.00 MiB of its own (calibrated, measured 7 times with driver 550.54.14"), "{shown}");
}

#[test]
fn a_file_that_is_wrong_is_one_clear_line() {
    let folder = tempfile::tempdir().unwrap();
    let check = |path: &Path, words: &str| {
        let path = path.to_str().unwrap();
        let output = estimate(&["--gpus", "rtx3090", "--profile", path])
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(output.stdout.is_empty() && error.lines().count() == 1);
        assert!(error.contains(words) && error.contains(path), "{error}");
    };
    check(
        &folder.path().join("none.json"),
        "`estimate calibrate` makes it",
    );
    let path = profiles(folder.path(), "p.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"version\": 1", "\"version\": 9")).unwrap();
    check(&path, "version 9 of the profiles' format");
    fs::write(&path, &text[..text.len() / 2]).unwrap();
    check(&path, "not a file of overhead profiles");
}

/// As servers and other languages have their GPUs.
#[test]
fn the_library_finds_them_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = profiles(folder.path(), "p.json");
    let found = |path: &Path| {
        let list = vramfit::gpu_list("rtx3090,k80").unwrap();
        let path = path.as_os_str().to_owned();
        vramfit::with_profiles(list, &|name| {
            (name == "VRAMFIT_PROFILES").then(|| path.clone())
        })
    };
    let overheads = |path: &Path| {
        let devices = found(path).unwrap().devices;
        let mib = |d: &vramfit::Device| [d.overhead.low_bytes / MIB, d.overhead.bytes / MIB];
        devices.iter().map(mib).collect::<Vec<_>>()
    };
    let shipped = overheads(Path::new(""));
    let learned = overheads(&path);
    assert_eq!((shipped[0][0], learned[0][0]), (228, 300));
    assert_eq!(shipped[1], learned[1], "of another card");
    assert_eq!(overheads(&folder.path().join("none")), shipped);
    fs::write(&path, "{").unwrap();
    let error = found(&path).unwrap_err().to_string();
    assert!(error.contains("not a file of overhead profiles"), "{error}");
}
