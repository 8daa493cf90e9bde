//! Clients that ask a running `estimate serve` for estimates, and how long they wait:
//!
//! ```text
//! estimate serve --models fixtures/gguf --gpus rtx4090 &
//! cargo run --release -p vramfit-serve --example load -- 127.0.0.1:8315 --pid $!
//! ```

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Barrier;
use std::time::{Duration, Instant};

const USAGE: &str = "\
load ADDRESS [--model FILE] [--clients N] [--seconds N] [--rate N] [--distinct] [--pid PID]
  --model FILE    below the server's folders (default llama-3.1-8b.Q4_K_M.gguf)
  --clients N     at once, each on its connection (default 200)
  --seconds N     for how long (default 10)
  --rate N        requests a second of all together (default: as fast as they are answered)
  --distinct      no two requests alike, so that each is computed
  --pid PID       the server's, for its CPU time a request (Linux)";

struct Options {
    address: String,
    model: String,
    clients: u32,
    seconds: u64,
    rate: Option<u32>,
    distinct: bool,
    pid: Option<u32>,
}

fn options() -> Option<Options> {
    let mut arguments = std::env::args().skip(1);
    let mut options = Options {
        address: arguments.next()?,
        model: "llama-3.1-8b.Q4_K_M.gguf".to_string(),
        clients: 200,
        seconds: 10,
        rate: None,
        distinct: false,
        pid: None,
    };
    while let Some(flag) = arguments.next() {
        let mut number = || arguments.next()?.parse().ok();
        match flag.as_str() {
            "--clients" => options.clients = number()?,
            "--seconds" => options.seconds = number()?.into(),
            "--rate" => options.rate = Some(number()?),
            "--pid" => options.pid = Some(number()?),
            "--model" => options.model = arguments.next()?,
            "--distinct" => options.distinct = true,
            _ => return None,
        }
    }
    Some(options)
}

/// One client: how long each of its requests took.
fn client(options: &Options, number: u32, start: &Barrier) -> io::Result<Vec<Duration>> {
    let stream = TcpStream::connect(&options.address)?;
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    let pause = options
        .rate
        .map(|rate| Duration::from_secs(1) * options.clients / rate);
    start.wait();
    let begun = Instant::now();
    let end = begun + Duration::from_secs(options.seconds);
    // Clients that pause do not all do so at once.
    let mut due = begun + pause.unwrap_or_default() * number / options.clients;
    let mut times = Vec::new();
    while Instant::now() < end {
        if let Some(pause) = pause {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            due += pause;
        }
        let nth = u32::try_from(times.len()).unwrap_or(u32::MAX);
        let n_ctx = match options.distinct {
            true => 256 + nth.wrapping_mul(options.clients).wrapping_add(number) % 1_000_000,
            false => 8192,
        };
        let body = format!(
            r#"{{"model": "{}", "settings": {{"n_ctx": {n_ctx}}}}}"#,
            options.model
        );
        let request = format!(
            "POST /v1/estimate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let sent = Instant::now();
        writer.write_all(request.as_bytes())?;
        receive(&mut reader)?;
        times.push(sent.elapsed());
    }
    Ok(times)
}

fn receive(reader: &mut impl BufRead) -> io::Result<()> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    if !line.starts_with("HTTP/1.1 200 ") {
        return Err(io::Error::other(format!("refused: {line}")));
    }
    let mut length = 0;
    while line.trim() != "" {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
        line.clear();
        reader.read_line(&mut line)?;
    }
    let copied = io::copy(&mut reader.take(length), &mut io::sink())?;
    match copied == length {
        true => Ok(()),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// CPU time of a process so far, in ticks of 10 ms.
fn ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn main() -> io::Result<()> {
    let Some(options) = options() else {
        println!("{USAGE}");
        return Ok(());
    };
    let before = options.pid.and_then(ticks);
    let start = Barrier::new(options.clients as usize);
    let begun = Instant::now();
    let all: io::Result<Vec<Vec<Duration>>> = std::thread::scope(|scope| {
        let (options, start) = (&options, &start);
        let client = |number| scope.spawn(move || client(options, number, start));
        let clients: Vec<_> = (0..options.clients).map(client).collect();
        let join = |client: std::thread::ScopedJoinHandle<'_, _>| {
            let panicked = |_| Err(io::Error::other("a client panicked"));
            client.join().unwrap_or_else(panicked)
        };
        clients.into_iter().map(join).collect()
    });
    let took = begun.elapsed();
    let mut times: Vec<Duration> = all?.into_iter().flatten().collect();
    times.sort_unstable();
    let Some(last) = times.len().checked_sub(1) else {
        return Err(io::Error::other("no request was answered"));
    };
    let at = |per_mille: usize| {
        times
            .get(last * per_mille / 1000)
            .copied()
            .unwrap_or_default()
    };
    println!(
        "{} clients, {} requests in {took:.1?}: {:.0} a second; p50 {:.2?}, p90 {:.2?}, p99 {:.2?}, p99.9 {:.2?}, longest {:.2?}",
        options.clients,
        times.len(),
        times.len() as f64 / took.as_secs_f64(),
        at(500),
        at(900),
        at(990),
        at(999),
        at(1000),
    );
    if let (Some(before), Some(after)) = (before, options.pid.and_then(ticks)) {
        let us = (after - before) as f64 * 10_000.0 / times.len() as f64;
        println!("the server's CPU time: {us:.0} us a request");
    }
    Ok(())
}
