//! Reservations a second: `cargo bench -p vramfit-ledger`.

#![allow(clippy::disallowed_types)] // a bench has a clock

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use vramfit_ledger::{GpuId, Journal, Ledger, Probe, Request, Shape, Stale, Store, Volatile, size};

const GIB: u64 = 1 << 30;

fn two_of_80<S: Store>(store: S) -> Ledger<S> {
    let ledger = Ledger::open(store).expect("opens");
    let gpu = |i: u64| {
        (
            GpuId::new("host", format!("GPU-{i}")),
            size(80 * GIB).expect("a size"),
        )
    };
    ledger.set_gpus(&[gpu(0), gpu(1)]).expect("GPUs");
    ledger
}

fn ask(gib: u64) -> Request {
    let shapes = vec![Shape::anywhere([gib * GIB]).expect("a shape")];
    Request::new("model", "server", shapes)
}

fn pair<S: Store>(ledger: &Ledger<S>, request: &Request) -> bool {
    let granted = ledger.reserve(request, 0);
    granted.is_ok_and(|grant| ledger.release(grant.id).is_ok())
}

/// What the driver says is free of both GPUs.
fn figures<S: Store>(ledger: &Ledger<S>, gib: u64) {
    let probe = |i: u64| Probe {
        gpu: GpuId::new("host", format!("GPU-{i}")),
        free_bytes: gib * GIB,
    };
    ledger.probe(&[probe(0), probe(1)]).expect("figures");
}

/// What the driver says now and again, beside 8 models and what has just been released.
fn probes(c: &mut Criterion) {
    let ledger = two_of_80(Volatile);
    for i in 0..8 {
        let grant = ledger.reserve(&ask(8), i).expect("room");
        ledger.commit(grant.id, &grant.shares, i).expect("loaded");
    }
    let request = ask(5);
    let mut gib = 0;
    c.bench_function(
        "a figure of each of 2 GPUs, 8 models, one just released",
        |b| {
            b.iter(|| {
                gib = (gib + 1) % 2;
                pair(&ledger, &request);
                figures(&ledger, 40 + gib)
            })
        },
    );
}

/// One reservation and its release: two operations.
fn reserve_and_release(c: &mut Criterion) {
    let mut group = c.benchmark_group("reserve + release");
    group.throughput(Throughput::Elements(1));
    let ledger = two_of_80(Volatile);
    group.bench_function("in memory", |b| b.iter(|| pair(&ledger, &ask(15))));
    let request = ask(15);
    group.bench_function("in memory, one request again and again", |b| {
        b.iter(|| pair(&ledger, &request))
    });
    let ledger = two_of_80(Volatile);
    figures(&ledger, 70);
    let loaded = ledger.reserve(&ask(10), 0).expect("room");
    ledger.commit(loaded.id, &loaded.shares, 0).expect("loaded");
    figures(&ledger, 60);
    group.bench_function("in memory, with the driver's figures", |b| {
        b.iter(|| pair(&ledger, &request))
    });
    let folder = tempfile::tempdir().expect("a folder");
    let journal = Journal::open(folder.path().join("ledger.redb")).expect("opens");
    let ledger = two_of_80(journal);
    group.sample_size(10);
    group.bench_function("with the journal", |b| b.iter(|| pair(&ledger, &request)));
    group.finish();
}

/// As [`pair`], with how many hold a reservation at once. Counted within the reservation, so that a count that is too
/// high is a promise too many.
fn counted_pair<S: Store>(ledger: &Ledger<S>, request: &Request, held: &Held) {
    if let Ok(grant) = ledger.reserve(request, 0) {
        let now = held.now.fetch_add(1, Ordering::SeqCst) + 1;
        held.most.fetch_max(now, Ordering::SeqCst);
        held.now.fetch_sub(1, Ordering::SeqCst);
        ledger.release(grant.id).expect("released");
    }
}

#[derive(Default)]
struct Held {
    now: AtomicUsize,
    most: AtomicUsize,
}

/// 16 threads that want 45 of 80 GiB on each of two GPUs; never more than two have them.
fn sixteen_threads(c: &mut Criterion) {
    let ledger = two_of_80(Volatile);
    let held = Held::default();
    let request = ask(45);
    let mut group = c.benchmark_group("16 threads");
    group.throughput(Throughput::Elements(1));
    group.bench_function("reserve + release, or refused", |b| {
        b.iter_custom(|n| {
            let start = Barrier::new(17);
            std::thread::scope(|scope| {
                for _ in 0..16 {
                    scope.spawn(|| {
                        start.wait();
                        for _ in 0..n.div_ceil(16) {
                            counted_pair(&ledger, &request, &held);
                        }
                    });
                }
                start.wait();
                Instant::now()
            })
            .elapsed()
        })
    });
    group.finish();
    let most = held.most.into_inner();
    assert!(most <= 2, "{most} at once have what two can have");
}

/// 8 GPUs, 64 stale models of all sizes, and one that needs most of them to leave.
fn evictions(c: &mut Criterion) {
    let full = || {
        let ledger = Ledger::open(Volatile).expect("opens");
        let gpu = |i: u64| {
            (
                GpuId::new("host", format!("GPU-{i}")),
                size(80 * GIB).expect("a size"),
            )
        };
        ledger
            .set_gpus(&(0..8).map(gpu).collect::<Vec<_>>())
            .expect("GPUs");
        for i in 0..64 {
            let grant = ledger.reserve(&ask(5 + i % 9), i).expect("room");
            ledger.commit(grant.id, &grant.shares, i).expect("loaded");
        }
        ledger
    };
    let ledger = full();
    let shapes = [vec![90 * GIB], vec![45 * GIB; 2]];
    let shapes = shapes.map(|shape| Shape::anywhere(shape).expect("a shape"));
    let request = Request::new("large", "server", shapes.to_vec());
    let request = request.evicting(Stale::after(1000, 1000));
    c.bench_function("plan with evictions, 8 GPUs, 64 models", |b| {
        b.iter(|| ledger.plan(&request, 1_000_000))
    });
}

criterion_group!(
    benches,
    reserve_and_release,
    probes,
    sixteen_threads,
    evictions
);
criterion_main!(benches);
