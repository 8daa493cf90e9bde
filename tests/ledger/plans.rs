//! Plans that are kept: checked again when they are reserved, and before the commit.

use super::*;

#[test]
fn a_plan_that_no_longer_holds() {
    let ledger = hosts(&[("a", &[80])]);
    let plan = ledger.plan(&ask("m", &[&[45 * GIB]]), 0).unwrap();
    let json = serde_json::to_string(&plan).unwrap();
    assert_eq!(plan, serde_json::from_str(&json).unwrap());
    let other = ledger.reserve(&ask("other", &[&[45 * GIB]]), 0).unwrap();
    assert!(matches!(
        ledger.take(&plan, 1),
        Err(Error::StalePlan { .. })
    ));
    ledger.release(other.id).unwrap();
    ledger.take(&plan, 2).unwrap();

    let ledger = hosts(&[("a", &[80])]);
    let old = load(&ledger, &ask("old", &[&[70 * GIB]]), 0);
    let request = ask("m", &[&[45 * GIB]]).evicting(stale());
    let plan = ledger.plan(&request, 2 * MINUTE).unwrap();
    ledger.begin_request(old.id, 2 * MINUTE).unwrap();
    assert!(matches!(
        ledger.take(&plan, 2 * MINUTE),
        Err(Error::StalePlan { .. })
    ));
    ledger.gpu_gone(&gpu0()).unwrap();
    assert!(matches!(
        ledger.take(&plan, 9 * MINUTE),
        Err(Error::StalePlan { .. })
    ));
}

#[test]
fn of_what_was_to_leave_only_what_still_has_to_does() {
    // Three of 20 GiB in the order of their last use, and one of 15 GiB that is in use.
    let begin = || {
        let ledger = hosts(&[("a", &[80])]);
        let load = |name, gib, at| load(&ledger, &ask(name, &[&[gib * GIB]]), at).id;
        let old = [("a", 0), ("b", 1), ("c", 2)].map(|(name, at)| load(name, 20, at));
        let used = load("used", 15, 2 * MINUTE);
        let request = ask("m", &[&[40 * GIB]]).evicting(stale());
        let plan = ledger.plan(&request, 2 * MINUTE).unwrap();
        let planned: Vec<_> = plan.evict.iter().map(|e| e.id).collect();
        assert_eq!(planned, old[..2]);
        (ledger, old, used, plan)
    };
    let take = |ledger: &Ledger<Volatile>, plan: &vramfit_ledger::Plan| {
        let grant = ledger.take(plan, 3 * MINUTE).unwrap();
        assert!(ledger.audit().unwrap().is_empty());
        let idle: Vec<_> = grant.evict.iter().map(|e| (e.id, e.idle_ms)).collect();
        idle
    };

    let (ledger, [a, b, _], _, plan) = begin();
    assert_eq!(take(&ledger, &plan), [(a, 3 * MINUTE), (b, 3 * MINUTE - 1)]);
    // One makes enough room beside what has become free: the longest unused.
    let (ledger, [a, ..], used, plan) = begin();
    ledger.release(used).unwrap();
    assert_eq!(take(&ledger, &plan), [(a, 3 * MINUTE)]);
    // None has to any more.
    let (ledger, [_, _, c], used, plan) = begin();
    for id in [c, used] {
        ledger.release(id).unwrap();
    }
    assert_eq!(take(&ledger, &plan), []);
    // One of them has left by itself.
    let (ledger, [a, b, _], _, plan) = begin();
    ledger.release(a).unwrap();
    assert_eq!(take(&ledger, &plan), [(b, 3 * MINUTE - 1)]);
    // One is in use again: it stays where there is room without it, and else the plan no longer holds.
    let (ledger, [a, b, _], used, plan) = begin();
    ledger.begin_request(a, 2 * MINUTE).unwrap();
    let refused = ledger.take(&plan, 3 * MINUTE).unwrap_err().to_string();
    assert!(refused.contains("can no longer be evicted"), "{refused}");
    ledger.release(used).unwrap();
    assert_eq!(take(&ledger, &plan), [(b, 3 * MINUTE - 1)]);
}

#[test]
fn a_stored_plan_that_lists_an_eviction_twice_frees_its_bytes_once() {
    let ledger = hosts(&[("a", &[80])]);
    let old = load(&ledger, &ask("old", &[&[30 * GIB]]), 0);
    load(&ledger, &ask("other", &[&[25 * GIB]]), 2 * MINUTE);
    let request = ask("m", &[&[45 * GIB]]).evicting(stale());
    let plan = ledger.plan(&request, 2 * MINUTE).unwrap();
    let mut twice = plan.clone();
    twice.evict.push(twice.evict[0].clone());
    // Without the rest of the GPU, what leaves is too little once and enough twice.
    ledger
        .reserve(&ask("more", &[&[25 * GIB]]), 2 * MINUTE)
        .unwrap();
    let refused = ledger.take(&twice, 2 * MINUTE);
    assert!(matches!(refused, Err(Error::EvictedTwice(id)) if id == old.id));
    let refused = ledger.take(&plan, 2 * MINUTE);
    assert!(matches!(refused, Err(Error::StalePlan { .. })));
    let state = ledger.state().unwrap();
    let shares = [share(gpu0(), 45 * GIB)];
    assert_eq!(state.validate(&shares, &[old.id]).unwrap().len(), 1);
    let refused = state.validate(&shares, &[old.id, old.id]);
    assert!(matches!(refused, Err(Error::EvictedTwice(_))));
}

#[test]
fn a_stored_plan_has_to_be_what_its_request_asks_for() {
    let ledger = hosts(&[("a", &[80, 80]), ("b", &[80])]);
    let way = |gpu, gib: u64| vec![share(gpu, gib * GIB)];
    let mut request = ask("m", &[&[45 * GIB], &[20 * GIB, 25 * GIB]]);
    request.shapes.push(Shape::On(way(gpu1(), 44)));
    let good = ledger.plan(&request.on_host("a"), 0).unwrap();
    let both = vec![share(gpu1(), 20 * GIB), share(gpu0(), 25 * GIB)];
    for (shares, is_asked) in [
        (way(gpu0(), 45), true),
        (way(gpu1(), 45), true),
        (way(gpu1(), 44), true),
        (both.clone(), true),
        (way(gpu0(), 44), false),
        (way(gpu("b", 0), 45), false),
        (both[..1].to_vec(), false),
        (Vec::new(), false),
    ] {
        let mut plan = good.clone();
        plan.shares = shares;
        match ledger.take(&plan, 0) {
            Ok(grant) => {
                assert!(is_asked, "{:?}", plan.shares);
                assert_eq!(grant.shares, plan.shares);
                ledger.release(grant.id).unwrap();
            }
            Err(error) => {
                assert!(!is_asked, "{:?}: {error}", plan.shares);
                assert!(matches!(error, Error::NotAsked { .. }), "{error}");
            }
        }
    }
}

#[test]
fn checked_again_before_the_commit() {
    let ledger = two_of_80();
    load(&ledger, &ask("other", &[&[30 * GIB]]), 0);
    let there = Shape::On(vec![share(gpu0(), 40 * GIB)]);
    let grant = ledger
        .reserve(&Request::new("m", "s", vec![there]), 0)
        .unwrap();
    // 42 GB stored, 74 GB true: too much for what is left, and said so.
    let Err(Error::TookTooMuch { short, .. }) =
        ledger.commit(grant.id, &[share(gpu0(), 74 * GIB)], 1)
    else {
        panic!("committed");
    };
    assert_eq!(short[0].room_bytes, 50 * GIB);
    // Another size that fits is what counts from then on.
    ledger
        .commit(grant.id, &[share(gpu0(), 45 * GIB)], 1)
        .unwrap();
    assert_eq!(free(&ledger), [5 * GIB, 80 * GIB]);
    let again = ledger.commit(grant.id, &[share(gpu0(), 45 * GIB)], 1);
    assert!(matches!(
        again,
        Err(Error::Phase {
            phase: Phase::Running,
            ..
        })
    ));

    let grant = ledger.reserve(&ask("n", &[&[40 * GIB]]), 1).unwrap();
    ledger.gpu_gone(&gpu1()).unwrap();
    let gone = ledger.commit(grant.id, &grant.shares, 2);
    assert!(matches!(gone, Err(Error::UnknownGpu(_))));
    assert_eq!(ledger.audit().unwrap()[0].capacity_bytes, 0);
    ledger.release(grant.id).unwrap();
    assert!(ledger.audit().unwrap().is_empty());
}
