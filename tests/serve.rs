//! `estimate serve` over real TCP: every route, what is refused and how, limits, restarts.

#![allow(clippy::unwrap_used)] // also in what the tests share

#[path = "serve/client.rs"]
mod client;

use client::{Server, command, fixtures, request, response};
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
fn an_estimate_is_the_librarys() {
    let server = Server::start(&[]);
    let path = fixtures()
        .canonicalize()
        .unwrap()
        .join("gemma-3-12b.Q4_K_M.gguf");
    let model = vramfit::open(&path).unwrap();
    for (gpus, settings) in [
        ("k80x2", "{}"),
        (
            "24GiB",
            r#"{"n_ctx": 32768, "type_k": "q8_0", "type_v": "q8_0", "flash_attention": "on"}"#,
        ),
        ("none", r#"{"n_batch": 512}"#),
    ] {
        let list = vramfit::gpu_list(gpus).unwrap();
        let read = vramfit::Settings::from_json(settings).unwrap();
        let expected = vramfit::answer(&path, &model, &list, &read)
            .unwrap()
            .estimate;
        let settings: Value = serde_json::from_str(settings).unwrap();
        let asked =
            json!({ "model": "gemma-3-12b.Q4_K_M.gguf", "gpus": gpus, "settings": settings });
        // The second answer is one that was kept.
        for _ in 0..2 {
            let answer = server.post("/v1/estimate", &asked.to_string());
            assert_eq!(answer.header("content-type"), Some("application/json"));
            let estimate: Estimate = serde_json::from_value(answer.ok(200)).unwrap();
            assert_eq!(estimate, expected);
        }
    }
    let text = server.get("/metrics").body;
    assert!(text.contains("vramfit_answers_cached_total 3\n"), "{text}");
    assert!(text.contains("vramfit_models_read_total 1\n"), "{text}");
}

#[test]
fn a_model_that_has_changed_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.gguf");
    let server = Server::start(&["--models", folder.path().to_str().unwrap()]);
    let estimate = || server.post("/v1/estimate", r#"{"model": "model.gguf"}"#);
    estimate().refused(404, "not-found");
    for (name, architecture) in [(SMALL, "qwen3"), (LARGE, "llama"), (SMALL, "qwen3")] {
        std::fs::copy(fixtures().join(name), &file).unwrap();
        assert_eq!(estimate().ok(200)["model"]["architecture"], architecture);
    }
    std::fs::write(&file, "GGUF? no").unwrap();
    estimate().refused(422, "bad-model");
}

#[test]
fn a_reservation_from_its_beginning_to_its_end() {
    let server = Server::start(&[]);
    let before = free(&server);
    let answer = reserve(
        &server,
        &json!({ "model": SMALL, "holder": "loader", "lease_ms": 600_000 }),
    );
    let reserved = answer.ok(201);
    let one = format!("/v1/reservations/{}", id(&reserved));
    assert_eq!(answer.header("location"), Some(one.as_str()));
    let estimate: Estimate = serde_json::from_value(reserved["estimate"].clone()).unwrap();
    let required = estimate.devices[0].required_bytes;
    let shares = json!([{ "gpu": "CUDA0", "bytes": required }]);
    assert_eq!(reserved["reservation"]["shares"], shares);
    assert_eq!(estimate.devices[0].free_bytes, Some(before[0]));
    assert!(estimate.command.contains(&"-dev".to_string()));
    assert_eq!(reserved["options"][0]["verdict"], "taken");
    assert_eq!(free(&server), [before[0] - required, before[1]]);

    // The next decision sees it.
    let planned = server
        .post("/v1/plan", &json!({ "model": SMALL }).to_string())
        .ok(200);
    assert_eq!(planned["devices"][0]["free_bytes"], before[0] - required);
    assert_eq!(planned["devices"][0]["required_bytes"], 0);
    assert_eq!(planned["devices"][1]["required_bytes"], required);

    server
        .post(&format!("{one}/begin"), "")
        .refused(409, "phase");
    let committed = server.post(&format!("{one}/commit"), "").ok(200);
    assert_eq!(committed["phase"], "running");
    assert_eq!(committed["shares"], shares);
    server
        .post(&format!("{one}/commit"), "")
        .refused(409, "phase");
    assert_eq!(
        server.post(&format!("{one}/begin"), "").ok(200)["requests"],
        1
    );
    assert_eq!(
        server.post(&format!("{one}/end"), "").ok(200)["requests"],
        0
    );
    server
        .post(&format!("{one}/end"), "")
        .refused(409, "no-request");
    let until = committed["lease_until_ms"].as_u64().unwrap();
    wait_for("a later millisecond", || {
        let renewed = server.post(&format!("{one}/renew"), "").ok(200);
        renewed["lease_until_ms"].as_u64().unwrap() > until
    });
    let shown = server.get(&one).ok(200);
    assert_eq!(
        server.get("/v1/reservations").ok(200)["reservations"],
        json!([shown])
    );
    let ledger = server.get("/v1/ledger").ok(200);
    assert_eq!(ledger["violations"], json!([]));
    let holder =
        json!([{ "holder": "loader", "reservations": [id(&reserved)], "bytes": required }]);
    assert_eq!(ledger["holders"], holder);
    let text = server.get("/metrics");
    assert!(
        text.header("content-type")
            .unwrap()
            .starts_with("application/openmetrics-text")
    );
    assert!(text.body.contains(&format!(
        "vramfit_gpu_reserved_bytes{{gpu=\"CUDA0\"}} {required}\n"
    )));
    assert!(text.body.contains("vramfit_over_committed_gpus 0\n"));
    assert!(text.body.ends_with("# EOF\n"));

    server.send("DELETE", &one, &[], "").ok(204);
    server
        .send("DELETE", &one, &[], "")
        .refused(404, "not-found");
    server.get(&one).refused(404, "not-found");
    assert_eq!(free(&server), before);
}

#[test]
fn a_list_is_no_object() {
    let server = Server::start(&[]);
    let share = json!({ "gpu": "CUDA0", "bytes": 1 });
    for (path, body) in [
        (
            "/v1/estimate",
            json!({ "model": SMALL, "settings": [4096, null] }),
        ),
        ("/v1/estimate", json!([SMALL, null])),
        (
            "/v1/plan",
            json!({ "model": SMALL, "settings": [null, null] }),
        ),
        (
            "/v1/reservations",
            json!({ "model": SMALL, "holder": "a", "evict": [1, 2] }),
        ),
        (
            "/v1/reservations",
            json!({ "model": SMALL, "holder": "a", "settings": [8192] }),
        ),
        (
            "/v1/ledger/adopt",
            json!({ "name": "a", "holder": "a", "shares": [["CUDA0", 1]] }),
        ),
        ("/v1/ledger/adopt", json!(["a", "a", [share]])),
        (
            "/v1/ledger/reconcile",
            json!({ "holder": "a", "held": [[7, [share]]] }),
        ),
        (
            "/v1/ledger/reconcile",
            json!({ "holder": "a", "held": [{ "id": 7, "shares": [["CUDA0", 1]] }] }),
        ),
        (
            "/v1/reservations/7/commit",
            json!({ "shares": [["CUDA0", 1]] }),
        ),
        ("/v1/reservations/7/commit", json!([null])),
    ] {
        let refused = server.post(path, &body.to_string()).refused(422, "invalid");
        assert!(
            refused["detail"].to_string().contains("expected an object"),
            "{refused}"
        );
    }
    let nameless =
        json!({ "holder": "a", "held": [{ "id": 7, "shares": [{ "gpu": "", "bytes": 1 }] }] });
    server
        .post("/v1/ledger/reconcile", &nameless.to_string())
        .refused(422, "invalid");
    assert_eq!(
        server.get("/v1/reservations").ok(200)["reservations"],
        json!([])
    );
}

#[test]
fn whole_numbers_may_have_a_point() {
    let server = Server::start(&[]);
    let estimate = |settings: Value| {
        let asked = json!({ "model": SMALL, "gpus": "24GiB", "settings": settings });
        server.post("/v1/estimate", &asked.to_string())
    };
    let plain = estimate(json!({ "n_ctx": 8192, "tensor_split": [1.0] })).ok(200);
    let pointed = estimate(json!({ "n_ctx": 8192.0, "tensor_split": [1] })).ok(200);
    assert_eq!(plain, pointed);
    for settings in [
        json!({ "n_ctx": 8192.5 }),
        json!({ "n_ctx": -1.0 }),
        json!({ "n_ctx": 1e30 }),
    ] {
        let refused = estimate(settings).refused(422, "invalid");
        assert!(
            refused["detail"].to_string().contains("floating point"),
            "{refused}"
        );
    }
}

#[test]
fn the_engines_own_figures_are_committed() {
    let server = Server::start(&[]);
    let reserved = reserve(&server, &ask(SMALL, "loader")).ok(201);
    let commit = format!("/v1/reservations/{}/commit", id(&reserved));
    let with = |gpu: &str, bytes: u64| {
        let body = json!({ "shares": [{ "gpu": gpu, "bytes": bytes }] });
        server.post(&commit, &body.to_string())
    };
    with("CUDA0", 1 << 40).refused(409, "took-too-much");
    with("CUDA7", 1 << 30).refused(422, "unknown-gpu");
    with("CUDA0", 0).refused(422, "invalid");
    let took = with("CUDA0", 7 << 30).ok(200);
    assert_eq!(
        took["shares"],
        json!([{ "gpu": "CUDA0", "bytes": 7u64 << 30 }])
    );
}

#[test]
fn what_is_loaded_already_is_adopted_and_reconciled() {
    let server = Server::start(&[]);
    let before = free(&server);
    let adopt = |body: &Value| server.post("/v1/ledger/adopt", &body.to_string());
    let found = json!({ "name": "old", "holder": "engine", "lease_ms": 600_000,
        "shares": [{ "gpu": "CUDA1", "bytes": 30u64 << 30 }] });
    let answer = adopt(&found);
    let adopted = answer.ok(201);
    assert_eq!(
        (&adopted["phase"], &adopted["model"]),
        (&json!("running"), &json!("old"))
    );
    let one = format!("/v1/reservations/{}", adopted["id"]);
    assert_eq!(answer.header("location"), Some(one.as_str()));
    assert_eq!(server.get(&one).ok(200), adopted);
    assert_eq!(free(&server), [before[0], before[1] - (30 << 30)]);
    // One key, one reservation.
    let keyed = ["Content-Type: application/json", "Idempotency-Key: old-1"];
    let keyed = || server.send("POST", "/v1/ledger/adopt", &keyed, &found.to_string());
    let second = keyed().ok(201);
    assert_eq!(keyed().ok(201), second);
    server
        .send(
            "DELETE",
            &format!("/v1/reservations/{}", second["id"]),
            &[],
            "",
        )
        .ok(204);

    // A fact is not refused, and shown where it is too much.
    let too_much = json!({ "name": "huge", "holder": "engine",
        "shares": [{ "gpu": "CUDA0", "bytes": 200u64 << 30 }] });
    let huge = adopt(&too_much).ok(201)["id"].clone();
    let over = server.get("/v1/ledger").ok(200)["violations"].clone();
    assert_eq!(
        (&over[0]["gpu"], &over[0]["reservations"]),
        (&json!("CUDA0"), &json!([huge]))
    );

    // The engine's own list: one is smaller, one is not known, one is not there.
    let report = json!({ "holder": "engine", "held": [
        { "id": huge, "shares": [{ "gpu": "CUDA0", "bytes": 20u64 << 30 }] },
        { "id": 77, "shares": [{ "gpu": "CUDA0", "bytes": 1 }] } ] });
    let reconcile = |body: &Value| server.post("/v1/ledger/reconcile", &body.to_string());
    let differences = json!({ "resized": [huge], "unknown": [77], "missing": [adopted["id"]] });
    assert_eq!(reconcile(&report).ok(200), differences);
    assert_eq!(
        free(&server),
        [before[0] - (20 << 30), before[1] - (30 << 30)]
    );
    assert_eq!(server.get("/v1/ledger").ok(200)["violations"], json!([]));

    for (body, status, kind) in [
        (
            json!({ "name": "m", "holder": "e", "shares": [] }),
            422,
            "invalid",
        ),
        (
            json!({ "name": "", "holder": "e", "shares": [{ "gpu": "CUDA0", "bytes": 1 }] }),
            422,
            "invalid",
        ),
        (
            json!({ "name": "m", "holder": "e", "shares": [{ "gpu": "CUDA9", "bytes": 1 }] }),
            422,
            "unknown-gpu",
        ),
        (
            json!({ "name": "m", "holder": "e", "shares": [{ "gpu": "CUDA0", "bytes": 0 }] }),
            422,
            "invalid",
        ),
        (
            json!({ "name": "m", "holder": "e", "lease_ms": 0, "shares": [{ "gpu": "CUDA0", "bytes": 1 }] }),
            422,
            "invalid",
        ),
        (json!({ "name": "m", "holder": "e" }), 422, "invalid"),
    ] {
        adopt(&body).refused(status, kind);
    }
    let held =
        |gpu: &str, bytes: u64| json!({ "id": huge, "shares": [{ "gpu": gpu, "bytes": bytes }] });
    for (body, kind) in [
        (
            json!({ "holder": "engine", "held": [held("CUDA9", 1)] }),
            "unknown-gpu",
        ),
        (
            json!({ "holder": "engine", "held": [held("CUDA0", 0)] }),
            "invalid",
        ),
        (json!({ "holder": "", "held": [] }), "invalid"),
        (json!({ "held": [] }), "invalid"),
    ] {
        reconcile(&body).refused(422, kind);
    }
    assert_eq!(
        free(&server),
        [before[0] - (20 << 30), before[1] - (30 << 30)]
    );
}

#[test]
fn each_decision_says_what_was_looked_at_and_what_came_of_it() {
    let server = Server::start(&["--gpus", "48GiBx2"]);
    let capacity = free(&server)[0];
    let sums = |gpu: &str, reserved: u64| {
        json!({ "gpu": gpu, "capacity_bytes": capacity, "reserved_bytes": reserved, "leaving_bytes": 0,
            "foreign_bytes": 0, "free_bytes": capacity - reserved })
    };
    let first = reserve(&server, &ask(LARGE, "a")).ok(201);
    let bytes = first["reservation"]["shares"][0]["bytes"].as_u64().unwrap();
    assert_eq!(first["before"], json!([sums("CUDA0", 0), sums("CUDA1", 0)]));
    assert_eq!(
        first["after"],
        json!([sums("CUDA0", bytes), sums("CUDA1", 0)])
    );
    let second = reserve(&server, &ask(LARGE, "b")).ok(201);
    assert_eq!(second["before"], first["after"]);
    let refused = reserve(&server, &ask(LARGE, "c")).refused(409, "full-pending");
    assert_eq!(refused["before"], second["after"]);
    let huge = json!({ "model": "deepseek-v3.Q4_K_M.gguf", "holder": "d" });
    let never = reserve(&server, &huge).refused(422, "never-fits");

    let all = server.get("/v1/decisions").ok(200)["decisions"].clone();
    let of: Vec<_> = all
        .as_array()
        .unwrap()
        .iter()
        .map(|d| &d["holder"])
        .collect();
    assert_eq!(of, ["d", "c", "b", "a"]);
    assert_eq!(all[3]["reservation"], first["reservation"]["id"]);
    assert_eq!(
        (&all[3]["before"], &all[3]["after"]),
        (&first["before"], &first["after"])
    );
    assert_eq!(all[3]["options"], first["options"]);
    // Each rejection with its device and its bytes, and nothing changed.
    assert_eq!(all[1]["refused"], "urn:vramfit:full-pending");
    assert_eq!(
        (&all[1]["before"], &all[1]["after"]),
        (&second["after"], &second["after"])
    );
    let short: Vec<_> = all[1]["options"].as_array().unwrap().iter().collect();
    assert_eq!(short.len(), 2);
    for (option, gpu) in short.iter().zip(["CUDA0", "CUDA1"]) {
        let short = json!([{ "gpu": gpu, "need_bytes": bytes, "room_bytes": capacity - bytes }]);
        assert_eq!(option["shortfalls"], short);
    }
    assert_eq!(all[0]["rejected"], never["rejected"]);
    assert_eq!(all[0]["before"], second["after"]);
}

#[test]
fn full_now_never_and_with_evictions() {
    let server = Server::start(&["--gpus", "48GiBx2"]);
    let first = reserve(&server, &ask(LARGE, "a")).ok(201);
    let second = reserve(&server, &ask(LARGE, "b")).ok(201);
    // 44 of 51 GB of each are taken.
    let pending = reserve(&server, &ask(LARGE, "c")).refused(409, "full-pending");
    assert_eq!(pending["reservations"], json!([id(&first), id(&second)]));
    for reserved in [&first, &second] {
        let commit = format!("/v1/reservations/{}/commit", id(reserved));
        server.post(&commit, "{}").ok(200);
    }
    let full = reserve(&server, &ask(LARGE, "c")).refused(409, "full-now");
    let short = &full["shortfalls"][0];
    assert!(short["need_bytes"].as_u64() > short["room_bytes"].as_u64());
    assert!(full["retry_after_s"].as_u64() > Some(0));

    let huge = json!({ "model": "deepseek-v3.Q4_K_M.gguf", "holder": "c" });
    let never = reserve(&server, &huge).refused(422, "never-fits");
    assert!(!never["rejected"].as_array().unwrap().is_empty());

    // Two that are not used for a moment; the longest unused leaves.
    let mut asked = json!({ "model": LARGE, "name": "another", "holder": "c",
        "evict": { "idle_ms": 0, "start_ms": 0 } });
    asked["partial"] = false.into();
    let mut granted = None;
    wait_for("a millisecond without a request", || {
        let answer = reserve(&server, &asked);
        let is_granted = answer.status == 201;
        granted = is_granted.then(|| answer.json());
        is_granted
    });
    let granted = granted.unwrap();
    assert_eq!(granted["evict"][0]["id"], id(&first));
    assert_eq!(granted["evict"].as_array().unwrap().len(), 1);
    let commit = format!("/v1/reservations/{}/commit", id(&granted));
    let waits = server.post(&commit, "").refused(409, "waits");
    assert_eq!(waits["reservations"], json!([id(&first)]));
    server
        .send(
            "DELETE",
            &format!("/v1/reservations/{}", id(&first)),
            &[],
            "",
        )
        .ok(204);
    server.post(&commit, "").ok(200);
}

#[test]
fn what_cannot_be_is_refused_with_the_reason() {
    let server = Server::start(&[]);
    let check = |path: &str, body: &str, status: u16, kind: &str, says: &str| {
        let problem = server.post(path, body).refused(status, kind);
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(says), "{body}: {detail}");
    };
    let estimate = "/v1/estimate";
    check(estimate, "", 400, "bad-request", "no JSON: EOF");
    check(estimate, "{", 400, "bad-request", "line 1 column 1");
    check(estimate, "[]", 422, "invalid", "expected an object");
    check(estimate, "{}", 422, "invalid", "missing field `model`");
    check(
        estimate,
        r#"{"model": 7}"#,
        422,
        "invalid",
        "expected path string",
    );
    check(
        estimate,
        r#"{"model": "m", "modle": 1}"#,
        422,
        "invalid",
        "unknown field `modle`",
    );
    check(
        estimate,
        r#"{"model": "no.gguf"}"#,
        404,
        "not-found",
        "no.gguf: no such file",
    );
    check(
        estimate,
        r#"{"model": "\u0000"}"#,
        404,
        "not-found",
        "no such file",
    );
    check(estimate, r#"{"model": ""}"#, 422, "invalid", "not a file");
    let with = |gpus: &str, settings: &str| {
        format!(r#"{{"model": "{SMALL}", "gpus": "{gpus}", "settings": {settings}}}"#)
    };
    check(estimate, &with("rtx9999", "{}"), 422, "invalid", "gpus: ");
    check(
        estimate,
        &with("k80x99", "{}"),
        422,
        "invalid",
        "over 64 devices",
    );
    check(
        estimate,
        &with("k80", r#"{"n_ctxx": 1}"#),
        422,
        "invalid",
        "unknown field `n_ctxx`",
    );
    check(
        estimate,
        &with("k80", r#"{"n_ctx": -1}"#),
        422,
        "invalid",
        "-1",
    );
    check(
        estimate,
        &with("k80", r#"{"n_seq_max": 0}"#),
        422,
        "invalid",
        "n_seq_max: ",
    );
    check(
        estimate,
        &with("k80", r#"{"devices": ["CUDA1"]}"#),
        422,
        "invalid",
        "CUDA1",
    );
    check(
        estimate,
        &with("k80", r#"{"type_v": "q8_0", "flash_attention": "off"}"#),
        422,
        "refused-settings",
        "needs flash attention",
    );
    let reservations = "/v1/reservations";
    check(
        reservations,
        &json!({ "model": SMALL }).to_string(),
        422,
        "invalid",
        "`holder`",
    );
    check(
        reservations,
        &ask(SMALL, "").to_string(),
        422,
        "invalid",
        "holder: ",
    );
    check(
        reservations,
        &ask(SMALL, "a\nb").to_string(),
        422,
        "invalid",
        "holder: ",
    );
    check(
        reservations,
        &ask(SMALL, &"a".repeat(257)).to_string(),
        422,
        "invalid",
        "holder: ",
    );
    let no_gpu =
        json!({ "model": SMALL, "holder": "h", "settings": { "devices": [], "n_gpu_layers": 0 } });
    check(
        reservations,
        &no_gpu.to_string(),
        422,
        "no-gpu",
        "nothing to reserve",
    );
    let no_lease = json!({ "model": SMALL, "holder": "h", "lease_ms": 0 });
    check(
        reservations,
        &no_lease.to_string(),
        422,
        "invalid",
        "lease_ms",
    );
    check("/v1/reservations/7/renew", "", 404, "not-found", "#7");
    check(
        "/v1/reservations/seven/renew",
        "",
        400,
        "bad-request",
        "'seven'",
    );
    check("/v1/reservations/-1/commit", "", 400, "bad-request", "'-1'");

    let kind = ["Content-Type: text/plain"];
    server
        .send("POST", estimate, &kind, "{}")
        .refused(415, "media-type");
    server
        .send("POST", estimate, &[], "{}")
        .refused(415, "media-type");
    server.get(estimate).refused(405, "method");
    server
        .send("PUT", reservations, &[], "")
        .refused(405, "method");
    server.get("/v1/nothing").refused(404, "not-found");
    server.get("/").refused(404, "not-found");
    assert_eq!(
        server.get("/v1/reservations").ok(200),
        json!({ "reservations": [] })
    );
    assert_eq!(server.get("/healthz").ok(200)["status"], "ok");
}

#[cfg(unix)]
#[test]
fn models_are_below_the_folders_alone() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("models");
    std::fs::create_dir_all(inside.join("deep")).unwrap();
    let outside = folder.path().join("secret.gguf");
    for file in [
        &outside,
        &inside.join("deep/m.gguf"),
        &inside.join("m.gguf"),
    ] {
        std::fs::copy(fixtures().join(SMALL), file).unwrap();
    }
    symlink(&outside, inside.join("link.gguf")).unwrap();
    symlink(folder.path(), inside.join("up")).unwrap();
    symlink(inside.join("deep/m.gguf"), inside.join("good.gguf")).unwrap();
    symlink(inside.join("loop.gguf"), inside.join("loop.gguf")).unwrap();
    let fifo = inside.join("pipe.gguf");
    let made = std::process::Command::new("mkfifo")
        .arg(&fifo)
        .status()
        .unwrap();
    assert!(made.success());
    // The folder itself may be a link.
    let by_link = folder.path().join("by-link");
    symlink(&inside, &by_link).unwrap();
    let arguments = ["--listen", "127.0.0.1:0", "--gpus", "80GiB", "--models"];
    let server = Server::spawn(command(
        &[&arguments[..], &[by_link.to_str().unwrap()]].concat(),
    ));
    let send = |model: &Path| {
        let asked = json!({ "model": model });
        server.post("/v1/estimate", &asked.to_string())
    };
    for good in [
        Path::new("m.gguf"),
        Path::new("deep/m.gguf"),
        Path::new("./deep/./m.gguf"),
        Path::new("good.gguf"),
        &inside.join("m.gguf"),
        &by_link.join("deep/m.gguf"),
    ] {
        send(good).ok(200);
    }
    for bad in [
        Path::new("../secret.gguf"),
        Path::new("deep/../../secret.gguf"),
        Path::new("deep/../m.gguf"),
        Path::new("link.gguf"),
        Path::new("up/secret.gguf"),
        Path::new("/etc/passwd"),
        &outside,
        &inside.join("../secret.gguf"),
    ] {
        send(bad).refused(403, "forbidden");
    }
    send(Path::new("deep")).refused(422, "invalid");
    send(Path::new("pipe.gguf")).refused(422, "invalid");
    send(Path::new("loop.gguf")).refused(404, "not-found");
    // Files beside the model are models' neighbours, no more.
    for settings in [
        json!({ "loras": [{ "path": "../secret.gguf" }] }),
        json!({ "control_vectors": [{ "path": "/etc/passwd" }] }),
        json!({ "mmproj": { "path": "link.gguf" } }),
        json!({ "draft": { "path": "up/secret.gguf" } }),
    ] {
        let asked = json!({ "model": "m.gguf", "settings": settings }).to_string();
        server
            .post("/v1/estimate", &asked)
            .refused(403, "forbidden");
        server.post("/v1/plan", &asked).refused(403, "forbidden");
    }
    let none = Server::spawn(command(&["--listen", "127.0.0.1:0", "--gpus", "80GiB"]));
    none.post("/v1/estimate", r#"{"model": "m.gguf"}"#)
        .refused(403, "forbidden");
}

#[test]
fn who_has_no_token_stays_outside() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "correct-horse-battery-staple\n").unwrap();
    let server = Server::start(&["--token-file", file.to_str().unwrap()]);
    let with = |value: &str| {
        server.send(
            "GET",
            "/v1/devices",
            &[&format!("Authorization: {value}")],
            "",
        )
    };
    let refused = server.get("/v1/devices");
    refused.refused(401, "unauthorized");
    assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    for wrong in [
        "Bearer correct-horse-battery-stapl",
        "Bearer correct-horse-battery-staplf",
        "Bearer correct-horse-battery-staplee",
        "Bearer ",
        "Bearer",
        "Basic correct-horse-battery-staple",
        "correct-horse-battery-staple",
    ] {
        with(wrong).refused(401, "unauthorized");
    }
    with("Bearer correct-horse-battery-staple").ok(200);
    with("bearer correct-horse-battery-staple").ok(200);
    for path in ["/metrics", "/openapi.json", "/v1/ledger", "/nothing"] {
        server.get(path).refused(401, "unauthorized");
    }
    server
        .post("/v1/estimate", "{")
        .refused(401, "unauthorized");
    server.get("/healthz").ok(200);
    // With the token any name will do.
    let headers = [
        "Host: gpu-box.example",
        "Authorization: Bearer correct-horse-battery-staple",
    ];
    server.send("GET", "/v1/devices", &headers, "").ok(200);

    let mut by_env = command(&["--listen", "127.0.0.1:0", "--gpus", "k80"]);
    by_env.env("VRAMFIT_TOKEN", "0123456789abcdef");
    let server = Server::spawn(by_env);
    server.get("/v1/devices").refused(401, "unauthorized");
}

#[test]
fn without_a_token_it_answers_to_its_own_names() {
    let server = Server::start(&[]);
    let as_host = |host: &str| server.send("GET", "/v1/devices", &[&format!("Host: {host}")], "");
    for own in [
        "localhost",
        "LOCALHOST:80",
        "127.0.0.1:8315",
        "127.1.2.3",
        "[::1]:8315",
        "[::1]",
    ] {
        as_host(own).ok(200);
    }
    for other in [
        "evil.example",
        "localhost.evil.example",
        "10.0.0.1:8315",
        "[2001:db8::1]",
        "",
    ] {
        as_host(other).refused(403, "forbidden");
    }
}

#[test]
fn a_page_of_another_site_changes_nothing() {
    let server = Server::start(&[]);
    let reserved = reserve(&server, &ask(SMALL, "loader")).ok(201);
    let one = format!("/v1/reservations/{}", id(&reserved));
    let commit = format!("{one}/commit");
    // What a browser sends of its own accord, or for a form.
    let body = r#"{"shares": [{"gpu": "CUDA0", "bytes": 1}]}"#;
    for foreign in [
        "Origin: https://evil.example",
        "Origin: null",
        "Origin: http://localhost.evil.example",
        "Sec-Fetch-Site: cross-site",
    ] {
        let json = "Content-Type: application/json";
        let refused = |method: &str, path: &str, body: &str| {
            let answer = server.send(method, path, &[foreign, json], body);
            answer.refused(403, "forbidden");
        };
        refused("POST", &commit, body);
        refused("POST", &commit, "");
        for step in ["renew", "begin", "end"] {
            refused("POST", &format!("{one}/{step}"), "");
        }
        refused("DELETE", &one, "");
        refused("GET", "/v1/ledger", "");
    }
    let form = ["Content-Type: text/plain"];
    server
        .send("POST", &commit, &form, body)
        .refused(415, "media-type");
    server
        .send("POST", &commit, &[], body)
        .refused(415, "media-type");
    assert_eq!(server.get(&one).ok(200), reserved["reservation"]);

    // A page of this machine may, and where there is a token it alone decides.
    for own in ["Origin: http://127.0.0.1:3000", "Sec-Fetch-Site: same-site"] {
        server.send("GET", &one, &[own], "").ok(200);
    }
    server.post(&commit, "").ok(200);
}

#[cfg(unix)]
#[test]
fn no_part_of_a_split_model_may_lie_elsewhere() {
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(&["--models", folder.path().to_str().unwrap()]);
    let first = folder.path().join("m-00001-of-00002.gguf");
    let second = folder.path().join("m-00002-of-00002.gguf");
    let estimate = || server.post("/v1/estimate", r#"{"model": "m-00001-of-00002.gguf"}"#);
    std::fs::copy(fixtures().join(SMALL), &first).unwrap();
    estimate().ok(200);
    // The answer is that of both files: it is not given again when the other one has changed.
    let read = |n: u32| {
        let text = server.get("/metrics").body;
        assert!(
            text.contains(&format!("vramfit_models_read_total {n}\n")),
            "{text}"
        );
    };
    estimate().ok(200);
    read(1);
    std::fs::write(&second, "new").unwrap();
    estimate().ok(200);
    read(2);
    let out = elsewhere.path().join("out.gguf");
    std::fs::copy(fixtures().join(SMALL), &out).unwrap();
    std::fs::remove_file(&second).unwrap();
    std::os::unix::fs::symlink(&out, &second).unwrap();
    estimate().refused(403, "forbidden");
}

/// A model in two parts, as llama.cpp's gguf-split writes them: all keys and no tensor in the first.
#[cfg(unix)]
fn two_parts() -> [Vec<u8>; 2] {
    use vramfit::gguf::Writer;
    let whole = vramfit::Header::open(fixtures().join(SMALL)).unwrap();
    let split = |writer: &mut Writer, no: u16| {
        let n = i32::try_from(whole.tensors().len()).unwrap();
        writer.key("split.no", no).unwrap();
        writer.key("split.count", 2u16).unwrap();
        writer.key("split.tensors.count", n).unwrap();
    };
    let mut first = Writer::new();
    for (key, value) in whole.keys() {
        first.copy_key(key, value);
    }
    split(&mut first, 0);
    let mut second = Writer::new();
    split(&mut second, 1);
    for tensor in whole.tensors() {
        let n_dims = usize::try_from(tensor.n_dims).unwrap();
        second.tensor(&tensor.name, tensor.ty, &tensor.ne[..n_dims]);
    }
    [first.finish().unwrap(), second.finish().unwrap()]
}

#[cfg(unix)]
#[test]
fn split_models_are_found_by_the_names_of_links() {
    use std::os::unix::fs::symlink;
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = |name: &str| folder.path().join(name);
    for made in ["blobs", "snapshot", "plain"] {
        std::fs::create_dir(at(made)).unwrap();
    }
    let server = Server::start(&["--models", folder.path().to_str().unwrap()]);
    let estimate = |model: &str| {
        let asked = json!({ "model": model, "gpus": "80GiB" });
        server.post("/v1/estimate", &asked.to_string())
    };
    // As a hub's cache has them: files by their sums, links by their names.
    for (no, bytes) in (1..).zip(two_parts()) {
        let (blob, name) = (format!("blobs/{no}f3a"), format!("m-{no:05}-of-00002.gguf"));
        std::fs::write(at(&blob), &bytes).unwrap();
        symlink(format!("../{blob}"), at("snapshot").join(&name)).unwrap();
        std::fs::write(at("plain").join(&name), bytes).unwrap();
    }
    let whole = estimate(SMALL).ok(200)["devices"].clone();
    for part in [
        "snapshot/m-00001-of-00002.gguf",
        "snapshot/m-00002-of-00002.gguf",
    ] {
        let found = estimate(part).ok(200);
        assert_eq!(
            found["devices"][0]["required_bytes"],
            whole[0]["required_bytes"]
        );
        // llama-server needs the name, too.
        let named = found["command"].to_string();
        assert!(named.contains("snapshot/m-0000"), "{named}");
    }
    // A name without a number leads to one with it, or to nothing that has a name.
    symlink("plain/m-00001-of-00002.gguf", at("short.gguf")).unwrap();
    symlink("snapshot/m-00001-of-00002.gguf", at("long.gguf")).unwrap();
    symlink("blobs/1f3a", at("bare.gguf")).unwrap();
    for good in ["short.gguf", "long.gguf"] {
        let found = estimate(good).ok(200);
        assert_eq!(
            found["devices"][0]["required_bytes"],
            whole[0]["required_bytes"]
        );
    }
    let bare = estimate("bare.gguf").refused(422, "bad-model");
    assert!(
        bare["detail"].to_string().contains("-00001-of-00002.gguf"),
        "{bare}"
    );
    // No part, and no link to one, is outside.
    let out = elsewhere.path().join("m-00001-of-00002.gguf");
    symlink(at("blobs/1f3a"), &out).unwrap();
    symlink(&out, at("detour.gguf")).unwrap();
    estimate("detour.gguf").refused(403, "forbidden");
    let second = at("snapshot/m-00002-of-00002.gguf");
    std::fs::copy(at("blobs/2f3a"), elsewhere.path().join("2")).unwrap();
    std::fs::remove_file(&second).unwrap();
    symlink(elsewhere.path().join("2"), &second).unwrap();
    estimate("snapshot/m-00001-of-00002.gguf").refused(403, "forbidden");
}

#[test]
fn a_model_that_is_cut_short_and_replaced_under_load_harms_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.gguf");
    let whole = std::fs::read(fixtures().join(SMALL)).unwrap();
    std::fs::write(&file, &whole).unwrap();
    let server = Server::start(&["--models", folder.path().to_str().unwrap()]);
    let is_done = std::sync::atomic::AtomicBool::new(false);
    let done = |now: bool| is_done.fetch_or(now, std::sync::atomic::Ordering::Relaxed);
    let seen = std::thread::scope(|scope| {
        let ask = || {
            let mut seen = BTreeSet::new();
            while !done(false) {
                let found = server.post("/v1/estimate", r#"{"model": "model.gguf"}"#);
                assert!([200, 404, 422].contains(&found.status), "{found:?}");
                seen.insert(found.status);
            }
            seen
        };
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        // In place: whoever has the file mapped loses its pages.
        for round in 0..150 {
            let cut = std::fs::File::options().write(true).open(&file).unwrap();
            cut.set_len(whole.len() as u64 * (round % 7) / 7).unwrap();
            std::thread::sleep(Duration::from_millis(2));
            std::fs::write(&file, &whole).unwrap();
            std::thread::sleep(Duration::from_millis(3));
        }
        done(true);
        let seen = clients.into_iter().map(|client| client.join().unwrap());
        seen.fold(BTreeSet::new(), |a, b| &a | &b)
    });
    assert!(seen.contains(&200) && seen.contains(&422), "{seen:?}");
    let found = server.post("/v1/estimate", r#"{"model": "model.gguf"}"#);
    assert_eq!(found.ok(200)["model"]["architecture"], "qwen3");
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
        "--ledger: ",
    );
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("ledger.redb");
    let ledger = ledger.to_str().unwrap();
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
        "--ledger: ",
    );
    check(
        &["--gpus", "k80", "--listen", &first.address],
        None,
        "cannot listen on",
    );
}

#[test]
fn limits_hold() {
    let server = Server::start(&[
        "--max-body",
        "1000",
        "--timeout",
        "1",
        "--max-requests",
        "1",
    ]);
    let json = "Content-Type: application/json";
    let long = " ".repeat(1001);
    server.post("/v1/estimate", &long).refused(413, "too-large");
    let chunks = format!("3e9\r\n{long}\r\n0\r\n\r\n");
    let chunked = [json, "Transfer-Encoding: chunked"];
    server
        .send("POST", "/v1/estimate", &chunked, &chunks)
        .refused(413, "too-large");

    // A body that does not come: others are told to come back, then it is given up.
    let headers = [json, "Content-Length: 100", "Expect: 100-continue"];
    let mut told = None;
    wait_for("a request beside one that is under way", || {
        let mut slow = server.connect();
        let head = request("POST", "/v1/estimate", &headers, "");
        slow.write_all(head.as_bytes()).unwrap();
        let mut begun = [0; 25];
        slow.read_exact(&mut begun).unwrap();
        assert_eq!(&begun, b"HTTP/1.1 100 Continue\r\n\r\n");
        let beside = server.get("/v1/devices");
        server.get("/healthz").ok(200);
        response(slow).refused(408, "timeout");
        // On a machine that is busy itself the first may have been given up before the second came.
        let is_busy = beside.status == 503;
        told = is_busy.then_some(beside);
        is_busy
    });
    told.unwrap().refused(503, "busy");
    server.get("/v1/devices").ok(200);

    // Headers that do not come.
    let mut silent = server.connect();
    silent
        .write_all(b"GET /v1/devices HTTP/1.1\r\nHost: loc")
        .unwrap();
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).unwrap();
    assert!(!String::from_utf8_lossy(&rest).contains("200 OK"));
}

#[test]
fn a_client_that_reads_nothing_holds_no_connection() {
    let server = Server::start(&["--max-connections", "1", "--timeout", "1"]);
    let mut deaf = server.connect();
    let limit = Some(Duration::from_secs(1));
    deaf.set_write_timeout(limit).unwrap();
    // More answers than any buffer has room for.
    let one = "GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n";
    // It fails where the server no longer reads.
    let _ = deaf.write_all(one.repeat(5000).as_bytes());
    server.get("/healthz").ok(200);
    drop(deaf);
}

#[test]
fn what_is_no_http_harms_nobody() {
    let server = Server::start(&[]);
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /v1/estimate HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\r\n\r\n\r\n\r\n",
    ] {
        let mut stream = server.connect();
        stream.write_all(garbage).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        // It may be answered or cut off.
        let _ = stream.read_to_end(&mut rest);
        assert!(!rest.starts_with(b"HTTP/1.1 2"), "{}", rest.escape_ascii());
        assert!(!rest.starts_with(b"HTTP/1.1 5"), "{}", rest.escape_ascii());
    }
    server.get("/healthz").ok(200);
}

#[test]
fn one_key_reserves_once() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("ledger.redb");
    let arguments = ["--ledger", ledger.to_str().unwrap()];
    let server = Server::start(&arguments);
    let headers = ["Content-Type: application/json", "Idempotency-Key: load-7"];
    let keyed = |server: &Server, asked: &Value| {
        server.send("POST", "/v1/reservations", &headers, &asked.to_string())
    };
    let first = keyed(&server, &ask(SMALL, "loader"));
    let again = keyed(&server, &ask(SMALL, "loader"));
    assert_eq!(first.ok(201), again.ok(201));
    keyed(&server, &ask(SMALL, "another")).refused(422, "key-reused");
    let list = |server: &Server| server.get("/v1/reservations").ok(200)["reservations"].clone();
    assert_eq!(list(&server).as_array().unwrap().len(), 1);

    // Killed and started again it no longer has the answer, but it knows the key.
    let id = id(&first.json());
    drop(server);
    let server = Server::start(&arguments);
    let taken = keyed(&server, &ask(SMALL, "loader")).refused(409, "key-taken");
    assert_eq!(taken["reservations"], json!([id]));
    assert_eq!(list(&server)[0]["key"], "load-7");
    server
        .send("DELETE", &format!("/v1/reservations/{id}"), &[], "")
        .ok(204);
    let anew = keyed(&server, &ask(SMALL, "another")).ok(201);
    assert!(self::id(&anew) > id);
}

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

#[test]
fn a_lease_that_is_not_renewed_runs_out() {
    let server = Server::start(&[]);
    let before = free(&server);
    let leased = json!({ "model": SMALL, "holder": "dead", "lease_ms": 1 });
    reserve(&server, &leased).ok(201);
    let kept = json!({ "model": SMALL, "holder": "alive", "lease_ms": 3_600_000 });
    let kept = reserve(&server, &kept).ok(201);
    wait_for("a lease of a millisecond", || {
        let list = server.get("/v1/reservations").ok(200);
        let list = list["reservations"].as_array().unwrap().clone();
        list.iter()
            .map(|r| r["id"].as_u64().unwrap())
            .collect::<Vec<_>>()
            == [id(&kept)]
    });
    let share = kept["reservation"]["shares"][0].clone();
    let index = usize::from(share["gpu"] == "CUDA1");
    let mut left = before;
    left[index] -= share["bytes"].as_u64().unwrap();
    assert_eq!(free(&server), left);
    let text = server.get("/metrics").body;
    assert!(
        text.contains("vramfit_reservations_expired_total 1\n"),
        "{text}"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn of_its_own_gpus_no_more_is_promised_than_the_driver_says() {
    let install = vramfit_vgpu::Install::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("ledger.redb");
    let models = fixtures();
    let start = || {
        let mut command = command(&[
            "--listen",
            "127.0.0.1:0",
            "--models",
            models.to_str().unwrap(),
            "--ledger",
            ledger.to_str().unwrap(),
        ]);
        // 4123 of 24123 MiB are taken by others.
        let gpus = "2*NVIDIA GeForce RTX 3090:24123MiB:8.6:sms=82:free=20000MiB";
        install.play(&mut command, gpus);
        command.env("LD_LIBRARY_PATH", install.folder());
        Server::spawn(command)
    };
    let server = start();
    let devices = server.get("/v1/devices").ok(200)["devices"].clone();
    let mib = |device: &Value, field: &str| device[field].as_u64().unwrap() >> 20;
    for device in devices.as_array().unwrap() {
        assert!(
            device["gpu"].as_str().unwrap().starts_with("GPU-"),
            "{device}"
        );
        let fields = [
            "capacity_bytes",
            "foreign_bytes",
            "reserved_bytes",
            "free_bytes",
        ];
        let found = fields.map(|field| mib(device, field));
        assert_eq!(found, [24_123, 4_123, 0, 20_000]);
    }
    let reserved = reserve(&server, &ask(SMALL, "loader")).ok(201);
    let share = &reserved["reservation"]["shares"][0];
    assert_eq!(share["gpu"], devices[0]["gpu"]);
    assert_eq!(
        mib(&reserved["estimate"]["devices"][0], "free_bytes"),
        20_000
    );
    let left = (20_000 << 20) - share["bytes"].as_u64().unwrap();
    assert_eq!(free(&server), [left, 20_000 << 20]);
    let leased = json!({ "model": SMALL, "holder": "dead", "lease_ms": 1 });
    reserve(&server, &leased).ok(201);
    wait_for("a lease of a millisecond", || {
        free(&server) == [left, 20_000 << 20]
    });

    // The next one finds it by the GPU's own name.
    drop(server);
    assert_eq!(free(&start()), [left, 20_000 << 20]);
}

/// A server that keeps a ledger of these of the imaginary GPUs.
#[cfg(target_os = "linux")]
fn of_this_machine(
    install: &vramfit_vgpu::Install,
    gpus: &str,
    picks: &str,
    play: impl Fn(&mut std::process::Command),
) -> Server {
    let models = fixtures();
    let mut command = command(&[
        "--listen",
        "127.0.0.1:0",
        "--models",
        models.to_str().unwrap(),
        "--gpus",
        picks,
    ]);
    install.play(&mut command, gpus);
    command.env("LD_LIBRARY_PATH", install.folder());
    play(&mut command);
    Server::spawn(command)
}

#[cfg(target_os = "linux")]
#[test]
fn picked_gpus_go_by_their_uuids_and_are_asked_for() {
    let install = vramfit_vgpu::Install::new().unwrap();
    let card = "NVIDIA GeForce RTX 3090:24123MiB:8.6:sms=82";
    let gpus = format!("{card}:free=20000MiB,{card}:free=10000MiB,{card}:free=15000MiB");
    let all = of_this_machine(&install, &gpus, "auto", |_| ());
    let all = all.get("/v1/devices").ok(200)["devices"].clone();
    let picked = of_this_machine(&install, &gpus, "auto:2,0", |_| ());
    let devices = picked.get("/v1/devices").ok(200)["devices"].clone();
    assert_eq!(devices.as_array().unwrap().len(), 2);
    for (device, (of_all, free)) in [(2, 15_000u64), (0, 20_000)].into_iter().enumerate() {
        let device = &devices[device];
        assert_eq!(device["gpu"], all[of_all]["gpu"]);
        assert_eq!(device["capacity_bytes"], 24_123u64 << 20);
        assert_eq!(device["free_bytes"], free << 20);
        assert_eq!(device["foreign_bytes"], (24_123 - free) << 20);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn where_what_is_free_is_not_known_that_is_said_and_leases_still_end() {
    let install = vramfit_vgpu::Install::new().unwrap();
    let gpus = "NVIDIA GeForce RTX 3090:24123MiB:8.6:sms=82:free=20000MiB";
    // NVML's "driver not loaded", while CUDA works.
    let mut server = of_this_machine(&install, gpus, "auto", |command| {
        command.env("VGPU_FAIL", "nvmlInit:9");
    });
    let devices = server.get("/v1/devices").ok(200);
    assert_eq!(devices["devices"][0]["free_known"], false);
    assert_eq!(devices["devices"][0]["free_bytes"], 24_123u64 << 20);
    assert_eq!(devices["probe"]["error"], Value::Null);
    let leased = json!({ "model": SMALL, "holder": "dead", "lease_ms": 1 });
    reserve(&server, &leased).ok(201);
    wait_for("a lease of a millisecond", || {
        free(&server) == [24_123u64 << 20]
    });
    let mut said = String::new();
    server.process.kill().unwrap();
    let stderr = server.process.stderr.as_mut().unwrap();
    stderr.read_to_string(&mut said).unwrap();
    assert!(said.contains("what is free is not known"), "{said}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_driver_that_no_longer_answers_is_told_of() {
    let install = vramfit_vgpu::Install::new().unwrap();
    let gpus = "NVIDIA GeForce RTX 3090:24123MiB:8.6:sms=82:free=20000MiB";
    let folder = tempfile::tempdir().unwrap();
    let links = folder.path().join("links");
    std::os::unix::fs::symlink(install.folder(), &links).unwrap();
    let server = of_this_machine(&install, gpus, "auto", |command| {
        command.env("LD_LIBRARY_PATH", &links);
    });
    let health = server.get("/healthz").ok(200);
    assert_eq!(health["probe"]["error"], Value::Null);
    assert!(health["probe"]["answered_s"].is_u64());
    assert_eq!(
        server.get("/v1/devices").ok(200)["devices"][0]["free_known"],
        true
    );
    // As after an update of the driver that went wrong.
    std::fs::remove_file(&links).unwrap();
    std::fs::create_dir(&links).unwrap();
    for name in ["libcuda.so.1", "libnvidia-ml.so.1"] {
        std::fs::write(links.join(name), "no library").unwrap();
    }
    // Its lease runs out, and nobody can say what is left of it.
    let leased = json!({ "model": SMALL, "holder": "dead", "lease_ms": 1 });
    reserve(&server, &leased).ok(201);
    let probe = || server.get("/healthz").ok(200)["probe"].clone();
    wait_for("the driver's silence", || probe()["error"].is_string());
    assert!(probe()["answered_s"].is_u64());
    let list = server.get("/v1/reservations").ok(200);
    assert_eq!(list["reservations"].as_array().unwrap().len(), 1);
    let metrics = server.get("/metrics").body;
    assert!(
        metrics.contains("vramfit_probes_failed_total "),
        "{metrics}"
    );
    assert!(
        metrics.contains("vramfit_gpu_probe_age_seconds{gpu=\"GPU-"),
        "{metrics}"
    );
}

/// A driver of one GPU that says what it is told to, as soon as it may.
#[derive(Clone, Default)]
struct Driver {
    free: std::sync::Arc<std::sync::Mutex<u64>>,
    asked: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

const TOTAL: u64 = 20 << 30;

impl vramfit::Probe for Driver {
    fn machine(&self) -> Result<vramfit::devices::Machine, vramfit::devices::ProbeError> {
        let free = *self.free.lock().unwrap();
        self.asked
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let machine = json!({ "driver": null, "cuda": null, "notes": [], "devices": [{
            "cuda_index": 0, "nvml_index": 0, "uuid": null, "pci_id": null, "name": "card",
            "total_bytes": TOTAL, "nvml_total_bytes": null, "reserved_bytes": null,
            "free": { "bytes": free, "from": "nvml" }, "used_bytes": null, "processes": null,
            "compute_capability": "8.6", "sm_count": 82, "integrated": false,
            "virtual_memory": true, "is_mig": false, "board": null }] });
        Ok(serde_json::from_value(machine).unwrap())
    }
}

#[test]
fn what_was_released_is_promised_when_the_driver_says_that_it_is_free() {
    let driver = Driver::default();
    *driver.free.lock().unwrap() = TOTAL - (2 << 30);
    let gpus = vramfit::gpu_list("20GiB:cc=8.6").unwrap();
    let mut config = vramfit_serve::Config::new(gpus);
    config.listen.set_port(0);
    config.models = vec![fixtures()];
    config.probe = Some(std::sync::Arc::new(driver.clone()));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = runtime.unwrap();
    let server = runtime
        .block_on(vramfit_serve::Server::bind(config))
        .unwrap();
    let address = server.address();
    runtime.spawn(server.run(std::future::pending()));
    let send = |method: &str, path: &str, body: &str| {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let json = ["Content-Type: application/json"];
        let text = request(method, path, &json, body);
        stream.write_all(text.as_bytes()).unwrap();
        response(stream)
    };
    let sum = |field: &str| {
        send("GET", "/v1/devices", "").ok(200)["devices"][0][field]
            .as_u64()
            .unwrap()
    };
    let reserve = |asked: Value| send("POST", "/v1/reservations", &asked.to_string());
    let model = "gemma-3-12b.Q4_K_M.gguf"; // 8 GiB and more: two fit, beside others' 2 GiB
    let [a, b] = ["a", "b"].map(|holder| reserve(ask(model, holder)).ok(201));
    let need = a["reservation"]["shares"][0]["bytes"].as_u64().unwrap();
    let capacity = sum("capacity_bytes"); // less what CUDA itself takes once a card
    for reserved in [&a, &b] {
        let commit = format!("/v1/reservations/{}/commit", id(reserved));
        send("POST", &commit, "").ok(200);
    }
    *driver.free.lock().unwrap() = capacity - (2 << 30) - 2 * need;
    // A lease that runs out has the driver asked.
    let asked = || driver.asked.load(std::sync::atomic::Ordering::Relaxed);
    let before = asked();
    let dead = json!({ "name": "dead", "holder": "dead", "lease_ms": 1, "shares": [{ "gpu": "CUDA0", "bytes": 1 }] });
    send("POST", "/v1/ledger/adopt", &dead.to_string()).ok(201);
    wait_for("the driver was asked", || asked() > before);
    wait_for("its answer", || sum("reserved_bytes") == 2 * need);
    assert_eq!(
        (sum("foreign_bytes"), sum("unconfirmed_bytes")),
        (2 << 30, 0)
    );
    reserve(ask(model, "c")).refused(409, "full-now");

    // Released, but the driver has not said that it is free: nothing more is promised.
    let free = driver.free.lock().unwrap();
    send("DELETE", &format!("/v1/reservations/{}", id(&a)), "").ok(204);
    assert_eq!(sum("unconfirmed_bytes"), need);
    assert_eq!(sum("free_bytes"), capacity - (2 << 30) - 2 * need);
    drop(free);
    // It says that it is still taken, and then that it is not.
    wait_for("the next answer", || sum("unconfirmed_bytes") == 0);
    assert_eq!(sum("foreign_bytes"), (2 << 30) + need);
    reserve(ask(model, "c")).refused(409, "full-now");
    *driver.free.lock().unwrap() = capacity - (2 << 30) - need;
    send("DELETE", &format!("/v1/reservations/{}", id(&b)), "").ok(204);
    *driver.free.lock().unwrap() = capacity - (2 << 30);
    wait_for("room for another", || {
        reserve(ask(model, "c")).status == 201
    });
}

#[test]
fn many_clients_never_have_the_same_byte() {
    let server = Server::start(&["--gpus", "rtx3090x4"]);
    let start = std::sync::Barrier::new(24);
    let granted: Vec<Value> = std::thread::scope(|scope| {
        let client = |i: usize| {
            let (server, start) = (&server, &start);
            scope.spawn(move || {
                start.wait();
                let asked = ask(
                    [SMALL, "qwen3-30b-a3b.Q4_K_M.gguf"][i % 2],
                    &format!("client-{i}"),
                );
                let answer = reserve(server, &asked);
                match answer.status {
                    201 => Some(answer.json()),
                    _ => {
                        let kind = answer.json()["type"].clone();
                        assert!(
                            ["urn:vramfit:full-now", "urn:vramfit:full-pending"]
                                .contains(&kind.as_str().unwrap())
                        );
                        None
                    }
                }
            })
        };
        let clients: Vec<_> = (0..24).map(client).collect();
        clients
            .into_iter()
            .filter_map(|client| client.join().unwrap())
            .collect()
    });
    let ids: BTreeSet<u64> = granted.iter().map(id).collect();
    assert_eq!(ids.len(), granted.len());
    let ledger = server.get("/v1/ledger").ok(200);
    assert_eq!(ledger["violations"], json!([]));
    for device in ledger["devices"].as_array().unwrap() {
        let on_it = granted
            .iter()
            .flat_map(|g| g["reservation"]["shares"].as_array().unwrap());
        let on_it = on_it.filter(|share| share["gpu"] == device["gpu"]);
        let sum: u64 = on_it.map(|share| share["bytes"].as_u64().unwrap()).sum();
        assert_eq!(device["reserved_bytes"], sum);
        assert!(sum <= device["capacity_bytes"].as_u64().unwrap());
    }
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
