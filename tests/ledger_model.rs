//! The ledger against a model of it that is too simple to be wrong: a list of what is held, sums
//! counted anew each time, and every option tried with every set of evictions.
//!
//! `VRAMFIT_LEDGER_OPERATIONS=10000000 cargo test --release -p vramfit-ledger --test ledger_model`
//! does ten million; `VRAMFIT_LEDGER_SEED` makes them others.

#![allow(clippy::disallowed_methods)] // its length is read from the environment
#![allow(clippy::unwrap_used)] // also in what the tests share

#[path = "ledger_model/facts.rs"]
mod facts;
#[path = "ledger_model/naive.rs"]
mod naive;

use fastrand::Rng;
use naive::{IDLE_MS, Naive, START_MS, Slot};
use std::collections::{BTreeMap, BTreeSet};
use vramfit_ledger::{
    Error, GpuId, Ledger, Memory, Name, Phase, Probe, Request, ReservationId, Shape, Share, Stale,
    State, size,
};

/// A question to the driver that is not answered yet: the ledger then, what was held and ran of it, and what the
/// driver will say.
struct Asked {
    before: State,
    held: BTreeMap<ReservationId, u64>,
    ran: BTreeMap<ReservationId, u64>,
    sure: BTreeSet<ReservationId>,
    haunted: i128,
    probe: Probe,
}

fn plain(shares: &[Share]) -> Vec<(GpuId, u64)> {
    shares
        .iter()
        .map(|s| (s.gpu.clone(), s.bytes.get()))
        .collect()
}

fn exact(shares: &[(GpuId, u64)]) -> Vec<Share> {
    let share = |(gpu, bytes): &(GpuId, u64)| Share::new(gpu.clone(), *bytes).unwrap();
    shares.iter().map(share).collect()
}

struct Game {
    store: Memory,
    ledger: Ledger<Memory>,
    naive: Naive,
    rng: Rng,
    now: u64,
    gpus: Vec<GpuId>,
    asked: Option<Asked>,
    /// The driver is asked often.
    watched: bool,
    /// What was granted, refused, evicted: a game in which nothing happens proves nothing.
    seen: BTreeMap<&'static str, u64>,
}

impl Game {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let store = Memory::new();
        let ledger = Ledger::open(store.clone()).unwrap();
        let mut naive = Naive::default();
        for host in 0..rng.u8(1..=2) {
            for gpu in 0..rng.u8(1..=3) {
                let gpu = GpuId::new(format!("host-{host}"), format!("GPU-{gpu}"));
                let bytes = rng.u64(40..=80);
                ledger
                    .set_gpus(&[(gpu.clone(), size(bytes).unwrap())])
                    .unwrap();
                naive.capacity.insert(gpu, bytes);
            }
        }
        let gpus = naive.capacity.keys().cloned().collect();
        let (now, seen) = (0, BTreeMap::new());
        let watched = rng.u8(..4) == 0;
        Game {
            store,
            ledger,
            naive,
            rng,
            now,
            gpus,
            asked: None,
            watched,
            seen,
        }
    }

    fn saw(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    fn any(&mut self) -> ReservationId {
        match self.rng.choice(&self.naive.slots) {
            Some(slot) if self.rng.u8(..) > 5 => slot.id,
            _ => ReservationId(self.rng.u64(..1000)),
        }
    }

    fn step(&mut self) {
        self.now += self.rng.u64(..10);
        match self.rng.u8(..100) {
            _ if self.watched && self.rng.bool() => self.probe(),
            0..35 => self.reserve(),
            35..55 => self.commit(),
            55..75 => self.release(),
            75..87 => self.request(),
            87..91 => self.renew(),
            91..94 => self.reap(),
            94 => self.lapsed(),
            95 if self.rng.bool() => self.away(),
            95 => self.probe(),
            96 => self.ask_or_answer(),
            97 if self.rng.bool() => self.reconcile(),
            97 => self.tell(),
            98 => self.adopt(),
            _ => self.capacity(),
        }
        self.compare();
    }

    fn reserve(&mut self) {
        let model = Name::from(format!("m{}", self.rng.u8(..6)));
        let holder = format!("h{}", self.rng.u8(..2));
        let ways: Vec<Vec<u64>> = (0..self.rng.usize(1..=3))
            .map(|_| {
                (0..*self.rng.choice(&[1, 1, 2, 3]).unwrap())
                    .map(|_| self.rng.u64(1..=90))
                    .collect()
            })
            .collect();
        let evict = self.rng.bool();
        let shapes = ways
            .iter()
            .map(|way| Shape::anywhere(way.iter().copied()).unwrap());
        let mut request = Request::new(model.clone(), holder.as_str(), shapes.collect());
        if evict {
            request = request.evicting(Stale::after(IDLE_MS, START_MS));
        }
        let lease = self.rng.bool().then(|| self.rng.u64(1..300));
        request.lease_ms = lease;
        request.stays = self.rng.bool();
        let expected = self.naive.best(&model, &ways, evict, self.now);
        let answer = match self.rng.bool() {
            true => self.ledger.reserve(&request, self.now),
            false => self
                .ledger
                .plan(&request, self.now)
                .and_then(|p| self.ledger.take(&p, self.now)),
        };
        self.tells();
        // A part of it fits there, if nothing else is there.
        let smallest = ways.iter().flatten().min().unwrap();
        let may_help = |gpu: &GpuId| i128::from(self.naive.capacity[gpu]) >= i128::from(*smallest);
        let moving =
            self.naive.slots.iter().any(|s| {
                s.phase != Phase::Running && s.shares.iter().any(|(gpu, _)| may_help(gpu))
            });
        let grant = match (answer, expected) {
            (Ok(grant), Some(price)) => {
                let shares = plain(&grant.shares);
                let is = |i: &usize| grant.evict.iter().any(|e| e.id == self.naive.slots[*i].id);
                let out: Vec<_> = (0..self.naive.slots.len()).filter(is).collect();
                assert!(self.naive.fits(&shares, &out));
                assert_eq!(self.naive.price(&shares, &out), price);
                for i in out {
                    let slot = &mut self.naive.slots[i];
                    slot.leaves = Some((grant.id, slot.phase));
                    slot.phase = Phase::Leaving;
                }
                grant
            }
            (Err(Error::NeverFits(_)), None) if !self.naive.ever(&ways) => {
                return self.saw("never");
            }
            (Err(Error::FullPending { .. }), None) if self.naive.ever(&ways) && moving => {
                return self.saw("full, pending");
            }
            (Err(Error::FullNow(_)), None) if self.naive.ever(&ways) && !moving => {
                return self.saw("full now");
            }
            (answer, expected) => panic!("{request:?}: {answer:?}, expected {expected:?}"),
        };
        self.saw(match (grant.evict.len(), grant.shares.len()) {
            (0, 1) => "granted",
            (0, _) => "granted on several",
            (_, 1) => "granted by eviction",
            _ => "granted on several by eviction",
        });
        self.naive.slots.push(Slot {
            id: grant.id,
            model,
            holder: holder.into(),
            shares: plain(&grant.shares),
            phase: Phase::Pending,
            created: self.now,
            active: self.now,
            requests: 0,
            lease: lease.map(|ms| (ms, self.now + ms)),
            again: 0,
            leaves: None,
            stays: request.stays,
        });
    }

    fn commit(&mut self) {
        let id = self.any();
        self.tells();
        let Some(slot) = self.naive.slot(id) else {
            let shares = [Share::new(self.gpus[0].clone(), 1).unwrap()];
            let answer = self.ledger.commit(id, &shares, self.now);
            return assert!(matches!(answer, Err(Error::UnknownReservation(_))));
        };
        let (phase, mut shares) = (slot.phase, slot.shares.clone());
        for (_, bytes) in &mut shares {
            *bytes = (*bytes + self.rng.u64(..6)).saturating_sub(2).max(1);
        }
        let n = &self.naive;
        let others = |gpu: &GpuId| n.on(gpu, |s| s.id != id && s.phase != Phase::Leaving);
        let there = |gpu: &GpuId| n.on(gpu, |s| s.phase != Phase::Pending);
        let fits = |taken: &dyn Fn(&GpuId) -> i128| {
            let fits = |(gpu, bytes): &(GpuId, u64)| {
                taken(gpu) + i128::from(*bytes) <= i128::from(n.capacity[gpu])
            };
            shares.iter().all(fits)
        };
        let (promised, loaded) = (fits(&others), fits(&there));
        match self.ledger.commit(id, &exact(&shares), self.now) {
            Err(Error::Phase { .. }) if phase != Phase::Pending => self.saw("commit: phase"),
            Err(Error::TookTooMuch { .. }) if phase == Phase::Pending && !promised => {
                self.saw("took too much")
            }
            Err(Error::Waits { .. }) if phase == Phase::Pending && promised && !loaded => {
                self.saw("waits")
            }
            Ok(()) if phase == Phase::Pending && promised && loaded => {
                let now = self.now;
                for (gpu, bytes) in &shares {
                    let more = i128::from(*bytes) - self.naive.on(gpu, |s| s.id == id);
                    if self.naive.grew(gpu, more.max(0)) {
                        self.saw("outgrew its promise");
                    }
                }
                let slot = self.naive.slot(id).unwrap();
                (slot.shares, slot.phase, slot.active) = (shares, Phase::Running, now);
                slot.leaves = None;
                self.saw("committed");
            }
            other => panic!("{other:?}"),
        }
    }

    fn release(&mut self) {
        let id = self.any();
        let known = self.naive.slot(id).is_some();
        assert_eq!(self.ledger.release(id).is_ok(), known);
        let Some((phase, began)) = self.naive.slot(id).map(|s| (s.phase, s.began())) else {
            return;
        };
        self.naive.gone(id, phase);
        self.naive.slots.retain(|s| s.id != id);
        self.stay(&[(id, began)]);
    }

    fn request(&mut self) {
        let (id, begin, now) = (self.any(), self.rng.bool(), self.now);
        self.tells();
        let answer = match begin {
            true => self.ledger.begin_request(id, now),
            false => self.ledger.end_request(id, now),
        };
        let slot = self.naive.slot(id);
        match (answer, slot) {
            (Err(Error::UnknownReservation(_)), None) => {}
            (Err(Error::Phase { .. }), Some(slot)) => {
                assert!(begin && slot.phase != Phase::Running)
            }
            (Err(Error::NoRequest(_)), Some(slot)) => assert!(!begin && slot.requests == 0),
            (Ok(()), Some(slot)) => {
                if begin {
                    slot.leaves = None;
                }
                slot.requests = if begin {
                    slot.requests + 1
                } else {
                    slot.requests - 1
                };
                slot.active = now;
            }
            (answer, _) => panic!("{answer:?}"),
        }
    }

    fn renew(&mut self) {
        let (id, now) = (self.any(), self.now);
        self.tells();
        let slot = self.naive.slot(id);
        assert_eq!(self.ledger.renew(id, now).is_ok(), slot.is_some());
        if let Some(slot) = slot
            && let Some((ms, until)) = &mut slot.lease
        {
            (*until, slot.again) = (now + *ms, 0);
        }
    }

    /// Every GPU's figures, and the audit.
    fn compare(&mut self) {
        let mut over = Vec::new();
        for view in self.ledger.gpus().unwrap() {
            let n = &self.naive;
            let promised = n.on(&view.gpu, |s| s.phase != Phase::Leaving);
            let there = n.on(&view.gpu, |s| s.phase != Phase::Pending);
            assert_eq!(i128::from(view.reserved_bytes), promised);
            assert_eq!(
                i128::from(view.leaving_bytes),
                n.on(&view.gpu, |s| s.phase == Phase::Leaving)
            );
            assert_eq!(i128::from(view.foreign_bytes), n.foreign(&view.gpu));
            let figure = n.figures.get(&view.gpu);
            let unexplained = figure.map_or(0, |figure| n.unexplained(&view.gpu, figure));
            let missing = n.foreign(&view.gpu) - unexplained;
            assert_eq!(i128::from(view.missing_bytes), missing);
            assert_eq!(i128::from(view.free_bytes), n.room(&view.gpu).max(0));
            if promised.max(there) > i128::from(view.capacity_bytes) {
                over.push(view.gpu);
            }
        }
        let state = self.ledger.state().unwrap();
        for slot in &self.naive.slots {
            let until = state.reservation(slot.id).unwrap().lease_until_ms;
            assert_eq!(until, slot.lease.map(|(_, until)| until));
            assert_eq!(state.reservation(slot.id).unwrap().phase, slot.phase);
        }
        let audit: Vec<_> = self
            .ledger
            .audit()
            .unwrap()
            .into_iter()
            .map(|v| v.gpu)
            .collect();
        assert_eq!(audit, over);
        assert!(self.naive.facts || over.is_empty());
        if !over.is_empty() {
            self.saw("over-committed by facts");
        }
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

#[test]
fn random_operations_never_differ_from_the_naive_model() {
    let operations = number("VRAMFIT_LEDGER_OPERATIONS", 400_000);
    let first = number("VRAMFIT_LEDGER_SEED", 0);
    let mut seen: BTreeMap<&str, u64> = BTreeMap::new();
    let mut done = 0;
    for game in 0.. {
        if done >= operations {
            break;
        }
        let seed = first.wrapping_mul(1 << 32).wrapping_add(game);
        let played = std::panic::catch_unwind(|| {
            let mut game = Game::new(seed);
            (0..400).for_each(|_| game.step());
            game.seen
        });
        let played = played.unwrap_or_else(|_| panic!("game {seed}"));
        played
            .into_iter()
            .for_each(|(what, n)| *seen.entry(what).or_default() += n);
        done += 400;
    }
    println!("{done} operations: {seen:?}");
    let rare = [
        "granted on several by eviction",
        "waits",
        "took too much",
        "reaped",
        "began anew",
        "stayed",
        "began anew in a row",
        "answered",
        "answered late",
        "overtaken",
        "held back",
        "all that is free",
        "outgrew its promise",
        "outgrew what it had",
        "full now",
        "never",
    ];
    assert!(rare.iter().all(|what| seen.contains_key(what)), "{seen:?}");
}
