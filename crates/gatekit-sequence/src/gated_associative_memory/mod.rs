//! Gated associative memory: a convolution for what stands near, a trained memory for what always
//! holds, and gates that read from both.
//!
//! Acharya: "Gated Associative Memory: A Parallel O(N) Architecture for Efficient Sequence
//! Modeling", 2025, arXiv 2509.00605.
//!
//! ```text
//! y_t = sigmoid(a_t) * conv(x)_t + sigmoid(c_t) * softmax(x_t B^T) B        [a_t, c_t] = W x_t + b
//! ```
//!
//! Nothing is recurrent, and the cost is linear in the length. The memory does not look at other
//! tokens: context arrives through the convolutions alone, so a token sees the last
//! `1 + num_layers * (K - 1)` tokens, 13 with the defaults, and cannot copy from further away.
//! Positions are learned, so a sequence is at most `block_size` tokens long, in streaming too.

mod config;
mod layer;
mod mixer;
mod model;
mod state;

pub use config::GamConfig;
pub use layer::{GamBlock, GamBlockConfig};
pub use mixer::{Fusion, GamGates, GamMixer, GamMixerConfig};
pub use model::{GamLm, GamState};
pub use state::GamBlockState;
