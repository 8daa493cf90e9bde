//! The ledger: what over-committed an 80 GiB GPU to 128.175 GiB in a production scheduler, and every
//! other case of how a ledger goes wrong.

#![allow(clippy::unwrap_used)] // also in what the tests share

#[path = "ledger/away.rs"]
mod away;
#[path = "ledger/evicting.rs"]
mod evicting;
#[path = "ledger/figures.rs"]
mod figures;
#[path = "ledger/going.rs"]
mod going;
#[path = "ledger/journal.rs"]
mod journal;
#[path = "ledger/larger.rs"]
mod larger;
#[path = "ledger/leases.rs"]
mod leases;
#[path = "ledger/placing.rs"]
mod placing;
#[path = "ledger/plans.rs"]
mod plans;
#[path = "ledger/unsaid.rs"]
mod unsaid;

use vramfit_ledger::{
    Adopt, Error, Event, GpuId, Grant, Held, Journal, Ledger, Memory, Phase, Probe, Request,
    ReservationId, Shape, Share, Stale, State, Store, StoreError, Tail, Verdict, Volatile, size,
};

const GIB: u64 = 1 << 30;
const QWEN3_30B: u64 = 79_982_566_400;
const QWEN3_8B: u64 = 15_767_897_088;
const GPT_OSS_20B: u64 = 51_325_686_144;
const QWEN25_VL_7B: u64 = 39 * GIB;
/// Idle for a minute, not started for ten.
const MINUTE: u64 = 60_000;

fn stale() -> Stale {
    Stale::after(MINUTE, 10 * MINUTE)
}

fn gpu(host: &str, i: usize) -> GpuId {
    GpuId::new(host, format!("GPU-{i}"))
}

fn gpu0() -> GpuId {
    gpu("a", 0)
}

fn gpu1() -> GpuId {
    gpu("a", 1)
}

fn hosts(hosts: &[(&str, &[u64])]) -> Ledger<Volatile> {
    let ledger = Ledger::open(Volatile).unwrap();
    for (host, gib) in hosts {
        let one = |(i, &gib): (usize, &u64)| (gpu(host, i), size(gib * GIB).unwrap());
        let gpus: Vec<_> = gib.iter().enumerate().map(one).collect();
        ledger.set_gpus(&gpus).unwrap();
    }
    ledger
}

fn two_of_80() -> Ledger<Volatile> {
    hosts(&[("a", &[80, 80])])
}

/// Ways to place a model: bytes on one GPU, on each of two, ..
fn ask(model: &str, ways: &[&[u64]]) -> Request {
    let shape = |way: &&[u64]| Shape::anywhere(way.iter().copied()).unwrap();
    Request::new(model, "server", ways.iter().map(shape).collect())
}

fn share(gpu: GpuId, bytes: u64) -> Share {
    Share::new(gpu, bytes).unwrap()
}

/// Reserved and loaded.
fn load<S: Store>(ledger: &Ledger<S>, request: &Request, now_ms: u64) -> Grant {
    let grant = ledger.reserve(request, now_ms).unwrap();
    ledger.commit(grant.id, &grant.shares, now_ms).unwrap();
    grant
}

/// Until then the ledger is there all the time, as far as leases of `lease_ms` can tell.
fn attend<S: Store>(ledger: &Ledger<S>, times: std::ops::RangeInclusive<u64>, lease_ms: u64) {
    let (to, step) = (*times.end(), usize::try_from(lease_ms / 4).unwrap());
    for now_ms in times.step_by(step).chain([to]) {
        ledger.lapsed(now_ms).unwrap();
    }
}

fn on(grant: &Grant) -> Vec<&str> {
    grant.shares.iter().map(|s| s.gpu.gpu().as_str()).collect()
}

fn free<S: Store>(ledger: &Ledger<S>) -> Vec<u64> {
    let gpus = ledger.gpus().unwrap();
    gpus.iter().map(|view| view.free_bytes).collect()
}

// The scenario.

#[test]
fn three_models_on_two_gpus_are_74_and_53_gib_never_128() {
    let ledger = two_of_80();
    let large = load(&ledger, &ask("qwen3:30b", &[&[QWEN3_30B]]), 0);
    let small = load(&ledger, &ask("qwen3:8b", &[&[QWEN3_8B]]), 0);
    let vision = load(&ledger, &ask("Qwen2.5-VL-7B", &[&[QWEN25_VL_7B]]), 0);
    assert_eq!(on(&large), ["GPU-0"]);
    assert_eq!(on(&small), ["GPU-1"]);
    assert_eq!(on(&vision), ["GPU-1"]);
    let left = [80 * GIB - QWEN3_30B, 80 * GIB - QWEN3_8B - QWEN25_VL_7B];
    assert_eq!(free(&ledger), left);
    assert!(ledger.audit().unwrap().is_empty());
}

#[test]
fn all_three_on_one_gpu_are_refused() {
    let ledger = hosts(&[("a", &[80])]);
    load(&ledger, &ask("qwen3:30b", &[&[QWEN3_30B]]), 0);
    for (model, bytes) in [
        ("qwen3:8b", QWEN3_8B),
        ("vl", QWEN25_VL_7B),
        ("gpt-oss:20b", GPT_OSS_20B),
    ] {
        let Err(Error::FullNow(decision)) = ledger.reserve(&ask(model, &[&[bytes]]), 0) else {
            panic!("{model} was not refused");
        };
        let Verdict::Short(short) = &decision.options[0].verdict else {
            panic!("{decision:?}");
        };
        assert_eq!(short[0].need_bytes, bytes);
        assert_eq!(short[0].room_bytes, 80 * GIB - QWEN3_30B);
    }
    assert_eq!(ledger.state().unwrap().reservations().count(), 1);
}
