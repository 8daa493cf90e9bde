//! The ledger over GPUs of which something real is taken: engines that load and unload while the driver
//! counts, others' memory beside them, and answers of the driver that come late. Whatever the order, no GPU
//! is promised more of than it has beside what others take; and where nothing moves, nothing less.
//!
//! `VRAMFIT_LEDGER_WORLDS=100000 cargo test -p vramfit-ledger --test ledger_world` plays so many.

#![allow(clippy::disallowed_methods)] // its length is read from the environment
#![allow(clippy::unwrap_used)] // also in what the tests share

use fastrand::Rng;
use std::collections::BTreeMap;
use vramfit_ledger::{
    GpuId, Grant, Ledger, Name, Phase, Probe, Request, ReservationId, Shape, Share, Stale, State,
    Volatile, size,
};

/// A model, and what of it is really in memory.
struct Engine {
    grant: Grant,
    there: BTreeMap<GpuId, u64>,
    committed: bool,
    /// It goes, by its own wish or another's: its bytes become fewer until none is left.
    going: bool,
}

/// The driver was asked, and has counted or has yet to.
struct Asked {
    before: State,
    counted: Option<Vec<Probe>>,
}

struct World {
    ledger: Ledger<Volatile>,
    capacity: BTreeMap<GpuId, u64>,
    /// Taken by others; never changes.
    others: BTreeMap<GpuId, u64>,
    engines: Vec<Engine>,
    asked: Option<Asked>,
    rng: Rng,
    now: u64,
    granted: u64,
    late: u64,
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = Rng::with_seed(seed);
        let ledger = Ledger::open(Volatile).unwrap();
        let (mut capacity, mut others) = (BTreeMap::new(), BTreeMap::new());
        for gpu in 0..rng.u8(1..=2) {
            let gpu = GpuId::new("host", format!("GPU-{gpu}"));
            let bytes = rng.u64(60..=100);
            ledger
                .set_gpus(&[(gpu.clone(), size(bytes).unwrap())])
                .unwrap();
            capacity.insert(gpu.clone(), bytes);
            others.insert(gpu, rng.u64(..40));
        }
        let world = World {
            ledger,
            capacity,
            others,
            engines: Vec::new(),
            asked: None,
            rng,
            now: 0,
            granted: 0,
            late: 0,
        };
        let first = world.count();
        world.ledger.probe(&first).unwrap();
        world
    }

    /// What a driver sees.
    fn count(&self) -> Vec<Probe> {
        let free = |(gpu, capacity): (&GpuId, &u64)| {
            let there = self.engines.iter().filter_map(|e| e.there.get(gpu));
            let taken = self.others[gpu] + there.sum::<u64>();
            let free = capacity.checked_sub(taken);
            Probe {
                gpu: gpu.clone(),
                free_bytes: free.expect("no engine loads what there is no memory for"),
            }
        };
        self.capacity.iter().map(free).collect()
    }

    fn phase(&self, id: ReservationId) -> Option<Phase> {
        self.ledger
            .state()
            .unwrap()
            .reservation(id)
            .map(|r| r.phase)
    }

    fn step(&mut self) {
        self.now += 1;
        match self.rng.u8(..10) {
            0..3 => self.reserve(),
            3..8 => self.move_one(),
            8 => self.drive(),
            _ => self.leave(),
        }
        self.check();
    }

    fn reserve(&mut self) {
        let model = Name::from(format!("m{}", self.rng.u8(..8)));
        let n = self.rng.usize(1..=self.capacity.len());
        let shape = Shape::anywhere((0..n).map(|_| self.rng.u64(1..=50))).unwrap();
        let mut request = Request::new(model, "holder", vec![shape]);
        if self.rng.bool() {
            request = request.evicting(Stale::after(3, u64::MAX));
        }
        if let Ok(grant) = self.ledger.reserve(&request, self.now) {
            self.granted += 1;
            let shares = grant.shares.iter();
            let there = shares.map(|s| (s.gpu.clone(), 0)).collect();
            for left in &grant.evict {
                let engine = self.engines.iter_mut().find(|e| e.grant.id == left.id);
                engine.unwrap().going = true;
            }
            self.engines.push(Engine {
                grant,
                there,
                committed: false,
                going: false,
            });
        }
    }

    /// An engine loads a part, says that it has all, unloads a part, or says that it has nothing any more.
    fn move_one(&mut self) {
        if self.engines.is_empty() {
            return;
        }
        let at = self.rng.usize(..self.engines.len());
        let Engine { grant, .. } = &self.engines[at];
        let waits = grant
            .evict
            .iter()
            .map(|e| e.id)
            .chain(grant.waits_for.clone());
        let waits = waits.filter(|&id| self.phase(id).is_some()).count() > 0;
        let (ledger, rng, now) = (&self.ledger, &mut self.rng, self.now);
        let Engine {
            grant,
            there,
            committed,
            going,
        } = &mut self.engines[at];
        let left = grant.shares.iter().map(|s| s.bytes.get() - there[&s.gpu]);
        match (*going, there.values().sum::<u64>(), left.sum::<u64>()) {
            (true, 0, _) => {
                ledger.release(grant.id).unwrap();
                self.engines.remove(at);
            }
            (true, ..) => {
                for bytes in there.values_mut() {
                    *bytes -= rng.u64(0..=*bytes).max(1).min(*bytes);
                }
            }
            (false, _, 0) if !*committed => {
                *committed = true;
                ledger.commit(grant.id, &grant.shares, now).unwrap();
            }
            (false, ..) if !waits && !*committed => {
                for Share { gpu, bytes } in &grant.shares {
                    let there = there.get_mut(gpu).unwrap();
                    *there += rng.u64(0..=bytes.get() - *there);
                }
            }
            _ => {}
        }
    }

    /// One leaves by its own wish. Before it unloads it says that it is in use: nobody plans with its bytes.
    fn leave(&mut self) {
        let stays = self.engines.iter_mut().filter(|e| !e.going);
        let stays: Vec<_> = stays.collect();
        let n = stays.len();
        let one = stays.into_iter().nth(self.rng.usize(..n.max(1)));
        if let Some(engine) = one {
            if engine.committed {
                self.ledger
                    .begin_request(engine.grant.id, self.now)
                    .unwrap();
            }
            engine.going = true;
        }
    }

    /// The driver is asked, counts, answers: three moments.
    fn drive(&mut self) {
        self.asked = match self.asked.take() {
            None => Some(Asked {
                before: self.ledger.state().unwrap(),
                counted: None,
            }),
            Some(Asked { before, counted }) => match counted {
                None => Some(Asked {
                    before,
                    counted: Some(self.count()),
                }),
                Some(probes) => {
                    self.ledger.probe_since(&before, &probes).unwrap();
                    self.late += u64::from(before != self.ledger.state().unwrap());
                    None
                }
            },
        };
    }

    fn check(&self) {
        let state = self.ledger.state().unwrap();
        for (gpu, &capacity) in &self.capacity {
            let promised = self.engines.iter().map(|e| {
                let r = state.reservation(e.grant.id).unwrap();
                match (r.phase, e.going) {
                    (Phase::Leaving, _) => 0,
                    (_, true) => e.there.get(gpu).copied().unwrap_or(0),
                    (_, false) => r.bytes_on(gpu),
                }
            });
            let promised = promised.sum::<u64>() + self.others[gpu];
            assert!(promised <= capacity, "{gpu}: {promised} of {capacity}");
        }
        self.count();
        assert!(state.audit().is_empty());
    }

    /// Everything comes to its end; then all that is not taken can be promised.
    fn settle(&mut self) {
        while self.engines.iter().any(|e| e.going || !e.committed) {
            self.move_one();
        }
        let before = self.ledger.state().unwrap();
        self.ledger.probe_since(&before, &self.count()).unwrap();
        for (view, driver) in self.ledger.gpus().unwrap().iter().zip(self.count()) {
            assert_eq!(view.free_bytes, driver.free_bytes);
            assert_eq!(view.foreign_bytes, self.others[&view.gpu]);
        }
    }
}

#[test]
fn no_order_of_loads_and_figures_promises_what_is_not_there() {
    let worlds = std::env::var("VRAMFIT_LEDGER_WORLDS");
    let worlds: u64 = worlds.map_or(1500, |n| n.parse().unwrap());
    let (mut granted, mut late) = (0, 0);
    for seed in 0..worlds {
        let played = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..4 {
                (0..60).for_each(|_| world.step());
                world.settle();
            }
            (world.granted, world.late)
        });
        let played = played.unwrap_or_else(|_| panic!("world {seed}"));
        (granted, late) = (granted + played.0, late + played.1);
    }
    println!("{worlds} worlds: {granted} granted, {late} late figures");
    assert!(granted > 10 * worlds && late > worlds);
}
