//! What people and programs read: one document, as text and as JSON.
//!
//! [`Estimate`] and [`Explanation`] are what JSON holds, under stable names. The text is made from
//! the same documents, so the two cannot disagree.

mod build;
mod comparison;
mod document;
mod explanation;
mod schema;
mod style;
mod terms;
mod text;

pub use build::Subject;
pub use comparison::{Comparison, SideDevice, SideReport, Term};
pub use document::{
    CertaintyWords, DeviceReport, Estimate, FixReport, LayoutWord, ModelReport, OverrideReport,
    PreferWord, RejectedReport, RunReport, ShortfallReport, SplitWord, Sure, VerdictWord,
};
pub use explanation::{AliveReport, Explanation, PassWord, PeakReport, PoolReport};
pub use schema::{
    Failure, SCHEMA_COMPARE, SCHEMA_ERROR, SCHEMA_ESTIMATE, SCHEMA_EXPLAIN, SchemaOf, schema,
};
pub use style::Style;
pub use terms::{DeviceTerm, TermKind};
pub use text::{
    command_line, comparison_text, estimate_text, explanation_text, one_line, summary_heading,
    summary_line, words,
};
