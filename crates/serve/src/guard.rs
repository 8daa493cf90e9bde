//! Who may come in, and how many at once.

use crate::app::App;
use crate::problem::Problem;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

/// What browsers say of where a request comes from.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// What is answered whoever asks.
pub const OPEN: &str = "/healthz";

/// What is counted where the client has gone before its answer, as web servers have it in their logs.
const CLIENT_GONE: u16 = 499;

/// Counts what is answered, or would have been, and how long that took.
pub async fn count(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>();
    let route = route.map_or("other".to_string(), |route| route.as_str().to_string());
    let mut counted = Counted {
        app,
        route,
        method: method(request.method()),
        begun: Instant::now(),
        status: CLIENT_GONE,
    };
    let response = next.run(request).await;
    counted.status = response.status().as_u16();
    response
}

/// Is counted when it is dropped.
struct Counted {
    app: Arc<App>,
    route: String,
    method: &'static str,
    begun: Instant,
    status: u16,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let route = std::mem::take(&mut self.route);
        let took = self.begun.elapsed();
        let metrics = &self.app.metrics;
        metrics.answered(route, self.method, self.status, took);
    }
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
    if request.headers().get_all(header::HOST).iter().count() > 1 {
        // Which of them it came to is anybody's guess, and a proxy's may be another.
        return Problem::bad("more than one Host header").into_response();
    }
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

/// Without a token, a page in a browser must not get here: not by a name of its own that leads to loopback,
/// and not by a request across sites, which a browser sends unasked where it needs no answer to it.
fn from_here(headers: &HeaderMap) -> Result<(), Problem> {
    let host = headers.get(header::HOST).map(HeaderValue::to_str);
    let by_name = match host {
        None => true,
        Some(host) => host.is_ok_and(is_loopback),
    };
    if !by_name {
        return Err(Problem::forbidden(
            "without a token this server answers to localhost, 127.0.0.1 and [::1] alone",
        ));
    }
    let foreign = |origin: &HeaderValue| !origin.to_str().is_ok_and(is_own_origin);
    let across = |site: &HeaderValue| site.as_bytes().eq_ignore_ascii_case(b"cross-site");
    let origins = headers.get_all(header::ORIGIN);
    let sites = headers.get_all(SEC_FETCH_SITE);
    match origins.iter().any(foreign) || sites.iter().any(across) {
        true => Err(Problem::forbidden(
            "without a token this server does not answer the pages of other sites; start it with --token-file",
        )),
        false => Ok(()),
    }
}

/// Whether an `Origin` is a page of this machine. One that a browser keeps to itself (`null`) is none.
fn is_own_origin(origin: &str) -> bool {
    let authority = origin.split_once("://");
    authority.is_some_and(|(_, authority)| is_loopback(authority))
}

/// Whether `HOST[:PORT]` is this machine by a name that nobody else can give.
fn is_loopback(authority: &str) -> bool {
    let (name, rest) = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']').unwrap_or_default(),
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let digits = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    if !(rest.is_empty() || rest.strip_prefix(':').is_some_and(digits)) {
        // There are readers to whom the name begins here.
        return false;
    }
    let address = name.parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_no_name_that_only_looks_so() {
        for own in [
            "localhost",
            "LOCALHOST:8315",
            "127.0.0.1:1",
            "127.8.9.1",
            "[::1]:8315",
            "[::1]",
        ] {
            assert!(is_loopback(own), "{own}");
        }
        for other in [
            "",
            "localhost.example.org",
            "127.0.0.1.example.org:8315",
            "10.0.0.1",
            "[::2]",
            "::1",
            "[::1",
            "[::1]evil.example",
            "[::1]@evil.example",
            "[::1]:80@evil.example",
            "localhost:80@evil.example",
            "localhost:x",
            "localhost:1:2",
        ] {
            assert!(!is_loopback(other), "{other}");
        }
        assert!(is_own_origin("http://localhost:3000"));
        for other in [
            "null",
            "localhost",
            "https://example.org",
            "http://localhost@example.org",
        ] {
            assert!(!is_own_origin(other), "{other}");
        }
    }
}
