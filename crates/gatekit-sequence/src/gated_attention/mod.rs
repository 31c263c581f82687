//! Gated attention: a sigmoid gate of the input behind each head's softmax attention.
//!
//! Qiu et al. 2025, "Gated Attention for Large Language Models: Non-linearity, Sparsity, and
//! Attention-Sink-Free" (arXiv 2505.06708). The gate puts a non-linearity between the value and
//! output projections and lets a query say "nothing here", so that the first token is no longer used
//! as a sink.
//!
//! | type | is |
//! |---|---|
//! | [`GatedAttention`] | the layer with the gate at any of five positions, in its general form |
//! | [`FusedGatedAttention`] | the layer whose gate stands in `q_proj`, as published; [`split`](gatekit_core::attention::CausalAttention::split) makes it general |
//! | [`GatedAttentionForCausalLm`] | a Qwen3-style language model of fused layers |
//!
//! What a trained layer does is measured by
//! [`AttentionDiagnosticsConfig`](gatekit_core::probe::AttentionDiagnosticsConfig).

mod layer;
mod model;

pub use layer::{FusedGatedAttention, FusedGatedAttentionConfig, GatedAttention, GatedAttentionConfig};
pub use model::{GatedAttentionForCausalLm, GatedAttentionModelConfig, GatedAttentionState};
