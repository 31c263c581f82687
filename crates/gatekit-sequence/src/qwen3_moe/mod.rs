//! Qwen3-MoE: softmax attention with normed queries and keys, and many small experts.
//!
//! Yang et al.: "Qwen3 Technical Report", 2025, arXiv 2505.09388, section 2. Queries and keys go
//! through an RMSNorm a head before the rotation; a token uses 8 of 128 experts, whose scores are
//! divided by their sum. Some layers may be dense.

mod model;
mod published;

pub use model::{Qwen3MoeConfig, Qwen3MoeForCausalLm, Qwen3MoeState};
