//! Who may ask, and what limits keep: tokens, other sites, slow and broken clients.

use super::*;

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
    for path in ["/v1/devices", "/healthz"] {
        for second in ["Host: localhost", "Host: evil.example"] {
            let twice = server.send("GET", path, &["Host: localhost", second], "");
            twice.refused(400, "bad-request");
        }
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

    // What is said to be too long need not be sent.
    let said = [json, "Content-Length: 1001", "Expect: 100-continue"];
    let answer = server.send("POST", "/v1/estimate", &said, "");
    answer.refused(413, "too-large");

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
