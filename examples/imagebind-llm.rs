//! Placeholder until the experiment of `imagebind-llm` is written.
fn main() {}
