//! Hosts: GPUs and the ledger over them.

use std::ffi::{CString, c_char};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Deserialize;
use serde_json::json;
use vramfit::ledger::{self, Store};
use vramfit::settings::objects::object_or_null;
use vramfit::{
    Answer, GpuList, Host, Journal, LoadRequest, ReservationId, Reserved, Share, Stale, Volatile,
};

use crate::error::{Failure, free, guard, look, vramfit_error, vramfit_status};
use crate::gpus::vramfit_gpus;
use crate::model::vramfit_model;
use crate::placement::{settings, vramfit_placement};
use crate::text::{Out, array_of, c_string, handle, object_in, path, pointer, text, values};
use crate::unclaimed::Unclaimed;

/// The GPUs of one host and the ledger over them. Every call is atomic: what is reserved is promised to nobody else,
/// whichever thread asks.
pub struct vramfit_host {
    pub(crate) host: Host<Box<dyn Store + Send>>,
    /// Which of this process it is: a mark is of one.
    pub(crate) number: u64,
}

/// How many hosts have been opened.
static OPENED: AtomicU64 = AtomicU64::new(0);

/// Bytes on one GPU of a host.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vramfit_share {
    /// Its index in the host's list.
    pub gpu: u32,
    /// How many; never 0.
    pub bytes: u64,
}

/// A reservation that was made, and the placement that it is for. Freeing it does not release the reservation.
pub struct vramfit_reserved {
    id: u64,
    placement: vramfit_placement,
    shares: Vec<vramfit_share>,
    leaving: Vec<u64>,
    json: CString,
}

/// `load_json`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Load {
    model: String,
    holder: String,
    #[serde(default)]
    lease_ms: Option<u64>,
    #[serde(default, deserialize_with = "object_or_null")]
    stale: Option<LoadStale>,
    #[serde(default)]
    partial: bool,
    #[serde(default)]
    stays: bool,
    #[serde(default)]
    key: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LoadStale {
    idle_ms: u64,
    start_ms: u64,
}

impl Load {
    fn read(json: *const c_char) -> Result<LoadRequest, Failure> {
        let load: Load = object_in(json, "load_json")?;
        let mut request = LoadRequest::new(load.model, load.holder);
        request.stale = load.stale.map(|s| Stale::after(s.idle_ms, s.start_ms));
        request.lease_ms = lease("load_json", load.lease_ms)?;
        request.partial = load.partial;
        request.stays = load.stays;
        request.key = load.key.map(Into::into);
        Ok(request)
    }
}

/// A lease that can be: none, or one that does not end as it begins.
pub(crate) fn lease(what: &str, lease_ms: Option<u64>) -> Result<Option<u64>, Failure> {
    match lease_ms {
        Some(0) => {
            let why = "lease_ms: a lease of 0 has run out before it begins";
            Err(Failure::argument(format!("{what}: {why}")))
        }
        lease_ms => Ok(lease_ms),
    }
}

impl vramfit_host {
    fn index(&self, gpu: &ledger::GpuId) -> Option<u32> {
        let at = self.host.ids().iter().position(|id| id == gpu)?;
        u32::try_from(at).ok()
    }

    pub(crate) fn shares(&self, shares: &[vramfit_share]) -> Result<Vec<Share>, Failure> {
        let bytes = shares.iter().map(|s| (s.gpu as usize, s.bytes));
        let bytes: Vec<(usize, u64)> = bytes.collect();
        Ok(self.host.shares(&bytes)?)
    }

    fn reserved(
        &self,
        model: &vramfit_model,
        settings: &vramfit::Settings,
        load: &LoadRequest,
        now_ms: u64,
    ) -> Result<vramfit_reserved, Failure> {
        let opened = Arc::clone(&model.shared);
        let resolved = settings.resolve(&opened.model, self.host.gpus())?;
        let document = |gpus: &GpuList, placement| {
            vramfit::document(&opened.path, &opened.model, gpus, &resolved, placement)
        };
        let reserved =
            self.host
                .reserve(&opened.model, &resolved.run, &resolved.policy, load, now_ms);
        let Reserved {
            placement, grant, ..
        } = match reserved {
            Ok(reserved) => reserved,
            Err(vramfit::Error::NeverFits { model, placement }) => {
                let nearest = json!({ "nearest": document(self.host.gpus(), &placement) });
                let error = vramfit::Error::NeverFits { model, placement };
                return Err(Failure::from(error).with(nearest));
            }
            Err(error) => return Err(error.into()),
        };
        let unclaimed = Unclaimed::new(&self.host, grant.id);
        let estimate = document(&self.host.gpus_for(&grant), &placement);
        let shares = grant.shares.iter().filter_map(|share| {
            let bytes = share.bytes.get();
            self.index(&share.gpu)
                .map(|gpu| vramfit_share { gpu, bytes })
        });
        let leaving = grant.evict.iter().map(|e| e.id);
        let leaving = leaving.chain(grant.waits_for.iter().copied());
        let answer = Answer::new(placement, estimate);
        let reserved = vramfit_reserved {
            id: grant.id.0,
            shares: shares.collect(),
            leaving: leaving.map(|id| id.0).collect(),
            json: c_string(serde_json::to_string(&grant)?),
            placement: vramfit_placement::new(opened, answer)?,
        };
        unclaimed.told();
        Ok(reserved)
    }
}

/// Opens the ledger over the GPUs of host `name`. Of GPUs given by hand, what is free in the list is what models may
/// take of them in all; of those that `vramfit_gpus_probe` found models may take all, and what was free is the driver's
/// first figure (`vramfit_host_observe`). `gpu_ids` has a name for each, by which it is known after a restart; NULL
/// takes the UUIDs of those that were found, else CUDA0, CUDA1 and so on. The ledger is kept in the file
/// `journal_path`, which survives a crash and belongs to one process at a time; NULL keeps it in memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_host_open(
    name: *const c_char,
    gpus: *const vramfit_gpus,
    gpu_ids: *const *const c_char,
    journal_path: *const c_char,
    host: *mut *mut vramfit_host,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    guard(error, || {
        let out = Out::new(host, "host")?;
        let name = text(name, "name")?;
        let gpus = handle(gpus, "gpus")?.now();
        let ids: Vec<String> = match gpu_ids.is_null() {
            true => gpus.ledger_ids(),
            false => {
                let ids = values(gpu_ids, gpus.devices.len(), "gpu_ids")?;
                let ids = ids
                    .iter()
                    .map(|&id| text(id, "gpu_ids").map(str::to_string));
                ids.collect::<Result<_, _>>()?
            }
        };
        let store: Box<dyn Store + Send> = match journal_path.is_null() {
            true => Box::new(Volatile),
            false => {
                let journal = Journal::open(path(journal_path, "journal_path")?);
                Box::new(journal.map_err(ledger::Error::from)?)
            }
        };
        let host = Host::with_ids(store, name, gpus, ids)?;
        let number = OPENED.fetch_add(1, Ordering::Relaxed);
        out.hand_over(vramfit_host { host, number });
        Ok(())
    })
}

/// The host's GPUs with what is free of them by the ledger now: a list of its own, to be freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_host_gpus(
    host: *const vramfit_host,
    gpus: *mut *mut vramfit_gpus,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    guard(error, || {
        let out = Out::new(gpus, "gpus")?;
        out.hand_over(vramfit_gpus::from(handle(host, "host")?.host.gpus_now()?));
        Ok(())
    })
}

/// Finds a placement of `model` on what is free by the ledger and reserves what it takes, in one step. `settings_json`
/// is that of `vramfit_plan`. `load_json` says who asks: {"model": "qwen3:8b", "holder": "loader-1"}, and where wanted
/// "lease_ms" (a lease to renew at least this often), "stale": {"idle_ms", "start_ms"} (which reservations may be
/// evicted), "partial": true (layers or experts on the host will do, too), "stays": true and "key": "load-1" (under
/// which nothing is reserved twice, so that asking again is safe where an answer was lost). Times are milliseconds of
/// one clock that all holders share.
/// "stays" says that its engine never unloads it by its own wish: llama-server does so only with --sleep-idle-seconds.
/// Unless that is said, memory that becomes free beside it may still be its, and is not promised on where others held
/// it before. It is said once: an engine that is started again with other habits is another reservation, made when the
/// old one has been released.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_host_reserve(
    host: *const vramfit_host,
    model: *const vramfit_model,
    settings_json: *const c_char,
    load_json: *const c_char,
    now_ms: u64,
    reserved: *mut *mut vramfit_reserved,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    guard(error, || {
        let out = Out::new(reserved, "reserved")?;
        let host = handle(host, "host")?;
        let model = handle(model, "model")?;
        let settings = settings(settings_json)?;
        let load = Load::read(load_json)?;
        out.hand_over(host.reserved(model, &settings, &load, now_ms)?);
        Ok(())
    })
}

/// The reservation's number, by which the ledger knows it, also after a restart. UINT64_MAX for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_reserved_id(reserved: *const vramfit_reserved) -> u64 {
    look(reserved, u64::MAX, |r| r.id)
}

/// The placement that it is for. Lives as long as `reserved`; not to be freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_reserved_placement(
    reserved: *const vramfit_reserved,
) -> *const vramfit_placement {
    look(reserved, ptr::null(), |r| &raw const r.placement)
}

/// What it holds of each GPU. Lives as long as `reserved`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_reserved_shares(
    reserved: *const vramfit_reserved,
    count: *mut usize,
) -> *const vramfit_share {
    array_of(reserved, count, |r| Some(&r.shares))
}

/// Reservations whose models have to be unloaded, and then released, before this one is loaded, as far as they are still
/// leaving then. NULL for none. Lives as long as `reserved`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_reserved_leaving(
    reserved: *const vramfit_reserved,
    count: *mut usize,
) -> *const u64 {
    array_of(reserved, count, |r| Some(&r.leaving))
}

/// The grant as JSON, with the record of why: every option, each rejection with its GPU and bytes, the GPUs before and
/// after. Lives as long as `reserved`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_reserved_json(reserved: *const vramfit_reserved) -> *const c_char {
    look(reserved, ptr::null(), |r| pointer(&r.json))
}

/// Frees the handle; the reservation stays until `vramfit_host_release`. NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_reserved_free(reserved: *mut vramfit_reserved) {
    free(reserved);
}

/// The engine has loaded it and took `shares`; NULL with a count of 0 says that it took what was reserved.
/// An array of 0 is refused: an engine that took nothing holds no reservation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_host_commit(
    host: *const vramfit_host,
    id: u64,
    shares: *const vramfit_share,
    count: usize,
    now_ms: u64,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    guard(error, || {
        let host = handle(host, "host")?;
        let id = ReservationId(id);
        if count == 0 && !shares.is_null() {
            let why = "shares: an array of 0; NULL says that it took what was reserved";
            return Err(Failure::argument(why));
        }
        let shares = match values(shares, count, "shares")? {
            [] => {
                let state = host.host.ledger().state()?;
                let held = state.reservation(id).map(|r| r.shares.clone());
                held.ok_or_else(|| ledger::Error::UnknownReservation(id))?
            }
            shares => host.shares(shares)?,
        };
        host.host.commit(id, &shares, now_ms)?;
        Ok(())
    })
}

/// Closes the ledger; a journal keeps it. NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_host_free(host: *mut vramfit_host) {
    free(host);
}
