//! What there is, as OpenAPI 3.1: schemas are those of the types that are read and written, paths a table.

use crate::api::{
    AdoptRequest, CommitRequest, DecisionList, DeviceList, DifferencesReport, EstimateRequest,
    Health, LedgerReport, OthersRequest, PlanRequest, ReconcileRequest, ReservationList,
    ReservationReport, ReserveRequest, ReservedReport,
};
use crate::decisions::KEPT;
use crate::problem::{PROBLEM_JSON, Problem};
use crate::work::{LONG_GPUS, LONG_UBATCH};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};
use std::sync::OnceLock;
use vramfit::report::Estimate;

/// The description that `GET /openapi.json` answers.
pub fn openapi() -> &'static Value {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    DOCUMENT.get_or_init(document)
}

type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// A body that is sent.
#[derive(Clone, Copy)]
enum Sends {
    Nothing,
    May(SchemaOf),
    Must(SchemaOf),
}

/// A method of a path.
struct Operation {
    method: &'static str,
    path: &'static str,
    id: &'static str,
    summary: &'static str,
    sends: Sends,
    gets: (u16, &'static str, Option<SchemaOf>),
    /// What it may be refused with, beside what everything may.
    refused: &'static [u16],
}

const ONE: &str = "/v1/reservations/{id}";
const BODY: [u16; 6] = [400, 403, 404, 408, 413, 415];

const OPERATIONS: &[Operation] = &[
    Operation {
        method: "post",
        path: "/v1/estimate",
        id: "estimate",
        summary: "What a model would take on GPUs that need not be there, and where each layer would go",
        sends: Sends::Must(of::<EstimateRequest>),
        gets: (200, "The estimate", Some(of::<Estimate>)),
        refused: &BODY,
    },
    Operation {
        method: "post",
        path: "/v1/plan",
        id: "plan",
        summary: "Where a model would go on what is free of the server's GPUs now; promises nothing",
        sends: Sends::Must(of::<PlanRequest>),
        gets: (200, "The estimate", Some(of::<Estimate>)),
        refused: &BODY,
    },
    Operation {
        method: "post",
        path: "/v1/reservations",
        id: "reserve",
        summary: "Place a model on what is free and reserve what it takes, in one step",
        sends: Sends::Must(of::<ReserveRequest>),
        gets: (
            201,
            "The reservation, and where everything goes",
            Some(of::<ReservedReport>),
        ),
        refused: &[400, 403, 404, 408, 409, 413, 415],
    },
    Operation {
        method: "get",
        path: "/v1/reservations",
        id: "reservations",
        summary: "Everything that is reserved, oldest first",
        sends: Sends::Nothing,
        gets: (200, "The reservations", Some(of::<ReservationList>)),
        refused: &[403],
    },
    Operation {
        method: "get",
        path: ONE,
        id: "reservation",
        summary: "One reservation",
        sends: Sends::Nothing,
        gets: (200, "The reservation", Some(of::<ReservationReport>)),
        refused: &[400, 403, 404],
    },
    Operation {
        method: "delete",
        path: ONE,
        id: "release",
        summary: "The engine has unloaded it, or has never loaded it",
        sends: Sends::Nothing,
        gets: (204, "Released", None),
        refused: &[400, 403, 404],
    },
    Operation {
        method: "post",
        path: "/v1/reservations/{id}/commit",
        id: "commit",
        summary: "The engine has loaded it, and took what was granted or what it says",
        sends: Sends::May(of::<CommitRequest>),
        gets: (200, "The reservation", Some(of::<ReservationReport>)),
        refused: &[400, 403, 404, 408, 409, 413, 415],
    },
    Operation {
        method: "post",
        path: "/v1/reservations/{id}/renew",
        id: "renew",
        summary: "The holder is alive: its lease begins anew, as it does when the server comes back",
        sends: Sends::Nothing,
        gets: (200, "The reservation", Some(of::<ReservationReport>)),
        refused: &[400, 403, 404],
    },
    Operation {
        method: "post",
        path: "/v1/reservations/{id}/begin",
        id: "begin",
        summary: "A request to the model begins: it is not evicted until that ends",
        sends: Sends::Nothing,
        gets: (200, "The reservation", Some(of::<ReservationReport>)),
        refused: &[400, 403, 404, 409],
    },
    Operation {
        method: "post",
        path: "/v1/reservations/{id}/end",
        id: "end",
        summary: "A request to the model ends",
        sends: Sends::Nothing,
        gets: (200, "The reservation", Some(of::<ReservationReport>)),
        refused: &[400, 403, 404, 409],
    },
    Operation {
        method: "get",
        path: "/v1/devices",
        id: "devices",
        summary: "The server's GPUs, and what is free of them",
        sends: Sends::Nothing,
        gets: (200, "The GPUs", Some(of::<DeviceList>)),
        refused: &[403],
    },
    Operation {
        method: "get",
        path: "/v1/ledger",
        id: "ledger",
        summary: "The whole ledger, who holds how much, and every over-committed GPU",
        sends: Sends::Nothing,
        gets: (200, "The ledger", Some(of::<LedgerReport>)),
        refused: &[403],
    },
    Operation {
        method: "post",
        path: "/v1/ledger/adopt",
        id: "adopt",
        summary: "Something that is already loaded is entered as it is, whether it fits or not; until the driver is asked \
                  again, it may count as taken by others, too",
        sends: Sends::Must(of::<AdoptRequest>),
        gets: (201, "The reservation", Some(of::<ReservationReport>)),
        refused: &[400, 403, 408, 409, 413, 415],
    },
    Operation {
        method: "post",
        path: "/v1/ledger/reconcile",
        id: "reconcile",
        summary: "What a holder's engines say they hold, against its reservations; sizes are taken over",
        sends: Sends::Must(of::<ReconcileRequest>),
        gets: (200, "How they differ", Some(of::<DifferencesReport>)),
        refused: &[400, 403, 408, 413, 415],
    },
    Operation {
        method: "post",
        path: "/v1/ledger/others",
        id: "others",
        summary: "What others hold of a GPU, from who knows: it takes the place of what they are believed to hold since the \
                  driver's last figure; without one it says nothing",
        sends: Sends::Must(of::<OthersRequest>),
        gets: (200, "The GPUs", Some(of::<DeviceList>)),
        refused: &[400, 403, 408, 413, 415],
    },
    Operation {
        method: "get",
        path: "/v1/decisions",
        id: "decisions",
        summary: "Why the last requests for reservations were answered as they were, the latest first",
        sends: Sends::Nothing,
        gets: (200, "The decisions", Some(of::<DecisionList>)),
        refused: &[400, 403],
    },
];

fn document() -> Value {
    let settings = SchemaSettings::draft2020_12();
    let settings = settings.with(|s| s.definitions_path = "/components/schemas".into());
    let mut generator = settings.into_generator();
    let mut paths: Map<String, Value> = Map::new();
    for operation in OPERATIONS {
        let described = operation.described(&mut generator);
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        if let Some(path) = path.as_object_mut() {
            path.insert(operation.method.to_string(), described);
        }
    }
    let health = content("application/json", of::<Health>(&mut generator));
    let text = |kind: &str| json!({ kind: { "schema": { "type": "string" } } });
    let plain = [
        (
            "/healthz",
            "health",
            "That the server is there, and its ledger can be written (503 while it cannot); needs no token",
            health,
            false,
        ),
        (
            "/metrics",
            "metrics",
            "Counters for Prometheus",
            text("application/openmetrics-text"),
            true,
        ),
        (
            "/openapi.json",
            "openapi",
            "This description",
            json!({ "application/json": { "schema": { "type": "object" } } }),
            true,
        ),
    ];
    let problem = of::<Problem>(&mut generator);
    for (path, id, summary, content, guarded) in plain {
        let mut responses = json!({ "200": { "description": summary, "content": content } });
        if let (true, Some(responses)) = (guarded, responses.as_object_mut()) {
            for status in [401, 403, 503] {
                responses.insert(status.to_string(), refusal(status, &problem));
            }
        }
        let mut get = json!({ "operationId": id, "summary": summary, "responses": responses });
        if !guarded {
            get["security"] = json!([]);
            get["responses"]["503"] = refusal(503, &problem);
        }
        paths.insert(path.to_string(), json!({ "get": get }));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "vramfit",
            "version": env!("CARGO_PKG_VERSION"),
            "description": format!(
                "What GGUF models take on GPUs under llama.cpp, to the byte, and reservations of it. \
                 Sizes are bytes, times milliseconds since 1970. A server on loopback may do without a token. \
                 Questions with more than {LONG_UBATCH} tokens computed at once (n_ubatch) or {LONG_GPUS} GPUs, or of GPUs \
                 without virtual memory management (vmm=0), may take seconds: one worker is kept from them, and what does not get its turn in time is answered 503."
            ),
        },
        "security": [{ "token": [] }, {}],
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
    })
}

fn content(kind: &str, schema: Schema) -> Value {
    json!({ kind: { "schema": schema } })
}

fn refusal(status: u16, problem: &Schema) -> Value {
    let words = axum::http::StatusCode::from_u16(status).ok();
    let words = words
        .and_then(|status| status.canonical_reason())
        .unwrap_or("Refused");
    json!({ "description": words, "content": content(PROBLEM_JSON, problem.clone()) })
}

impl Operation {
    fn described(&self, generator: &mut SchemaGenerator) -> Value {
        let problem = of::<Problem>(generator);
        let (status, words, schema) = self.gets;
        let mut good = json!({ "description": words });
        if let Some(schema) = schema {
            good["content"] = content("application/json", schema(generator));
        }
        let number = match self.id {
            "reserve" => Some("$response.body#/reservation/id"),
            "adopt" => Some("$response.body#/id"),
            _ => None,
        };
        if let Some(number) = number {
            let of_one = OPERATIONS
                .iter()
                .filter(|operation| operation.path.starts_with(ONE));
            let link = |operation: &Operation| {
                let link = json!({ "operationId": operation.id, "parameters": { "id": number } });
                (operation.id.to_string(), link)
            };
            good["links"] = Value::Object(of_one.map(link).collect());
        }
        let mut responses = Map::from_iter([(status.to_string(), good)]);
        let always: &[u16] = match self.sends {
            Sends::Nothing => &[401, 503],
            _ => &[401, 422, 503],
        };
        for &status in self.refused.iter().chain(always) {
            responses.insert(status.to_string(), refusal(status, &problem));
        }
        let mut described = json!({
            "operationId": self.id,
            "summary": self.summary,
            "responses": responses,
        });
        let body = match self.sends {
            Sends::Nothing => None,
            Sends::May(schema) => Some((schema, false)),
            Sends::Must(schema) => Some((schema, true)),
        };
        if let Some((schema, required)) = body {
            let content = content("application/json", schema(generator));
            described["requestBody"] = json!({ "required": required, "content": content });
        }
        let parameters = self.parameters();
        if !parameters.is_empty() {
            described["parameters"] = parameters.into();
        }
        described
    }

    fn parameters(&self) -> Vec<Value> {
        let mut parameters = Vec::new();
        if self.path.contains("{id}") {
            let schema =
                json!({ "type": "integer", "format": "uint64", "minimum": 0, "maximum": u64::MAX });
            parameters
                .push(json!({ "name": "id", "in": "path", "required": true, "schema": schema }));
        }
        if self.id == "decisions" {
            let number = |name: &str, most: u64, what: &str| {
                let schema = json!({ "type": "integer", "minimum": 1, "maximum": most });
                json!({ "name": name, "in": "query", "required": false, "description": what, "schema": schema })
            };
            parameters.extend([
                number("before", u64::MAX, "Those with smaller numbers"),
                number("limit", KEPT as u64, "At most so many"),
            ]);
        }
        if ["reserve", "adopt"].contains(&self.id) {
            parameters.push(json!({
                "name": "Idempotency-Key",
                "in": "header",
                "required": false,
                "description": "While its reservation is held, the same request (byte for byte) under the same key gets \
                                the same answer, also where it comes before the first has one. A server that was \
                                started again has the reservation, but not the answer: key-taken (409) names it; GET \
                                it, or release it and ask again",
                "schema": { "type": "string", "minLength": 1, "maxLength": 256 },
            }));
        }
        parameters
    }
}
