//! What the driver and the engine say against what the ledger holds; leases of holders that died.

use super::*;

#[test]
fn free_is_the_less_of_driver_and_ledger() {
    let ledger = hosts(&[("a", &[80])]);
    let running = load(&ledger, &ask("a", &[&[30 * GIB]]).staying(), 0);
    let probe = |gib: u64| {
        ledger
            .probe(&[Probe {
                gpu: gpu0(),
                free_bytes: gib * GIB,
            }])
            .unwrap()
    };
    assert_eq!(probe(20)[0].foreign_bytes, 30 * GIB); // somebody else has 30 GiB
    assert_eq!(free(&ledger), [20 * GIB]);
    assert_eq!(probe(70)[0].missing_bytes, 20 * GIB); // the driver sees only 10 of the 30
    assert_eq!(free(&ledger), [50 * GIB]);
    assert_eq!(probe(0)[0].foreign_bytes, 50 * GIB);
    assert_eq!(free(&ledger), [0]);
    // Pending bytes are not in the driver's figure yet: 40 free, 30 of them promised.
    probe(40);
    ledger.reserve(&ask("b", &[&[30 * GIB]]), 0).unwrap();
    probe(40);
    assert_eq!(free(&ledger), [10 * GIB]);
    // Released: the driver's 40 may have been counted before or after it was unloaded.
    ledger.release(running.id).unwrap();
    assert_eq!(free(&ledger), [10 * GIB]);
    assert_eq!(ledger.gpus().unwrap()[0].unconfirmed_bytes, 30 * GIB);
    probe(70);
    assert_eq!(free(&ledger), [40 * GIB]);
    assert_eq!(ledger.gpus().unwrap()[0].unconfirmed_bytes, 0);
    probe(u64::MAX / GIB); // a driver that says more than there is gives nothing away
    assert_eq!(free(&ledger), [50 * GIB]);
}

#[test]
fn what_is_committed_after_a_figure_is_not_in_it() {
    let ledger = hosts(&[("a", &[80])]);
    let figure = |gib| {
        [Probe {
            gpu: gpu0(),
            free_bytes: gib * GIB,
        }]
    };
    // 20 GiB are others'. The driver counts, and then 25 GiB are loaded.
    let before = ledger.state().unwrap();
    let new = load(&ledger, &ask("new", &[&[25 * GIB]]), 0);
    let drift = ledger.probe_since(&before, &figure(60)).unwrap();
    assert_eq!(drift[0].foreign_bytes, 20 * GIB);
    assert_eq!(free(&ledger), [35 * GIB]);
    // It never was in a figure: gone, it gives back all of it.
    ledger.release(new.id).unwrap();
    assert_eq!(free(&ledger), [60 * GIB]);
    // Another is loaded while it starts, and 10 of its 30 GiB are in the figure: twice until the next.
    let slow = ledger.reserve(&ask("slow", &[&[30 * GIB]]), 0).unwrap();
    ledger.probe(&figure(50)).unwrap();
    assert_eq!(free(&ledger), [20 * GIB]);
    ledger.commit(slow.id, &slow.shares, 0).unwrap();
    assert_eq!(free(&ledger), [20 * GIB]);
    ledger.probe(&figure(30)).unwrap();
    assert_eq!(free(&ledger), [30 * GIB]);
}

#[test]
fn what_leaves_is_in_the_figure_or_not() {
    // 20 GiB are others'; 50 are to leave for 40.
    let ledger = hosts(&[("a", &[80])]);
    let old = load(&ledger, &ask("old", &[&[50 * GIB]]), 0);
    let figure = |gib| {
        let probe = Probe {
            gpu: gpu0(),
            free_bytes: gib * GIB,
        };
        ledger.probe(&[probe]).unwrap();
    };
    figure(10);
    let evicting = |model, gib| ask(model, &[&[gib * GIB]]).evicting(stale());
    let new = ledger.reserve(&evicting("new", 40), 2 * MINUTE).unwrap();
    assert_eq!(new.evict[0].id, old.id);
    assert_eq!(free(&ledger), [20 * GIB]);
    // Unloaded, and not yet released: of the 20 GiB that are taken none may be its.
    figure(60);
    assert_eq!(free(&ledger), [20 * GIB]);
    // Still there: 60 GiB less, as long as it is.
    figure(10);
    assert_eq!(free(&ledger), [0]);
    ledger.release(old.id).unwrap();
    figure(60);
    assert_eq!(free(&ledger), [20 * GIB]);
    // What was told to leave after the figure gives its bytes back when it has.
    ledger.commit(new.id, &new.shares, 2 * MINUTE).unwrap();
    figure(20);
    let newer = evicting("newer", 50);
    let newer = ledger.reserve(&newer, 9 * MINUTE).unwrap();
    assert_eq!(newer.evict[0].id, new.id);
    ledger.release(new.id).unwrap();
    assert_eq!(free(&ledger), [10 * GIB]);
}

#[test]
fn two_hundred_on_80_is_shown_not_hidden() {
    let ledger = two_of_80();
    let shares = [share(gpu0(), 200 * GIB)];
    let id = ledger
        .adopt(&Adopt::new("old", "engine", shares.to_vec()), 0)
        .unwrap();
    let violations = ledger.audit().unwrap();
    assert_eq!(violations.len(), 1);
    assert_eq!(violations[0].gpu, gpu0());
    assert_eq!(violations[0].capacity_bytes, 80 * GIB);
    assert_eq!(violations[0].reserved_bytes, u128::from(200 * GIB));
    assert_eq!(violations[0].reservations, [id]);
    assert_eq!(free(&ledger), [0, 80 * GIB]);
    // The next models go elsewhere, and an eviction that would still leave too much is none.
    let there = vec![Shape::On(vec![share(gpu0(), GIB)])];
    assert!(
        ledger
            .reserve(&Request::new("m", "s", there.clone()), 0)
            .is_err()
    );
    let small = [share(gpu0(), 5 * GIB)];
    ledger
        .adopt(&Adopt::new("stale", "engine", small.to_vec()), 0)
        .unwrap();
    ledger.begin_request(id, 0).unwrap();
    let request = Request::new("m", "s", there).evicting(stale());
    assert!(ledger.reserve(&request, 2 * MINUTE).is_err());
}

#[test]
fn an_engines_report_against_the_ledger() {
    let ledger = two_of_80();
    let same = load(&ledger, &ask("same", &[&[10 * GIB]]), 0);
    let grown = load(&ledger, &ask("grown", &[&[20 * GIB]]), 0);
    let gone = load(&ledger, &ask("gone", &[&[30 * GIB]]), 0);
    let held = |id, shares| Held { id, shares };
    let report = [
        held(same.id, same.shares.clone()),
        held(grown.id, vec![share(gpu1(), 100 * GIB)]),
        held(ReservationId(77), vec![share(gpu0(), GIB)]),
    ];
    let found = ledger.reconcile(&"server".into(), &report).unwrap();
    assert_eq!(found.resized, [grown.id]);
    assert_eq!(found.missing, [gone.id]);
    assert_eq!(found.unknown, [ReservationId(77)]);
    assert_eq!(ledger.audit().unwrap()[0].gpu, gpu1());
    let found = ledger.reconcile(&"another".into(), &report[..1]).unwrap();
    assert_eq!(found.unknown, [same.id]);
    // A GPU that there is not is a mistake of whoever reports, and nothing of it is taken over.
    let typo = [
        held(grown.id, vec![share(gpu0(), GIB)]),
        held(same.id, vec![share(gpu("a", 7), GIB)]),
    ];
    let refused = ledger.reconcile(&"server".into(), &typo);
    assert!(matches!(refused, Err(Error::UnknownGpu(_))));
    // So are two sizes of one reservation.
    let twice = [GIB, 2 * GIB].map(|bytes| held(grown.id, vec![share(gpu0(), bytes)]));
    let refused = ledger.reconcile(&"server".into(), &twice);
    assert!(matches!(refused, Err(Error::ReportedTwice(id)) if id == grown.id));
    let state = ledger.state().unwrap();
    assert_eq!(
        state.reservation(grown.id).unwrap().bytes_on(&gpu1()),
        100 * GIB
    );
}

#[test]
fn what_was_found_has_a_lease_and_a_key_like_anything() {
    let ledger = two_of_80();
    let found = Adopt::new("old", "engine", vec![share(gpu0(), 30 * GIB)]);
    let found = found.leased(1000).keyed("first");
    let id = ledger.adopt(&found, 5).unwrap();
    let state = ledger.state().unwrap();
    let held = state.reservation(id).unwrap();
    assert_eq!(
        (held.phase, held.lease_until_ms),
        (Phase::Running, Some(1005))
    );
    assert!(matches!(ledger.adopt(&found, 6), Err(Error::KeyTaken(taken)) if taken == id));
    let again = ask("old", &[&[GIB]]).keyed("first");
    assert!(matches!(ledger.reserve(&again, 6), Err(Error::KeyTaken(_))));
    attend(&ledger, 6..=1005, 1000);
    assert_eq!(ledger.expire(1006).unwrap()[0].id, id);
    ledger.adopt(&found, 1007).unwrap();
}

#[test]
fn leases_of_holders_that_died() {
    let ledger = two_of_80();
    let loaded = load(&ledger, &ask("a", &[&[30 * GIB]]).leased(1000), 0);
    let pending = ledger
        .reserve(&ask("b", &[&[20 * GIB]]).leased(1000), 0)
        .unwrap();
    load(&ledger, &ask("unleased", &[&[GIB]]), 0);
    attend(&ledger, 0..=500, 1000);
    ledger.renew(loaded.id, 500).unwrap();
    let lapsed = |now| -> Vec<_> { ledger.lapsed(now).unwrap().iter().map(|r| r.id).collect() };
    attend(&ledger, 500..=1000, 1000);
    assert_eq!(lapsed(1000), []);
    assert_eq!(lapsed(1001), [pending.id]);
    attend(&ledger, 1001..=9999, 1000);
    assert_eq!(lapsed(9999), [loaded.id, pending.id]);
    // Only with a probe of its GPU: the orphaned engine may still hold the memory.
    assert_eq!(on(&loaded), ["GPU-0"]);
    let probe = Probe {
        gpu: gpu0(),
        free_bytes: 50 * GIB,
    };
    let reaped = ledger.reap(&[probe], 9999).unwrap();
    assert_eq!(reaped.released[0].id, loaded.id);
    assert_eq!(reaped.unprobed, [pending.id]);
    assert_eq!(ledger.gpus().unwrap()[0].foreign_bytes, 30 * GIB);
    assert_eq!(free(&ledger), [50 * GIB, 59 * GIB]);
}

#[test]
fn what_is_loaded_while_the_driver_is_asked_hides_nobody() {
    // 20 GiB are taken by others; the driver counts before the engine has loaded anything.
    let ledger = hosts(&[("a", &[80])]);
    let old = load(&ledger, &ask("old", &[&[10 * GIB]]), 0);
    let before = ledger.state().unwrap();
    let probe = [Probe {
        gpu: gpu0(),
        free_bytes: 50 * GIB,
    }];
    let foreign = || ledger.gpus().unwrap()[0].foreign_bytes;
    let new = load(&ledger, &ask("new", &[&[15 * GIB]]), 0);
    ledger.reap_since(&before, &probe, &[], 1).unwrap();
    assert_eq!(foreign(), 20 * GIB);
    // As much gone as has come: no sum shows that, and 20 GiB of others are still there.
    let before = ledger.state().unwrap();
    ledger.release(old.id).unwrap();
    ledger.release(new.id).unwrap();
    load(&ledger, &ask("newer", &[&[25 * GIB]]), 0);
    let probe = [Probe {
        gpu: gpu0(),
        free_bytes: 60 * GIB,
    }];
    ledger.reap_since(&before, &probe, &[], 1).unwrap();
    assert_eq!(foreign(), 20 * GIB);
}

/// Two questions: what was counted for the older may be older than what the newer has shown.
#[test]
fn an_answer_that_was_overtaken_says_nothing_any_more() {
    let ledger = two_of_80();
    let figure = |i, gib: u64| Probe {
        gpu: gpu("a", i),
        free_bytes: gib * GIB,
    };
    ledger.probe(&[figure(0, 80)]).unwrap();
    let older = ledger.state().unwrap();
    let loaded = load(&ledger, &ask("a", &[&[10 * GIB]]).leased(1000), 0);
    let newer = ledger.state().unwrap();
    ledger.probe_since(&newer, &[figure(0, 50)]).unwrap();
    let view = || ledger.gpus().unwrap()[0].clone();
    assert_eq!(view().foreign_bytes, 20 * GIB);
    // Of the other GPU it is the first answer.
    let late = [figure(0, 80), figure(1, 70)];
    let drifts = ledger.probe_since(&older, &late).unwrap();
    assert_eq!(drifts[0].foreign_bytes, 20 * GIB);
    assert_eq!(drifts[1].foreign_bytes, 10 * GIB);
    assert_eq!(free(&ledger), [50 * GIB, 70 * GIB]);
    // What a dead holder has may still be there, whatever was counted before.
    attend(&ledger, 0..=9999, 1000);
    let reaped = ledger.reap_since(&older, &late, &[], 9999).unwrap();
    assert_eq!(reaped.released[0].id, loaded.id);
    assert_eq!(view().foreign_bytes, 30 * GIB);
    assert_eq!(view().unconfirmed_bytes, 10 * GIB);
    // An answer to a question that is as new counts.
    ledger.probe_since(&newer, &[figure(0, 60)]).unwrap();
    assert_eq!(free(&ledger), [60 * GIB, 70 * GIB]);
}

/// The newer answer may say what the last figure did: it says it of a later moment all the same.
#[test]
fn an_answer_that_is_no_news_overtakes_older_ones() {
    let mut store = Memory::new();
    let ledger = Ledger::open(store.clone()).unwrap();
    ledger
        .set_gpus(&[(gpu0(), size(80 * GIB).unwrap())])
        .unwrap();
    let figure = |gib: u64| {
        [Probe {
            gpu: gpu0(),
            free_bytes: gib * GIB,
        }]
    };
    let ours = load(
        &ledger,
        &ask("ours", &[&[10 * GIB]]).leased(1000).staying(),
        0,
    );
    ledger.probe(&figure(50)).unwrap();
    // Others leave for a moment: 70 are counted, and the answer takes its time.
    let older = ledger.state().unwrap();
    ledger.renew(ours.id, 10).unwrap();
    let newer = ledger.state().unwrap();
    ledger.probe_since(&newer, &figure(50)).unwrap();
    // a ledger that is opened again knows as much
    store.compact(&ledger.state().unwrap()).unwrap();
    let again = Ledger::open(store).unwrap();
    for ledger in [&ledger, &again] {
        ledger.probe_since(&older, &figure(70)).unwrap();
        assert_eq!(free(ledger), [50 * GIB]);
    }
    // An idle ledger's journal does not grow with figures that say nothing new.
    let seq = again.state().unwrap().seq();
    for _ in 0..3 {
        again.probe(&figure(50)).unwrap();
    }
    assert_eq!(again.state().unwrap().seq(), seq);
}

#[test]
fn a_lease_on_a_gpu_that_nobody_can_look_into_ends_without_a_probe() {
    let ledger = two_of_80();
    let leased = load(&ledger, &ask("a", &[&[30 * GIB]]).leased(1000), 0);
    assert_eq!(on(&leased), ["GPU-0"]);
    let before = ledger.state().unwrap();
    attend(&ledger, 0..=9999, 1000);
    let reap = |blind: &[GpuId]| ledger.reap_since(&before, &[], blind, 9999).unwrap();
    let kept = reap(&[gpu1()]);
    assert_eq!((kept.released.len(), kept.unprobed), (0, vec![leased.id]));
    assert_eq!(reap(&[gpu0()]).released[0].id, leased.id);
}

#[test]
fn leases_that_run_out_where_no_driver_can_be_asked() {
    let ledger = two_of_80();
    let leased = ledger
        .reserve(&ask("a", &[&[40 * GIB]]).leased(MINUTE), 0)
        .unwrap();
    let kept = ledger.reserve(&ask("b", &[&[40 * GIB]]), 0).unwrap();
    attend(&ledger, 0..=MINUTE, MINUTE);
    assert_eq!(ledger.expire(MINUTE).unwrap(), []);
    let gone = ledger.expire(MINUTE + 1).unwrap();
    assert_eq!(gone.iter().map(|r| r.id).collect::<Vec<_>>(), [leased.id]);
    let left = ledger.state().unwrap();
    assert_eq!(
        left.reservations().map(|r| r.id).collect::<Vec<_>>(),
        [kept.id]
    );
}

#[test]
fn what_a_dead_holder_was_to_unload_gives_nothing_back_where_nobody_looks() {
    // 20 GiB are others'; 50 are to leave for 40, and their holder dies first.
    let ends: [fn(&Ledger<Volatile>); 2] = [
        |ledger| {
            let before = ledger.state().unwrap();
            let reaped = ledger.reap_since(&before, &[], &[gpu0()], 9 * MINUTE);
            assert_eq!(reaped.unwrap().released.len(), 1);
        },
        |ledger| assert_eq!(ledger.expire(9 * MINUTE).unwrap().len(), 1),
    ];
    for (end, is_away) in ends.into_iter().flat_map(|end| [(end, false), (end, true)]) {
        let ledger = hosts(&[("a", &[80])]);
        load(&ledger, &ask("old", &[&[50 * GIB]]).leased(MINUTE), 0);
        ledger
            .probe(&[Probe {
                gpu: gpu0(),
                free_bytes: 10 * GIB,
            }])
            .unwrap();
        let new = ask("new", &[&[40 * GIB]]).evicting(stale());
        let new = ledger.reserve(&new, 2 * MINUTE).unwrap();
        assert_eq!(new.evict.len(), 1);
        // the GPU may be gone just then
        if is_away {
            ledger.gpu_gone(&gpu0()).unwrap();
        }
        attend(&ledger, 2 * MINUTE..=9 * MINUTE, MINUTE);
        end(&ledger);
        let there = [(gpu0(), size(80 * GIB).unwrap())];
        ledger.set_gpus(&there).unwrap();
        let view = &ledger.gpus().unwrap()[0];
        assert_eq!(view.unconfirmed_bytes, 50 * GIB);
        assert_eq!((view.foreign_bytes, view.free_bytes), (70 * GIB, 0));
    }
}
