//! What a restart finds: keys, snapshots, journals, two servers over one store.

use super::*;

#[test]
fn nothing_is_reserved_twice_under_one_key() {
    let store = Memory::new();
    let [ledger, other] = [(); 2].map(|()| Ledger::open(store.clone()).unwrap());
    ledger
        .set_gpus(&[(gpu0(), size(80 * GIB).unwrap())])
        .unwrap();
    let request = ask("a", &[&[10 * GIB]]).keyed("load-1");
    let plan = ledger.plan(&request, 0).unwrap();
    let granted = other.reserve(&request, 0).unwrap();
    for refused in [ledger.reserve(&request, 1), ledger.take(&plan, 1)] {
        assert!(matches!(refused, Err(Error::KeyTaken(id)) if id == granted.id));
    }
    let another = ask("a", &[&[10 * GIB]]).keyed("load-2");
    assert!(ledger.reserve(&another, 1).is_ok());
    other.release(granted.id).unwrap();
    let again = ledger.reserve(&request, 2).unwrap();
    assert_ne!(again.id, granted.id);
}

/// A store that was restored from a copy of before.
struct Restored(std::rc::Rc<std::cell::RefCell<Memory>>);

impl Store for Restored {
    fn append(&mut self, after: u64, events: &[Event]) -> Result<(), StoreError> {
        self.0.borrow_mut().append(after, events)
    }

    fn read(&mut self, after: u64) -> Result<Tail, StoreError> {
        self.0.borrow_mut().read(after)
    }

    fn compact(&mut self, state: &State) -> Result<(), StoreError> {
        self.0.borrow_mut().compact(state)
    }
}

#[test]
fn a_store_that_is_behind_is_told() {
    let now = std::rc::Rc::new(std::cell::RefCell::new(Memory::new()));
    let ledger = Ledger::open(Restored(now.clone())).unwrap();
    ledger
        .set_gpus(&[(gpu0(), size(80 * GIB).unwrap())])
        .unwrap();
    load(&ledger, &ask("a", &[&[10 * GIB]]), 0);
    // of the first event alone
    let mut copy = Memory::new();
    let first = now.borrow_mut().read(0).unwrap().events;
    copy.append(0, &first[..1]).unwrap();
    *now.borrow_mut() = copy;
    for _ in 0..2 {
        let refused = ledger.reserve(&ask("b", &[&[10 * GIB]]), 1);
        let Err(Error::Store(StoreError::Behind { seq: 3 })) = refused else {
            panic!("{refused:?}");
        };
    }
}

/// Two ledgers over one log are two servers over one etcd.
#[test]
fn two_servers_never_promise_the_same_byte() {
    let store = Memory::new();
    let one = Ledger::open(store.clone()).unwrap();
    let other = Ledger::open(store).unwrap();
    one.set_gpus(&[(gpu0(), size(80 * GIB).unwrap())]).unwrap();
    let grant = one.reserve(&ask("a", &[&[45 * GIB]]), 0).unwrap();
    let refused = other.reserve(&ask("b", &[&[45 * GIB]]), 0);
    assert!(matches!(refused, Err(Error::FullPending { .. })));
    one.release(grant.id).unwrap();
    let second = other.reserve(&ask("b", &[&[45 * GIB]]), 0).unwrap();
    assert!(second.id > grant.id);
    assert_eq!(one.state().unwrap(), other.state().unwrap());
}

#[test]
fn a_snapshot_is_the_same_ledger() {
    let mut store = Memory::new();
    let ledger = Ledger::open(store.clone()).unwrap();
    let late = Ledger::open(store.clone()).unwrap();
    ledger
        .set_gpus(&[(gpu0(), size(80 * GIB).unwrap())])
        .unwrap();
    ledger
        .probe(&[Probe {
            gpu: gpu0(),
            free_bytes: 70 * GIB,
        }])
        .unwrap();
    load(&ledger, &ask("a", &[&[10 * GIB]]), 0);
    load(&ledger, &ask("b", &[&[55 * GIB]]), 1);
    ledger
        .reserve(&ask("c", &[&[50 * GIB]]).evicting(stale()), 2 * MINUTE)
        .unwrap();
    let newest = ledger.reserve(&ask("d", &[&[GIB]]), 2 * MINUTE).unwrap();
    ledger.release(newest.id).unwrap();
    let state = ledger.state().unwrap();
    store.compact(&state).unwrap();
    assert_eq!(store.read(state.seq()).unwrap(), Tail::default());
    assert_eq!(late.state().unwrap(), state);
    let reopened = Ledger::open(store).unwrap();
    assert_eq!(reopened.state().unwrap(), state);
    // Numbers are not given twice, not even those of which nothing is left.
    let next = reopened.reserve(&ask("e", &[&[GIB]]), 2 * MINUTE).unwrap();
    assert!(next.id > newest.id);
}

#[test]
fn a_journal_that_lies_is_refused() {
    let bad = [
        Event::Released {
            id: ReservationId(1),
        },
        Event::GpuGone { gpu: gpu0() },
        Event::Probed {
            gpu: gpu0(),
            foreign_bytes: 1,
        },
    ];
    for event in bad {
        let mut state = State::default();
        let refused = state.apply(event.clone());
        assert!(matches!(refused, Err(StoreError::Corrupt { seq: 1, .. })));
        assert_eq!(state, State::default());
        let mut store = Memory::new();
        store.append(0, &[event]).unwrap();
        assert!(matches!(Ledger::open(store), Err(Error::Store(_))));
    }
}

#[test]
fn a_journal_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    let open = || Ledger::open(Journal::open(&path).unwrap()).unwrap();
    let ledger = open();
    ledger
        .set_gpus(&[(gpu0(), size(80 * GIB).unwrap())])
        .unwrap();
    assert!(Journal::open(&path).is_err()); // one process at a time
    let running = load(&ledger, &ask("a", &[&[10 * GIB]]), 0);
    let pending = ledger
        .reserve(&ask("b", &[&[20 * GIB]]).leased(5), 1)
        .unwrap();
    let state = ledger.state().unwrap();
    drop(ledger);
    let ledger = open();
    assert_eq!(ledger.state().unwrap(), state);
    ledger.commit(pending.id, &pending.shares, 2).unwrap();
    ledger.release(running.id).unwrap();
    let state = ledger.state().unwrap();
    drop(ledger);
    let mut journal = Journal::open(&path).unwrap();
    assert!(matches!(journal.append(0, &[]), Err(StoreError::Conflict)));
    journal.compact(&state).unwrap();
    assert!(journal.read(0).unwrap().events.is_empty());
    assert_eq!(Ledger::open(journal).unwrap().state().unwrap(), state);
}

#[test]
fn what_is_no_news_by_an_old_state_is_decided_on_the_new_one() {
    let store = Memory::new();
    let [one, other] = [(); 2].map(|()| Ledger::open(store.clone()).unwrap());
    let capacity = |gib: u64| [(gpu0(), size(gib * GIB).unwrap())];
    one.set_gpus(&capacity(80)).unwrap();
    let figure = |gib: u64| {
        [Probe {
            gpu: gpu0(),
            free_bytes: gib * GIB,
        }]
    };
    one.probe(&figure(20)).unwrap();
    other.probe(&figure(80)).unwrap();
    one.probe(&figure(20)).unwrap();
    assert_eq!(free(&other), [20 * GIB]);
    other.set_gpus(&capacity(90)).unwrap();
    one.set_gpus(&capacity(80)).unwrap();
    assert_eq!(other.gpus().unwrap()[0].capacity_bytes, 80 * GIB);
    // Granted by the other, and reported to this one.
    let grant = load(&other, &ask("a", &[&[10 * GIB]]).leased(MINUTE), 0);
    let report = [Held {
        id: grant.id,
        shares: grant.shares,
    }];
    let found = one.reconcile(&"server".into(), &report).unwrap();
    assert_eq!(found, Default::default());
    // Leases of the other's holders run out here, too.
    let late = load(&other, &ask("b", &[&[5 * GIB]]).leased(MINUTE), 0);
    attend(&one, 0..=MINUTE, MINUTE);
    let reaped = one.reap(&figure(5), MINUTE + 1).unwrap();
    assert_eq!(
        reaped.released.iter().map(|r| r.id).collect::<Vec<_>>(),
        [grant.id, late.id]
    );
    let last = other.reserve(&ask("c", &[&[GIB]]).leased(MINUTE), 0);
    assert_eq!(one.expire(MINUTE + 1).unwrap()[0].id, last.unwrap().id);
    assert_eq!(one.state().unwrap(), other.state().unwrap());
}
