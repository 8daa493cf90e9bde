//! The GPUs of one host and the ledger over them: a model is placed on what is free by the ledger, and
//! what the placement takes is reserved before anybody else can have it.

use crate::devices::{Note, ProbeNote};
use crate::{
    Device, Error, GpuList, Grant, Ledger, Model, Placement, Policy, ReservationId, RunConfig,
    Share, ledger, one_each, plan,
};
use ledger::{GpuId, Name, Probe, Stale, State, Store};

/// A model to load.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct LoadRequest {
    /// What the ledger calls the model; other reservations of this name are never evicted for it.
    pub model: Name,
    /// Who asks: the process to look for when the lease runs out.
    pub holder: Name,
    /// Which reservations may be evicted; none without it.
    pub stale: Option<Stale>,
    /// A lease to renew at least this often, see [`ledger::Ledger::reap`].
    pub lease_ms: Option<u64>,
    /// A placement that leaves layers or experts on the host will do, too.
    pub partial: bool,
    /// What the holder calls this request: nothing is reserved twice under one key.
    pub key: Option<Name>,
    /// Its engine never unloads it by its own wish, see [`ledger::Request::stays`]: llama-server does so only with
    /// `--sleep-idle-seconds`. It is said once. An engine that is started again with other habits is another
    /// reservation, made when the old one has been released.
    pub stays: bool,
}

impl LoadRequest {
    /// All of the model on GPUs, no evictions, no lease.
    pub fn new(model: impl Into<Name>, holder: impl Into<Name>) -> LoadRequest {
        LoadRequest {
            model: model.into(),
            holder: holder.into(),
            stale: None,
            lease_ms: None,
            partial: false,
            key: None,
            stays: false,
        }
    }

    /// With reservations that may be evicted.
    pub fn evicting(mut self, stale: Stale) -> LoadRequest {
        self.stale = Some(stale);
        self
    }

    /// With a lease that is renewed at least this often.
    pub fn leased(mut self, lease_ms: u64) -> LoadRequest {
        self.lease_ms = Some(lease_ms);
        self
    }

    /// With a name of its own, under which nothing is reserved twice.
    pub fn keyed(mut self, key: impl Into<Name>) -> LoadRequest {
        self.key = Some(key.into());
        self
    }

    /// Its engine never unloads it by its own wish, see [`ledger::Request::stays`].
    pub fn staying(mut self) -> LoadRequest {
        self.stays = true;
        self
    }

    /// With layers or experts on the host where not all of the model finds room.
    pub fn or_partial(mut self) -> LoadRequest {
        self.partial = true;
        self
    }
}

/// A placement and the reservation of just what it takes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Reserved {
    /// Where everything goes, with llama-server's flags.
    pub placement: Placement,
    /// The reservation: its number, its shares, what has to leave first, and why.
    pub grant: Grant,
}

impl Reserved {
    /// The reservation's number.
    pub fn id(&self) -> ReservationId {
        self.grant.id
    }
}

/// The GPUs of one host, in CUDA's order, and the ledger over them. Share it between threads by
/// reference or `Arc`.
pub struct Host<S> {
    name: Name,
    gpus: GpuList,
    ids: Vec<GpuId>,
    ledger: Ledger<S>,
}

/// What is free where there is so much room.
pub(crate) fn free(room: &[i128]) -> Vec<u64> {
    let free = |&room: &i128| u64::try_from(room.max(0)).unwrap_or(u64::MAX);
    room.iter().map(free).collect()
}

/// What the driver said is free of each GPU of a list that a probe has made, where it did.
fn driver_figures(gpus: &GpuList) -> Option<Vec<Option<u64>>> {
    let is_probed = |note: &Note| matches!(note, Note::Probed { .. });
    gpus.notes.iter().find(|note| is_probed(note))?;
    let is_unknown = |i: usize| {
        gpus.notes.iter().any(|note| match note {
            Note::Probe {
                note: ProbeNote::FreeUnknown { .. },
                devices,
            } => devices.iter().any(|&device| device as usize == i),
            _ => false,
        })
    };
    let free = gpus.devices.iter().enumerate();
    // Not known to the probe, all of it was taken as free; less has been said by somebody since.
    let is_said = |gpu: &Device| gpu.free_bytes < gpu.total_bytes;
    let free = free.map(|(i, gpu)| {
        let is_known = !is_unknown(i) || is_said(gpu);
        is_known.then_some(gpu.free_bytes)
    });
    Some(free.collect())
}

impl<S: Store> Host<S> {
    /// The host `name` with these GPUs, which the ledger knows by their UUIDs where a probe has found them, else as
    /// `CUDA0`, `CUDA1` and so on.
    pub fn open(
        store: S,
        name: impl Into<Name>,
        gpus: impl Into<GpuList>,
    ) -> Result<Host<S>, Error> {
        let gpus = gpus.into();
        let ids = gpus.ledger_ids();
        Self::with_ids(store, name, gpus, ids)
    }

    /// As [`Host::open`], with other names for the GPUs that outlive a restart: indices move when a card falls off the
    /// bus. GPUs that the store knows of this host and that are not given are gone. Keep the host's name and theirs
    /// while anything is held: under others the same bytes are promised again. [`Error::Count`] where there is not one
    /// name for each GPU.
    ///
    /// Of GPUs given by hand, what is free of one is what models may take of it in all, whatever becomes free later:
    /// the rest is somebody else's for good. Of GPUs that a probe has found ([`crate::probed_gpus`]) models may take
    /// all, and what was free is the driver's first figure: nothing has been committed or released since, else
    /// [`Host::unobserved`]. So what others hold is promised when they have gone, and what engines hold that the store
    /// knows from before is counted once. Go on with [`Host::observe_with`].
    pub fn with_ids<N: Into<Name>>(
        store: S,
        name: impl Into<Name>,
        gpus: impl Into<GpuList>,
        ids: impl IntoIterator<Item = N>,
    ) -> Result<Host<S>, Error> {
        let gpus = gpus.into();
        let Some(free) = driver_figures(&gpus) else {
            return Self::over(store, name.into(), gpus, ids);
        };
        let host = Self::unobserved(store, name, gpus, ids)?;
        let probe = |(gpu, free): (&GpuId, Option<u64>)| {
            let gpu = gpu.clone();
            free.map(|free_bytes| Probe { gpu, free_bytes })
        };
        let probes: Vec<Probe> = host.ids.iter().zip(free).filter_map(probe).collect();
        host.ledger.probe(&probes)?;
        Ok(host)
    }

    /// As [`Host::with_ids`], where the driver is asked what is free before anything is reserved
    /// ([`Host::observe_with`]): models may take all of each GPU, whatever was free of it when the list was made.
    pub fn unobserved<N: Into<Name>>(
        store: S,
        name: impl Into<Name>,
        gpus: impl Into<GpuList>,
        ids: impl IntoIterator<Item = N>,
    ) -> Result<Host<S>, Error> {
        let mut gpus = gpus.into();
        for gpu in &mut gpus.devices {
            gpu.free_bytes = gpu.total_bytes;
        }
        Self::over(store, name.into(), gpus, ids)
    }

    /// What is free of the GPUs is what models may take of them.
    fn over<N: Into<Name>>(
        store: S,
        name: Name,
        mut gpus: GpuList,
        ids: impl IntoIterator<Item = N>,
    ) -> Result<Host<S>, Error> {
        let devices = std::mem::take(&mut gpus.devices).into_iter();
        gpus.devices = devices.map(Device::shared).collect();
        let ids = ids.into_iter().map(|id| GpuId::new(name.clone(), id));
        let ids: Vec<GpuId> = ids.collect();
        one_each("names", ids.len(), gpus.devices.len())?;
        for (i, id) in ids.iter().enumerate() {
            if ids.iter().skip(i + 1).any(|other| other == id) {
                return Err(ledger::Error::GpuTwice(id.clone()).into());
            }
        }
        let ledger = Ledger::open(store)?;
        let mut capacities = Vec::new();
        for (id, device) in ids.iter().zip(&gpus.devices) {
            capacities.push((id.clone(), ledger::size(device.free_bytes)?));
        }
        ledger.set_gpus(&capacities)?;
        for known in ledger.gpus()? {
            if *known.gpu.host() == name && !ids.contains(&known.gpu) {
                ledger.gpu_gone(&known.gpu)?;
            }
        }
        Ok(Host {
            name,
            gpus,
            ids,
            ledger,
        })
    }

    /// Its name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Its GPUs, in CUDA's order. What is free is what all models together may take.
    pub fn gpus(&self) -> &GpuList {
        &self.gpus
    }

    /// The GPUs as the ledger knows them, in the same order.
    pub fn ids(&self) -> &[GpuId] {
        &self.ids
    }

    /// The ledger, for all else: requests that begin and end, reports of engines, audits.
    pub fn ledger(&self) -> &Ledger<S> {
        &self.ledger
    }

    /// The GPUs with what is free of them by the ledger now.
    pub fn gpus_now(&self) -> Result<GpuList, Error> {
        let free = free(&self.room(&self.ledger.state()?));
        let mut gpus = self.gpus.clone();
        gpus.devices = self.with_free(&free);
        Ok(gpus)
    }

    /// The GPUs with what was free of them for `grant`: what it takes itself, and what leaves for it, not
    /// counted.
    pub fn gpus_for(&self, grant: &Grant) -> GpuList {
        let free = self.ids.iter().map(|gpu| {
            let view = grant.decision.after.iter().find(|view| view.gpu == *gpu);
            let own = grant.shares.iter().find(|share| share.gpu == *gpu);
            let left = view.map_or(0, |view| view.free_bytes);
            left.saturating_add(own.map_or(0, |share| share.bytes.get()))
        });
        let free: Vec<u64> = free.collect();
        let mut gpus = self.gpus.clone();
        gpus.devices = self.with_free(&free);
        gpus
    }

    /// What the driver says is free of each GPU, in their order, just now: since it was asked nothing has been
    /// committed or released by anybody. Where that is not sure, [`Host::observe_with`].
    ///
    /// Never more than that is promised from now on; what is reserved later comes out of it. What is released
    /// later is free with the next figure, see [`Ledger::probe`]: observe again after a release. Where only some
    /// GPUs' are known, [`Ledger::probe_since`] takes those. What others hold is remembered where an engine may have
    /// unloaded without a word, and may load again: [`ledger::Request::stays`].
    pub fn observe(&self, free_bytes: &[u64]) -> Result<(), Error> {
        self.ledger.probe(&self.probes(free_bytes)?)?;
        Ok(())
    }

    /// Asks with `ask` what is free of each GPU, and takes the answer as [`Host::observe`] does, whatever has been
    /// loaded or released in the meantime. One at a time: see [`Ledger::probe_since`].
    ///
    /// ```
    /// # use vramfit::{Error, Host, Volatile};
    /// let host = Host::open(Volatile, "gpu-box", vramfit::gpu_list("h100x2")?)?;
    /// # let nvml_free_bytes = || Ok::<_, Error>(vec![60 << 30, 70 << 30]);
    /// host.observe_with(nvml_free_bytes)?;
    /// assert_eq!(host.gpus_now()?.devices[0].free_bytes, 60 << 30);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn observe_with<E: From<Error>>(
        &self,
        ask: impl FnOnce() -> Result<Vec<u64>, E>,
    ) -> Result<(), E> {
        let before = self.ledger.state().map_err(Error::from)?;
        Ok(self.observe_since(&before, &ask()?)?)
    }

    /// As [`Host::observe`], with figures of any moment since `before`, the ledger ([`Ledger::state`]) as it was
    /// when the driver was asked.
    pub fn observe_since(&self, before: &State, free_bytes: &[u64]) -> Result<(), Error> {
        self.ledger.probe_since(before, &self.probes(free_bytes)?)?;
        Ok(())
    }

    /// What the driver says is free of each GPU, in their order, as the ledger takes it, such as for
    /// [`Ledger::reap`]. [`Error::Count`] where there is not one figure for each GPU.
    pub fn probes(&self, free_bytes: &[u64]) -> Result<Vec<Probe>, Error> {
        one_each("figures of free memory", free_bytes.len(), self.ids.len())?;
        let probe = |(gpu, &free_bytes): (&GpuId, &u64)| Probe {
            gpu: gpu.clone(),
            free_bytes,
        };
        Ok(self.ids.iter().zip(free_bytes).map(probe).collect())
    }

    /// The GPU at `index`, as the ledger knows it.
    pub fn id(&self, index: usize) -> Result<&GpuId, Error> {
        let unknown = || GpuId::new(self.name.clone(), GpuList::id(index));
        let id = self.ids.get(index);
        Ok(id.ok_or_else(|| ledger::Error::UnknownGpu(unknown()))?)
    }

    /// Bytes on GPUs by their index, as the ledger takes them.
    pub fn shares(&self, bytes: &[(usize, u64)]) -> Result<Vec<Share>, Error> {
        let share = |&(i, bytes): &(usize, u64)| Ok(Share::new(self.id(i)?.clone(), bytes)?);
        bytes.iter().map(share).collect()
    }

    /// A placement on what is free by the ledger now. Promises nothing.
    pub fn plan(
        &self,
        model: &Model,
        run: &RunConfig,
        policy: &Policy,
    ) -> Result<Placement, Error> {
        plan(model, run, &self.gpus_now()?.devices, policy)
    }

    /// The engine has loaded it and took exactly `shares`: what it was granted, or what it says.
    pub fn commit(&self, id: ReservationId, shares: &[Share], now_ms: u64) -> Result<(), Error> {
        Ok(self.ledger.commit(id, shares, now_ms)?)
    }

    /// The holder is alive: its lease begins anew. Somebody has to look for those that are not:
    /// [`expire`](vramfit_ledger::Ledger::expire), or [`reap`](vramfit_ledger::Ledger::reap) with the driver's figures, several
    /// times in the shortest lease.
    pub fn renew(&self, id: ReservationId, now_ms: u64) -> Result<(), Error> {
        Ok(self.ledger.renew(id, now_ms)?)
    }

    /// The engine has unloaded it, or has never loaded it.
    pub fn release(&self, id: ReservationId) -> Result<(), Error> {
        Ok(self.ledger.release(id)?)
    }

    /// What can still be promised of each GPU; below zero where more is promised than there is room for, so that what
    /// is released there makes room only for the rest.
    pub(crate) fn room(&self, state: &State) -> Vec<i128> {
        let views = state.gpus();
        let room = |gpu: &GpuId| {
            let view = views.iter().find(|view| view.gpu == *gpu);
            view.map_or(0, |view| {
                let taken = i128::from(view.reserved_bytes) + i128::from(view.foreign_bytes);
                i128::from(view.capacity_bytes) - taken
            })
        };
        self.ids.iter().map(room).collect()
    }

    /// The GPUs with so much free each.
    pub(crate) fn with_free(&self, free: &[u64]) -> Vec<Device> {
        let device = |(gpu, &free_bytes): (&Device, &u64)| Device {
            free_bytes,
            ..gpu.clone()
        };
        self.gpus.devices.iter().zip(free).map(device).collect()
    }
}
