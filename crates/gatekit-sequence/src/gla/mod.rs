//! Gated linear attention.
//!
//! Yang, Wang, Shen, Panda, Kim: "Gated Linear Attention Transformers with Hardware-Efficient
//! Training", ICML 2024, arXiv 2312.06635. Every head keeps a matrix `S` instead of a growing
//! cache; a decay per key channel that depends on the data, `alpha_t in (0, 1)^K`, decides what
//! of it stays:
//!
//! ```text
//! S_t = diag(alpha_t) S_{t-1} + k_t v_t^T        o_t = K^-1/2 S_t^T q_t
//! ```
//!
//! Names of fields and parameters are those of the released checkpoints (fla-hub/gla-340M-15B,
//! ...), so [`load_pretrained`](crate::load_pretrained) reads these.

mod layer;
mod model;

pub use layer::{
    ConvolutionWindows, GateValues, GatedLinearAttention, GatedLinearAttentionConfig, GlaLayerState,
};
pub use model::{GlaConfig, GlaForCausalLm, GlaState};
