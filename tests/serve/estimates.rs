//! What a model takes, over HTTP, and how what cannot be is refused.

use super::*;

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
fn a_list_is_no_object() {
    let server = Server::start(&[]);
    let share = json!({ "gpu": "CUDA0", "bytes": 1 });
    let within = |settings: Value| {
        (
            "/v1/estimate",
            json!({ "model": SMALL, "settings": settings }),
        )
    };
    for (path, body) in [
        (
            "/v1/estimate",
            json!({ "model": SMALL, "settings": [4096, null] }),
        ),
        ("/v1/estimate", json!([SMALL, null])),
        within(json!({ "loras": [["a.gguf", 1.0]] })),
        within(json!({ "control_vectors": [["a.gguf", 1.0]] })),
        within(json!({ "overrides": [["exps", "CPU"]] })),
        within(json!({ "mmproj": ["a.gguf"] })),
        within(json!({ "draft": ["draft-mtp", null] })),
        within(json!({ "draft": { "overrides": [["exps", "CPU"]] } })),
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
    // Neither of two is taken, whether or not a number is read again.
    let adopt = |fields: &str| {
        let body = format!(r#"{{"name": "m", "holder": "h", {fields}}}"#);
        let refused = server
            .post("/v1/ledger/adopt", &body)
            .refused(422, "invalid");
        assert!(
            refused["detail"].to_string().contains("duplicate field"),
            "{refused}"
        );
    };
    adopt(r#""shares": [{"gpu": "CUDA0", "bytes": 5}], "holder": "other""#);
    adopt(r#""shares": [{"gpu": "CUDA0", "bytes": 5.0}], "holder": "other""#);
    adopt(r#""shares": [{"gpu": "CUDA0", "bytes": 5, "bytes": 9}]"#);
    adopt(r#""lease_ms": 5.0, "shares": [{"gpu": "CUDA0", "bytes": 5, "bytes": 9}]"#);
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
    check(
        estimate,
        r#"{"model": ""}"#,
        422,
        "invalid",
        "model: give a file",
    );
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
    // A byte that is no text.
    check("/v1/reservations/%ff/end", "", 400, "bad-request", "UTF-8");
    check("/v1/reservations/%37/end", "", 404, "not-found", "#7");

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
