//! Softmax attention: causal with grouped heads, sliding windows, rotary positions, gates and a
//! key/value cache, and between sequences with padding.
//!
//! [`causal_attention`] is the plain function, [`full_attention`] the one of encoders, [`sink_attention`] the one with sinks,
//! [`affine_scaled_attention`] the one whose weights are scaled and shifted. [`CausalAttention`] is the
//! layer with gates at every position ([`AttentionGateConfig`]), [`LatentAttention`] the layer with
//! compressed keys and values. [`masked_attention`], [`MultiHeadAttention`] and [`PackedAttention`] (the three maps in
//! one matrix) are what encoders need and decoders that read from them; [`window_partition`] cuts maps into sequences.
//! one matrix) are what encoders need and decoders that read from them. [`channel_masked_attention`] has a softmax for every
//! value channel.

mod affine;
mod cache;
mod channel_masked;
mod config;
mod full;
mod gate;
mod grid;
mod latent;
mod layer;
mod masked;
mod multi_head;
mod packed;
mod packed_heads;
mod rotary;
mod softmax;
#[cfg(test)]
mod tests;
mod windows;

pub use affine::{BiasCount, affine_row_mass, affine_scaled_attention, affine_shift, causal_mean};
pub use cache::KvCache;
pub use channel_masked::channel_masked_attention;
pub use config::{AttentionGateConfig, CausalAttentionConfig, GateLayout, SdpaTransform};
pub use full::full_attention;
pub use gate::{GateGranularity, GateMode, GatePosition, HeadGate, HeadGateConfig, OutputGateKind};
pub use grid::GridRotaryEmbedding;
pub use latent::{LatentAttention, LatentAttentionConfig, LatentCache};
pub use layer::{CausalAttention, Positions, Projected};
pub use masked::{Seen, masked_attention};
pub use multi_head::{MultiHeadAttention, MultiHeadAttentionConfig};
pub use packed_heads::{PackedAttention, PackedAttentionConfig};
pub use rotary::{RotaryEmbedding, pairs_to_halves};
pub use softmax::{AttentionOptions, attention_weights, causal_attention, sink_attention};
pub use windows::{window_merge, window_partition};
