//! The documents as text for a terminal.

mod bar;
mod comparison;
mod devices;
mod estimate;
mod explanation;
mod numbers;
mod summary;
mod wrap;

pub use comparison::comparison_text;
pub use estimate::estimate_text;
pub use explanation::explanation_text;
pub use summary::{summary_heading, summary_line};
pub use wrap::{command_line, one_line, words};
