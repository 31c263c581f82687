//! The mechanisms of gating: how a gate value is made from data, and how it is applied.
#![deny(missing_docs)]

pub mod activation;
pub mod attention;
pub mod batch_norm;
pub mod checkpoint;
mod common;
pub mod config;
mod constant;
pub mod conv;
pub mod cross_entropy;
pub mod cross_modal;
pub mod decay;
pub mod dispatch;
pub mod divergence;
pub mod error;
pub mod feed_forward;
pub mod fourier;
pub mod gate;
pub mod glu;
pub mod glu_conv;
pub mod init;
pub mod linalg;
pub mod lrpe;
pub mod memory_bank;
pub mod mlp;
pub mod moe;
pub mod moving_average;
pub mod norm;
pub mod parameters;
pub mod path_fusion;
pub mod probe;
pub mod resize;
pub mod router;
pub mod sampling;
pub mod scan;
pub mod segment;
pub mod sequence;
pub mod simple_rms_norm;
#[cfg(test)]
mod test_util;
pub mod time_embedding;

pub use common::{host_values, widen};
pub use config::{ModuleConfig, check_sizes};
pub use error::{ConfigError, InputError};
