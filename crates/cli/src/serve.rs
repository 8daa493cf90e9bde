//! `estimate serve`: the same over HTTP, with a ledger.

use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint, value_parser};
use vramfit::devices::{DEFAULT_TIMEOUT, Note, ProbeError};
use vramfit::{Gpus, Probe};
use vramfit_serve::{Config, Server, Token, on_threads};

use crate::exit::Exit;
use crate::printer::Printer;
use crate::probe;

/// Where the token is looked for without `--token-file`.
const TOKEN: &str = "VRAMFIT_TOKEN";

/// Its flags.
pub fn command() -> Command {
    let value = |name: &'static str, shown: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(shown).help(help)
    };
    let file = |arg: Arg, hint| arg.value_parser(value_parser!(PathBuf)).value_hint(hint);
    Command::new("serve")
        .about(
            "Answer estimates, plans and reservations over HTTP, with a ledger of this host's GPUs",
        )
        .arg(
            file(
                value(
                    "models",
                    "DIR",
                    "a folder of models; clients name files below it (repeat for more)",
                ),
                ValueHint::DirPath,
            )
            .action(ArgAction::Append),
        )
        .arg(
            value(
                "gpus",
                "SPEC",
                "the GPUs to keep a ledger of; what is free of them is what models may take",
            )
            .default_value("auto"),
        )
        .arg(file(
            value(
                "ledger",
                "FILE",
                "the ledger's journal, of this host alone, which survives restarts and crashes (default: in memory)",
            ),
            ValueHint::FilePath,
        ))
        .arg(
            value(
                "listen",
                "ADDRESS",
                "address and port; anything but loopback needs a token",
            )
            .value_parser(value_parser!(SocketAddr))
            .default_value("127.0.0.1:8315"),
        )
        .arg(file(
            value(
                "token-file",
                "FILE",
                "clients have to show this file's line: Authorization: Bearer .. [VRAMFIT_TOKEN]",
            ),
            ValueHint::FilePath,
        ))
        .arg(
            value("host-name", "NAME", "what the ledger calls this host")
                .default_value("localhost"),
        )
        .arg(number(value(
            "workers",
            "N",
            "estimates and plans computed at once; of two and more, one is kept for short ones (default: one a core, at least 2)",
        )))
        .arg(number(value(
            "max-requests",
            "N",
            "requests at once; more are told to come back (default 512)",
        )))
        .arg(number(value(
            "max-connections",
            "N",
            "connections at once; more wait (default 1024)",
        )))
        .arg(number(value(
            "max-body",
            "BYTES",
            "largest body of a request (default 65536)",
        )))
        .arg(number(value(
            "timeout",
            "SECONDS",
            "for a client to send its request, for its turn to come, and for a client to read on (default 10)",
        )))
}

fn number(arg: Arg) -> Arg {
    arg.value_parser(value_parser!(u32).range(1..))
}

/// Serves until it is told to stop.
pub fn run(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Exit, String> {
    let config = config(matches, env)?;
    let has_no_models = config.models.is_empty();
    let served = on_threads(config.limits.shutdown, async {
        let stop = stop().map_err(|error| format!("cannot watch for signals: {error}"))?;
        let server = Server::bind(config)
            .await
            .map_err(|error| error.to_string())?;
        if has_no_models {
            let words = "no --models, so that no model can be named: only the ledger is served";
            let _ = writeln!(std::io::stderr(), "estimate: {words}");
        }
        Printer::plain().print(&format!("listening on http://{}\n", server.address()))?;
        server.run(stop).await;
        Ok(Exit::Fits)
    });
    served.map_err(|error| format!("cannot start: {error}"))?
}

/// SIGINT or SIGTERM.
#[cfg(unix)]
fn stop() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Ctrl-C.
#[cfg(not(unix))]
fn stop() -> std::io::Result<impl Future<Output = ()>> {
    Ok(async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}

fn config(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Config, String> {
    let mut config = gpus(matches, env)?;
    if let Some(address) = matches.get_one::<SocketAddr>("listen") {
        config.listen = *address;
    }
    if let Some(name) = matches.get_one::<String>("host-name") {
        config.host_name.clone_from(name);
    }
    let models = matches.get_many::<PathBuf>("models");
    config.models = models.into_iter().flatten().cloned().collect();
    config.ledger = matches.get_one::<PathBuf>("ledger").cloned();
    config.token = token(matches, env)?;
    let number = |name: &str| matches.get_one::<u32>(name).copied();
    let count = |name: &str| number(name).map(|n| n as usize);
    let limits = &mut config.limits;
    for (name, slot) in [
        ("workers", &mut limits.workers),
        ("max-requests", &mut limits.requests),
        ("max-connections", &mut limits.connections),
        ("max-body", &mut limits.body_bytes),
    ] {
        *slot = count(name).unwrap_or(*slot);
    }
    if let Some(seconds) = number("timeout") {
        let limit = Duration::from_secs(seconds.into());
        (limits.receive, limits.send, limits.wait) = (limit, limit, limit);
    }
    Ok(config)
}

/// The GPUs of `--gpus`. Those of this machine go by their UUIDs, and the driver is asked again and again
/// what is free of them.
fn gpus(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Config, String> {
    let text = matches.get_one::<String>("gpus");
    let gpus = text.map_or("auto", String::as_str).parse::<Gpus>();
    let probe = probe::child(DEFAULT_TIMEOUT, false)?;
    let failed = |error: ProbeError| error.to_string();
    let learned = |list| vramfit::with_profiles(list, env).map_err(|error| error.to_string());
    let (list, ids) = match gpus.map_err(|error| format!("--gpus: {error}"))? {
        Gpus::Auto => {
            let machine = probe.machine().map_err(failed)?;
            (machine.list(), machine.ids())
        }
        Gpus::AutoPicked(picks) => {
            let machine = probe.machine().map_err(failed)?;
            let list = machine.picked(&picks).map_err(failed)?;
            (list, machine.picked_ids(&picks).map_err(failed)?)
        }
        Gpus::List(list) => return Ok(Config::new(learned(list)?)),
    };
    let list = learned(list)?;
    for note in &list.notes {
        // What is free of a card is not always known, and all of it is promised then.
        if !matches!(note, Note::Probed { .. }) {
            let line = vramfit::report::one_line(&note.to_string());
            let _ = writeln!(std::io::stderr(), "estimate: {line}");
        }
    }
    let mut config = Config::new(list);
    config.gpu_ids = Some(ids);
    config.probe = Some(Arc::new(probe));
    Ok(config)
}

/// Of a file or the environment, not of the command line, which others can read.
fn token(
    matches: &ArgMatches,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Option<Token>, String> {
    let (by, text) = match matches.get_one::<PathBuf>("token-file") {
        Some(path) => {
            let shown = vramfit::report::one_line(&path.to_string_lossy());
            let text = std::fs::read_to_string(path);
            let text = text.map_err(|error| format!("--token-file {shown}: {error}"))?;
            (format!("--token-file {shown}"), text)
        }
        None => match env(TOKEN) {
            Some(text) => (TOKEN.to_string(), text.to_string_lossy().into_owned()),
            None => return Ok(None),
        },
    };
    let token = Token::new(&text).map_err(|error| format!("{by}: {error}"))?;
    Ok(Some(token))
}
