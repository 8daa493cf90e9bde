//! What the driver says of a host's GPUs: others, engines that sleep, GPUs that are gone.

use super::*;

#[test]
fn free_is_the_less_of_driver_and_ledger() {
    let host = host("80GiBx2");
    let capacity = free(&host)[0];
    host.observe(&[GIB, capacity]).unwrap();
    assert_eq!(free(&host), [GIB, capacity]);
    let reserved = reserve(&host, &large(), "70b").unwrap();
    assert_eq!(on(&reserved.placement), [1]);
    let refused = reserve(&host, &large(), "70b").unwrap_err();
    assert!(refused.can_retry());
    check(&host, &reserved);
}

/// llama-server unloads what is idle without a word and loads it again with the next request.
#[test]
fn what_sleeps_may_load_again_and_evicting_it_frees_nothing_of_others() {
    for (others, asleep) in [(20 * GIB, 30 * GIB), (30 * GIB, 20 * GIB)] {
        let host = host("80GiB");
        let capacity = free(&host)[0];
        let observe = |free_bytes| host.observe(&[free_bytes]).unwrap();
        observe(capacity - others);
        let shares = host.shares(&[(0, asleep)]).unwrap();
        let found = ledger::Adopt::new("old", "engine", shares);
        // One of those that take something, until then.
        observe(capacity - others - asleep);
        let old = host.ledger().adopt(&found, 0).unwrap();
        observe(capacity - others - asleep);
        let room = capacity - others - asleep;
        assert_eq!(free(&host), [room]);
        observe(capacity - others);
        assert_eq!(free(&host), [room]);
        let shown = host.ledger().gpus().unwrap();
        assert_eq!(
            (shown[0].foreign_bytes, shown[0].missing_bytes),
            (others, asleep)
        );
        // All of it and no more is granted by evicting it; then what it would have taken is.
        let reserve = |n_ctx| {
            let run = RunConfig::builder().n_ctx(n_ctx).build();
            let stale = Stale::after(MINUTE, 10 * MINUTE);
            let load = LoadRequest::new("new", "loader").evicting(stale);
            host.reserve(&small(), &run, &Policy::default(), &load, 2 * MINUTE)
        };
        let all: Vec<u64> = (1..=20)
            .filter_map(|i| reserve(i * 32_768).ok())
            .map(|reserved| {
                let bytes = reserved.grant.shares[0].bytes.get();
                let is_evicted = reserved.grant.evict.iter().any(|e| e.id == old);
                if is_evicted {
                    host.release(old).unwrap();
                }
                host.release(reserved.id()).unwrap();
                assert_eq!(is_evicted, bytes > room);
                assert!(bytes <= capacity - others);
                bytes
            })
            .take_while(|&bytes| bytes <= room)
            .collect();
        assert!(!all.is_empty());
        assert_eq!(host.ledger().state().unwrap().reservations().count(), 0);
        assert_eq!(free(&host), [capacity - others]);
    }
}

#[test]
fn a_restart_finds_the_reservations_and_misses_the_gpus_that_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    let open = |gpus: &str| {
        let journal = Journal::open(folder.path().join("ledger.redb")).unwrap();
        Host::open(journal, "here", vramfit::gpus(gpus).unwrap()).unwrap()
    };
    let (id, left) = {
        let host = open("h100x2");
        let reserved = load(&host, &large(), "70b", 0);
        reserve(&host, &small(), "8b").unwrap();
        (reserved.id(), free(&host))
    };
    let host = open("h100x2");
    assert_eq!(free(&host), left);
    let state = host.ledger().state().unwrap();
    assert_eq!(state.reservation(id).unwrap().phase, Phase::Running);
    drop(host);

    let host = open("h100");
    let violations = host.ledger().audit().unwrap();
    assert_eq!(violations.len(), 1);
    assert_eq!(violations[0].gpu.gpu().as_str(), "CUDA1");
    assert_eq!(violations[0].capacity_bytes, 0);
    assert_eq!(host.gpus_now().unwrap().devices.len(), 1);
}

/// A machine of cards of 80 GiB with so much free each, where the driver says it.
fn machine(free: &[Option<u64>]) -> vramfit::GpuList {
    let card = |(i, free): (usize, &Option<u64>)| {
        json!({
            "cuda_index": i, "nvml_index": i, "uuid": format!("GPU-{i}"), "pci_id": null, "name": "card",
            "total_bytes": 80 * GIB, "nvml_total_bytes": null, "reserved_bytes": null,
            "free": free.map(|bytes| json!({ "bytes": bytes, "from": "nvml" })), "used_bytes": null,
            "processes": null, "compute_capability": "9.0", "sm_count": 132, "integrated": false,
            "virtual_memory": true, "is_mig": false, "board": null
        })
    };
    let unknown = |i| json!({ "kind": "free_unknown", "device": i, "why": "no NVML" });
    let is_unknown = |(i, free): (usize, &Option<u64>)| free.is_none().then(|| unknown(i));
    let devices: Vec<_> = free.iter().enumerate().map(card).collect();
    let notes: Vec<_> = free.iter().enumerate().filter_map(is_unknown).collect();
    let machine = json!({ "driver": null, "cuda": null, "notes": notes, "devices": devices });
    let machine: vramfit::Machine = serde_json::from_value(machine).unwrap();
    machine.list()
}

#[test]
fn what_others_hold_when_it_is_opened_is_promised_when_they_have_gone() {
    let store = Memory::new();
    let open = |free: &[Option<u64>]| {
        let host = Host::open(store.clone(), "here", machine(free)).unwrap();
        let capacity = host.gpus().devices[0].free_bytes;
        assert_eq!(capacity, 80 * GIB);
        host
    };
    let at_first = open(&[Some(60 * GIB), Some(80 * GIB), None]);
    // Of the third nobody says what is free: all of it is promised.
    assert_eq!(free(&at_first), [60 * GIB, 80 * GIB, 80 * GIB]);
    let found = |gpu: usize| {
        let shares = at_first.shares(&[(gpu, 10 * GIB)]).unwrap();
        ledger::Adopt::new(format!("on {gpu}"), "loader", shares).staying()
    };
    let old = [0, 2].map(|gpu| at_first.ledger().adopt(&found(gpu), 1).unwrap());
    drop(at_first);

    // The engines live on while the loader is started again, and others have gone: 10 GiB are taken, and counted once.
    let again = open(&[Some(70 * GIB), Some(80 * GIB), None]);
    assert_eq!(free(&again), [70 * GIB, 80 * GIB, 70 * GIB]);
    assert!(again.ledger().audit().unwrap().is_empty());
    again.release(old[1]).unwrap();
    again.release(old[0]).unwrap();
    // Where a driver is asked, its next figure says that it is free.
    assert_eq!(free(&again), [70 * GIB, 80 * GIB, 80 * GIB]);
    again
        .ledger()
        .probe(&again.probes(&[80 * GIB; 3]).unwrap()[..2])
        .unwrap();
    assert_eq!(free(&again), [80 * GIB; 3]);

    // A card falls off the bus, and those behind it move up: what is on them goes by their UUIDs.
    let held = again.shares(&[(2, 10 * GIB)]).unwrap();
    assert_eq!(held[0].gpu.gpu().as_str(), "GPU-2");
    let found = ledger::Adopt::new("m", "loader", held);
    again.ledger().adopt(&found, 2).unwrap();
    drop(again);
    let mut fewer = machine(&[None; 3]);
    fewer.devices.remove(0);
    fewer.ids.remove(0);
    let open = |gpus| Host::open(store.clone(), "here", gpus).unwrap();
    assert_eq!(free(&open(fewer.clone())), [80 * GIB, 70 * GIB]);
    // What the probe could not find out somebody else may know.
    fewer.devices[1].free_bytes = 30 * GIB;
    assert_eq!(free(&open(fewer)), [80 * GIB, 30 * GIB]);
}

#[test]
fn of_gpus_given_by_hand_no_more_is_taken_than_was_free() {
    let host = host("80GiB:free=20GiB");
    let capacity = free(&host);
    assert!(capacity[0] <= 20 * GIB);
    host.observe(&[80 * GIB]).unwrap();
    assert_eq!(free(&host), capacity);
    // Unless it is said that the driver is to be asked.
    let gpus = vramfit::gpu_list("80GiB:free=20GiB").unwrap();
    let asked = Host::unobserved(Volatile, "here", gpus, ["GPU-1"]).unwrap();
    assert!(free(&asked)[0] > 75 * GIB);
    asked.observe(&[30 * GIB]).unwrap();
    assert_eq!(free(&asked), [30 * GIB]);
}
