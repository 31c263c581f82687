//! Mixtures of experts, early exit and conditional computation.
//!
//! | module | owns |
//! |---|---|
//! | [`modes`] | skipping experts that matter little, without training: importance, thresholds, frontier search |
//! | [`moe`] | the mixture-of-experts layer of Mixtral, Qwen3-MoE and DeepSeek-V3 (from the core) |
//! | [`thor`] | experts drawn at random in place of a router, trained to agree |
#![deny(missing_docs)]

pub mod thor;
pub mod modes;

pub use gatekit_core::moe;
