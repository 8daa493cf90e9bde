//! Engines that unload without a word and load again, beside others whose memory nobody can tell from theirs.

use super::*;

/// What the driver says is free, in GiB.
pub fn figure<S: Store>(ledger: &Ledger<S>, gib: u64) {
    let probe = Probe {
        gpu: gpu0(),
        free_bytes: gib * GIB,
    };
    ledger.probe(&[probe]).unwrap();
}

/// In GiB: taken by others, missing, free.
pub fn shown<S: Store>(ledger: &Ledger<S>) -> (u64, u64, u64) {
    let view = &ledger.gpus().unwrap()[0];
    let all = (view.foreign_bytes, view.missing_bytes, view.free_bytes);
    (all.0 / GIB, all.1 / GIB, all.2 / GIB)
}

/// One GPU of 80 GiB of which others hold `others`, and a model of `gib` that is loaded and unused.
fn beside(others: u64, gib: u64) -> (Ledger<Volatile>, Grant) {
    let ledger = hosts(&[("a", &[80])]);
    figure(&ledger, 80 - others);
    let model = load(&ledger, &ask("old", &[&[gib * GIB]]), 0);
    figure(&ledger, 80 - others - gib);
    assert_eq!(shown(&ledger), (others, 0, 80 - others - gib));
    (ledger, model)
}

#[test]
fn an_engine_that_sleeps_may_load_again() {
    // Larger than what others hold, and smaller.
    for (others, gib) in [(20, 30), (30, 20), (25, 25)] {
        let (ledger, _) = beside(others, gib);
        figure(&ledger, 80 - others);
        let left = 80 - others - gib;
        assert_eq!(shown(&ledger), (others, gib, left));
        let too_much = ledger.reserve(&ask("new", &[&[left * GIB + 1]]), 0);
        let Err(Error::FullNow(refused)) = too_much else {
            panic!("not refused");
        };
        let kept = others.min(gib) << 10;
        let why = format!(
            "no room for new now: retry later: a/GPU-0 needs {} bytes and has room for {} bytes \
             ({kept}.00 MiB more are kept for an engine that may only sleep)",
            left * GIB + 1,
            left * GIB,
        );
        assert_eq!(Error::FullNow(refused).to_string(), why);
        let new = load(&ledger, &ask("new", &[&[left * GIB]]), 0);
        figure(&ledger, gib);
        assert_eq!(shown(&ledger), (others, gib, 0));
        // It wakes, and everything is there.
        figure(&ledger, 0);
        assert_eq!(shown(&ledger), (others, 0, 0));
        ledger.release(new.id).unwrap();
        figure(&ledger, left);
        assert_eq!(shown(&ledger), (others, 0, left));
    }
}

#[test]
fn evicting_what_is_asleep_frees_nothing_that_others_hold() {
    let (ledger, old) = beside(20, 30);
    figure(&ledger, 60);
    let evicting = |gib: u64| ask("new", &[&[gib * GIB]]).evicting(stale());
    let late = 2 * MINUTE;
    assert!(ledger.reserve(&evicting(61), late).is_err());
    let new = ledger.reserve(&evicting(50), late).unwrap();
    assert_eq!(new.evict[0].id, old.id);
    assert_eq!(shown(&ledger), (20, 30, 10));
    ledger.release(old.id).unwrap();
    assert_eq!(shown(&ledger), (20, 0, 10));
    ledger.commit(new.id, &new.shares, late).unwrap();
    figure(&ledger, 10);
    assert_eq!(shown(&ledger), (20, 0, 10));
}

#[test]
fn of_two_either_may_be_the_one_that_sleeps() {
    for awake in [false, true] {
        let ledger = hosts(&[("a", &[80])]);
        figure(&ledger, 60);
        let models = [("a", 30), ("b", 10)].map(|(name, gib)| {
            let request = ask(name, &[&[gib * GIB]]).evicting(stale());
            load(&ledger, &request, 0)
        });
        figure(&ledger, 20);
        // The larger unloads; one of them is evicted for another.
        figure(&ledger, 50);
        assert_eq!(shown(&ledger), (20, 30, 20));
        let leaves = &models[usize::from(awake)];
        let stays = &models[usize::from(!awake)];
        ledger.begin_request(stays.id, 0).unwrap();
        let gib = 20 + leaves.shares[0].bytes.get() / GIB;
        let new = ask("new", &[&[gib * GIB]]).evicting(stale());
        let new = ledger.reserve(&new, 2 * MINUTE).unwrap();
        assert_eq!(new.evict[0].id, leaves.id);
        ledger.release(leaves.id).unwrap();
        assert_eq!(shown(&ledger).2, 0);
        // What is there then: others, what is awake, and what is promised.
        figure(&ledger, if awake { 60 } else { 50 });
        assert_eq!(shown(&ledger).2, 0);
    }
}

#[test]
fn what_others_leave_is_free_at_once_beside_what_stays() {
    let ledger = hosts(&[("a", &[80])]);
    figure(&ledger, 60);
    let stays = load(&ledger, &ask("stays", &[&[30 * GIB]]).staying(), 0);
    let adopted = Adopt::new("too", "engine", vec![share(gpu0(), 10 * GIB)]);
    ledger.adopt(&adopted.staying(), 0).unwrap();
    figure(&ledger, 30);
    assert_eq!(shown(&ledger), (10, 0, 30));
    figure(&ledger, 40);
    assert_eq!(shown(&ledger), (0, 0, 40));
    assert!(ledger.state().unwrap().reservation(stays.id).unwrap().stays);
}

#[test]
fn what_others_leave_beside_what_may_sleep_is_held_until_that_is_gone() {
    let (ledger, old) = beside(20, 15);
    figure(&ledger, 65);
    assert_eq!(shown(&ledger), (15, 15, 50));
    // More than it has cannot be its.
    figure(&ledger, 75);
    assert_eq!(shown(&ledger), (5, 15, 60));
    figure(&ledger, 65);
    assert_eq!(shown(&ledger), (5, 5, 60));
    ledger.release(old.id).unwrap();
    figure(&ledger, 80);
    assert_eq!(shown(&ledger), (0, 0, 80));
}

#[test]
fn others_that_grow_show_beside_what_is_there() {
    let (ledger, _) = beside(20, 30);
    figure(&ledger, 60);
    // Half of it is back, or others have more: a total does not tell.
    figure(&ledger, 45);
    assert_eq!(shown(&ledger), (20, 15, 30));
    figure(&ledger, 15);
    assert_eq!(shown(&ledger), (35, 0, 15));
}

#[test]
fn what_loads_or_leaves_is_not_taken_for_others_for_long() {
    let (ledger, old) = beside(20, 20);
    let slow = ledger.reserve(&ask("slow", &[&[30 * GIB]]), 0).unwrap();
    figure(&ledger, 25);
    assert_eq!(shown(&ledger), (35, 0, 0));
    ledger.commit(slow.id, &slow.shares, 0).unwrap();
    figure(&ledger, 10);
    assert_eq!(shown(&ledger), (20, 0, 10));
    // Unloaded while the driver is asked: it has counted before.
    let before = ledger.state().unwrap();
    ledger.release(slow.id).unwrap();
    let counted = [Probe {
        gpu: gpu0(),
        free_bytes: 10 * GIB,
    }];
    ledger.probe_since(&before, &counted).unwrap();
    figure(&ledger, 40);
    assert_eq!(shown(&ledger), (20, 0, 40));
    let new = ask("new", &[&[60 * GIB]]).evicting(stale());
    let new = ledger.reserve(&new, 2 * MINUTE).unwrap();
    assert_eq!(new.evict[0].id, old.id);
    figure(&ledger, 40);
    ledger.release(old.id).unwrap();
    figure(&ledger, 60);
    assert_eq!(shown(&ledger), (20, 0, 0));
}

#[test]
fn what_is_adopted_was_one_of_the_others() {
    let ledger = hosts(&[("a", &[80])]);
    figure(&ledger, 30);
    let shares = vec![share(gpu0(), 30 * GIB)];
    let adopted = ledger
        .adopt(&Adopt::new("old", "engine", shares), 0)
        .unwrap();
    figure(&ledger, 30);
    assert_eq!(shown(&ledger), (20, 0, 30));
    figure(&ledger, 60);
    assert_eq!(shown(&ledger), (20, 30, 30));
    ledger.release(adopted).unwrap();
    figure(&ledger, 60);
    assert_eq!(shown(&ledger), (20, 0, 60));
}

/// What loads while an engine sleeps may lie in what that one left: others have not become fewer by its adoption.
#[test]
fn what_is_adopted_beside_an_engine_that_sleeps_takes_nothing_from_others() {
    for gib in [5, 10, 20] {
        let (ledger, _) = beside(30, 20);
        figure(&ledger, 50 - gib);
        assert_eq!(shown(&ledger), (30, 20 - gib, 30));
        let shares = vec![share(gpu0(), gib * GIB)];
        ledger
            .adopt(&Adopt::new("too", "engine", shares), 0)
            .unwrap();
        assert_eq!(shown(&ledger).2, 30 - gib);
        figure(&ledger, 50 - gib);
        assert_eq!(shown(&ledger).2, 30 - gib);
        // Awake, it and the others and the new one are all there.
        figure(&ledger, 30 - gib);
        assert_eq!(shown(&ledger), (30, 0, 30 - gib));
    }
}

#[test]
fn two_that_are_adopted_behind_one_figure() {
    let ledger = hosts(&[("a", &[80])]);
    figure(&ledger, 20);
    for model in ["old", "older"] {
        let shares = vec![share(gpu0(), 20 * GIB)];
        ledger
            .adopt(&Adopt::new(model, "engine", shares), 0)
            .unwrap();
    }
    figure(&ledger, 20);
    assert_eq!(shown(&ledger), (20, 0, 20));
}

#[test]
fn a_capacity_below_what_the_gpu_has() {
    // Of 80 GiB 10 are set aside: others that hold less than those take nothing of the rest.
    let ledger = hosts(&[("a", &[70])]);
    figure(&ledger, 76);
    let old = load(&ledger, &ask("old", &[&[30 * GIB]]), 0);
    figure(&ledger, 46);
    assert_eq!(shown(&ledger).2, 40);
    // 16 are 6 of the rest; asleep, it may load again.
    figure(&ledger, 34);
    assert_eq!(shown(&ledger), (6, 0, 34));
    figure(&ledger, 64);
    assert_eq!(shown(&ledger), (6, 30, 34));
    // Nothing set aside, then 20: what others hold beyond it moves with it.
    let capacity = |gib: u64| {
        let gpus = [(gpu0(), size(gib * GIB).unwrap())];
        ledger.set_gpus(&gpus).unwrap();
    };
    capacity(80);
    assert_eq!(shown(&ledger), (16, 30, 34));
    figure(&ledger, 64);
    assert_eq!(shown(&ledger), (16, 30, 34));
    capacity(60);
    assert_eq!(shown(&ledger).2, 30);
    figure(&ledger, 34);
    assert_eq!(shown(&ledger).2, 30);
    ledger.release(old.id).unwrap();
    figure(&ledger, 64);
    assert_eq!(shown(&ledger).2, 60);
}

#[test]
fn an_engine_that_grows_takes_from_what_is_free_and_one_that_shrinks_gives_nothing_back() {
    let (ledger, old) = beside(20, 30);
    figure(&ledger, 25);
    assert_eq!(shown(&ledger), (25, 0, 25));
    figure(&ledger, 40);
    assert_eq!(shown(&ledger), (25, 15, 25));
    // Its own word ends that: 15 are its, and the rest is others'.
    let held = Held {
        id: old.id,
        shares: vec![share(gpu0(), 15 * GIB)],
    };
    ledger.reconcile(&"server".into(), &[held]).unwrap();
    assert_eq!(shown(&ledger), (25, 0, 40));
}

#[test]
fn who_knows_what_others_hold_says_so() {
    let (ledger, _) = beside(20, 30);
    let say = |gib: u64| ledger.others_hold(&gpu0(), gib * GIB).unwrap();
    // Less is taken: it was others, not the engine.
    figure(&ledger, 45);
    assert_eq!(shown(&ledger), (20, 15, 30));
    say(5);
    assert_eq!(shown(&ledger), (5, 0, 45));
    figure(&ledger, 45);
    figure(&ledger, 75); // and now it is the engine
    assert_eq!(shown(&ledger), (5, 30, 45));
    // Others have taken 10 more in its place.
    figure(&ledger, 65);
    say(15);
    assert_eq!(shown(&ledger), (15, 30, 35));
    figure(&ledger, 35);
    assert_eq!(shown(&ledger), (15, 0, 35));
    // Whatever is said, what the driver saw is taken.
    say(0);
    assert_eq!(shown(&ledger), (15, 0, 35));
    figure(&ledger, 35);
    assert_eq!(shown(&ledger), (15, 0, 35));
    let unknown = ledger.others_hold(&gpu1(), GIB);
    assert!(matches!(unknown, Err(Error::UnknownGpu(_))));
    let ledger = hosts(&[("a", &[80])]);
    ledger.others_hold(&gpu0(), 30 * GIB).unwrap();
    assert_eq!(shown(&ledger), (0, 0, 80));
}

/// What was released after the last figure is taken for as long as there is none.
#[test]
fn a_gpu_of_which_the_driver_says_no_more() {
    let (ledger, old) = beside(20, 30);
    ledger.release(old.id).unwrap();
    assert_eq!(shown(&ledger).2, 30);
    ledger.forget_figure(&gpu0()).unwrap();
    let there = [(gpu0(), size(60 * GIB).unwrap())];
    ledger.set_gpus(&there).unwrap();
    assert_eq!(shown(&ledger), (0, 0, 60));
}

#[test]
fn what_others_hold_is_kept_in_the_journal() {
    let mut store = Memory::new();
    let ledger = Ledger::open(store.clone()).unwrap();
    ledger
        .set_gpus(&[(gpu0(), size(80 * GIB).unwrap())])
        .unwrap();
    figure(&ledger, 60);
    load(&ledger, &ask("old", &[&[30 * GIB]]), 0);
    figure(&ledger, 30);
    figure(&ledger, 60);
    let state = ledger.state().unwrap();
    let again = Ledger::open(store.clone()).unwrap();
    assert_eq!(again.state().unwrap(), state);
    store.compact(&state).unwrap();
    let again = Ledger::open(store).unwrap();
    assert_eq!(again.state().unwrap(), state);
    assert_eq!(shown(&again), (20, 30, 30));
    // A journal of before says nothing of it: others hold what the figure says.
    let figure =
        r#"{"figure":{"gpu":{"host":"a","gpu":"GPU-0"},"free_bytes":60,"seen":[],"left_bytes":5}}"#;
    let old: Event = serde_json::from_str(figure).unwrap();
    let mut state = State::default();
    let gpu = Event::Gpu {
        gpu: gpu0(),
        capacity_bytes: size(80).unwrap(),
    };
    state.apply(gpu).unwrap();
    state.apply(old).unwrap();
    assert_eq!(state.gpus()[0].foreign_bytes, 20);
}
