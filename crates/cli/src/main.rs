//! `estimate`: what a GGUF model takes on each GPU, and where every layer should go.
//!
//! Flags are data ([`flags`]), made into clap's ([`command`]) after llama.cpp's short names are
//! spelled out ([`argv`]); what was said ([`low`]) becomes settings ([`settings`], [`placement`]),
//! and everything that is printed goes through one [`printer`].

mod adapters;
mod argv;
#[cfg(target_os = "linux")]
mod calibrate;
mod classic;
mod command;
mod compare;
mod draft;
mod elsewhere;
mod estimate;
mod exit;
mod explain;
mod flags;
mod gpus;
mod help;
mod inputs;
mod low;
mod ollama;
mod placement;
mod printer;
mod probe;
mod projector;
mod serve;
mod settings;
mod tools;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::ArgMatches;
use clap::error::ErrorKind;

use vramfit::EngineProfile;

use exit::Exit;
use low::LowArgs;
use ollama::Ollama;
use printer::Printer;
use settings::Settings;

fn main() -> ExitCode {
    vramfit::answer_probe();
    #[cfg(target_os = "linux")]
    vramfit_calibrate::answer_child();
    let exit = run(std::env::args_os()).unwrap_or_else(|message| {
        let line = vramfit::report::one_line(&message);
        // Where standard error is closed too, the exit code has to do.
        let _ = writeln!(std::io::stderr(), "estimate: {line}");
        Exit::Error
    });
    exit.into()
}

fn env(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

fn run(arguments: impl IntoIterator<Item = OsString>) -> Result<Exit, String> {
    let mut arguments = argv::normalise(arguments)
        .map_err(|error| format!("{error}; `estimate --help` lists the flags"))?;
    if let [_, word] = arguments.as_mut_slice() {
        command_word(word);
    }
    let for_help = arguments
        .iter()
        .any(|word| word == "--help" || word == "-h");
    let command = match for_help {
        true => command::command(),
        false => command::command_without_help(),
    };
    let matches = match command.try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) => return usage(&error),
    };
    match matches.subcommand() {
        Some(("explain", sub)) => model_command(sub, Task::Explain),
        Some(("compare", sub)) => model_command(sub, Task::Compare),
        #[cfg(target_os = "linux")]
        Some(("calibrate", sub)) => calibrate::run(sub),
        #[cfg(not(target_os = "linux"))]
        Some(("calibrate", _)) => Err("calibrate is there on Linux only".to_string()),
        Some(("strip", sub)) => tools::strip(
            &ollama::file(path(sub, "MODEL"), &env)?,
            path(sub, "output"),
            sub.get_flag("keep-tokens"),
            sub.get_flag("full"),
        ),
        Some(("gpus", sub)) => gpus::run(sub),
        Some(("serve", sub)) => serve::run(sub, &env),
        Some(("schema", sub)) => tools::print_schema(text(sub, "OF")),
        Some(("completions", sub)) => tools::completions(sub),
        Some(("man", _)) => tools::man(),
        _ => model_command(&matches, Task::Estimate),
    }
}

/// `estimate help` and `estimate version`, where no model is called so.
fn command_word(word: &mut OsString) {
    let flags = [("help", "--help"), ("version", "--version")];
    let flag = flags.into_iter().find(|(name, _)| word == name);
    if let Some((_, flag)) = flag.filter(|_| !Path::new(word).exists()) {
        *word = flag.into();
    }
}

fn path<'a>(matches: &'a ArgMatches, id: &str) -> &'a Path {
    let path = matches.get_one::<PathBuf>(id);
    path.map_or(Path::new(""), PathBuf::as_path)
}

fn text<'a>(matches: &'a ArgMatches, id: &str) -> &'a str {
    matches.get_one::<String>(id).map_or("", String::as_str)
}

/// What is done with a model.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Task {
    Estimate,
    Explain,
    Compare,
}

fn model_command(matches: &ArgMatches, task: Task) -> Result<Exit, String> {
    let mut low = LowArgs::new(matches, &env)?;
    if low.models.is_empty() {
        return Err(
            "no model given; `estimate MODEL --gpus k80x2`, or `estimate --help`".to_string(),
        );
    }
    let engines = ["llama.cpp", "llama.cpp-2025", "ollama-classic"];
    let asked = settings::text_of(&low, "engine", &engines)?;
    let is_classic = asked == Some("ollama-classic");
    let build = match asked {
        Some("llama.cpp-2025") if task != Task::Estimate => {
            return Err(
                "--engine llama.cpp-2025: explain and compare are of v0.5.0 alone".to_string(),
            );
        }
        Some("llama.cpp-2025") => &EngineProfile::MEASURED_ON_K80,
        _ => &vramfit::ENGINE,
    };
    let ollama = Ollama::new(&mut low, is_classic || task == Task::Compare, &env)?;
    let mut printer = Printer::new(&low, &env)?;
    // A model that is not there is told before a machine without GPUs is.
    let inputs = inputs::inputs(&low.models)?;
    let mut settings = Settings::of(&low, build)?;
    settings.from_ollama = ollama.model.as_ref().map(|model| model.name.to_string());
    settings.takes_towers = ollama.model.is_some() || task == Task::Compare;
    if task != Task::Compare && !is_classic {
        settings.obey(&ollama.variables);
    }
    let n_gpus = settings.gpus.devices.len();
    match task {
        Task::Compare if low.is_on("fixed") => {
            Err("--fixed: compare shows both forms without being asked".to_string())
        }
        Task::Compare => match inputs.models.as_slice() {
            [path] if !inputs.many => compare::run(&low, path, settings, &ollama, &mut printer),
            _ => Err("compare takes one model at a time".to_string()),
        },
        Task::Explain if is_classic => Err(
            "explain is about llama.cpp's buffers; --engine ollama-classic has none".to_string(),
        ),
        Task::Estimate if is_classic => {
            let engine = |path: &Path| classic::document(path, &low, &settings, &ollama);
            estimate::run(&inputs, n_gpus, &engine, &mut printer)
        }
        _ if low.is_on("fixed") => {
            Err("--fixed: only --engine ollama-classic has a fixed form".to_string())
        }
        _ if low.value("ollama-rules").is_some() => {
            Err("--ollama-rules: only --engine ollama-classic and compare go by them".to_string())
        }
        Task::Explain => explain::run(&inputs, &settings, matches.get_flag("all"), &mut printer),
        Task::Estimate => {
            settings.notes.extend(ollama.notes);
            let engine = |path: &Path| estimate::document(path, &settings);
            estimate::run(&inputs, n_gpus, &engine, &mut printer)
        }
    }
}

/// Help and version are printed; a wrong command line is told on one line.
fn usage(error: &clap::Error) -> Result<Exit, String> {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Printer::plain().print(&format!("{}\n", text.trim_end()))?;
            Ok(Exit::Fits)
        }
        ErrorKind::DisplayVersion => {
            let engine = vramfit::ENGINE.name;
            Printer::plain().print(&format!("estimate {} for {engine}\n", help::VERSION))?;
            Ok(Exit::Fits)
        }
        _ => Err(one_line(&text)),
    }
}

/// clap's message up to its usage: what is wrong, and its tips.
fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim);
    let told = lines.take_while(|line| !line.starts_with("Usage:"));
    let told = told.filter(|line| !line.is_empty() && !line.starts_with("For more information"));
    let words: Vec<&str> = told.collect();
    let text = words.join(" ").replace(" tip: ", "; ");
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    format!("{text}; `estimate --help` lists the flags")
}

#[cfg(test)]
mod tests {
    #[test]
    fn usage_errors_are_one_line() {
        let check = |line: &str, expected: &str| {
            let error = super::run(line.split(' ').map(Into::into)).unwrap_err();
            assert_eq!(error, expected, "{line}");
        };
        check(
            "estimate m.gguf --ctx-sise 5",
            "unexpected argument '--ctx-sise' found; a similar argument exists: '--ctx-size'; \
             `estimate --help` lists the flags",
        );
        check(
            "estimate m.gguf -nglx 5",
            "unknown flag -nglx; `estimate --help` lists the flags",
        );
        check(
            "estimate m.gguf --control-vector-layer-range 1",
            "2 values required for '--control-vector-layer-range <START> <END>' but 1 was provided; \
             `estimate --help` lists the flags",
        );
        check(
            "estimate strip m.gguf",
            "the following required arguments were not provided: --output <FILE>; \
             `estimate --help` lists the flags",
        );
    }
}
