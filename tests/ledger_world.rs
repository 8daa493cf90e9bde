//! The ledger over GPUs of which something real is taken: engines that load and unload while the driver
//! counts, or unload without a word and load again, reservations that are larger than what is loaded, others'
//! memory beside them, and answers of the driver that come late. Whatever the order, no GPU is promised more of
//! than it has beside what others take and what may load again; and where others are as they were, nothing less.
//!
//! `VRAMFIT_LEDGER_WORLDS=100000 cargo test -p vramfit-ledger --test ledger_world` plays so many.

#![allow(clippy::disallowed_methods)] // its length is read from the environment
#![allow(clippy::unwrap_used)] // also in what the tests share

use fastrand::Rng;
use std::collections::BTreeMap;
use vramfit_ledger::{
    GpuId, Grant, Ledger, Name, Phase, Probe, Request, ReservationId, Shape, Stale, State,
    Volatile, size,
};

/// A model, and what of it is really in memory.
struct Engine {
    grant: Grant,
    there: BTreeMap<GpuId, u64>,
    committed: bool,
    /// It goes, by its own wish or another's: its bytes become fewer until none is left.
    going: bool,
    /// What it loads of what is reserved, on each GPU.
    most: BTreeMap<GpuId, u64>,
}

/// The memory that is others'.
#[derive(Clone, Copy, PartialEq)]
enum Others {
    Stay,
    Shrink,
    ComeAndGo,
}

/// A moment at which the driver counted.
struct Counted {
    probes: Vec<Probe>,
    /// What was others' then, and the least since.
    others: BTreeMap<GpuId, (u64, u64)>,
}

/// The driver was asked, and has counted or has yet to.
struct Asked {
    before: State,
    counted: Option<Counted>,
}

struct World {
    ledger: Ledger<Volatile>,
    capacity: BTreeMap<GpuId, u64>,
    /// Taken by others.
    others: BTreeMap<GpuId, u64>,
    moves: Others,
    /// Of what is others', what no figure can have hidden: what they had at one that everything in the ledger
    /// together does not explain, or before, and have not given up since.
    shown: BTreeMap<GpuId, u64>,
    /// Reservations are larger than what is loaded.
    generous: bool,
    /// Released since the last answer, on each GPU.
    released: BTreeMap<GpuId, u64>,
    /// Something was loaded when the driver counted that was not reserved before nor after.
    hidden: bool,
    engines: Vec<Engine>,
    asked: Option<Asked>,
    rng: Rng,
    now: u64,
    granted: u64,
    late: u64,
    asleep: u64,
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
        let moves = [Others::Stay, Others::Shrink, Others::ComeAndGo];
        let world = World {
            ledger,
            capacity,
            shown: others.clone(),
            others,
            moves: moves[rng.usize(..3)],
            generous: rng.u8(..3) == 0,
            hidden: false,
            released: BTreeMap::new(),
            engines: Vec::new(),
            asked: None,
            rng,
            now: 0,
            granted: 0,
            late: 0,
            asleep: 0,
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
        match self.rng.u8(..14) {
            0..3 => self.reserve(),
            3..8 => self.move_one(),
            8..10 => self.drive(),
            10 => self.leave(),
            11..13 => self.sleep(),
            _ => self.change_others(),
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
        let stays = self.rng.u8(..3) == 0;
        request.stays = stays;
        if let Ok(grant) = self.ledger.reserve(&request, self.now) {
            self.granted += 1;
            let shares = grant.shares.iter();
            let there = shares.map(|s| (s.gpu.clone(), 0)).collect();
            let most = grant.shares.iter().map(|s| {
                let bytes = s.bytes.get();
                // Who is said to stay is said what it took, too.
                let less = match self.generous && !stays {
                    true => self.rng.u64(0..=5.min(bytes - 1)),
                    false => 0,
                };
                (s.gpu.clone(), bytes - less)
            });
            let most = most.collect();
            for left in &grant.evict {
                let engine = self.engines.iter_mut().find(|e| e.grant.id == left.id);
                engine.unwrap().going = true;
            }
            self.engines.push(Engine {
                grant,
                there,
                committed: false,
                going: false,
                most,
            });
            self.check_promises();
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
        let free = self.count();
        let (ledger, rng, now) = (&self.ledger, &mut self.rng, self.now);
        let Engine {
            grant,
            there,
            committed,
            going,
            most,
        } = &mut self.engines[at];
        let left = there.iter().map(|(gpu, there)| most[gpu] - there);
        match (*going, there.values().sum::<u64>(), left.sum::<u64>()) {
            (true, 0, _) => self.release(at),
            (true, ..) => {
                for bytes in there.values_mut() {
                    *bytes -= rng.u64(0..=*bytes).max(1).min(*bytes);
                }
            }
            (false, _, 0) if !*committed => {
                *committed = true;
                ledger.commit(grant.id, &grant.shares, now).unwrap();
            }
            (false, ..) if !waits => {
                for (gpu, there) in there {
                    let free = free.iter().find(|probe| probe.gpu == *gpu).unwrap();
                    let left = most[gpu] - *there;
                    let found = left.min(free.free_bytes);
                    assert!(found == left || self.moves == Others::ComeAndGo);
                    *there += rng.u64(0..=found);
                }
            }
            _ => {}
        }
    }

    fn release(&mut self, at: usize) {
        let gone = self.engines.remove(at);
        self.ledger.release(gone.grant.id).unwrap();
        for share in &gone.grant.shares {
            *self.released.entry(share.gpu.clone()).or_default() += share.bytes.get();
        }
    }

    /// One leaves by its own wish, and may say that it is in use before it unloads: nobody plans with its bytes.
    /// What is known to stay is unloaded and released at once.
    fn leave(&mut self) {
        let state = self.ledger.state().unwrap();
        let here = (0..self.engines.len()).filter(|&i| !self.engines[i].going);
        let here: Vec<_> = here.collect();
        if let Some(&i) = self.rng.choice(&here) {
            let engine = &mut self.engines[i];
            if engine.committed && state.reservation(engine.grant.id).unwrap().stays {
                return self.release(i);
            }
            if engine.committed && self.rng.bool() {
                self.ledger
                    .begin_request(engine.grant.id, self.now)
                    .unwrap();
            }
            engine.going = true;
        }
    }

    /// One that need not stay unloads some or all without a word. It loads again like any other.
    fn sleep(&mut self) {
        let state = self.ledger.state().unwrap();
        let may = |e: &&mut Engine| {
            let held = state.reservation(e.grant.id).unwrap();
            e.committed && !e.going && !held.stays
        };
        let may: Vec<_> = self.engines.iter_mut().filter(may).collect();
        let n = may.len();
        let one = may.into_iter().nth(self.rng.usize(..n.max(1)));
        for there in one.into_iter().flat_map(|engine| engine.there.values_mut()) {
            *there = match self.rng.bool() {
                true => 0,
                false => self.rng.u64(0..=*there),
            };
            self.asleep += 1;
        }
    }

    /// Others take more or less, within what is free.
    fn change_others(&mut self) {
        for probe in self.count() {
            let others = self.others.get_mut(&probe.gpu).unwrap();
            let most = match self.moves {
                Others::Stay => return,
                Others::Shrink => *others,
                Others::ComeAndGo => *others + probe.free_bytes,
            };
            *others = self.rng.u64(0..=most);
            let shown = self.shown.get_mut(&probe.gpu).unwrap();
            *shown = (*shown).min(*others);
            let counted = self.asked.as_mut().and_then(|asked| asked.counted.as_mut());
            if let Some((_, least)) = counted.and_then(|c| c.others.get_mut(&probe.gpu)) {
                *least = (*least).min(*others);
            }
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
                None => {
                    let counted = Some(self.counted());
                    Some(Asked { before, counted })
                }
                Some(counted) => {
                    self.answer(&before, &counted);
                    self.late += u64::from(before != self.ledger.state().unwrap());
                    None
                }
            },
        };
    }

    fn counted(&self) -> Counted {
        let others = self.others.iter();
        Counted {
            probes: self.count(),
            others: others
                .map(|(gpu, &now)| (gpu.clone(), (now, now)))
                .collect(),
        }
    }

    /// The ledger is told. What is taken beyond all that may be its is others', and now that is known.
    fn answer(&mut self, before: &State, counted: &Counted) {
        let now = self.ledger.state().unwrap();
        self.ledger.probe_since(before, &counted.probes).unwrap();
        for probe in &counted.probes {
            let bytes =
                |state: &State, id| state.reservation(id).map_or(0, |r| r.bytes_on(&probe.gpu));
            let mut ids: Vec<_> = [before, &now]
                .iter()
                .flat_map(|state| state.reservations().map(|r| r.id))
                .collect();
            ids.sort();
            ids.dedup();
            let held = ids.iter().map(|&id| bytes(before, id).max(bytes(&now, id)));
            let used = self.capacity[&probe.gpu] - probe.free_bytes;
            let released = self.released.remove(&probe.gpu).unwrap_or(0);
            let beyond = used.saturating_sub(held.sum());
            let surely = beyond.saturating_sub(released);
            let (then, least) = counted.others[&probe.gpu];
            // Unless something came and went while the driver was asked: then that counts as others', for longer.
            self.hidden |= beyond > then;
            let shown = self.shown.get_mut(&probe.gpu).unwrap();
            *shown = (*shown).max(surely.min(least));
        }
    }

    /// Beside what others hold, and have held since a figure showed it, everything that was promised has room.
    fn check_promises(&self) {
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
            let promised = promised.sum::<u64>() + self.shown[gpu];
            assert!(promised <= capacity, "{gpu}: {promised} of {capacity}");
        }
    }

    fn check(&self) {
        if self.moves != Others::ComeAndGo {
            assert_eq!(self.shown, self.others);
            self.check_promises();
        }
        self.count();
        assert!(self.ledger.audit().unwrap().is_empty());
    }

    /// Everything comes to its end; then all that is not taken can be promised.
    fn settle(&mut self) {
        if self.moves == Others::ComeAndGo {
            // They may have taken what was promised: then they give it back.
            self.others.values_mut().for_each(|others| *others = 0);
            self.shown = self.others.clone();
            self.asked = None;
        }
        let is_still = |e: &Engine| !e.going && e.committed && e.there == e.most;
        while !self.engines.iter().all(is_still) {
            self.move_one();
        }
        let before = self.ledger.state().unwrap();
        let counted = self.counted();
        self.answer(&before, &counted);
        let all_stay = before.reservations().all(|r| r.stays);
        for (view, driver) in self.ledger.gpus().unwrap().iter().zip(self.count()) {
            let others = self.others[&view.gpu];
            let known = self.moves == Others::Stay && !self.hidden;
            if all_stay || (known && !self.generous) {
                assert_eq!(view.free_bytes, driver.free_bytes);
                assert_eq!(view.foreign_bytes, others);
            }
            assert!(!known || view.foreign_bytes == others);
            assert!(view.free_bytes <= driver.free_bytes && view.foreign_bytes >= others);
        }
    }
}

#[test]
fn no_order_of_loads_and_figures_promises_what_is_not_there() {
    let worlds = std::env::var("VRAMFIT_LEDGER_WORLDS");
    let worlds: u64 = worlds.map_or(1500, |n| n.parse().unwrap());
    let (mut granted, mut late, mut asleep) = (0, 0, 0);
    for seed in 0..worlds {
        let played = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..4 {
                (0..60).for_each(|_| world.step());
                world.settle();
            }
            (world.granted, world.late, world.asleep)
        });
        let played = played.unwrap_or_else(|_| panic!("world {seed}"));
        granted += played.0;
        late += played.1;
        asleep += played.2;
    }
    println!("{worlds} worlds: {granted} granted, {late} late figures, {asleep} asleep");
    assert!(granted > 10 * worlds && late > worlds && asleep > worlds);
}
