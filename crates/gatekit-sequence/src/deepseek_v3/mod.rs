//! DeepSeek-V3: latent attention with rotary positions, and experts chosen in groups.
//!
//! DeepSeek-AI: "DeepSeek-V3 Technical Report", 2024, arXiv 2412.19437, section 2.1. Every layer is
//! [`LatentAttention`](gatekit_core::attention::LatentAttention), whose cache holds one latent and
//! one rotated key a token; the feed-forward layers are mixtures of experts but for the first ones.
//! A token chooses its experts by sigmoid scores plus a bias that keeps the load even, from the best
//! groups; the bias is no part of their weights.
//!
//! The layers that predict further tokens in training (multi-token prediction) are not built;
//! their tensors in published files are passed over.

mod model;
mod published;

pub use model::{DeepseekV3Config, DeepseekV3ForCausalLm, DeepseekV3State};
