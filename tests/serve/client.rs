//! A server of one's own, and a client that can also misbehave.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// `estimate serve`, killed when it is dropped.
pub struct Server {
    pub process: Child,
    pub address: String,
}

/// What came back.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

pub fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/gguf")
}

pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_estimate"));
    command.arg("serve").args(arguments);
    command.env_remove("VRAMFIT_TOKEN");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// As [`command`], on a port that is free, with the fixtures as models, where CUDA shows `gpus`.
pub fn command_on(install: &vramfit_vgpu::Install, gpus: &str, arguments: &[&str]) -> Command {
    let models = fixtures();
    let models = models.to_str().unwrap();
    let all = ["--listen", "127.0.0.1:0", "--models", models];
    let mut command = command(&[&all[..], arguments].concat());
    install.play(&mut command, gpus);
    command.env("LD_LIBRARY_PATH", install.folder());
    command
}

impl Server {
    /// On a port that is free, with the fixtures as models.
    pub fn start(arguments: &[&str]) -> Server {
        let models = fixtures();
        let models = models.to_str().unwrap();
        let mut all = vec!["--listen", "127.0.0.1:0", "--models", models];
        if !arguments.contains(&"--gpus") {
            all.extend(["--gpus", "80GiBx2"]);
        }
        all.extend(arguments);
        Server::spawn(command(&all))
    }

    pub fn spawn(mut command: Command) -> Server {
        let mut process = command.spawn().unwrap();
        let mut line = String::new();
        let out = process.stdout.as_mut().unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://");
        let Some(address) = address.map(str::to_string) else {
            let mut error = String::new();
            let stderr = process.stderr.as_mut().unwrap();
            stderr.read_to_string(&mut error).unwrap();
            panic!("it did not start: {line}{error}");
        };
        Server { process, address }
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        stream
    }

    /// A request with these further header lines.
    pub fn send(&self, method: &str, path: &str, headers: &[&str], body: &str) -> Response {
        let mut stream = self.connect();
        let request = request(method, path, headers, body);
        stream.write_all(request.as_bytes()).unwrap();
        response(stream)
    }

    pub fn get(&self, path: &str) -> Response {
        self.send("GET", path, &[], "")
    }

    pub fn post(&self, path: &str, body: &str) -> Response {
        self.send("POST", path, &["Content-Type: application/json"], body)
    }

    pub fn signal(&self, name: &str) {
        let id = self.process.id().to_string();
        let sent = Command::new("kill").args([name, &id]).status().unwrap();
        assert!(sent.success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub fn request(method: &str, path: &str, headers: &[&str], body: &str) -> String {
    let mut text = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    let has = |name: &str| headers.iter().any(|line| line.starts_with(name));
    if !has("Host:") {
        text += "Host: localhost\r\n";
    }
    if !has("Content-Length:") && !has("Transfer-Encoding:") {
        text += &format!("Content-Length: {}\r\n", body.len());
    }
    for line in headers {
        text += &format!("{line}\r\n");
    }
    format!("{text}\r\n{body}")
}

/// Everything until the server closes.
pub fn response(mut stream: TcpStream) -> Response {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    Response {
        status: status.unwrap_or(0),
        head: head.to_string(),
        body: body.to_string(),
    }
}

impl Response {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{self:?}"))
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let mut found = lines.filter(|(n, _)| n.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value)
    }

    /// A good answer.
    pub fn ok(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        match self.body.is_empty() {
            true => Value::Null,
            false => self.json(),
        }
    }

    /// A refusal, with its reason as it is promised.
    pub fn refused(&self, status: u16, kind: &str) -> Value {
        let problem = self.json();
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json")
        );
        assert_eq!(problem["type"], format!("urn:vramfit:{kind}"), "{self:?}");
        assert_eq!(problem["status"], status);
        let retry = problem["retry_after_s"].as_u64().map(|s| s.to_string());
        assert_eq!(self.header("retry-after"), retry.as_deref());
        let detail = problem["detail"].as_str().unwrap();
        assert!(!detail.is_empty() && !detail.contains('\n'));
        problem
    }
}
