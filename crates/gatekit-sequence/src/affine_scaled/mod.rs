//! Affine-scaled attention: softmax weights with a learned scale and a shift.
//!
//! Bae et al. 2026, "Affine-Scaled Attention: Towards Flexible and Stable Transformer Attention"
//! (arXiv 2602.23057). Every query of a head scales its weights by `alpha in [0, 1]` and spreads the
//! distance of alpha from its moving average m evenly over the keys:
//!
//! ```text
//! a_tj = alpha_t softmax_j(q_t . k_j / sqrt e) + (m - alpha_t) / N        o_t = sum_j a_tj v_j
//! ```
//!
//! so that a head can sharpen or flatten without having to spend a whole unit of attention. The same
//! layer without it (`softmax`) and with a learned sink (`sink`) is what the paper compares with.

mod layer;
mod model;
mod state;

pub use layer::{
    AffineScaledAttention, AffineScaledAttentionConfig, AttentionVariant, ScaleActivation, ScaleValues,
};
pub use model::{AffineScaledForCausalLm, AffineScaledModelConfig, AffineScaledState};
pub use state::AffineCache;
