//! JSON in and out.

use crate::app::App;
use crate::problem::Problem;
use crate::whole::Whole;
use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Serialize;
use serde::de::DeserializeOwned;
use vramfit::ledger::ReservationId;
use vramfit::settings::objects::object;

/// What every route comes to.
pub type Answer = Result<Response, Problem>;

pub fn json(value: &impl Serialize) -> Result<Bytes, Problem> {
    let text = serde_json::to_vec(value);
    text.map(Bytes::from)
        .map_err(|error| Problem::internal(error.to_string()))
}

pub fn answer(status: StatusCode, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

pub fn ok(value: &impl Serialize) -> Answer {
    Ok(answer(StatusCode::OK, json(value)?))
}

/// The body, if it comes in time and is JSON of a size that can be.
pub async fn body(app: &App, request: Request) -> Result<Bytes, Problem> {
    is_json(request.headers())?;
    some_body(app, request).await
}

/// What is sent as anything else may come from a form in a browser's page.
pub fn is_json(headers: &HeaderMap) -> Result<(), Problem> {
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        let why = "send JSON, with Content-Type: application/json";
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "media-type",
            why,
        ));
    }
    Ok(())
}

pub async fn some_body(app: &App, request: Request) -> Result<Bytes, Problem> {
    let most = app.limits.body_bytes;
    let too_long = || {
        let why = format!("the body has more than {most} bytes");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", why)
    };
    // What it is said to have: nobody has to send it first.
    let said = request.body().size_hint().lower();
    if usize::try_from(said).map_or(true, |said| said > most) {
        return Err(too_long());
    }
    let read = to_bytes(request.into_body(), most);
    match tokio::time::timeout(app.limits.receive, read).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_too_long(&error) => Err(too_long()),
        Ok(Err(error)) => Err(Problem::bad(format!("the body cannot be read: {error}"))),
        Err(_) => {
            let why = "the body did not come in time";
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", why))
        }
    }
}

fn is_too_long(error: &axum::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if error.to_string().contains("length limit exceeded") {
            return true;
        }
        source = error.source();
    }
    error.to_string().contains("length limit exceeded")
}

pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let read = object(&mut json).and_then(|asked| json.end().map(|()| asked));
    let error = match read {
        Ok(asked) => return Ok(asked),
        Err(error) => error,
    };
    if !error.is_data() {
        return Err(Problem::bad(format!("no JSON: {error}")));
    }
    // For JSON Schema, and for languages that know one kind of number, 4096.0 is an integer.
    match serde_json::from_slice(bytes) {
        Ok(Whole(asked)) => object(asked).map_err(|_| Problem::invalid(error.to_string())),
        Err(twice) => Err(Problem::invalid(twice.to_string())),
    }
}

/// A new reservation, and where it is.
pub fn created(id: ReservationId, text: Bytes) -> Response {
    let mut response = answer(StatusCode::CREATED, text);
    if let Ok(location) = format!("/v1/reservations/{}", id.0).parse() {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}
