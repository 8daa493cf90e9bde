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
