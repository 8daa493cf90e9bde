//! Hosts: GPUs and the ledger over them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyAny, PyDict, PyType};
use serde_json::json;
use vramfit::ledger::{self, Adopt, Held, State, Store};
use vramfit::{Answer, Journal, LoadRequest, ReservationId, Share, Stale, Status, Volatile};

use crate::error::Failure;
use crate::gpus::{Gpus, GpusLike};
use crate::model::Model;
use crate::placement::{Placement, read_settings};

type Open = vramfit::Host<Box<dyn Store + Send>>;

/// A host until it is closed: then also what it has granted has none.
#[derive(Clone)]
struct Shared(Arc<Mutex<Option<Arc<Open>>>>);

impl Shared {
    fn get(&self) -> Result<Arc<Open>, Failure> {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let closed = || Failure::argument("the host has been closed: open another");
        open.clone().ok_or_else(closed)
    }

    /// Calls that are under way end as if it were open.
    fn close(&self) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(open.take());
    }
}

/// The GPUs of one host and the ledger over them.
#[pyclass(frozen, module = "vramfit")]
pub struct Host {
    shared: Shared,
    name: String,
    n_gpus: usize,
}

/// A reservation that was made, and the placement that it is for.
#[pyclass(frozen, module = "vramfit")]
pub struct Reserved {
    shared: Shared,
    #[pyo3(get)]
    id: u64,
    #[pyo3(get)]
    placement: Py<Placement>,
    #[pyo3(get)]
    shares: Vec<(usize, u64)>,
    #[pyo3(get)]
    leaving: Vec<u64>,
    grant: vramfit::Grant,
}

/// A reservation, or its number.
#[derive(FromPyObject)]
pub enum Which<'py> {
    Reserved(Bound<'py, Reserved>),
    Id(u64),
}

impl Which<'_> {
    fn id(&self) -> ReservationId {
        ReservationId(match self {
            Which::Reserved(reserved) => reserved.get().id,
            Which::Id(id) => *id,
        })
    }
}

/// What is free of each GPU, or who can be asked.
#[derive(FromPyObject)]
pub enum Free<'py> {
    Figures(Vec<u64>),
    Ask(Bound<'py, PyAny>),
}

impl Free<'_> {
    /// The figures, and the ledger as it was before they were asked for.
    fn figures(self, py: Python<'_>, host: &Open) -> PyResult<(State, Vec<u64>)> {
        let state = || py.detach(|| host.ledger().state());
        let before = state().map_err(Failure::from)?;
        match self {
            Free::Figures(free_bytes) => Ok((before, free_bytes)),
            Free::Ask(ask) if ask.is_callable() => Ok((before, ask.call0()?.extract()?)),
            Free::Ask(_) => {
                let why = "free_bytes: give bytes for each GPU, or a function that does";
                Err(PyTypeError::new_err(why))
            }
        }
    }
}

/// The time that was given, or the system's clock, which every process of the host shares.
fn time(now_ms: Option<u64>) -> u64 {
    now_ms.unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX))
    })
}

fn check_lease(lease_ms: Option<u64>) -> Result<(), Failure> {
    match lease_ms {
        Some(0) => {
            let why = "lease_ms: a lease of 0 has run out before it begins";
            Err(Failure::argument(why))
        }
        _ => Ok(()),
    }
}

fn index(host: &Open, gpu: &ledger::GpuId) -> Option<usize> {
    host.ids().iter().position(|id| id == gpu)
}

#[pymethods]
impl Host {
    #[new]
    #[pyo3(signature = (name, gpus, *, ids = None, journal = None))]
    fn new(
        py: Python<'_>,
        name: String,
        gpus: GpusLike<'_>,
        ids: Option<Vec<String>>,
        journal: Option<PathBuf>,
    ) -> Result<Host, Failure> {
        let gpus = gpus.list()?;
        let ids = ids.unwrap_or_else(|| gpus.ledger_ids());
        if ids.len() != gpus.devices.len() {
            let (n, m) = (ids.len(), gpus.devices.len());
            return Err(Failure::argument(format!("{n} ids for {m} GPUs")));
        }
        let host = py.detach(|| {
            let store: Box<dyn Store + Send> = match journal {
                None => Box::new(Volatile),
                Some(path) => Box::new(Journal::open(path).map_err(ledger::Error::from)?),
            };
            Open::with_ids(store, name, gpus, ids)
        })?;
        Ok(Host {
            name: host.name().to_string(),
            n_gpus: host.ids().len(),
            shared: Shared(Arc::new(Mutex::new(Some(Arc::new(host))))),
        })
    }

    /// Lets go of the journal, once calls that are under way have ended. What is reserved in it stays reserved.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.shared.close());
    }

    fn __enter__(this: Py<Self>) -> Py<Self> {
        this
    }

    /// Closes it.
    fn __exit__(
        &self,
        py: Python<'_>,
        _kind: Option<Bound<'_, PyType>>,
        _value: Option<Bound<'_, PyAny>>,
        _traceback: Option<Bound<'_, PyAny>>,
    ) -> bool {
        self.close(py);
        false
    }

    /// By which the ledger knows it.
    #[getter]
    fn name(&self) -> &str {
        &self.name
    }

    /// The GPUs with what is free of them by the ledger now.
    #[getter]
    fn gpus(&self, py: Python<'_>) -> Result<Gpus, Failure> {
        let host = self.shared.get()?;
        let list = py.detach(|| host.gpus_now())?;
        Ok(Gpus { list })
    }

    /// What the driver says is free of each GPU, in their order, or a function that asks it.
    fn observe(&self, py: Python<'_>, free_bytes: Free<'_>) -> PyResult<()> {
        let host = self.shared.get()?;
        let (before, free_bytes) = free_bytes.figures(py, &host)?;
        let observed = py.detach(|| host.observe_since(&before, &free_bytes));
        Ok(observed.map_err(Failure::from)?)
    }

    /// What others hold of a GPU, from who knows, in the place of what they are believed to hold.
    fn others_hold(&self, py: Python<'_>, gpu: usize, bytes: u64) -> Result<(), Failure> {
        let host = self.shared.get()?;
        let gpu = host.id(gpu)?;
        Ok(py.detach(|| host.ledger().others_hold(gpu, bytes))?)
    }

    /// The driver says no more of a GPU: what it said last does not count any longer.
    fn forget_figure(&self, py: Python<'_>, gpu: usize) -> Result<(), Failure> {
        let host = self.shared.get()?;
        let gpu = host.id(gpu)?;
        Ok(py.detach(|| host.ledger().forget_figure(gpu))?)
    }

    /// Finds a placement of `model` on what is free by the ledger and reserves what it takes, in one step.
    #[pyo3(signature = (
        model, *, name, holder, lease_ms = None, stale_ms = None, partial = false, stays = false, key = None,
        now_ms = None, **settings
    ))]
    #[expect(clippy::too_many_arguments, reason = "keywords")]
    fn reserve(
        &self,
        py: Python<'_>,
        model: &Bound<'_, Model>,
        name: String,
        holder: String,
        lease_ms: Option<u64>,
        stale_ms: Option<(u64, u64)>,
        partial: bool,
        stays: bool,
        key: Option<String>,
        now_ms: Option<u64>,
        settings: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Reserved> {
        let opened = Arc::clone(&model.get().opened);
        let settings = read_settings(settings)?;
        check_lease(lease_ms)?;
        let mut load = LoadRequest::new(name, holder);
        load.lease_ms = lease_ms;
        load.stale = stale_ms.map(|(idle, start)| Stale::after(idle, start));
        load.partial = partial;
        load.stays = stays;
        load.key = key.map(Into::into);
        let host = self.shared.get()?;
        let now_ms = time(now_ms);
        let reserve = || {
            let resolved = settings.resolve(&opened.model, host.gpus())?;
            let (run, policy) = (&resolved.run, &resolved.policy);
            let reserved = host.reserve(&opened.model, run, policy, &load, now_ms)?;
            let gpus = host.gpus_for(&reserved.grant);
            let placement = &reserved.placement;
            let document =
                vramfit::document(&opened.path, &opened.model, &gpus, &resolved, placement);
            Ok::<_, vramfit::Error>((Answer::new(reserved.placement, document), reserved.grant))
        };
        let (answer, grant) = py.detach(reserve).map_err(Failure::from)?;
        let placement = match Py::new(py, Placement { opened, answer }) {
            Ok(placement) => placement,
            Err(error) => {
                // Nobody would know its number.
                py.detach(|| host.release(grant.id))
                    .map_err(Failure::from)?;
                return Err(error);
            }
        };
        let share = |share: &Share| Some((index(&host, &share.gpu)?, share.bytes.get()));
        let leaving = grant.evict.iter().map(|e| e.id);
        let leaving = leaving.chain(grant.waits_for.iter().copied());
        Ok(Reserved {
            id: grant.id.0,
            shares: grant.shares.iter().filter_map(share).collect(),
            leaving: leaving.map(|id| id.0).collect(),
            placement,
            grant,
            shared: self.shared.clone(),
        })
    }

    /// The engine has loaded it and took `shares`, pairs of a GPU's index and bytes; `None` says that it took what was
    /// reserved.
    #[pyo3(signature = (reservation, shares = None, *, now_ms = None))]
    fn commit(
        &self,
        py: Python<'_>,
        reservation: Which<'_>,
        shares: Option<Vec<(usize, u64)>>,
        now_ms: Option<u64>,
    ) -> Result<(), Failure> {
        let host = self.shared.get()?;
        let id = reservation.id();
        let shares = match shares {
            Some(shares) => host.shares(&shares)?,
            None => {
                let state = py.detach(|| host.ledger().state())?;
                let held = state.reservation(id).map(|r| r.shares.clone());
                held.ok_or(ledger::Error::UnknownReservation(id))?
            }
        };
        Ok(py.detach(|| host.commit(id, &shares, time(now_ms)))?)
    }

    /// The holder is alive: its lease begins anew.
    #[pyo3(signature = (reservation, *, now_ms = None))]
    fn renew(
        &self,
        py: Python<'_>,
        reservation: Which<'_>,
        now_ms: Option<u64>,
    ) -> Result<(), Failure> {
        let host = self.shared.get()?;
        let id = reservation.id();
        Ok(py.detach(|| host.renew(id, time(now_ms)))?)
    }

    /// The engine has unloaded it, or has never loaded it.
    fn release(&self, py: Python<'_>, reservation: Which<'_>) -> Result<(), Failure> {
        let host = self.shared.get()?;
        let id = reservation.id();
        Ok(py.detach(|| host.release(id))?)
    }

    /// A request to the loaded model begins: until it ends, the model is not evicted.
    #[pyo3(signature = (reservation, *, now_ms = None))]
    fn begin_request(
        &self,
        py: Python<'_>,
        reservation: Which<'_>,
        now_ms: Option<u64>,
    ) -> Result<(), Failure> {
        let host = self.shared.get()?;
        let id = reservation.id();
        Ok(py.detach(|| host.ledger().begin_request(id, time(now_ms)))?)
    }

    /// A request ends.
    #[pyo3(signature = (reservation, *, now_ms = None))]
    fn end_request(
        &self,
        py: Python<'_>,
        reservation: Which<'_>,
        now_ms: Option<u64>,
    ) -> Result<(), Failure> {
        let host = self.shared.get()?;
        let id = reservation.id();
        Ok(py.detach(|| host.ledger().end_request(id, time(now_ms)))?)
    }

    /// Something that is already loaded. A fact: it is not checked, and the audit shows where it is too much.
    /// Figures of before it count it as taken by others, too: observe again behind it.
    #[pyo3(signature = (name, holder, shares, *, lease_ms = None, stays = false, key = None, now_ms = None))]
    #[expect(clippy::too_many_arguments, reason = "keywords")]
    fn adopt(
        &self,
        py: Python<'_>,
        name: &str,
        holder: &str,
        shares: Vec<(usize, u64)>,
        lease_ms: Option<u64>,
        stays: bool,
        key: Option<String>,
        now_ms: Option<u64>,
    ) -> Result<u64, Failure> {
        let host = self.shared.get()?;
        check_lease(lease_ms)?;
        let mut found = Adopt::new(name, holder, host.shares(&shares)?);
        found.lease_ms = lease_ms;
        found.stays = stays;
        found.key = key.map(Into::into);
        let ledger = host.ledger();
        Ok(py.detach(|| ledger.adopt(&found, time(now_ms)))?.0)
    }

    /// What a holder's engines say they hold, all of it, by the numbers of reservations, against the ledger.
    fn reconcile<'py>(
        &self,
        py: Python<'py>,
        holder: &str,
        held: BTreeMap<u64, Vec<(usize, u64)>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let host = self.shared.get()?;
        let held = held.iter().map(|(&id, shares)| {
            Ok(Held {
                id: ReservationId(id),
                shares: host.shares(shares)?,
            })
        });
        let held = held.collect::<Result<Vec<_>, vramfit::Error>>();
        let (held, holder) = (held.map_err(Failure::from)?, holder.into());
        let found = py.detach(|| host.ledger().reconcile(&holder, &held));
        Ok(pythonize::pythonize(py, &found.map_err(Failure::from)?)?)
    }

    /// Every GPU with more promised on it than it has.
    fn audit<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let host = self.shared.get()?;
        let violations = py.detach(|| host.ledger().audit());
        let violations = violations.map_err(Failure::from)?;
        let violations =
            serde_json::to_value(violations).map_err(|e| Failure::argument(e.to_string()))?;
        Ok(pythonize::pythonize(py, &violations)?)
    }

    /// The ledger as of now: `gpus` and `reservations`.
    fn state<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let host = self.shared.get()?;
        let state = py.detach(|| host.ledger().state());
        let state = state.map_err(Failure::from)?;
        let reservations: Vec<_> = state.reservations().collect();
        let json = json!({ "gpus": state.gpus(), "reservations": reservations });
        Ok(pythonize::pythonize(py, &json)?)
    }

    /// Drops reservations whose lease has run out, together with what the driver says is free of each GPU.
    #[pyo3(signature = (free_bytes, *, now_ms = None))]
    fn reap<'py>(
        &self,
        py: Python<'py>,
        free_bytes: Free<'_>,
        now_ms: Option<u64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let host = self.shared.get()?;
        let (before, free_bytes) = free_bytes.figures(py, &host)?;
        let probes = host.probes(&free_bytes).map_err(Failure::from)?;
        let ledger = host.ledger();
        let reaped = py.detach(|| ledger.reap_since(&before, &probes, &[], time(now_ms)));
        Ok(pythonize::pythonize(py, &reaped.map_err(Failure::from)?)?)
    }

    /// Drops reservations whose lease has run out, where no driver can be asked what is left of them.
    #[pyo3(signature = (*, now_ms = None))]
    fn expire<'py>(&self, py: Python<'py>, now_ms: Option<u64>) -> PyResult<Bound<'py, PyAny>> {
        let host = self.shared.get()?;
        let released = py.detach(|| host.ledger().expire(time(now_ms)));
        Ok(pythonize::pythonize(py, &released.map_err(Failure::from)?)?)
    }

    fn __repr__(&self) -> String {
        let (name, n) = (&self.name, self.n_gpus);
        format!("<vramfit.Host {name}, {n} GPUs>")
    }
}

#[pymethods]
impl Reserved {
    /// The grant, with the record of why: every option, each rejection with its GPU and bytes.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(pythonize::pythonize(py, &self.grant)?)
    }

    fn __enter__(this: Py<Self>) -> Py<Self> {
        this
    }

    /// Releases it, unless that has been done.
    fn __exit__(
        &self,
        py: Python<'_>,
        _kind: Option<Bound<'_, PyType>>,
        _value: Option<Bound<'_, PyAny>>,
        _traceback: Option<Bound<'_, PyAny>>,
    ) -> Result<bool, Failure> {
        let host = self.shared.get()?;
        let released = py.detach(|| host.release(ReservationId(self.id)));
        match released {
            Err(error) if error.status() != Status::UnknownReservation => Err(error.into()),
            _ => Ok(false),
        }
    }

    fn __repr__(&self) -> String {
        let shares = self.shares.iter();
        let shares: Vec<String> = shares.map(|(i, n)| format!("CUDA{i} {n} bytes")).collect();
        format!("<vramfit.Reserved #{}: {}>", self.id, shares.join(", "))
    }
}
