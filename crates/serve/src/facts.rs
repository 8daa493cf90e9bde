//! What is told rather than asked: models that are already loaded, what engines say they hold; and why requests
//! were answered as they were.

use crate::api::{
    AdoptRequest, DifferencesReport, OthersRequest, ReconcileRequest, ReservationReport, name,
};
use crate::app::App;
use crate::decisions::Page;
use crate::routes::{device_list, idempotency_key, once, shown};
use crate::wire::{Answer, body, created, json, ok, parse};
use crate::work::quick;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Uri};
use std::sync::Arc;
use vramfit::ledger::GpuId;

pub async fn adopt(State(app): State<Arc<App>>, headers: HeaderMap, request: Request) -> Answer {
    let key = idempotency_key(&headers)?;
    let body = body(&app, request).await?;
    let asked: AdoptRequest = parse(&body)?;
    let turn = app.turn_of(key.as_deref()).await?;
    let adopted = quick(move || {
        let _turn = turn;
        let found = asked.found(app.host.name(), key.as_deref())?;
        once(&app, key, body, || {
            let id = app.host.ledger().adopt(&found, app.clock.now_ms())?;
            app.asked.has_moved();
            let report: ReservationReport = shown(&app, id)?;
            Ok((id, json(&report)?))
        })
    });
    let (id, text) = adopted.await?;
    Ok(created(id, text))
}

pub async fn reconcile(State(app): State<Arc<App>>, request: Request) -> Answer {
    let body = body(&app, request).await?;
    let asked: ReconcileRequest = parse(&body)?;
    let found = quick(move || {
        let held = asked.held(app.host.name())?;
        let holder = asked.holder.as_str().into();
        let found = app.host.ledger().reconcile(&holder, &held)?;
        if !found.resized.is_empty() {
            app.asked.has_moved();
        }
        Ok(found)
    });
    ok(&DifferencesReport::from(&found.await?))
}

pub async fn others(State(app): State<Arc<App>>, request: Request) -> Answer {
    let body = body(&app, request).await?;
    let asked: OthersRequest = parse(&body)?;
    let told = quick(move || {
        name("gpu", &asked.gpu)?;
        let gpu = GpuId::new(app.host.name().clone(), asked.gpu.as_str());
        app.host.ledger().others_hold(&gpu, asked.bytes)?;
        device_list(&app)
    });
    ok(&told.await?)
}

pub async fn decisions(State(app): State<Arc<App>>, uri: Uri) -> Answer {
    let page = Page::read(uri.query().unwrap_or_default())?;
    ok(&app.decisions.page(page))
}
