//! Mixtures of experts, early exit and conditional computation.
//!
//! | module | owns |
//! |---|---|
//! | [`hecto`] | a recurrent and a feed-forward expert behind a top-1 gate |
//! | [`jei_dnn`] | early exits whose gates and classifiers learn from each other |
//! | [`moe`] | the mixture-of-experts layer of Mixtral, Qwen3-MoE and DeepSeek-V3 (from the core) |
#![deny(missing_docs)]

pub mod hecto;
pub mod jei_dnn;

pub use gatekit_core::moe;
