//! This machine's own GPUs: what the driver says against the ledger, and a driver that says nothing.

use super::*;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

#[cfg(target_os = "linux")]
#[test]
fn of_its_own_gpus_no_more_is_promised_than_the_driver_says() {
    let install = vramfit_vgpu::Install::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("ledger.redb");
    let start = || {
        // 4123 of 24123 MiB are taken by others.
        let gpus = "2*NVIDIA GeForce RTX 3090:24123MiB:8.6:sms=82:free=20000MiB";
        let arguments = ["--ledger", ledger.to_str().unwrap()];
        Server::spawn(command_on(&install, gpus, &arguments))
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
    let mut command = command_on(install, gpus, &["--gpus", picks]);
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
    free: Arc<Mutex<u64>>,
    asked: Arc<AtomicU64>,
    /// How long it takes.
    slow_ms: Arc<AtomicU64>,
    /// Who is asking it now, and how many were at most.
    inside: Arc<AtomicU64>,
    most: Arc<AtomicU64>,
}

const TOTAL: u64 = 20 << 30;

impl vramfit::Probe for Driver {
    fn machine(&self) -> Result<vramfit::devices::Machine, vramfit::devices::ProbeError> {
        let inside = self.inside.fetch_add(1, SeqCst) + 1;
        self.most.fetch_max(inside, SeqCst);
        let slow = Duration::from_millis(self.slow_ms.load(SeqCst));
        std::thread::sleep(slow);
        let free = *self.free.lock().unwrap();
        self.asked.fetch_add(1, SeqCst);
        self.inside.fetch_sub(1, SeqCst);
        let machine = json!({ "driver": null, "cuda": null, "notes": [], "devices": [{
            "cuda_index": 0, "nvml_index": 0, "uuid": null, "pci_id": null, "name": "card",
            "total_bytes": TOTAL, "nvml_total_bytes": null, "reserved_bytes": null,
            "free": { "bytes": free, "from": "nvml" }, "used_bytes": null, "processes": null,
            "compute_capability": "8.6", "sm_count": 82, "integrated": false,
            "virtual_memory": true, "is_mig": false, "board": null }] });
        Ok(serde_json::from_value(machine).unwrap())
    }
}

/// A server over its GPU; 2 GiB are others'.
struct Asking {
    _runtime: tokio::runtime::Runtime,
    address: std::net::SocketAddr,
}

fn asks(driver: &Driver) -> vramfit_serve::Config {
    *driver.free.lock().unwrap() = TOTAL - (2 << 30);
    let gpus = vramfit::gpu_list("20GiB:cc=8.6").unwrap();
    let mut config = vramfit_serve::Config::new(gpus);
    config.listen.set_port(0);
    config.models = vec![fixtures()];
    config.probe = Some(Arc::new(driver.clone()));
    config
}

impl Asking {
    fn start(driver: &Driver) -> Asking {
        let config = asks(driver);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build();
        let runtime = runtime.unwrap();
        let server = runtime.block_on(vramfit_serve::Server::bind(config));
        let server = server.unwrap();
        let address = server.address();
        runtime.spawn(server.run(std::future::pending()));
        Asking {
            _runtime: runtime,
            address,
        }
    }

    fn send(&self, method: &str, path: &str, body: &str) -> client::Response {
        let mut stream = std::net::TcpStream::connect(self.address).unwrap();
        let json = ["Content-Type: application/json"];
        let text = request(method, path, &json, body);
        stream.write_all(text.as_bytes()).unwrap();
        response(stream)
    }
}

/// A driver that hangs, or whatever else takes for ever, does not keep a server that was told to stop.
#[test]
fn what_has_no_end_does_not_outlive_the_server() {
    let driver = Driver::default();
    let mut config = asks(&driver);
    config.limits.shutdown = Duration::from_millis(100);
    let hung = driver.clone();
    let (ended, ends) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let work = async {
            let server = vramfit_serve::Server::bind(config).await.unwrap();
            hung.slow_ms.store(u64::MAX, SeqCst);
            let address = server.address();
            let stop = async move {
                let found = json!({ "name": "m", "holder": "h", "shares": [{ "gpu": "CUDA0", "bytes": 1 << 30 }] });
                let json = ["Content-Type: application/json"];
                let text = request("POST", "/v1/ledger/adopt", &json, &found.to_string());
                let adopt = move || {
                    let mut stream = std::net::TcpStream::connect(address).unwrap();
                    stream.write_all(text.as_bytes()).unwrap();
                    response(stream).ok(201);
                    wait_for("a look at what was found", || hung.inside.load(SeqCst) == 1);
                };
                tokio::task::spawn_blocking(adopt).await.unwrap();
            };
            server.run(stop).await;
        };
        vramfit_serve::on_threads(Duration::from_millis(100), work).unwrap();
        ended.send(()).unwrap();
    });
    let limit = Duration::from_secs(120);
    ends.recv_timeout(limit).expect("the server's end");
    assert_eq!(driver.inside.load(SeqCst), 1);
}

#[test]
fn the_driver_is_asked_by_one_at_a_time() {
    let driver = Driver::default();
    let server = Asking::start(&driver);
    let found =
        json!({ "name": "m", "holder": "h", "shares": [{ "gpu": "CUDA0", "bytes": 1 << 30 }] });
    let adopt = || {
        let answer = server.send("POST", "/v1/ledger/adopt", &found.to_string());
        answer.ok(201)
    };
    driver.slow_ms.store(4000, SeqCst);
    adopt();
    wait_for("a look at what was found", || {
        driver.inside.load(SeqCst) == 1
    });
    // More is found while it looks, for so long that a request may have it looked at again; it does not.
    std::thread::sleep(Duration::from_millis(1500));
    adopt();
    let large = json!({ "model": "gemma-3-12b.Q4_K_M.gguf", "holder": "h" });
    let two =
        json!({ "name": "m", "holder": "h", "shares": [{ "gpu": "CUDA0", "bytes": 14u64 << 30 }] });
    server
        .send("POST", "/v1/ledger/adopt", &two.to_string())
        .ok(201);
    let refused = server.send("POST", "/v1/reservations", &large.to_string());
    refused.refused(409, "full-now");
    assert_eq!(driver.most.load(SeqCst), 1);
}

#[test]
fn what_was_released_is_promised_when_the_driver_says_that_it_is_free() {
    let driver = Driver::default();
    let server = Asking::start(&driver);
    let send = |method: &str, path: &str, body: &str| server.send(method, path, body);
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
    let asked = || driver.asked.load(SeqCst);
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

    // An operator knows more than totals tell; less than the driver shows beside reservations it cannot be.
    let others = |bytes: u64| {
        let body = json!({ "gpu": "CUDA0", "bytes": bytes }).to_string();
        send("POST", "/v1/ledger/others", &body).ok(200)["devices"][0]["foreign_bytes"].clone()
    };
    assert_eq!(
        (others(3 << 30), others(0)),
        (json!(3u64 << 30), json!(2u64 << 30))
    );
}
