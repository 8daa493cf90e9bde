//! A process that is killed while it writes a file leaves the old one or the new one, and no part of either.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types
)] // tests start processes and may panic

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use vramfit_devices::write_whole;

const VARIABLE: &str = "PROFILES_KILL";
/// So much that most of the time goes into the write.
const BYTES: usize = 4 << 20;
const KILLS: u32 = 60;
const PATIENCE: Duration = Duration::from_secs(60);

/// The process that is killed: writes one version after the other.
#[test]
#[ignore = "another test starts it"]
fn write() {
    let Some(path) = std::env::var_os(VARIABLE).map(PathBuf::from) else {
        return;
    };
    for version in (b'a'..=b'z').cycle() {
        write_whole(&path, &vec![version; BYTES]).unwrap();
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The version of a whole file.
fn version(path: &Path) -> u8 {
    let text = std::fs::read(path).unwrap();
    assert_eq!(text.len(), BYTES, "{}", path.display());
    let first = text[0];
    assert!(text.iter().all(|&byte| byte == first), "{}", path.display());
    first
}

#[test]
fn no_half_of_a_file_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("overhead.json");
    let mut versions = BTreeSet::new();
    for i in 0..KILLS {
        write_whole(&path, &vec![b'0'; BYTES]).unwrap();
        assert_eq!(names(folder.path()), ["overhead.json"]);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "write", "--ignored"])
            .env(VARIABLE, &path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // once it has begun to write, at another moment each time
        let start = Instant::now();
        while version(&path) == b'0' {
            assert!(start.elapsed() < PATIENCE, "nothing is written");
        }
        std::thread::sleep(Duration::from_micros(u64::from(i) * 700));
        child.kill().unwrap();
        child.wait().unwrap();
        versions.insert(version(&path));
        for name in names(folder.path()) {
            // The second one: killed between its last two steps. It is whole, too, and the next writer clears it away.
            assert!(["overhead.json", "overhead.json.vramfit-new"].contains(&name.as_str()));
            version(&folder.path().join(name));
        }
    }
    assert!(versions.len() > 1, "it wrote nothing: {versions:?}");
}
