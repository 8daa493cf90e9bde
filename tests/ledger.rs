//! The ledger: what over-committed an 80 GiB GPU to 128.175 GiB in a production scheduler, and every
//! other case of how a ledger goes wrong.

#![allow(clippy::unwrap_used)] // also in what the tests share

use vramfit_ledger::{
    Adopt, Error, Event, GpuId, Grant, Held, Journal, Ledger, Memory, Phase, Probe, Request,
    ReservationId, Shape, Share, Stale, State, Store, StoreError, Tail, Verdict, Volatile, size,
};

const GIB: u64 = 1 << 30;
const QWEN3_30B: u64 = 79_982_566_400;
const QWEN3_8B: u64 = 15_767_897_088;
const GPT_OSS_20B: u64 = 51_325_686_144;
const QWEN25_VL_7B: u64 = 39 * GIB;
/// Idle for a minute, not started for ten.
const MINUTE: u64 = 60_000;

fn stale() -> Stale {
    Stale::after(MINUTE, 10 * MINUTE)
}

fn gpu(host: &str, i: usize) -> GpuId {
    GpuId::new(host, format!("GPU-{i}"))
}

fn gpu0() -> GpuId {
    gpu("a", 0)
}

fn gpu1() -> GpuId {
    gpu("a", 1)
}

fn hosts(hosts: &[(&str, &[u64])]) -> Ledger<Volatile> {
    let ledger = Ledger::open(Volatile).unwrap();
    for (host, gib) in hosts {
        let one = |(i, &gib): (usize, &u64)| (gpu(host, i), size(gib * GIB).unwrap());
        let gpus: Vec<_> = gib.iter().enumerate().map(one).collect();
        ledger.set_gpus(&gpus).unwrap();
    }
    ledger
}

fn two_of_80() -> Ledger<Volatile> {
    hosts(&[("a", &[80, 80])])
}

/// Ways to place a model: bytes on one GPU, on each of two, ..
fn ask(model: &str, ways: &[&[u64]]) -> Request {
    let shape = |way: &&[u64]| Shape::anywhere(way.iter().copied()).unwrap();
    Request::new(model, "server", ways.iter().map(shape).collect())
}

fn share(gpu: GpuId, bytes: u64) -> Share {
    Share::new(gpu, bytes).unwrap()
}

/// Reserved and loaded.
fn load<S: Store>(ledger: &Ledger<S>, request: &Request, now_ms: u64) -> Grant {
    let grant = ledger.reserve(request, now_ms).unwrap();
    ledger.commit(grant.id, &grant.shares, now_ms).unwrap();
    grant
}

fn on(grant: &Grant) -> Vec<&str> {
    grant.shares.iter().map(|s| s.gpu.gpu().as_str()).collect()
}

fn free<S: Store>(ledger: &Ledger<S>) -> Vec<u64> {
    let gpus = ledger.gpus().unwrap();
    gpus.iter().map(|view| view.free_bytes).collect()
}

// The scenario.

#[test]
fn three_models_on_two_gpus_are_74_and_53_gib_never_128() {
    let ledger = two_of_80();
    let large = load(&ledger, &ask("qwen3:30b", &[&[QWEN3_30B]]), 0);
    let small = load(&ledger, &ask("qwen3:8b", &[&[QWEN3_8B]]), 0);
    let vision = load(&ledger, &ask("Qwen2.5-VL-7B", &[&[QWEN25_VL_7B]]), 0);
    assert_eq!(on(&large), ["GPU-0"]);
    assert_eq!(on(&small), ["GPU-1"]);
    assert_eq!(on(&vision), ["GPU-1"]);
    let left = [80 * GIB - QWEN3_30B, 80 * GIB - QWEN3_8B - QWEN25_VL_7B];
    assert_eq!(free(&ledger), left);
    assert!(ledger.audit().unwrap().is_empty());
}

#[test]
fn all_three_on_one_gpu_are_refused() {
    let ledger = hosts(&[("a", &[80])]);
    load(&ledger, &ask("qwen3:30b", &[&[QWEN3_30B]]), 0);
    for (model, bytes) in [
        ("qwen3:8b", QWEN3_8B),
        ("vl", QWEN25_VL_7B),
        ("gpt-oss:20b", GPT_OSS_20B),
    ] {
        let Err(Error::FullNow(decision)) = ledger.reserve(&ask(model, &[&[bytes]]), 0) else {
            panic!("{model} was not refused");
        };
        let Verdict::Short(short) = &decision.options[0].verdict else {
            panic!("{decision:?}");
        };
        assert_eq!(short[0].need_bytes, bytes);
        assert_eq!(short[0].room_bytes, 80 * GIB - QWEN3_30B);
    }
    assert_eq!(ledger.state().unwrap().reservations().count(), 1);
}

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

// Sizes.

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

// Which GPU.

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

// Full, and how.

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
    let said = "m does not fit even on empty GPUs: a/GPU-0 needs 214748364800 bytes and has room for 85899345920";
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

// Evictions.

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

// Plans that age.

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

// The ledger and the world.

#[test]
fn free_is_the_less_of_driver_and_ledger() {
    let ledger = hosts(&[("a", &[80])]);
    let running = load(&ledger, &ask("a", &[&[30 * GIB]]), 0);
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
    ledger.renew(loaded.id, 500).unwrap();
    let lapsed = |now| -> Vec<_> { ledger.lapsed(now).unwrap().iter().map(|r| r.id).collect() };
    assert_eq!(lapsed(1000), []);
    assert_eq!(lapsed(1001), [pending.id]);
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

#[test]
fn a_lease_on_a_gpu_that_nobody_can_look_into_ends_without_a_probe() {
    let ledger = two_of_80();
    let leased = load(&ledger, &ask("a", &[&[30 * GIB]]).leased(1000), 0);
    assert_eq!(on(&leased), ["GPU-0"]);
    let before = ledger.state().unwrap();
    let reap = |blind: &[GpuId]| ledger.reap_since(&before, &[], blind, 9999).unwrap();
    let kept = reap(&[gpu1()]);
    assert_eq!((kept.released.len(), kept.unprobed), (0, vec![leased.id]));
    assert_eq!(reap(&[gpu0()]).released[0].id, leased.id);
}

// The store.

/// Two ledgers over one log are two servers over one etcd.
#[test]
fn leases_that_run_out_where_no_driver_can_be_asked() {
    let ledger = two_of_80();
    let leased = ledger
        .reserve(&ask("a", &[&[40 * GIB]]).leased(MINUTE), 0)
        .unwrap();
    let kept = ledger.reserve(&ask("b", &[&[40 * GIB]]), 0).unwrap();
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
