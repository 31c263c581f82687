//! Mixtures of experts, early exit and conditional computation.
//!
//! | module | owns |
//! |---|---|
//! | [`modes`] | skipping experts that matter little, without training: importance, thresholds, frontier search |
//! | [`moe`] | the mixture-of-experts layer of Mixtral, Qwen3-MoE and DeepSeek-V3 (from the core) |
#![deny(missing_docs)]

pub mod modes;

pub use gatekit_core::moe;
