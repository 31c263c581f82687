//! Qwen3-Next: gated DeltaNet and gated attention, three to one, with sparse feed-forward layers.
//!
//! Qwen Team: "Qwen3-Next", 2025, as released (Qwen/Qwen3-Next-80B-A3B) and as in the transformers
//! library. Three quarters of the layers keep a matrix that the gated delta rule writes (Yang et al.
//! 2024, arXiv 2412.06464); the others are softmax attention whose output an elementwise sigmoid gate
//! scales (Qiu et al. 2025, arXiv 2505.06708), with normed queries and keys of which a quarter of the
//! channels is rotated. Every feed-forward layer has many small experts, of which a token uses a few,
//! and one gated expert that every token uses.
//!
//! ```text
//! x = x + mixer(norm(x));   x = x + moe(norm(x))           norm(x) = x / rms(x) * (1 + weight)
//! logits = W_head norm(x)
//! ```
//!
//! Names of fields and parameters are those of the released models, through
//! [`layout`](gatekit_core::checkpoint::PretrainedConfig::layout).

mod config;
mod delta_net;
mod published;

use gatekit_core::attention::CausalAttention;

use crate::backbone::{CausalModel, ModelState};
use crate::feed_forward::DecoderFeedForward;
use crate::mixer_enum::mixer_enum;

pub use config::{Qwen3NextConfig, Qwen3NextLayer};
pub use delta_net::{PackedGatedDeltaNet, PackedGatedDeltaNetConfig};

mixer_enum! {
    /// Either layer of the stack. Parameters are named as in the layer itself.
    Qwen3NextMixer,
    /// The streaming state of a [`Qwen3NextMixer`].
    Qwen3NextLayerState as "qwen3_next",
    {
        /// Gated DeltaNet.
        Linear(PackedGatedDeltaNet) = "linear_attention",
        /// Gated softmax attention.
        Full(CausalAttention) = "full_attention",
    }
}

/// The language model.
pub type Qwen3NextForCausalLm = CausalModel<Qwen3NextMixer, DecoderFeedForward>;

/// Its streaming state: of constant size in the linear layers.
pub type Qwen3NextState = ModelState<Qwen3NextLayerState>;
