//! The stack that every language model here shares: pre-norm blocks around a token mixer.
//!
//! ```text
//! x = embeddings[ids]
//! x = x + attn(RMSNorm(x));   x = x + SwiGLU(RMSNorm(x))      (per block)
//! logits = W_head RMSNorm(x)
//! ```
//!
//! The mixer and the feed-forward layer are type parameters. Module and field names are those of
//! flash-linear-attention's checkpoints (`model.layers.0.attn_norm.weight`, ...), so these load
//! without a name map.

mod mixer;
mod model;
mod size;
mod state;

pub use mixer::{FeedForward, MixerContext, TokenMixer};
pub(crate) use model::padding;
pub use model::{Backbone, Block, CausalModel};
pub use size::BackboneSize;
pub use state::{MixerState, ModelState};
pub(crate) use state::{
    check_shape, no_more_tensors, position_data, state_data, take_position, take_state_tensor, tensor_bytes,
};

/// More layers than any model has: a larger number in a configuration is a damaged file.
pub(crate) const MAX_LAYERS: usize = 10_000;
