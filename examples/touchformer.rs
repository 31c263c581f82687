//! Placeholder until the experiment of `touchformer` is written.
fn main() {}
