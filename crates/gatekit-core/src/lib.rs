//! The mechanisms of gating: how a gate value is made from data, and how it is applied.
#![deny(missing_docs)]

pub mod attention;
pub mod checkpoint;
mod common;
pub mod config;
pub mod conv;
pub mod decay;
pub mod error;
pub mod feed_forward;
pub mod gate;
pub mod init;
pub mod moving_average;
pub mod norm;
pub mod probe;
pub mod scan;
pub mod sequence;
#[cfg(test)]
mod test_util;

pub use config::ModuleConfig;
pub use error::{ConfigError, InputError};
