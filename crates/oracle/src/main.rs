//! Development only: the real llama.cpp on imaginary GPUs, and the truth tables made with it.
//!
//! ```text
//! cargo run --release -p vramfit-oracle -- setup [DIR]       fetch and build the engine and its imaginary GPUs
//! cargo run --release -p vramfit-oracle -- run MODEL FLAGS   one run; see crates/oracle/kit/README.md
//! cargo run --release -p vramfit-oracle -- truth             fixtures/truth/llama.cpp-v0.5.0-cuda13.tsv
//! cargo run --release -p vramfit-oracle -- graphs            fixtures/graphs
//! cargo run --release -p vramfit-oracle -- pool              fixtures/truth/pool-llama.cpp-v0.5.0-cuda13.tsv
//! cargo run --release -p vramfit-oracle -- pool --kind legacy   fixtures/truth/pool-legacy-llama.cpp-v0.5.0-cuda13.tsv
//! cargo run --release -p vramfit-oracle -- pool --kind histories   fixtures/truth/pool-histories-llama.cpp-v0.5.0-cuda13.tsv
//! cargo run --release -p vramfit-oracle -- pool --kind tensor   fixtures/truth/pool-tensor-llama.cpp-v0.5.0-cuda13.tsv
//! cargo run --release -p vramfit-oracle -- real-model        target/real-model: engine and estimate side by side
//! cargo run -p vramfit-oracle -- diff [MODEL..]              random settings until stopped, engine against estimate
//! cargo run --release -p vramfit-oracle -- plans             fixtures/truth/plans-llama.cpp-v0.5.0.tsv
//! cargo run --release -p vramfit-oracle -- table             README.md: architectures, how many cases stand behind them, and the figures in its words
//! cargo run -p vramfit-oracle -- adapters                    fixtures/truth/adapters-llama.cpp-v0.5.0.tsv
//! cargo run -p vramfit-oracle -- allocations                 fixtures/truth/allocations-llama.cpp-v0.5.0.tsv
//! cargo run -p vramfit-oracle -- drafts [FILE..]             fixtures/truth/drafts-llama.cpp-v0.5.0.tsv
//! cargo run --release -p vramfit-oracle -- synth [NAME...]   fixtures/specs/NAME.toml to fixtures/gguf/made/NAME.gguf
//! cargo run -p vramfit-oracle -- mmproj [NAME...]            fixtures/specs/mmproj/NAME.toml to fixtures/gguf/mmproj/NAME.gguf,
//!                                                            and fixtures/truth/mmproj-llama.cpp-v0.5.0.tsv
//! ```

mod adapters;
mod allocations;
mod case;
/// How the tests turn a row into settings, and hold two answers side by side.
#[path = "../../../tests/common/mod.rs"]
mod common;
mod diff;
mod drafts;
mod error;
mod estimate;
mod graphs;
mod grid;
mod kit;
mod mmproj;
mod models;
mod plan_cases;
mod plans;
mod pool;
mod random;
mod real_model;
mod row;
mod sampled;
mod settings;
mod synth;
mod tensor_split;
mod truth;

use std::ffi::OsString;
use std::process::ExitCode;

use error::{Context, Error, Result};

const USAGE: &str = "usage: oracle COMMAND
  setup [DIR]            fetch and build the real engine (kit/setup.sh)
  run MODEL [FLAGS]      one run of the real engine, or --jobs FILE, or --help (kit/README.md)
  truth [--models real|made] [--random N] [--per-model N] [--workers N] [--work DIR] [--out FILE]
                         the truth table; goes on where it stopped
  graphs [--out DIR]     the real compute graphs, node by node
  pool [--kind vmm|legacy|histories|tensor] [--workers N] [--known FILE] [--out FILE]
                         what ggml-cuda takes beside the buffers while it computes, with either kind of pool;
                         what the table --known has is not measured again
  real-model [--estimate PATH] [--compare no]
                         a downloaded model: engine and estimate side by side
  diff [MODEL.gguf ..] [--cases N] [--minutes M] [--seed S] [--workers N] [--graph]
       [--as-unknown]
                         random settings on random devices until stopped, engine against estimate; N cases a model;
                         models: of fixtures/gguf, or a path; none: all of them; --graph: node lists alone; --as-unknown: as if we
                         knew none of their architectures: are our bounds never below?
  diff --mutate [NAME..] [--rounds N] [--minutes M] [--seed S] [--workers N] [--cases N]
                         the same for models made up by chance from specs and header-only files; N cases a mutant
  plans [--n N] [--workers N] [--estimate PATH] [--out FILE]
                         estimate's plans, loaded for real on GPUs too small for comfort
  adapters [MODEL.gguf] [--per-model N] [--seed S] [--workers N] [--out FILE]
                         random cases with LoRA adapters and control vectors, engine against estimate, and their
                         table; of one real model an architecture and all made ones, or of one model without a table
  allocations [--out FILE]
                         every buffer that a load takes on the GPUs, one by one and in order, and their table
  drafts [FILE..] [--per-pair N] [--seed S] [--out FILE]
                         targets with a draft beside them (fixtures/specs/drafts/pairs.toml), engine against estimate,
                         node by node, and their table; of pairs with one of these files, or with another seed than 0,
                         without a table
  tensor-split [MODEL.gguf] [..]
                         the same with -sm tensor
  table                  the README's table of architectures and the figures in its words, from the truth tables
  synth [NAME...]        headers of models from the specs in fixtures/specs, all if none is named; NAME.toml with its
                         path makes the header beside it
  mmproj [NAME...]       headers of multimodal projectors from the specs in fixtures/specs/mmproj, all if none is named;
                         what each takes, engine against estimate, node by node; all: the truth table, too";

fn main() -> ExitCode {
    match command() {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(error) => {
            eprintln!("oracle: {error}");
            ExitCode::FAILURE
        }
    }
}

fn command() -> Result<i32> {
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if args.is_empty() {
        return Err(Error::new(USAGE));
    }
    let name = args.remove(0);
    match name.to_str() {
        Some("setup") => kit::setup(&args),
        Some("run") => kit::run(&args),
        Some("truth") => truth_command(&Options::of(
            &args,
            &[
                "--models",
                "--random",
                "--per-model",
                "--workers",
                "--work",
                "--out",
            ],
        )?),
        Some("allocations") => {
            let options = Options::of(&args, &["--out"])?;
            allocations::make(&options.get("--out").map_or_else(
                || models::fixtures().join("truth/allocations-llama.cpp-v0.5.0.tsv"),
                Into::into,
            ))
            .map(|()| 0)
        }
        Some("drafts") => drafts_command(args),
        Some("adapters") => sampled_command(sampled::Kind::Adapters, args),
        Some("tensor-split") => sampled_command(sampled::Kind::TensorSplit, args),
        Some("table") => table().map(|()| 0),
        Some("diff") => diff::run(&diff::Request::of(&texts(&args)?)?),
        Some("graphs") => {
            let options = Options::of(&args, &["--out"])?;
            graphs::make(
                &options
                    .get("--out")
                    .map_or_else(|| models::fixtures().join("graphs"), Into::into),
            )
            .map(|()| 0)
        }
        Some("plans") => plans_command(&Options::of(
            &args,
            &["--n", "--workers", "--estimate", "--out"],
        )?),
        Some("pool") => {
            let options = Options::of(&args, &["--kind", "--workers", "--out", "--known"])?;
            let kind = match options.get("--kind") {
                None | Some("vmm") => pool::Kind::Vmm,
                Some("legacy") => pool::Kind::Legacy,
                Some("histories") => pool::Kind::Histories,
                Some("tensor") => pool::Kind::Tensor,
                Some(other) => {
                    return Err(Error::new(format!(
                        "--kind is vmm, legacy, histories or tensor, not {other}"
                    )));
                }
            };
            pool::make(&pool::Request {
                kind,
                workers: options.number("--workers", 2)?,
                out: options.get("--out").map_or_else(
                    || models::fixtures().join("truth").join(kind.table()),
                    Into::into,
                ),
                known: options.get("--known").map(Into::into),
            })
            .map(|()| 0)
        }
        Some("real-model") => {
            let options = Options::of(&args, &["--estimate", "--compare"])?;
            real_model::run(
                options.get("--compare") != Some("no"),
                options.get("--estimate"),
            )
        }
        Some("synth") => {
            let names: Vec<String> = args
                .iter()
                .map(|arg| arg.to_string_lossy().into_owned())
                .collect();
            synth::run(&names)
        }
        Some("mmproj") => {
            let names: Vec<String> = texts(&args)?.into_iter().map(str::to_owned).collect();
            mmproj::run(&names)
        }
        Some("-h" | "--help") => {
            println!("{USAGE}");
            Ok(0)
        }
        _ => Err(Error::new(format!(
            "no command {}\n{USAGE}",
            name.display()
        ))),
    }
}

/// Writes the README's table of architectures.
fn table() -> Result<()> {
    let path = models::repository().join("README.md");
    let readme = std::fs::read_to_string(&path).context(path.display())?;
    let table = common::table::table();
    let readme =
        common::table::replaced(&readme, &table).context("no place for the table in README.md")?;
    let claims = common::figures::claims();
    let readme = common::figures::replaced(&readme, &claims).map_err(Error::new)?;
    std::fs::write(&path, readme).context(path.display())
}

fn truth_command(options: &Options) -> Result<i32> {
    let set = models::Set::named(options.get("--models").unwrap_or("real"))?;
    let (n_random, per_model, table) = match set {
        models::Set::Real => (130, 1_000, "truth/llama.cpp-v0.5.0-cuda13.tsv"),
        models::Set::Made => (15, 45, "truth/made-llama.cpp-v0.5.0-cuda13.tsv"),
    };
    truth::make(&truth::Request {
        set,
        n_random: options.number("--random", n_random)?,
        per_model: options.number("--per-model", per_model)?,
        workers: options.number("--workers", 2)?,
        work: options
            .get("--work")
            .map_or_else(|| std::env::temp_dir().join("vramfit-oracle"), Into::into),
        out: options
            .get("--out")
            .map_or_else(|| models::fixtures().join(table), Into::into),
    })?;
    Ok(0)
}

fn sampled_command(kind: sampled::Kind, mut args: Vec<OsString>) -> Result<i32> {
    let table = match kind {
        sampled::Kind::Adapters => "truth/adapters-llama.cpp-v0.5.0.tsv",
        sampled::Kind::TensorSplit => "truth/tensor-split-llama.cpp-v0.5.0.tsv",
    };
    let named = args
        .first()
        .is_some_and(|arg| !arg.to_string_lossy().starts_with('-'));
    let model = named.then(|| args.remove(0).into());
    let options = Options::of(&args, &["--per-model", "--seed", "--workers", "--out"])?;
    sampled::make(&sampled::Request {
        kind,
        per_model: options.number("--per-model", 2)?,
        seed: options.number("--seed", 0)? as u64,
        workers: options.number("--workers", 2)?,
        model,
        out: options
            .get("--out")
            .map_or_else(|| models::fixtures().join(table), Into::into),
    })
}

fn drafts_command(mut args: Vec<OsString>) -> Result<i32> {
    let is_option = |arg: &OsString| arg.to_string_lossy().starts_with('-');
    let at = args.iter().position(is_option).unwrap_or(args.len());
    let options = args.split_off(at);
    let options = Options::of(&options, &["--per-pair", "--seed", "--out"])?;
    let only: Vec<String> = texts(&args)?.into_iter().map(str::to_owned).collect();
    let seed = options.number("--seed", 0)? as u64;
    let is_table = only.is_empty() && seed == 0;
    let table = || models::fixtures().join("truth/drafts-llama.cpp-v0.5.0.tsv");
    drafts::make(&drafts::Request {
        per_pair: options.number("--per-pair", 14)?,
        seed,
        only,
        out: match options.get("--out") {
            Some(out) => Some(out.into()),
            None => is_table.then(table),
        },
    })
}

fn plans_command(options: &Options) -> Result<i32> {
    plans::run(&plans::Request {
        n: options.number("--n", 600)?,
        workers: options.number("--workers", 2)?,
        estimate: options.get("--estimate").map(str::to_owned),
        out: options.get("--out").map_or_else(
            || models::fixtures().join("truth/plans-llama.cpp-v0.5.0.tsv"),
            Into::into,
        ),
    })
}

fn texts(args: &[OsString]) -> Result<Vec<&str>> {
    args.iter()
        .map(|arg| arg.to_str().context("an argument that is not UTF-8"))
        .collect()
}

/// `--name value` pairs.
struct Options(Vec<(String, String)>);

impl Options {
    fn of(args: &[OsString], known: &[&str]) -> Result<Self> {
        let texts = texts(args)?;
        let mut pairs = Vec::new();
        for pair in texts.chunks(2) {
            match *pair {
                [name, value] if known.contains(&name) => {
                    pairs.push((name.to_owned(), value.to_owned()))
                }
                _ => {
                    return Err(Error::new(format!(
                        "cannot read {}\n{USAGE}",
                        pair.join(" ")
                    )));
                }
            }
        }
        Ok(Self(pairs))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .rev()
            .find(|pair| pair.0 == name)
            .map(|pair| pair.1.as_str())
    }

    fn number(&self, name: &str, default: usize) -> Result<usize> {
        self.get(name).map_or(Ok(default), |text| {
            text.parse().context(format!("{name} {text}"))
        })
    }
}
