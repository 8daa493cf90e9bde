//! Maintainer tool.
fn main() {}
