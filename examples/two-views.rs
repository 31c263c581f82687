//! Placeholder until the experiment of `two-views` is written.
fn main() {}
