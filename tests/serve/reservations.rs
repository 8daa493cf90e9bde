//! Reservations: from the first to the last, what is adopted, what each decision says, keys, leases, restarts.

use super::*;

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
    let found = json!({ "name": "old", "holder": "engine", "lease_ms": 600_000, "stays": true,
        "shares": [{ "gpu": "CUDA1", "bytes": 30u64 << 30 }] });
    let answer = adopt(&found);
    let adopted = answer.ok(201);
    assert_eq!(
        (&adopted["phase"], &adopted["model"], &adopted["stays"]),
        (&json!("running"), &json!("old"), &json!(true))
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
    let others = |body: Value| server.post("/v1/ledger/others", &body.to_string());
    others(json!({ "gpu": "CUDA9", "bytes": 1 })).refused(422, "unknown-gpu");
    others(json!({ "gpu": "CUDA0", "bytes": -1 })).refused(422, "invalid");
    others(json!({ "gpu": "", "bytes": 1 })).refused(422, "invalid");
    // No driver has been asked: it says nothing.
    let unasked = free(&server);
    others(json!({ "gpu": "CUDA0", "bytes": 1 << 30 })).ok(200);
    assert_eq!(free(&server), unasked);
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
        (
            json!({ "holder": "engine", "held": [held("CUDA0", 1), held("CUDA0", 2)] }),
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
            "foreign_bytes": 0, "missing_bytes": 0, "unconfirmed_bytes": 0, "free_bytes": capacity - reserved })
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
    let page = |query: &str| server.get(&format!("/v1/decisions?{query}")).ok(200);
    let newest = page("limit=3");
    assert_eq!(
        newest["decisions"].as_array().unwrap()[..],
        all.as_array().unwrap()[..3]
    );
    assert_eq!(newest["next"], json!(2));
    let oldest = page("limit=3&before=2");
    assert_eq!(oldest, json!({ "decisions": [all[3]], "next": null }));
    assert_eq!(page("before=1")["decisions"], json!([]));
    // As clients may write it: letters by their codes, an & too many.
    assert_eq!(page("&%6cimit=%33&before=%32&"), oldest);
    for query in [
        "limit=0",
        "limit=257",
        "limit=few",
        "before",
        "before=0",
        "limit=1&limit=2",
        "page=2",
    ] {
        server
            .get(&format!("/v1/decisions?{query}"))
            .refused(400, "bad-request");
    }
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
fn those_that_come_at_once_under_one_key_get_one_answer() {
    let server = Server::start(&[]);
    let headers = ["Content-Type: application/json", "Idempotency-Key: load-7"];
    let at_once = |path: &str, asked: &Value| -> Vec<Value> {
        let asked = asked.to_string();
        let start = std::sync::Barrier::new(16);
        std::thread::scope(|scope| {
            let one = || {
                start.wait();
                server.send("POST", path, &headers, &asked).ok(201)
            };
            let all: Vec<_> = (0..16).map(|_| scope.spawn(one)).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        })
    };
    for round in 0..4 {
        let reserved = at_once("/v1/reservations", &ask(SMALL, "loader"));
        assert!(reserved.iter().all(|one| *one == reserved[0]), "{round}");
        let one = format!("/v1/reservations/{}", id(&reserved[0]));
        server.send("DELETE", &one, &[], "").ok(204);
        let found =
            json!({ "name": "m", "holder": "h", "shares": [{ "gpu": "CUDA0", "bytes": 1 << 30 }] });
        let adopted = at_once("/v1/ledger/adopt", &found);
        assert!(adopted.iter().all(|one| *one == adopted[0]), "{round}");
        let one = format!("/v1/reservations/{}", adopted[0]["id"]);
        server.send("DELETE", &one, &[], "").ok(204);
    }
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

/// The server is away until a lease has run out by the clock: its holder could not renew it, and nobody else has its
/// bytes.
#[test]
fn a_lease_that_ran_out_while_the_server_was_away_begins_anew() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("ledger.redb");
    let start = || Server::start(&["--gpus", "80GiB", "--ledger", ledger.to_str().unwrap()]);
    let mut server = start();
    let all = json!({ "name": "m", "holder": "alive", "lease_ms": 5000,
        "shares": [{ "gpu": "CUDA0", "bytes": free(&server)[0] }] });
    let mut held = server.post("/v1/ledger/adopt", &all.to_string()).ok(201);
    let renew = format!("/v1/reservations/{}/renew", held["id"]);
    let wait_until_it_has_run_out = |held: &Value| {
        let until = u128::from(held["lease_until_ms"].as_u64().unwrap());
        wait_for("a lease to run out", || {
            let now = std::time::UNIX_EPOCH.elapsed().unwrap();
            now.as_millis() > until
        });
    };
    for is_killed in [false, true] {
        server.signal(if is_killed { "-KILL" } else { "-STOP" });
        wait_until_it_has_run_out(&held);
        if is_killed {
            server = start();
        } else {
            server.signal("-CONT");
        }
        let second = reserve(&server, &ask(SMALL, "second"));
        assert_eq!(second.json()["type"], "urn:vramfit:full-now");
        let list = server.get("/v1/reservations").ok(200);
        assert_eq!(list["reservations"][0]["id"], held["id"]);
        held = server.post(&renew, "").ok(200);
    }
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
