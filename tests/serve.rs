//! `estimate serve` over real TCP: every route, what is refused and how, limits, restarts.

#![allow(clippy::unwrap_used)] // also in what the tests share

#[path = "serve/client.rs"]
mod client;
#[path = "serve/driver.rs"]
mod driver;
#[path = "serve/estimates.rs"]
mod estimates;
#[path = "serve/guard.rs"]
mod guard;
#[path = "serve/models.rs"]
mod models;
#[path = "serve/reservations.rs"]
mod reservations;
#[path = "serve/restarts.rs"]
mod restarts;

use client::{Server, command, command_on, fixtures, request, response};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};
use vramfit::report::Estimate;

const SMALL: &str = "qwen3-8b.Q4_K_M.gguf";
const LARGE: &str = "llama-3.1-70b.Q4_K_M.gguf";

fn ask(model: &str, holder: &str) -> Value {
    json!({ "model": model, "holder": holder })
}

fn reserve(server: &Server, asked: &Value) -> client::Response {
    server.post("/v1/reservations", &asked.to_string())
}

fn id(reserved: &Value) -> u64 {
    reserved["reservation"]["id"].as_u64().unwrap()
}

fn free(server: &Server) -> Vec<u64> {
    let devices = server.get("/v1/devices").ok(200);
    let devices = devices["devices"].as_array().unwrap().clone();
    devices
        .iter()
        .map(|d| d["free_bytes"].as_u64().unwrap())
        .collect()
}

/// Until `done`, or for a minute.
fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_does_not_start_says_why() {
    let check = |arguments: &[&str], token: Option<&str>, says: &str| {
        let mut command = command(arguments);
        if let Some(token) = token {
            command.env("VRAMFIT_TOKEN", token);
        }
        let out = command.output().unwrap();
        assert_eq!(out.status.code(), Some(2));
        let error = String::from_utf8(out.stderr).unwrap();
        assert!(
            error.starts_with("estimate: ") && error.contains(says),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1);
    };
    check(
        &["--gpus", "k80", "--listen", "0.0.0.0:0"],
        None,
        "give a token",
    );
    check(
        &["--gpus", "k80", "--listen", "[::]:0"],
        None,
        "give a token",
    );
    check(&["--gpus", "k80", "--listen", "here:80"], None, "--listen");
    check(&["--gpus", "none"], None, "no GPU");
    check(&["--gpus", "k81"], None, "--gpus: ");
    check(
        &["--gpus", "k80", "--models", "/no/such/folder"],
        None,
        "--models /no/such/folder",
    );
    check(
        &["--gpus", "k80", "--token-file", "/no/such/file"],
        None,
        "--token-file",
    );
    check(
        &["--gpus", "k80"],
        Some("short"),
        "VRAMFIT_TOKEN: a token needs 16",
    );
    check(
        &["--gpus", "k80"],
        Some("0123456789 abcdef"),
        "visible ASCII",
    );
    check(
        &["--gpus", "k80", "--ledger", "/no/such/folder/ledger"],
        None,
        "--ledger: cannot open the journal \"/no/such/folder/ledger\"",
    );
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("ledger.redb");
    let ledger = ledger.to_str().unwrap();
    // Cut short: redb panics over it.
    drop(Server::start(&["--ledger", ledger]));
    let whole = std::fs::read(ledger).unwrap();
    for len in [whole.len() / 2, 4096, 100] {
        std::fs::write(ledger, &whole[..len]).unwrap();
        check(
            &["--gpus", "k80", "--ledger", ledger],
            None,
            "ledger.redb\" is damaged or no journal: ",
        );
    }
    std::fs::write(ledger, &whole).unwrap();
    let first = Server::start(&["--ledger", ledger]);
    check(
        &[
            "--gpus",
            "k80",
            "--listen",
            "127.0.0.1:0",
            "--ledger",
            ledger,
        ],
        None,
        "ledger.redb\": ",
    );
    check(
        &["--gpus", "k80", "--listen", &first.address],
        None,
        "cannot listen on",
    );
}

#[cfg(unix)]
#[test]
fn told_to_stop_it_finishes_what_is_under_way() {
    for signal in ["-TERM", "-INT"] {
        let mut server = Server::start(&[]);
        let body = json!({ "model": SMALL, "gpus": "k80" }).to_string();
        let length = format!("Content-Length: {}", body.len());
        let (first, rest) = body.split_at(5);
        let mut stream = server.connect();
        let headers = [
            "Content-Type: application/json",
            length.as_str(),
            "Expect: 100-continue",
        ];
        let head = request("POST", "/v1/estimate", &headers, "");
        stream.write_all(head.as_bytes()).unwrap();
        // The server is asked to say that it has begun.
        let mut begun = [0; 25];
        stream.read_exact(&mut begun).unwrap();
        assert_eq!(&begun, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(first.as_bytes()).unwrap();
        server.signal(signal);
        wait_for("the port to close", || {
            std::net::TcpStream::connect(&server.address).is_err()
        });
        assert!(server.process.try_wait().unwrap().is_none());
        stream.write_all(rest.as_bytes()).unwrap();
        response(stream).ok(200);
        assert_eq!(server.process.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn what_is_described_is_what_there_is() {
    let server = Server::start(&[]);
    let document = server.get("/openapi.json").ok(200);
    assert_eq!(document["openapi"], "3.1.0");
    let mut described = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let sent = path.replace("{id}", "7");
            let answer = server.send(
                &method.to_uppercase(),
                &sent,
                &["Content-Type: application/json"],
                "",
            );
            assert_ne!(answer.status, 405, "{method} {path}");
            assert!(
                answer.status != 404 || path.contains("{id}"),
                "{method} {path}"
            );
            let responses = operation["responses"].as_object().unwrap();
            assert!(
                responses.contains_key(&answer.status.to_string()),
                "{method} {path}: {}",
                answer.status
            );
            described.insert(format!("{method} {path}"));
        }
    }
    // The routes, and those that the project promises.
    let one = "/v1/reservations/{id}";
    let expected = BTreeSet::from([
        "post /v1/estimate".to_string(),
        "post /v1/plan".to_string(),
        "get /v1/reservations".to_string(),
        "post /v1/reservations".to_string(),
        format!("get {one}"),
        format!("delete {one}"),
        format!("post {one}/commit"),
        format!("post {one}/renew"),
        format!("post {one}/begin"),
        format!("post {one}/end"),
        "get /v1/devices".to_string(),
        "get /v1/ledger".to_string(),
        "post /v1/ledger/adopt".to_string(),
        "post /v1/ledger/reconcile".to_string(),
        "post /v1/ledger/others".to_string(),
        "get /v1/decisions".to_string(),
        "get /healthz".to_string(),
        "get /metrics".to_string(),
        "get /openapi.json".to_string(),
    ]);
    assert_eq!(described, expected);
    // Every reference leads somewhere.
    let mut stack = vec![&document];
    let mut references = 0;
    while let Some(value) = stack.pop() {
        if let Some(reference) = value["$ref"].as_str() {
            let found = document.pointer(reference.strip_prefix('#').unwrap());
            assert!(found.is_some(), "{reference}");
            references += 1;
        }
        match value {
            Value::Object(map) => stack.extend(map.values()),
            Value::Array(list) => stack.extend(list),
            _ => {}
        }
    }
    assert!(references > 30, "{references}");
}
