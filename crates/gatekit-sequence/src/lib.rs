//! Gated token mixers and the language models made of them.
//!
//! | module | owns |
//! |---|---|
//! | [`lm`] | what every language model does: logits, next-token loss, streaming with an explicit state |
//! | [`backbone`] | the pre-norm stack that all of them share, generic over its [`TokenMixer`](backbone::TokenMixer) |
//! | [`affine_scaled`] | softmax attention whose weights are scaled and shifted |
//! | [`gated_attention`] | softmax attention with an output gate, at five positions |
//! | [`gla`] | gated linear attention |
//! | [`softmax`] | softmax attention in the same backbone, to compare with |
//! | [`checkpoint`] | folders as the published models have them, parameters and gradients by published name |
//! | [`generate`](mod@generate) | sampling, token by token |
//!
//! # Example
//!
//! ```
//! # #[cfg(feature = "flex")] {
//! use burn::tensor::{Device, Int, Tensor};
//! use gatekit_core::ModuleConfig;
//! use gatekit_sequence::gla::GlaConfig;
//! use gatekit_sequence::lm::{CausalLm, StreamingLm};
//!
//! let device = Device::flex();
//! let model = GlaConfig::new(96, 32, 2).with_num_heads(2).init(&device);
//!
//! let ids = Tensor::<2, Int>::from_data([[1, 5, 7, 2]], &device);
//! let logits = model.forward(ids.clone(), None); // [1, 4, 96]
//! let loss = model.loss(logits, ids.clone()).unwrap();
//!
//! // The same function one token at a time, from a state of constant size.
//! let (_, state) = model.prefill(ids, model.empty_state(1, &device));
//! let next = Tensor::<1, Int>::from_data([3], &device);
//! let (logits, state) = model.step(next, state); // [1, 96]
//! # let _ = (loss, logits, state);
//! # }
//! ```
#![deny(missing_docs)]

pub mod affine_scaled;
pub mod backbone;
pub mod gated_attention;
pub mod generate;
pub mod gla;
pub mod lm;
pub mod softmax;

pub use affine_scaled::{
    AffineScaledAttention, AffineScaledAttentionConfig, AffineScaledForCausalLm, AffineScaledModelConfig,
};
pub use backbone::CausalModel;
pub use gated_attention::{
    FusedGatedAttention, FusedGatedAttentionConfig, GatedAttention, GatedAttentionConfig,
    GatedAttentionForCausalLm, GatedAttentionModelConfig,
};
pub use gatekit_core::checkpoint::{self, CheckpointError, load_pretrained, save_pretrained};
pub use generate::{GenerateConfig, generate};
pub use gla::{GatedLinearAttention, GatedLinearAttentionConfig, GlaConfig, GlaForCausalLm};
pub use lm::{CausalLm, StreamState, StreamingLm};
pub use softmax::{SoftmaxConfig, SoftmaxForCausalLm};
