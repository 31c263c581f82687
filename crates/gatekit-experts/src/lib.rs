//! Mixtures of experts, early exit and conditional computation.
//!
//! | module | owns |
//! |---|---|
//! | [`moe`] | the mixture-of-experts layer of Mixtral, Qwen3-MoE and DeepSeek-V3 (from the core) |
//! | [`sqrtgate`] | mixture of experts, optimisers and learning rates that keep the power of outputs and weights |
//! | [`thor`] | experts drawn at random in place of a router, trained to agree |
#![deny(missing_docs)]

pub mod sqrtgate;
pub mod thor;

pub use gatekit_core::moe;
