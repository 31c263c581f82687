//! Kimi Linear: Kimi Delta Attention in a hybrid stack with latent attention.
//!
//! Kimi Team: "Kimi Linear: An Expressive, Efficient Attention Architecture", 2025, arXiv
//! 2510.26692. Every layer of [`KimiDeltaAttention`] keeps a matrix per head; a decay per key
//! channel decides what of it stays, and the delta rule erases what a key holds before it writes:
//!
//! ```text
//! S_t = (I - beta_t k_t k_t^T) diag(exp g_t) S_{t-1} + beta_t k_t v_t^T      o_t = K^-1/2 S_t^T q_t
//! ```
//!
//! Every fourth layer is softmax attention over a compressed cache
//! ([`LatentAttention`](gatekit_core::attention::LatentAttention)), without positions. The
//! feed-forward layers are mixtures of experts but for the first.
//!
//! [`load_pretrained`](crate::load_pretrained) reads checkpoints as they were released and as
//! `transformers` saves them.

mod config;
mod layer;
mod mixer;
mod model;
mod published;

pub use config::KimiDeltaAttentionConfig;
pub use layer::{KimiDeltaAttention, KimiGateValues};
pub use mixer::{KimiLayerState, KimiMixer};
pub use model::{KimiFolderForm, KimiLinearConfig, KimiLinearForCausalLm, KimiLinearState};
