//! What happens to the ledger of a host but for reserving and committing.

use std::ffi::c_char;

use serde::Deserialize;
use serde_json::json;
use vramfit::ledger::{Adopt, GpuId, Held, State};
use vramfit::settings::objects::objects;
use vramfit::{ReservationId, Share};

use crate::error::{Failure, free, guard, vramfit_error, vramfit_status};
use crate::host::{lease, vramfit_host, vramfit_share};
use crate::text::{Out, handle, object_in, set, text, text_or_null, values, write_json};

/// The ledger as it was at one moment: taken before the driver is asked, it says what was loaded then.
pub struct vramfit_mark {
    state: State,
    host: u64,
}

/// `held_json`: GPUs by index, or by their names in the ledger.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reported {
    id: u64,
    #[serde(deserialize_with = "objects")]
    shares: Vec<ReportedShare>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReportedShare {
    gpu: ReportedGpu,
    bytes: u64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ReportedGpu {
    Index(usize),
    Id(GpuId),
}

/// `loaded_json`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Loaded {
    model: String,
    holder: String,
    #[serde(default)]
    lease_ms: Option<u64>,
    #[serde(default)]
    stays: bool,
    #[serde(default)]
    key: Option<String>,
}

impl Loaded {
    fn read(json: *const c_char, shares: Vec<Share>) -> Result<Adopt, Failure> {
        let loaded: Loaded = object_in(json, "loaded_json")?;
        let mut found = Adopt::new(loaded.model, loaded.holder, shares);
        found.lease_ms = lease("loaded_json", loaded.lease_ms)?;
        found.stays = loaded.stays;
        found.key = loaded.key.map(Into::into);
        Ok(found)
    }
}

impl Reported {
    fn held(&self, host: &vramfit_host) -> Result<Held, Failure> {
        let share = |share: &ReportedShare| match &share.gpu {
            ReportedGpu::Index(i) => Ok(host.host.shares(&[(*i, share.bytes)])?),
            ReportedGpu::Id(gpu) => Ok(vec![Share::new(gpu.clone(), share.bytes)?]),
        };
        let shares = self.shares.iter().map(share);
        let shares = shares.collect::<Result<Vec<_>, Failure>>()?;
        Ok(Held {
            id: ReservationId(self.id),
            shares: shares.concat(),
        })
    }
}

/// A call on a host.
fn on(
    host: *const vramfit_host,
    error: *mut *mut vramfit_error,
    work: impl FnOnce(&vramfit_host) -> Result<(), Failure>,
) -> vramfit_status {
    guard(error, || work(handle(host, "host")?))
}

/// The holder is alive: its lease begins anew.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_host_renew(
    host: *const vramfit_host,
    id: u64,
    now_ms: u64,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    on(host, error, |h| {
        Ok(h.host.renew(ReservationId(id), now_ms)?)
    })
}

/// The engine has unloaded it, or has never loaded it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_host_release(
    host: *const vramfit_host,
    id: u64,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    on(host, error, |h| Ok(h.host.release(ReservationId(id))?))
}

/// A request to the loaded model begins: until it ends, the model is not evicted.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_host_begin_request(
    host: *const vramfit_host,
    id: u64,
    now_ms: u64,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    on(host, error, |h| {
        Ok(h.host.ledger().begin_request(ReservationId(id), now_ms)?)
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
    on(host, error, |h| {
        Ok(h.host.ledger().end_request(ReservationId(id), now_ms)?)
    })
}

/// Marks the ledger as it is now: to be taken before the driver is asked what is free, for `vramfit_host_observe` and
/// `vramfit_host_reap`. Free it with `vramfit_mark_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_host_mark(
    host: *const vramfit_host,
    mark: *mut *mut vramfit_mark,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    on(host, error, |h| {
        let out = Out::new(mark, "mark")?;
        let state = h.host.ledger().state()?;
        let host = h.number;
        out.hand_over(vramfit_mark { state, host });
        Ok(())
    })
}

/// Frees a mark. NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_mark_free(mark: *mut vramfit_mark) {
    free(mark);
}

/// The ledger when the driver was asked: at `mark`, or with NULL just now.
fn before(host: &vramfit_host, mark: *const vramfit_mark) -> Result<State, Failure> {
    match mark.is_null() {
        true => Ok(host.host.ledger().state()?),
        false => match handle(mark, "mark")? {
            mark if mark.host == host.number => Ok(mark.state.clone()),
            _ => Err(Failure::argument("mark is another host's")),
        },
    }
}

/// What the driver says is free of each GPU, in their order: never more than that is promised from now on, and what is
/// released later is promised on with the next figures: observe again behind a release. The figures are of any moment
/// since `mark`; NULL says that nothing was committed or released since the driver was asked. `count` is that of the
/// host's GPUs; a list of another length changes nothing.
/// Answers come in the order of their questions: ask one at a time, or leave the older one.
/// An engine may unload without a word, and load again: what others hold is remembered, see "stays" of
/// `vramfit_host_reserve`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_host_observe(
    host: *const vramfit_host,
    mark: *const vramfit_mark,
    free_bytes: *const u64,
    count: usize,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    on(host, error, |h| {
        let free_bytes = values(free_bytes, count, "free_bytes")?;
        Ok(h.host.observe_since(&before(h, mark)?, free_bytes)?)
    })
}

/// What others hold of a GPU, from who knows, such as an operator or NVML's figures of processes: it takes the place of
/// what they are believed to hold, so that what they left beside an engine that may sleep is free at once. What the
/// driver's last figure shows beside reservations counts as taken all the same, until the next. Without a figure it
/// says nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_host_others_hold(
    host: *const vramfit_host,
    gpu: u32,
    bytes: u64,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    on(host, error, |h| {
        let gpu = h.host.id(gpu as usize)?;
        Ok(h.host.ledger().others_hold(gpu, bytes)?)
    })
}

/// The driver says no more of a GPU: what it said last does not count any longer, and all that models may take of it is
/// there to be promised.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_host_forget_figure(
    host: *const vramfit_host,
    gpu: u32,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    on(host, error, |h| {
        let gpu = h.host.id(gpu as usize)?;
        Ok(h.host.ledger().forget_figure(gpu)?)
    })
}

/// Drops reservations whose lease has run out, together with what the driver says is free of each GPU, as for
/// `vramfit_host_observe`: what an orphaned engine still holds then counts as taken by others. `reaped_json` may be
/// NULL; else it is an object with `released` and `unprobed`, to be freed with `vramfit_string_free`.
///
/// A lease runs out where its holder had time to renew it. Where nothing has told the host the time for a quarter of the
/// lease (it was not open, or its process stopped) or its journal failed, the lease begins anew, three times in a row at
/// most: call this, or `vramfit_host_expire`, several times in the shortest lease.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_host_reap(
    host: *const vramfit_host,
    mark: *const vramfit_mark,
    free_bytes: *const u64,
    count: usize,
    now_ms: u64,
    reaped_json: *mut *mut c_char,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    on(host, error, |h| {
        let probes = h.host.probes(values(free_bytes, count, "free_bytes")?)?;
        let before = before(h, mark)?;
        let reaped = h.host.ledger().reap_since(&before, &probes, &[], now_ms)?;
        write_json(reaped_json, "reaped_json", &reaped)
    })
}

/// As `vramfit_host_reap` where no driver can be asked: what a dead holder's engine still holds is not known then, and
/// is promised on (but for what earlier figures of its GPU leave). `released_json` may be NULL; else it is an array of
/// what was dropped, to be freed with `vramfit_string_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_host_expire(
    host: *const vramfit_host,
    now_ms: u64,
    released_json: *mut *mut c_char,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    on(host, error, |h| {
        let released = h.host.ledger().expire(now_ms)?;
        write_json(released_json, "released_json", &released)
    })
}

/// Every GPU with more promised on it than it has, as a JSON array, and how many there are: none, unless sizes were
/// taken over as facts or a GPU has gone. `violations_json` may be NULL; else free it with `vramfit_string_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_host_audit(
    host: *const vramfit_host,
    count: *mut usize,
    violations_json: *mut *mut c_char,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    set(count, 0);
    on(host, error, |h| {
        let violations = h.host.ledger().audit()?;
        write_json(violations_json, "violations_json", &violations)?;
        set(count, violations.len());
        Ok(())
    })
}

/// The ledger as of now, as a JSON object: `gpus` with what is reserved, leaving, foreign, missing (loaded by the
/// ledger, but not by the driver if others hold what is foreign), unconfirmed (released since the driver was asked) and
/// free on each, and `reservations`. Free it with `vramfit_string_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_host_state_json(
    host: *const vramfit_host,
    state_json: *mut *mut c_char,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    on(host, error, |h| {
        let out = Out::new(state_json, "state_json")?;
        let state = h.host.ledger().state()?;
        let reservations: Vec<_> = state.reservations().collect();
        let json = json!({ "gpus": state.gpus(), "reservations": reservations });
        out.hand_over_text(json.to_string());
        Ok(())
    })
}

/// Something that is already loaded, as when a server starts beside running engines. A fact: it is not checked, and the
/// audit shows where it is too much. `loaded_json` says what and whose: {"model": "qwen3:8b", "holder": "loader-1"},
/// and where wanted "lease_ms", "stays" and "key", all as for `vramfit_host_reserve`. Figures of before it count it as
/// taken by others, too: observe again behind it. `id` is UINT64_MAX where it is refused.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_host_adopt(
    host: *const vramfit_host,
    loaded_json: *const c_char,
    shares: *const vramfit_share,
    count: usize,
    now_ms: u64,
    id: *mut u64,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    set(id, u64::MAX);
    on(host, error, |h| {
        let shares = h.shares(values(shares, count, "shares")?)?;
        let found = Loaded::read(loaded_json, shares)?;
        set(id, h.host.ledger().adopt(&found, now_ms)?.0);
        Ok(())
    })
}

/// What a holder's engine says it holds, as a JSON array of {"id": 7, "shares": [{"gpu": 0, "bytes": 1}]}, GPUs by
/// index or, as in `vramfit_host_state_json`, as {"host": "..", "gpu": ".."}; NULL for nothing. How that differs goes
/// to `differences_json` (which may be NULL): an object with `resized` (taken over), `unknown` and `missing`, to be
/// freed with `vramfit_string_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vramfit_host_reconcile(
    host: *const vramfit_host,
    holder: *const c_char,
    held_json: *const c_char,
    differences_json: *mut *mut c_char,
    error: *mut *mut vramfit_error,
) -> vramfit_status {
    on(host, error, |h| {
        let holder = text(holder, "holder")?.into();
        let held = text_or_null(held_json, "held_json")?.unwrap_or("[]");
        let mut json = serde_json::Deserializer::from_str(held);
        let held = objects(&mut json).and_then(|held: Vec<Reported>| json.end().map(|()| held));
        let held = held.map_err(|error| Failure::argument(format!("held_json: {error}")))?;
        let held = held.iter().map(|reported| reported.held(h));
        let held: Vec<Held> = held.collect::<Result<_, _>>()?;
        let found = h.host.ledger().reconcile(&holder, &held)?;
        write_json(differences_json, "differences_json", &found)
    })
}
