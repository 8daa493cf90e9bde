//! A program that behaves as llama-server does, as far as calibration looks: it takes the memory that it is told to on
//! the GPUs that CUDA shows, says so in its log, and answers on its port. It is this test's own executable, behind a
//! shell script that passes the arguments on.

use std::ffi::c_int;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use libloading::Library;
use serde::{Deserialize, Serialize};

const MIB: f64 = (1 << 20) as f64;
const VARIABLE: &str = "STAND_IN";
const ARGUMENTS: &str = "STAND_IN_ARGUMENTS";

/// Settings of the engine in a user's environment, which no plan knows of, so that the engine has not to have them...
pub const NOT_PASSED_ON: [&str; 3] = [
    "LLAMA_LOG_COLORS",
    "GGML_CUDA_CUBLAS_COMPUTE_TYPE",
    "GGML_CUDA_DISABLE_GRAPHS",
];
/// ...and the one that it may need.
pub const PASSED_ON: &str = "GGML_BACKEND_PATH";

/// What it does.
#[derive(Clone, Serialize, Deserialize)]
pub struct Part {
    /// On each device: weights, caches, compute buffer, what it takes while it computes, and what no log names.
    pub devices: Vec<[u64; 5]>,
    /// `""`, or where it stops to behave: `start`, `never ready`, `prompt`, `lies`, `silent`.
    pub fault: String,
    /// Tokens that the prompt has to have.
    pub prompt: usize,
    /// So many of them have to come before any is answered.
    pub prompts: usize,
    /// A draft's weights, caches and compute buffer on each device.
    pub draft: Vec<[u64; 3]>,
    /// What a projector takes on the first device, and its compute buffer among it.
    pub projector: [u64; 2],
    /// What its arguments have to hold.
    pub arguments: Vec<String>,
    /// What it says to `--version`.
    pub version: Option<String>,
    /// What `CUDA_VISIBLE_DEVICES` has to be, if anything.
    pub visible: Option<String>,
}

impl Default for Part {
    fn default() -> Part {
        Part {
            devices: Vec::new(),
            fault: String::new(),
            prompt: 0,
            prompts: 1,
            draft: Vec::new(),
            projector: [0; 2],
            arguments: Vec::new(),
            version: Some("0.5.0 (build 1, commit 1a2b3c4)".to_owned()),
            visible: None,
        }
    }
}

/// A script that plays `part`: below a shell that stays, or in a session of its own below one, if its name says so.
pub fn script(folder: &Path, name: &str, part: &Part) -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let json = serde_json::to_string(part).unwrap();
    let shell_is_left = "\necho the shell is left >&2";
    let (before, behind) = match name {
        name if name.contains("session") => ("setsid ", shell_is_left),
        name if name.contains("shell") => ("", shell_is_left),
        _ => ("exec ", ""),
    };
    let text = format!(
        "#!/bin/sh\nexport {VARIABLE}='{json}'\nexport {ARGUMENTS}=\"$*\"\n\
         {before}'{}' --exact stand_in::play --ignored --nocapture{behind}\n",
        program.display()
    );
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, mode).unwrap();
    path
}

#[test]
#[ignore = "the stand-in itself: other tests start it"]
fn play() {
    let Ok(json) = std::env::var(VARIABLE) else {
        return;
    };
    let part: Part = serde_json::from_str(&json).unwrap();
    for name in NOT_PASSED_ON {
        assert!(std::env::var_os(name).is_none(), "{name}");
    }
    assert!(std::env::var_os(PASSED_ON).is_some());
    let arguments = std::env::var(ARGUMENTS).unwrap();
    if arguments == "--version" {
        if let Some(version) = &part.version {
            eprintln!("version: {version}\nbuilt with GNU 14 for Linux");
        }
        return;
    }
    if part.fault == "start" {
        eprintln!("error: failed to load model");
        std::process::exit(1);
    }
    let port = arguments.split(' ').skip_while(|w| *w != "--port").nth(1);
    for argument in &part.arguments {
        assert!(arguments.contains(argument), "{argument}: {arguments}");
    }
    if let Some(list) = &part.visible {
        assert_eq!(&std::env::var("CUDA_VISIBLE_DEVICES").unwrap(), list);
    }
    let cuda = Cuda::new();
    let kinds = ["model", "KV", "compute"];
    for (device, bytes) in part.devices.iter().enumerate() {
        cuda.take(device, bytes[4]);
        for (kind, &bytes) in kinds.iter().zip(bytes) {
            cuda.take(device, bytes);
            if bytes > 0 && part.fault != "silent" {
                let more = if part.fault == "lies" { 1.0 } else { 0.0 };
                let mib = bytes as f64 / MIB + more;
                eprintln!("load: CUDA{device} {kind} buffer size = {mib:8.2} MiB");
            }
        }
    }
    for (device, bytes) in part.draft.iter().enumerate() {
        for (kind, &bytes) in kinds.iter().zip(bytes) {
            cuda.take(device, bytes);
            let mib = bytes as f64 / MIB;
            eprintln!("load: CUDA{device} {kind} buffer size = {mib:8.2} MiB");
        }
    }
    if part.projector[0] > 0 {
        cuda.take(0, part.projector[0]);
        let mib = part.projector[1] as f64 / MIB;
        eprintln!("alloc_compute_meta:      CUDA0 compute buffer size = {mib:8.2} MiB");
    }
    let port: u16 = port.unwrap().parse().unwrap();
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let mut asked = 0;
    let mut waiting = Vec::new();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let (line, body) = request(&mut stream);
        asked += 1;
        let (status, answer) = match () {
            () if line.starts_with("GET /health ") && part.fault == "never ready" => (503, "{}"),
            // Still loading, the first time.
            () if line.starts_with("GET /health ") && asked == 1 => (503, "{}"),
            () if line.starts_with("GET /health ") => (200, r#"{"status":"ok"}"#),
            () if line.starts_with("POST /completion ") && part.fault == "prompt" => {
                (400, r#"{"error":{"message":"the prompt is too long"}}"#)
            }
            () if line.starts_with("POST /completion ") => {
                let json: serde_json::Value = serde_json::from_str(&body).unwrap();
                assert_eq!(json["prompt"].as_array().unwrap().len(), part.prompt);
                for (device, bytes) in part.devices.iter().enumerate() {
                    cuda.take(device, bytes[3]);
                }
                (200, r#"{"content":"so"}"#)
            }
            () => (404, "{}"),
        };
        waiting.push(stream);
        if line.starts_with("POST /completion ") && waiting.len() < part.prompts {
            continue;
        }
        let n = answer.len();
        for mut stream in waiting.drain(..) {
            let _ = write!(
                stream,
                "HTTP/1.1 {status} X\r\nContent-Length: {n}\r\nConnection: close\r\n\r\n{answer}"
            );
        }
    }
}

fn request(stream: &mut TcpStream) -> (String, String) {
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).unwrap();
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let line = line.trim().to_lowercase();
        if let Some(n) = line.strip_prefix("content-length:") {
            length = n.trim().parse().unwrap();
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    (first, String::from_utf8(body).unwrap())
}

/// The few calls of the driver that it needs.
struct Cuda(Library);

impl Cuda {
    fn new() -> Cuda {
        // SAFETY: the library is CUDA's driver, played or real.
        let library = unsafe { Library::new("libcuda.so.1") }.unwrap();
        let cuda = Cuda(library);
        // SAFETY: as the driver documents it.
        let rc = unsafe {
            let init = cuda
                .0
                .get::<unsafe extern "C" fn(u32) -> c_int>(b"cuInit\0");
            init.unwrap()(0)
        };
        assert_eq!(rc, 0);
        cuda
    }

    fn take(&self, device: usize, bytes: u64) {
        if bytes == 0 {
            return;
        }
        type Retain = unsafe extern "C" fn(*mut usize, c_int) -> c_int;
        type Current = unsafe extern "C" fn(usize) -> c_int;
        type Alloc = unsafe extern "C" fn(*mut u64, usize) -> c_int;
        // SAFETY: as the driver documents them; the context is never given back.
        unsafe {
            let (mut context, mut address) = (0, 0);
            let retain = self.0.get::<Retain>(b"cuDevicePrimaryCtxRetain\0").unwrap();
            assert_eq!(retain(&mut context, device as c_int), 0);
            let current = self.0.get::<Current>(b"cuCtxSetCurrent\0").unwrap();
            assert_eq!(current(context), 0);
            let alloc = self.0.get::<Alloc>(b"cuMemAlloc_v2\0").unwrap();
            assert_eq!(alloc(&mut address, bytes as usize), 0, "{bytes}");
        }
    }
}
