//! The flags as clap sees them: for parsing, completions and the man page.

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, Command, ValueHint, value_parser};
use std::path::PathBuf;

use crate::flags::{FLAGS, Flag, Group, Takes, bare, is_short};
use crate::help;

/// What a command line may say, with the help.
pub fn command() -> Command {
    let main = command_without_help().override_help(help::main());
    help::SUBS.iter().fold(main, |main, sub| {
        main.mut_subcommand(sub.name, |command| {
            let text = help::sub(sub, &command);
            command.override_help(text)
        })
    })
}

/// The same without its help, which most calls have no use for.
pub fn command_without_help() -> Command {
    let models = |command: Command| {
        command
            .arg(
                Arg::new("MODEL")
                    .help("GGUF files, folders of them, or ollama:NAME; only headers are read")
                    .action(ArgAction::Append)
                    .num_args(0..)
                    .value_hint(ValueHint::AnyPath)
                    .value_parser(value_parser!(PathBuf)),
            )
            .args(FLAGS.iter().flat_map(args))
            .args_override_self(true)
    };
    let explain = models(Command::new("explain"))
        .about("Show which tensors make the compute buffers as large as they are")
        .arg(
            Arg::new("all")
                .long("all")
                .action(ArgAction::SetTrue)
                .help("show every tensor, not the 12 largest"),
        );
    models(Command::new("estimate"))
        .version(help::VERSION)
        .about("Say what a GGUF model takes on each GPU under llama.cpp, to the byte, and where every layer should go")
        .after_long_help(help::after())
        .args_conflicts_with_subcommands(true)
        .disable_help_subcommand(true)
        .subcommand(explain)
        .subcommand(
            models(Command::new("compare"))
                .about("Show what Ollama's classic estimator, its fixed form and llama.cpp's exact bytes say, and where they part"),
        )
        .subcommand(calibrate(models(Command::new("calibrate"))))
        .subcommand(strip())
        .subcommand(gpus())
        .subcommand(crate::serve::command())
        .subcommand(schema())
        .subcommand(completions())
        .subcommand(Command::new("man").about("Print the man page (roff)"))
}

fn strip() -> Command {
    Command::new("strip")
        .about("Write a header-only copy of a model: enough for every estimate, some KiB")
        .arg(file("MODEL", "the model; any part of a split one").required(true))
        .arg(
            file("output", "the copy")
                .long("output")
                .short('o')
                .value_name("FILE")
                .required(true),
        )
        .arg(
            Arg::new("keep-tokens")
                .long("keep-tokens")
                .action(ArgAction::SetTrue)
                .help("keep the vocabulary"),
        )
        .arg(switch(
            "full",
            "as long as the model, the weights being a hole: an engine loads it, as zeros, and takes the same memory",
        ))
}

fn gpus() -> Command {
    Command::new("gpus")
        .about("Show this machine's GPUs, and those that --gpus knows by name")
        .arg(
            Arg::new("FILTER")
                .help("any part of a name or generation: those of the catalogue alone")
                .conflicts_with_all(["here", "probe-timeout", "probe-context"]),
        )
        .arg(switch("here", "this machine's alone; no GPU is an error").conflicts_with("catalogue"))
        .arg(switch("catalogue", "the catalogue alone"))
        .arg(switch("json", "as JSON (`estimate schema gpus` describes it)"))
        .arg(
            Arg::new("probe-timeout")
                .long("probe-timeout")
                .value_name("SECONDS")
                .allow_negative_numbers(true)
                .help("how long the driver may take to answer (default 20)"),
        )
        .arg(switch(
            "probe-context",
            "where NVML cannot say what is free, ask from inside a short-lived CUDA context, which takes memory meanwhile",
        ))
}

fn schema() -> Command {
    Command::new("schema")
        .about("Print the JSON Schema of what --json prints")
        .arg(
            Arg::new("OF")
                .help(
                    "the estimate, explain's, compare's or gpus' output, or a failed model's line",
                )
                .default_value("estimate")
                .value_parser(["estimate", "explain", "compare", "gpus", "error"]),
        )
}

fn completions() -> Command {
    Command::new("completions")
        .about("Print completions for a shell")
        .arg(
            Arg::new("SHELL")
                .required(true)
                .value_parser(value_parser!(clap_complete::Shell)),
        )
}

fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .action(ArgAction::SetTrue)
        .help(help)
}

/// What `estimate calibrate` has beside the plan's flags.
fn calibrate(command: Command) -> Command {
    let engine = |arg: Arg| {
        arg.value_name("PATH")
            .help("a llama-server, or a shared libllama of v0.5.0: runs it with the planned flags and a full prompt, compares what NVML shows, and learns what CUDA itself takes")
            .value_parser(value_parser!(String))
    };
    command
        .about("Measure plans on this machine's GPUs: take their buffers, or run the engine, and learn what CUDA itself takes")
        .mut_arg("engine", engine)
        .arg(switch(
            "allocate",
            "take the planned buffers and say what the driver took for them",
        ))
        .arg(switch("no-learn", "leave the file of profiles as it is"))
        .arg(
            Arg::new("engine-kind")
                .long("engine-kind")
                .value_name("KIND")
                .value_parser(PossibleValuesParser::new(["llama-server", "libllama", "oracle"]))
                .help("what PATH is: llama-server, a shared libllama, or oracle, the maintainers' kit (default: by its name)"),
        )
        .arg(
            Arg::new("time-limit")
                .long("time-limit")
                .value_name("SECONDS")
                .value_parser(value_parser!(u64).range(1..=86_400))
                .help("for a model and the engine (default 900)"),
        )
        .arg(file("report", "the comparison as text, and as JSON in FILE.json").long("report").value_name("FILE"))
        .arg(file("rows", "measured rows as a table").long("rows").value_name("FILE"))
}

fn file(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .help(help)
        .value_hint(ValueHint::FilePath)
        .value_parser(value_parser!(PathBuf))
}

/// A flag, and its opposite where it has one. Names of several letters are left to
/// [`normalise`](crate::argv::normalise), so that the help names them.
fn args(flag: &'static Flag) -> Vec<Arg> {
    let hide = flag.group == Group::Ignored;
    let mut arg = Arg::new(flag.id())
        .long(flag.id())
        .help(help(flag, flag.aliases))
        .help_heading(help::heading(flag.group))
        .hide(hide);
    for &name in flag.aliases {
        arg = match name.chars().nth(1) {
            Some(letter) if is_short(name) && name.len() == 2 => arg.short(letter),
            _ if is_short(name) => arg,
            _ => arg.alias(bare(name)),
        };
    }
    arg = match flag.takes {
        Takes::Nothing => arg.action(ArgAction::SetTrue),
        Takes::One(value) => arg.value_name(value).action(ArgAction::Set),
        Takes::Each(value) => arg.value_name(value).action(ArgAction::Append),
        Takes::Two(values) => arg.value_names(values).action(ArgAction::Append),
    };
    if flag.takes_value() {
        arg = arg.allow_negative_numbers(true);
    }
    if flag.id() == "model" {
        arg = arg
            .value_hint(ValueHint::FilePath)
            .value_parser(value_parser!(PathBuf));
    } else if flag.id() == "flash-attn" {
        // llama.cpp's other words for them are read, not shown.
        arg = arg.value_parser(value_parser!(String));
    } else if !flag.choices.is_empty() {
        arg = arg.value_parser(PossibleValuesParser::new(flag.choices));
    }
    if flag.id() == "load-mode" {
        arg = arg.overrides_with_all(["mmap", "no-mmap"]);
    }
    if flag.id() == "mmap" {
        arg = arg.overrides_with("load-mode");
    }
    let Some(negative) = flag.negative_id() else {
        return vec![arg];
    };
    let mut opposite = Arg::new(negative)
        .long(negative)
        .action(ArgAction::SetTrue)
        .help(help_text("the opposite", &flag.negative[1..], ""))
        .help_heading(help::heading(flag.group))
        .overrides_with(flag.id());
    if flag.id() == "mmap" {
        opposite = opposite.overrides_with("load-mode");
    }
    vec![arg.overrides_with(negative), opposite]
}

fn help(flag: &Flag, names: &[&str]) -> String {
    help_text(flag.help, names, flag.env)
}

fn help_text(text: &str, names: &[&str], env: &str) -> String {
    let names = names.iter().filter(|name| name.len() > 2);
    let also: Vec<&str> = names
        .copied()
        .chain([env])
        .filter(|s| !s.is_empty())
        .collect();
    match also.is_empty() {
        true => text.to_string(),
        false => format!("{text} [{}]", also.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_is_sound() {
        super::command().debug_assert();
    }
}
