//! Options in the order that people want them: fewer GPUs first; where nothing has to leave, the
//! GPUs with the most room; else where the fewest leave, and of those the longest unused.

use crate::account::Account;
use crate::evict::{age, fewest};
use crate::{
    Decision, Error, Eviction, GpuId, GpuView, Looked, Name, Phase, Plan, Request, Reservation,
    Shape, Share, State, Verdict,
};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::num::NonZeroU64;

/// Ways to lay shares over one host's GPUs that are all looked at; beyond, the likely ones are.
const MAX_WAYS: usize = 1000;

/// Where a model goes, and why.
pub(crate) struct Choice {
    pub shares: Vec<Share>,
    pub evict: Vec<Eviction>,
    pub decision: Decision,
}

/// An option that does: what leaves, and how much room its GPUs have.
struct Fits<'a> {
    looked: usize,
    evict: Vec<&'a Reservation>,
    room: i128,
}

impl Fits<'_> {
    /// The fewest evictions, the longest unused, the most room.
    fn better_than(&self, other: &Self) -> bool {
        let ages = || self.evict.iter().map(|r| age(r));
        let fewer = self.evict.len().cmp(&other.evict.len());
        let older = || ages().cmp(other.evict.iter().map(|r| age(r)));
        let roomier = || other.room.cmp(&self.room);
        fewer.then_with(older).then_with(roomier).is_lt()
    }
}

struct Planner<'a> {
    state: &'a State,
    /// The GPUs of each host that the request allows.
    hosts: BTreeMap<&'a Name, Vec<(&'a GpuId, &'a Account)>>,
    stale: Vec<&'a Reservation>,
    /// Steps of the searches for what could leave.
    tried: usize,
    options: Vec<Looked>,
}

impl State {
    /// Where the request would go now. The record of a refusal is in the error.
    pub fn plan(&self, request: &Request, now_ms: u64) -> Result<Plan, Error> {
        let choice = self.choose(request, now_ms)?;
        Ok(Plan {
            request: request.clone(),
            shares: choice.shares,
            evict: choice.evict,
            seq: self.seq,
            decision: choice.decision,
        })
    }

    pub(crate) fn choose(&self, request: &Request, now_ms: u64) -> Result<Choice, Error> {
        let mut planner = Planner::new(self, request, now_ms)?;
        let mut shapes: Vec<&Shape> = request.shapes.iter().collect();
        shapes.sort_by_key(|shape| shape.n_gpus());
        let mut same = shapes.chunk_by(|a, b| a.n_gpus() == b.n_gpus());
        let best = same.find_map(|shapes| planner.best_of(shapes));
        let before = self.gpus();
        let mut decision = Decision {
            model: request.model.clone(),
            at_ms: now_ms,
            options: planner.options,
            after: before.clone(),
            before,
        };
        let Some(best) = best else {
            return Err(self.refusal(request, decision));
        };
        let looked = decision.options.get_mut(best.looked);
        let shares = looked.map_or(Vec::new(), |looked| {
            looked.verdict = Verdict::Taken;
            looked.shares.clone()
        });
        self.show_after(&mut decision.after, &shares, &best.evict);
        Ok(Choice {
            shares,
            evict: best.evict.iter().map(|r| Eviction::of(r, now_ms)).collect(),
            decision,
        })
    }

    fn show_after(&self, after: &mut [GpuView], shares: &[Share], evict: &[&Reservation]) {
        let clamp = |bytes: u128| u64::try_from(bytes).unwrap_or(u64::MAX);
        for (view, account) in after.iter_mut().zip(self.gpus.values()) {
            let left: u128 = evict
                .iter()
                .map(|r| u128::from(r.bytes_on(&view.gpu)))
                .sum();
            let here = shares.iter().find(|s| s.gpu == view.gpu);
            let here = here.map_or(0, |s| u128::from(s.bytes.get()));
            let promised = account.promised.saturating_sub(left).saturating_add(here);
            view.reserved_bytes = clamp(promised);
            view.leaving_bytes = clamp(account.leaving.saturating_add(left));
            view.free_bytes = u64::try_from(account.room_beside(promised)).unwrap_or(0);
        }
    }

    /// Full now, full with others starting or leaving, or too large for these GPUs altogether.
    fn refusal(&self, request: &Request, decision: Decision) -> Error {
        let decision = Box::new(decision);
        let allowed = |gpu: &&GpuId| request.host.as_ref().is_none_or(|host| gpu.host() == host);
        if !request
            .shapes
            .iter()
            .any(|shape| self.fits_empty(shape, &allowed))
        {
            return Error::NeverFits(decision);
        }
        let moving = self.held.values().filter(|r| r.phase != Phase::Running);
        // on GPUs that could take a part of it: elsewhere they make no room
        let could = |gpu: &GpuId| {
            request
                .shapes
                .iter()
                .any(|shape| self.could_take(shape, gpu))
        };
        let moving = moving.filter(|r| {
            let mut gpus = r.shares.iter().map(|s| &s.gpu);
            gpus.any(|gpu| allowed(&gpu) && could(gpu))
        });
        let pending: Vec<_> = moving.map(|r| r.id).collect();
        match pending.is_empty() {
            true => Error::FullNow(decision),
            false => Error::FullPending { pending, decision },
        }
    }

    /// Whether a part of it may lie on the GPU.
    fn could_take(&self, shape: &Shape, gpu: &GpuId) -> bool {
        let capacity = self.gpus.get(gpu).map_or(0, |account| account.capacity);
        match shape {
            Shape::On(shares) => shares.iter().any(|s| s.gpu == *gpu),
            Shape::Anywhere(bytes) => bytes.iter().any(|b| b.get() <= capacity),
        }
    }

    fn fits_empty(&self, shape: &Shape, allowed: &impl Fn(&&GpuId) -> bool) -> bool {
        let bytes = match shape {
            Shape::On(shares) => {
                let capacity = |gpu| self.gpus.get(gpu).map_or(0, |account| account.capacity);
                return shares.iter().all(|s| s.bytes.get() <= capacity(&s.gpu));
            }
            Shape::Anywhere(bytes) => largest_first(bytes.iter().map(|b| b.get())),
        };
        let mut hosts: BTreeMap<&Name, Vec<u64>> = BTreeMap::new();
        for (gpu, account) in self.gpus.iter().filter(|(gpu, _)| allowed(gpu)) {
            hosts.entry(gpu.host()).or_default().push(account.capacity);
        }
        hosts.into_values().any(|capacities| {
            let capacities = largest_first(capacities.into_iter());
            capacities.len() >= bytes.len() && bytes.iter().zip(&capacities).all(|(b, c)| b <= c)
        })
    }
}

fn largest_first(bytes: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut bytes: Vec<u64> = bytes.collect();
    bytes.sort_unstable_by_key(|&b| Reverse(b));
    bytes
}

impl<'a> Planner<'a> {
    fn new(state: &'a State, request: &Request, now_ms: u64) -> Result<Self, Error> {
        if request.shapes.is_empty() || request.shapes.iter().any(|s| s.n_gpus() == 0) {
            return Err(Error::NoSize);
        }
        let mut hosts: BTreeMap<&Name, Vec<(&GpuId, &Account)>> = BTreeMap::new();
        let wanted = |gpu: &&GpuId| request.host.as_ref().is_none_or(|host| gpu.host() == host);
        for (gpu, account) in state.gpus.iter().filter(|(gpu, _)| wanted(gpu)) {
            hosts.entry(gpu.host()).or_default().push((gpu, account));
        }
        if let (true, Some(host)) = (hosts.is_empty(), &request.host) {
            return Err(Error::UnknownHost(host.clone()));
        }
        for shape in &request.shapes {
            if let Shape::On(shares) = shape {
                crate::ids::check_shares(shares)?;
                for share in shares {
                    let known = hosts.get(share.gpu.host());
                    if !known.is_some_and(|gpus| gpus.iter().any(|(gpu, _)| **gpu == share.gpu)) {
                        return Err(Error::UnknownGpu(share.gpu.clone()));
                    }
                }
            }
        }
        Ok(Planner {
            state,
            hosts,
            stale: state.stale(&request.model, request.stale, now_ms),
            tried: 0,
            options: Vec::new(),
        })
    }

    /// The best way to have one of these shapes, first without evictions, then with.
    fn best_of(&mut self, shapes: &[&Shape]) -> Option<Fits<'a>> {
        let seen = self.options.len();
        let ways = shapes
            .iter()
            .flat_map(|shape| self.roomiest(shape))
            .collect();
        let best = self.cheapest(ways, false);
        if best.is_some() || self.stale.is_empty() {
            return best;
        }
        // Those that were just found short are looked at again, with everything else.
        self.options.truncate(seen);
        let ways = shapes
            .iter()
            .flat_map(|shape| self.all_ways(shape))
            .collect();
        self.cheapest(ways, true)
    }

    fn cheapest(&mut self, ways: Vec<Vec<Share>>, evict: bool) -> Option<Fits<'a>> {
        let mut best: Option<Fits<'a>> = None;
        for way in ways {
            if let Some(fits) = self.look(way, evict)
                && best.as_ref().is_none_or(|best| fits.better_than(best))
            {
                best = Some(fits);
            }
        }
        best
    }

    /// Looks at one option, and records it.
    fn look(&mut self, shares: Vec<Share>, evict: bool) -> Option<Fits<'a>> {
        let room = |share: &Share| self.state.gpus.get(&share.gpu).map_or(0, Account::room);
        let lacking = shares
            .iter()
            .map(|s| (&s.gpu, i128::from(s.bytes.get()) - room(s)));
        let lacking: Vec<_> = lacking.filter(|&(_, lack)| lack > 0).collect();
        let out = match (lacking.is_empty(), evict) {
            (true, _) => Some(Vec::new()),
            (false, true) => fewest(&lacking, &self.stale, &mut self.tried),
            (false, false) => None,
        };
        let verdict = match &out {
            Some(_) => Verdict::Behind,
            None => {
                let all: Vec<_> = self.stale.iter().filter(|_| evict).map(|r| r.id).collect();
                Verdict::Short(self.state.validate(&shares, &all).unwrap_or_default())
            }
        };
        let total_room = shares.iter().map(room).fold(0, i128::saturating_add);
        self.options.push(Looked {
            shares,
            evict: out.iter().flatten().map(|r| r.id).collect(),
            verdict,
        });
        Some(Fits {
            looked: self.options.len() - 1,
            evict: out?,
            room: total_room,
        })
    }

    /// One way a host (one GPU: every GPU): the largest share where there is the most room. If it
    /// does not fit, no other way does without evictions.
    fn roomiest(&self, shape: &Shape) -> Vec<Vec<Share>> {
        match shape {
            Shape::On(shares) => vec![shares.clone()],
            Shape::Anywhere(bytes) => match bytes.as_slice() {
                &[bytes] => self.singles(bytes),
                bytes => {
                    let hosts = self.hosts.values();
                    hosts
                        .filter_map(|gpus| matched(bytes, gpus, |_, a| a.room()))
                        .collect()
                }
            },
        }
    }

    fn singles(&self, bytes: NonZeroU64) -> Vec<Vec<Share>> {
        let mut gpus: Vec<_> = self.hosts.values().flatten().collect();
        gpus.sort_by_key(|(_, account)| Reverse(account.room()));
        let on = |(gpu, _): &(&GpuId, &Account)| {
            vec![Share {
                gpu: (*gpu).clone(),
                bytes,
            }]
        };
        gpus.into_iter().map(on).collect()
    }

    fn all_ways(&self, shape: &Shape) -> Vec<Vec<Share>> {
        let bytes = match shape {
            Shape::Anywhere(bytes) if bytes.len() > 1 => bytes,
            one => return self.roomiest(one),
        };
        let freed = |gpu: &GpuId, account: &Account| {
            let stale = self.stale.iter().map(|r| i128::from(r.bytes_on(gpu)));
            account.room().saturating_add(stale.sum())
        };
        let mut ways = Vec::new();
        for gpus in self.hosts.values() {
            match arrangements(bytes, gpus) {
                Some(all) => ways.extend(all),
                None => {
                    ways.extend(matched(bytes, gpus, |_, account| account.room()));
                    ways.extend(matched(bytes, gpus, freed));
                }
            }
        }
        ways
    }
}

/// The largest share on the GPU with the most `room`, and so on.
fn matched(
    bytes: &[NonZeroU64],
    gpus: &[(&GpuId, &Account)],
    room: impl Fn(&GpuId, &Account) -> i128,
) -> Option<Vec<Share>> {
    let mut gpus = gpus.to_vec();
    gpus.sort_by_key(|&(gpu, account)| Reverse(room(gpu, account)));
    let mut largest: Vec<_> = bytes.iter().enumerate().collect();
    largest.sort_by_key(|&(_, bytes)| Reverse(bytes));
    if gpus.len() < bytes.len() {
        return None;
    }
    let mut placed: Vec<_> = largest.into_iter().zip(gpus).collect();
    placed.sort_by_key(|((position, _), _)| *position);
    let share = |((_, &bytes), (gpu, _)): ((usize, &NonZeroU64), (&GpuId, &Account))| Share {
        gpu: gpu.clone(),
        bytes,
    };
    Some(placed.into_iter().map(share).collect())
}

/// Every way to lay the shares over the GPUs; `None` where those are too many. Two shares of the
/// same size that change places are one way.
fn arrangements(bytes: &[NonZeroU64], gpus: &[(&GpuId, &Account)]) -> Option<Vec<Vec<Share>>> {
    let mut ways: Vec<Vec<usize>> = vec![Vec::new()];
    for (position, &size) in bytes.iter().enumerate() {
        let twin = bytes.iter().take(position).rposition(|&b| b == size);
        let longer = |way: &Vec<usize>| -> Vec<Vec<usize>> {
            let after = twin.and_then(|twin| way.get(twin)).map_or(0, |gpu| gpu + 1);
            let free = (after..gpus.len()).filter(|gpu| !way.contains(gpu));
            free.map(|gpu| way.iter().copied().chain([gpu]).collect())
                .collect()
        };
        ways = ways.iter().flat_map(longer).collect();
        if ways.len() > MAX_WAYS {
            return None;
        }
    }
    let share = |(&gpu, &bytes): (&usize, &NonZeroU64)| {
        let (gpu, _) = gpus.get(gpu)?;
        Some(Share {
            gpu: (*gpu).clone(),
            bytes,
        })
    };
    let way = |way: &Vec<usize>| way.iter().zip(bytes).map(share).collect();
    ways.iter().map(way).collect()
}
