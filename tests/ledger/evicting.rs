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
