//! Mixtures of experts, early exit and conditional computation.
//!
//! | module | owns |
//! |---|---|
//! | [`moe`] | the mixture-of-experts layer of Mixtral, Qwen3-MoE and DeepSeek-V3 (from the core) |
#![deny(missing_docs)]

pub use gatekit_core::moe;
