//! Leases of holders that had no time to renew them: a ledger that was away, a clock that jumps, a store that fails;
//! and of holders that are dead, which nothing keeps for ever.

use super::*;
use std::cell::Cell;
use std::rc::Rc;

/// A lease in these tests.
const LEASE: u64 = 1000;

fn leased() -> Request {
    ask("a", &[&[60 * GIB]]).leased(LEASE)
}

fn over<S: Store>(store: S) -> Ledger<S> {
    let ledger = Ledger::open(store).unwrap();
    ledger
        .set_gpus(&[(gpu0(), size(80 * GIB).unwrap())])
        .unwrap();
    ledger
}

fn expired<S: Store>(ledger: &Ledger<S>, now_ms: u64) -> bool {
    !ledger.expire(now_ms).unwrap().is_empty()
}

fn until<S: Store>(ledger: &Ledger<S>, id: ReservationId) -> Option<u64> {
    let state = ledger.state().unwrap();
    state.reservation(id).unwrap().lease_until_ms
}

/// All calls that look at leases, and whether they dropped or named something.
type Look<S> = fn(&Ledger<S>, u64) -> bool;

fn looks<S: Store>() -> [Look<S>; 4] {
    [
        |ledger, now| !ledger.lapsed(now).unwrap().is_empty(),
        expired,
        |ledger, now| {
            let probe = Probe {
                gpu: gpu0(),
                free_bytes: 20 * GIB,
            };
            !ledger.reap(&[probe], now).unwrap().released.is_empty()
        },
        |ledger, now| {
            let before = ledger.state().unwrap();
            let reaped = ledger.reap_since(&before, &[], &[gpu0()], now).unwrap();
            !reaped.released.is_empty()
        },
    ]
}

#[test]
fn leases_begin_anew_when_a_ledger_is_opened() {
    for look in looks() {
        let store = Memory::new();
        let killed = over(store.clone());
        let held = load(&killed, &leased(), 0);
        attend(&killed, 0..=900, LEASE);
        drop(killed);
        // It is opened again long after the lease has run out, and nobody could renew it.
        let ledger = Ledger::open(store).unwrap();
        assert!(!look(&ledger, 9000));
        assert_eq!(until(&ledger, held.id), Some(10_000));
        let second = ledger.reserve(&leased(), 9001);
        assert!(matches!(second, Err(Error::FullNow(_))));
        // Whose holder lives goes on, and who does not renew it has no more than that.
        ledger.renew(held.id, 9500).unwrap();
        attend(&ledger, 9500..=10_500, LEASE);
        assert!(look(&ledger, 10_501));
    }
}

#[test]
fn leases_begin_anew_where_the_process_was_stopped_or_the_clock_jumped() {
    for look in looks() {
        for away in [251, 999, 1000, 1001, 1_000_000] {
            let ledger = over(Volatile);
            let held = load(&ledger, &leased(), 0);
            attend(&ledger, 0..=900, LEASE);
            let back = 900 + away;
            assert!(!look(&ledger, back));
            // Whatever is called first shows that it is back.
            attend(&ledger, back..=back + LEASE, LEASE);
            assert_eq!(until(&ledger, held.id), Some(back + LEASE));
            assert!(look(&ledger, back + LEASE + 1));
        }
        // A quarter of a lease is not away.
        let ledger = over(Volatile);
        load(&ledger, &leased(), 0);
        attend(&ledger, 0..=750, LEASE);
        assert!(!look(&ledger, 1000));
        assert!(look(&ledger, 1001));
    }
}

/// The call that finds it back may be any that takes the time.
#[test]
fn a_renewal_after_an_outage_comes_in_time_whatever_is_called_first() {
    let first: [fn(&Ledger<Volatile>, ReservationId); 5] = [
        |ledger, _| assert!(ledger.reserve(&leased(), 9000).is_err()),
        |ledger, _| assert!(ledger.plan(&leased(), 9000).is_err()),
        |ledger, id| ledger.begin_request(id, 9000).unwrap(),
        |ledger, _| assert!(ledger.renew(ReservationId(99), 9000).is_err()),
        |ledger, _| assert!(!expired(ledger, 9000)),
    ];
    for call in first {
        let ledger = over(Volatile);
        let held = load(&ledger, &leased(), 0);
        call(&ledger, held.id);
        attend(&ledger, 9000..=10_000, LEASE);
        assert!(!expired(&ledger, 10_000));
        ledger.renew(held.id, 10_000).unwrap();
    }
}

#[test]
fn a_short_outage_is_long_for_a_short_lease_alone() {
    let ledger = over(Volatile);
    let short = ask("short", &[&[GIB]]).leased(LEASE);
    let long = ask("long", &[&[GIB]]).leased(10 * LEASE);
    let short = load(&ledger, &short, 9400).id;
    let long = load(&ledger, &long, 0).id;
    attend(&ledger, 0..=9900, LEASE);
    ledger.renew(short, 9900).unwrap();
    attend(&ledger, 9900..=9901, LEASE);
    // 1.1 s: more than a quarter of 1 s, less than one of 10 s.
    let gone: Vec<_> = ledger.expire(11_001).unwrap();
    assert_eq!(gone.iter().map(|r| r.id).collect::<Vec<_>>(), [long]);
    assert_eq!(until(&ledger, short), Some(12_001));
}

/// What is opened, or looked at, only now and then does not keep a dead holder for ever.
#[test]
fn a_lease_begins_anew_three_times_in_a_row() {
    for is_opened_each_time in [false, true] {
        let store = Memory::new();
        let mut ledger = over(store.clone());
        let id = load(&ledger, &leased(), 0).id;
        let mut now = 0;
        let mut outages = |ledger: &mut Ledger<Memory>, n: u64| {
            for _ in 0..n {
                now += 3_600_000;
                if is_opened_each_time {
                    let state = ledger.state().unwrap();
                    store.clone().compact(&state).unwrap();
                    *ledger = Ledger::open(store.clone()).unwrap();
                }
                assert!(!expired(ledger, now));
                assert_eq!(until(ledger, id), Some(now + LEASE));
            }
            now
        };
        // Who gives a sign in between has all of them again.
        let back = outages(&mut ledger, 3);
        ledger.renew(id, back + 1).unwrap();
        let back = outages(&mut ledger, 3);
        assert!(expired(&ledger, back + 3_600_000));
    }
}

/// Outages that are no longer than a lease take no more than their turn either.
#[test]
fn a_process_that_is_stopped_again_and_again_keeps_a_dead_holder_for_four_leases() {
    let ledger = over(Volatile);
    load(&ledger, &leased(), 0);
    let gone = (0..40).map(|n| n * 300).find(|&now| expired(&ledger, now));
    // Each time a lease from the last time that it came back.
    assert!(
        gone.is_some_and(|now| (4 * LEASE..=5 * LEASE).contains(&now)),
        "{gone:?}"
    );
}

/// A server that was there all the time need not wait for one that is opened beside it.
#[test]
fn a_ledger_that_is_opened_beside_another_keeps_nobody_there() {
    let store = Memory::new();
    let server = over(store.clone());
    load(&server, &leased(), 0);
    for now in (0..=LEASE).step_by(100) {
        let tool = Ledger::open(store.clone()).unwrap();
        assert!(tool.lapsed(now).unwrap().is_empty());
        assert!(!expired(&server, now));
    }
    assert!(expired(&server, LEASE + 1));
}

#[test]
fn a_clock_that_is_set_back_does_not_keep_a_dead_holder_until_it_is_there_again() {
    let ledger = over(Volatile);
    let ten_years = 315_360_000_000;
    let held = load(&ledger, &leased(), ten_years);
    assert!(!expired(&ledger, 5000));
    assert_eq!(until(&ledger, held.id), Some(6000));
    attend(&ledger, 5000..=6000, LEASE);
    assert!(expired(&ledger, 6001));
}

/// Takes nothing, or answers nothing at all, as long as it is told to.
#[derive(Clone, Default)]
struct Failing(Memory, Rc<Cell<(bool, bool)>>);

impl Failing {
    fn failed() -> StoreError {
        StoreError::Failed("disk full".into())
    }
}

impl Store for Failing {
    fn append(&mut self, after: u64, events: &[Event]) -> Result<(), StoreError> {
        match self.1.get() {
            (_, true) => Err(Self::failed()),
            _ => self.0.append(after, events),
        }
    }

    fn read(&mut self, after: u64) -> Result<Tail, StoreError> {
        match self.1.get() {
            (true, _) => Err(Self::failed()),
            _ => self.0.read(after),
        }
    }

    fn compact(&mut self, state: &State) -> Result<(), StoreError> {
        self.0.compact(state)
    }
}

#[test]
fn leases_begin_anew_where_the_store_could_not_be_reached() {
    for fails in [(true, true), (false, true)] {
        let store = Failing::default();
        let ledger = over(store.clone());
        let held = load(&ledger, &leased(), 0);
        // Looked at all the time, and nothing of it can be stored, though it may be read.
        attend(&ledger, 0..=900, LEASE);
        store.1.set(fails);
        for now in (1000..9000).step_by(100) {
            assert!(ledger.renew(held.id, now).is_err());
            assert!(ledger.expire(now + 1).is_err());
        }
        store.1.set((false, false));
        assert!(!expired(&ledger, 9000));
        assert_eq!(until(&ledger, held.id), Some(10_000));
        attend(&ledger, 9000..=10_000, LEASE);
        assert!(expired(&ledger, 10_001));
    }
}

#[test]
fn a_lease_of_any_length_is_counted() {
    for lease in [1, 2, 3, u64::MAX - 1, u64::MAX] {
        let ledger = over(Volatile);
        load(&ledger, &ask("a", &[&[GIB]]).leased(lease), u64::MAX / 2);
        let times = [0, 1, u64::MAX - 1, u64::MAX, u64::MAX / 2];
        let gone = times.into_iter().cycle().take(40);
        let gone = gone.filter(|&now| expired(&ledger, now)).count();
        assert!(gone <= 1);
    }
}
