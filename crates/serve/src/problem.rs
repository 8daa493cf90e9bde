//! How a request is refused: `application/problem+json` (RFC 9457), with what to do next.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vramfit::ledger::{self, Decision, Verdict};
use vramfit::report::RejectedReport;
use vramfit::{Error, estimate, gguf};

use crate::api::{GpuShortfall, GpuSums, LookedAt};

/// Why not.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// What sort of problem, a stable name: `urn:vramfit:full-now`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The HTTP status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong and what would do, on one line.
    pub detail: String,
    /// Seconds after which the same request may succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u32>,
    /// What it is about.
    #[serde(flatten)]
    pub about: Box<About>,
}

/// What a problem is about.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct About {
    /// Reservations that this is about: those that still start or leave, or the one that is there already.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reservations: Vec<u64>,
    /// Options that the ledger has looked at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<LookedAt>,
    /// GPUs that fall short.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shortfalls: Vec<GpuShortfall>,
    /// The GPUs as the ledger had them; nothing has changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<GpuSums>,
    /// Placements that do not fit even on empty GPUs, and what would help.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rejected: Vec<RejectedReport>,
}

/// The media type.
pub const PROBLEM_JSON: &str = "application/problem+json";

impl Problem {
    /// `kind` is what follows `urn:vramfit:`.
    pub fn new(status: StatusCode, kind: &str, detail: impl Into<String>) -> Problem {
        Problem {
            kind: format!("urn:vramfit:{kind}"),
            title: status.canonical_reason().unwrap_or("Error").to_string(),
            status: status.as_u16(),
            detail: vramfit::report::one_line(&detail.into()),
            retry_after_s: None,
            about: Box::default(),
        }
    }

    /// What was sent is no JSON, or a parameter is not what it should be.
    pub fn bad(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, "bad-request", detail)
    }

    /// It can be read, but it cannot be.
    pub fn invalid(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail)
    }

    /// No such thing.
    pub fn not_found(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, "not-found", detail)
    }

    /// Not for this client.
    pub fn forbidden(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::FORBIDDEN, "forbidden", detail)
    }

    /// Too much at once.
    pub fn busy(why: &str) -> Problem {
        let detail = format!("too many requests at once: {why}; try again");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail).retry(1)
    }

    /// A fault of ours.
    pub fn internal(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    }

    /// With the seconds after which to try again.
    pub fn retry(mut self, seconds: u32) -> Problem {
        self.retry_after_s = Some(seconds);
        self
    }

    fn about(mut self, reservations: &[ledger::ReservationId]) -> Problem {
        self.about.reservations = reservations.iter().map(|id| id.0).collect();
        self
    }

    fn looked(mut self, decision: &Decision) -> Problem {
        self.about.options = decision.options.iter().map(LookedAt::from).collect();
        self.about.before = decision.before.iter().map(GpuSums::from).collect();
        let short = decision
            .options
            .iter()
            .filter_map(|looked| match &looked.verdict {
                Verdict::Short(short) => Some(short),
                _ => None,
            });
        let nearest = short.min_by_key(|short| {
            let missing = |s: &ledger::Shortfall| s.need_bytes.saturating_sub(s.room_bytes);
            short.iter().map(missing).fold(0, u64::saturating_add)
        });
        self.about.shortfalls = nearest
            .into_iter()
            .flatten()
            .map(GpuShortfall::from)
            .collect();
        self
    }
}

impl From<ledger::Error> for Problem {
    fn from(error: ledger::Error) -> Problem {
        Error::from(error).into()
    }
}

impl Problem {
    fn of_ledger(error: &ledger::Error, detail: String) -> Problem {
        use ledger::Error::*;
        const CONFLICT: StatusCode = StatusCode::CONFLICT;
        const INVALID: StatusCode = StatusCode::UNPROCESSABLE_ENTITY;
        match error {
            FullNow(decision) => Problem::new(CONFLICT, "full-now", detail)
                .looked(decision)
                .retry(5),
            FullPending { pending, decision } => {
                let problem = Problem::new(CONFLICT, "full-pending", detail);
                problem.looked(decision).about(pending).retry(1)
            }
            NeverFits(decision) => Problem::new(INVALID, "never-fits", detail).looked(decision),
            UnknownReservation(_) => Problem::not_found(detail),
            StalePlan { .. } => Problem::new(CONFLICT, "stale-plan", detail).retry(1),
            KeyTaken(id) => Problem::new(CONFLICT, "key-taken", detail).about(&[*id]),
            TookTooMuch { id, short } => {
                let mut problem = Problem::new(CONFLICT, "took-too-much", detail).about(&[*id]);
                problem.about.shortfalls = short.iter().map(GpuShortfall::from).collect();
                problem
            }
            Waits { leaving, .. } => Problem::new(CONFLICT, "waits", detail)
                .about(leaving)
                .retry(1),
            Phase { id, .. } => Problem::new(CONFLICT, "phase", detail).about(&[*id]),
            NoRequest(id) => Problem::new(CONFLICT, "no-request", detail).about(&[*id]),
            UnknownGpu(_) | UnknownHost(_) => Problem::new(INVALID, "unknown-gpu", detail),
            NoSize | GpuTwice(_) | ReportedTwice(_) | TwoHosts(..) => Problem::invalid(detail),
            Store(_) => {
                let detail = format!("the ledger's journal cannot be used: {detail}");
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "journal", detail).retry(5)
            }
            _ => Problem::new(CONFLICT, "refused", detail),
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Problem {
        const INVALID: StatusCode = StatusCode::UNPROCESSABLE_ENTITY;
        let detail = error.to_string();
        match error {
            Error::Ledger(error) => Problem::of_ledger(&error, detail),
            Error::Open(gguf::OpenError::Malformed { .. } | gguf::OpenError::SplitName { .. })
            | Error::Model { .. }
            | Error::Projector { .. } => Problem::new(INVALID, "bad-model", detail),
            Error::Open(_) => Problem::not_found(detail),
            Error::Plan(estimate::Error::NotModelled(_)) => {
                Problem::new(INVALID, "not-modelled", detail)
            }
            Error::Plan(
                estimate::Error::Refused(_) | estimate::Error::RefusedWithoutFlashAttention { .. },
            ) => Problem::new(INVALID, "refused-settings", detail),
            Error::Plan(_) => Problem::new(INVALID, "bad-model", detail),
            Error::NeverFits { placement, .. } => {
                let mut problem = Problem::new(INVALID, "never-fits", detail);
                problem.about.rejected = placement
                    .rejected
                    .iter()
                    .map(RejectedReport::from)
                    .collect();
                problem
            }
            Error::NoGpu { .. } => Problem::new(INVALID, "no-gpu", detail),
            _ => Problem::invalid(detail),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED.as_u16() {
            let scheme = HeaderValue::from_static("Bearer");
            headers.insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_without_a_rule_are_not_refused_by_llama_cpp() {
        let ours = estimate::Error::from(estimate::NotModelled::TensorSplitOfUnknown {
            architecture: "lxama".to_string(),
        });
        let problem = Problem::from(Error::from(ours));
        assert_eq!(
            (problem.kind.as_str(), problem.status),
            ("urn:vramfit:not-modelled", 422)
        );
        assert!(
            problem.detail.ends_with("use -sm layer"),
            "{}",
            problem.detail
        );
        let theirs = estimate::Error::from(estimate::Refusal::TensorSplitWithoutDevice);
        let problem = Problem::from(Error::from(theirs));
        assert_eq!(problem.kind, "urn:vramfit:refused-settings");
        let models = estimate::Error::Model(vramfit::arch::Error::MissingKey {
            key: "llama.block_count".to_string(),
        });
        let problem = Problem::from(Error::from(models));
        assert_eq!(problem.kind, "urn:vramfit:bad-model");
    }
}
