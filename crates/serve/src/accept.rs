//! The listener: so many connections, each with time limits, and an orderly end.

use crate::config::Limits;
use crate::patient::Patient;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// After `accept` has failed, as when there are no file descriptors left.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop`, then finishes what is under way.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: &Limits,
    stop: impl Future<Output = ()>,
) {
    let connections = Arc::new(Semaphore::new(limits.connections));
    let under_way = GracefulShutdown::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.receive);
    tokio::pin!(stop);
    loop {
        let accept = async {
            let one = connections.clone().acquire_owned().await;
            (one, listener.accept().await)
        };
        let (one, accepted) = tokio::select! {
            accepted = accept => accepted,
            () = &mut stop => break,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        // Where it cannot be set, answers are a little slower.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let connection =
            http.serve_connection(TokioIo::new(Patient::new(stream, limits.send)), service);
        let connection = under_way.watch(connection);
        tokio::spawn(async move {
            // A client that goes away, or says nothing, is no failure of ours.
            let _ = connection.await;
            drop(one);
        });
    }
    drop(listener);
    let finished = under_way.shutdown();
    let _ = tokio::time::timeout(limits.shutdown, finished).await;
}
