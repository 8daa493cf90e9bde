//! Standard output: as wide and colourful as it can be, and quiet once nobody reads it.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};

use vramfit::report::Style;

use crate::low::LowArgs;
use crate::settings::{number, text_of};

/// Narrowest text that is asked for.
const LEAST_WIDTH: usize = 20;

/// What goes to standard output.
pub struct Printer {
    /// How text may look.
    pub style: Style,
    /// JSON instead of text.
    pub json: bool,
    is_closed: bool,
}

impl Printer {
    /// As the flags say, else as the terminal is.
    pub fn new(low: &LowArgs, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Printer, String> {
        let choice = text_of(low, "color", &["auto", "always", "never"])?;
        let color = has_color(choice.unwrap_or("auto"), io::stdout().is_terminal(), env);
        let width = match low.value("width") {
            Some(said) => number::<usize>(said, "a number of columns")?,
            None => terminal_width().unwrap_or(80),
        };
        Ok(Printer {
            style: Style::new(width.max(LEAST_WIDTH), color),
            json: low.is_on("json"),
            is_closed: false,
        })
    }

    /// For what has no flags.
    pub fn plain() -> Printer {
        Printer {
            style: Style::new(terminal_width().unwrap_or(usize::MAX), false),
            json: false,
            is_closed: false,
        }
    }

    /// Writes; after the reader has gone, nothing.
    pub fn print(&mut self, text: &str) -> Result<(), String> {
        self.bytes(text.as_bytes())
    }

    /// The same for what may not be UTF-8.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), String> {
        if self.is_closed {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        match out.write_all(bytes).and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.is_closed = true,
            Err(error) => return Err(format!("standard output: {error}")),
            Ok(()) => {}
        }
        Ok(())
    }

    /// A document as one JSON object: over several lines, or with `lines` on one.
    pub fn json<T: serde::Serialize>(&mut self, document: &T, lines: bool) -> Result<(), String> {
        let text = match lines {
            true => serde_json::to_string(document),
            false => serde_json::to_string_pretty(document),
        };
        let text = text.map_err(|error| format!("JSON: {error}"))?;
        self.print(&(text + "\n"))
    }
}

fn has_color(choice: &str, is_terminal: bool, env: &dyn Fn(&str) -> Option<OsString>) -> bool {
    let said = |name: &str| env(name).is_some_and(|value| !value.is_empty());
    let dumb = env("TERM").is_some_and(|term| term == "dumb");
    choice == "always" || (choice == "auto" && is_terminal && !said("NO_COLOR") && !dumb)
}

/// Columns of the terminal that standard output is.
pub fn terminal_width() -> Option<usize> {
    let (width, _) = terminal_size::terminal_size_of(io::stdout())?;
    Some(usize::from(width.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_is_for_terminals_that_want_it() {
        let check = |choice: &str, is_terminal: bool, variable: &str, expected: bool| {
            let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
            let env = |asked: &str| (asked == name).then(|| OsString::from(value));
            assert_eq!(
                has_color(choice, is_terminal, &env),
                expected,
                "{choice} {variable}"
            );
        };
        check("auto", true, "", true);
        check("auto", false, "", false);
        check("auto", true, "NO_COLOR=1", false);
        check("auto", true, "NO_COLOR=", true);
        check("auto", true, "TERM=dumb", false);
        check("always", false, "NO_COLOR=1", true);
        check("never", true, "", false);
    }
}
