//! Programs that a [`ChildProbe`] may be given: those that answer, and those that do anything else. They are this very
//! program, which has no test harness of its own, as that would take the child's arguments for its own.

use std::io::Write;
use std::time::Duration;

use vramfit_devices::{ChildProbe, Machine, Probe, ProbeError};

/// What a child does; unset in the parent.
const ROLE: &str = "CHILD_PROBE_TEST_ROLE";

const ANSWER: &str = r#"{"vramfit_probe":1,"machine":{"driver":"535.1","cuda":"12.2","notes":[],"devices":[
    {"cuda_index":0,"name":"P40","total_bytes":1000,"compute_capability":"6.1","integrated":false,"is_mig":false,
     "free":{"bytes":2000,"from":"nvml"}}]}}"#;

fn main() {
    match std::env::var(ROLE) {
        Ok(role) => play(&role),
        Err(_) => check_all(),
    }
}

fn answer() -> String {
    ANSWER.replace(['\n', ' '], "")
}

fn play(role: &str) {
    match role {
        "answers" => println!("{}", answer()),
        "prints and answers" => print!("driver 535 starts\n\u{1b}[1m{{\n{}\nends\n", answer()),
        "answers and hangs" => {
            println!("{}", answer());
            hang();
        }
        "hangs" => hang(),
        "hangs and has closed its output" => {
            close_output();
            hang();
        }
        "is silent" => {}
        "complains" => {
            eprintln!("first\nlibcuda: \u{1b}[31mno such thing\n");
            std::process::exit(7);
        }
        "aborts" => std::process::abort(),
        "prints without end" => loop {
            let printed = std::io::stdout().write_all(&[b'x'; 4096]);
            if printed.is_err() {
                return;
            }
        },
        "prints lines without end" => loop {
            if writeln!(std::io::stdout(), "a line").is_err() {
                return;
            }
        },
        "half an answer" => print!("{}", answer()),
        "cannot be" => println!("{}", answer().replace("1000", "0")),
        "speaks the next version" => println!("{}", answer().replace("_probe\":1", "_probe\":2")),
        "probes itself" => {
            let error = ChildProbe::this_program().and_then(|probe| probe.machine());
            eprintln!("{}", error.expect_err("it is stopped").cause());
        }
        _ => panic!("{role}"),
    }
}

fn hang() {
    loop {
        std::thread::park();
    }
}

fn close_output() {
    #[cfg(unix)]
    {
        use std::os::fd::{FromRawFd, OwnedFd};
        // SAFETY: nothing is printed after it.
        drop(unsafe { OwnedFd::from_raw_fd(1) });
    }
}

fn probe(role: &str, timeout: Duration) -> Result<Machine, ProbeError> {
    ChildProbe::this_program()?
        .env(ROLE, role)
        .timeout(timeout)
        .machine()
}

fn check_all() {
    let long = Duration::from_secs(60);
    for role in ["answers", "prints and answers", "answers and hangs"] {
        let machine = probe(role, long).unwrap_or_else(|error| panic!("{role}: {error}"));
        let device = &machine.devices[0];
        let free = device.free.map(|free| free.bytes);
        assert_eq!(free, Some(1000), "no more than there is: {role}");
    }
    let refused = |role: &str, timeout: Duration, expected: &str| {
        let cause = match probe(role, timeout) {
            Ok(machine) => panic!("{role}: {machine:?}"),
            Err(error) => error.cause(),
        };
        assert!(cause.contains(expected), "{role}: {cause}");
        assert!(!cause.contains(char::is_control), "{role}: {cause}");
    };
    refused(
        "hangs",
        Duration::from_millis(100),
        "has not answered within 0.100 s",
    );
    refused("is silent", long, "ends with exit code 0 without an answer");
    refused(
        "complains",
        long,
        "ends with exit code 7 without an answer (libcuda:  [31mno such thing)",
    );
    refused("prints without end", long, "prints without end");
    refused("prints lines without end", long, "prints without end");
    refused(
        "half an answer",
        long,
        "ends with exit code 0 without an answer",
    );
    refused(
        "cannot be",
        long,
        "an answer that is none: CUDA0 has no memory",
    );
    refused("speaks the next version", long, "speaks version 2");
    refused("probes itself", long, "does not begin with answer_probe");
    if cfg!(unix) {
        refused("aborts", long, "is ended by signal 6");
        refused("hangs and has closed its output", long, "closes its output");
    }
    println!("14 programs that answer and that do not: ok");
}
