//! llama-server: health, a full prompt for each slot, some tokens.

use std::ffi::OsString;
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ureq::Agent;

use super::version::cuda_of;
use super::{GENERATED, LAST_LOOK, Ran, Run};
use crate::hold::Held;
use crate::log::said_buffers;
use crate::watch::Starter;
use crate::{Error, io};

/// Between two questions whether it is ready.
const PERIOD: Duration = Duration::from_millis(50);
/// Of an answer.
const MOST_ANSWER: u64 = 16 << 20;

pub fn run(run: &Run, starter: &Starter) -> Result<Ran, Error> {
    let port = free_port()?;
    let mut arguments: Vec<OsString> = vec!["-m".into(), run.expected.model.clone().into()];
    arguments.extend(run.expected.flags.iter().map(OsString::from));
    let port_text = port.to_string();
    arguments.extend(["--host", "127.0.0.1", "--port", port_text.as_str()].map(OsString::from));
    let mut held = run.start(&arguments, None)?;
    starter.start(held.root());
    let server = format!("http://127.0.0.1:{port}");
    wait_for_health(run, &mut held, &server)?;
    fill(run, &server).map_err(|error| match held.ended(LAST_LOOK) {
        Some(how) => run.failed(&format!("ended {how} while it computed")),
        None => error,
    })?;
    let computed = Instant::now();
    let cuda = cuda_of(held.root());
    thread::sleep(LAST_LOOK);
    let log = run.log.text()?;
    Ok(Ran {
        prompt_tokens: run.prompt_tokens(),
        said: said_buffers(&log, run.expected),
        version: None,
        cuda,
        computed,
    })
}

/// A port that nobody listens on now.
fn free_port() -> Result<u16, Error> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(io("a free port"))?;
    let address = listener.local_addr().map_err(io("a free port"))?;
    Ok(address.port())
}

fn agent(time: Duration) -> Agent {
    Agent::config_builder()
        .timeout_global(Some(time))
        .http_status_as_error(false)
        .proxy(None)
        .build()
        .into()
}

fn wait_for_health(run: &Run, held: &mut Held, server: &str) -> Result<(), Error> {
    let url = format!("{server}/health");
    loop {
        let left = run.left()?;
        if let Some(how) = held.ended(PERIOD) {
            let how = format!("ended {how} before it was ready");
            return Err(run.failed(&how));
        }
        let answer = agent(left.min(Duration::from_secs(5))).get(&url).call();
        if answer.is_ok_and(|answer| answer.status().as_u16() == 200) {
            return Ok(());
        }
    }
}

/// A full prompt in every slot at once, so that batches hold tokens of all of them.
fn fill(run: &Run, server: &str) -> Result<(), Error> {
    let time = run.left()?;
    let n = run.prompt_tokens();
    let (path, body) = match run.expected.embeddings {
        true => ("embedding", json!({"content": tokens(run, n)})),
        false => (
            "completion",
            json!({
                "prompt": tokens(run, n), "n_predict": GENERATED, "temperature": 0.0,
                "ignore_eos": true, "cache_prompt": false, "stream": false,
            }),
        ),
    };
    let url = format!("{server}/{path}");
    let body = body.to_string();
    let ask = || -> Result<(), String> {
        let request = agent(time)
            .post(&url)
            .header("Content-Type", "application/json");
        let mut answer = request.send(body.as_str()).map_err(|e| e.to_string())?;
        let status = answer.status().as_u16();
        let text = answer
            .body_mut()
            .with_config()
            .limit(MOST_ANSWER)
            .read_to_string();
        let text = text.map_err(|e| e.to_string())?;
        match status {
            200 => Ok(()),
            _ => Err(format!("status {status}: {}", told(&text))),
        }
    };
    let results: Vec<Result<(), String>> = thread::scope(|scope| {
        let asks: Vec<_> = (0..run.expected.n_seq).map(|_| scope.spawn(ask)).collect();
        asks.into_iter()
            .map(|ask| {
                ask.join()
                    .unwrap_or_else(|_| Err("a thread died".to_string()))
            })
            .collect()
    });
    let failed: Option<String> = results.into_iter().find_map(Result::err);
    match failed {
        None => Ok(()),
        Some(reason) => Err(run.failed(&format!("refuses a prompt of {n} tokens ({reason})"))),
    }
}

fn told(answer: &str) -> String {
    let json: Value = serde_json::from_str(answer).unwrap_or_default();
    let message = json.pointer("/error/message").and_then(Value::as_str);
    message.unwrap_or(answer).chars().take(300).collect()
}

/// Any tokens will do: memory does not depend on them. Not the first ones, which are special in many vocabularies.
fn tokens(run: &Run, n: u64) -> Vec<u64> {
    let first = if run.expected.n_vocab > 4096 { 1000 } else { 1 };
    let room = run.expected.n_vocab.saturating_sub(first).clamp(1, 1000);
    (0..n).map(|i| first + i * 7 % room).collect()
}
