//! What leaves for another: the fewest, the longest unused, never what is in use.

use super::*;

#[test]
fn an_eviction_on_one_gpu_before_two_gpus() {
    let ledger = two_of_80();
    let old = load(&ledger, &ask("old", &[&[40 * GIB]]), 0);
    load(&ledger, &ask("new", &[&[40 * GIB]]), 2 * MINUTE);
    let request = ask("m", &[&[60 * GIB], &[30 * GIB, 30 * GIB]]).evicting(stale());
    let plan = ledger.plan(&request, 2 * MINUTE).unwrap();
    assert_eq!(plan.shares.len(), 1);
    assert_eq!(plan.evict[0].id, old.id);
}

#[test]
fn stale_70_and_70_then_45_evicts_one() {
    let ledger = two_of_80();
    let older = load(&ledger, &ask("a", &[&[70 * GIB]]), 0);
    load(&ledger, &ask("b", &[&[70 * GIB]]), 1);
    let request = ask("m", &[&[45 * GIB]]).evicting(stale());
    assert!(matches!(
        ledger.reserve(&request, MINUTE),
        Err(Error::FullNow(_))
    ));
    let grant = ledger.reserve(&request, 2 * MINUTE).unwrap();
    assert_eq!(grant.evict.len(), 1);
    assert_eq!(grant.evict[0].id, older.id);
    assert_eq!(grant.evict[0].idle_ms, 2 * MINUTE);
    assert_eq!(grant.decision.after, ledger.gpus().unwrap());
}

#[test]
fn the_engine_is_told_first_and_the_ledger_drops_it_after() {
    let ledger = hosts(&[("a", &[80])]);
    let old = load(&ledger, &ask("old", &[&[70 * GIB]]), 0);
    let request = |bytes| ask("m", &[&[bytes]]).evicting(stale());
    let grant = ledger.reserve(&request(45 * GIB), 2 * MINUTE).unwrap();
    assert_eq!(grant.evict[0].id, old.id);
    // Its bytes are promised on, once: the next one gets what is left, and waits for it, too.
    assert_eq!(free(&ledger), [35 * GIB]);
    let second = ledger
        .reserve(&ask("second", &[&[30 * GIB]]), 2 * MINUTE)
        .unwrap();
    assert!(second.evict.is_empty());
    assert_eq!(second.waits_for, [old.id]);
    // It takes no requests any more, is not evicted twice, and the new one cannot be loaded yet.
    let begun = ledger.begin_request(old.id, 2 * MINUTE);
    assert!(matches!(
        begun,
        Err(Error::Phase {
            phase: Phase::Leaving,
            ..
        })
    ));
    let refused = ledger.reserve(&request(60 * GIB), 3 * MINUTE);
    assert!(matches!(refused, Err(Error::FullPending { .. })));
    let early = ledger.commit(grant.id, &grant.shares, 2 * MINUTE);
    assert!(matches!(early, Err(Error::Waits { leaving, .. }) if leaving == [old.id]));
    ledger.release(old.id).unwrap();
    ledger.commit(grant.id, &grant.shares, 2 * MINUTE).unwrap();
    ledger
        .commit(second.id, &second.shares, 2 * MINUTE)
        .unwrap();
    assert!(ledger.audit().unwrap().is_empty());
}

#[test]
fn evictable_is_counted_a_gpu() {
    let ledger = two_of_80();
    let there = Shape::On(vec![share(gpu0(), 30 * GIB)]);
    load(&ledger, &Request::new("one", "server", vec![there]), 0);
    load(&ledger, &ask("both", &[&[30 * GIB, 30 * GIB]]), 0);
    let state = ledger.state().unwrap();
    let evictable = |gpu| state.evictable_bytes(&gpu, &"m".into(), stale(), 2 * MINUTE);
    assert_eq!(evictable(gpu0()), 60 * GIB);
    assert_eq!(evictable(gpu1()), 30 * GIB);
}

#[test]
fn a_model_on_two_gpus_is_evicted_once_and_frees_its_share_on_each() {
    let ledger = two_of_80();
    let both = load(&ledger, &ask("both", &[&[60 * GIB, 60 * GIB]]), 0);
    let request = ask("m", &[&[70 * GIB, 70 * GIB]]).evicting(stale());
    let grant = ledger.reserve(&request, 2 * MINUTE).unwrap();
    assert_eq!(grant.evict.len(), 1);
    assert_eq!(grant.evict[0].frees, both.shares);
    assert_eq!(free(&ledger), [10 * GIB, 10 * GIB]);
}

#[test]
fn only_what_holds_a_share_where_room_is_needed_is_evicted() {
    let ledger = two_of_80();
    let at = |gpu, bytes| vec![Shape::On(vec![share(gpu, bytes)])];
    load(
        &ledger,
        &Request::new("bystander", "s", at(gpu1(), 70 * GIB)),
        0,
    );
    let there = load(
        &ledger,
        &Request::new("there", "s", at(gpu0(), 70 * GIB)),
        1,
    );
    let request = Request::new("m", "s", at(gpu0(), 45 * GIB)).evicting(stale());
    let grant = ledger.reserve(&request, 2 * MINUTE).unwrap();
    let evicted: Vec<_> = grant.evict.iter().map(|e| e.id).collect();
    assert_eq!(evicted, [there.id]);
}

#[test]
fn the_fewest_then_the_longest_unused() {
    let ledger = hosts(&[("a", &[80])]);
    let sizes = [10, 10, 30, 30];
    let ids: Vec<_> = (0u64..)
        .zip(sizes)
        .map(|(i, gib)| load(&ledger, &ask(&format!("m{i}"), &[&[gib * GIB]]), i).id)
        .collect();
    let evicts = |bytes: u64| -> Vec<_> {
        let request = ask("m", &[&[bytes]]).evicting(stale());
        let plan = ledger.plan(&request, 2 * MINUTE).unwrap();
        plan.evict.iter().map(|e| e.id).collect()
    };
    assert_eq!(evicts(10 * GIB), [ids[0]]);
    assert_eq!(evicts(20 * GIB), [ids[2]]); // one of 30 rather than two of 10
    assert_eq!(evicts(35 * GIB), [ids[0], ids[2]]);
    assert_eq!(evicts(60 * GIB), [ids[2], ids[3]]);
}

#[test]
fn never_what_is_in_use_starting_or_the_model_itself() {
    let ledger = hosts(&[("a", &[80])]);
    let busy = load(&ledger, &ask("busy", &[&[70 * GIB]]), 0);
    ledger.begin_request(busy.id, 0).unwrap();
    let request = ask("m", &[&[45 * GIB]]).evicting(stale());
    let late = 100 * MINUTE;
    assert!(matches!(
        ledger.reserve(&request, late),
        Err(Error::FullNow(_))
    ));
    ledger.end_request(busy.id, late).unwrap();
    assert!(matches!(
        ledger.end_request(busy.id, late),
        Err(Error::NoRequest(_))
    ));
    assert!(ledger.plan(&request, late).is_err()); // just used
    assert!(ledger.plan(&request, late + 2 * MINUTE).is_ok());
    let itself = ask("busy", &[&[45 * GIB]]).evicting(stale());
    assert!(ledger.plan(&itself, late + 2 * MINUTE).is_err());

    let ledger = hosts(&[("a", &[80])]);
    ledger.reserve(&ask("starting", &[&[70 * GIB]]), 0).unwrap();
    let refused = ledger.reserve(&request, 9 * MINUTE);
    assert!(matches!(refused, Err(Error::FullPending { .. })));
    assert!(ledger.reserve(&request, 11 * MINUTE).is_ok()); // never started
}

#[test]
fn what_waits_for_another_to_leave_is_not_evicted_for_being_slow() {
    let ledger = hosts(&[("a", &[80])]);
    let old = load(&ledger, &ask("old", &[&[70 * GIB]]), 0);
    let request = |model| ask(model, &[&[70 * GIB]]).evicting(stale());
    ledger.reserve(&request("m"), 2 * MINUTE).unwrap();
    let refused = ledger.reserve(&request("n"), 60 * MINUTE);
    assert!(matches!(refused, Err(Error::FullPending { .. })));
    assert!(ledger.audit().unwrap().is_empty());
    ledger.release(old.id).unwrap();
    assert!(ledger.reserve(&request("n"), 60 * MINUTE).is_ok());
}

fn phase<S: Store>(ledger: &Ledger<S>, id: ReservationId) -> Phase {
    let state = ledger.state().unwrap();
    state.reservation(id).unwrap().phase
}

/// The client of an eviction has hung up: what was to leave for it is loaded and idle, and need not leave any more.
#[test]
fn who_was_to_leave_for_what_was_never_loaded_runs_again() {
    type End = fn(&Ledger<Memory>, ReservationId);
    let ends: [(&str, End); 3] = [
        ("released", |ledger, id| ledger.release(id).unwrap()),
        ("expired", |ledger, id| {
            attend(ledger, 2 * MINUTE..=3 * MINUTE, MINUTE);
            assert_eq!(ledger.expire(3 * MINUTE + 1).unwrap()[0].id, id);
        }),
        ("reaped", |ledger, id| {
            attend(ledger, 2 * MINUTE..=3 * MINUTE, MINUTE);
            let probe = Probe {
                gpu: gpu0(),
                free_bytes: 10 * GIB,
            };
            let reaped = ledger.reap(&[probe], 3 * MINUTE + 1).unwrap();
            assert_eq!(reaped.released[0].id, id);
        }),
    ];
    for (how, end) in ends {
        for asks_the_driver in [false, true] {
            let mut store = Memory::new();
            let ledger = Ledger::open(store.clone()).unwrap();
            let there = [(gpu0(), size(80 * GIB).unwrap())];
            ledger.set_gpus(&there).unwrap();
            let old = load(&ledger, &ask("old", &[&[70 * GIB]]).staying(), 0).id;
            let new = ask("new", &[&[60 * GIB]]).evicting(stale()).leased(MINUTE);
            let new = ledger.reserve(&new, 2 * MINUTE).unwrap().id;
            if asks_the_driver {
                // It is loaded, and counts for others' as it leaves.
                unsaid::figure(&ledger, 10);
            }
            assert_eq!(phase(&ledger, old), Phase::Leaving);
            end(&ledger, new);
            assert_eq!(phase(&ledger, old), Phase::Running, "{how}");
            // So says the journal, and a snapshot of it.
            let state = ledger.state().unwrap();
            assert_eq!(Ledger::open(store.clone()).unwrap().state().unwrap(), state);
            store.compact(&state).unwrap();
            let ledger = Ledger::open(store).unwrap();
            assert_eq!(ledger.state().unwrap(), state);
            ledger.begin_request(old, 4 * MINUTE).unwrap();
            unsaid::figure(&ledger, 10);
            assert_eq!(free(&ledger), [10 * GIB]);
            assert_eq!(ledger.gpus().unwrap()[0].foreign_bytes, 0);
        }
    }
}

#[test]
fn who_leaves_goes_on_to_where_its_room_is_needed_or_was_taken() {
    let evicting = |model: &str, gib: u64| ask(model, &[&[gib * GIB]]).evicting(stale());
    // Its room has been promised to another since, beside others' memory or not.
    for others in [0, 10] {
        let ledger = hosts(&[("a", &[80])]);
        unsaid::figure(&ledger, 80 - others);
        let old = load(&ledger, &ask("old", &[&[50 * GIB]]), 0).id;
        unsaid::figure(&ledger, 30 - others);
        let new = ledger.reserve(&evicting("new", 40), 2 * MINUTE).unwrap();
        assert_eq!(new.evict[0].id, old);
        let more = ask("more", &[&[25 * GIB]]);
        ledger.reserve(&more, 2 * MINUTE).unwrap();
        ledger.release(new.id).unwrap();
        let expected = [Phase::Running, Phase::Leaving][usize::from(others > 0)];
        assert_eq!(phase(&ledger, old), expected);
        assert!(ledger.audit().unwrap().is_empty());
    }
    // What it leaves for has been loaded.
    let ledger = two_of_80();
    let old = load(&ledger, &ask("old", &[&[70 * GIB, 10 * GIB]]), 0).id;
    let new = ledger.reserve(&evicting("new", 75), 2 * MINUTE).unwrap();
    let small = [share(gpu0(), 5 * GIB)];
    ledger.commit(new.id, &small, 2 * MINUTE).unwrap();
    ledger.release(new.id).unwrap();
    assert_eq!(phase(&ledger, old), Phase::Leaving);
}

/// Of two that were to leave, and whose room has been promised in part, the last used stays.
#[test]
fn of_those_who_were_to_leave_the_last_used_stays() {
    let ledger = hosts(&[("a", &[80])]);
    let first = load(&ledger, &ask("first", &[&[40 * GIB]]), 0).id;
    let second = load(&ledger, &ask("second", &[&[40 * GIB]]), 1).id;
    let new = ask("new", &[&[50 * GIB]]).evicting(stale());
    let new = ledger.reserve(&new, 2 * MINUTE).unwrap();
    assert_eq!(new.evict.len(), 2);
    ledger
        .reserve(&ask("more", &[&[30 * GIB]]), 2 * MINUTE)
        .unwrap();
    ledger.release(new.id).unwrap();
    let phases = [first, second].map(|id| phase(&ledger, id));
    assert_eq!(phases, [Phase::Leaving, Phase::Running]);
    // What was slow to start, and was to leave for it, may start.
    let ledger = hosts(&[("a", &[80])]);
    let slow = ledger.reserve(&ask("slow", &[&[60 * GIB]]), 0).unwrap();
    let new = ask("new", &[&[50 * GIB]]).evicting(stale());
    let new = ledger.reserve(&new, 11 * MINUTE).unwrap();
    ledger.release(new.id).unwrap();
    ledger.commit(slow.id, &slow.shares, 12 * MINUTE).unwrap();
}

/// Who was told to leave may have begun to unload, though it is said to stay: what less is taken then is not thought to
/// have been others', until it has been asked something.
#[test]
fn who_was_to_leave_is_not_sure_to_be_there() {
    for is_asked in [false, true] {
        let ledger = hosts(&[("a", &[80])]);
        unsaid::figure(&ledger, 70);
        let old = load(&ledger, &ask("old", &[&[60 * GIB]]).staying(), 0).id;
        unsaid::figure(&ledger, 10);
        let new = ask("new", &[&[50 * GIB]]).evicting(stale());
        let new = ledger.reserve(&new, 2 * MINUTE).unwrap().id;
        ledger.release(new).unwrap();
        if is_asked {
            ledger.begin_request(old, 3 * MINUTE).unwrap();
        }
        // 10 GiB less are taken.
        unsaid::figure(&ledger, 20);
        let others = [10 * GIB, 0][usize::from(is_asked)];
        assert_eq!(ledger.gpus().unwrap()[0].foreign_bytes, others);
    }
}

/// What was promised in between waits for it alone, and would load into what leaves only since.
#[test]
fn who_others_wait_for_goes_on_to_leave() {
    for has_left in [false, true] {
        let ledger = hosts(&[("a", &[80])]);
        let old = load(&ledger, &ask("old", &[&[40 * GIB]]), 0).id;
        let late = load(&ledger, &ask("late", &[&[35 * GIB]]), 1).id;
        let evicting = |model: &str, gib: u64| {
            let request = ask(model, &[&[gib * GIB]]).evicting(stale());
            ledger.reserve(&request, 2 * MINUTE).unwrap()
        };
        let gone = evicting("gone", 20);
        let waits = ledger.reserve(&ask("waits", &[&[20 * GIB]]), 2 * MINUTE);
        assert_eq!(waits.unwrap().waits_for, [old]);
        assert_eq!(evicting("another", 10).evict[0].id, late);
        if has_left {
            ledger.release(late).unwrap();
        }
        ledger.release(gone.id).unwrap();
        let expected = [Phase::Leaving, Phase::Running][usize::from(has_left)];
        assert_eq!(phase(&ledger, old), expected);
    }
}
