//! Mixtures of experts, early exit and conditional computation.
//!
//! | module | owns |
//! |---|---|
//! | [`acm`] | adaptive computation modules: as many learners as a token needs |
//! | [`moe`] | the mixture-of-experts layer of Mixtral, Qwen3-MoE and DeepSeek-V3 (from the core) |
#![deny(missing_docs)]

pub mod acm;

pub use gatekit_core::moe;
