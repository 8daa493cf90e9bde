//! Decisions about reservations: pure functions from the state to the events that should happen.

use crate::account::{Account, signed};
use crate::evict::fewest;
use crate::ids::check_shares;
use crate::plan::Choice;
use crate::{
    Adopt, Error, Event, Eviction, Grant, Name, Phase, Plan, Request, Reservation, ReservationId,
    Shape, Share, State,
};

/// Events to append, and what to answer once they are.
pub(crate) type Decided<T> = Result<(Vec<Event>, T), Error>;

/// A plan may have been stored, or come over a network: its shares are one of the request's shapes, on
/// the host that it names.
fn is_asked_for(plan: &Plan) -> Result<(), Error> {
    let request = &plan.request;
    let not = |why: String| Error::NotAsked {
        model: request.model.clone(),
        why,
    };
    let is_elsewhere = |s: &&Share| request.host.as_ref().is_some_and(|h| s.gpu.host() != h);
    if let (Some(share), Some(host)) = (plan.shares.iter().find(is_elsewhere), &request.host) {
        return Err(not(format!("{} is not on {host}", share.gpu)));
    }
    let is_shape = |shape: &Shape| match shape {
        Shape::Anywhere(bytes) => plan.shares.iter().map(|s| &s.bytes).eq(bytes),
        Shape::On(shares) => plan.shares == *shares,
    };
    match request.shapes.iter().any(is_shape) {
        true => Ok(()),
        false => Err(not("its bytes are none of the request's shapes".into())),
    }
}

impl State {
    /// A plan becomes a reservation, if it still holds.
    pub(crate) fn take(&self, plan: &Plan, now_ms: u64) -> Decided<Grant> {
        self.check_key(plan.request.key.as_ref())?;
        is_asked_for(plan)?;
        let stale = |why: String| Error::StalePlan {
            model: plan.request.model.clone(),
            why,
        };
        let evictable = self.stale(&plan.request.model, plan.request.stale, now_ms);
        let may_leave = |id: &ReservationId| evictable.iter().any(|r| r.id == *id);
        let planned = || plan.evict.iter().map(|e| e.id);
        let evict: Vec<_> = planned().filter(may_leave).collect();
        let short = match self.validate(&plan.shares, &evict) {
            Err(Error::UnknownGpu(gpu)) => return Err(stale(format!("{gpu} is gone"))),
            short => short?,
        };
        if !short.is_empty() {
            let why = match planned().find(|id| !may_leave(id)) {
                Some(id) => format!("{id} can no longer be evicted"),
                None => format!("no room{}", crate::request::first(&short)),
            };
            return Err(stale(why));
        }
        let evictable = evictable.into_iter().filter(|r| evict.contains(&r.id));
        let leaving = self.still_necessary(&plan.shares, evictable.collect());
        let evict = leaving.iter().map(|r| Eviction::of(r, now_ms)).collect();
        let choice = Choice {
            shares: plan.shares.clone(),
            evict,
            decision: plan.decision.clone(),
        };
        Ok(self.grant(&plan.request, choice, now_ms))
    }

    /// The fewest of `evictable`, the longest unused first, that make room for `shares`, as all of them do.
    fn still_necessary<'a>(
        &self,
        shares: &[Share],
        evictable: Vec<&'a Reservation>,
    ) -> Vec<&'a Reservation> {
        let lacks = |s: &Share| {
            let room = self.gpus.get(&s.gpu).map_or(0, Account::room);
            signed(s.bytes.get().into()).saturating_sub(room)
        };
        let lacking = shares.iter().map(|s| (&s.gpu, lacks(s)));
        let lacking: Vec<_> = lacking.filter(|&(_, lack)| lack > 0).collect();
        match lacking.is_empty() {
            true => Vec::new(),
            false => fewest(&lacking, &evictable, &mut 0).unwrap_or(evictable),
        }
    }

    /// Plans and reserves in one step.
    pub(crate) fn reserve(&self, request: &Request, now_ms: u64) -> Decided<Grant> {
        self.check_key(request.key.as_ref())?;
        let choice = self.choose(request, now_ms)?;
        Ok(self.grant(request, choice, now_ms))
    }

    /// Nothing is held under the request's key.
    fn check_key(&self, key: Option<&Name>) -> Result<(), Error> {
        let Some(key) = key else {
            return Ok(());
        };
        let taken = self.held.values().find(|r| r.key.as_ref() == Some(key));
        taken.map_or(Ok(()), |r| Err(Error::KeyTaken(r.id)))
    }

    fn grant(&self, request: &Request, choice: Choice, now_ms: u64) -> (Vec<Event>, Grant) {
        let evict = choice.evict.iter().map(|e| e.id).collect();
        let what = Adopt {
            model: request.model.clone(),
            holder: request.holder.clone(),
            shares: choice.shares.clone(),
            lease_ms: request.lease_ms,
            key: request.key.clone(),
            stays: request.stays,
        };
        let reservation = self.new_one(what, Phase::Pending, now_ms);
        let grant = Grant {
            id: reservation.id,
            waits_for: self.in_the_way(&choice.shares),
            shares: choice.shares,
            evict: choice.evict,
            decision: choice.decision,
        };
        (vec![Event::Reserved { reservation, evict }], grant)
    }

    /// Those that are leaving GPUs which have no room for these shares until they have.
    fn in_the_way(&self, shares: &[Share]) -> Vec<ReservationId> {
        let crowded = |s: &&Share| {
            self.gpus.get(&s.gpu).is_some_and(|account| {
                let all = account.promised.saturating_add(account.leaving);
                let all = all.saturating_add(account.foreign().into());
                all.saturating_add(s.bytes.get().into()) > account.capacity.into()
            })
        };
        let crowded: Vec<_> = shares.iter().filter(crowded).map(|s| &s.gpu).collect();
        let leaving = self.held.values().filter(|r| r.phase == Phase::Leaving);
        let there = leaving.filter(|r| crowded.iter().any(|gpu| r.bytes_on(gpu) > 0));
        there.map(|r| r.id).collect()
    }

    pub(crate) fn known(&self, id: ReservationId) -> Result<&Reservation, Error> {
        self.held.get(&id).ok_or(Error::UnknownReservation(id))
    }

    /// The engine has loaded it and took `shares`. Checked again: the GPUs are there, what is
    /// promised holds, and what was to leave has left.
    pub(crate) fn commit(&self, id: ReservationId, shares: &[Share], at_ms: u64) -> Decided<()> {
        let r = self.known(id)?;
        if r.phase != Phase::Pending {
            return Err(Error::Phase { id, phase: r.phase });
        }
        check_shares(shares)?;
        let promised = self.shortfalls(shares, |gpu, account: &Account| {
            let others = signed(account.promised).saturating_sub(r.bytes_on(gpu).into());
            signed(account.capacity.into()).saturating_sub(others)
        })?;
        if !promised.is_empty() {
            return Err(Error::TookTooMuch {
                id,
                short: promised,
            });
        }
        let occupied = self.shortfalls(shares, |_, account| {
            signed(account.capacity.into()).saturating_sub(signed(account.occupied()))
        })?;
        if !occupied.is_empty() {
            let leaving = self.in_the_way(shares);
            return Err(Error::Waits { id, leaving });
        }
        let shares = shares.to_vec();
        Ok((vec![Event::Committed { id, shares, at_ms }], ()))
    }

    /// `begun` requests more, `ended` fewer.
    pub(crate) fn requests(
        &self,
        id: ReservationId,
        begun: u32,
        ended: u32,
        at_ms: u64,
    ) -> Decided<()> {
        let r = self.known(id)?;
        if r.phase != Phase::Running && begun > 0 {
            return Err(Error::Phase { id, phase: r.phase });
        }
        let active = r.requests.saturating_add(begun).checked_sub(ended);
        let active = active.ok_or(Error::NoRequest(id))?;
        Ok((vec![Event::Requests { id, active, at_ms }], ()))
    }

    pub(crate) fn renew(&self, id: ReservationId, now_ms: u64) -> Decided<()> {
        let lease = self.known(id)?.lease_ms.map(|ms| now_ms.saturating_add(ms));
        let renewed = lease.map(|until_ms| Event::Renewed { id, until_ms });
        Ok((renewed.into_iter().collect(), ()))
    }

    pub(crate) fn release(&self, id: ReservationId) -> Decided<()> {
        let released = self.known(id)?;
        let mut events = vec![Event::Released { id }];
        events.extend(self.stay(&[released], &events));
        Ok((events, ()))
    }

    /// A fact rather than a request: somebody already holds this. Taken in as it is, for the audit
    /// to show where it is too much.
    pub(crate) fn adopt(&self, found: &Adopt, now_ms: u64) -> Decided<ReservationId> {
        self.check_key(found.key.as_ref())?;
        let shares = &found.shares;
        check_shares(shares)?;
        if let Some(share) = shares.iter().find(|s| !self.gpus.contains_key(&s.gpu)) {
            return Err(Error::UnknownGpu(share.gpu.clone()));
        }
        let reservation = self.new_one(found.clone(), Phase::Running, now_ms);
        let id = reservation.id;
        let evict = Vec::new();
        let mut events = vec![Event::Reserved { reservation, evict }];
        for share in shares {
            let Some(account) = self.gpus.get(&share.gpu) else {
                continue;
            };
            if let Some(mut figure) = account.figure.clone() {
                let staying = self.staying(&figure);
                figure.adopt(share.bytes.get(), staying, account.capacity);
                events.push(figure.as_event(&share.gpu));
            }
        }
        Ok((events, id))
    }

    /// The next reservation of all.
    fn new_one(&self, what: Adopt, phase: Phase, now_ms: u64) -> Reservation {
        Reservation {
            id: ReservationId(self.next_id),
            model: what.model,
            holder: what.holder,
            shares: what.shares,
            phase,
            created_ms: now_ms,
            active_ms: now_ms,
            requests: 0,
            lease_ms: what.lease_ms,
            lease_until_ms: what.lease_ms.map(|ms| now_ms.saturating_add(ms)),
            spared: 0,
            leaves: None,
            key: what.key,
            stays: what.stays,
        }
    }
}
