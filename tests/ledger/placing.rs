//! Where a model goes: one GPU, several, other hosts; what never fits, and what is recorded.

use super::*;

#[test]
fn a_total_that_fits_is_refused_where_one_gpu_does_not() {
    let ledger = two_of_80();
    for (model, bytes) in [("30b", QWEN3_30B), ("8b", QWEN3_8B), ("vl", QWEN25_VL_7B)] {
        load(&ledger, &ask(model, &[&[bytes]]), 0);
    }
    let total: u64 = free(&ledger).iter().sum();
    assert!(total > 30 * GIB);
    let request = ask("30 GiB", &[&[30 * GIB], &[15 * GIB, 15 * GIB]]);
    let Err(Error::FullNow(decision)) = ledger.reserve(&request, 0) else {
        panic!("not refused");
    };
    let both = decision.options.last().unwrap();
    let Verdict::Short(short) = &both.verdict else {
        panic!("{both:?}");
    };
    assert_eq!(short.len(), 1);
    assert_eq!(short[0].gpu, gpu0());
    assert_eq!(short[0].room_bytes, 80 * GIB - QWEN3_30B);
    assert_eq!(decision.before, decision.after);
}

#[test]
fn one_check_for_one_gpu_and_for_two() {
    let ledger = two_of_80();
    load(&ledger, &ask("30b", &[&[QWEN3_30B]]), 0);
    let state = ledger.state().unwrap();
    let one = state.validate(&[share(gpu0(), 6 * GIB)], &[]).unwrap();
    let both = [share(gpu0(), 6 * GIB), share(gpu1(), 6 * GIB)];
    assert_eq!(one, state.validate(&both, &[]).unwrap());
    assert_eq!(one.len(), 1);
}

#[test]
fn zero_and_unknown_sizes_are_errors() {
    assert!(matches!(Share::new(gpu0(), 0), Err(Error::NoSize)));
    assert!(matches!(Share::new(gpu0(), None), Err(Error::NoSize)));
    assert!(matches!(Shape::anywhere([GIB, 0]), Err(Error::NoSize)));
    assert!(matches!(Shape::anywhere([None::<u64>]), Err(Error::NoSize)));
    assert!(matches!(Shape::anywhere::<u64>([]), Err(Error::NoSize)));
    let none = Request::new("m", "server", vec![]);
    assert!(matches!(two_of_80().reserve(&none, 0), Err(Error::NoSize)));
    assert!(serde_json::from_str::<Shape>(r#"{"anywhere":[0]}"#).is_err());
    assert!(serde_json::from_str::<Shape>(r#"{"anywhere":[null]}"#).is_err());
}

#[test]
fn sizes_near_the_end_of_u64_do_not_wrap() {
    let ledger = two_of_80();
    let huge = ask("huge", &[&[u64::MAX], &[u64::MAX, u64::MAX]]);
    assert!(matches!(ledger.reserve(&huge, 0), Err(Error::NeverFits(_))));
    for _ in 0..3 {
        let shares = [share(gpu0(), u64::MAX)];
        let found = Adopt::new("m", "engine", shares.to_vec());
        ledger.adopt(&found, 0).unwrap();
    }
    let violations = ledger.audit().unwrap();
    assert_eq!(violations[0].reserved_bytes, 3 * u128::from(u64::MAX));
    assert_eq!(free(&ledger), [0, 80 * GIB]);
}

#[test]
fn the_gpu_with_the_most_room_first() {
    let ledger = two_of_80();
    assert_eq!(on(&load(&ledger, &ask("a", &[&[15 * GIB]]), 0)), ["GPU-0"]);
    assert_eq!(on(&load(&ledger, &ask("b", &[&[15 * GIB]]), 0)), ["GPU-1"]);
}

#[test]
fn two_gpus_where_one_cannot() {
    let ledger = two_of_80();
    let grant = load(
        &ledger,
        &ask("a", &[&[140 * GIB], &[70 * GIB, 70 * GIB]]),
        0,
    );
    assert_eq!(on(&grant), ["GPU-0", "GPU-1"]);
    assert_eq!(free(&ledger), [10 * GIB, 10 * GIB]);
}

#[test]
fn one_gpu_even_if_asked_for_two_first() {
    let ledger = two_of_80();
    let grant = load(&ledger, &ask("a", &[&[8 * GIB, 8 * GIB], &[15 * GIB]]), 0);
    assert_eq!(grant.shares.len(), 1);
}

#[test]
fn uneven_shares_go_where_there_is_room_for_them() {
    let ledger = hosts(&[("a", &[24, 80])]);
    let grant = load(&ledger, &ask("m", &[&[20 * GIB, 70 * GIB]]), 0);
    assert_eq!(on(&grant), ["GPU-0", "GPU-1"]);
    let ledger = hosts(&[("a", &[80, 24])]);
    let grant = load(&ledger, &ask("m", &[&[20 * GIB, 70 * GIB]]), 0);
    assert_eq!(on(&grant), ["GPU-1", "GPU-0"]);
    assert_eq!(grant.shares[0].bytes.get(), 20 * GIB);
}

#[test]
fn hosts_of_80_and_of_40() {
    let ledger = hosts(&[("large", &[80, 80]), ("small", &[40, 40])]);
    let ways = |total: u64| ask("m", &[&[total * GIB], &[total * GIB / 2, total * GIB / 2]]);
    let grant = ledger.reserve(&ways(70), 0).unwrap();
    assert_eq!(grant.shares, [share(gpu("large", 0), 70 * GIB)]);
    assert!(matches!(
        ledger.reserve(&ways(500), 0),
        Err(Error::NeverFits(_))
    ));
    // A plan stays on one host: 80 + 40 free on the two make no 120.
    let ledger = hosts(&[("a", &[80]), ("b", &[40])]);
    let refused = ledger.reserve(&ask("m", &[&[80 * GIB, 40 * GIB]]), 0);
    assert!(matches!(refused, Err(Error::NeverFits(_))));
}

#[test]
fn gpus_and_hosts_that_do_not_exist() {
    let ledger = two_of_80();
    let on = |gpu| Request::new("m", "server", vec![Shape::On(vec![share(gpu, GIB)])]);
    let refused = ledger.reserve(&on(gpu("a", 7)), 0);
    assert!(matches!(refused, Err(Error::UnknownGpu(gpu)) if gpu.gpu().as_str() == "GPU-7"));
    let refused = ledger.reserve(&ask("m", &[&[GIB]]).on_host("b"), 0);
    assert!(matches!(refused, Err(Error::UnknownHost(_))));
    let twice = Shape::On(vec![share(gpu0(), GIB), share(gpu0(), GIB)]);
    let refused = ledger.reserve(&Request::new("m", "server", vec![twice]), 0);
    assert!(matches!(refused, Err(Error::GpuTwice(_))));
    let apart = Shape::On(vec![share(gpu0(), GIB), share(gpu("b", 0), GIB)]);
    let refused = ledger.reserve(&Request::new("m", "server", vec![apart]), 0);
    assert!(matches!(refused, Err(Error::TwoHosts(..))));
    let probe = Probe {
        gpu: gpu("b", 0),
        free_bytes: 1,
    };
    assert!(matches!(ledger.probe(&[probe]), Err(Error::UnknownGpu(_))));
    let unknown = ReservationId(99);
    assert!(matches!(
        ledger.release(unknown),
        Err(Error::UnknownReservation(_))
    ));
    assert_eq!(ledger.state().unwrap().reservations().count(), 0);
}

#[test]
fn seventy_and_seventy_then_200_never() {
    let ledger = two_of_80();
    load(&ledger, &ask("a", &[&[70 * GIB]]), 0);
    load(&ledger, &ask("b", &[&[70 * GIB]]), 0);
    let refused = ledger.reserve(&ask("m", &[&[200 * GIB], &[100 * GIB, 100 * GIB]]), 0);
    assert!(matches!(refused, Err(Error::NeverFits(_))));
    let refused = ledger.reserve(&ask("m", &[&[45 * GIB]]), 0);
    assert!(matches!(refused, Err(Error::FullNow(_))));
}

#[test]
fn pending_reservations_count_and_are_named() {
    let ledger = hosts(&[("a", &[80])]);
    let first = ledger.reserve(&ask("a", &[&[QWEN3_30B]]), 0).unwrap();
    assert_eq!(free(&ledger), [80 * GIB - QWEN3_30B]);
    let Err(Error::FullPending { pending, .. }) = ledger.reserve(&ask("b", &[&[QWEN3_8B]]), 0)
    else {
        panic!("not refused");
    };
    assert_eq!(pending, [first.id]);
    ledger.release(first.id).unwrap();
    assert!(ledger.reserve(&ask("b", &[&[QWEN3_8B]]), 0).is_ok());
}

#[test]
fn a_refusal_reserves_nothing_and_says_why() {
    let ledger = two_of_80();
    let refused = ledger.reserve(&ask("m", &[&[200 * GIB]]), 0).unwrap_err();
    let said = "m does not fit even on empty GPUs: a/GPU-0 needs 204800.00 MiB and has room for 81920.00 MiB";
    assert_eq!(refused.to_string(), said);
    assert_eq!(free(&ledger), [80 * GIB, 80 * GIB]);
}

#[test]
fn the_record_of_a_grant() {
    let ledger = two_of_80();
    load(&ledger, &ask("30b", &[&[QWEN3_30B]]), 0);
    let decision = load(&ledger, &ask("8b", &[&[QWEN3_8B]]), 5).decision;
    let verdicts: Vec<_> = decision.options.iter().map(|o| &o.verdict).collect();
    assert_eq!(verdicts[0], &Verdict::Taken);
    assert!(matches!(verdicts[1], Verdict::Short(short) if short[0].gpu == gpu0()));
    assert_eq!(decision.before[1].free_bytes, 80 * GIB);
    assert_eq!(decision.after, ledger.gpus().unwrap());
    let json = serde_json::to_string(&decision).unwrap();
    assert_eq!(decision, serde_json::from_str(&json).unwrap());
}

/// What starts or leaves elsewhere makes no room here.
#[test]
fn only_what_may_make_room_is_waited_for() {
    let ledger = hosts(&[("a", &[80, 8])]);
    load(&ledger, &ask("large", &[&[70 * GIB]]), 0);
    let starts = ledger.reserve(&ask("small", &[&[9 * GIB]]), 0).unwrap();
    assert_eq!(on(&starts), ["GPU-0"]);
    ledger.release(starts.id).unwrap();
    ledger.reserve(&on_gpu1("small", 5), 0).unwrap();
    let here = Request::new(
        "other",
        "loader",
        vec![Shape::On(vec![share(gpu0(), 20 * GIB)])],
    );
    let refused = ledger.reserve(&here, 0);
    assert!(matches!(refused, Err(Error::FullNow(_))), "{refused:?}");
}

fn on_gpu1(model: &str, gib: u64) -> Request {
    let shape = Shape::On(vec![share(gpu1(), gib * GIB)]);
    Request::new(model, "loader", vec![shape])
}
