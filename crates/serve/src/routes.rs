//! What is done with each request.

use crate::api::{
    CommitRequest, DeviceList, EstimateRequest, EvictionReport, GpuSums, Health, HolderReport,
    LedgerReport, LookedAt, PlanRequest, ReservationList, ReservationReport, ReserveRequest,
    ReservedReport, ViolationReport, name, on_host,
};
use crate::app::{App, Kept};
use crate::facts;
use crate::guard::{self, OPEN};
use crate::metrics::OPENMETRICS;
use crate::models::Question;
use crate::openapi;
use crate::problem::Problem;
use crate::wire::{Answer, answer, body, created, is_json, json, ok, parse, some_body};
use crate::work::{Length, quick};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::Response;
use axum::routing::{get, post};
use std::collections::BTreeMap;
use std::sync::Arc;
use vramfit::ledger::ReservationId;
use vramfit::{GpuList, Gpus, NoProbe, Placement, Resolved, document};

type Shared = State<Arc<App>>;

/// The header of a request that may be sent again.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Bytes of settings, at most, whose answer is kept.
const KEPT_QUESTION: usize = 4 << 10;

/// Every route.
pub fn router(app: Arc<App>) -> Router {
    let one = "/v1/reservations/{id}";
    Router::new()
        .route("/v1/estimate", post(estimate))
        .route("/v1/plan", post(plan))
        .route("/v1/reservations", get(list).post(reserve))
        .route(one, get(show).delete(release))
        .route(&format!("{one}/commit"), post(commit))
        .route(&format!("{one}/renew"), post(renew))
        .route(&format!("{one}/begin"), post(begin))
        .route(&format!("{one}/end"), post(end))
        .route("/v1/devices", get(devices))
        .route("/v1/ledger", get(ledger))
        .route("/v1/ledger/adopt", post(facts::adopt))
        .route("/v1/ledger/reconcile", post(facts::reconcile))
        .route("/v1/ledger/others", post(facts::others))
        .route("/v1/decisions", get(facts::decisions))
        .route(OPEN, get(health))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(described))
        .fallback(async || {
            Problem::not_found("no such path; GET /openapi.json lists what there is")
        })
        .method_not_allowed_fallback(async || {
            let why = "not by this method; GET /openapi.json lists what there is";
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method", why)
        })
        .layer(from_fn_with_state(Arc::clone(&app), guard::admit))
        .layer(from_fn_with_state(Arc::clone(&app), guard::count))
        .with_state(app)
}

async fn estimate(State(app): Shared, request: Request) -> Answer {
    let body = body(&app, request).await?;
    let asked: EstimateRequest = parse(&body)?;
    let gpus = asked_gpus(&app, &asked)?;
    let length = Length::of(&asked.settings, &gpus.devices);
    let shared = Arc::clone(&app);
    let found = move || estimated(&shared, asked, &gpus);
    Ok(answer(
        StatusCode::OK,
        app.workers.run(length, found, drop).await?,
    ))
}

/// GPUs that need not be there, or the server's own.
fn asked_gpus(app: &App, asked: &EstimateRequest) -> Result<GpuList, Problem> {
    match asked.gpus.as_deref().map(str::parse) {
        None | Some(Ok(Gpus::Auto)) => Ok(app.host.gpus().clone()),
        Some(Ok(Gpus::AutoPicked(_))) => {
            let why = "gpus: auto is all of the server's; settings.devices picks some of them";
            Err(Problem::invalid(why))
        }
        Some(Ok(gpus)) => Ok(gpus.resolve(&NoProbe).map_err(vramfit::Error::from)?),
        Some(Err(error)) => Err(Problem::invalid(format!("gpus: {error}"))),
    }
}

/// An estimate depends on the file, the GPUs and the settings alone: the same question has the same answer.
fn estimated(app: &App, mut asked: EstimateRequest, gpus: &GpuList) -> Result<Bytes, Problem> {
    let path = app.folders.find("model", &asked.model)?;
    let has_files = app.folders.find_beside(&mut asked.settings)?;
    let (stamp, model) = app.cache.model(&path)?;
    let rest = serde_json::to_string(&(&asked.gpus, &asked.settings));
    let question = rest
        .ok()
        .filter(|rest| !has_files && rest.len() <= KEPT_QUESTION)
        .map(|rest| Question {
            path: path.clone(),
            stamp,
            rest,
        });
    if let Some(kept) = question
        .as_ref()
        .and_then(|question| app.cache.answer(question))
    {
        return Ok(Bytes::from_owner(kept));
    }
    let found = vramfit::answer(&path, &model, gpus, &asked.settings)?;
    let text: Arc<[u8]> = Arc::from(&*json(&found.estimate)?);
    if let Some(question) = question {
        app.cache.keep(question, &text);
    }
    Ok(Bytes::from_owner(text))
}

async fn plan(State(app): Shared, request: Request) -> Answer {
    let body = body(&app, request).await?;
    let mut asked: PlanRequest = parse(&body)?;
    let length = Length::of(&asked.settings, &app.host.gpus().devices);
    let shared = Arc::clone(&app);
    let planned = move || {
        let path = shared.folders.find("model", &asked.model)?;
        shared.folders.find_beside(&mut asked.settings)?;
        let (_, model) = shared.cache.model(&path)?;
        let gpus = shared.host.gpus_now()?;
        json(&vramfit::answer(&path, &model, &gpus, &asked.settings)?.estimate)
    };
    Ok(answer(
        StatusCode::OK,
        app.workers.run(length, planned, drop).await?,
    ))
}

async fn reserve(State(app): Shared, headers: HeaderMap, request: Request) -> Answer {
    let key = idempotency_key(&headers)?;
    let body = body(&app, request).await?;
    let asked: ReserveRequest = parse(&body)?;
    asked.check()?;
    let turn = app.turn_of(key.as_deref()).await?;
    let length = Length::of(&asked.settings, &app.host.gpus().devices);
    let shared = Arc::clone(&app);
    let in_vain = Arc::clone(&app);
    let is_keyed = key.is_some();
    let reserved = app.workers.run(
        length,
        move || {
            let _turn = turn;
            let made = key.clone();
            once(&shared, key, body, || {
                reserved(&shared, asked, made.as_deref())
            })
        },
        move |unheard: Result<(ReservationId, Bytes), _>| {
            // The client has gone, and without a key it will never know the reservation's number.
            if let (Ok((id, _)), false) = (unheard, is_keyed) {
                let _ = in_vain.host.release(id);
            }
        },
    );
    let (id, text) = reserved.await?;
    Ok(created(id, text))
}

/// Makes a reservation and its answer; the same request under the same key gets the same answer. One at a time under a
/// key: [`App::turn_of`].
pub fn once(
    app: &App,
    key: Option<String>,
    asked: Bytes,
    make: impl FnOnce() -> Result<(ReservationId, Bytes), Problem>,
) -> Result<(ReservationId, Bytes), Problem> {
    let Some(key) = key else {
        return make();
    };
    if let Some(kept) = app.answered(&key)? {
        return given_again(kept, &asked);
    }
    let (id, answer) = make()?;
    let given = answer.clone();
    app.keep(key, Kept { asked, id, answer })?;
    Ok((id, given))
}

pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else {
        return Ok(None);
    };
    let text = value.to_str();
    let text = text.map_err(|_| Problem::bad("Idempotency-Key: visible ASCII characters only"))?;
    name("Idempotency-Key", text)?;
    Ok(Some(text.to_string()))
}

/// The same answer to the same request; another request under the same key is a mistake.
fn given_again(kept: Kept, asked: &[u8]) -> Result<(ReservationId, Bytes), Problem> {
    match kept.asked == asked {
        true => Ok((kept.id, kept.answer)),
        false => Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "key-reused",
            "this Idempotency-Key was used for another request, whose reservation is still held",
        )),
    }
}

fn reserved(
    app: &App,
    mut asked: ReserveRequest,
    key: Option<&str>,
) -> Result<(ReservationId, Bytes), Problem> {
    let path = app.folders.find("model", &asked.model)?;
    let load = &asked.load(&app.folders.name(&path), key)?;
    app.folders.find_beside(&mut asked.settings)?;
    let (_, model) = app.cache.model(&path)?;
    let resolved = asked.settings.resolve(&model, app.host.gpus())?;
    let (run, policy, now_ms) = (&resolved.run, &resolved.policy, app.clock.now_ms());
    let reserved = app.with_fresh_figures(|| {
        let reserved = app.host.reserve(&model, run, policy, load, now_ms);
        reserved.map_err(|error| (error.can_retry(), Problem::from(error)))
    });
    let reserved = match reserved {
        Ok(reserved) => reserved,
        Err(problem) => {
            let state = app.host.ledger().state()?;
            app.decisions.refused(load, now_ms, &problem, &state);
            return Err(problem);
        }
    };
    app.decisions.granted(load, &reserved.grant);
    let gpus = app.host.gpus_for(&reserved.grant);
    let report = report(
        app,
        &path,
        &model,
        &gpus,
        &resolved,
        &reserved.placement,
        &reserved.grant,
    );
    match report.and_then(|report| json(&report)) {
        Ok(text) => Ok((reserved.id(), text)),
        Err(problem) => {
            // What nobody is told of nobody holds.
            app.host.release(reserved.id())?;
            Err(problem)
        }
    }
}

fn report(
    app: &App,
    path: &std::path::Path,
    model: &vramfit::Model,
    gpus: &GpuList,
    resolved: &Resolved,
    placement: &Placement,
    grant: &vramfit::Grant,
) -> Result<ReservedReport, Problem> {
    let state = app.host.ledger().state()?;
    let gone = || Problem::not_found(format!("{} has been released", grant.id));
    Ok(ReservedReport {
        reservation: state.reservation(grant.id).ok_or_else(gone)?.into(),
        estimate: document(path, model, gpus, resolved, placement),
        evict: grant.evict.iter().map(EvictionReport::from).collect(),
        waits_for: grant.waits_for.iter().map(|id| id.0).collect(),
        options: grant.decision.options.iter().map(LookedAt::from).collect(),
        before: grant.decision.before.iter().map(GpuSums::from).collect(),
        after: grant.decision.after.iter().map(GpuSums::from).collect(),
    })
}

async fn list(State(app): Shared) -> Answer {
    let state = quick(move || Ok(app.host.ledger().state()?)).await?;
    ok(&ReservationList {
        reservations: state.reservations().map(ReservationReport::from).collect(),
    })
}

/// The number of a reservation in a path.
struct Number(ReservationId);

impl<S: Send + Sync> FromRequestParts<S> for Number {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Number, Problem> {
        let id = Path::<String>::from_request_parts(parts, state).await;
        let Path(id) = id.map_err(|rejection| Problem::bad(rejection.body_text()))?;
        let number = id.parse().map(|id| Number(ReservationId(id)));
        number.map_err(|_| Problem::bad(format!("'{id}' is not the number of a reservation")))
    }
}

pub fn shown(app: &App, id: ReservationId) -> Result<ReservationReport, Problem> {
    let state = app.host.ledger().state()?;
    let found = state.reservation(id).map(ReservationReport::from);
    found.ok_or_else(|| vramfit::ledger::Error::UnknownReservation(id).into())
}

async fn show(State(app): Shared, Number(id): Number) -> Answer {
    ok(&quick(move || shown(&app, id)).await?)
}

async fn commit(State(app): Shared, Number(id): Number, request: Request) -> Answer {
    let sent_as = is_json(request.headers());
    let body = some_body(&app, request).await?;
    let asked: CommitRequest = match body.is_empty() {
        true => CommitRequest::default(),
        false => {
            sent_as?;
            parse(&body)?
        }
    };
    let committed = quick(move || {
        let ledger = app.host.ledger();
        let state = ledger.state()?;
        let shares = match asked.shares {
            Some(shares) => on_host(app.host.name(), &shares)?,
            None => state
                .reservation(id)
                .map(|r| r.shares.clone())
                .unwrap_or_default(),
        };
        match state.reservation(id) {
            Some(_) => ledger.commit(id, &shares, app.clock.now_ms())?,
            None => return Err(vramfit::ledger::Error::UnknownReservation(id).into()),
        }
        app.asked.has_moved();
        shown(&app, id)
    });
    ok(&committed.await?)
}

/// Does something to a reservation and shows it.
async fn change(
    app: Arc<App>,
    id: ReservationId,
    change: impl FnOnce(&App, ReservationId, u64) -> Result<(), vramfit::ledger::Error> + Send + 'static,
) -> Answer {
    let changed = quick(move || {
        change(&app, id, app.clock.now_ms())?;
        shown(&app, id)
    });
    ok(&changed.await?)
}

async fn renew(State(app): Shared, Number(id): Number) -> Answer {
    change(app, id, |app, id, now_ms| {
        app.host.ledger().renew(id, now_ms)
    })
    .await
}

async fn begin(State(app): Shared, Number(id): Number) -> Answer {
    change(app, id, |app, id, now_ms| {
        app.host.ledger().begin_request(id, now_ms)
    })
    .await
}

async fn end(State(app): Shared, Number(id): Number) -> Answer {
    change(app, id, |app, id, now_ms| {
        app.host.ledger().end_request(id, now_ms)
    })
    .await
}

async fn release(State(app): Shared, Number(id): Number) -> Answer {
    let released = move || {
        app.host.release(id)?;
        app.asked.has_moved();
        Ok(())
    };
    quick(released).await?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

pub fn device_list(app: &App) -> Result<DeviceList, Problem> {
    Ok(DeviceList {
        devices: app.gpu_reports(&app.host.ledger().state()?),
        probe: app.probe_report(),
    })
}

async fn devices(State(app): Shared) -> Answer {
    ok(&quick(move || device_list(&app)).await?)
}

async fn ledger(State(app): Shared) -> Answer {
    let report = quick(move || {
        let state = app.host.ledger().state()?;
        let mut holders: BTreeMap<&str, HolderReport> = BTreeMap::new();
        for r in state.reservations() {
            let holder = holders
                .entry(r.holder.as_str())
                .or_insert_with(|| HolderReport {
                    holder: r.holder.to_string(),
                    reservations: Vec::new(),
                    bytes: 0,
                });
            let bytes = r.shares.iter().map(|s| s.bytes.get());
            holder.reservations.push(r.id.0);
            holder.bytes = bytes.fold(holder.bytes, u64::saturating_add);
        }
        Ok(LedgerReport {
            seq: state.seq(),
            devices: app.gpu_reports(&state),
            holders: holders.into_values().collect(),
            reservations: state.reservations().map(ReservationReport::from).collect(),
            violations: state.audit().iter().map(ViolationReport::from).collect(),
        })
    });
    ok(&report.await?)
}

async fn health(State(app): Shared) -> Answer {
    // Where it could not store before, it tries to again, though there is nothing new.
    let kept = Arc::clone(&app);
    quick(move || {
        let now_ms = kept.clock.now_ms();
        Ok(kept.host.ledger().lapsed(now_ms).map(drop)?)
    })
    .await?;
    ok(&Health {
        status: "ok".to_string(),
        engine: vramfit::ENGINE.name.to_string(),
        version: env!("CARGO_PKG_VERSION").to_string(),
        probe: app.probe_report(),
    })
}

async fn metrics(State(app): Shared) -> Answer {
    let text = quick(move || {
        let state = app.host.ledger().state()?;
        let text = app.metrics.text(&app, &state);
        text.map_err(|error| Problem::internal(error.to_string()))
    });
    let mut response = answer(StatusCode::OK, text.await?);
    let kind = HeaderValue::from_static(OPENMETRICS);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

async fn described() -> Answer {
    ok(openapi::openapi())
}
