//! Processes that take their time to end when the ledger is rid of them, beside engines that may unload without a word.

use super::unsaid::{figure, shown};
use super::*;

/// As `ledger::FIGURES`: for so many figures what was released may still be there.
const FIGURES: u64 = 16;

/// Of 80 GiB others hold 20, an engine that may sleep 10, and `old` 20 that are not used; all is loaded.
fn three<S: Store>(store: S, stays: bool) -> (Ledger<S>, Grant) {
    let ledger = Ledger::open(store).unwrap();
    let there = [(gpu0(), size(80 * GIB).unwrap())];
    ledger.set_gpus(&there).unwrap();
    figure(&ledger, 60);
    let mut old = ask("old", &[&[20 * GIB]]).leased(3 * MINUTE);
    old.stays = stays;
    let old = load(&ledger, &old, 0);
    figure(&ledger, 40);
    let next = ledger.reserve(&ask("next", &[&[10 * GIB]]), 1).unwrap();
    attend(&ledger, 1..=2 * MINUTE, 3 * MINUTE);
    ledger.commit(next.id, &next.shares, 2 * MINUTE).unwrap();
    figure(&ledger, 30);
    assert_eq!(shown(&ledger), (20, 0, 30));
    (ledger, old)
}

type End = fn(&Ledger<Memory>, &Grant);

/// All ways in which a reservation of what is loaded goes.
const ENDS: [(&str, End); 4] = [
    ("released", |ledger, old| ledger.release(old.id).unwrap()),
    ("evicted and released", |ledger, old| {
        let request = ask("new", &[&[50 * GIB]]).evicting(stale());
        let new = ledger.reserve(&request, 2 * MINUTE).unwrap();
        assert_eq!(new.evict[0].id, old.id);
        ledger.release(old.id).unwrap();
        ledger.release(new.id).unwrap();
    }),
    ("reaped", |ledger, old| {
        let probe = Probe {
            gpu: gpu0(),
            free_bytes: 30 * GIB,
        };
        attend(ledger, 2 * MINUTE..=4 * MINUTE, MINUTE);
        let reaped = ledger.reap(&[probe], 4 * MINUTE).unwrap();
        assert_eq!(reaped.released[0].id, old.id);
    }),
    ("expired", |ledger, old| {
        attend(ledger, 2 * MINUTE..=4 * MINUTE, MINUTE);
        assert_eq!(ledger.expire(4 * MINUTE).unwrap()[0].id, old.id);
    }),
];

#[test]
fn a_process_that_outlives_its_release_is_not_one_of_the_others() {
    for (how, end) in ENDS {
        for stays in [false, true] {
            for figures in 0..FIGURES {
                let (ledger, old) = three(Memory::new(), stays);
                end(&ledger, &old);
                for _ in 0..figures {
                    figure(&ledger, 30);
                    // What is there is taken, by whomever.
                    assert_eq!(shown(&ledger), (40, 0, 30), "{how}");
                }
                // It ends by and by.
                figure(&ledger, 42);
                assert_eq!(shown(&ledger), (28, 0, 42), "{how}, {figures} figures");
                if figures < FIGURES - 1 {
                    figure(&ledger, 50);
                    assert_eq!(shown(&ledger), (20, 0, 50), "{how}, {figures} figures");
                }
            }
        }
    }
}

/// Longer than that, nobody knows it from others that have come: it is held until what may sleep beside it is gone.
#[test]
fn a_process_that_never_ends_is_one_of_the_others() {
    for (how, end) in ENDS {
        let (ledger, old) = three(Memory::new(), false);
        end(&ledger, &old);
        (0..=FIGURES).for_each(|_| figure(&ledger, 30));
        figure(&ledger, 40); // 10 GiB less: that may be the engine, asleep
        assert_eq!(shown(&ledger), (40, 10, 30), "{how}");
    }
}

#[test]
fn a_start_that_failed_leaves_nothing_for_others() {
    let (ledger, _) = three(Memory::new(), false);
    let slow = ledger.reserve(&ask("slow", &[&[25 * GIB]]), 0).unwrap();
    figure(&ledger, 10); // 20 of the 25 are loaded
    assert_eq!(shown(&ledger), (40, 0, 0));
    ledger.release(slow.id).unwrap();
    figure(&ledger, 10);
    figure(&ledger, 20);
    assert_eq!(shown(&ledger), (30, 0, 20));
    figure(&ledger, 30);
    assert_eq!(shown(&ledger), (20, 0, 30));
}

/// The driver counts, the engine loads on, and is released before the driver's answer is there: it says nothing of how
/// much may still be there.
#[test]
fn what_loads_on_behind_a_figure_and_fails_leaves_nothing_for_others() {
    let (ledger, _) = three(Memory::new(), false);
    let slow = ledger.reserve(&ask("slow", &[&[25 * GIB]]), 0).unwrap();
    let before = ledger.state().unwrap();
    let counted = Probe {
        gpu: gpu0(),
        free_bytes: 28 * GIB,
    };
    ledger.release(slow.id).unwrap();
    ledger.probe_since(&before, &[counted]).unwrap();
    figure(&ledger, 5);
    assert_eq!(shown(&ledger), (45, 0, 5));
    figure(&ledger, 30);
    assert_eq!(shown(&ledger), (20, 0, 30));
}

/// Once a figure shows that it has ended, what comes is others', and kept for them while the engine sleeps.
#[test]
fn what_comes_when_the_process_has_ended_is_others() {
    let (ledger, old) = three(Memory::new(), false);
    ledger.release(old.id).unwrap();
    figure(&ledger, 50);
    figure(&ledger, 35);
    assert_eq!(shown(&ledger), (35, 0, 35));
    figure(&ledger, 45);
    assert_eq!(shown(&ledger), (35, 10, 35));
}

/// What loads in the meantime takes the place of nothing.
#[test]
fn while_one_process_ends_another_loads() {
    let (ledger, old) = three(Memory::new(), false);
    ledger.release(old.id).unwrap();
    let new = ledger.reserve(&ask("new", &[&[30 * GIB]]), 0).unwrap();
    figure(&ledger, 20); // 10 of it are there
    assert_eq!(shown(&ledger), (50, 0, 0));
    figure(&ledger, 0); // and now 30
    ledger.commit(new.id, &new.shares, 0).unwrap();
    figure(&ledger, 0);
    assert_eq!(shown(&ledger), (40, 0, 0));
    figure(&ledger, 20);
    assert_eq!(shown(&ledger), (20, 0, 20));
}

#[test]
fn a_store_that_is_opened_again_knows_what_is_going() {
    for compacted in [false, true] {
        let mut store = Memory::new();
        let (ledger, old) = three(store.clone(), false);
        ledger.release(old.id).unwrap();
        figure(&ledger, 30);
        let state = ledger.state().unwrap();
        if compacted {
            store.compact(&state).unwrap();
        }
        let again = Ledger::open(store).unwrap();
        assert_eq!(again.state().unwrap(), state);
        figure(&again, 30);
        figure(&again, 50);
        assert_eq!(shown(&again), (20, 0, 50));
    }
}
