//! What a server is told when it starts.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use subtle::ConstantTimeEq;
use vramfit::{GpuList, Probe};

/// A token shorter than this is guessed.
const MIN_TOKEN: usize = 16;

/// Everything that a server is told.
#[derive(Clone)]
#[non_exhaustive]
pub struct Config {
    /// Where it listens; anything but loopback needs a token.
    pub listen: SocketAddr,
    /// What clients have to show.
    pub token: Option<Token>,
    /// The GPUs that are promised. What is free of them is what models may take; with a probe, all of each is,
    /// less what the driver says that others take.
    pub gpus: GpuList,
    /// Who can say what is free now: these same GPUs by their `gpu_ids`.
    pub probe: Option<Arc<dyn Probe + Send + Sync>>,
    /// The GPUs' own names for the ledger; `CUDA0` and so on without them.
    pub gpu_ids: Option<Vec<String>>,
    /// What the ledger calls this host.
    pub host_name: String,
    /// Folders in which models may be.
    pub models: Vec<PathBuf>,
    /// The ledger's journal; in memory without one.
    pub ledger: Option<PathBuf>,
    /// How much it takes on.
    pub limits: Limits,
}

impl Config {
    /// On loopback, no models, a ledger in memory.
    pub fn new(gpus: GpuList) -> Config {
        Config {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8315),
            token: None,
            gpus,
            probe: None,
            gpu_ids: None,
            host_name: "localhost".to_string(),
            models: Vec::new(),
            ledger: None,
            limits: Limits::default(),
        }
    }
}

/// How much a server takes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Connections; more wait to be accepted.
    pub connections: usize,
    /// Requests at once; more are refused.
    pub requests: usize,
    /// Estimates and plans at once; more wait their turn. Of two and more, one is kept for short ones.
    pub workers: usize,
    /// For a client to send its headers, and then its body.
    pub receive: Duration,
    /// For a client to take more of its answer.
    pub send: Duration,
    /// For a request's turn to come.
    pub wait: Duration,
    /// For requests under way when the server is told to stop, and then for what is still computed.
    pub shutdown: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            body_bytes: 64 << 10,
            connections: 1024,
            requests: 512,
            workers: std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2)),
            receive: Duration::from_secs(10),
            send: Duration::from_secs(10),
            wait: Duration::from_secs(10),
            shutdown: Duration::from_secs(10),
        }
    }
}

/// A secret that clients show. Not to be seen in any output.
#[derive(Clone)]
pub struct Token(String);

/// Why a text is no token.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Too easily guessed.
    #[error(
        "a token needs {MIN_TOKEN} characters or more, such as those of `openssl rand -hex 32`"
    )]
    Short,
    /// Could not be sent in a header.
    #[error("a token is one line of visible ASCII characters")]
    Unprintable,
}

impl Token {
    /// The text without white space around it.
    pub fn new(text: &str) -> Result<Token, TokenError> {
        let text = text.trim();
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::Unprintable);
        }
        match text.len() < MIN_TOKEN {
            true => Err(TokenError::Short),
            false => Ok(Token(text.to_string())),
        }
    }

    /// Whether `shown` is it, in a time that does not depend on where they part.
    pub(crate) fn is(&self, shown: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(shown).into()
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}
