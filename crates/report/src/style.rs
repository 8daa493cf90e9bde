//! How text may look.

use anstyle::{AnsiColor, Style as Ansi};

/// Narrower than this nothing is laid out; lines break where they must.
pub(crate) const LEAST_WIDTH: usize = 24;

/// What the reader's terminal can show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Style {
    /// Columns.
    pub width: usize,
    /// Colours and weights.
    pub color: bool,
}

impl Style {
    /// Text for `width` columns.
    pub fn new(width: usize, color: bool) -> Style {
        Style {
            width: width.max(LEAST_WIDTH),
            color,
        }
    }

    pub(crate) fn paint(&self, ink: Ink, text: &str) -> String {
        if !self.color || text.is_empty() {
            return text.to_string();
        }
        let style = ink.style();
        format!("{}{text}{}", style.render(), style.render_reset())
    }
}

impl Default for Style {
    fn default() -> Style {
        Style::new(80, false)
    }
}

/// What a piece of text is, as far as colour goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ink {
    Plain,
    Strong,
    Faint,
    Good,
    Warning,
    Bad,
    Weights,
    Cache,
    Compute,
    Cuda,
}

impl Ink {
    fn style(self) -> Ansi {
        let color = |c: AnsiColor| c.on_default();
        match self {
            Ink::Plain => Ansi::new(),
            Ink::Strong => Ansi::new().bold(),
            Ink::Faint => Ansi::new().dimmed(),
            Ink::Good => color(AnsiColor::Green).bold(),
            Ink::Warning => color(AnsiColor::Yellow).bold(),
            Ink::Bad => color(AnsiColor::Red).bold(),
            Ink::Weights => color(AnsiColor::Blue),
            Ink::Cache => color(AnsiColor::Cyan),
            Ink::Compute => color(AnsiColor::Magenta),
            Ink::Cuda => color(AnsiColor::Yellow),
        }
    }
}
