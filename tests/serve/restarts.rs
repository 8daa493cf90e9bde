//! One journal, one server after another.

use super::*;
use std::process::{Command, Stdio};

#[test]
fn a_server_that_was_killed_finds_its_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("ledger.redb");
    let arguments = ["--ledger", ledger.to_str().unwrap()];
    let mut held = Vec::new();
    for round in 0..3 {
        let server = Server::start(&arguments);
        assert_eq!(
            server.get("/v1/reservations").ok(200)["reservations"],
            json!(held)
        );
        let reserved = reserve(&server, &ask(SMALL, &format!("loader-{round}"))).ok(201);
        let commit = format!("/v1/reservations/{}/commit", id(&reserved));
        held.push(server.post(&commit, "").ok(200));
        server.signal("-KILL");
    }
    // Of two GPUs one is gone: what was promised there is shown, not hidden.
    let server = Server::start(&["--gpus", "80GiB", "--ledger", arguments[1]]);
    let violations = server.get("/v1/ledger").ok(200)["violations"].clone();
    assert_eq!(violations[0]["gpu"], "CUDA1");
    assert_eq!(violations[0]["capacity_bytes"], 0);
}

/// What it says when it does not start.
fn fails(mut command: std::process::Command) -> String {
    let out = command.output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    let error = String::from_utf8(out.stderr).unwrap();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

#[test]
fn what_is_promised_under_another_hosts_name_is_not_promised_again() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("ledger.redb");
    let ledger = ledger.to_str().unwrap();
    let start = |host| Server::start(&["--ledger", ledger, "--host-name", host]);
    let server = start("box");
    let number = id(&reserve(&server, &ask(SMALL, "loader")).ok(201));
    let left = free(&server);
    drop(server);

    let renamed = command(&[
        "--gpus",
        "80GiBx2",
        "--ledger",
        ledger,
        "--listen",
        "127.0.0.1:0",
    ]);
    let error = fails(renamed);
    let says = format!("--ledger: reservation {number} is on CUDA0, a GPU of host box");
    assert!(error.contains(&says), "{error}");
    assert!(
        error.contains("host is localhost: start it with that --host-name"),
        "{error}"
    );

    // Nothing was written: who has the name finds all of it. What is released is in nobody's way.
    let server = start("box");
    assert_eq!(free(&server), left);
    server
        .send("DELETE", &format!("/v1/reservations/{number}"), &[], "")
        .ok(204);
    drop(server);
    // In the order of names before the other.
    let server = start("a-box");
    let before = free(&server)[0];
    reserve(&server, &ask(SMALL, "loader")).ok(201);
    let metrics = server.get("/metrics").body;
    let shown = metrics
        .lines()
        .filter(|line| line.starts_with("vramfit_gpu_reserved_bytes{"));
    assert_eq!(shown.count(), 2);
    let reserved = before - free(&server)[0];
    let line = format!("vramfit_gpu_reserved_bytes{{gpu=\"CUDA0\"}} {reserved}\n");
    assert!(metrics.contains(&line), "{metrics}");
}

#[cfg(target_os = "linux")]
#[test]
fn what_is_promised_on_gpus_by_another_name_is_not_promised_again() {
    let install = vramfit_vgpu::Install::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let with = |ledger: &str, gpus: &str, cards: usize| {
        let ledger = folder.path().join(ledger);
        let card = "NVIDIA GeForce RTX 3090:24123MiB:8.6:sms=82";
        let arguments = ["--ledger", ledger.to_str().unwrap(), "--gpus", gpus];
        command_on(&install, &format!("{cards}*{card}"), &arguments)
    };
    let asked = ask(SMALL, "loader");
    for (first, second) in [("auto", "24GiBx2"), ("24GiBx2", "auto")] {
        let server = Server::spawn(with(first, first, 2));
        for _ in 0..2 {
            reserve(&server, &asked).ok(201);
        }
        let left = free(&server);
        drop(server);
        let error = fails(with(first, second, 2));
        assert!(
            error.contains("2 reservations, the oldest number 0, are on"),
            "{error}"
        );
        assert!(error.contains("start it with --gpus as before"), "{error}");
        let server = Server::spawn(with(first, first, 2));
        assert_eq!(free(&server), left);
    }
    // A card that has gone, or is not picked, goes by no other name.
    let server = Server::spawn(with("picked", "auto:1", 2));
    reserve(&server, &asked).ok(201);
    drop(server);
    for (gpus, cards) in [("auto:0", 2), ("auto", 1)] {
        let server = Server::spawn(with("picked", gpus, cards));
        let violations = server.get("/v1/ledger").ok(200)["violations"].clone();
        assert_eq!(violations[0]["capacity_bytes"], 0);
    }
}

/// A disk that takes nothing more, played by the most that a file of the process may have.
#[cfg(target_os = "linux")]
#[test]
fn a_ledger_that_cannot_be_written_is_said_where_health_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("ledger.redb");
    let of = command(&["--listen", "127.0.0.1:0", "--gpus", "24GiB", "--ledger"]);
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""])
        .arg(of.get_program())
        .args(of.get_args())
        .arg(&ledger)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let server = Server::spawn(shell);
    let limit = |bytes: &str| {
        let mut prlimit = Command::new("prlimit");
        prlimit.args([
            "--pid",
            &server.process.id().to_string(),
            &format!("--fsize={bytes}"),
        ]);
        assert!(prlimit.status().unwrap().success());
    };
    let adopt = || {
        let loaded = json!({"name": "m", "holder": "h", "shares": [{"gpu": "CUDA0", "bytes": 1}]});
        server.post("/v1/ledger/adopt", &loaded.to_string())
    };
    adopt().ok(201);
    server.get("/healthz").ok(200);
    limit("0:unlimited");
    adopt().refused(503, "journal");
    let sick = server.get("/healthz").refused(503, "journal");
    assert!(
        sick["detail"].as_str().unwrap().contains("ledger"),
        "{sick}"
    );
    limit("unlimited");
    server.get("/healthz").ok(200);
    adopt().ok(201);
}
