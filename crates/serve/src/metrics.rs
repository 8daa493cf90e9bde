//! What Prometheus reads.

use crate::app::App;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use vramfit::ledger::{GpuView, State};

/// The media type of OpenMetrics text.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Bytes = Gauge<u64, AtomicU64>;
/// A figure of each GPU, and where it is shown.
type OfGpus = (fn(&GpuView) -> u64, Family<Gpu, Bytes>);

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Answered {
    route: String,
    method: &'static str,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Route {
    route: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Gpu {
    gpu: String,
}

/// Seconds: from half a millisecond to what a question of many tokens or GPUs may take.
const BUCKETS: [f64; 16] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// Everything that is counted.
pub struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<Answered, Counter>,
    seconds: Family<Route, Histogram>,
    models_read: Counter,
    models_kept: Counter,
    answers_kept: Counter,
    expired: Counter,
    probes_failed: Counter,
    /// Of GPUs of which the driver has said it.
    probe_ages: Family<Gpu, Bytes>,
    gpus: [OfGpus; 7],
    reservations: Bytes,
    violations: Bytes,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let mut metrics = Metrics {
            registry: Mutex::default(),
            requests: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            models_read: Counter::default(),
            models_kept: Counter::default(),
            answers_kept: Counter::default(),
            expired: Counter::default(),
            probes_failed: Counter::default(),
            probe_ages: Family::default(),
            gpus: [
                (|view| view.capacity_bytes, Family::default()),
                (|view| view.reserved_bytes, Family::default()),
                (|view| view.leaving_bytes, Family::default()),
                (|view| view.foreign_bytes, Family::default()),
                (|view| view.missing_bytes, Family::default()),
                (|view| view.unconfirmed_bytes, Family::default()),
                (|view| view.free_bytes, Family::default()),
            ],
            reservations: Gauge::default(),
            violations: Gauge::default(),
        };
        let mut registry = Registry::with_prefix("vramfit");
        registry.register(
            "http_requests",
            "Requests answered; 499 where the client had gone before",
            metrics.requests.clone(),
        );
        let help = "From the headers read to the answer ready, or the client gone";
        let seconds = metrics.seconds.clone();
        registry.register_with_unit("http_request_duration", help, Unit::Seconds, seconds);
        for (name, help, counter) in [
            (
                "models_read",
                "Headers of models read",
                &metrics.models_read,
            ),
            (
                "models_cached",
                "Headers of models that were there",
                &metrics.models_kept,
            ),
            (
                "answers_cached",
                "Estimates that were there",
                &metrics.answers_kept,
            ),
            (
                "reservations_expired",
                "Leases that ran out",
                &metrics.expired,
            ),
            (
                "probes_failed",
                "Times that the driver did not say what is free",
                &metrics.probes_failed,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        let names = [
            ("gpu_capacity", "What models may take of a GPU"),
            ("gpu_reserved", "Promised to reservations that start or run"),
            ("gpu_leaving", "Held until what is to leave has left"),
            ("gpu_foreign", "Taken by what is not in the ledger"),
            ("gpu_missing", "Loaded by the ledger, but not by the driver"),
            ("gpu_unconfirmed", "Released since the driver was asked"),
            ("gpu_free", "What can be promised"),
        ];
        for ((name, help), (_, family)) in names.into_iter().zip(&metrics.gpus) {
            registry.register_with_unit(name, help, Unit::Bytes, family.clone());
        }
        let help = "Since the driver last said what is free of a GPU";
        let ages = metrics.probe_ages.clone();
        registry.register_with_unit("gpu_probe_age", help, Unit::Seconds, ages);
        let (held, over) = (metrics.reservations.clone(), metrics.violations.clone());
        registry.register("reservations", "Reservations held", held);
        registry.register(
            "over_committed_gpus",
            "GPUs with more on them than they have",
            over,
        );
        metrics.registry = Mutex::new(registry);
        metrics
    }
}

impl Metrics {
    /// A request was answered, or its client has gone.
    pub fn answered(&self, route: String, method: &'static str, status: u16, took: Duration) {
        let of_route = Route {
            route: route.clone(),
        };
        self.seconds
            .get_or_create(&of_route)
            .observe(took.as_secs_f64());
        let answered = Answered {
            route,
            method,
            status,
        };
        self.requests.get_or_create(&answered).inc();
    }

    /// Leases ran out.
    pub fn expired(&self, n: usize) {
        self.expired.inc_by(u64::try_from(n).unwrap_or(u64::MAX));
    }

    /// The driver did not answer.
    pub fn probe_failed(&self) {
        self.probes_failed.inc();
    }

    /// All of it, with the ledger as of now.
    pub fn text(&self, app: &App, state: &State) -> Result<String, std::fmt::Error> {
        for (counter, now) in [
            (&self.models_read, &app.cache.read),
            (&self.models_kept, &app.cache.kept),
            (&self.answers_kept, &app.cache.answered),
        ] {
            let now = now.load(Ordering::Relaxed);
            counter.inner().fetch_max(now, Ordering::Relaxed);
        }
        // A journal may know GPUs of a host that went by another name, too.
        let mut views = state.gpus();
        views.retain(|view| view.gpu.host() == app.host.name());
        for (value, family) in &self.gpus {
            for view in &views {
                let gpu = view.gpu.gpu().to_string();
                family.get_or_create(&Gpu { gpu }).set(value(view));
            }
        }
        for id in app.host.ids() {
            if let Some(age) = app.asked.age(id) {
                let gpu = id.gpu().to_string();
                self.probe_ages
                    .get_or_create(&Gpu { gpu })
                    .set(age.as_secs());
            }
        }
        let n = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        self.reservations.set(n(state.reservations().count()));
        self.violations.set(n(state.audit().len()));
        let mut out = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        text::encode(&mut out, &registry)?;
        Ok(out)
    }
}
