//! Plan and reserve in one step: real models on a host's GPUs, and the ledger between those who load them.

#![allow(clippy::unwrap_used)] // also in what the tests share

#[path = "reserve/driver.rs"]
mod driver;
#[path = "reserve/evicting.rs"]
mod evicting;

use serde_json::json;
use std::sync::{Arc, Barrier};
use vramfit::ledger::{Memory, Phase, Store, Verdict as Looked};
use vramfit::{
    Device, Error, Host, Journal, LoadRequest, Model, Placement, Policy, Prefer, Reserved,
    RunConfig, Settings, Stale, Verdict, Volatile, ledger,
};

const GIB: u64 = 1 << 30;
const MINUTE: u64 = 60_000;

fn model(name: &str) -> Model {
    let path = format!(
        "{}/../../fixtures/gguf/{name}.gguf",
        env!("CARGO_MANIFEST_DIR")
    );
    vramfit::open(path).unwrap()
}

fn small() -> Model {
    model("qwen3-8b.Q4_K_M")
}

fn large() -> Model {
    model("llama-3.1-70b.Q4_K_M")
}

fn host(gpus: &str) -> Host<Volatile> {
    Host::open(Volatile, "here", vramfit::gpu_list(gpus).unwrap()).unwrap()
}

fn reserve<S: Store>(host: &Host<S>, model: &Model, name: &str) -> Result<Reserved, Error> {
    let load = LoadRequest::new(name, "loader");
    host.reserve(model, &RunConfig::default(), &Policy::default(), &load, 0)
}

fn evicting<S: Store>(
    host: &Host<S>,
    model: &Model,
    name: &str,
    now_ms: u64,
) -> Result<Reserved, Error> {
    let load = LoadRequest::new(name, "loader").evicting(Stale::after(MINUTE, 10 * MINUTE));
    host.reserve(
        model,
        &RunConfig::default(),
        &Policy::default(),
        &load,
        now_ms,
    )
}

/// Loaded, exactly as granted.
fn load<S: Store>(host: &Host<S>, model: &Model, name: &str, now_ms: u64) -> Reserved {
    let reserved = evicting(host, model, name, now_ms).unwrap();
    host.commit(reserved.id(), &reserved.grant.shares, now_ms)
        .unwrap();
    reserved
}

fn free<S: Store>(host: &Host<S>) -> Vec<u64> {
    let devices = host.gpus_now().unwrap().devices;
    devices.iter().map(|device| device.free_bytes).collect()
}

/// GPUs that it is on.
fn on(placement: &Placement) -> Vec<usize> {
    let used = placement.devices.iter().filter(|d| d.required_bytes > 0);
    used.map(|d| d.device).collect()
}

/// The reservation is what the placement takes, GPU by GPU.
fn check<S: Store>(host: &Host<S>, reserved: &Reserved) {
    let used = reserved
        .placement
        .devices
        .iter()
        .filter(|d| d.required_bytes > 0);
    let used: Vec<_> = used.map(|d| (d.device, d.required_bytes)).collect();
    assert_eq!(reserved.grant.shares, host.shares(&used).unwrap());
    assert!(host.ledger().audit().unwrap().is_empty());
    let short = reserved
        .placement
        .devices
        .iter()
        .filter(|d| d.headroom_bytes < 0);
    assert_eq!(short.count(), 0);
}

#[test]
fn what_is_reserved_is_what_the_placement_takes() {
    let host = host("h100x2");
    let before = free(&host);
    let reserved = reserve(&host, &small(), "qwen3:8b").unwrap();
    check(&host, &reserved);
    assert_eq!(reserved.placement.verdict, Verdict::Fits);
    assert_eq!(on(&reserved.placement), [0]);

    let taken = reserved.placement.devices[0].required_bytes;
    assert_eq!(free(&host), [before[0] - taken, before[1]]);
    let alone = vramfit::plan(
        &small(),
        &RunConfig::default(),
        &vramfit::gpus("h100").unwrap(),
        &Policy::default(),
    );
    let alone = alone.unwrap().devices[0].clone();
    assert_eq!(reserved.placement.devices[0].memory, alone.memory);

    host.release(reserved.id()).unwrap();
    assert_eq!(free(&host), before);
}

#[test]
fn the_next_one_goes_where_there_is_more_room() {
    let host = host("h100x2");
    for gpu in [0, 1, 0, 1] {
        let reserved = reserve(&host, &small(), "qwen3:8b").unwrap();
        check(&host, &reserved);
        assert_eq!(on(&reserved.placement), [gpu]);
        let flag = format!("CUDA{gpu}");
        let at = reserved.placement.flags.iter().position(|f| f == "-dev");
        assert_eq!(reserved.placement.flags[at.unwrap() + 1], flag);
    }
}

#[test]
fn who_wants_the_fuller_gpu_gets_it() {
    let host = host("h100x2");
    reserve(&host, &small(), "first").unwrap();
    let policy = Policy {
        prefer: Prefer::Tightest,
        ..Policy::default()
    };
    let load = LoadRequest::new("second", "loader");
    let run = RunConfig::default();
    let reserved = host.reserve(&small(), &run, &policy, &load, 0).unwrap();
    check(&host, &reserved);
    assert_eq!(on(&reserved.placement), [0]);
}

#[test]
fn the_driver_keeps_its_part_of_a_card_once() {
    let host = host("24GiB");
    let given = &vramfit::gpus("24GiB").unwrap()[0];
    let capacity = host.gpus().devices[0].free_bytes;
    let per_process = host.gpus().devices[0].overhead.bytes;
    assert!(capacity < given.free_bytes);
    assert_eq!(
        given.free_bytes - capacity,
        given.overhead.bytes - per_process
    );
    assert!(given.overhead.source.contains("the driver keeps"));
    assert!(
        !host.gpus().devices[0]
            .overhead
            .source
            .contains("the driver keeps")
    );
    let [first, second] = ["a", "b"].map(|name| reserve(&host, &small(), name).unwrap());
    for reserved in [first, second] {
        check(&host, &reserved);
        assert_eq!(reserved.placement.devices[0].overhead_bytes, per_process);
    }
}

#[test]
fn over_two_gpus_only_where_one_cannot() {
    let host = host("rtx4090x2");
    let run = RunConfig::default();
    let policy = Policy::default();
    let request = LoadRequest::new("qwen3.5:27b", "loader");
    let one = host.reserve(&model("qwen3.5-27b.Q4_K_M"), &run, &policy, &request, 0);
    let one = one.unwrap();
    check(&host, &one);
    assert_eq!(on(&one.placement).len(), 1);
    host.release(one.id()).unwrap();

    let f16 = model("llama-3.1-8b.F16");
    let run = RunConfig::builder().n_ctx(131_072).build();
    let request = LoadRequest::new("llama3.1:8b", "loader");
    let two = host.reserve(&f16, &run, &policy, &request, 0).unwrap();
    check(&host, &two);
    assert_eq!(on(&two.placement), [0, 1]);
    assert_eq!(two.placement.verdict, Verdict::Fits);
    let refused = host.reserve(&f16, &run, &policy, &request, 0).unwrap_err();
    assert!(refused.can_retry());
    assert!(matches!(
        refused,
        Error::Ledger(ledger::Error::FullPending { pending, .. }) if pending == [two.id()]
    ));
    host.commit(two.id(), &two.grant.shares, 1).unwrap();
    let refused = host.reserve(&f16, &run, &policy, &request, 2).unwrap_err();
    let Error::Ledger(ledger::Error::FullNow(decision)) = refused else {
        panic!("{refused}");
    };
    let Looked::Short(short) = &decision.options[0].verdict else {
        panic!("{decision:?}");
    };
    assert!(short.iter().all(|s| s.need_bytes > s.room_bytes));
}

#[test]
fn what_never_fits_says_so_and_a_part_of_it_may() {
    let host = host("rtx3060");
    let refused = reserve(&host, &large(), "70b").unwrap_err();
    assert!(!refused.can_retry());
    assert!(refused.to_string().contains("lacks"), "{refused}");
    let Error::NeverFits { placement, .. } = refused else {
        panic!("{refused}");
    };
    assert_eq!(placement.verdict, Verdict::Partial);
    assert!(
        host.ledger()
            .state()
            .unwrap()
            .reservations()
            .next()
            .is_none()
    );

    let run = RunConfig::default();
    let load = LoadRequest::new("70b", "loader").or_partial();
    let part = host
        .reserve(&large(), &run, &Policy::default(), &load, 0)
        .unwrap();
    check(&host, &part);
    assert_eq!(part.placement.verdict, Verdict::Partial);
    assert!(!part.placement.host_layers.is_empty());
}

#[test]
fn layers_that_the_flags_keep_on_the_host_are_as_asked() {
    let host = host("rtx3060x2");
    let settings = Settings::from_json(r#"{"n_gpu_layers": 20}"#).unwrap();
    let resolved = settings.resolve(&large(), host.gpus()).unwrap();
    let load = LoadRequest::new("70b", "loader");
    let reserved = host.reserve(&large(), &resolved.run, &resolved.policy, &load, 0);
    let reserved = reserved.unwrap();
    check(&host, &reserved);
    assert_eq!(reserved.placement.host_layers.len(), 61);
}

#[test]
fn without_a_gpu_there_is_nothing_to_reserve() {
    let host = host("h100");
    let mut policy = Policy::default();
    policy.pinned.n_gpu_layers = Some(0);
    policy.pinned.devices = Some(Vec::new());
    let load = LoadRequest::new("m", "loader");
    let refused = host.reserve(&small(), &RunConfig::default(), &policy, &load, 0);
    assert!(matches!(refused, Err(Error::NoGpu { .. })));
}

#[test]
fn plans_and_grants_serialise() {
    let host = host("h100x2");
    let gpus = host.gpus_now().unwrap();
    let reserved = reserve(&host, &small(), "qwen3:8b").unwrap();
    let resolved = Settings::default().resolve(&small(), &gpus).unwrap();
    let document = vramfit::document("m.gguf", &small(), &gpus, &resolved, &reserved.placement);
    let text = serde_json::to_string(&document).unwrap();
    let again: vramfit::report::Estimate = serde_json::from_str(&text).unwrap();
    assert_eq!(again, document);
    let bytes = reserved.placement.devices[0].required_bytes;
    assert_eq!(again.devices[0].required_bytes, bytes);
    let text = serde_json::to_string(&reserved.grant).unwrap();
    let again: vramfit::Grant = serde_json::from_str(&text).unwrap();
    assert_eq!(again, reserved.grant);
}

#[test]
fn gpus_are_named_once() {
    let gpus: Vec<Device> = vramfit::gpus("h100x2").unwrap();
    let refused = Host::with_ids(Volatile, "here", gpus, ["GPU-5f2c"; 2]).err();
    assert!(matches!(
        refused,
        Some(Error::Ledger(ledger::Error::GpuTwice(_)))
    ));
}

#[test]
fn lists_have_a_value_for_each_gpu() {
    let gpus = || vramfit::gpus("80GiBx2").unwrap();
    for names in [&["GPU-1"][..], &["GPU-1", "GPU-2", "GPU-3"]] {
        let refused = Host::with_ids(Volatile, "here", gpus(), names.iter().copied()).err();
        let counts =
            matches!(refused, Some(Error::Count { given, gpus: 2, .. }) if given == names.len());
        assert!(counts, "{refused:?}");
    }
    let host = host("80GiBx2");
    let before = free(&host);
    for bytes in [&[GIB][..], &[GIB; 3]] {
        let refused = host.observe(bytes).unwrap_err();
        assert_eq!(refused.status(), vramfit::Status::InvalidArgument);
        assert!(matches!(host.probes(bytes), Err(Error::Count { .. })));
    }
    assert_eq!(free(&host), before);
}

/// Sixteen threads on four ledgers over one store: each plans on what it last saw, and is told when that
/// is no longer so. Never is a byte promised twice, and in the end the GPUs are as full as they get.
#[test]
fn many_loaders_never_promise_the_same_byte() {
    let store = Memory::new();
    let hosts: Vec<_> = (0..4)
        .map(|_| {
            let gpus = vramfit::gpus("rtx3090x4").unwrap();
            Arc::new(Host::open(store.clone(), "here", gpus).unwrap())
        })
        .collect();
    let models = Arc::new([
        small(),
        model("gemma-3-12b.Q4_K_M"),
        model("qwen3-30b-a3b.Q4_K_M"),
    ]);
    let start = Arc::new(Barrier::new(16));
    let loader = |n: usize| {
        let (host, models, start) = (hosts[n % 4].clone(), models.clone(), start.clone());
        std::thread::spawn(move || {
            let mut rng = fastrand::Rng::with_seed(n as u64);
            let mut held = Vec::new();
            start.wait();
            for _ in 0..4 {
                let model = &models[rng.usize(..models.len())];
                match reserve(&host, model, "m") {
                    Ok(reserved) => {
                        let shares = &reserved.grant.shares;
                        host.commit(reserved.id(), shares, 0).unwrap();
                        held.push(reserved.id());
                    }
                    Err(error) => assert!(error.can_retry(), "{error}"),
                }
                assert!(host.ledger().audit().unwrap().is_empty());
                if rng.bool() && !held.is_empty() {
                    let id = held.swap_remove(rng.usize(..held.len()));
                    host.release(id).unwrap();
                }
            }
        })
    };
    let loaders: Vec<_> = (0..16).map(loader).collect();
    for loader in loaders {
        loader.join().unwrap();
    }
    let host = &hosts[0];
    while reserve(host, &small(), "last").is_ok() {}
    assert!(host.ledger().audit().unwrap().is_empty());
    let refused = reserve(host, &small(), "last").unwrap_err();
    assert!(refused.can_retry());
    let alone = reserve(
        &Host::open(Volatile, "other", vramfit::gpus("rtx3090").unwrap()).unwrap(),
        &small(),
        "alone",
    );
    let need = alone.unwrap().placement.devices[0].required_bytes;
    assert!(free(host).iter().all(|&free| free < need));
}
