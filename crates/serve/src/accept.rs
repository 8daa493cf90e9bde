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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, Server, guard};
    use axum::middleware::from_fn_with_state;
    use axum::routing::get;
    use std::io::Write;
    use tokio::sync::mpsc;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_client_that_goes_before_its_answer_is_counted() {
        let mut config = Config::new(vramfit::gpu_list("8GiB").unwrap());
        config.listen.set_port(0);
        let Server { app, .. } = Server::bind(config).await.unwrap();
        let (begun, mut begins) = mpsc::unbounded_channel();
        let never = async move || {
            begun.send(()).unwrap();
            std::future::pending::<()>().await;
        };
        let router = Router::new().route("/never", get(never));
        let router = router.layer(from_fn_with_state(Arc::clone(&app), guard::count));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limits = app.limits;
        tokio::spawn(async move {
            serve(listener, router, &limits, std::future::pending()).await;
        });
        let mut client = std::net::TcpStream::connect(address).unwrap();
        client
            .write_all(b"GET /never HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        begins.recv().await.unwrap();
        let is_counted = || {
            let text = app.metrics.text(&app, &app.host.ledger().state().unwrap());
            let line = r#"http_requests_total{route="/never",method="GET",status="499"} 1"#;
            text.unwrap().contains(line)
        };
        assert!(!is_counted());
        drop(client);
        let counted = async {
            while !is_counted() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let limit = Duration::from_secs(60);
        tokio::time::timeout(limit, counted).await.unwrap();
    }
}
