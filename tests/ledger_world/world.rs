//! What is really there, and what of it a ledger can know.

#[path = "chances.rs"]
mod chances;
#[path = "figures.rs"]
mod figures;

use fastrand::Rng;
use std::collections::BTreeMap;
use vramfit_ledger::{
    Error, GpuId, Ledger, Memory, Name, Phase, Probe, Request, Reservation, ReservationId, Shape,
    Share, Stale, State, size,
};

/// For so many figures a process that is gone from the ledger may still be there.
const FIGURES: u32 = 16;
/// A lease that nobody renews has run out by then.
const LEASE_MS: u64 = 10_000;

pub type Bytes = BTreeMap<GpuId, u64>;

/// A model, and what of it is really in memory.
pub struct Engine {
    pub id: ReservationId,
    /// What is to leave first.
    waits: Vec<ReservationId>,
    pub there: Bytes,
    pub committed: bool,
    /// It goes, by its own wish or another's: its bytes become fewer until none is left.
    pub going: bool,
    /// It goes for another.
    evicted: bool,
    /// What it loads, on each GPU.
    pub most: Bytes,
    /// The figures in which it had more than is reserved.
    over: u32,
}

/// What a process still holds that nobody answers for any more.
struct Ghost {
    there: Bytes,
    /// It ends after so many figures.
    figures: u32,
}

/// The memory that is others'.
#[derive(Clone, Copy, PartialEq)]
pub enum Others {
    Stay,
    Shrink,
    ComeAndGo,
}

/// What happens in a world.
pub struct Manner {
    pub others: Others,
    /// Reservations are larger than what is loaded.
    pub generous: bool,
    /// What is loaded is more or less than what was promised, and an engine says what it is.
    pub resizes: bool,
    /// Processes outlive their reservations.
    pub lingers: bool,
    /// Engines unload without a word.
    sleeps: bool,
    /// Some of the others are engines that are found.
    pub adopts: bool,
}

/// A moment at which the driver counted.
struct Counted {
    probes: Vec<Probe>,
    /// What was others' then, and the least since.
    others: BTreeMap<GpuId, (u64, u64)>,
    /// Something that runs was not all there.
    is_missing: bool,
    /// What no total tells apart: an engine slept, while a process lingered or another had more than is reserved.
    is_unclear: bool,
}

/// The driver was asked, and has counted or has yet to.
struct Asked {
    before: State,
    /// What was going then.
    going: Bytes,
    counted: Option<Counted>,
    /// A newer question has been answered.
    is_overtaken: bool,
}

#[derive(Default)]
pub struct Seen {
    pub granted: u64,
    pub late: u64,
    pub overtaken: u64,
    pub asleep: u64,
    pub lingered: u64,
    pub reaped: u64,
    /// Leases would have run out while the ledger was away.
    pub anew: u64,
    /// Were to leave for what was never loaded, and go on.
    pub stayed: u64,
    pub adopted: u64,
    pub resized: u64,
    /// All that is free was to be shown, and was.
    pub exact: u64,
}

pub struct World {
    store: Memory,
    pub ledger: Ledger<Memory>,
    /// What a GPU has, and what is set aside of it.
    pub memory: Bytes,
    pub aside: Bytes,
    /// Taken by others.
    pub others: Bytes,
    pub manner: Manner,
    /// Of what is others', what no figure can have hidden: what they had at one that everything in the ledger and all
    /// that was going explain no more, or before, and have not given up since.
    pub shown: Bytes,
    /// What may still be going as far as anybody can know, and for how many figures.
    going: BTreeMap<GpuId, Vec<(u64, u32)>>,
    /// Adopted so far.
    found: Bytes,
    pub engines: Vec<Engine>,
    ghosts: Vec<Ghost>,
    asked: Option<Asked>,
    was_missing: bool,
    /// Something happened that totals do not tell: less may be promised than is free.
    pub unclear: bool,
    rng: Rng,
    now: u64,
    pub seen: Seen,
}

fn sum(bytes: &Bytes) -> u64 {
    bytes.values().sum()
}

impl World {
    pub fn new(seed: u64) -> World {
        let mut rng = Rng::with_seed(seed);
        let store = Memory::new();
        let ledger = Ledger::open(store.clone()).unwrap();
        let (mut memory, mut aside, mut others) = <(Bytes, Bytes, Bytes)>::default();
        for gpu in 0..rng.u8(1..=2) {
            let gpu = GpuId::new("host", format!("GPU-{gpu}"));
            let (all, without) = (rng.u64(60..=100), rng.u64(..3) * 4);
            let capacity = size(all - without).unwrap();
            ledger.set_gpus(&[(gpu.clone(), capacity)]).unwrap();
            memory.insert(gpu.clone(), all);
            aside.insert(gpu.clone(), without);
            others.insert(gpu, rng.u64(..40));
        }
        let moves = [Others::Stay, Others::Shrink, Others::ComeAndGo];
        let manner = Manner {
            others: moves[rng.usize(..3)],
            generous: rng.u8(..4) == 0,
            resizes: rng.u8(..3) == 0,
            lingers: rng.bool(),
            sleeps: rng.u8(..3) > 0,
            adopts: rng.u8(..4) == 0,
        };
        let world = World {
            store,
            ledger,
            memory,
            aside,
            shown: others.clone(),
            others,
            manner,
            going: BTreeMap::new(),
            found: Bytes::new(),
            engines: Vec::new(),
            ghosts: Vec::new(),
            asked: None,
            was_missing: false,
            unclear: false,
            rng,
            now: 0,
            seen: Seen::default(),
        };
        world.ledger.probe(&world.count()).unwrap();
        world
    }

    /// What a driver sees.
    pub fn count(&self) -> Vec<Probe> {
        let engines = self.engines.iter().map(|e| &e.there);
        let all: Vec<_> = engines
            .chain(self.ghosts.iter().map(|g| &g.there))
            .collect();
        let free = |(gpu, memory): (&GpuId, &u64)| {
            let there = all.iter().filter_map(|there| there.get(gpu));
            let free = memory.checked_sub(self.others[gpu] + there.sum::<u64>());
            Probe {
                gpu: gpu.clone(),
                free_bytes: free.expect("no engine loads what there is no memory for"),
            }
        };
        self.memory.iter().map(free).collect()
    }

    fn state(&self) -> State {
        self.ledger.state().unwrap()
    }

    fn held(&self, engine: &Engine) -> Reservation {
        self.state().reservation(engine.id).unwrap().clone()
    }

    pub fn step(&mut self) {
        self.now += 1;
        match self.rng.u8(..40) {
            0..8 => self.reserve(),
            8..21 => self.move_one(),
            21..26 => self.drive(),
            26..28 => self.leave(),
            28..32 => self.sleep(),
            32..34 => self.change_others(),
            34 => self.resize(),
            35 => self.reap(),
            36 => self.adopt(),
            37 => self.set_aside(),
            38 => self.fade(),
            _ => self.reopen(),
        }
        self.stay();
        self.check();
    }

    fn reserve(&mut self) {
        let model = Name::from(format!("m{}", self.rng.u8(..8)));
        let n = self.rng.usize(1..=self.memory.len());
        let shape = Shape::anywhere((0..n).map(|_| self.rng.u64(1..=50))).unwrap();
        let mut request = Request::new(model, "holder", vec![shape]);
        if self.rng.bool() {
            request = request.evicting(Stale::after(3, u64::MAX));
        }
        request.stays = self.rng.u8(..3) == 0;
        request.lease_ms = self.rng.bool().then_some(LEASE_MS);
        let Ok(grant) = self.ledger.reserve(&request, self.now) else {
            return;
        };
        self.seen.granted += 1;
        let most = grant.shares.iter().map(|s| {
            let bytes = s.bytes.get();
            let less = self.rng.u64(0..=5.min(bytes - 1));
            // Who is said to stay is said what it took, too.
            let most = match (self.manner.generous && !request.stays, self.manner.resizes) {
                (true, _) => bytes - less,
                (false, true) => bytes - less + self.rng.u64(0..=less + 4),
                (false, false) => bytes,
            };
            (s.gpu.clone(), most)
        });
        let most: Bytes = most.collect();
        for left in &grant.evict {
            let engine = self.engines.iter_mut().find(|e| e.id == left.id);
            let engine = engine.unwrap();
            (engine.going, engine.evicted) = (true, true);
        }
        let evict = grant.evict.iter().map(|e| e.id);
        self.engines.push(Engine {
            id: grant.id,
            waits: evict.chain(grant.waits_for.clone()).collect(),
            there: most.keys().map(|gpu| (gpu.clone(), 0)).collect(),
            committed: false,
            going: false,
            evicted: false,
            most,
            over: 0,
        });
        // Whatever has been found since that nobody had promised: no more is promised beside it.
        self.check_promises(|gpu| grant.shares.iter().any(|s| s.gpu == *gpu));
    }

    /// An engine loads a part, says that it has all, unloads a part, or says that it has nothing any more.
    pub fn move_one(&mut self) {
        if self.engines.is_empty() {
            return;
        }
        let at = self.rng.usize(..self.engines.len());
        let state = self.state();
        let free = self.count();
        let lingers = self.manner.lingers && self.rng.u8(..3) == 0;
        let may_lack = self.manner.others == Others::ComeAndGo
            || self.manner.resizes
            || !self.ghosts.is_empty();
        let engine = &mut self.engines[at];
        let waits = engine.waits.iter().any(|&id| {
            state
                .reservation(id)
                .is_some_and(|r| r.phase == Phase::Leaving)
        });
        let is_loaded = engine.there == engine.most;
        match (engine.going, sum(&engine.there)) {
            (true, there) if there == 0 || lingers => self.release(at),
            (true, _) => {
                for bytes in engine.there.values_mut() {
                    *bytes -= self.rng.u64(0..=*bytes).max(1).min(*bytes);
                }
            }
            (false, _) if is_loaded && !engine.committed => self.commit(at),
            (false, _) if !is_loaded && !waits => {
                for (gpu, there) in &mut engine.there {
                    let free = free.iter().find(|probe| probe.gpu == *gpu).unwrap();
                    let left = engine.most[gpu] - *there;
                    let found = left.min(free.free_bytes);
                    assert!(found == left || may_lack);
                    *there += self.rng.u64(0..=found);
                }
            }
            _ => {}
        }
    }

    fn commit(&mut self, at: usize) {
        let held = self.held(&self.engines[at]);
        let engine = &mut self.engines[at];
        let shares = match self.manner.generous && !held.stays {
            true => held.shares.clone(),
            false => shares(&engine.there),
        };
        match self.ledger.commit(engine.id, &shares, self.now) {
            Ok(()) => {
                engine.committed = true;
                self.has_grown(at, &held);
            }
            // What it took beyond its promise somebody else has by now.
            Err(Error::TookTooMuch { .. } | Error::Waits { .. })
                if self.manner.resizes || self.manner.adopts =>
            {
                engine.going = true;
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// The engine is larger in the ledger than it was.
    fn has_grown(&mut self, at: usize, was: &Reservation) {
        let is = self.held(&self.engines[at]);
        let engine = &mut self.engines[at];
        for share in &is.shares {
            let more = share.bytes.get().saturating_sub(was.bytes_on(&share.gpu));
            if more > 0 {
                // At a figure in which nothing is missing, and not too long ago.
                self.unclear |= self.was_missing || engine.over >= FIGURES - 2;
                self.seen.resized += 1;
            }
            if self.manner.others == Others::ComeAndGo {
                let shown = self.shown.get_mut(&share.gpu).unwrap();
                *shown = shown.saturating_sub(more);
            }
        }
        engine.over = 0;
    }

    fn release(&mut self, at: usize) {
        let id = self.engines[at].id;
        let gone = self.held(&self.engines[at]);
        self.ledger.release(id).unwrap();
        self.gone(at, &gone);
    }

    /// The ledger is rid of an engine; what it had is there for longer.
    fn gone(&mut self, at: usize, held: &Reservation) {
        let Engine { there, over, .. } = self.engines.remove(at);
        self.unclear |= over > 0;
        for share in &held.shares {
            let bytes = share.bytes.get();
            // What it had beyond its reservation is nobody's.
            self.unclear |= there.get(&share.gpu).is_some_and(|there| *there > bytes);
            let going = self.going.entry(share.gpu.clone()).or_default();
            going.push((bytes, FIGURES));
        }
        if sum(&there) > 0 {
            let figures = self.rng.u32(..FIGURES - 2);
            self.seen.lingered += 1;
            self.ghosts.push(Ghost { there, figures });
        }
    }

    /// One leaves by its own wish, and may say that it is in use before it unloads: nobody plans with its bytes.
    /// What is known to stay is released first, and may be unloaded later.
    fn leave(&mut self) {
        let here = (0..self.engines.len()).filter(|&i| !self.engines[i].going);
        let here: Vec<_> = here.collect();
        if let Some(&i) = self.rng.choice(&here) {
            let held = self.held(&self.engines[i]);
            let lingers = self.manner.lingers;
            let engine = &mut self.engines[i];
            if engine.committed && held.stays {
                if !lingers {
                    engine.there.values_mut().for_each(|bytes| *bytes = 0);
                }
                return self.release(i);
            }
            if engine.committed && self.rng.bool() {
                self.ledger.begin_request(engine.id, self.now).unwrap();
            }
            engine.going = true;
        }
    }

    /// Who need not leave any more goes on, if it has not begun to, and may be asked something; or it leaves all the same.
    pub fn stay(&mut self) {
        let state = self.state();
        let need_not = |e: &Engine| {
            e.evicted
                && state
                    .reservation(e.id)
                    .is_some_and(|r| r.phase != Phase::Leaving)
        };
        for engine in self.engines.iter_mut().filter(|e| need_not(e)) {
            engine.evicted = false;
            if engine.there == engine.most && engine.committed && self.rng.u8(..4) > 0 {
                engine.going = false;
                self.seen.stayed += 1;
                if self.rng.bool() {
                    self.ledger.begin_request(engine.id, self.now).unwrap();
                    self.ledger.end_request(engine.id, self.now).unwrap();
                }
            }
        }
    }

    /// One that need not stay unloads some or all without a word. It loads again like any other.
    fn sleep(&mut self) {
        if !self.manner.sleeps {
            return;
        }
        let state = self.state();
        let may =
            |e: &&mut Engine| e.committed && !e.going && !state.reservation(e.id).unwrap().stays;
        let may: Vec<_> = self.engines.iter_mut().filter(may).collect();
        let n = may.len();
        let one = may.into_iter().nth(self.rng.usize(..n.max(1)));
        for there in one.into_iter().flat_map(|engine| engine.there.values_mut()) {
            *there = match self.rng.bool() {
                true => 0,
                false => self.rng.u64(0..=*there),
            };
            self.seen.asleep += 1;
        }
    }

    /// Others take more or less, within what is free.
    fn change_others(&mut self) {
        for probe in self.count() {
            let others = self.others.get_mut(&probe.gpu).unwrap();
            let most = match self.manner.others {
                Others::Stay => return,
                Others::Shrink => *others,
                Others::ComeAndGo => *others + probe.free_bytes,
            };
            *others = self.rng.u64(0..=most);
            let others = *others;
            self.no_more_than(&probe.gpu, others);
        }
    }

    fn no_more_than(&mut self, gpu: &GpuId, others: u64) {
        let shown = self.shown.get_mut(gpu).unwrap();
        *shown = (*shown).min(others);
        let counted = self.asked.as_mut().and_then(|asked| asked.counted.as_mut());
        if let Some((_, least)) = counted.and_then(|c| c.others.get_mut(gpu)) {
            *least = (*least).min(others);
        }
    }
}

fn shares(there: &Bytes) -> Vec<Share> {
    let there = there.iter();
    there
        .map(|(gpu, &bytes)| Share::new(gpu.clone(), bytes).unwrap())
        .collect()
}
