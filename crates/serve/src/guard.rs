//! Who may come in, and how many at once.

use crate::app::App;
use crate::problem::Problem;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;
use std::time::Instant;

/// What is answered whoever asks.
pub const OPEN: &str = "/healthz";

/// Counts what is answered, and how long that took.
pub async fn count(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let route = request.extensions().get::<MatchedPath>();
    let route = route.map_or("other".to_string(), |route| route.as_str().to_string());
    let method = method(request.method());
    let response = next.run(request).await;
    let status = response.status().as_u16();
    app.metrics.answered(route, method, status, begun.elapsed());
    response
}

/// A label from a set that clients cannot make larger.
fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        _ => "other",
    }
}

/// Lets in who shows the token, or comes to this machine's own name where there is none; not too many at once.
pub async fn admit(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if request.uri().path() == OPEN {
        return next.run(request).await;
    }
    if let Err(problem) = authorise(&app, request.headers()) {
        return problem.into_response();
    }
    let Ok(_one_of) = app.requests.try_acquire() else {
        return Problem::busy("the server answers as many as it takes on").into_response();
    };
    next.run(request).await
}

fn authorise(app: &App, headers: &HeaderMap) -> Result<(), Problem> {
    let Some(token) = &app.token else {
        return from_here(headers);
    };
    let shown = headers
        .get(header::AUTHORIZATION)
        .map(|value| value.as_bytes());
    let shown = shown.and_then(|value| value.split_at_checked("Bearer ".len()));
    match shown {
        Some((scheme, shown)) if scheme.eq_ignore_ascii_case(b"Bearer ") && token.is(shown) => {
            Ok(())
        }
        _ => Err(Problem::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "this server wants its token: Authorization: Bearer TOKEN",
        )),
    }
}

/// Without a token, a page in a browser must not get here by a name of its own that leads to loopback.
fn from_here(headers: &HeaderMap) -> Result<(), Problem> {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let host = host.unwrap_or("localhost");
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or_default(),
    };
    let loopback = |text: &str| {
        text.parse()
            .is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
    };
    match name.eq_ignore_ascii_case("localhost") || loopback(name) {
        true => Ok(()),
        false => Err(Problem::forbidden(
            "without a token this server answers to localhost, 127.0.0.1 and [::1] alone",
        )),
    }
}
