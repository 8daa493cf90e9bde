//! The help: the flag table, laid out so that llama.cpp's own short names are seen.

use clap::{Arg, Command};
use vramfit::devices::GPUS_HELP;
use vramfit::report::words;

use crate::flags::{FLAGS, Flag, Group, Takes};
use crate::printer::terminal_width;

/// `--version`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

const ABOUT: &str = "\
Says what a GGUF model takes on each GPU under llama.cpp, to the byte, and
where every layer should go, before anything is loaded. Only the header is read.
";

const USAGE: &str = "\
Usage: estimate MODEL.. [FLAGS]            one model, several, or a folder
       estimate explain MODEL.. [FLAGS]    what fills the compute buffers
       estimate compare MODEL [FLAGS]      Ollama's old estimates and llama.cpp's bytes
       estimate calibrate MODEL --engine PATH   measure a plan on this machine's GPUs
       estimate strip MODEL -o FILE        a copy of the header, enough for this
       estimate gpus [FILTER]              this machine's GPUs, and those known by name
       estimate serve [FLAGS]              the same over HTTP, with a ledger
       estimate schema [OF]                JSON Schema of what --json prints
       estimate completions SHELL, estimate man
";

const EXAMPLES: &str = "\
Examples:
  estimate model.gguf --gpus k80x2
  estimate model.gguf --gpus rtx3060:free=9GiB -c 32768 -ctk q8_0 -ctv q8_0
  estimate model.gguf --gpus 24GiB,12GiB -ngl all -ts 2,1
  estimate models/ --gpus p40 --json
  estimate explain model.gguf --gpus k80 -c 8192
  estimate compare ollama:gemma3:12b --gpus k80x2
  estimate serve --models ~/models --gpus h100x2 --ledger ledger.redb
";

const EXIT: &str = "\
Exit status: 0 if everything fits on the GPUs as asked, 1 if it does not (in
part included), 2 for an error, with one line on stderr that says what to do.
";

const GROUPS: [Group; 4] = [Group::Model, Group::Memory, Group::Placement, Group::Output];
/// Where the words begin.
const INDENT: usize = 32;
/// Wider than this, lines are hard to read.
const MOST_WIDTH: usize = 100;

/// Heading of a group.
pub fn heading(group: Group) -> &'static str {
    match group {
        Group::Model => "Model and context",
        Group::Memory => "Memory",
        Group::Placement => "Placement",
        Group::Output => "Output",
        Group::Ignored => "Ignored",
    }
}

/// `estimate --help`.
pub fn main() -> String {
    let mut text = format!("{ABOUT}\n{USAGE}\n");
    text += "Flags are llama.cpp's, with its environment variables (in brackets).\n";
    for group in GROUPS {
        text += &flags(group, &[]);
    }
    text += &line("-h, --help", "this text");
    text += &line(
        "-V, --version",
        "the version, and the engine build it speaks of",
    );
    text += "\nSPEC of --gpus:\n";
    for line in GPUS_HELP.lines() {
        text += &format!("  {line}\n");
    }
    format!("{text}\n{EXIT}\n{EXAMPLES}")
}

/// A subcommand that takes a model, for its help.
pub struct Sub {
    /// What it is called.
    pub name: &'static str,
    /// Behind the name.
    usage: &'static str,
    /// What it has beside the flags, or for one of them.
    own: &'static [&'static str],
    /// Flags that it has no use for.
    left_out: &'static [&'static str],
}

/// All of them.
pub const SUBS: [Sub; 3] = [
    Sub {
        name: "explain",
        usage: "MODEL.. [FLAGS]",
        own: &["all"],
        left_out: &["engine", "fixed", "ollama-rules"],
    },
    Sub {
        name: "compare",
        usage: "MODEL [FLAGS]",
        own: &[],
        left_out: &["engine", "fixed"],
    },
    Sub {
        name: "calibrate",
        usage: "MODEL.. --engine PATH [FLAGS]",
        own: &[
            "engine",
            "engine-kind",
            "time-limit",
            "allocate",
            "report",
            "rows",
            "no-learn",
        ],
        left_out: &["fixed", "ollama-rules"],
    },
];

/// `estimate explain --help` and its like: `command` as clap knows it, and the flags as in the main help.
pub fn sub(sub: &Sub, command: &Command) -> String {
    let width = terminal_width().map_or(MOST_WIDTH, |width| width.min(MOST_WIDTH));
    let about = command.get_about().map(ToString::to_string);
    let about = words(&format!("{}.", about.unwrap_or_default()), "", "", width);
    let mut text = format!("{about}\nUsage: estimate {} {}\n", sub.name, sub.usage);
    if !sub.own.is_empty() {
        text.push('\n');
    }
    for id in sub.own {
        let arg = command.get_arguments().find(|arg| arg.get_id() == id);
        text += &arg.map_or_else(String::new, own);
    }
    for group in GROUPS {
        text += &flags(group, &[sub.own, sub.left_out].concat());
    }
    format!("{text}\nSPEC of --gpus: see `estimate --help`.\n")
}

fn own(arg: &Arg) -> String {
    let values = arg.get_value_names().unwrap_or_default();
    let names: Vec<String> = arg
        .get_long()
        .map(|long| format!("--{long}"))
        .into_iter()
        .chain(values.iter().map(ToString::to_string))
        .collect();
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    line(&names.join(" "), &help)
}

/// What follows the flags in the man page.
pub fn after() -> String {
    format!("SPEC of --gpus:\n{GPUS_HELP}\n\n{EXIT}\n{EXAMPLES}")
}

fn flags(group: Group, left_out: &[&str]) -> String {
    let mut text = format!("\n{}:\n", heading(group));
    let is_shown = |flag: &&Flag| flag.group == group && !left_out.contains(&flag.id());
    for flag in FLAGS.iter().filter(is_shown) {
        let env = match flag.env {
            "" => String::new(),
            env => format!(" [{env}]"),
        };
        let choices = match flag.choices {
            [] => String::new(),
            choices => format!("; {}", choices.join(", ")),
        };
        text += &line(&names(flag), &format!("{}{choices}{env}", flag.help));
    }
    text
}

/// `-ngl, --n-gpu-layers N`.
fn names(flag: &Flag) -> String {
    let shown = |name: &&&str| !name.starts_with("--");
    let mut names: Vec<&str> = flag.aliases.iter().filter(shown).copied().collect();
    names.push(flag.long);
    names.extend(flag.negative.iter().rev());
    let value = match flag.takes {
        Takes::Nothing => String::new(),
        Takes::One(value) | Takes::Each(value) => format!(" {value}"),
        Takes::Two([first, second]) => format!(" {first} {second}"),
    };
    format!("{}{value}", names.join(", "))
}

fn line(names: &str, help: &str) -> String {
    let width = terminal_width().map_or(MOST_WIDTH, |width| width.min(MOST_WIDTH));
    let first = format!("  {names:<left$}", left = INDENT - 2);
    let rest = " ".repeat(INDENT);
    if names.chars().count() > INDENT - 4 {
        return format!("{}\n{}", first.trim_end(), words(help, &rest, &rest, width));
    }
    words(help, &first, &rest, width)
}
