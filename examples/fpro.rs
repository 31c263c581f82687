//! Placeholder until the experiment of `fpro` is written.
fn main() {}
