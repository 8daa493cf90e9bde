//! Whatever is killed, nothing is left behind.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{MIB, PATIENCE, Stage, marked};

fn started(command: &mut Command) -> Child {
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn signal(pid: u32, name: &str) {
    let done = Command::new("kill").args([name, &pid.to_string()]).status();
    assert!(done.unwrap().success());
}

/// At any moment, by any signal; the engine below a shell of its own.
#[test]
fn whatever_ends_it_no_process_is_left_and_no_half_of_a_file() {
    let stage = Stage::new();
    let engine = stage.engine("shell-server", |_| ());
    let path = stage.path("overhead.json");
    let mut whole = stage.calibrate(&["--engine", &engine]);
    let start = Instant::now();
    assert!(started(&mut whole).wait().unwrap().success());
    let took = start.elapsed();
    stage.assert_empty("a whole run");
    let first = fs::read_to_string(&path).unwrap();
    let signals = ["-KILL", "-TERM", "-KILL", "-INT"];
    for i in 0..24u32 {
        let mut child = started(&mut stage.calibrate(&["--engine", &engine]));
        // moments that lie evenly over a run
        std::thread::sleep(took * i / 23);
        if child.try_wait().unwrap().is_none() {
            signal(child.id(), signals[i as usize % signals.len()]);
        }
        child.wait().unwrap();
        stage.assert_empty("killed");
        let text = fs::read_to_string(&path).unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        let high = json["profiles"][0]["high_bytes"].as_u64().unwrap();
        assert!((164 * MIB..165 * MIB).contains(&high), "{text}");
    }
    let last = fs::read_to_string(&path).unwrap();
    assert_eq!(first.lines().count(), last.lines().count());
}

/// The process between it and the engine dies: the engine does, too, also below a shell or in a session of its own.
#[test]
fn an_engine_does_not_outlive_its_holder() {
    for name in ["waits", "shell-waits", "session-waits"] {
        without_its_holder(name);
    }
}

fn without_its_holder(name: &str) {
    let stage = Stage::new();
    let engine = stage.engine(name, |part| part.fault = "never ready".to_string());
    let mut child = started(&mut stage.calibrate(&["--engine", &engine]));
    let holder = || {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let mut pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
        let of =
            |pid: &u32, name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let has =
            |text: Vec<u8>, word: &str| text.windows(word.len()).any(|w| w == word.as_bytes());
        pids.find(|pid| {
            // not the one that is asked for its version
            has(of(pid, "cmdline"), "__calibrate-hold")
                && has(of(pid, "cmdline"), "--port")
                && has(of(pid, "environ"), &stage.mark)
        })
    };
    let start = Instant::now();
    let running = || {
        marked(&stage.mark)
            .iter()
            .any(|line| line.contains("stand_in::play"))
    };
    while holder().is_none() || !running() {
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(5));
    }
    signal(holder().unwrap(), "-KILL");
    assert_eq!(child.wait().unwrap().code(), Some(1));
    stage.assert_empty("without its holder");
}
