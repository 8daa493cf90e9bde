//! What clients send. Sizes are bytes; GPUs go by the server's names for them.

use crate::problem::Problem;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use vramfit::ledger::{self, Share};
use vramfit::settings::objects::{object, object_or_null, objects, objects_or_null};
use vramfit::{Settings, Stale};

/// Characters of a name.
const MAX_NAME: usize = 256;

/// What would a model take?
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EstimateRequest {
    /// The model's file below one of the server's folders; the first part of a split model.
    #[schemars(length(min = 1), example = &"qwen3-8b.gguf")]
    pub model: PathBuf,
    /// GPUs that need not be there, as `--gpus` takes them: `k80x2`, `24GiB`, `rtx3060:free=9GiB`, `none`. Left
    /// out, or `auto`: the server's own, as if nothing were on them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus: Option<String>,
    /// How it is to be run and where it may go.
    #[serde(default, deserialize_with = "object")]
    pub settings: Settings,
}

/// Where would it go now? Promises nothing.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanRequest {
    /// The model's file below one of the server's folders.
    #[schemars(length(min = 1), example = &"qwen3-8b.gguf")]
    pub model: PathBuf,
    /// How it is to be run and where it may go.
    #[serde(default, deserialize_with = "object")]
    pub settings: Settings,
}

/// A model to load.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReserveRequest {
    /// The model's file below one of the server's folders.
    #[schemars(length(min = 1), example = &"qwen3-8b.gguf")]
    pub model: PathBuf,
    /// How it is to be run and where it may go.
    #[serde(default, deserialize_with = "object")]
    pub settings: Settings,
    /// Who asks: whoever is to be looked for when the lease runs out. 1 to 256 characters.
    #[schemars(length(min = 1, max = 256), example = &"loader-1")]
    pub holder: String,
    /// What the ledger calls the model; if left out, its file's path below the folder that it is in, links followed,
    /// however `model` names it. Reservations of the same name are never evicted for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub name: Option<String>,
    /// Which reservations may be evicted for it; none if left out.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "object_or_null"
    )]
    pub evict: Option<Evict>,
    /// A lease to renew at least this often; without one the reservation stays until it is released. It begins anew by
    /// itself where the server was away or could not write its ledger, three times in a row at most, and is looked at
    /// twice a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub lease_ms: Option<u64>,
    /// A placement with layers or experts on the host will do, too.
    #[serde(default)]
    pub partial: bool,
    /// Its engine never unloads it by its own wish, as llama-server does with `--sleep-idle-seconds` alone: it stays
    /// loaded until it is evicted, or is unloaded and released at once. Unless that is said, memory that becomes free
    /// beside it may still be its, and is not promised on where others held it before. It is said once: an engine that
    /// is started again with other habits is another reservation, made when the old one has been released.
    #[serde(default)]
    pub stays: bool,
}

/// When a reservation may be evicted.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Evict {
    /// One that runs: without a request for longer than this.
    pub idle_ms: u64,
    /// One that has not started: reserved longer ago than this.
    pub start_ms: u64,
}

/// What the engine took.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CommitRequest {
    /// Bytes on each GPU as the engine says; left out, what was granted.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "objects_or_null"
    )]
    pub shares: Option<Vec<GpuBytes>>,
}

/// Bytes on a GPU.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GpuBytes {
    /// Which, by the server's name for it.
    #[schemars(length(min = 1, max = 256), example = &"CUDA0")]
    pub gpu: String,
    /// How many.
    #[schemars(range(min = 1))]
    pub bytes: u64,
}

impl From<&Share> for GpuBytes {
    fn from(share: &Share) -> GpuBytes {
        GpuBytes {
            gpu: share.gpu.gpu().to_string(),
            bytes: share.bytes.get(),
        }
    }
}

/// Something that is already loaded, as when the server starts beside running engines.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AdoptRequest {
    /// What the ledger is to call the model.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    /// Who holds it: whoever is to be looked for when the lease runs out. 1 to 256 characters.
    #[schemars(length(min = 1, max = 256), example = &"loader-1")]
    pub holder: String,
    /// Bytes on each GPU. A fact: it is not checked whether they fit, and `violations` shows where they do not.
    #[schemars(length(min = 1))]
    #[serde(deserialize_with = "objects")]
    pub shares: Vec<GpuBytes>,
    /// A lease to renew at least this often; without one the reservation stays until it is released. It begins anew by
    /// itself where the server was away or could not write its ledger, three times in a row at most, and is looked at
    /// twice a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub lease_ms: Option<u64>,
    /// Its engine never unloads it by its own wish, as llama-server does with `--sleep-idle-seconds` alone: it stays
    /// loaded until it is evicted, or is unloaded and released at once. Unless that is said, memory that becomes free
    /// beside it may still be its, and is not promised on where others held it before. It is said once: an engine that
    /// is started again with other habits is another reservation, made when the old one has been released.
    #[serde(default)]
    pub stays: bool,
}

/// What others hold of a GPU, from who knows.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OthersRequest {
    /// Which, by the server's name for it.
    #[schemars(length(min = 1, max = 256), example = &"CUDA0")]
    pub gpu: String,
    /// How many bytes; 0 where there are none.
    pub bytes: u64,
}

/// What a holder's engines say they hold.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReconcileRequest {
    /// Who.
    #[schemars(length(min = 1, max = 256), example = &"loader-1")]
    pub holder: String,
    /// Everything that it holds.
    #[serde(deserialize_with = "objects")]
    pub held: Vec<HeldBytes>,
}

/// What an engine says it holds.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HeldBytes {
    /// By the number of its reservation.
    pub id: u64,
    /// Bytes on each GPU.
    #[schemars(length(min = 1))]
    #[serde(deserialize_with = "objects")]
    pub shares: Vec<GpuBytes>,
}

/// A name of 1 to 256 characters on one line.
pub fn name(field: &str, text: &str) -> Result<(), Problem> {
    let n = text.chars().count();
    let is_line = !text.chars().any(char::is_control);
    match (1..=MAX_NAME).contains(&n) && is_line {
        true => Ok(()),
        false => Err(Problem::invalid(format!(
            "{field}: give 1 to {MAX_NAME} characters, none of them a control character"
        ))),
    }
}

impl ReserveRequest {
    /// What can be said of it before its model is looked for.
    pub fn check(&self) -> Result<(), Problem> {
        if let Some(given) = &self.name {
            name("name", given)?;
        }
        name("holder", &self.holder)?;
        lease(self.lease_ms)
    }

    /// As the ledger is asked, where the model's file is called `found`.
    pub fn load(&self, found: &str, key: Option<&str>) -> Result<vramfit::LoadRequest, Problem> {
        self.check()?;
        let model = self.name.as_deref().unwrap_or(found);
        name("name", model)?;
        let mut load = vramfit::LoadRequest::new(model, self.holder.as_str());
        load.stale = self
            .evict
            .map(|evict| Stale::after(evict.idle_ms, evict.start_ms));
        load.lease_ms = self.lease_ms;
        load.partial = self.partial;
        load.stays = self.stays;
        load.key = key.map(Into::into);
        Ok(load)
    }
}

fn lease(lease_ms: Option<u64>) -> Result<(), Problem> {
    match lease_ms {
        Some(0) => Err(Problem::invalid(
            "lease_ms: a lease of 0 has run out before it begins",
        )),
        _ => Ok(()),
    }
}

/// As the ledger of `host` knows them; a name that is empty is none, whether anybody looks for it or not.
pub fn on_host(host: &ledger::Name, shares: &[GpuBytes]) -> Result<Vec<Share>, Problem> {
    for share in shares {
        name("gpu", &share.gpu)?;
    }
    let share =
        |s: &GpuBytes| Share::new(ledger::GpuId::new(host.clone(), s.gpu.as_str()), s.bytes);
    Ok(shares.iter().map(share).collect::<Result<_, _>>()?)
}

impl AdoptRequest {
    /// As the ledger of `host` is told.
    pub fn found(&self, host: &ledger::Name, key: Option<&str>) -> Result<ledger::Adopt, Problem> {
        name("name", &self.name)?;
        name("holder", &self.holder)?;
        lease(self.lease_ms)?;
        let shares = on_host(host, &self.shares)?;
        let mut found = ledger::Adopt::new(self.name.as_str(), self.holder.as_str(), shares);
        found.lease_ms = self.lease_ms;
        found.stays = self.stays;
        found.key = key.map(Into::into);
        Ok(found)
    }
}

impl ReconcileRequest {
    /// As the ledger of `host` is told.
    pub fn held(&self, host: &ledger::Name) -> Result<Vec<ledger::Held>, Problem> {
        name("holder", &self.holder)?;
        let held = |held: &HeldBytes| {
            Ok(ledger::Held {
                id: ledger::ReservationId(held.id),
                shares: on_host(host, &held.shares)?,
            })
        };
        self.held.iter().map(held).collect()
    }
}
