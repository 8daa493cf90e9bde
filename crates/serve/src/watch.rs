//! Leases that run out, and what the driver says of the GPUs.

use crate::api::ProbeReport;
use crate::app::App;
use crate::problem::Problem;
use crate::work::quick;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};
use tokio::time::MissedTickBehavior;
use vramfit::Probe;
use vramfit::devices::Machine;
use vramfit::ledger::{GpuId, Probe as Probed, Reaped};

/// How often leases are looked at.
const LEASES: Duration = Duration::from_millis(500);
/// How often the driver is asked what is free.
const PROBES: Duration = Duration::from_secs(15);
/// How soon it is asked again after something was loaded, released or found: until then its figure counts that for
/// others', too, and as much less is promised.
const CONFIRM: Duration = Duration::from_secs(1);

/// What came of asking the driver.
#[derive(Debug, Default)]
pub struct Asked(Mutex<Answers>);

#[derive(Clone, Debug, Default)]
struct Answers {
    /// When it last said what is free of a GPU.
    free: BTreeMap<GpuId, Instant>,
    /// When it last answered at all.
    answered: Option<Instant>,
    /// Why it did not the last time.
    error: Option<String>,
    /// Leases that have run out are no reason to ask again before.
    not_before: Option<Instant>,
    /// When it was asked last, by whomever.
    asked: Option<Instant>,
    /// Since then something was loaded, released or found, or an engine has said what it holds.
    has_moved: bool,
}

impl Asked {
    fn change(&self, change: impl FnOnce(&mut Answers)) {
        // Whole after every step.
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn now(&self) -> Answers {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// How long ago the driver said what is free of `gpu`.
    pub fn age(&self, gpu: &GpuId) -> Option<Duration> {
        self.now().free.get(gpu).map(Instant::elapsed)
    }

    /// What the driver said last does not show what is loaded now.
    pub fn has_moved(&self) {
        self.change(|asked| asked.has_moved = true);
    }

    /// It is asked now: the answer may show what has been loaded until now. Whether there was such.
    fn begins(&self) -> bool {
        let mut had_moved = false;
        self.change(|asked| {
            asked.asked = Some(Instant::now());
            had_moved = std::mem::take(&mut asked.has_moved);
        });
        had_moved
    }

    /// Nothing came of asking it: what it was to show it has not shown.
    fn came_to_nothing(&self, had_moved: bool) {
        self.change(|asked| asked.has_moved |= had_moved);
    }

    /// For clients.
    pub fn report(&self) -> ProbeReport {
        let now = self.now();
        ProbeReport {
            answered_s: now.answered.map(|at| at.elapsed().as_secs()),
            error: now.error,
        }
    }
}

/// Looks after leases, and now and then after what others take of the GPUs.
pub async fn watch(app: Arc<App>) {
    let mut every = tokio::time::interval(LEASES);
    // After a driver that took its time there is nothing to catch up on.
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut asked = Instant::now();
    loop {
        every.tick().await;
        let is_time = asked.elapsed() >= PROBES;
        if is_time {
            asked = Instant::now();
        }
        let app = Arc::clone(&app);
        // A journal that cannot be written is told to who asks for something; what the driver did is kept.
        let looked = quick(move || {
            let _one = app.asking();
            app.look_after(is_time || app.may_confirm())
        });
        let _ = looked.await;
    }
}

impl App {
    /// One asks the driver at a time: the ledger takes answers in the order of their questions.
    fn asking(&self) -> MutexGuard<'_, ()> {
        self.confirming
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops reservations whose holders have not renewed their leases; with `ask_driver`, or where there are
    /// such, asks the driver what is free.
    pub fn look_after(&self, ask_driver: bool) -> Result<(), Problem> {
        let (ledger, now_ms) = (self.host.ledger(), self.clock.now_ms());
        let Some(probe) = &self.probe else {
            self.metrics.expired(ledger.expire(now_ms)?.len());
            return Ok(());
        };
        let may_ask = |at: Instant| Instant::now() >= at;
        let is_due = ask_driver || self.asked.now().not_before.is_none_or(may_ask);
        if is_due && (ask_driver || !ledger.lapsed(now_ms)?.is_empty()) {
            let had_moved = self.asked.begins();
            let reaped = self.ask(probe.as_ref(), now_ms);
            if reaped.is_err() {
                self.asked.came_to_nothing(had_moved);
            }
            let in_vain = reaped.as_ref().map_or(true, |r| !r.unprobed.is_empty());
            let later = in_vain.then(|| Instant::now() + PROBES);
            self.asked.change(|asked| asked.not_before = later);
            self.metrics.expired(reaped?.released.len());
        }
        Ok(())
    }

    /// Holds what the driver says against the ledger as it was before the question: the answer takes seconds,
    /// and what was loaded in the meantime may be in it or not.
    fn ask(&self, probe: &dyn Probe, now_ms: u64) -> Result<Reaped, Problem> {
        let ledger = self.host.ledger();
        let before = ledger.state()?;
        let machine = probe.machine().map_err(|error| {
            let error = error.to_string();
            self.metrics.probe_failed();
            self.asked.change(|asked| asked.error = Some(error.clone()));
            Problem::internal(error)
        })?;
        let (probes, at) = (self.probes(&machine), Instant::now());
        self.asked.change(|asked| {
            (asked.error, asked.answered) = (None, Some(at));
            let free = probes.iter().map(|probe| (probe.gpu.clone(), at));
            asked.free.extend(free);
        });
        // A GPU of which the driver has never said what is free will not say so for a lease's sake.
        let known = self.asked.now().free;
        let blind = self
            .host
            .ids()
            .iter()
            .filter(|gpu| !known.contains_key(gpu));
        let blind: Vec<GpuId> = blind.cloned().collect();
        Ok(ledger.reap_since(&before, &probes, &blind, now_ms)?)
    }

    /// Whether the driver may say by now that more is free than it said last.
    fn may_confirm(&self) -> bool {
        let now = self.asked.now();
        let is_soon = now.asked.is_some_and(|at| at.elapsed() < CONFIRM);
        let is_news = || now.has_moved || self.is_unconfirmed();
        self.probe.is_some() && now.error.is_none() && !is_soon && is_news()
    }

    fn is_unconfirmed(&self) -> bool {
        let views = self.host.ledger().gpus().unwrap_or_default();
        views.iter().any(|view| view.unconfirmed_bytes > 0)
    }

    /// Tries; where that is refused only for now, and something has happened that the driver has not been asked
    /// about, asks it and tries again.
    pub fn with_fresh_figures<T>(
        &self,
        attempt: impl Fn() -> Result<T, (bool, Problem)>,
    ) -> Result<T, Problem> {
        let (for_now, problem) = match attempt() {
            Ok(done) => return Ok(done),
            Err(refused) => refused,
        };
        // Who comes while another asks may try again later.
        let _one = match self.confirming.try_lock() {
            Ok(one) => one,
            Err(TryLockError::Poisoned(one)) => one.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(problem),
        };
        if for_now && self.may_confirm() && self.look_after(true).is_ok() {
            return attempt().map_err(|(_, problem)| problem);
        }
        Err(problem)
    }

    /// What is free of the host's GPUs, where that is known.
    fn probes(&self, machine: &Machine) -> Vec<Probed> {
        let free = machine.ids().into_iter().zip(&machine.devices);
        let free: Vec<_> = free
            .filter_map(|(id, device)| Some((id, device.free?.bytes)))
            .collect();
        let probed = |gpu: &GpuId| {
            let found = free.iter().find(|(id, _)| id == gpu.gpu().as_str());
            found.map(|&(_, free_bytes)| Probed {
                gpu: gpu.clone(),
                free_bytes,
            })
        };
        self.host.ids().iter().filter_map(probed).collect()
    }

    /// Whether what others take of `gpu` is known: by hand, or by the driver's last answers.
    pub fn is_free_known(&self, gpu: &GpuId) -> bool {
        self.probe.is_none() || self.asked.age(gpu).is_some()
    }

    /// What came of asking the driver; nothing where nobody is asked.
    pub fn probe_report(&self) -> Option<ProbeReport> {
        self.probe.as_ref().map(|_| self.asked.report())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_driver_was_to_show_is_asked_for_again_where_it_does_not_answer() {
        let asked = Asked::default();
        let has_moved = || asked.now().has_moved;
        assert!(!asked.begins());
        asked.has_moved();
        // It has not answered.
        let had_moved = asked.begins();
        assert!(had_moved && !has_moved());
        asked.came_to_nothing(had_moved);
        assert!(has_moved());
        // It has, but something was loaded in the meantime.
        assert!(asked.begins());
        asked.has_moved();
        assert!(has_moved());
        // Nothing to show, and nothing shown.
        assert!(asked.begins());
        asked.came_to_nothing(asked.begins());
        assert!(!has_moved());
    }
}
