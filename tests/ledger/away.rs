//! A GPU that is gone for a while: what was known of it counts when it is back.

use super::unsaid::{figure, shown};
use super::*;

fn back<S: Store>(ledger: &Ledger<S>, gib: u64) {
    let there = [(gpu0(), size(gib * GIB).unwrap())];
    ledger.set_gpus(&there).unwrap();
}

#[test]
fn what_others_hold_of_a_gpu_is_known_when_it_is_back() {
    let mut store = Memory::new();
    let ledger = Ledger::open(store.clone()).unwrap();
    back(&ledger, 80);
    figure(&ledger, 60);
    let asleep = load(&ledger, &ask("asleep", &[&[10 * GIB]]), 0);
    let other = load(&ledger, &ask("other", &[&[15 * GIB]]), 0);
    figure(&ledger, 35);
    figure(&ledger, 45);
    assert_eq!(shown(&ledger), (20, 10, 35));
    ledger.gpu_gone(&gpu0()).unwrap();
    assert!(ledger.gpus().unwrap().is_empty());
    assert_eq!(ledger.audit().unwrap()[0].capacity_bytes, 0);
    let refused = ledger.reserve(&ask("new", &[&[GIB]]), 0);
    assert!(refused.is_err());
    let probe = Probe {
        gpu: gpu0(),
        free_bytes: GIB,
    };
    let unknown = ledger.probe(&[probe]);
    assert!(matches!(unknown, Err(Error::UnknownGpu(_))));
    // Released meanwhile: it may still be there.
    ledger.release(other.id).unwrap();
    let state = ledger.state().unwrap();
    assert_eq!(Ledger::open(store.clone()).unwrap().state().unwrap(), state);
    store.compact(&state).unwrap();
    let again = Ledger::open(store).unwrap();
    assert_eq!(again.state().unwrap(), state);
    back(&again, 76); // 4 are set aside by now
    assert_eq!(shown(&again), (21, 0, 45));
    figure(&again, 45);
    figure(&again, 60);
    assert_eq!(shown(&again), (16, 10, 50));
    again.release(asleep.id).unwrap();
    figure(&again, 60);
    assert_eq!(shown(&again), (16, 0, 60));
}

#[test]
fn what_is_forgotten_does_not_count_wherever_the_gpu_is() {
    for is_gone in [false, true] {
        let ledger = hosts(&[("a", &[80])]);
        assert!(matches!(
            ledger.forget_figure(&gpu1()),
            Err(Error::UnknownGpu(_))
        ));
        ledger.forget_figure(&gpu0()).unwrap(); // nothing was known
        figure(&ledger, 60);
        if is_gone {
            ledger.gpu_gone(&gpu0()).unwrap();
        }
        ledger.forget_figure(&gpu0()).unwrap();
        back(&ledger, 80);
        assert_eq!(shown(&ledger), (0, 0, 80));
        figure(&ledger, 50);
        assert_eq!(shown(&ledger), (30, 0, 50));
    }
}
