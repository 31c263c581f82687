//! Mixtures of experts, early exit and conditional computation.
//!
//! | module | owns |
//! |---|---|
//! | [`modes`] | skipping experts that matter little, without training: importance, thresholds, frontier search |
//! | [`mixer_experts`] | MixER: experts on dynamical systems, their gate refitted by k-means and least squares |
//! | [`moe_continual_learning`] | linear experts in continual learning, and when their gate must stop learning |
//! | [`hecto`] | a recurrent and a feed-forward expert behind a top-1 gate |
//! | [`jei_dnn`] | early exits whose gates and classifiers learn from each other |
//! | [`acm`] | adaptive computation modules: as many learners as a token needs |
//! | [`moe`] | the mixture-of-experts layer of Mixtral, Qwen3-MoE and DeepSeek-V3 (from the core) |
//! | [`thor`] | experts drawn at random in place of a router, trained to agree |
#![deny(missing_docs)]

pub mod acm;
pub mod hecto;
pub mod jei_dnn;
pub mod mixer_experts;
pub mod modes;
pub mod moe_continual_learning;
mod random;
pub mod thor;

pub use gatekit_core::moe;
