//! Gated token mixers and the language models made of them.
//!
//! | module | owns |
//! |---|---|
//! | [`lm`] | what every language model does: logits, next-token loss, streaming with an explicit state |
//! | [`backbone`] | the pre-norm stack that all of them share, generic over its [`TokenMixer`](backbone::TokenMixer) |
//! | [`affine_scaled`] | softmax attention whose weights are scaled and shifted |
//! | [`auto`] | any of the models, chosen by the `config.json` of a folder |
//! | [`deepseek_v3`] | latent attention with rotary positions and experts chosen in groups |
//! | [`feed_forward`] | dense or sparse feed-forward layers |
//! | [`gated_attention`] | softmax attention with an output gate, at five positions |
//! | [`gated_associative_memory`] | gated associative memory: convolution, trained memory, gates |
//! | [`hybrid_linear_attention`] | RetNet, HGRN, HGRN2, DeltaNet and Gated DeltaNet layers, alone or in stacks with full attention |
//! | [`qwen3_moe`] | Qwen3-MoE: softmax attention with normed heads and many small experts |
//! | [`qwen3_next`] | Qwen3-Next: gated DeltaNet, gated attention, experts |
//! | [`kimi_linear`] | Kimi Delta Attention in a hybrid stack with latent attention and experts |
//! | [`recurrent`] | what layers with a recurrence share: their state, and how they become token mixers |
//! | [`gla`] | gated linear attention |
//! | [`mamba`] | Mamba: the selective state space, its block and its language model |
//! | [`mamba_icl`] | what a selective gate learns in context: predictor, recurrence, prompts with outliers |
//! | [`mixtral`] | Mixtral: softmax attention and eight experts, two a token |
//! | [`mixture_of_value_embeddings`] | a value memory that all layers share |
//! | [`softmax`] | softmax attention in the same backbone, to compare with |
//! | [`transnormer`] | TransNormerLLM: Lightning attention, LRPE |
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
pub mod auto;
pub mod backbone;
mod decoder_layout;
pub mod deepseek_v3;
pub mod feed_forward;
pub mod gated_associative_memory;
pub mod gated_attention;
pub mod generate;
pub mod gla;
pub mod hybrid_linear_attention;
pub mod kimi_linear;
mod latent;
pub mod lm;
pub mod mamba;
pub mod mamba_icl;
mod mixer_enum;
pub mod mixtral;
pub mod mixture_of_value_embeddings;
pub mod qwen3_moe;
pub mod qwen3_next;
pub mod recurrent;
mod routed;
pub mod softmax;
pub mod transnormer;

pub use affine_scaled::{
    AffineScaledAttention, AffineScaledAttentionConfig, AffineScaledForCausalLm, AffineScaledModelConfig,
};
pub use auto::{AutoConfig, AutoModel, AutoState, from_pretrained};
pub use backbone::CausalModel;
pub use deepseek_v3::{DeepseekV3Config, DeepseekV3ForCausalLm};
pub use feed_forward::DecoderFeedForward;
pub use gated_associative_memory::{GamConfig, GamLm};
pub use gated_attention::{
    FusedGatedAttention, FusedGatedAttentionConfig, GatedAttention, GatedAttentionConfig,
    GatedAttentionForCausalLm, GatedAttentionModelConfig,
};
pub use gatekit_core::checkpoint::{self, CheckpointError, load_pretrained, save_pretrained};
pub use generate::{GenerateConfig, generate};
pub use gla::{GatedLinearAttention, GatedLinearAttentionConfig, GlaConfig, GlaForCausalLm};
pub use hybrid_linear_attention::{HybridConfig, HybridForCausalLm};
pub use kimi_linear::{
    KimiDeltaAttention, KimiDeltaAttentionConfig, KimiLinearConfig, KimiLinearForCausalLm,
};
pub use lm::{CausalLm, StreamState, StreamingLm};
pub use mamba::{MambaConfig, MambaForCausalLm, MambaMixer, MambaMixerConfig};
pub use mixtral::{MixtralConfig, MixtralForCausalLm};
pub use mixture_of_value_embeddings::{MoveImageConfig, MoveImageModel, MoveTextConfig, MoveTextModel};
pub use qwen3_moe::{Qwen3MoeConfig, Qwen3MoeForCausalLm};
pub use qwen3_next::{Qwen3NextConfig, Qwen3NextForCausalLm};
pub use routed::RoutedLm;
pub use softmax::{SoftmaxConfig, SoftmaxForCausalLm};
pub use transnormer::{TransNormerConfig, TransNormerLlm};
