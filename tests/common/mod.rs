//! What several test programs share.
#![allow(dead_code)] // each program uses its part

#[allow(clippy::disallowed_methods, clippy::unwrap_used)]
pub mod adapters;
#[allow(clippy::disallowed_methods, clippy::unwrap_used)]
pub mod bound;
#[allow(clippy::disallowed_methods, clippy::unwrap_used)]
pub mod drafts;
#[allow(clippy::disallowed_methods, clippy::unwrap_used)]
pub mod figures;
#[allow(clippy::disallowed_methods, clippy::unwrap_used)]
pub mod graphs;
#[allow(clippy::disallowed_methods, clippy::unwrap_used)]
pub mod mmproj;
#[allow(clippy::disallowed_methods, clippy::unwrap_used)]
pub mod pools;
#[allow(clippy::disallowed_methods, clippy::unwrap_used)]
pub mod table;
#[allow(clippy::disallowed_methods, clippy::unwrap_used)]
pub mod truth;

use std::path::PathBuf;

/// A path below `fixtures/`.
pub fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures")
        .join(path)
}
