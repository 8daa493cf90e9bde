//! Plan and reserve. The planner knows what each GPU takes in each layout, the ledger what may be
//! promised and what may leave: the options of the one are the request to the other, which decides
//! between them in one step. Where the ledger has moved on since the planner looked at it, both look again.

use crate::evictions::layouts;
use crate::host::free;
use crate::{
    Device, Error, Grant, Host, LayoutMode, LoadRequest, Model, OverrideTarget, Placement, Policy,
    Prefer, Reserved, RunConfig, Share, Verdict, ledger, plan,
};
use ledger::{Request, Reservation, Shape, State, Store};

/// How often a plan is made anew because the ledger has moved on. A plan takes milliseconds, so that
/// there is hardly ever a second.
const MAX_TRIES: usize = 8;

/// Free memory of a GPU that is to be no limit; a headroom below it can still be told.
const NO_LIMIT: u64 = 1 << 62;

/// A way to load the model, in the bytes of each GPU.
struct Choice {
    shares: Vec<Share>,
    /// `None` for one that is yet to be written down: everything on this GPU.
    placement: Result<Placement, usize>,
}

/// What is asked for, as of one moment of the ledger.
struct Asked<'a, S> {
    host: &'a Host<S>,
    model: &'a Model,
    run: &'a RunConfig,
    policy: &'a Policy,
    load: &'a LoadRequest,
    now_ms: u64,
    state: State,
}

impl<S: Store> Host<S> {
    /// Finds a placement on what is free by the ledger and reserves what it takes, in one step: when this
    /// returns, nobody else is promised those bytes.
    ///
    /// One GPU is taken where one will do, also if something has to leave it for that; then the fewest
    /// GPUs, then, if `load` allows it, a part of the model. The grant lists what has to be unloaded and
    /// released first. [`Error::can_retry`] tells "not now" from "never". `now_ms` is one clock for all holders, also over
    /// restarts: milliseconds since 1970.
    pub fn reserve(
        &self,
        model: &Model,
        run: &RunConfig,
        policy: &Policy,
        load: &LoadRequest,
        now_ms: u64,
    ) -> Result<Reserved, Error> {
        let mut tries = 0;
        loop {
            let asked = Asked {
                host: self,
                model,
                run,
                policy,
                load,
                now_ms,
                state: self.ledger().state()?,
            };
            let answer = asked.reserve();
            tries += 1;
            match answer {
                Err(error) if error.can_retry() && tries < MAX_TRIES => {
                    if self.ledger().state()?.seq() == asked.state.seq() {
                        return Err(error);
                    }
                }
                answer => return answer,
            }
        }
    }
}

impl<S: Store> Asked<'_, S> {
    fn reserve(&self) -> Result<Reserved, Error> {
        let room = self.host.room(&self.state);
        let now = self.plan(&free(&room))?;
        if now.verdict == Verdict::Fits && self.shares(&now)?.is_empty() {
            return Err(self.no_gpu());
        }
        let choices = self.choices(&room, &now)?;
        let refused = match choices.is_empty() {
            true => None,
            false => match self.ask(choices, true) {
                Err(error) if error.can_retry() => Some(error),
                answer => return answer,
            },
        };
        let part = self.shares(&now)?;
        if self.load.partial && now.verdict == Verdict::Partial && !part.is_empty() {
            return self.ask(vec![Choice::planned(part, now)], false);
        }
        match refused {
            Some(error) => Err(error),
            None => self.on_empty_gpus(),
        }
    }

    /// Nothing will do now. Whether it would if the GPUs were empty is for the ledger to say, of the bytes
    /// that it would take then.
    fn on_empty_gpus(&self) -> Result<Reserved, Error> {
        let gpus = self.host.gpus().devices.iter();
        let empty: Vec<u64> = gpus.map(|gpu| gpu.free_bytes).collect();
        let placement = self.plan(&empty)?;
        let shares = self.shares(&placement)?;
        let in_part = self.load.partial && placement.verdict == Verdict::Partial;
        if shares.is_empty() || !(self.is_as_asked(&placement) || in_part) {
            return Err(Error::NeverFits {
                model: self.load.model.to_string(),
                placement: Box::new(placement),
            });
        }
        self.ask(vec![Choice::planned(shares, placement)], false)
    }

    fn no_gpu(&self) -> Error {
        Error::NoGpu {
            model: self.load.model.to_string(),
        }
    }

    fn plan(&self, free: &[u64]) -> Result<Placement, Error> {
        plan(
            self.model,
            self.run,
            &self.host.with_free(free),
            self.policy,
        )
    }

    /// What a placement takes of each GPU.
    fn shares(&self, placement: &Placement) -> Result<Vec<Share>, Error> {
        let used = placement.devices.iter().filter(|d| d.required_bytes > 0);
        let used: Vec<_> = used.map(|d| (d.device, d.required_bytes)).collect();
        self.host.shares(&used)
    }

    /// All of it on GPUs, but for what the flags given keep on the host.
    fn is_as_asked(&self, placement: &Placement) -> bool {
        let pinned = &self.policy.pinned;
        let on_host = |o: &crate::Override| matches!(o.target, OverrideTarget::Host);
        let keeps_back = pinned.n_gpu_layers.is_some()
            || pinned.cpu_moe
            || pinned.n_cpu_moe.is_some()
            || pinned.overrides.iter().any(on_host);
        match placement.verdict {
            Verdict::Fits => true,
            Verdict::Partial => keeps_back,
            Verdict::DoesNotFit => false,
        }
    }

    /// Ways to have it as asked: each GPU that could hold it alone; else what is planned over several, as
    /// it is and with evictions.
    fn choices(&self, room: &[i128], now: &Placement) -> Result<Vec<Choice>, Error> {
        let mut choices = Vec::new();
        if self.is_as_asked(now) {
            let shares = self.shares(now)?;
            // The ledger prefers the GPU with the most room; who wants another has chosen here.
            if shares.len() == 1 && (self.policy.prefer != Prefer::MostFree || self.is_pinned()) {
                return Ok(vec![Choice::planned(shares, now.clone())]);
            }
            choices.push(Choice::planned(shares, now.clone()));
        }
        let mut one_will_do = choices.iter().any(|choice| choice.shares.len() == 1);
        let leaving = self.leaving();
        for (gpu, share) in self.alone(now)? {
            let freed = leaving.iter().map(|r| i128::from(r.bytes_on(&share.gpu)));
            let room = freed.fold(room.get(gpu).copied().unwrap_or(0), i128::saturating_add);
            one_will_do |= i128::from(share.bytes.get()) <= room;
            let shares = vec![share];
            if choices.iter().all(|choice| choice.shares != shares) {
                let placement = Err(gpu);
                choices.push(Choice { shares, placement });
            }
        }
        if !one_will_do {
            for placement in self.with_evictions(room, &leaving)? {
                let shares = self.shares(&placement)?;
                if choices.iter().all(|choice| choice.shares != shares) {
                    choices.push(Choice::planned(shares, placement));
                }
            }
        }
        Ok(choices)
    }

    /// The flags given leave no GPU to choose.
    fn is_pinned(&self) -> bool {
        let pinned = &self.policy.pinned;
        self.policy.mode == LayoutMode::Engine
            || pinned.shares().is_some()
            || pinned.split_mode.is_some()
            || pinned.main_gpu.is_some()
    }

    /// Every GPU that could hold all of it alone if it were empty, and what it would take there.
    fn alone(&self, now: &Placement) -> Result<Vec<(usize, Share)>, Error> {
        let mut known: Vec<(&Device, Option<u64>)> = Vec::new();
        let mut alone = Vec::new();
        if self.is_pinned() {
            return Ok(alone);
        }
        for (i, gpu) in self.host.gpus().devices.iter().enumerate() {
            let listed = self.policy.pinned.devices.as_ref();
            if listed.is_some_and(|listed| !listed.contains(&i)) {
                continue;
            }
            let alike = |(device, _): &&(&Device, Option<u64>)| is_alike(device, gpu);
            let bytes = match known.iter().find(alike) {
                Some((_, bytes)) => *bytes,
                None => {
                    let bytes = match only(now, i) {
                        Some(bytes) if self.is_as_asked(now) => Some(bytes),
                        _ => self.bytes_alone(i)?,
                    };
                    known.push((gpu, bytes));
                    bytes
                }
            };
            let bytes = bytes.filter(|&bytes| bytes <= gpu.free_bytes);
            if let Some(bytes) = bytes {
                alone.extend(self.host.shares(&[(i, bytes)])?.into_iter().map(|s| (i, s)));
            }
        }
        Ok(alone)
    }

    /// What all of it takes on GPU `gpu` alone, however much is free there.
    fn bytes_alone(&self, gpu: usize) -> Result<Option<u64>, Error> {
        let n = self.host.gpus().devices.len();
        let unlimited: Vec<u64> = (0..n)
            .map(|i| if i == gpu { NO_LIMIT } else { 0 })
            .collect();
        match self.plan_alone(gpu, &unlimited) {
            Ok(placement) if self.is_as_asked(&placement) => Ok(only(&placement, gpu)),
            // What the flags given need of another GPU it cannot have here.
            Ok(_) | Err(Error::Plan(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn plan_alone(&self, gpu: usize, free: &[u64]) -> Result<Placement, Error> {
        let mut policy = self.policy.clone();
        policy.pinned.devices = Some(vec![gpu]);
        plan(self.model, self.run, &self.host.with_free(free), &policy)
    }

    /// What may leave for it, the longest unused first.
    fn leaving(&self) -> Vec<&Reservation> {
        let gpus = self.host.ids();
        let here = |r: &&Reservation| gpus.iter().any(|gpu| r.bytes_on(gpu) > 0);
        let stale = self.load.stale.map(|stale| {
            let all = self.state.evictable(&self.load.model, stale, self.now_ms);
            all.into_iter().filter(here).collect()
        });
        stale.unwrap_or_default()
    }

    /// Placements over several GPUs once some of `leaving` have left, for the ledger to choose the one for which
    /// the fewest have to.
    fn with_evictions(
        &self,
        room: &[i128],
        leaving: &[&Reservation],
    ) -> Result<Vec<Placement>, Error> {
        let gpus = self.host.ids();
        let frees = |r: &&Reservation| gpus.iter().map(|gpu| r.bytes_on(gpu)).collect();
        let frees: Vec<Vec<u64>> = leaving.iter().map(frees).collect();
        layouts(room, &frees, |freed| {
            let placement = self.plan(freed)?;
            Ok(Some(placement).filter(|p| self.is_as_asked(p)))
        })
    }

    /// Has the ledger choose and reserve, and writes down what it has chosen.
    fn ask(&self, choices: Vec<Choice>, evict: bool) -> Result<Reserved, Error> {
        let shapes = choices
            .iter()
            .map(|c| Shape::On(c.shares.clone()))
            .collect();
        let load = self.load;
        let mut request = Request::new(load.model.clone(), load.holder.clone(), shapes)
            .on_host(self.host.name().clone());
        request.stale = load.stale.filter(|_| evict);
        request.lease_ms = load.lease_ms;
        request.key = load.key.clone();
        request.stays = load.stays;
        let grant = self.host.ledger().reserve(&request, self.now_ms)?;
        let placement = self.placement(choices, &grant);
        if placement.is_err() {
            // Nobody will load what cannot be written down.
            self.host.ledger().release(grant.id)?;
        }
        placement.map(|placement| Reserved { placement, grant })
    }

    /// The placement that was granted, over what is free without it.
    fn placement(&self, choices: Vec<Choice>, grant: &Grant) -> Result<Placement, Error> {
        let gpus = self.host.gpus_for(grant).devices;
        let mut choices = choices.into_iter();
        let chosen = choices.find(|choice| choice.shares == grant.shares);
        let mut placement = match chosen.map(|choice| choice.placement) {
            Some(Ok(placement)) => placement,
            Some(Err(gpu)) => {
                let free: Vec<u64> = gpus.iter().map(|gpu| gpu.free_bytes).collect();
                self.plan_alone(gpu, &free)?
            }
            None => return Err(self.no_gpu()),
        };
        for (device, gpu) in placement.devices.iter_mut().zip(&gpus) {
            let free = i64::try_from(gpu.free_bytes).unwrap_or(i64::MAX);
            device.headroom_bytes = free.saturating_sub_unsigned(device.required_bytes);
        }
        Ok(placement)
    }
}

impl Choice {
    fn planned(shares: Vec<Share>, placement: Placement) -> Choice {
        Choice {
            shares,
            placement: Ok(placement),
        }
    }
}

/// What a placement takes of GPU `gpu`, where it takes nothing of the others.
fn only(placement: &Placement, gpu: usize) -> Option<u64> {
    let mut used = placement.devices.iter().filter(|d| d.required_bytes > 0);
    let one = used.next().filter(|d| d.device == gpu)?;
    used.next().is_none().then_some(one.required_bytes)
}

/// Whether a model takes the same of both.
fn is_alike(a: &Device, b: &Device) -> bool {
    let kernels = |d: &Device| (d.compute_capability, d.integrated, d.sm_count, d.pool);
    kernels(a) == kernels(b) && a.overhead.bytes == b.overhead.bytes
}
