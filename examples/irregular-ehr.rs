//! Placeholder until the experiment of `irregular-ehr` is written.
fn main() {}
