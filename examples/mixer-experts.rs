//! The experiment of this system.
#![allow(missing_docs)]

fn main() {}
