//! The engine, run with the planned flags and a full prompt while NVML is watched.

mod library;
mod oracle;
mod server;
mod transcript;
mod version;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::hold::Held;
use crate::log::SaidBuffers;
use crate::watch::{Seen, Watch};
use crate::{Card, Error, Expected};
use transcript::Transcript;

pub(crate) use version::{build_name, loaded_cuda};

/// How long the watch is left to see the last of it: several of its looks at which processes are the engine's, for only
/// those are learned from.
const LAST_LOOK: Duration = Duration::from_millis(400);

/// Between two looks at whether an engine has ended by itself.
const PERIOD: Duration = Duration::from_millis(100);

/// Which program it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineKind {
    /// llama.cpp's server.
    LlamaServer,
    /// The maintainers' kit's program over the prebuilt libllama (`crates/oracle/kit`): it takes header-only models,
    /// whose vocabulary a server would miss, and says its buffers in bytes.
    Oracle,
    /// A shared libllama of the modelled build: loaded by this program, in a process of its own.
    Libllama,
}

impl EngineKind {
    /// By the file's name: `oracle`, `libllama.so`, `libllama.so.0`, `libllama.cuda.v0.5.0.so`.
    pub fn of(program: &Path) -> EngineKind {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        match () {
            () if name.ends_with(".so") || name.contains(".so.") => EngineKind::Libllama,
            () if name.starts_with("oracle") => EngineKind::Oracle,
            () => EngineKind::LlamaServer,
        }
    }
}

/// How the engine is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program.
    pub program: PathBuf,
    /// Which it is.
    pub kind: EngineKind,
    /// How long it may take, from start to the last token.
    pub time: Duration,
    /// The cards, in CUDA's order.
    pub cards: Vec<Card>,
    /// `CUDA_VISIBLE_DEVICES` for the program, where it is to see others than this process.
    pub visible: Option<String>,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measurement {
    /// Which program.
    pub engine: EngineKind,
    /// What NVML showed of each card.
    pub seen: Vec<Option<Seen>>,
    /// What the engine says its version is, and the CUDA that it has loaded; none where it says nothing.
    #[serde(default)]
    pub version: Option<String>,
    /// What the engine itself says of each card's buffers.
    pub said: Vec<Option<SaidBuffers>>,
    /// Tokens of the prompt, of each sequence; 0 where the engine only loaded.
    pub prompt_tokens: u64,
    /// How long it took.
    pub seconds: u64,
}

/// What an engine that has come to an end says.
struct Ran {
    /// Of each sequence's prompt.
    prompt_tokens: u64,
    said: BTreeMap<usize, SaidBuffers>,
    version: Option<String>,
    /// The CUDA whose runtime it had loaded.
    cuda: Option<u32>,
    /// The prompt had been computed by then.
    computed: Instant,
}

/// A run with its deadline.
struct Run<'a> {
    expected: &'a Expected,
    options: &'a Options,
    deadline: Instant,
    watch: Watch,
    log: Transcript,
}

impl Run<'_> {
    /// With its output in `out`, where that is to be apart from the log.
    fn start(&self, arguments: &[OsString], out: Option<&Transcript>) -> Result<Held, Error> {
        self.start_program(&self.options.program, arguments, out)
    }

    /// As [`Run::start`], another program.
    fn start_program(
        &self,
        program: &Path,
        arguments: &[OsString],
        out: Option<&Transcript>,
    ) -> Result<Held, Error> {
        let out = out.map(Transcript::path);
        Held::start(
            program,
            arguments,
            &self.log.path(),
            out.as_deref(),
            self.options.visible.as_deref(),
        )
    }

    fn left(&self) -> Result<Duration, Error> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match left.is_zero() {
            false => Ok(left),
            true => Err(self.failed("did not come to an end in time and is killed")),
        }
    }

    /// Waits for an engine that ends by itself: how it did, and when it had computed, as it stays [`LAST_LOOK`] longer.
    fn end_of(&self, held: &mut Held) -> Result<(String, Instant), Error> {
        let how = loop {
            self.left()?;
            if let Some(how) = held.ended(PERIOD) {
                break how.to_string();
            }
        };
        let now = Instant::now();
        Ok((how, now.checked_sub(LAST_LOOK).unwrap_or(now)))
    }

    /// An error that ends with the log's last words.
    fn failed(&self, how: &str) -> Error {
        let log = self.log.text().unwrap_or_default();
        let words = |line: &&str| !line.trim().is_empty();
        let last: Vec<&str> = log.lines().rev().filter(words).take(3).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        let program = self.options.program.display();
        match last.is_empty() {
            true => Error::Engine(format!("{program} {how}")),
            false => Error::Engine(format!(
                "{program} {how}; its last words: {}",
                last.join(" / ")
            )),
        }
    }

    /// Tokens of one sequence that fill its context, but for what a server generates behind them. An embedding is made
    /// of one batch.
    fn prompt_tokens(&self) -> u64 {
        let e = self.expected;
        if self.options.kind == EngineKind::Oracle && e.has_draft {
            return 0; // it decodes no drafts
        }
        let full = match self.options.kind {
            EngineKind::Oracle => e.n_ctx_seq,
            EngineKind::Libllama => e.n_ctx_slot,
            EngineKind::LlamaServer => e.n_ctx_slot.saturating_sub(GENERATED + 1),
        };
        let most = if e.embeddings { e.n_ubatch } else { u64::MAX };
        full.min(most).max(1)
    }
}

/// Tokens that are generated behind a prompt. Few, so that the last batch of the prompt is nearly a full one.
pub(crate) const GENERATED: u64 = 3;

/// Runs the engine and watches it. It is killed, with all that it has started, before this returns, and also if this
/// process ends.
pub fn measure(expected: &Expected, options: &Options) -> Result<Measurement, Error> {
    let start = Instant::now();
    let (watch, starter) = Watch::new(&options.cards)?;
    let run = Run {
        expected,
        options,
        deadline: start + options.time,
        watch,
        log: Transcript::new()?,
    };
    let ran = match options.kind {
        EngineKind::LlamaServer => {
            let version = version::of_server(&run);
            Ran {
                version,
                ..server::run(&run, &starter)?
            }
        }
        EngineKind::Oracle => oracle::run(&run, &starter)?,
        EngineKind::Libllama => library::run(&run, &starter)?,
    };
    let seen = run.watch.seen(ran.computed);
    let n = options.cards.len();
    Ok(Measurement {
        engine: options.kind,
        seen,
        version: version::with_cuda(ran.version, ran.cuda),
        said: (0..n).map(|i| ran.said.get(&i).copied()).collect(),
        prompt_tokens: ran.prompt_tokens,
        seconds: start.elapsed().as_secs(),
    })
}
