//! TransNormerLLM: linear attention with a constant decay per head and layer.
//!
//! Qin et al.: "TransNormerLLM: A Faster and Better Large Language Model with Improved
//! TransNormer", 2023, arXiv 2307.14995. A fixed exponential decay gates the memory of every head,
//! an output gate without activation multiplies the normalised result, and a gated linear unit
//! without activation mixes channels:
//!
//! ```text
//! S_t = lambda S_{t-1} + k_t v_t^T     o_t = S_t^T q_t     y_t = W_out (u_t * SRMSNorm(o_t))
//! ```
//!
//! Lower layers forget fast, the last one hardly. The first layer also has trained relative
//! positions, [LRPE](gatekit_core::lrpe). Training is linear in the length, decoding has a state of
//! constant size. Names of fields and parameters are those of the released models (385M, 1B, 7B),
//! so [`load_pretrained`](crate::load_pretrained) reads their weights.
//!
//! # Padding
//!
//! As in the released models a mask sets the values of padded tokens to zero, while decay and
//! positions run over them. Padding on the left therefore changes nothing for the real tokens.
//! Padding between real tokens lets the memory decay by the padded steps, and padding on the right
//! of a prefill leaves a state that has decayed and positions that have advanced.

mod config;
mod layer;
mod mixer;
mod model;
mod slopes;
mod state;

pub use config::TransNormerConfig;
pub use layer::{TransNormerLayer, TransNormerLayerConfig};
pub use mixer::{NormLinearAttention, NormLinearAttentionConfig};
pub use model::{TransNormerLlm, TransNormerModel, TransNormerState};
pub use slopes::{DecaySchedule, slope_rates};
pub use state::NormLinearAttentionState;
