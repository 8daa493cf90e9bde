//! Reservations that turn out larger than was promised, and figures of while something loads: neither is others'.

use super::unsaid::{figure, shown};
use super::*;

/// Of 80 GiB others hold 20 and an engine that may sleep 15; `new` is promised 20 and is loading.
fn loading<S: Store>(store: S) -> (Ledger<S>, Grant) {
    let ledger = Ledger::open(store).unwrap();
    let there = [(gpu0(), size(80 * GIB).unwrap())];
    ledger.set_gpus(&there).unwrap();
    figure(&ledger, 60);
    load(&ledger, &ask("old", &[&[15 * GIB]]), 0);
    figure(&ledger, 45);
    let new = ledger.reserve(&ask("new", &[&[20 * GIB]]), 0).unwrap();
    (ledger, new)
}

fn held(grant: &Grant, gib: u64) -> [Held; 1] {
    let shares = vec![share(gpu0(), gib * GIB)];
    let id = grant.id;
    [Held { id, shares }]
}

#[test]
fn what_a_commit_takes_beyond_its_promise_counts_once() {
    for figures in 1..=16 {
        let (ledger, new) = loading(Memory::new());
        // 25 are loaded, 5 more than can be its.
        (0..figures).for_each(|_| figure(&ledger, 20));
        assert_eq!(shown(&ledger), (45, 0, 0));
        ledger
            .commit(new.id, &[share(gpu0(), 25 * GIB)], 0)
            .unwrap();
        figure(&ledger, 20);
        assert_eq!(shown(&ledger), (20, 0, 20), "{figures} figures");
    }
}

#[test]
fn what_an_engine_reports_beyond_its_reservation_counts_once() {
    let (ledger, new) = loading(Memory::new());
    ledger.commit(new.id, &new.shares, 0).unwrap();
    figure(&ledger, 25);
    figure(&ledger, 20);
    assert_eq!(shown(&ledger), (25, 0, 20));
    let report = held(&new, 25);
    ledger.reconcile(&"server".into(), &report).unwrap();
    figure(&ledger, 20);
    assert_eq!(shown(&ledger), (20, 0, 20));
    // Others that come at the same time are others.
    figure(&ledger, 10);
    let report = held(&new, 28);
    ledger.reconcile(&"server".into(), &report).unwrap();
    figure(&ledger, 10);
    assert_eq!(shown(&ledger), (27, 0, 10));
}

/// While an engine sleeps, what another has grown by may lie in its place: others are believed to be there.
#[test]
fn what_grows_while_an_engine_sleeps_takes_nothing_from_others() {
    let (ledger, new) = loading(Memory::new());
    ledger.commit(new.id, &new.shares, 0).unwrap();
    figure(&ledger, 20); // others have 25
    figure(&ledger, 35); // it sleeps
    assert_eq!(shown(&ledger), (25, 15, 20));
    let report = held(&new, 25);
    ledger.reconcile(&"server".into(), &report).unwrap();
    assert_eq!(shown(&ledger), (25, 15, 15));
    figure(&ledger, 30); // it has grown by 5
    figure(&ledger, 15);
    assert_eq!(shown(&ledger), (25, 0, 15));
}

#[test]
fn a_store_that_is_opened_again_knows_what_came() {
    for compacted in [false, true] {
        let mut store = Memory::new();
        let (ledger, new) = loading(store.clone());
        figure(&ledger, 20);
        if compacted {
            store.compact(&ledger.state().unwrap()).unwrap();
        }
        let again = Ledger::open(store.clone()).unwrap();
        assert_eq!(again.state().unwrap(), ledger.state().unwrap());
        again.commit(new.id, &[share(gpu0(), 25 * GIB)], 0).unwrap();
        let state = again.state().unwrap();
        assert_eq!(ledger.state().unwrap(), state);
        if compacted {
            store.compact(&state).unwrap();
        }
        assert_eq!(Ledger::open(store).unwrap().state().unwrap(), state);
        figure(&again, 20);
        assert_eq!(shown(&again), (20, 0, 20));
    }
}

/// The first figure of all, and part of a model that loads is in it.
#[test]
fn what_loads_at_the_first_figure_is_not_others_for_long() {
    for gib in [0, 10, 30] {
        let ledger = hosts(&[("a", &[80])]);
        let new = ledger.reserve(&ask("new", &[&[30 * GIB]]), 0).unwrap();
        figure(&ledger, 60 - gib);
        assert_eq!(shown(&ledger), (20 + gib, 0, 30 - gib));
        ledger.commit(new.id, &new.shares, 0).unwrap();
        figure(&ledger, 30);
        assert_eq!(shown(&ledger), (20, 0, 30));
        figure(&ledger, 60);
        assert_eq!(shown(&ledger), (20, 30, 30));
    }
}
