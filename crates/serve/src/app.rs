//! The server: what its requests share, its start and its end.

use crate::accept;
use crate::api::GpuReport;
use crate::clock::Clock;
use crate::config::{Config, Limits, Token};
use crate::decisions::Decisions;
use crate::metrics::Metrics;
use crate::models::{Cache, Folders};
use crate::own::{self, Unknown};
use crate::problem::Problem;
use crate::routes;
use crate::watch::{Asked, watch};
use crate::work::{Workers, quick};
use axum::body::Bytes;
use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{OwnedMutexGuard, Semaphore};
use vramfit::ledger::{self, GpuId, GpuView, ReservationId, State, Store};
use vramfit::{GpuList, Host, Journal, Probe, Volatile};

/// Whichever store was asked for.
pub type AnyStore = Box<dyn Store + Send>;

/// What all requests share.
pub struct App {
    pub host: Host<AnyStore>,
    pub probe: Option<Arc<dyn Probe + Send + Sync>>,
    pub folders: Folders,
    pub cache: Cache,
    pub metrics: Metrics,
    pub clock: Clock,
    pub workers: Workers,
    pub requests: Semaphore,
    pub token: Option<Token>,
    pub limits: Limits,
    /// What the driver has said.
    pub asked: Asked,
    /// Held by who asks the driver.
    pub confirming: Mutex<()>,
    /// Why the last requests were answered as they were.
    pub decisions: Decisions,
    /// Answers to requests with an Idempotency-Key, as long as their reservations are held.
    keys: Mutex<HashMap<String, Kept>>,
    /// Requests with an Idempotency-Key that are under way: one at a time under each.
    turns: Mutex<HashMap<String, Weak<Turns>>>,
}

type Turns = tokio::sync::Mutex<()>;

/// Of a request with an Idempotency-Key, until it is dropped.
pub type Turn = OwnedMutexGuard<()>;

/// An answer that is given again.
#[derive(Clone)]
pub struct Kept {
    /// What was asked.
    pub asked: Bytes,
    /// What was reserved.
    pub id: ReservationId,
    /// The answer.
    pub answer: Bytes,
}

/// Why a server does not start. Displays on one line and says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// An address that others can reach, and no token.
    #[error(
        "{0} can be reached from elsewhere: give a token (--token-file), or listen on 127.0.0.1 or [::1]"
    )]
    NoToken(SocketAddr),
    /// The address cannot be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// The system's words.
        source: std::io::Error,
    },
    /// A folder of models that is not there.
    #[error("--models {}: {source}", vramfit::report::one_line(&path.to_string_lossy()))]
    Models {
        /// Which.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// No GPU to promise.
    #[error("there is no GPU to keep a ledger of: name them with --gpus")]
    NoGpus,
    /// The driver did not say what is free.
    #[error("{0}")]
    Probe(String),
    /// The ledger cannot be opened.
    #[error("--ledger: {0}")]
    Ledger(#[from] vramfit::Error),
    /// The ledger has promised what the server would promise again.
    #[error("--ledger: {0}")]
    Unknown(Unknown),
}

/// Does `work`, such as [`Server::run`], on threads of its own. What still computes or waits for a driver when that is
/// done is left behind after `limit`: nobody is told what comes of it, and a journal is whole at any moment.
pub fn on_threads<T>(limit: Duration, work: impl Future<Output = T>) -> std::io::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let done = runtime.block_on(work);
    runtime.shutdown_timeout(limit);
    Ok(done)
}

/// A server that listens and does not answer yet.
pub struct Server {
    pub(crate) app: Arc<App>,
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Opens the ledger and the port.
    pub async fn bind(config: Config) -> Result<Server, StartError> {
        if !config.listen.ip().is_loopback() && config.token.is_none() {
            return Err(StartError::NoToken(config.listen));
        }
        let folders = Folders::new(&config.models);
        let folders = folders.map_err(|(path, source)| StartError::Models { path, source })?;
        if config.gpus.devices.is_empty() {
            return Err(StartError::NoGpus);
        }
        let mut store: AnyStore = match &config.ledger {
            None => Box::new(Volatile),
            Some(path) => {
                let journal = Journal::open(path).map_err(ledger::Error::from);
                Box::new(journal.map_err(vramfit::Error::from)?)
            }
        };
        let n = config.gpus.devices.len();
        let ids = config
            .gpu_ids
            .unwrap_or_else(|| (0..n).map(GpuList::id).collect());
        // Before it is said in the ledger which GPUs there are.
        let unknown = own::check(&mut store, &config.host_name, &ids);
        if let Some(unknown) = unknown.map_err(|e| vramfit::Error::from(ledger::Error::from(e)))? {
            return Err(StartError::Unknown(unknown));
        }
        let host = match config.probe {
            // It is asked below.
            Some(_) => Host::unobserved(store, config.host_name, config.gpus, ids)?,
            None => Host::with_ids(store, config.host_name, config.gpus, ids)?,
        };
        let failed = |source| StartError::Listen {
            address: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let limits = config.limits;
        let app = App {
            host,
            probe: config.probe,
            folders,
            cache: Cache::default(),
            metrics: Metrics::default(),
            clock: Clock::default(),
            workers: Workers::new(limits.workers, limits.wait),
            requests: Semaphore::new(limits.requests),
            token: config.token,
            limits,
            asked: Asked::default(),
            confirming: Mutex::default(),
            decisions: Decisions::default(),
            keys: Mutex::default(),
            turns: Mutex::default(),
        };
        let app = Arc::new(app);
        let asked = Arc::clone(&app);
        // Before the first promise.
        quick(move || asked.look_after(true))
            .await
            .map_err(|problem| StartError::Probe(problem.detail))?;
        Ok(Server {
            app,
            listener,
            address,
        })
    }

    /// Where it listens: with the port that the system chose, if it was to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop`, then finishes what is under way.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let watch = tokio::spawn(watch(Arc::clone(&self.app)));
        let router = routes::router(Arc::clone(&self.app));
        accept::serve(self.listener, router, &self.app.limits, stop).await;
        watch.abort();
    }
}

impl App {
    fn keys(&self) -> MutexGuard<'_, HashMap<String, Kept>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When those that came before under this key have their answers.
    pub async fn turn_of(&self, key: Option<&str>) -> Result<Option<Turn>, Problem> {
        let Some(key) = key else {
            return Ok(None);
        };
        let turn = self.turns_of(key).lock_owned();
        let turn = tokio::time::timeout(self.limits.wait, turn).await;
        let busy = |_| Problem::busy("another with this Idempotency-Key has no answer yet");
        turn.map(Some).map_err(busy)
    }

    fn turns_of(&self, key: &str) -> Arc<Turns> {
        let mut all = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turns) = all.get(key).and_then(Weak::upgrade) {
            return turns;
        }
        all.retain(|_, turns| turns.strong_count() > 0);
        let turns = Arc::new(Turns::default());
        all.insert(key.to_string(), Arc::downgrade(&turns));
        turns
    }

    /// What was answered to this key, if that is still so.
    pub fn answered(&self, key: &str) -> Result<Option<Kept>, Problem> {
        let Some(kept) = self.keys().get(key).cloned() else {
            return Ok(None);
        };
        let state = self.host.ledger().state()?;
        let is_held = state
            .reservation(kept.id)
            .is_some_and(|r| r.key.as_ref().is_some_and(|k| k.as_str() == key));
        Ok(Some(kept).filter(|_| is_held))
    }

    /// Keeps an answer; those of reservations that are no longer held are dropped.
    pub fn keep(&self, key: String, kept: Kept) -> Result<(), Problem> {
        // In this order: a reservation made after the state was looked at would seem to be gone.
        let mut keys = self.keys();
        let state = self.host.ledger().state()?;
        keys.insert(key, kept);
        keys.retain(|_, kept| state.reservation(kept.id).is_some());
        Ok(())
    }

    /// The server's GPUs, in CUDA's order.
    pub fn gpu_reports(&self, state: &State) -> Vec<GpuReport> {
        let views = state.gpus();
        let gpus = self
            .host
            .ids()
            .iter()
            .zip(&self.host.gpus().devices)
            .enumerate();
        let report = |(i, (id, device)): (usize, (&GpuId, &vramfit::Device))| {
            let view = views.iter().find(|view| view.gpu == *id);
            let of = |bytes: fn(&GpuView) -> u64| view.map_or(0, bytes);
            GpuReport {
                cuda: GpuList::id(i),
                gpu: id.gpu().to_string(),
                name: device.name.clone(),
                compute_capability: device.compute_capability.to_string(),
                sm_count: device.sm_count,
                total_bytes: device.total_bytes,
                capacity_bytes: of(|view| view.capacity_bytes),
                reserved_bytes: of(|view| view.reserved_bytes),
                leaving_bytes: of(|view| view.leaving_bytes),
                foreign_bytes: of(|view| view.foreign_bytes),
                missing_bytes: of(|view| view.missing_bytes),
                unconfirmed_bytes: of(|view| view.unconfirmed_bytes),
                free_bytes: of(|view| view.free_bytes),
                free_known: self.is_free_known(id),
            }
        };
        gpus.map(report).collect()
    }
}
