//! Hosts: GPUs and the ledger over them.

use std::ffi::{CString, c_char};
use std::ptr;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;
use vramfit::ledger::{self, Held, Store};
use vramfit::{
    Answer, GpuList, Host, Journal, LoadRequest, ReservationId, Reserved, Share, Stale, Volatile,
};

use crate::error::{Failure, free, guard, look, vramfit_error, vramfit_status};
use crate::gpus::vramfit_gpus;
use crate::model::vramfit_model;
use crate::placement::{settings, vramfit_placement};
use crate::text::{Out, array, c_string, handle, path, pointer, set, text, text_or_null, values};
use crate::unclaimed::Unclaimed;

/// The GPUs of one host and the ledger over them. Every call is atomic: what is reserved is promised to nobody else,
/// whichever thread asks.
pub struct vramfit_host {
    host: Host<Box<dyn Store + Send>>,
}

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
    #[serde(default)]
    stale: Option<LoadStale>,
    #[serde(default)]
    partial: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LoadStale {
    idle_ms: u64,
    start_ms: u64,
}

impl Load {
    fn read(json: *const c_char) -> Result<LoadRequest, Failure> {
        let json = text(json, "load_json")?;
        let load: Load = serde_json::from_str(json)
            .map_err(|error| Failure::argument(format!("load_json: {error}")))?;
        if load.lease_ms == Some(0) {
            let why = "load_json: lease_ms: a lease of 0 has run out before it begins";
            return Err(Failure::argument(why));
        }
        let mut request = LoadRequest::new(load.model, load.holder);
        request.stale = load.stale.map(|s| Stale::after(s.idle_ms, s.start_ms));
        request.lease_ms = load.lease_ms;
        request.partial = load.partial;
        Ok(request)
    }
}

impl vramfit_host {
    fn index(&self, gpu: &ledger::GpuId) -> Option<u32> {
        let at = self.host.ids().iter().position(|id| id == gpu)?;
        u32::try_from(at).ok()
    }

    fn shares(&self, shares: &[vramfit_share]) -> Result<Vec<Share>, Failure> {
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

/// Opens the ledger over the GPUs of host `name`. What is free on them in the list is what models may take of them in
/// all. `gpu_ids` has a name for each, such as its UUID, by which it is known after a restart; NULL takes CUDA0, CUDA1
/// and so on. The ledger is kept in the file `journal_path`, which survives a crash and belongs to one process at a
/// time; NULL keeps it in memory.
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
            true => (0..gpus.devices.len()).map(GpuList::id).collect(),
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
        out.hand_over(vramfit_host { host });
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

/// What the driver says is free of each GPU, in their order: never more than that is promised from now on. `count` is
/// that of the host's GPUs; a list of another length changes nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_host_observe(
    host: *const vramfit_host,
    free_bytes: *const u64,
    count: usize,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    guard(error, || {
        let host = &handle(host, "host")?.host;
        host.observe(values(free_bytes, count, "free_bytes")?)?;
        Ok(())
    })
}

/// Finds a placement of `model` on what is free by the ledger and reserves what it takes, in one step. `settings_json` is
/// that of `vramfit_plan`. `load_json` says who asks: {"model": "qwen3:8b", "holder": "loader-1"}, and where wanted
/// "lease_ms" (a lease to renew at least this often), "stale": {"idle_ms", "start_ms"} (which reservations may be
/// evicted) and "partial": true (layers or experts on the host will do, too). Times are milliseconds of one clock that
/// all holders share.
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
    set(count, 0);
    look(reserved, ptr::null(), |r| array(&r.shares, count))
}

/// Reservations whose models have to be unloaded, and then released, before this one is loaded. NULL for none. Lives as
/// long as `reserved`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_reserved_leaving(
    reserved: *const vramfit_reserved,
    count: *mut usize,
) -> *const u64 {
    set(count, 0);
    look(reserved, ptr::null(), |r| array(&r.leaving, count))
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

/// The holder is alive: its lease begins anew.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_host_renew(
    host: *const vramfit_host,
    id: u64,
    now_ms: u64,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    guard(error, || {
        Ok(handle(host, "host")?
            .host
            .renew(ReservationId(id), now_ms)?)
    })
}

/// The engine has unloaded it, or has never loaded it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_host_release(
    host: *const vramfit_host,
    id: u64,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    guard(error, || {
        Ok(handle(host, "host")?.host.release(ReservationId(id))?)
    })
}

/// A request to the loaded model begins: until it ends, the model is not evicted.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_host_begin_request(
    host: *const vramfit_host,
    id: u64,
    now_ms: u64,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    guard(error, || {
        let ledger = handle(host, "host")?.host.ledger();
        let begun = ledger.begin_request(ReservationId(id), now_ms);
        Ok(begun?)
    })
}

/// A request ends.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_host_end_request(
    host: *const vramfit_host,
    id: u64,
    now_ms: u64,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    guard(error, || {
        let ledger = handle(host, "host")?.host.ledger();
        let ended = ledger.end_request(ReservationId(id), now_ms);
        Ok(ended?)
    })
}

/// Every GPU with more promised on it than it has, as a JSON array, and how many there are: none, unless sizes were taken
/// over as facts or a GPU has gone. `violations_json` may be NULL; else free it with `vramfit_string_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_host_audit(
    host: *const vramfit_host,
    count: *mut usize,
    violations_json: *mut *mut c_char,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    guard(error, || {
        set(count, 0);
        let ledger = handle(host, "host")?.host.ledger();
        let violations = ledger.audit()?;
        if !violations_json.is_null() {
            let out = Out::new(violations_json, "violations_json")?;
            out.hand_over_text(serde_json::to_string(&violations)?);
        }
        set(count, violations.len());
        Ok(())
    })
}

/// The ledger as of now, as a JSON object: `gpus` with what is reserved, leaving, foreign and free on each, and
/// `reservations`. Free it with `vramfit_string_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_host_state_json(
    host: *const vramfit_host,
    state_json: *mut *mut c_char,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    guard(error, || {
        let out = Out::new(state_json, "state_json")?;
        let ledger = handle(host, "host")?.host.ledger();
        let state = ledger.state()?;
        let reservations: Vec<_> = state.reservations().collect();
        let json = json!({ "gpus": state.gpus(), "reservations": reservations });
        out.hand_over_text(json.to_string());
        Ok(())
    })
}

/// Drops reservations whose lease has run out, together with what the driver says is free of each GPU, taken just before:
/// what an orphaned engine still holds then counts as taken by others. `count` is that of the host's GPUs; a list of
/// another length changes nothing. `reaped_json` may be NULL; else it is an object with `released` and `unprobed`, to be
/// freed with `vramfit_string_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_host_reap(
    host: *const vramfit_host,
    free_bytes: *const u64,
    count: usize,
    now_ms: u64,
    reaped_json: *mut *mut c_char,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    guard(error, || {
        let host = &handle(host, "host")?.host;
        let probes = host.probes(values(free_bytes, count, "free_bytes")?)?;
        let reaped = host.ledger().reap(&probes, now_ms);
        let reaped = reaped?;
        if !reaped_json.is_null() {
            let out = Out::new(reaped_json, "reaped_json")?;
            out.hand_over_text(serde_json::to_string(&reaped)?);
        }
        Ok(())
    })
}

/// Something that is already loaded, as when a server starts beside running engines. A fact: it is not checked, and the
/// audit shows where it is too much.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_host_adopt(
    host: *const vramfit_host,
    model_name: *const c_char,
    holder: *const c_char,
    shares: *const vramfit_share,
    count: usize,
    now_ms: u64,
    id: *mut u64,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    guard(error, || {
        set(id, 0);
        let host = handle(host, "host")?;
        let model = text(model_name, "model_name")?.into();
        let holder = text(holder, "holder")?.into();
        let shares = host.shares(values(shares, count, "shares")?)?;
        let adopted = host.host.ledger().adopt(&model, &holder, &shares, now_ms);
        set(id, adopted?.0);
        Ok(())
    })
}

/// What a holder's engine says it holds, as a JSON array of {"id": 7, "shares": [{"gpu": {"host": "..", "gpu": ".."},
/// "bytes": 1}]}; NULL for nothing. How that differs goes to `differences_json` (which may be NULL): an object with
/// `resized` (taken over), `unknown` and `missing`, to be freed with `vramfit_string_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_host_reconcile(
    host: *const vramfit_host,
    holder: *const c_char,
    held_json: *const c_char,
    differences_json: *mut *mut c_char,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    guard(error, || {
        let ledger = handle(host, "host")?.host.ledger();
        let holder = text(holder, "holder")?.into();
        let held = text_or_null(held_json, "held_json")?.unwrap_or("[]");
        let held: Vec<Held> = serde_json::from_str(held)
            .map_err(|error| Failure::argument(format!("held_json: {error}")))?;
        let found = ledger.reconcile(&holder, &held);
        let found = found?;
        if !differences_json.is_null() {
            let out = Out::new(differences_json, "differences_json")?;
            out.hand_over_text(serde_json::to_string(&found)?);
        }
        Ok(())
    })
}

/// Closes the ledger; a journal keeps it. NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_host_free(host: *mut vramfit_host) {
    free(host);
}
