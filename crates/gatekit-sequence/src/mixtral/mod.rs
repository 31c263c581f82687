//! Mixtral: softmax attention with grouped heads, and eight experts of which a token uses two.
//!
//! Jiang et al.: "Mixtral of Experts", 2024, arXiv 2401.04088, section 2.1. Every feed-forward
//! layer is a mixture of experts:
//!
//! ```text
//! w = softmax(top2(x W_g^T))        y = sum_k w_k SwiGLU_k(x)
//! ```
//!
//! Attention has rotary positions on whole heads, no biases, and a sliding window where the
//! configuration has one.

mod model;
mod published;

pub use model::{MixtralConfig, MixtralForCausalLm, MixtralState};
