//! Threads: every interleaving of a few under loom, and sixteen real ones.

#![allow(clippy::unwrap_used)] // also in what the tests share

use std::sync::{Arc, Barrier};
use vramfit_ledger::{
    Error, GpuId, Inner, Ledger, Lock, Log, Memory, Request, Shape, Stale, Store, Volatile, size,
};

const GIB: u64 = 1 << 30;

struct Loom<T>(loom::sync::Mutex<T>);

impl<T> Lock<T> for Loom<T> {
    fn new(value: T) -> Self {
        Loom(loom::sync::Mutex::new(value))
    }

    fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        work(&mut self.0.lock().unwrap())
    }
}

type Looming<S> = Ledger<S, Loom<Inner<S>>>;

fn gpu() -> GpuId {
    GpuId::new("host", "GPU-0")
}

fn ask(model: &str, gib: u64) -> Request {
    Request::new(model, model, vec![Shape::anywhere([gib * GIB]).unwrap()])
}

fn with_80_gib<S: Store, L: Lock<Inner<S>>>(ledger: Ledger<S, L>) -> Ledger<S, L> {
    ledger
        .set_gpus(&[(gpu(), size(80 * GIB).unwrap())])
        .unwrap();
    ledger
}

/// Reserves, commits, releases if it may; whether it was granted.
fn load<S: Store, L: Lock<Inner<S>>>(ledger: &Ledger<S, L>, model: &str, release: bool) -> bool {
    match ledger.reserve(&ask(model, 45), 0) {
        Ok(grant) => {
            ledger.commit(grant.id, &grant.shares, 0).unwrap();
            assert!(ledger.audit().unwrap().is_empty());
            if release {
                ledger.release(grant.id).unwrap();
            }
            true
        }
        Err(Error::FullNow(_) | Error::FullPending { .. }) => false,
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn of_two_threads_one_gets_the_gpu_whatever_the_interleaving() {
    loom::model(|| {
        let ledger: Looming<Volatile> = Ledger::open_with(Volatile).unwrap();
        let ledger = loom::sync::Arc::new(with_80_gib(ledger));
        let other = ledger.clone();
        let there = loom::thread::spawn(move || load(&other, "a", false));
        let here = load(&ledger, "b", false);
        assert!(here != there.join().unwrap());
        assert_eq!(ledger.gpus().unwrap()[0].free_bytes, 35 * GIB);
    });
}

/// Two servers, each with a ledger and a lock of its own, over one store: what one appends between the
/// other's decision and its append makes that decision void.
#[test]
fn of_two_servers_one_gets_the_gpu_whatever_the_interleaving() {
    loom::model(|| {
        let store = Memory::<Loom<Log>>::default();
        let open = |store| -> Looming<Memory<Loom<Log>>> { Ledger::open_with(store).unwrap() };
        let here = with_80_gib(open(store.clone()));
        let there = open(store.clone());
        let other = loom::thread::spawn(move || load(&there, "a", false));
        let mine = load(&here, "b", false);
        assert!(mine != other.join().unwrap());
        let after = open(store).state().unwrap();
        assert_eq!(after, here.state().unwrap());
        assert_eq!(after.gpus()[0].free_bytes, 35 * GIB);
    });
}

/// A request begins while another server evicts: it is served, or the model leaves, never both.
#[test]
fn nothing_in_use_is_evicted_whatever_the_interleaving() {
    loom::model(|| {
        let store = Memory::<Loom<Log>>::default();
        let open = |store| -> Looming<Memory<Loom<Log>>> { Ledger::open_with(store).unwrap() };
        let here = with_80_gib(open(store.clone()));
        let old = here.reserve(&ask("old", 70), 0).unwrap();
        here.commit(old.id, &old.shares, 0).unwrap();
        let there = open(store);
        let other = loom::thread::spawn(move || there.begin_request(old.id, 5).is_ok());
        let request = ask("new", 45).evicting(Stale::after(1, 1));
        let evicted = here.reserve(&request, 5).is_ok();
        assert!(evicted != other.join().unwrap());
    });
}

#[test]
fn sixteen_threads_over_one_ledger_and_over_sixteen() {
    let one = Arc::new(with_80_gib(Ledger::open(Volatile).unwrap()));
    sixteen(|_| Arc::clone(&one));
    assert_eq!(one.gpus().unwrap()[0].free_bytes, 80 * GIB);

    let store = Memory::new();
    with_80_gib(Ledger::open(store.clone()).unwrap());
    sixteen(|_| Arc::new(Ledger::open(store.clone()).unwrap()));
    let after = Ledger::open(store).unwrap();
    assert_eq!(after.gpus().unwrap()[0].free_bytes, 80 * GIB);
}

fn sixteen<S: Store + Send + 'static>(ledger: impl Fn(usize) -> Arc<Ledger<S>>) {
    let start = Arc::new(Barrier::new(16));
    let threads: Vec<_> = (0..16)
        .map(|i| {
            let (ledger, start) = (ledger(i), Arc::clone(&start));
            std::thread::spawn(move || {
                start.wait();
                (0..100)
                    .filter(|_| load(&ledger, &format!("m{i}"), true))
                    .count()
            })
        })
        .collect();
    let granted: usize = threads.into_iter().map(|t| t.join().unwrap()).sum();
    assert!(granted > 0);
}
