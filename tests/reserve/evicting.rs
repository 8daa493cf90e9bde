//! What leaves for another, and what does not.

use super::*;

#[test]
fn one_gpu_with_an_eviction_before_two_gpus_without() {
    let host = host("80GiBx3");
    let old = load(&host, &large(), "old", 0);
    let young = load(&host, &large(), "young", 10);
    let third = load(&host, &large(), "third", 20);
    let places = [&old, &young, &third].map(|r| on(&r.placement));
    assert_eq!(places, [[0], [1], [2]]);
    // Three times 30 GiB and more are free, but no 44 on one GPU.
    let reserved = evicting(&host, &large(), "new", 10 * MINUTE).unwrap();
    check(&host, &reserved);
    assert_eq!(on(&reserved.placement), [0]);
    let leaves: Vec<_> = reserved.grant.evict.iter().map(|e| e.id).collect();
    assert_eq!(leaves, [old.id()]);

    // Told first, dropped after: before that it cannot have been loaded.
    let commit = |now| host.commit(reserved.id(), &reserved.grant.shares, now);
    let early = commit(10 * MINUTE).unwrap_err();
    assert!(early.can_retry());
    assert!(
        matches!(early, Error::Ledger(ledger::Error::Waits { leaving, .. }) if leaving == [old.id()])
    );
    host.release(old.id()).unwrap();
    commit(10 * MINUTE).unwrap();
}

#[test]
fn over_two_gpus_the_fewest_leave() {
    // 48 GiB hold no 70B model with 64k tokens of context; two of them do.
    let host = host("rtx3090x2,rtx3090x2");
    let small = model("qwen3-30b-a3b.Q4_K_M");
    let held: Vec<_> = (0..4)
        .map(|i| load(&host, &small, &format!("m{i}"), i))
        .collect();
    let gpus: Vec<_> = held.iter().map(|r| on(&r.placement)[0]).collect();
    assert_eq!(gpus, [0, 1, 2, 3]);
    let reserved = evicting(&host, &large(), "70b", 10 * MINUTE).unwrap();
    check(&host, &reserved);
    let used = on(&reserved.placement);
    assert!(used.len() > 1);
    let leaves: Vec<_> = reserved.grant.evict.iter().map(|e| e.id).collect();
    assert_eq!(leaves, [held[0].id(), held[1].id()]);
    // Nothing may leave, nothing is granted, and nothing has changed by asking.
    let before = host.ledger().state().unwrap();
    let busy = reserve(&host, &large(), "70b again").unwrap_err();
    assert!(busy.can_retry(), "{busy}");
    assert_eq!(host.ledger().state().unwrap(), before);
}

#[test]
fn over_two_gpus_one_that_is_enough_leaves_alone() {
    let host = host("10GiBx2");
    let room = free(&host);
    let found = |name: &str, gpu: usize, bytes: u64, now_ms: u64| {
        let shares = host.shares(&[(gpu, bytes)]).unwrap();
        let found = ledger::Adopt::new(name, "loader", shares);
        host.ledger().adopt(&found, now_ms).unwrap()
    };
    let (little, much) = (GIB * 12 / 10, room[0] - 2 * (GIB * 12 / 10));
    let ids = [("a1", little), ("a2", little), ("b", much)];
    let mut now_ms = 0;
    let ids = ids.map(|(name, bytes)| {
        now_ms += 1;
        found(name, 0, bytes, now_ms)
    });
    let busy = found("busy", 1, 4 * GIB, 4);
    host.ledger().begin_request(busy, 5).unwrap();
    // Laid out over everything that may leave, it would have more on GPU 0 than the last alone makes room for.
    let mut run = RunConfig::default();
    run.n_ctx = 40960;
    let load = LoadRequest::new("new", "loader").evicting(Stale::after(MINUTE, 10 * MINUTE));
    let reserved = host.reserve(&small(), &run, &Policy::default(), &load, 10 * MINUTE);
    let reserved = reserved.unwrap();
    check(&host, &reserved);
    assert_eq!(on(&reserved.placement), [0, 1]);
    let leaves: Vec<_> = reserved.grant.evict.iter().map(|e| e.id).collect();
    assert_eq!(leaves, ids[2..]);
}

#[test]
fn over_two_gpus_where_one_had_too_much_on_it() {
    let host = host("24GiBx2");
    let found = |name: &str, gpu: usize, gib: u64| {
        let shares = host.shares(&[(gpu, gib * GIB)]).unwrap();
        let found = ledger::Adopt::new(name, "loader", shares);
        host.ledger().adopt(&found, 0).unwrap()
    };
    // Both were loaded already, and GPU 0 has 33 GiB on it by what they say: what leaves makes room for 8, not for 17.
    let (busy, idle) = (found("busy", 0, 16), found("idle", 0, 17));
    let other = found("other", 1, 16);
    for busy in [busy, other] {
        host.ledger().begin_request(busy, 1).unwrap();
    }
    let mut run = RunConfig::default();
    run.n_ctx = 8192;
    let load = LoadRequest::new("new", "loader").evicting(Stale::after(MINUTE, 10 * MINUTE));
    let phi = model("phi-4.Q4_K_M");
    let reserve = || host.reserve(&phi, &run, &Policy::default(), &load, 10 * MINUTE);
    let reserved = reserve().unwrap();
    assert_eq!(on(&reserved.placement), [0, 1]);
    let leaves: Vec<_> = reserved.grant.evict.iter().map(|e| e.id).collect();
    assert_eq!(leaves, [idle]);
    host.release(idle).unwrap();
    check(&host, &reserved);
}

#[test]
fn never_what_is_in_use() {
    let host = host("80GiB");
    let held = load(&host, &large(), "held", 0);
    host.ledger().begin_request(held.id(), 1).unwrap();
    let refused = evicting(&host, &large(), "new", 10 * MINUTE).unwrap_err();
    assert!(refused.can_retry());
    host.ledger().end_request(held.id(), 2).unwrap();
    let granted = evicting(&host, &large(), "new", 10 * MINUTE).unwrap();
    assert_eq!(granted.grant.evict.len(), 1);
    check(&host, &granted);
}
