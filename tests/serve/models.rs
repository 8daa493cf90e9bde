//! Which files are models: those below the folders, split ones too, and what happens when they change.

use super::*;

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

#[cfg(unix)]
#[test]
fn a_model_has_one_name_however_it_is_spelled() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("deep")).unwrap();
    std::fs::copy(fixtures().join(SMALL), at("deep/m.gguf")).unwrap();
    std::os::unix::fs::symlink("deep/m.gguf", at("link.gguf")).unwrap();
    for (no, bytes) in (1..).zip(two_parts()) {
        std::fs::write(at(&format!("m-{no:05}-of-00002.gguf")), bytes).unwrap();
    }
    let server = Server::start(&[
        "--models",
        folder.path().to_str().unwrap(),
        "--gpus",
        "8GiB",
    ]);
    // All may leave that is not the model itself.
    let ask = |model: &str| {
        let evict = json!({ "idle_ms": 0, "start_ms": 0 });
        let asked = json!({ "model": model, "holder": "loader", "evict": evict });
        reserve(&server, &asked)
    };
    let whole = at("deep/m.gguf");
    let spellings = [
        &[
            "deep/m.gguf",
            "./deep/./m.gguf",
            "link.gguf",
            whole.to_str().unwrap(),
        ][..],
        &["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"],
    ];
    for spellings in spellings {
        for first in spellings {
            let reserved = ask(first).ok(201);
            assert_eq!(reserved["reservation"]["model"], spellings[0]);
            let one = format!("/v1/reservations/{}", id(&reserved));
            server.post(&format!("{one}/commit"), "").ok(200);
            let active = server.get(&one).ok(200)["active_ms"].as_u64().unwrap();
            wait_for("a millisecond without a request", || {
                let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis();
                now > u128::from(active) + 1
            });
            for second in spellings {
                ask(second).refused(409, "full-now");
            }
            server.send("DELETE", &one, &[], "").ok(204);
        }
    }
}
