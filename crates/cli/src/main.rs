//! `estimate`.
fn main() {}
