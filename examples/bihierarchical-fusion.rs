//! Placeholder until the experiment of `bihierarchical-fusion` is written.
fn main() {}
